"""From a table of scans and ages to a brain-age model one can trust."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from neuroage.analysis import compare_models, evaluate
    from neuroage.cohort import Cohort, Scan, Split, read_split, stratified_age_split, uniform_age_split
    from neuroage.errors import NeuroageError
    from neuroage.estimators import AgeRegressor, ImageClassifier, load
    from neuroage.imaging.grouping import grouped_split
    from neuroage.runs.recipe import Recipe
    from neuroage.runs.run import Run
    from neuroage.training.across import cross_domain

_HOMES = {
    "analysis": ("compare_models", "evaluate"),
    "cohort": ("Cohort", "Scan", "Split", "read_split", "stratified_age_split", "uniform_age_split"),
    "errors": ("NeuroageError",),
    "estimators": ("AgeRegressor", "ImageClassifier", "load"),
    "imaging.grouping": ("grouped_split",),
    "runs.recipe": ("Recipe",),
    "runs.run": ("Run",),
    "training.across": ("cross_domain",),
}

__all__ = [
    "AgeRegressor",
    "Cohort",
    "ImageClassifier",
    "NeuroageError",
    "Recipe",
    "Run",
    "Scan",
    "Split",
    "compare_models",
    "cross_domain",
    "evaluate",
    "grouped_split",
    "load",
    "read_split",
    "stratified_age_split",
    "uniform_age_split",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that the command line starts at once."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"neuroage.{home}"), name)
    raise AttributeError(f"module 'neuroage' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
