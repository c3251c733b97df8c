"""The training loop, from top to bottom as a story.

Everything drawn at random is keyed by (seed, epoch, step or scan), never by what was drawn before, so a training that
is interrupted anywhere and resumed ends with the same numbers as one that never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from neuroage.errors import DataError
from neuroage.imaging.augment import Pipeline
from neuroage.imaging.batches import VolumeSet, age_weights, plan_epoch
from neuroage.models.tasks import Task
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run
from neuroage.runs.seeds import child_seed
from neuroage.training.inference import MEMORY_FORMAT, run_network
from neuroage.training.mixup import mix_scans
from neuroage.training.optim import learning_rate
from neuroage.training.state import Learner, State

CHECKPOINT_SECONDS = 600.0  # long epochs are also saved in their middle


class Interrupted(Exception):
    """The training was asked to stop; it can be resumed from `run`."""

    def __init__(self, run: Run, epoch: int, n_epochs: int) -> None:
        super().__init__(f"stopped in epoch {epoch} of {n_epochs}; saved in {run.folder}")
        self.run, self.epoch, self.n_epochs = run, epoch, n_epochs


@dataclass(frozen=True)
class Scans:
    """Scans with their targets.

    Attributes:
        volumes: Prepared volumes, by position.
        targets: Encoded targets, shape (n_scans, …).
        ages: Years, shape (n_scans,), for age-balanced drawing; NaN where unknown.
    """

    volumes: VolumeSet
    targets: Tensor
    ages: np.ndarray

    def __len__(self) -> int:
        return len(self.volumes)


@dataclass
class Trainee:
    """Everything the loop works on."""

    fabric: Fabric
    recipe: Recipe
    task: Task
    network: nn.Module
    run: Run
    train: Scans
    inner: Scans | None
    validation: Scans | None
    augment: Pipeline | Callable[..., Any] | None
    baselines: dict[str, float]
    on_epoch: Callable[[dict[str, Any]], None] = lambda row: None
    on_step: Callable[[int, int, int], None] = lambda epoch, step, n_steps: None
    should_stop: Callable[[], bool] = lambda: False


def fit(trainee: Trainee) -> nn.Module:
    """Train to the end of the recipe and give the network with the weights that were kept.

    Continues from the run's checkpoint where there is one.

    Raises:
        Interrupted: `should_stop` said so; the state is saved.
    """
    recipe, training = trainee.recipe, trainee.recipe.training
    memory_format = MEMORY_FORMAT[trainee.train.volumes.spatial_dims + 2]
    learner = Learner(trainee.fabric, trainee.network.to(memory_format=memory_format), recipe)
    state = learner.restore(trainee.run)

    while state.epoch < training.epochs and not _out_of_patience(state, trainee):
        _train_epoch(trainee, learner, state)
        row = _score(trainee, learner.scored, state)
        if not math.isfinite(row["train_loss"]):
            raise DataError(
                f"The training loss became NaN or infinite in epoch {state.epoch + 1}",
                fix="Lower optim.lr, set optim.clip_norm, or set training.precision to fp32.",
            )
        state.history.append(row)
        if _is_best(state.history, training.select):
            state.best_epoch = state.epoch
            learner.keep_best()
        state.epoch, state.step, state.loss_sum, state.error_sum, state.seconds = state.epoch + 1, 0, 0.0, 0.0, 0.0
        learner.save(trainee.run, state)
        trainee.on_epoch(row)
        if trainee.should_stop() and state.epoch < training.epochs:
            raise Interrupted(trainee.run, state.epoch, training.epochs)

    kept = learner.scored
    if learner.best:
        kept.load_state_dict(learner.best)
    return kept.eval()


def _train_epoch(trainee: Trainee, learner: Learner, state: State) -> None:
    recipe, fabric = trainee.recipe, trainee.fabric
    started, saved = time.monotonic() - state.seconds, time.monotonic()
    balance = recipe.training.age_balance
    weights = age_weights(trainee.train.ages, balance) if balance else None
    plan = plan_epoch(
        len(trainee.train), recipe.training.batch_size, child_seed(recipe.seed, "order", state.epoch), weights
    )
    loss_sum = torch.tensor(state.loss_sum, dtype=torch.float64, device=fabric.device)
    error_sum = torch.tensor(state.error_sum, dtype=torch.float64, device=fabric.device)
    learner.network.train()
    for images, positions in zip(trainee.train.volumes.batches(plan[state.step :]), plan[state.step :], strict=True):
        scores = _plateau_scores(trainee, state)
        rate = learning_rate(recipe.optim, state.epoch + state.step / len(plan), recipe.training.epochs, scores)
        for group in learner.optimiser.param_groups:
            group["lr"] = rate
        torch.manual_seed(child_seed(recipe.seed, "dropout", state.epoch, state.step))
        if trainee.augment is not None:
            images, _ = trainee.augment(images, [(state.epoch, int(position)) for position in positions])
        targets = trainee.train.targets[positions].to(fabric.device)
        if recipe.training.mixup:
            rng = np.random.default_rng(child_seed(recipe.seed, "mixup", state.epoch, state.step))
            images, targets = mix_scans(images, targets, recipe.training.mixup, rng)
        loss, errors = _step(trainee, learner, images, targets)
        loss_sum += loss * len(positions)
        error_sum += errors
        state.step, state.n_steps = state.step + 1, state.n_steps + 1
        if learner.average:
            learner.average.update(learner.bare, state.n_steps)
        trainee.on_step(state.epoch, state.step, len(plan))
        stop = trainee.should_stop()
        if (stop or time.monotonic() - saved > CHECKPOINT_SECONDS) and state.step < len(plan):
            state.loss_sum, state.error_sum, state.seconds = (
                float(loss_sum),
                float(error_sum),
                time.monotonic() - started,
            )
            learner.save(trainee.run, state)
            saved = time.monotonic()
            if stop:
                raise Interrupted(trainee.run, state.epoch + 1, recipe.training.epochs)
    state.loss_sum, state.error_sum, state.seconds = float(loss_sum), float(error_sum), time.monotonic() - started


def _plateau_scores(trainee: Trainee, state: State) -> list[float]:
    """Give what the plateau schedule watches: the inner error where there is an inner part, else the training loss."""
    watched = f"inner_{trainee.task.headline}" if trainee.inner else "train_loss"
    return [row[watched] for row in state.history]


def _step(trainee: Trainee, learner: Learner, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """One step of the optimiser; gives the mean loss and the sum of errors, both still on the device."""
    optim, fabric, task = trainee.recipe.optim, trainee.fabric, trainee.task
    images = images.contiguous(memory_format=MEMORY_FORMAT[images.ndim])
    loss_sum = torch.zeros((), dtype=torch.float64, device=fabric.device)
    error_sum = torch.zeros((), dtype=torch.float64, device=fabric.device)
    learner.optimiser.zero_grad(set_to_none=True)
    for part, part_targets in zip(
        images.tensor_split(optim.accumulate), targets.tensor_split(optim.accumulate), strict=True
    ):
        if len(part) == 0:
            continue
        outputs = learner.network(part)
        loss = task.loss(outputs, part_targets) * (len(part) / len(images))
        fabric.backward(loss)
        loss_sum += loss.detach()
        error_sum += task.errors(outputs.detach(), part_targets).sum()
    if optim.clip_norm:
        fabric.clip_gradients(learner.network, learner.optimiser, max_norm=optim.clip_norm, error_if_nonfinite=False)
    learner.optimiser.step()
    return loss_sum, error_sum


def _score(trainee: Trainee, network: nn.Module, state: State) -> dict[str, Any]:
    """Make the history row of the epoch just trained."""
    task, recipe, n = trainee.task, trainee.recipe, len(trainee.train)
    row: dict[str, Any] = {
        "epoch": state.epoch + 1,
        "learning_rate": learning_rate(
            recipe.optim, state.epoch + 1.0, recipe.training.epochs, _plateau_scores(trainee, state)
        ),
        "train_loss": state.loss_sum / n,
        f"train_{task.headline}": state.error_sum / n,
    }
    n_eval = min(n, recipe.training.train_eval_scans)
    if n_eval:
        some = np.random.default_rng(child_seed(recipe.seed, "train_eval")).permutation(n)[:n_eval]
        outputs = run_network(trainee.fabric, network, trainee.train.volumes, np.sort(some), recipe.training.batch_size)
        row[f"train_{task.headline}_eval"] = float(
            task.errors(outputs, trainee.train.targets[np.sort(some)].to(outputs.device)).mean()
        )
    scored = {
        "inner": trainee.inner,
        "validation": trainee.validation if recipe.training.select == "validation" else None,
    }
    for name, scans in scored.items():
        if scans is not None:
            outputs = run_network(
                trainee.fabric, network, scans.volumes, np.arange(len(scans)), recipe.training.batch_size
            )
            targets = scans.targets.to(outputs.device)
            row[f"{name}_loss"] = float(task.loss(outputs, targets))
            row[f"{name}_{task.headline}"] = float(task.errors(outputs, targets).mean())
    for name, value in trainee.baselines.items():
        row[f"baseline_{name}_{task.headline}"] = value
    row["seconds"] = round(state.seconds, 3)
    return row


def _is_best(history: list[dict[str, Any]], select: str) -> bool:
    if select == "last":
        return False
    scores = [
        next(row[key] for key in row if key.startswith(f"{select}_") and not key.endswith("loss")) for row in history
    ]
    return scores[-1] <= min(scores)


def _out_of_patience(state: State, trainee: Trainee) -> bool:
    patience = trainee.recipe.training.patience
    if not patience or not state.history:
        return False
    scores = [row[f"inner_{trainee.task.headline}"] for row in state.history]
    return len(scores) - 1 - int(np.argmin(scores)) >= patience
