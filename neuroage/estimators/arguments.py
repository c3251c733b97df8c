"""What users may write in Python for keys of a recipe, and where a run goes that was given no folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

from neuroage.errors import UsageError, did_you_mean
from neuroage.runs.recipe import Recipe
from neuroage.runs.shipped import find_recipe, shipped_recipes

# Keyword arguments that are short for a key of the recipe.
SHORT = {
    "epochs": "training.epochs",
    "batch_size": "training.batch_size",
    "patience": "training.patience",
    "select": "training.select",
    "precision": "training.precision",
    "mixup": "training.mixup",
    "lr": "optim.lr",
    "weight_decay": "optim.weight_decay",
    "layer_decay": "finetune.layer_decay",
    "freeze": "finetune.freeze",
    "unfreeze": "finetune.unfreeze",
    "imbalance": "task.imbalance",
    "seed": "seed",
    "modality": "modality",
}  # fmt: skip


def open_recipe(given: str | os.PathLike[str] | Recipe) -> Recipe:
    """Give a recipe as it is, or read it by name or path."""
    return given if isinstance(given, Recipe) else Recipe.load(find_recipe(os.fspath(given)))


def recipe_for(model: str | os.PathLike[str] | Recipe) -> Recipe:
    """Give the recipe of that name, or the one for pictures with the backbone of that name."""
    if isinstance(model, Recipe):
        return model
    name = os.fspath(model)
    if Path(name).suffix in (".yaml", ".yml") or name in shipped_recipes():
        return open_recipe(name)
    from neuroage.models.backbones import backbones

    backbone = {"name": name} if name in backbones() else {"name": "timm", "model": name}
    return open_recipe("picture").updated(f"backbone={json.dumps(backbone)}")


def updated(recipe: Recipe, overrides: dict[str, Any]) -> Recipe:
    """Give a recipe with keyword arguments, as `SHORT` names them, in the place of its values.

    Raises:
        UsageError: There is no such argument, or a wrong value.
    """
    unknown = sorted(set(overrides) - set(SHORT))
    if unknown:
        raise UsageError(
            f"There is no argument {unknown[0]!r}",
            expected=did_you_mean(unknown[0], SHORT),
            fix="Other keys: Recipe.load(…).updated('key=value').",
        )
    changes = [
        f"{SHORT[name]}={yaml.safe_dump(plain(value), default_flow_style=True)}" for name, value in overrides.items()
    ]
    return recipe.updated(*changes)


def plain(value: Any) -> Any:
    """Give NumPy's numbers and arrays, and tuples, as YAML and JSON know them."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return [plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def free_folder(name: str) -> Path:
    """Give the first of runs/NAME, runs/NAME-2, … that is not there yet."""
    places = [Path("runs") / name, *(Path("runs") / f"{name}-{number}" for number in range(2, 1000))]
    return next(place for place in places if not place.exists())
