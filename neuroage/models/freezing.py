"""One scale of depth for every backbone: stages from input to head, which of them train in an epoch, and how fast."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from neuroage.errors import UsageError, did_you_mean
from neuroage.models.network import Network, build_network
from neuroage.models.recompute import Blocks, Layers
from neuroage.runs.recipe import Finetune, Recipe
from neuroage.runs.recipe_text import Problem

HEAD = "head"
MOST_STAGES = 20  # as many as are read at a glance; of longer backbones a row of blocks is one stage


@dataclass(frozen=True)
class Stage:
    """A part of a network that is frozen or trained as a whole.

    Attributes:
        name: As in the recipe.
        depth: 0 at the input, 1 at the head.
        modules: Its modules, in order.
        loose: Parameters that stand in no module of their own.
    """

    name: str
    depth: float
    modules: tuple[nn.Module, ...]
    loose: tuple[nn.Parameter, ...] = field(default=(), repr=False)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Every parameter, once."""
        every = [*self.loose, *(parameter for module in self.modules for parameter in module.parameters())]
        return list({id(parameter): parameter for parameter in every}.values())

    @property
    def n_parameters(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.parameters)

    @property
    def trains(self) -> bool:
        """Whether it learns at the moment."""
        return any(parameter.requires_grad for parameter in self.parameters)


def stages_of(network: Network) -> list[Stage]:
    """Cut a network into stages, from the input to the head; every parameter is in exactly one.

    Rows of blocks are taken apart, `Layers` and a plain row of layers are not. A norm belongs to the convolution before
    it. A backbone with `own_stages` is cut as it says. What is no part of the backbone (head, attention pool) is the
    last stage, `head`.
    """
    cut = _cut(network.backbone)
    stages = [Stage(name, index / len(cut), modules, loose) for index, (name, modules, loose) in enumerate(cut)]
    rest = tuple(module for name, module in network.named_children() if name != "backbone")
    return [*stages, Stage(HEAD, 1.0, rest)]


def _cut(backbone: Any) -> list[tuple[str, tuple[nn.Module, ...], tuple[nn.Parameter, ...]]]:
    """Give the parts of a backbone in order: name, modules, and parameters that stand in none of them."""
    own = backbone.own_stages() if hasattr(backbone, "own_stages") else []
    if own:
        return list(own)
    inner = _inner(backbone)
    joined = _with_norms(_units("", inner, rows=True))
    if len(joined) > MOST_STAGES:
        joined = _with_norms(_units("", inner, rows=False))
    inside = {id(parameter) for _, modules in joined for module in modules for parameter in module.parameters()}
    loose = tuple(parameter for parameter in backbone.parameters() if id(parameter) not in inside)
    return [(name, modules, () if index else loose) for index, (name, modules) in enumerate(joined)]


def _inner(module: nn.Module) -> nn.Module:
    """Look into wrappers: modules with a single part that has weights."""
    holding = [child for child in module.children() if _has_weights(child)]
    alone = len(holding) == 1 and not isinstance(holding[0], (Blocks, Layers, nn.ModuleList))
    return _inner(holding[0]) if alone and list(holding[0].children()) else module


def _units(name: str, module: nn.Module, *, rows: bool) -> Iterator[tuple[str, nn.Module]]:
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}" if name else child_name
        if _is_row(child, rows):
            yield from _units(path, child, rows=rows)
        else:
            yield path, child


def _is_row(module: nn.Module, rows: bool) -> bool:
    """Whether a module is only a list of parts that are stages themselves."""
    if isinstance(module, Blocks):
        return rows
    if isinstance(module, nn.ModuleList):
        return True
    nested = any(list(child.children()) for child in module.children() if _has_weights(child))
    return isinstance(module, nn.Sequential) and not isinstance(module, Layers) and nested


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _with_norms(units: Iterable[tuple[str, nn.Module]]) -> list[tuple[str, tuple[nn.Module, ...]]]:
    """Join what has no weights but offsets and factors, or none at all, to what stands before it."""
    joined: list[tuple[str, tuple[nn.Module, ...]]] = []
    waiting: tuple[nn.Module, ...] = ()  # before the first weights
    for name, module in units:
        if any(parameter.ndim > 1 for parameter in module.parameters()):
            joined.append((name, (*waiting, module)))
            waiting = ()
        elif joined:
            joined[-1] = (joined[-1][0], (*joined[-1][1], module))
        else:
            waiting = (*waiting, module)
    return joined


def trained_stages(stages: list[Stage], finetune: Finetune, epoch: int) -> list[bool]:
    """Say which stages train in an epoch; it depends on the recipe and the epoch alone, so resuming needs no state.

    Args:
        stages: Of `stages_of`.
        finetune: `freeze` or `unfreeze`.
        epoch: From 0.

    Raises:
        UsageError: A stage that is named is not there; all names are listed.
    """
    n = len(stages) - 1
    if finetune.unfreeze is not None:
        chosen = finetune.unfreeze[max(start for start in finetune.unfreeze if start <= epoch)]
        first = _find(stages, chosen)[0] if isinstance(chosen, str) else n - _rounded(chosen * n)
        return [index >= first for index in range(n + 1)]
    if isinstance(finetune.freeze, tuple):
        frozen = {index for name in finetune.freeze for index in _find(stages[:-1], name)}
    else:
        frozen = set(range(_rounded(finetune.freeze * n)))
    return [index not in frozen for index in range(n + 1)]


def phases(finetune: Finetune, n_epochs: int) -> list[int]:
    """Give the epochs (from 0) of a training at which other stages may begin to train."""
    return [0] if finetune.unfreeze is None else sorted(start for start in finetune.unfreeze if start < n_epochs)


def first_trained(stages: list[Stage], finetune: Finetune, n_epochs: int) -> list[int | None]:
    """Give, for each stage, the epoch (from 0) from which it trains; None where it never does."""
    said: list[int | None] = [None] * len(stages)
    for start in phases(finetune, n_epochs):
        for index, trains in enumerate(trained_stages(stages, finetune, start)):
            if trains and said[index] is None:
                said[index] = start
    return said


def freeze_for(network: Network, recipe: Recipe, epoch: int | None = None) -> None:
    """Freeze the stages that a recipe does not train in an epoch, and let all others train.

    Frozen parameters get no gradient; frozen norms and dropouts stay in evaluation mode through `network.train()`, so
    that their running statistics do not move either.

    Args:
        network: Changed in place.
        recipe: Its fine-tuning.
        epoch: From 0; None freezes what never trains alone: the most that memory must hold.

    Raises:
        UsageError: As in `trained_stages`.
    """
    finetune = recipe.finetune
    if not freezes(finetune):
        return
    stages = stages_of(network)
    if epoch is None:
        trained = [start is not None for start in first_trained(stages, finetune, recipe.training.epochs)]
    else:
        trained = trained_stages(stages, finetune, epoch)
    for stage, trains in zip(stages, trained, strict=True):
        for parameter in stage.parameters:
            parameter.requires_grad_(trains)
    frozen = [stage.modules for stage, trains in zip(stages, trained, strict=True) if not trains]
    network.frozen = tuple(module for modules in frozen for module in modules)
    network.train(network.training)


def freezes(finetune: Finetune) -> bool:
    """Whether anything is frozen in any epoch."""
    return bool(finetune.freeze) or finetune.unfreeze is not None


def phases_in_words(network: Network, recipe: Recipe) -> list[str]:
    """Say which stages train after how many epochs; nothing where all always do."""
    finetune = recipe.finetune
    if not freezes(finetune):
        return []
    stages = stages_of(network)
    said = []
    for start in phases(finetune, recipe.training.epochs):
        trained = trained_stages(stages, finetune, start)
        names = [stage.name for stage, trains in zip(stages, trained, strict=True) if trains]
        when = f"After {start} epoch{'s' * (start > 1)}" if start else "From the start"
        said.append(f"{when}, {len(names)} of {len(stages)} stages train: {', '.join(names)}.")
    return said


def rate_scales(stages: list[Stage], finetune: Finetune) -> list[float]:
    """Give each stage's learning rate as a multiple of the recipe's.

    Every stage below the head has `layer_decay` times the rate of the one above it; the head has `head_lr`.

    Source: layer-wise decay, Howard and Ruder 2018, doi:10.18653/v1/P18-1031.
    """
    n = len(stages) - 1
    return [*(finetune.layer_decay ** (n - index) for index in range(n)), finetune.head_lr]


def check_finetune(recipe: Recipe) -> list[Problem]:
    """Find stage names in a recipe's fine-tuning that its backbone does not have."""
    finetune = recipe.finetune
    freeze = finetune.freeze if isinstance(finetune.freeze, tuple) else ()
    starts = {key: value for key, value in (finetune.unfreeze or {}).items() if isinstance(value, str)}
    if not freeze and set(starts.values()) <= {HEAD}:
        return []
    network = build_network(
        recipe,
        spatial_dims=len(recipe.prepare.size),
        in_channels=recipe.prepare.n_channels,
        n_outputs=1,
        pretrained=False,
    )
    stages = stages_of(network)
    named = [(f"finetune.freeze.{index}", name, stages[:-1]) for index, name in enumerate(freeze)]
    named += [(f"finetune.unfreeze.{epoch}", name, stages) for epoch, name in starts.items()]
    problems = []
    for key, name, allowed in named:
        try:
            _find(allowed, name)
        except UsageError as error:
            problems.append(Problem(key, str(error)))
    return problems


def _find(stages: list[Stage], name: str) -> list[int]:
    """Give the places of the stages of that name, or whose names begin with it: `layer1` is every `layer1.…`."""
    found = [index for index, stage in enumerate(stages) if stage.name == name or stage.name.startswith(f"{name}.")]
    if not found:
        rows = [stage.name.split(".")[0] for stage in stages if "." in stage.name]
        names = dict.fromkeys([*(stage.name for stage in stages), *rows])
        raise UsageError(f"No stage {name!r}", expected=did_you_mean(name, names))
    return found


def _rounded(value: float) -> int:
    return int(value + 0.5)
