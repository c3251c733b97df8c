"""Verbs about learning: train, predict, evaluate, runs, compare."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

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
    check_table_path,
    load_cohort,
    load_recipe,
    load_split,
    members_to_train,
    modality_of,
    open_store,
)
from neuroage.errors import UsageError


class Held(str, Enum):
    """Sets of held-out subjects."""

    validation = "validation"
    test = "test"
    out_of_fold = "out_of_fold"


RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a complete run.")]


def train(
    modality: Annotated[
        str | None, typer.Option(help="Which scans: t1, tof, … (default: the recipe's, else t1)")
    ] = None,
    data: Data = COHORT,
    split: SplitFile = SPLIT,
    config: Config = None,
    set_: Set = None,
    init_from: Annotated[
        Path | None,
        typer.Option("--init-from", metavar="RUN", help="Take over the backbone of this run; the head is new."),
    ] = None,
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="Folder of the run. (default: runs/MODALITY)")
    ] = None,
    fold: Annotated[
        int | None, typer.Option(min=0, help="Train one fold of the split or, with --folds K, one of the K members.")
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Train K members of one run: on the first K folds of the split or, where it has one, each without "
            "another K-th of the training subjects. Their out-of-fold predictions calibrate the run.",
        ),
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
    overrides += [f"finetune.init_from={json.dumps(str(init_from))}"] if init_from else []
    recipe = load_recipe(config, modality or modality_of(config), overrides)
    from neuroage.training.experiment import member_name, train_members

    chosen, parts = members_to_train(made, fold, folds)
    where = out_folder or Path("runs") / recipe.modality
    if fold is not None and (made.n_folds > 1 or parts) and out_folder is None:
        # Where `--folds K --resume auto` looks for it, so that folds trained as an array of jobs become one run.
        where = where / "members" / member_name(chosen[0], recipe.seed, parts[0] if parts else None)
    run = train_members(
        recipe,
        cohort,
        made,
        where,
        folds=chosen,
        parts=parts,
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


def _tell_evaluation(evaluation: dict[str, Any]) -> None:
    from neuroage.cli.calibrate import tell_calibration
    from neuroage.cli.screen import make_table, metric_row, out

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
            [metric_row(figures) for figures in evaluation["models"].values()],
        )
    )
    tell_calibration(evaluation)


def predict(
    run: RunFolder,
    inputs: Annotated[list[Path], typer.Argument(help="Scans, folders, or cohort tables.")],
    out_file: Annotated[Path, typer.Option("--out", help="Where the predictions are written.")] = Path(
        "predictions.csv"
    ),
    max_failed_share: Annotated[
        float, typer.Option(min=0, max=1, help="Fail when more than this share of scans cannot be read.")
    ] = 0.1,
    force: Annotated[
        bool, typer.Option("--force", help="Predict also scans that are refused: unlike anything in training.")
    ] = False,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> None:
    """Predict the age of scans; each is checked first, and refused where its prediction would be meaningless."""
    from neuroage.cli.screen import Story, make_table, out, print_json, shown, talk
    from neuroage.runs.calibration import intervals_in_words
    from neuroage.runs.predictions import save_predictions
    from neuroage.runs.run import Run
    from neuroage.training.inputs import gather_scans
    from neuroage.training.predict import predict as ask

    check_table_path(out_file, inputs)
    opened = Run.open(run)
    cohort = gather_scans(inputs, opened.recipe.modality, kind=opened.recipe.prepare.kind)
    answer = ask(
        opened,
        cohort,
        store=open_store(store),
        max_failed_share=max_failed_share,
        force=force,
        observer=Story(quiet=as_json),
    )
    save_predictions(answer.table, out_file)
    if as_json:
        print_json({"predictions": out_file, "rows": answer.table.to_dict("records"), "failures": answer.failures})
        return
    rows = [
        [
            str(row["scan_id"]),
            shown(row["age"], 1),
            shown(row["predicted_age"], 1) + _interval(row),
            str(row["verdict"]),
            _first_concerns(str(row["concerns"])),
        ]
        for row in answer.table.head(20).to_dict("records")
    ]
    out.print(make_table("", ["scan", "age", "predicted age", "verdict", "concerns"], rows))
    if len(answer.table) > 20:
        out.print(f"… and {len(answer.table) - 20} more")
    for reason in answer.failures.values():
        talk.print(f"[yellow]•[/] left out: {reason}")
    if "interval_low" in answer.table.columns:
        talk.print(f"In brackets: {intervals_in_words(opened)}.")
    talk.print(f"Wrote {out_file}.")


def _first_concerns(words: str) -> str:
    first, rest = words.split("; ")[:3], words.split("; ")[3:]
    return "; ".join([*first, *([f"and {len(rest)} more, in the table"] if rest else [])])


def _interval(row: dict[Any, Any]) -> str:
    low, high = row.get("interval_low"), row.get("interval_high")
    return "" if low is None or low != low else f" ({low:.0f}–{high:.0f})"


def evaluate(
    run: RunFolder,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Cohort with ages: a table or folder. (default: the run's own held-out subjects)"),
    ] = None,
    subjects: Annotated[
        Held | None,
        typer.Option("--subjects", help="Without --data: which of the run's held-out subjects. (default: validation)"),
    ] = None,
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
    from neuroage.runs.evaluation import evaluate_held_out
    from neuroage.runs.predictions import save_predictions
    from neuroage.runs.run import Run

    opened, held = Run.open(run), (subjects or Held.validation).value
    if data is not None and subjects is not None:
        raise UsageError(
            "--subjects chooses among the run's own held-out subjects, --data names others", fix="Drop one."
        )
    if data is None:
        evaluation = evaluate_held_out(opened, held)
        table = opened.predictions
    else:
        from neuroage.training.predict import evaluate_on  # with torch, which the run's own tables do not need

        cohort = load_cohort(data).select(modality=opened.recipe.modality)
        evaluation, answer = evaluate_on(opened, cohort, store=open_store(store), observer=Story(quiet=as_json))
        table = answer.table
    where = out_folder or run / f"evaluation-{held if data is None else data.resolve().stem}"
    write_evaluation(evaluation, where)
    save_predictions(table, where / "predictions.csv")
    if as_json:
        print_json({"folder": where, **evaluation.to_dict()})
        return
    _tell_evaluation(evaluation.to_dict())
    out.print(f"Page: {where / 'evaluation.html'}")
