"""What happens in the steps of an epoch: which scans, mixed with whom, and which part of it one process does.

Everything is drawn for the whole batch, whatever the number of processes: each then takes its part. So every scan is
seen once an epoch over all of them, with the same augmentation, and a training may be resumed on another number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neuroage.errors import UsageError
from neuroage.imaging.batches import plan_epoch
from neuroage.runs.recipe import Recipe
from neuroage.runs.seeds import child_seed
from neuroage.training.mixup import draw_mixture


@dataclass(frozen=True)
class Step:
    """One process's part of a step.

    Attributes:
        scans: Positions, among the training scans, of those that are read and augmented.
        own: Places in `scans` of those that the process learns from.
        partners: Places in `scans` of those they are mixed with; None where nothing is mixed.
        share: What a mixed scan keeps of itself.
        n_all: Scans of the step over all processes.
    """

    scans: np.ndarray
    own: np.ndarray
    partners: np.ndarray | None
    share: float
    n_all: int


def plan_steps(
    recipe: Recipe,
    n_scans: int,
    epoch: int,
    *,
    weights: np.ndarray | None = None,
    rank: int = 0,
    n_processes: int = 1,
) -> list[Step]:
    """Plan one epoch.

    Args:
        recipe: Its seed, batch size (of all processes together) and mixup.
        n_scans: Training scans.
        epoch: From 0.
        weights: How often each is wanted, shape (n_scans,); None: once.
        rank, n_processes: Which part.

    Raises:
        UsageError: A batch has fewer scans than there are processes.
    """
    batch_size = int(recipe.training.batch_size)
    batches = plan_epoch(n_scans, batch_size, child_seed(recipe.seed, "order", epoch), weights)
    if min(map(len, batches)) < n_processes:
        raise UsageError(
            f"a step has {min(map(len, batches))} scans for {n_processes} processes",
            expected="at least one for each",
            fix="Raise training.batch_size, or start fewer processes.",
        )
    return [
        _part(batch, _mixture(recipe, epoch, number, len(batch)), rank, n_processes)
        for number, batch in enumerate(batches)
    ]


def _mixture(recipe: Recipe, epoch: int, step: int, n_scans: int) -> tuple[float, np.ndarray] | None:
    rng = np.random.default_rng(child_seed(recipe.seed, "mixup", epoch, step))
    return draw_mixture(recipe.training.mixup, n_scans, rng)


def _part(batch: np.ndarray, mixture: tuple[float, np.ndarray] | None, rank: int, n_processes: int) -> Step:
    mine = np.array_split(np.arange(len(batch)), n_processes)[rank]
    if mixture is None:
        return Step(batch[mine], np.arange(len(mine)), None, 1.0, len(batch))
    share, partner = mixture
    partners = partner[mine]
    needed = np.union1d(mine, partners)
    return Step(batch[needed], np.searchsorted(needed, mine), np.searchsorted(needed, partners), share, len(batch))
