"""Options that several verbs share, and how the files behind them are found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neuroage.errors import UsageError

if TYPE_CHECKING:
    from neuroage.cohort import Cohort, Split
    from neuroage.cohort.parts import Part
    from neuroage.imaging.store import Store
    from neuroage.runs.recipe import Recipe

COHORT, SPLIT = Path("cohort.csv"), Path("split.csv")

Data = Annotated[Path, typer.Option("--data", help="Cohort: a table of scans, or a folder of a known layout.")]
SplitFile = Annotated[Path, typer.Option("--split", help="Split, made by `neuroage split` or elsewhere.")]
Config = Annotated[
    str | None,
    typer.Option(
        "--config",
        help="Recipe: a YAML file or a shipped name (`neuroage list configs`).  "
        "(default: the modality's small recipe, or its full one where there is a GPU)",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one value of the recipe, such as optim.lr=1e-4. May be repeated."
    ),
]
StoreFolder = Annotated[
    Path | None, typer.Option("--store", help="Folder of prepared volumes. (default: the user's cache folder)")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what stands there.")]


def load_cohort(path: Path) -> Cohort:
    """Load a cohort table or folder.

    Raises:
        UsageError: There is none; names the command to type next.
    """
    from neuroage.cohort import Cohort

    if not path.exists():
        raise UsageError(
            f"No cohort at {path}",
            fix="Make one with `neuroage index FOLDER_OF_SCANS`, or try a synthetic one: "
            "`neuroage phantom --out phantom` and `neuroage index phantom`.",
        )
    return Cohort.read(path)


def check_table_path(path: Path, inputs: Sequence[Path]) -> None:
    """Make sure, before any work is done for it, that a table written to `path` takes the place of no scan.

    Raises:
        UsageError: It is no CSV file, or one of the inputs.
    """
    if path.suffix.lower() != ".csv" or path.is_dir():
        raise UsageError(f"--out {path}", expected="a file name that ends in .csv")
    if path.resolve() in [given.resolve() for given in inputs]:
        raise UsageError(f"--out {path} is one of the inputs and would be lost", fix="Choose another name.")


def load_split(path: Path, cohort: Cohort) -> Split:
    """Load a split made here, or one made elsewhere.

    Raises:
        UsageError: There is none; names the command to type next.
    """
    from neuroage.cohort import Split, read_split

    if not path.exists():
        raise UsageError(f"No split at {path}", fix="Make one with `neuroage split --uniform-age`.")
    return Split.load(path) if path.with_suffix(".json").exists() else read_split(path, cohort)


def members_to_train(made: Split, fold: int | None, folds: int | None) -> tuple[list[int], list[Part]]:
    """Say what the members of a run leave out: folds of the split or, where it has one fold, parts of its training."""
    from neuroage.cohort.parts import all_parts

    if made.n_folds > 1 or (folds or 1) == 1:
        return ([fold] if fold is not None else list(range(folds or 1))), []
    parts = all_parts(folds or 1)
    if fold is not None and fold >= len(parts):
        raise UsageError(f"--fold {fold}", expected=f"0 to {len(parts) - 1} with --folds {folds}")
    return [0], parts if fold is None else [parts[fold]]


def load_recipe(config: str | None, modality: str, overrides: list[str] | None) -> Recipe:
    """Load a recipe by name or path, else the modality's default one; the modality asked for wins over the recipe's.

    Raises:
        UsageError: No such recipe, or wrong keys and values in it.
    """
    from neuroage.cohort.modalities import canonical_modality
    from neuroage.runs.recipe import Recipe
    from neuroage.runs.shipped import find_recipe, shipped_recipes

    modality = canonical_modality(modality)
    if config is None:
        names = [f"{modality}_small", modality, "t1_small"]
        if _has_gpu():
            names = [modality, "t1"]
        config = next(name for name in names if name in shipped_recipes())
    return Recipe.load(find_recipe(config), [f"modality={modality}", *(overrides or [])])


def modality_of(config: str | None) -> str:
    """Give the modality that a recipe names; t1 without a recipe."""
    if config is None:
        return "t1"
    from neuroage.runs.recipe import Recipe
    from neuroage.runs.shipped import find_recipe

    return Recipe.load(find_recipe(config)).modality


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def open_store(folder: Path | None) -> Store:
    """Open the folder of prepared volumes."""
    from neuroage.imaging.store import Store

    return Store(folder)
