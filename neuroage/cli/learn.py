"""Verbs about learning: train, predict, evaluate."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from neuroage.cli.options import (
    COHORT,
    SPLIT,
    AsJson,
    Config,
    Data,
    Exclude,
    RegisterTo,
    Set,
    SplitFile,
    StoreFolder,
    check_table_path,
    leave_out,
    load_cohort,
    load_recipe,
    load_split,
    members_to_train,
    modality_of,
    open_store,
    refuse_labels_alone,
    registering,
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
    register_to: RegisterTo = None,
    exclude: Exclude = None,
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
    """Train a model of ages or labels, as the recipe says, and score it, with simple baselines beside it."""
    from neuroage.cli.results import tell_evaluation
    from neuroage.cli.screen import Story, out, print_json

    cohort = load_cohort(data, exclude)
    refuse_labels_alone(config, set_, cohort)
    made = load_split(split, cohort)
    overrides = [*registering(set_, register_to), *([f"training.precision={precision}"] if precision else [])]
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
    tell_evaluation(evaluation)
    out.print(f"Page: {run.folder / 'evaluation.html'}")


class Preparing(str, Enum):
    """How scans are prepared before a run is asked about them."""

    recipe = "recipe"
    auto = "auto"


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
    exclude: Exclude = None,
    prepare: Annotated[
        Preparing,
        typer.Option(
            help="recipe: scans are as the training scans were. auto: raw scans, with skull and in any pose, are "
            "brought to lie and look like them first."
        ),
    ] = Preparing.recipe,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> None:
    """Predict the age or the labels of scans; each is checked first, and refused where that would be meaningless."""
    from neuroage.cli.results import tell_predictions
    from neuroage.cli.screen import Story, print_json, talk
    from neuroage.runs.predictions import save_predictions
    from neuroage.runs.run import Run
    from neuroage.training.inputs import gather_scans
    from neuroage.training.predict import predict as ask

    check_table_path(out_file, inputs)
    opened = Run.open(run)
    cohort = gather_scans(
        inputs, opened.recipe.modality, kind=opened.recipe.prepare.kind, reference=opened.recipe.reference
    )
    cohort = cohort if exclude is None else leave_out(cohort, exclude)
    answer = ask(
        opened,
        cohort,
        store=open_store(store),
        prepare=prepare.value,
        max_failed_share=max_failed_share,
        force=force,
        observer=Story(quiet=as_json),
    )
    save_predictions(answer.table, out_file)
    if as_json:
        print_json({"predictions": out_file, "rows": answer.table.to_dict("records"), "failures": answer.failures})
        return
    tell_predictions(answer.table, opened)
    for reason in answer.failures.values():
        talk.print(f"• left out: {reason}", markup=False)
    talk.print(f"Wrote {out_file}.")


def evaluate(
    run: RunFolder,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Cohort with ages or labels: a table or folder. (default: the run's own held-out subjects)",
        ),
    ] = None,
    exclude: Exclude = None,
    subjects: Annotated[
        Held | None,
        typer.Option(
            "--subjects",
            help="Without --data: which of the run's held-out subjects. (default: validation, or test where something "
            "was chosen on validation)",
        ),
    ] = None,
    out_folder: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of page, figures and tables. (default: inside the run)"),
    ] = None,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> None:
    """Score a run on subjects that it was not trained on: its own held-out ones, or another cohort's."""
    from neuroage.cli.results import tell_evaluation
    from neuroage.cli.screen import Story, out, print_json
    from neuroage.runs.evaluation import evaluate_held_out, write_pages
    from neuroage.runs.predictions import save_predictions
    from neuroage.runs.run import Run

    opened = Run.open(run)
    if data is not None and subjects is not None:
        raise UsageError(
            "--subjects chooses among the run's own held-out subjects, --data names others", fix="Drop one."
        )
    if data is None and exclude is not None:
        raise UsageError("--exclude leaves out scans of the cohort given by --data", fix="Give --data, or drop it.")
    if data is None:
        evaluation = evaluate_held_out(opened, subjects.value if subjects else None)
        table = opened.predictions
    else:
        from neuroage.training.predict import evaluate_on  # with torch, which the run's own tables do not need

        cohort = opened.recipe.select(load_cohort(data, exclude))
        evaluation, answer = evaluate_on(opened, cohort, store=open_store(store), observer=Story(quiet=as_json))
        table = answer.table
    where = out_folder or run / f"evaluation-{evaluation.sets[0] if data is None else data.resolve().stem}"
    write_pages(evaluation, where)
    save_predictions(table, where / "predictions.csv")
    if as_json:
        print_json({"folder": where, **evaluation.to_dict()})
        return
    tell_evaluation(evaluation.to_dict())
    out.print(f"Page: {where / 'evaluation.html'}")
