"""What every network must beat: the best constant prediction, and a linear model on coarse voxels.

Each kind of target has its own: `ages` the mean training age and ridge regression, `labels` the training frequencies
and logistic regression.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol, cast

import pandas as pd

from neuroage.imaging.store import StoredVolume
from neuroage.models.tasks import Task
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run


class Baselines(Protocol):
    """The baselines of one training."""

    @classmethod
    def fit(cls, volumes: Sequence[StoredVolume], rows: pd.DataFrame, recipe: Recipe, task: Task) -> Baselines:
        """Fit them on the training scans; `rows` is the cohort's table of the same scans."""

    @classmethod
    def load(cls, run: Run) -> Baselines:
        """Open those of a training."""

    def save(self, run: Run) -> None:
        """Keep them with the run, as safetensors."""

    def tables(self, rows: pd.DataFrame, volumes: Sequence[StoredVolume]) -> dict[str, pd.DataFrame]:
        """Predict scans: name → predictions table like `rows`, which is the network's; the linear one comes last."""


def baselines_for(target: dict[str, Any]) -> type[Baselines]:
    """Give the baselines for a kind of target, as in `Task.target`."""
    home = import_module(f"{__name__}.{'ages' if target['kind'] == 'age' else 'labels'}")
    return cast("type[Baselines]", home.BASELINES)


def without_predictions(rows: pd.DataFrame) -> pd.DataFrame:
    """Give a predictions table without what was predicted."""
    made = ("predicted_", "probability_", "gap", "members_std")
    return rows.drop(columns=[column for column in rows.columns if str(column).startswith(made)])


def blend(table: pd.DataFrame, linear: pd.DataFrame, share: float) -> pd.DataFrame:
    """Average the network with the linear model: two models of different kind err on different people.

    Args:
        table: Predictions of the network.
        linear: Those of the linear model for the same scans.
        share: Weight of the linear model, 0 to 1; the recipe's, fixed before training.

    Returns:
        The table with the blend in the place of ages and probabilities, and the network's own age as
        `predicted_age_network`; unchanged for 0.
    """
    if share == 0:
        return table
    names = [name for name in table.columns if name == "predicted_age" or str(name).startswith("probability_")]
    mixed = {name: (1 - share) * table[name] + share * linear[name].to_numpy() for name in names}
    own = {"predicted_age_network": table["predicted_age"]} if "predicted_age" in table else {}
    return table.assign(**mixed, **own)
