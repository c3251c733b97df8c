"""What learning and scoring work on."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from neuroage.imaging.preparation import PreparedCohort
from neuroage.imaging.store import StoredVolume
from neuroage.models.tasks import Task
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run
from neuroage.training.augmentation import Augmentation
from neuroage.training.observer import Observer

SCORED = ("out_of_fold", "validation", "test")  # sets that are predicted at the end


@dataclass(frozen=True)
class Job:
    """One training: what, on whom, and where it goes.

    Attributes:
        recipe, task, augmentation: What is learnt, and how.
        table: One row a scan, indexed by scan_id, with its set.
        prepared: The scans' volumes.
        run: Where everything goes.
        observer: Receives news.
    """

    recipe: Recipe
    task: Task
    table: pd.DataFrame
    prepared: PreparedCohort
    run: Run
    augmentation: Augmentation | None
    observer: Observer

    def rows(self, *sets: str) -> pd.DataFrame:
        """Scans of these sets."""
        return self.table[self.table["set"].isin(sets)]

    def volumes(self, *sets: str) -> list[StoredVolume]:
        """Prepared volumes of the scans of these sets, in the order of `rows`."""
        return [self.prepared.volumes[scan_id] for scan_id in self.rows(*sets).index]
