"""Verbs about several models: runs, compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuroage.cli.options import (
    COHORT,
    SPLIT,
    AsJson,
    Data,
    Exclude,
    Set,
    SplitFile,
    StoreFolder,
    load_cohort,
    load_recipe,
    load_split,
    members_to_train,
    open_store,
)
from neuroage.errors import UsageError
from neuroage.files import is_main_process

if TYPE_CHECKING:
    from neuroage.runs.recipe import Recipe
    from neuroage.runs.run import Run

CURVES = {  # what is overlaid: of each metric the first column that any of its runs has
    "mae": ("inner_mae", "validation_mae", "train_mae_eval", "train_mae"),
    "auroc": ("inner_auroc", "validation_auroc", "train_auroc_eval", "train_error_rate"),
}
FIGURES = {"mae": "MAE", "auroc": "AUROC", "f1": "F1"}  # headlines of evaluations, as columns
MOST_KEYS, MOST_LETTERS = 5, 20  # of the recipe, in the table; --json has all
TELLING = ("task.name", "task.label", "backbone.name", "backbone.model", "prepare.size", "optim.lr")  # shown first
YARDSTICKS = ("ridge", "linear")  # the baseline that is shown beside


def runs(
    folder: Annotated[Path, typer.Argument(help="Folder that holds runs.")] = Path("runs"),
    curves: Annotated[
        Path | None, typer.Option(help="Write the overlaid loss curves to this PNG. (default: FOLDER/curves.png)")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List runs: where their recipes differ, and what they reached; their curves are overlaid in one picture."""
    from neuroage.cli.screen import make_table, out, print_json
    from neuroage.runs.recipe import recipe_differences
    from neuroage.runs.run import find_runs

    found = {str(run.folder.relative_to(folder)) or run.name: run for run in find_runs(folder)}
    if not found:
        raise UsageError(f"No run in {folder}", fix="Train one with `neuroage train`.")
    differences = recipe_differences({name: run.recipe for name, run in found.items()})
    reached = {name: _reached(run) for name, run in found.items()}
    figures = [key for key in (*FIGURES.values(), *YARDSTICKS) if any(key in one for one in reached.values())]
    rows = {
        name: {
            "status": run.about["status"],
            **{key: reached[name].get(key) for key in figures},
            **{key: value for key, value in reached[name].items() if key not in figures},
            **differences[name],
        }
        for name, run in found.items()
    }
    pictures = _overlay(found, curves or folder / "curves.png")
    if as_json:
        print_json({"runs": rows, "curves": next(iter(pictures.values()), None), "pictures": pictures})
        return
    differing = sorted(
        next(iter(differences.values())),
        key=lambda key: (
            TELLING.index(key) if key in TELLING else len(TELLING),
            max(len(str(row[key])) for row in rows.values()) > MOST_LETTERS,
        ),
    )
    keys = [key for key in next(iter(rows.values())) if key not in differing] + differing[:MOST_KEYS]
    cells = [[name, *(_cell(row[key]) for key in keys)] for name, row in rows.items()]
    out.print(make_table("", ["run", *keys], cells))
    if len(differing) > MOST_KEYS:
        rest = ", ".join(differing[MOST_KEYS:])
        out.print(f"The recipes also differ in {rest} (--json lists all).", markup=False)
    for column, picture in pictures.items():
        out.print(f"Curves ({column}): {picture}")


def _cell(value: Any) -> str:
    from rich.markup import escape

    text = "–" if value is None else str(value)
    return escape(text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 1] + "…")


def _overlay(found: dict[str, Run], picture: Path) -> dict[str, Path]:
    """Draw the curves of runs, one picture for each metric; gives column: picture."""
    from neuroage.analysis import overlay_curves

    histories = {name: history for name, run in found.items() if not (history := run.history).empty}
    pictures: dict[str, Path] = {}
    for metric, columns in CURVES.items():
        column = next((key for key in columns if any(key in history for history in histories.values())), None)
        if column:
            where = picture.with_name(f"{picture.stem}-{metric}{picture.suffix}") if pictures else picture
            overlay_curves(histories, where, column=column)
            pictures[column] = where
    return pictures


def _reached(run: Run) -> dict[str, Any]:
    evaluation, about = run.evaluation, run.about
    models = evaluation.get("models", {})
    own: dict[str, Any] = next((figures for figures in models.values() if figures.get("kind") == "model"), {})
    headline = evaluation.get("headline", "mae")
    beside = next((name for name in YARDSTICKS if name in models), None)
    return {
        **({FIGURES[headline]: _rounded(own[headline])} if own else {}),
        **({beside: _rounded(models[beside][headline])} if beside else {}),
        "n": own.get("n_subjects"),
        "set": ", ".join(evaluation.get("sets", [])) or None,
        "split": about["split_digest"][:8],
        "epochs": len(run.history) or None,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def compare(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL…", help="Two or more modalities (t1 tof) or folders of runs.")
    ],
    data: Data = COHORT,
    split: SplitFile = SPLIT,
    config: Annotated[
        list[str] | None,
        typer.Option(
            "--config", help="Recipe of each modality, in the same order; one for all, or the modality's own."
        ),
    ] = None,
    set_: Set = None,
    exclude: Exclude = None,
    folds: Annotated[
        int | None,
        typer.Option(min=1, help="Train and compare K members, as `train --folds`. (default: all folds of the split)"),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Trainings a fold, with other seeds.")] = 1,
    runs_folder: Annotated[Path, typer.Option("--runs", help="Where runs are kept, by modality.")] = Path("runs"),
    out_folder: Annotated[Path, typer.Option("--out", help="Folder of the comparison.")] = Path("compare"),
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> None:
    """Does one modality tell age better than another? Trains what is missing, then compares on the same subjects."""
    from neuroage.analysis import write_comparison
    from neuroage.cli.screen import Story, print_json
    from neuroage.runs.run import Run

    if len(models) < 2:
        raise UsageError(f"Only {models[0]} to compare", expected="two or more modalities or runs")
    from neuroage.models.tasks import build_task
    from neuroage.training.experiment import compare_modalities, compare_runs

    if all((Path(name) / "run.json").is_file() for name in models):
        opened = [Run.open(name) for name in models]
        for run in opened:
            _refuse_labels(str(run.folder), run.target["kind"])
        comparison = compare_runs(_named(opened))
    else:
        cohort = load_cohort(data, exclude)
        made = load_split(split, cohort)
        chosen, parts = members_to_train(made, None, folds or max(made.n_folds, 1))
        recipes = _recipes(models, config, set_)
        for name, recipe in recipes.items():
            _refuse_labels(f"The recipe of {name}", build_task(recipe).target["kind"])
        story = Story(quiet=as_json)
        comparison, _ = compare_modalities(
            recipes,
            cohort,
            made,
            runs_folder,
            folds=chosen,
            parts=parts,
            repeats=repeats,
            chosen_recipes=bool(config or set_),
            store=open_store(store),
            observer=story,
        )
    if not is_main_process():
        return
    written = write_comparison(comparison, out_folder)
    if as_json:
        print_json({"folder": out_folder, **comparison.to_dict()})
        return
    tell_comparison(comparison.to_dict(), written["html"])


def _refuse_labels(what: str, kind: str) -> None:
    if kind != "age":
        raise UsageError(
            f"{what} is about labels, and `compare` compares ages",
            fix="`neuroage runs` puts labels side by side, `neuroage evaluate` gives each with its baselines, "
            "`neuroage cross` tests them on one another's data.",
        )


def _recipes(models: list[str], config: list[str] | None, overrides: list[str] | None) -> dict[str, Recipe]:
    from neuroage.cohort.modalities import canonical_modality

    configs = list(config or [])
    if len(configs) not in (0, 1, len(models)):
        raise UsageError(f"{len(configs)} recipes for {len(models)} modalities", expected="one for all, or one each")
    recipes = {}
    for index, name in enumerate(models):
        if Path(name).exists() and Path(name).is_dir() and "/" in name:
            raise UsageError(f"{name} is no run", fix="Give run folders only, or modalities only.")
        given = configs[index] if len(configs) == len(models) else configs[0] if configs else None
        recipes[canonical_modality(name)] = load_recipe(given, name, overrides)
    return recipes


def _named(opened: list[Run]) -> dict[str, Run]:
    names = [run.name for run in opened]
    if len(set(names)) < len(names):
        names = [run.folder.as_posix() for run in opened]
    return dict(zip(names, opened, strict=True))


def tell_comparison(comparison: dict[str, Any], page: Path) -> None:
    """Print a comparison: verdict, figures, page."""
    from neuroage.cli.screen import make_table, metric_row, out

    out.print(f"[bold]{comparison['verdict']}[/]")
    out.print(
        make_table(
            "",
            ["", "MAE", "95 % interval", "RMSE", "r", "R²", "gap slope"],
            [metric_row(row) for row in comparison["models"].values()],
        )
    )
    for line in comparison.get("findings", []):
        out.print(f"• {line}")
    out.print(f"Page: {page}")
