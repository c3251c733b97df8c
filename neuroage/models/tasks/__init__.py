"""Tasks: everything target-shaped. The engine asks the task and never what kind it is.

Each task is one module here with its class named in `TASK`; it is found by itself under the module's name.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
from torch import Tensor

from neuroage.errors import UsageError, did_you_mean
from neuroage.models.options import check_options
from neuroage.runs.recipe import Recipe
from neuroage.runs.recipe_text import Problem


class Task(Protocol):
    """What the engine needs to know of a target.

    Attributes:
        headline: Name of the metric that training reports, selects by and stops by.
        higher_is_better: Whether a larger headline metric is a better one.
        running: Name of what `errors` gives the mean of, logged while it trains.
        target: What is predicted, JSON-ready, kept with the run: `{"kind": "age"}`, or for labels `kind` (binary,
            multiclass, multilabel) and `labels`, their names; known after `fit`.
        n_outputs: Outputs of the network a scan; known after `fit`.
        notes: What `fit` found that a person should know, in sentences.
        tolerance: By how much a prediction may differ on another machine and still be the same.
    """

    headline: str
    higher_is_better: bool
    running: str
    n_outputs: int
    tolerance: float
    notes: Sequence[str]

    @property
    def target(self) -> dict[str, Any]:
        """See above."""

    def known(self, table: pd.DataFrame) -> pd.Series:
        """Whether each scan of a cohort has a target, boolean, shape (n_scans,)."""

    def fit(self, table: pd.DataFrame) -> None:
        """Learn constants (mean, range, class names) from the training scans alone."""

    def encode(self, table: pd.DataFrame) -> Tensor:
        """Targets of scans, shape (n_scans, …), float32, in the form that `loss` takes."""

    def targets(self, table: pd.DataFrame) -> dict[str, Any]:
        """Targets of scans as columns of the predictions table, each of shape (n_scans,)."""

    def strata(self, table: pd.DataFrame) -> pd.DataFrame:
        """The columns along which scans are dealt evenly where some are held back: ages or labels."""

    def draw_weights(self, table: pd.DataFrame, age_balance: float) -> np.ndarray | None:
        """How often each training scan is wanted an epoch, shape (n_scans,); None: each once."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss over a batch: outputs (B, n_outputs), targets (B, …) → scalar."""

    def decode(self, outputs: Tensor) -> dict[str, Tensor]:
        """Outputs (B, n_outputs) → columns of the predictions table, each of shape (B,)."""

    def errors(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What is logged while it trains, shape (B,): years off, or the share of wrong labels."""

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """Headline metric over all scans of a set; NaN where it is not defined."""

    def baseline(self, table: pd.DataFrame) -> float:
        """Headline metric of the best constant prediction learnt in `fit`, on these scans."""

    def example(self, n_scans: int) -> pd.DataFrame:
        """Make up a table that the task can be fitted on, to time a training before there is a cohort.

        It has so many rows, or as many as `fit` needs.
        """

    def state(self) -> dict[str, Any]:
        """Constants learnt in `fit`, JSON-ready."""

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""


def tasks() -> list[str]:
    """Name every task."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def _task_class(name: str) -> Any:
    if name not in tasks():
        raise UsageError(f"No task {name!r}", expected=did_you_mean(name, tasks()))
    return importlib.import_module(f"{__name__}.{name}").TASK


def check_task(recipe: Recipe) -> list[Problem]:
    """Find what is wrong with the recipe's task and its options."""
    try:
        kind = _task_class(recipe.task.name)
    except UsageError as error:
        return [Problem("task.name", str(error))]
    problems = check_options(kind, recipe.task.options, "task")[1]
    if not problems and recipe.training.age_balance and recipe.task.options.get("imbalance", "none") != "none":
        said = "imbalance and training.age_balance at once: scans would be balanced twice; keep one"
        problems = [Problem("task.imbalance", said)]
    return problems


def build_task(recipe: Recipe) -> Task:
    """Make the task of a recipe, not fitted yet.

    Raises:
        UsageError: An unknown task or options it does not have.
    """
    recipe.complain(check_task(recipe))
    kind = _task_class(recipe.task.name)
    options, _ = check_options(kind, recipe.task.options, "task")
    task: Task = kind(**options)
    return task


def foresee_task(recipe: Recipe) -> Task:
    """Make the task of a recipe before there is a cohort: labels that it would learn from one are made up.

    Raises:
        UsageError: As in `build_task`.
    """
    task = build_task(recipe)
    if not task.n_outputs:
        task.fit(task.example(2))
    return task
