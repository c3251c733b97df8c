"""From the recipe's `augment` list to what the loop calls: batched steps, TorchIO transforms, or both in a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from neuroage.errors import NeuroageError
from neuroage.imaging.augment import Pipeline, parse_steps
from neuroage.runs.recipe import Recipe
from neuroage.runs.recipe_text import Problem
from neuroage.runs.seeds import child_seed


class Augmentation(Protocol):
    """Augments a batch: images (B, C, *spatial), keys (epoch, scan index) → images, and what was drawn."""

    def __call__(self, batch: Tensor, keys: Sequence[tuple[int, int]]) -> tuple[Tensor, Any]:
        """Augment a batch; the input is left alone."""


class Chain:
    """Augmentations one after the other."""

    def __init__(self, parts: Sequence[Augmentation]) -> None:
        self.parts = parts

    def __call__(self, batch: Tensor, keys: Sequence[tuple[int, int]]) -> tuple[Tensor, Any]:
        """Augment a batch; the record is the list of every part's record."""
        records = []
        for part in self.parts:
            batch, record = part(batch, keys)
            records.append(record)
        return batch, records


def build_augmentation(recipe: Recipe) -> Augmentation | None:
    """Make the augmentation of a recipe; None when it has none.

    Raises:
        UsageError: Every wrong step, with its line.
    """
    parts, problems = _parts(recipe)
    recipe.complain(problems)
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else Chain(parts)


def check_augment(recipe: Recipe) -> list[Problem]:
    """Find what is wrong with the recipe's augmentation."""
    return _parts(recipe)[1]


def _parts(recipe: Recipe) -> tuple[list[Augmentation], list[Problem]]:
    parts: list[Augmentation] = []
    problems: list[Problem] = []
    steps: list[Any] = []
    seed = child_seed(recipe.seed, "augment")

    def close_steps() -> None:
        if steps:
            parts.append(Pipeline(list(steps), seed=child_seed(seed, len(parts)), spacing_mm=recipe.prepare.spacing))
            steps.clear()

    for index, entry in enumerate(recipe.augment):
        try:
            if "torchio" in entry:
                from neuroage.imaging.torchio_pipeline import TorchIOPipeline, torchio_transform

                close_steps()
                transform = torchio_transform(
                    entry["torchio"], {key: value for key, value in entry.items() if key != "torchio"}
                )
                parts.append(TorchIOPipeline(transform, child_seed(seed, len(parts)), recipe.prepare.spacing))
            else:
                steps.extend(parse_steps([entry]))
        except NeuroageError as error:
            problems.append(Problem(f"augment.{index}", str(error).removeprefix("augment[0]").strip(" :,")))
    close_steps()
    return parts, problems
