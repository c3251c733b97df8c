"""Tasks: everything target-shaped. The engine asks the task and never what kind it is.

Each task is one module here with its class named in `TASK`; it is found by itself under the module's name.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any, Protocol

import pandas as pd
from torch import Tensor

from neuroage.errors import UsageError, did_you_mean
from neuroage.models.options import check_options
from neuroage.runs.recipe import Recipe
from neuroage.runs.recipe_text import Problem


class Task(Protocol):
    """What the engine needs to know of a target.

    Attributes:
        headline: Name of the metric that training reports and selects by.
        target_columns: Columns of the cohort that hold the target; scans without them are not trained on.
        n_outputs: Outputs of the network a scan; known after `fit`.
    """

    headline: str
    target_columns: tuple[str, ...]
    n_outputs: int

    def fit(self, table: pd.DataFrame) -> None:
        """Learn constants (mean, range) from the training scans alone."""

    def encode(self, table: pd.DataFrame) -> Tensor:
        """Targets of scans, shape (n_scans, …), in the form that `loss` takes."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss over a batch: outputs (B, n_outputs), targets (B, …) → scalar."""

    def decode(self, outputs: Tensor) -> dict[str, Tensor]:
        """Outputs (B, n_outputs) → columns of the predictions table, each of shape (B,)."""

    def errors(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What the headline metric is the mean of, shape (B,)."""

    def baseline(self, table: pd.DataFrame) -> float:
        """Headline metric of the best constant prediction learnt in `fit`, on these scans."""

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
    return check_options(kind, recipe.task.options, "task")[1]


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
