"""How weights move: optimiser, learning-rate schedule, moving average."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from neuroage.models.freezing import rate_scales, stages_of
from neuroage.models.network import Network
from neuroage.runs.recipe import Finetune, Optim

ONE_CYCLE_RISE = 0.3  # share of the training in which one_cycle rises (Smith 2019, doi:10.1117/12.2520589)
ONE_CYCLE_START = 0.04  # where it starts, as a share of the highest rate (same source)
PLATEAU_FACTOR = 0.3
PLATEAU_MIN_GAIN = 1e-3  # relative improvement that counts


def make_optimiser(network: nn.Module, recipe: Optim, finetune: Finetune | None = None) -> torch.optim.Optimizer:
    """Make the optimiser of a recipe; weight decay spares norms and biases (every parameter with one axis).

    Where torch has a fused kernel (CPU, CUDA), all weights move in one launch.

    Args:
        network: Its parameters that require a gradient are optimised.
        recipe: Rate, momentum, weight decay.
        finetune: Where stages learn at different rates, each has groups of its own, with `lr_scale`, which `set_rate`
            heeds.
    """
    finetune = finetune or Finetune()
    groups = _groups(network, recipe, finetune)
    parameters: list[nn.Parameter] = [parameter for group in groups for parameter in group["params"]]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    if recipe.name == "sgd":
        fused &= len(finetune.unfreeze or ()) < 2  # its kernel wants momentum of all weights or of none
        return torch.optim.SGD(
            groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0, fused=fused
        )
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999), fused=fused)


def _groups(network: nn.Module, recipe: Optim, finetune: Finetune) -> list[dict[str, Any]]:
    alike = finetune.layer_decay == 1 and finetune.head_lr == 1
    if alike or not isinstance(network, Network):
        return _decayed_and_not(list(network.parameters()), recipe)
    stages = stages_of(network)
    groups = []
    for stage, scale in zip(stages, rate_scales(stages, finetune), strict=True):
        for group in _decayed_and_not(stage.parameters, recipe):
            if group["params"]:
                groups.append({**group, "lr": recipe.lr * scale, "lr_scale": scale})
    return groups


def _decayed_and_not(parameters: list[nn.Parameter], recipe: Optim) -> list[dict[str, Any]]:
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    return [
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
    ]


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group: `rate`, times the group's own factor where it has one."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def learning_rate(recipe: Optim, progress_epochs: float, n_epochs: int, scores: Sequence[float] = ()) -> float:
    """Give the learning rate at a point of the training; it depends on its arguments alone, so resuming needs no state.

    Args:
        recipe: Schedule and its options.
        progress_epochs: How far the training is, in epochs (0 to n_epochs).
        n_epochs: Length of the training.
        scores: For the plateau schedule: what each finished epoch reached, lower is better.
    """
    if recipe.schedule == "one_cycle":
        rise = ONE_CYCLE_RISE * n_epochs
        if progress_epochs < rise:
            return recipe.lr * _between(ONE_CYCLE_START, 1.0, progress_epochs / rise)
        return recipe.lr * _between(1.0, recipe.final_lr, (progress_epochs - rise) / max(n_epochs - rise, 1e-9))
    warmup = min(recipe.warmup_epochs, n_epochs)
    if progress_epochs < warmup:
        return recipe.lr * max(progress_epochs / warmup, 1e-3)
    after = (progress_epochs - warmup) / max(n_epochs - warmup, 1e-9)
    if recipe.schedule == "cosine":
        return recipe.lr * _between(1.0, recipe.final_lr, after)
    if recipe.schedule == "exponential":
        return recipe.lr * float(recipe.final_lr**after)
    if recipe.schedule == "plateau":
        return recipe.lr * max(PLATEAU_FACTOR ** _n_drops(scores, recipe.plateau_epochs), recipe.final_lr)
    return recipe.lr


def _between(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(max(share, 0.0), 1.0))) / 2


def _n_drops(scores: Sequence[float], patience: int) -> int:
    best, waited, drops = math.inf, 0, 0
    for score in scores:
        if score < best * (1 - PLATEAU_MIN_GAIN):
            best, waited = score, 0
        else:
            waited += 1
        if waited >= patience:
            drops, waited = drops + 1, 0
    return drops


N = TypeVar("N", bound=nn.Module)


class MovingAverage(Generic[N]):
    """An exponential moving average of a network's weights and norm statistics.

    The decay grows from 0.1 with the steps taken, (1 + t) / (10 + t), up to the recipe's, so that short trainings are
    not dominated by their first weights.

    Args:
        network: Its current weights are the start.
        decay: Share of the old average that each step keeps.
    """

    def __init__(self, network: N, decay: float) -> None:
        self.network: N = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, n_steps: int) -> None:
        """Take in the weights after step number `n_steps` (from 1)."""
        keep = min(self.decay, (1 + n_steps) / (10 + n_steps))
        averages, values = self.network.state_dict(), network.state_dict()
        floating = [name for name, value in values.items() if value.is_floating_point()]
        torch._foreach_lerp_([averages[name] for name in floating], [values[name] for name in floating], 1 - keep)
        for name, value in values.items():
            if not value.is_floating_point():
                averages[name].copy_(value)
