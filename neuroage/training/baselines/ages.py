"""Baselines of age: the mean training age, and ridge regression on coarse voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from neuroage.imaging.store import StoredVolume
from neuroage.models.tasks import Task
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run
from neuroage.training.baselines import without_predictions
from neuroage.training.baselines.ridge import Ridge, fit_ridge


@dataclass(frozen=True)
class AgeBaselines:
    """The mean predictor and ridge.

    Attributes:
        mean_years: Mean training age.
        ridge: Fitted on some of the training scans, where there are very many.
    """

    mean_years: float
    ridge: Ridge

    @classmethod
    def fit(cls, volumes: Sequence[StoredVolume], rows: pd.DataFrame, recipe: Recipe, task: Task) -> AgeBaselines:
        """Fit ridge on the training scans."""
        ages = rows["age"].to_numpy(dtype=float)
        ridge = fit_ridge(volumes, ages, recipe.prepare.spacing, subjects=rows["subject_id"].tolist())
        return cls(float(ages.mean()), ridge)

    @classmethod
    def load(cls, run: Run) -> AgeBaselines:
        """Open those of a training."""
        return cls(float(run.about["task"]["centre"]), Ridge.load(run.linear_path))

    def save(self, run: Run) -> None:
        """Keep ridge with the run."""
        self.ridge.save(run.linear_path)

    def tables(self, rows: pd.DataFrame, volumes: Sequence[StoredVolume]) -> dict[str, pd.DataFrame]:
        """Predict ages of scans by the mean and by ridge, years."""
        keys = without_predictions(rows)
        return {
            "mean": keys.assign(predicted_age=self.mean_years),
            "ridge": keys.assign(predicted_age=self.ridge.predict(volumes)),
        }


BASELINES = AgeBaselines
