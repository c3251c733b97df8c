"""The recipes that come with the package, usable by name wherever it is installed."""

from __future__ import annotations

from pathlib import Path

from neuroage.errors import UsageError, did_you_mean


def shipped_recipes() -> dict[str, Path]:
    """Give the shipped recipes: name → YAML file, in alphabetical order."""
    package = Path(__file__).resolve().parents[1]
    # A wheel carries the recipes inside the package; a checkout has them beside it.
    folder = next(place for place in (package / "configs", package.parent / "configs") if place.is_dir())
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(name_or_path: str) -> Path:
    """Find a recipe by path or, among the shipped ones, by name.

    Args:
        name_or_path: Such as "my_recipe.yaml", "t1_small" or "configs/t1_small.yaml".

    Raises:
        UsageError: Neither a file nor a shipped name; all names are listed.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    recipes = shipped_recipes()
    stem = path.name.removesuffix(".yaml").removesuffix(".yml")
    if stem in recipes:
        return recipes[stem]
    raise UsageError(f"No recipe {name_or_path!r}", expected="a YAML file, or " + did_you_mean(stem, recipes))
