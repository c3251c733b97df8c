"""Verbs about learning: train, predict, evaluate, runs, compare."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuroage.cli.options import (
    COHORT,
    SPLIT,
    AsJson,
    Config,
    Data,
    Set,
    SplitFile,
    StoreFolder,
    load_cohort,
    load_recipe,
    load_split,
    open_store,
)
from neuroage.errors import UsageError

if TYPE_CHECKING:
    from neuroage.analysis import Evaluation
    from neuroage.runs.recipe import Recipe
    from neuroage.runs.run import Run

CURVES = ("inner_mae", "train_mae_eval", "train_mae")  # what is overlaid, the first that any run has


class Held(str, Enum):
    """Sets of held-out subjects."""

    validation = "validation"
    test = "test"


RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a complete run.")]


def train(
    modality: Annotated[
        str | None, typer.Option(help="Which scans: t1, tof, … (default: the recipe's, else t1)")
    ] = None,
    data: Data = COHORT,
    split: SplitFile = SPLIT,
    config: Config = None,
    set_: Set = None,
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="Folder of the run. (default: runs/MODALITY)")
    ] = None,
    fold: Annotated[int | None, typer.Option(min=0, help="Train one fold of the split.")] = None,
    folds: Annotated[
        int | None, typer.Option(min=1, help="Train the first K folds of the split, as members of one run.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Trainings with other seeds, as members of one run.")] = 1,
    resume: Annotated[
        str,
        typer.Option(
            metavar="[auto|required|never]",
            help="Continue an interrupted training: alone it must be there, `auto` continues or starts.",
        ),
    ] = "never",
    precision: Annotated[
        str | None, typer.Option(help="auto, fp32, bf16 or fp16; short for --set training.precision=….")
    ] = None,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> None:
    """Train a brain-age model and score it, with the mean predictor and ridge beside it."""
    from neuroage.cli.screen import Story, out, print_json

    cohort = load_cohort(data)
    made = load_split(split, cohort)
    overrides = [*(set_ or []), *([f"training.precision={precision}"] if precision else [])]
    recipe = load_recipe(config, modality or _modality_of(config), overrides)
    _quiet_libraries()
    from neuroage.training.experiment import member_name, train_members

    chosen = [fold] if fold is not None else list(range(folds or 1))
    where = out_folder or Path("runs") / recipe.modality
    if fold is not None and made.n_folds > 1 and out_folder is None:
        # Where `--folds K --resume auto` looks for it, so that folds trained as an array of jobs become one run.
        where = where / "members" / member_name(fold, recipe.seed)
    run = train_members(
        recipe,
        cohort,
        made,
        where,
        folds=chosen,
        repeats=repeats,
        resume=resume,
        store=open_store(store),
        observer=Story(quiet=as_json),
    )
    evaluation = run.evaluation
    if as_json:
        print_json({"run": run.folder, **evaluation})
        return
    _tell_evaluation(evaluation)
    out.print(f"Page: {run.folder / 'evaluation.html'}")


def _modality_of(config: str | None) -> str:
    if config is None:
        return "t1"
    from neuroage.runs.recipe import Recipe
    from neuroage.runs.shipped import find_recipe

    return Recipe.load(find_recipe(config)).modality


def _quiet_libraries() -> None:
    import logging

    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)


def _tell_evaluation(evaluation: dict[str, Any]) -> None:
    from neuroage.cli.screen import make_table, out

    out.print(f"[bold]{evaluation['verdict']}[/]")
    if evaluation.get("meta", {}).get("selected_on") == "validation":
        out.print(
            "[yellow]The weights were selected on the validation set: "
            "this figure is better than new subjects will show.[/]"
        )
    out.print(
        make_table(
            "",
            ["", "MAE", "95 % interval", "RMSE", "r", "R²", "gap slope"],
            [_metric_row(figures) for figures in evaluation["models"].values()],
        )
    )


def _metric_row(figures: dict[str, Any]) -> list[str]:
    return [
        str(figures["label"]),
        _shown(figures["mae"]),
        f"{_shown(figures['mae_low'])} – {_shown(figures['mae_high'])}",
        _shown(figures["rmse"]),
        _shown(figures["pearson_r"]),
        _shown(figures["r2"]),
        _shown(figures["gap_slope"]),
    ]


def _shown(value: float | None, digits: int = 2) -> str:
    return "–" if value is None or value != value else f"{value:.{digits}f}"


def predict(
    run: RunFolder,
    inputs: Annotated[list[Path], typer.Argument(help="Scans, folders, or cohort tables.")],
    out_file: Annotated[Path, typer.Option("--out", help="Where the predictions are written.")] = Path(
        "predictions.csv"
    ),
    max_failed_share: Annotated[
        float, typer.Option(min=0, max=1, help="Fail when more than this share of scans cannot be read.")
    ] = 0.1,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> None:
    """Predict the age of scans; the table says where a scan is unlike those that the run was trained on."""
    from neuroage.cli.screen import Story, make_table, out, print_json, talk
    from neuroage.runs.predictions import save_predictions
    from neuroage.runs.run import Run
    from neuroage.training.predict import gather_scans
    from neuroage.training.predict import predict as ask

    opened = Run.open(run)
    _quiet_libraries()
    cohort = gather_scans(inputs, opened.recipe.modality)
    answer = ask(
        opened, cohort, store=open_store(store), max_failed_share=max_failed_share, observer=Story(quiet=as_json)
    )
    save_predictions(answer.table, out_file)
    if as_json:
        print_json({"predictions": out_file, "rows": answer.table.to_dict("records"), "failures": answer.failures})
        return
    rows = [
        [str(row["scan_id"]), _shown(row["age"], 1), _shown(row["predicted_age"], 1), str(row["concerns"])]
        for row in answer.table.head(20).to_dict("records")
    ]
    out.print(make_table("", ["scan", "age", "predicted age", "concerns"], rows))
    if len(answer.table) > 20:
        out.print(f"… and {len(answer.table) - 20} more")
    for reason in answer.failures.values():
        talk.print(f"[yellow]•[/] left out: {reason}")
    talk.print(f"Wrote {out_file}.")


def evaluate(
    run: RunFolder,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Cohort with ages: a table or folder. (default: the run's own held-out subjects)"),
    ] = None,
    subjects: Annotated[
        Held, typer.Option("--subjects", help="Without --data: which of the run's held-out subjects.")
    ] = Held.validation,
    out_folder: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of page, figures and tables. (default: inside the run)"),
    ] = None,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> None:
    """Score a run on subjects that it was not trained on: its own held-out ones, or another cohort's."""
    from neuroage.analysis import write_evaluation
    from neuroage.cli.screen import Story, out, print_json
    from neuroage.runs.predictions import save_predictions
    from neuroage.runs.run import Run
    from neuroage.training.predict import evaluate_on

    opened = Run.open(run)
    if data is None:
        evaluation = _evaluate_held_out(opened, subjects.value)
        table = opened.predictions
    else:
        _quiet_libraries()
        cohort = load_cohort(data).select(modality=opened.recipe.modality)
        evaluation, answer = evaluate_on(opened, cohort, store=open_store(store), observer=Story(quiet=as_json))
        table = answer.table
    where = out_folder or run / f"evaluation-{subjects.value if data is None else data.resolve().stem}"
    write_evaluation(evaluation, where)
    save_predictions(table, where / "predictions.csv")
    if as_json:
        print_json({"folder": where, **evaluation.to_dict()})
        return
    _tell_evaluation(evaluation.to_dict())
    out.print(f"Page: {where / 'evaluation.html'}")


def _evaluate_held_out(run: Run, set_name: str) -> Evaluation:
    from neuroage.analysis import evaluate as score

    if not run.complete:
        raise UsageError(f"{run.folder} is not complete", fix="Finish it with `neuroage train … --resume`.")
    meta = {"selected_on": run.about.get("selected_on")}
    return score(run.predictions, run.baselines, (set_name,), name=run.recipe.modality, meta=meta)


def runs(
    folder: Annotated[Path, typer.Argument(help="Folder that holds runs.")] = Path("runs"),
    curves: Annotated[
        Path | None, typer.Option(help="Write the overlaid loss curves to this PNG. (default: FOLDER/curves.png)")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List runs: where their recipes differ, and what they reached; their curves are overlaid in one picture."""
    from neuroage.analysis import overlay_curves
    from neuroage.cli.screen import make_table, out, print_json
    from neuroage.runs.recipe import recipe_differences
    from neuroage.runs.run import find_runs

    found = {str(run.folder.relative_to(folder)) or run.name: run for run in find_runs(folder)}
    if not found:
        raise UsageError(f"No run in {folder}", fix="Train one with `neuroage train`.")
    differences = recipe_differences({name: run.recipe for name, run in found.items()})
    rows = {name: {"status": run.about["status"], **_reached(run), **differences[name]} for name, run in found.items()}
    histories = {name: run.history for name, run in found.items() if not run.history.empty}
    picture = curves or folder / "curves.png"
    column = next((key for key in CURVES if any(key in history for history in histories.values())), None)
    if column:
        overlay_curves(histories, picture, column=column)
    if as_json:
        print_json({"runs": rows, "curves": picture if column else None})
        return
    keys = list(next(iter(rows.values())))
    out.print(
        make_table(
            "",
            ["run", *keys],
            [[name, *("–" if row[key] is None else str(row[key]) for key in keys)] for name, row in rows.items()],
        )
    )
    if column:
        out.print(f"Curves ({column}): {picture}")


def _reached(run: Run) -> dict[str, Any]:
    models = run.evaluation.get("models", {})
    own: dict[str, Any] = next((figures for figures in models.values() if figures.get("kind") == "model"), {})
    ridge = models.get("ridge", {})
    about = run.about
    return {
        "MAE": round(own["mae"], 2) if own else None,
        "ridge": round(ridge["mae"], 2) if ridge else None,
        "n": own.get("n_subjects"),
        "split": about["split_digest"][:8],
        "epochs": len(run.history) or None,
    }


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
    folds: Annotated[
        int | None,
        typer.Option(min=1, help="Train and compare the first K folds of the split. (default: all of them)"),
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
    _quiet_libraries()
    from neuroage.training.experiment import compare_modalities, compare_runs

    if all((Path(name) / "run.json").is_file() for name in models):
        comparison = compare_runs(_named([Run.open(name) for name in models]))
    else:
        cohort = load_cohort(data)
        made = load_split(split, cohort)
        chosen = list(range(folds or max(made.n_folds, 1)))
        recipes = _recipes(models, config, set_)
        story = Story(quiet=as_json)
        comparison, _ = compare_modalities(
            recipes,
            cohort,
            made,
            runs_folder,
            folds=chosen,
            repeats=repeats,
            chosen_recipes=bool(config or set_),
            store=open_store(store),
            observer=story,
        )
    written = write_comparison(comparison, out_folder)
    if as_json:
        print_json({"folder": out_folder, **comparison.to_dict()})
        return
    tell_comparison(comparison.to_dict(), written["html"])


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
    from neuroage.cli.screen import make_table, out

    out.print(f"[bold]{comparison['verdict']}[/]")
    out.print(
        make_table(
            "",
            ["", "MAE", "95 % interval", "RMSE", "r", "R²", "gap slope"],
            [_metric_row(row) for row in comparison["models"].values()],
        )
    )
    for line in comparison.get("findings", []):
        out.print(f"• {line}")
    out.print(f"Page: {page}")
