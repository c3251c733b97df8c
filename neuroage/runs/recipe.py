"""The recipe: everything that decides a training, in one YAML.

Sections mirror the road of a scan: `prepare` → `augment` → `backbone`, `pool`, `head` → `task` → `optim`, `training`
→ `predict`. Options of a backbone, a task or an augmentation step belong to the place that implements it and are
checked there, with the same report; see `Recipe.complain`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import Discriminator, Field, PrivateAttr, Tag, ValidationError

from neuroage.cohort import Cohort
from neuroage.cohort.paths import REFERENCE_COLUMN
from neuroage.errors import UsageError, did_you_mean
from neuroage.files import digest_text, write_text
from neuroage.runs.recipe_picture import PreparePicture
from neuroage.runs.recipe_prepare import Binning, Histogram, Prepare
from neuroage.runs.recipe_sections import Finetune, Head, Named, Optim, Predict, Section, Training
from neuroage.runs.recipe_text import Problem, apply_overrides, problems_of, read_yaml, report

__all__ = [
    "Binning",
    "Finetune",
    "Head",
    "Histogram",
    "Named",
    "Optim",
    "Predict",
    "Prepare",
    "PreparePicture",
    "Preparation",
    "Recipe",
    "Section",
    "Training",
    "recipe_differences",
]


def _kind_of(section: Any) -> str:
    kind = section.get("kind", "volume") if isinstance(section, dict) else getattr(section, "kind", "volume")
    return "picture" if kind == "picture" else "volume"  # which says of another kind that it does not exist


Preparation: TypeAlias = Prepare | PreparePicture


class Recipe(Section):
    """The whole configuration of a training.

    Attributes:
        modality: Which scans of the cohort are used: t1, tof, …
        seed: One seed; split, weights, augmentation and loading have child seeds of it.
        task: What is predicted, with its options: `age_regression` or `soft_label_age`.
        prepare: What is done to every scan once: to volumes, or with `kind: picture` to images with two axes.
        augment: Steps applied to training batches, in order: `{step: flip, p: 0.5}`, or `{torchio: RandomMotion, …}`.
        backbone: The feature extractor and its options.
        standardise: `voxelwise` subtracts, voxel by voxel, the mean of the training scans and divides by their
            standard deviation (for scans on one common grid; the input size is then fixed); `none` takes intensities
            as prepared.
        pool: How the features of all positions become one vector: average, max, average_max (both, concatenated),
            grid, which keeps coarse position (averages over the cells of `pool_grid`, concatenated), or attention, an
            average in which the weight of each position is learnt from its features.
        pool_grid: Cells along each axis for `pool: grid`.
        head: Layers after pooling.
        init: Initial weights of convolutions and linear layers: the framework's default, xavier or he.
        finetune: What is taken from another training, what is frozen until when, and how fast each depth moves.
        optim: How weights move.
        training: How long and on what.
        predict: How the trained network is asked.

    Example:
        >>> Recipe(modality="t1").optim.lr
        0.001
    """

    modality: str = "t1"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    task: Named = Named(name="age_regression")
    prepare: Annotated[
        Annotated[Prepare, Tag("volume")] | Annotated[PreparePicture, Tag("picture")], Discriminator(_kind_of)
    ] = Prepare()
    augment: tuple[dict[str, Any], ...] = ()
    backbone: Named = Named(name="cnn")
    standardise: Literal["none", "voxelwise"] = "none"
    pool: Literal["average", "max", "average_max", "grid", "attention"] = "average"
    pool_grid: tuple[Annotated[int, Field(ge=1, le=16)], ...] = (2, 2, 2)
    head: Head = Head()
    init: Literal["default", "xavier", "he"] = "default"
    finetune: Finetune = Finetune()
    optim: Optim = Optim()
    training: Training = Training()
    predict: Predict = Predict()

    _source: str = PrivateAttr(default="recipe")
    _lines: dict[str, int] = PrivateAttr(default_factory=dict)

    @classmethod
    def load(cls, path: str | os.PathLike[str], overrides: tuple[str, ...] | list[str] = ()) -> Recipe:
        """Read a recipe from YAML and apply `key=value` overrides.

        Args:
            path: The YAML file. Keys that it leaves out have their defaults.
            overrides: Such as "optim.lr=1e-4" or "augment=[]"; later ones win.

        Raises:
            UsageError: One report of every unknown key, wrong type and bad range, with line numbers and suggestions.
        """
        content, lines = read_yaml(Path(path))
        return cls.from_dict(apply_overrides(content, overrides, lines), source=str(path), lines=lines)

    @classmethod
    def from_dict(
        cls, content: dict[str, Any], *, source: str = "recipe", lines: dict[str, int] | None = None
    ) -> Recipe:
        """Check a nested dictionary and make a recipe of it; errors as in `load`.

        A section `tune`, what `neuroage tune` searches, is no part of the recipe.
        """
        content = {key: value for key, value in content.items() if key != "tune"}
        try:
            recipe = cls.model_validate(content)
        except ValidationError as error:
            raise report(problems_of(error, cls), source, lines or {}) from None
        recipe._source, recipe._lines = source, dict(lines or {})
        return recipe

    def select(self, cohort: Cohort) -> Cohort:
        """Give the scans of a cohort that this recipe is about, with their reference scans where it registers by them.

        Raises:
            UsageError: The cohort has no scan of the recipe's modality, or none that the recipe registers by.
        """
        if self.reference:
            self._check_reference(cohort)
            cohort = cohort.with_references(self.reference)
        return cohort.select(modality=self.modality)

    def _check_reference(self, cohort: Cohort) -> None:
        if REFERENCE_COLUMN in cohort.table.columns:  # says by itself which scans
            return
        if self.reference == self.modality:
            raise UsageError(
                f"{self.modality} scans would be registered through themselves",
                expected="another modality as registration.reference (--register-to), or a column reference_path",
            )
        others = [name for name in cohort.modalities if name != self.modality]
        if self.reference not in others:
            raise UsageError(
                f"The cohort has no {self.reference} scan to register through",
                expected=did_you_mean(self.reference, others) if others else "",
                fix="Index both scans of each session into one cohort, or name them in a column reference_path.",
            )

    @property
    def reference(self) -> str:
        """The modality of the session's scan through which every scan is registered; "" for none."""
        wanted = self.prepare.registration if self.prepare.kind == "volume" else None
        return wanted.reference if wanted is not None else ""

    def updated(self, *overrides: str) -> Recipe:
        """Give a copy with `key=value` overrides applied; errors as in `load`."""
        lines = dict(self._lines)
        content = apply_overrides(self.model_dump(mode="json"), overrides, lines)
        return type(self).from_dict(content, source=self._source, lines=lines)

    def complain(self, problems: list[Problem]) -> None:
        """Raise one UsageError for problems that others found in this recipe, with its lines; nothing when empty."""
        if problems:
            raise report(problems, self._source, self._lines)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the recipe as resolved, every default spelt out, as YAML."""
        write_text(path, yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120))

    @property
    def digest(self) -> str:
        """Sha256 of the whole recipe as resolved."""
        return digest_text(json.dumps(self.model_dump(mode="json"), sort_keys=True))


def recipe_differences(recipes: dict[str, Recipe]) -> dict[str, dict[str, Any]]:
    """Give, for each named recipe, the dotted keys in which the recipes are not all equal.

    Args:
        recipes: Recipes by name.

    Returns:
        Name → {dotted key → value}, only for keys with at least two different values.
    """
    flat = {name: _flatten(recipe.model_dump(mode="json")) for name, recipe in recipes.items()}
    keys = sorted({key for values in flat.values() for key in values})
    missing = object()
    differing = [key for key in keys if len({repr(values.get(key, missing)) for values in flat.values()}) > 1]
    return {name: {key: values.get(key) for key in differing} for name, values in flat.items()}


def _flatten(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
