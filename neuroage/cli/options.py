"""Options that several verbs share, and how the files behind them are found."""

from __future__ import annotations

import shlex
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
LOST = ("row left out", "rows kept without images")  # actions of readers after which scans are missing

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
RegisterTo = Annotated[
    str | None,
    typer.Option(
        "--register-to",
        metavar="MODALITY",
        help="Register through this scan of the same session, such as t1 or pd, and on to where that one goes.",
    ),
]
StoreFolder = Annotated[
    Path | None, typer.Option("--store", help="Folder of prepared volumes. (default: the user's cache folder)")
]
Exclude = Annotated[
    Path | None,
    typer.Option(
        "--exclude",
        metavar="TABLE",
        help="Leave out the scans of this table (scan_id, reason); `neuroage qc` saves one.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what stands there.")]


def load_cohort(path: Path, exclude: Path | None = None) -> Cohort:
    """Load a cohort table or folder, and say which rows of a table are lost because their images are.

    Args:
        path: The table or folder.
        exclude: Table of scans to leave out; what it left out is said.

    Raises:
        UsageError: There is none; names the command to type next.
    """
    from neuroage.cli.screen import talk
    from neuroage.cohort import Cohort

    if not path.exists():
        raise UsageError(
            f"No cohort at {path}",
            fix="Make one with `neuroage index FOLDER_OR_TABLE`, or try a synthetic one: "
            "`neuroage phantom --out phantom` and `neuroage index phantom`.",
        )
    cohort = Cohort.read(path)
    lost = [problem for problem in cohort.problems if problem.action in LOST] if path.is_file() else []
    if lost:
        more = f" ({len(lost)} in all; `neuroage index {shlex.quote(str(path))} --json` lists them)" * (len(lost) > 1)
        talk.print(f"• {lost[0]}{more}", markup=False)
    return cohort if exclude is None else leave_out(cohort, exclude)


def leave_out(cohort: Cohort, exclude: Path) -> Cohort:
    """Leave out the scans of a table, and say how many for which reason, and which ids are not in the cohort."""
    from neuroage.cli.screen import talk

    kept = cohort.exclude(exclude)
    for problem in kept.problems[len(cohort.problems) :]:
        talk.print(f"• {problem}", markup=False)
    return kept


def check_table_path(path: Path, inputs: Sequence[Path], option: str = "--out") -> None:
    """Make sure, before any work is done for it, that a table written to `path` takes the place of no scan.

    Args:
        path: Of the table.
        inputs: What must stay.
        option: Which gave the path.

    Raises:
        UsageError: It is no CSV file, or one of the inputs.
    """
    if path.suffix.lower() != ".csv" or path.is_dir():
        raise UsageError(f"{option} {path}", expected="a file name that ends in .csv")
    if path.resolve() in [given.resolve() for given in inputs]:
        raise UsageError(f"{option} {path} is one of the inputs and would be lost", fix="Choose another name.")


def load_split(path: Path, cohort: Cohort) -> Split:
    """Load a split made here, or one made elsewhere.

    Raises:
        UsageError: There is none; names the command to type next.
    """
    from neuroage.cohort import Split, read_split

    if not path.exists():
        raise UsageError(f"No split at {path}", fix=f"Make one with `{next_split(cohort, Path(COHORT))}`.")
    return Split.load(path) if path.with_suffix(".json").exists() else read_split(path, cohort)


def next_split(cohort: Cohort, path: Path) -> str:
    """Give the command that splits a cohort in the way that suits it: by group where it has labels, else by age.

    Args:
        cohort: What shall be split.
        path: Where its table is.
    """
    from neuroage.cohort.labels import has_labels

    where = "" if path == COHORT else f" {shlex.quote(str(path))}"
    return f"neuroage split{where} {'--grouped' if has_labels(cohort.table) else '--uniform-age'}"


def next_train(cohort: Cohort, cohort_file: Path, split_file: Path, *, labels: bool) -> str:
    """Give the command that trains on a split.

    Args:
        cohort: What was split.
        cohort_file, split_file: Where both are.
        labels: Whether labels are to be learnt, not ages.
    """
    words = ["neuroage", "train", *_recipe_words(cohort, labels)]
    if cohort.modalities or not labels:
        words += ["--modality", next(iter(cohort.modalities), "t1")]
    words += ["--data", str(cohort_file)] if cohort_file != COHORT else []
    words += ["--split", str(split_file)] if split_file != SPLIT else []
    return shlex.join(words)


def _recipe_words(cohort: Cohort, labels: bool) -> list[str]:
    """Give the recipe for a cohort, and what has to be changed in it; nothing where the default one will do."""
    from neuroage.cohort.image_files import PICTURE_SUFFIXES

    is_picture = bool(cohort.table["path"].str.lower().str.endswith((*PICTURE_SUFFIXES, ".dcm")).any())
    classes = "label" in cohort.table.columns and bool((cohort.table["label"] != "").any())
    task = "{name: multiclass}" if classes else "{name: multilabel}"
    if not labels:
        task = "{name: age_regression}" if is_picture else ""
    elif not classes and len(cohort.labels) == 1:
        task = f"{{name: binary, label: {cohort.labels[0]}}}"
    elif classes and is_picture:
        task = ""  # as the recipe has it
    return [*(["--config", "picture"] if is_picture else []), *(["--set", f"task={task}"] if task else [])]


def members_to_train(made: Split, fold: int | None, folds: int | None) -> tuple[list[int], list[Part]]:
    """Say what the members of a run leave out: folds of the split or, where it has one fold, parts of its training."""
    from neuroage.cohort.parts import all_parts

    if made.n_folds > 1 or (folds or 1) == 1:
        return ([fold] if fold is not None else list(range(folds or 1))), []
    parts = all_parts(folds or 1)
    if fold is not None and fold >= len(parts):
        raise UsageError(f"--fold {fold}", expected=f"0 to {len(parts) - 1} with --folds {folds}")
    return [0], parts if fold is None else [parts[fold]]


def refuse_labels_alone(config: str | None, overrides: Sequence[str] | None, cohort: Cohort) -> None:
    """Make sure that a recipe says what is learnt where a cohort has no age: without one, ages are.

    Raises:
        UsageError: Neither recipe nor task is given, and no scan has an age.
    """
    says = config is not None or any(value.startswith("task") for value in overrides or ())
    if not says and len(cohort) and cohort.table["age"].isna().all():
        raise UsageError(
            "No scan of the cohort has an age, and without --config ages are learnt",
            fix=f"Name a recipe: `{next_train(cohort, COHORT, SPLIT, labels=True)}`; all: `neuroage list configs`.",
        )


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


def registering(overrides: list[str] | None, modality: str | None) -> list[str]:
    """Add to a recipe's overrides that scans are registered through another modality, where one is given."""
    from neuroage.cohort.modalities import canonical_modality

    more = [f"prepare.registration.reference={canonical_modality(modality)}"] if modality else []
    return [*(overrides or []), *more]


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
