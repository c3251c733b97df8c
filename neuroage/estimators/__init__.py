"""The Python face: thin classes over runs; all the work is done by `neuroage.training`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from neuroage.estimators.arguments import SHORT, open_recipe, plain, recipe_for, updated
from neuroage.estimators.model import Model, TorchIOTransform
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run

__all__ = ["SHORT", "AgeRegressor", "ImageClassifier", "Model", "load"]


class AgeRegressor(Model):
    """A brain-age model: fit on a cohort and a split, predict scans, evaluate. Volumes and pictures alike.

    Args:
        recipe: A shipped name ("t1_small"), a YAML file, or a `Recipe`.
        augmentation: A TorchIO transform used instead of the recipe's augmentation; None keeps the recipe's.
        store: Folder of prepared images; the user's cache folder when None.
        overrides: Short for recipe keys: `epochs`, `batch_size`, `lr`, `seed`, `modality`, `precision`, …

    Raises:
        UsageError: No such recipe, a wrong value, or an override that does not exist.

    Example:
        >>> model = AgeRegressor("t1_small", epochs=30)
        >>> model.recipe.training.epochs
        30
        >>> model.fit(cohort, split, out="runs/t1").evaluate().table  # doctest: +SKIP
    """

    _about_age = True

    def __init__(
        self,
        recipe: str | os.PathLike[str] | Recipe = "t1_small",
        *,
        augmentation: TorchIOTransform | None = None,
        store: str | os.PathLike[str] | None = None,
        **overrides: Any,
    ) -> None:
        super().__init__(updated(open_recipe(recipe), overrides), augmentation, store)


class ImageClassifier(Model):
    """A classifier of images: pictures and volumes alike, by the engine that learns ages.

    Args:
        model: A recipe (a shipped name such as "chest_xray", a YAML file, or a `Recipe`), a backbone of ours ("cnn",
            "resnet"), or any model of timm ("convnext_small"). For a backbone, the rest comes from the recipe
            "picture".
        task: binary, multiclass or multilabel; None: the recipe's. Options of the task may stand beside it as a
            dictionary: `{"name": "binary", "label": "tumour"}`.
        size: Voxels along each axis of the prepared image, or one number for a square; None: the recipe's.
        head: Widths of hidden layers of the head; None: the recipe's.
        pretrained: Begin with timm's own weights, which are downloaded once; a path of a file with weights; False:
            random weights. None: as the recipe says.
        augmentation, store: As in `AgeRegressor`.
        overrides: Short for recipe keys: `epochs`, `lr`, `imbalance`, …

    Raises:
        UsageError: No such recipe or model, a wrong value, or an override that does not exist.

    Example:
        >>> model = ImageClassifier("cnn", task="multiclass", size=64, epochs=5)
        >>> model.recipe.prepare.size
        (64, 64)
        >>> model.fit(cohort, split).calibrate().choose_thresholds("sensitivity>=0.9")  # doctest: +SKIP
    """

    _about_age = False

    def __init__(
        self,
        model: str | os.PathLike[str] | Recipe = "picture",
        *,
        task: str | dict[str, Any] | None = None,
        size: int | Sequence[int] | None = None,
        head: Sequence[int] | None = None,
        pretrained: bool | str | os.PathLike[str] | None = None,
        augmentation: TorchIOTransform | None = None,
        store: str | os.PathLike[str] | None = None,
        **overrides: Any,
    ) -> None:
        recipe = recipe_for(model)
        changes: list[str] = []
        if task is not None:
            changes.append(f"task={json.dumps({'name': task} if isinstance(task, str) else task)}")
        if size is not None:
            changes.append(f"prepare.size={json.dumps(plain(size))}")
        if head is not None:
            changes.append(f"head.hidden={json.dumps(plain(head))}")
        if pretrained is not None:
            named = ("timm" if pretrained else None) if isinstance(pretrained, bool) else os.fspath(pretrained)
            changes.append(f"backbone.weights={json.dumps(named)}")
        super().__init__(updated(recipe.updated(*changes), overrides), augmentation, store)

    def choose_thresholds(self, rule: str) -> ImageClassifier:
        """Choose from which probability on a label is predicted, on the validation set, and keep it in the run.

        Args:
            rule: "sensitivity>=0.9" (the highest specificity with it), "specificity>=0.95", "f1" or "youden".
        """
        from neuroage.runs.label_calibration import choose_run_thresholds

        choose_run_thresholds(self.run, rule)
        return self


def load(folder: str | os.PathLike[str]) -> AgeRegressor | ImageClassifier:
    """Open the model of a run folder, of whichever kind; errors as in `Model.load`."""
    kind = AgeRegressor if Run.open(folder).target["kind"] == "age" else ImageClassifier
    return kind.load(folder)
