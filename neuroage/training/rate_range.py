"""Learning-rate range test: how the loss answers while the rate grows from far too low to far too high.

Source: Smith 2017, doi:10.1109/WACV.2017.58.
"""

from __future__ import annotations

import copy
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from neuroage.analysis.drawing import GREYS, PALETTE, new_figure, rule, save_figure, style
from neuroage.cohort import Cohort, Split
from neuroage.errors import InfeasibleError, UsageError
from neuroage.imaging.preparation import prepare_scans
from neuroage.imaging.store import Store
from neuroage.models.tasks import build_task
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run
from neuroage.training.augmentation import build_augmentation
from neuroage.training.devices import kept_memory
from neuroage.training.features import on_features
from neuroage.training.inference import MEMORY_FORMAT
from neuroage.training.initial import check_parent
from neuroage.training.job import Job
from neuroage.training.learn import ready
from neuroage.training.loop import Trainee, learn_from, ready_batch
from neuroage.training.observer import Observer
from neuroage.training.state import Learner
from neuroage.training.steps import Step, plan_steps
from neuroage.training.train import check_recipe, scans_in_sets, with_inner_set

WIDTH = 0.04  # standard deviation of the smoothing, as a share of the steps
RECENT = 5  # steps whose mean tells whether the loss has exploded
DIVERGED = 3.0  # times the loss of the untrained network: no need to see more
FALL = 0.5  # share of the whole fall of the loss that marks the suggestion
FEWEST_STEPS = 20
BEGIN_LOWER = "Begin lower, with --from."


@dataclass(frozen=True)
class RateRange:
    """What a range test found.

    Attributes:
        table: One row a step: step, learning_rate, loss, untrained_loss (of the network as it began, on the same
            batch), change (their difference, smoothed).
        suggested: For `optim.lr`: where the loss has fallen by half of what it falls at most; None where it falls
            nowhere.
        lowest: The rate with the lowest loss: a schedule must stay below.
        diverged: Whether the loss exploded before the last rate.
    """

    table: pd.DataFrame
    suggested: float | None
    lowest: float
    diverged: bool

    @property
    def words(self) -> str:
        """The suggestion and its rule, in a sentence."""
        if self.suggested is None:
            return "The loss falls at no rate of this range: try another one with --from and --to."
        return (
            f"Suggested optim.lr={self.suggested:.2g}: there the loss has fallen by half of what it falls at most. "
            f"It is lowest at {self.lowest:.2g}; a rate must stay below that."
        )


def find_rate(
    recipe: Recipe,
    cohort: Cohort,
    split: Split,
    *,
    fold: int = 0,
    lowest: float = 1e-6,
    highest: float = 1.0,
    n_steps: int = 100,
    store: Store | None = None,
    observer: Observer | None = None,
) -> RateRange:
    """Test learning rates on the training scans of a split; no run is left and no held-out scan is read.

    Args:
        recipe, cohort, split, fold, store, observer: As in `train`.
        lowest, highest, n_steps: As in `try_rates`.

    Raises:
        UsageError, InfeasibleError, DataError: As `train` and `try_rates`.
    """
    observer = observer or Observer()
    check_recipe(recipe)
    chosen, task = recipe.select(cohort), build_task(recipe)
    table = scans_in_sets(chosen, split, fold, task)
    if recipe.finetune.init_from is not None:
        check_parent(recipe, table.loc[table["set"] != "train", "subject_id"].tolist(), fold)
    table = table[table["set"] == "train"]
    observer.stage(f"Preparing {len(table)} scans")
    scans = chosen.select(scan_ids=list(table.index)).scans()
    prepared = prepare_scans(scans, recipe.prepare, store or Store(), progress=observer.preparing)
    table = with_inner_set(table[table.index.isin(prepared.volumes)], recipe, task)
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(f"{folder}/run", recipe, chosen, split, fold=fold)
        trainee, plan = ready(Job(recipe, task, table, prepared, run, build_augmentation(recipe), observer))
        if recipe.finetune.cache_features:
            trainee = on_features(trainee, plan.scans_at_once, observer.note)
        observer.stage(f"Trying {n_steps} learning rates from {lowest:g} to {highest:g}")
        with kept_memory(trainee.fabric.device, wanted=plan.has_room):
            return try_rates(
                trainee,
                lowest=lowest,
                highest=highest,
                n_steps=n_steps,
                on_step=lambda step, n: observer.step(0, step, n),
            )


def try_rates(
    trainee: Trainee,
    *,
    lowest: float = 1e-6,
    highest: float = 1.0,
    n_steps: int = 100,
    on_step: Callable[[int, int], None] = lambda step, n_steps: None,
) -> RateRange:
    """Let the rate grow by the same factor every step, from `lowest` to `highest`, and watch the loss.

    The steps are those of the first epochs of the training, augmentation, mixup and frozen stages included. Weights are
    changed and nothing is written.

    Args:
        trainee: What would be trained.
        lowest, highest: Ends of the range.
        n_steps: Steps, at least 20.
        on_step: Called with the step (from 1) and their number.

    Raises:
        UsageError: The range is empty, or has too few steps.
        InfeasibleError: The loss is not finite at the lowest rates.
    """
    if not 0 < lowest < highest:
        raise UsageError(
            f"learning rates from {lowest:g} to {highest:g}", expected="two rates above 0, the lower first"
        )
    if n_steps < FEWEST_STEPS:
        raise UsageError(f"{n_steps} steps", expected=f"at least {FEWEST_STEPS}")
    recipe, volumes = trainee.recipe, trainee.train.volumes
    learner = Learner(trainee.fabric, trainee.network, recipe, volumes.spatial_dims)
    rates = np.geomspace(lowest, highest, n_steps)
    learner.begin_epoch(0)
    untrained = copy.deepcopy(learner.bare)
    losses: list[tuple[float, float]] = []
    for rate, (epoch, number, step) in zip(rates, _steps(trainee), strict=False):
        learner.set_rate(float(rate))
        images, targets = ready_batch(trainee, step, volumes.batch(step.scans), epoch, number)
        before = _loss(trainee, untrained, images, targets)
        sums = learn_from(learner, recipe, trainee.task, images, targets, n_all=step.n_all)
        loss = float(sums[0]) / len(targets)
        if not math.isfinite(loss):
            break
        losses.append((loss, before))
        on_step(len(losses), n_steps)
        now, then = np.array(losses[-RECENT:]).mean(axis=0)
        if len(losses) >= FEWEST_STEPS and now > DIVERGED * then:
            break
    if len(losses) < FEWEST_STEPS:
        raise InfeasibleError(f"The loss is not finite at a learning rate of {rates[len(losses)]:.2g}", fix=BEGIN_LOWER)
    return read_range(rates[: len(losses)], np.array(losses), diverged=len(losses) < n_steps)


@torch.no_grad()
def _loss(trainee: Trainee, network: nn.Module, images: Tensor, targets: Tensor) -> float:
    """Give the loss of a network on a batch, with the dropout that the step will draw (on a CPU)."""
    state = torch.get_rng_state()
    network.train()
    n_parts = min(trainee.recipe.optim.accumulate, len(images))
    images = images.contiguous(memory_format=MEMORY_FORMAT[images.ndim])
    total = 0.0
    for part, part_targets in zip(images.tensor_split(n_parts), targets.tensor_split(n_parts), strict=True):
        with trainee.fabric.autocast():
            outputs = network(part)
        total += float(trainee.task.loss(outputs, part_targets)) * len(part)
    torch.set_rng_state(state)
    return total / len(targets)


def _steps(trainee: Trainee) -> Iterator[tuple[int, int, Step]]:
    epoch = 0
    while True:
        for number, step in enumerate(
            plan_steps(trainee.recipe, len(trainee.train), epoch, weights=trainee.train.weights)
        ):
            yield epoch, number, step
        epoch += 1


def read_range(rates: np.ndarray, losses: np.ndarray, *, diverged: bool) -> RateRange:
    """Read the suggestion off the losses of a range test.

    Losses of single batches jump with the scans that are in them. What the untrained network loses on the same batch
    jumps alike, so their difference shows what learning does.

    Args:
        rates: Growing by the same factor, shape (n_steps,).
        losses: Of the learning and of the untrained network, shape (n_steps, 2).
        diverged: Whether the test ended early.
    """
    steps = np.arange(len(rates))
    weights = np.exp(-0.5 * ((steps[:, None] - steps) / max(2.0, WIDTH * len(rates))) ** 2)
    change = weights @ (losses[:, 0] - losses[:, 1]) / weights.sum(axis=1)
    at_lowest = int(np.argmin(change))
    suggested = None
    if change[at_lowest] < 0:
        above = np.flatnonzero(change[:at_lowest] > FALL * change[at_lowest])
        suggested = float(rates[above[-1] + 1 if len(above) else 0])  # the last time: an earlier dip may be chance
    table = pd.DataFrame(
        {
            "step": steps + 1,
            "learning_rate": rates,
            "loss": losses[:, 0],
            "untrained_loss": losses[:, 1],
            "change": change,
        }
    )
    return RateRange(table, suggested, float(rates[at_lowest]), diverged)


def draw_range(found: RateRange, path: str | os.PathLike[str], *, title: str = "") -> None:
    """Draw how the loss changes over the rates, with the suggestion.

    Args:
        found: Of `try_rates`.
        path: A .png, .svg or .pdf file.
        title: Heading.
    """
    from matplotlib.ticker import FuncFormatter, NullFormatter

    table = found.table
    change = table["change"]
    with style():
        figure = new_figure(6.8, 3.4)
        axes = figure.subplots()
        axes.plot(
            table["learning_rate"], table["loss"] - table["untrained_loss"], ".", color=GREYS[2], markersize=4,
            label="each step",
        )  # fmt: skip
        axes.plot(table["learning_rate"], change, color=PALETTE[0], linewidth=2, label="smoothed")
        axes.axhline(0, color=GREYS[0], linewidth=0.8)
        depth = max(-float(change.min()), 0.05 * float(table["untrained_loss"].mean()))
        axes.set_ylim(-2.0 * depth, 2.0 * depth)  # where the loss explodes it leaves the picture
        marks = ((found.suggested, "suggested", PALETTE[2], "-"), (found.lowest, "lowest loss", PALETTE[1], "--"))
        for rate, words, colour, dash in marks:
            if rate is not None:
                axes.axvline(rate, color=colour, linewidth=1.3, linestyle=dash, label=f"{words}: {rate:.2g}")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("Learning rate")
        axes.set_ylabel("Loss against the untrained\nnetwork on the same batch")
        axes.set_title(title or "Learning-rate range test")
        rule(axes)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
        save_figure(figure, path)
