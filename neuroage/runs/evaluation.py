"""Score a run on held-out subjects, from the tables that it left; each kind of target has its own figures and page."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from neuroage.analysis import Evaluation, evaluate, evaluate_labels, write_evaluation, write_label_evaluation
from neuroage.errors import DataError, UsageError
from neuroage.runs.calibration import out_of_fold_set, read_calibration
from neuroage.runs.label_calibration import read_label_calibration
from neuroage.runs.run import Run

if TYPE_CHECKING:
    import pandas as pd

    from neuroage.analysis import LabelEvaluation

AnyEvaluation: TypeAlias = "Evaluation | LabelEvaluation"


def evaluate_held_out(run: Run, set_name: str | None = None) -> AnyEvaluation:
    """Score a run on held-out subjects of its split, with the baselines beside it.

    Args:
        run: A run with predictions.
        set_name: "validation"; "test" where its split has a test set; "out_of_fold" where its members left out parts
            of the training subjects. None: `headline_set(run)`. Where a run about age is calibrated, coverage and
            corrected figures come along; on the subjects on whom the calibration was fitted, by cross-validation.

    Raises:
        UsageError: The run has no predictions yet.
        DataError: Its split has no such set.
    """
    if not run.scored:
        raise UsageError(f"{run.folder} is not complete", fix="Finish it with `neuroage train … --resume`.")
    predictions, wanted = run.predictions, set_name or headline_set(run)
    sets = sorted(predictions["set"].unique())
    if wanted not in sets:
        raise DataError(f"{run.folder} has no {wanted} predictions", expected=f"one of {', '.join(sets)}")
    return evaluate_predictions(run, predictions, run.baselines, (wanted,))


def headline_set(run: Run) -> str:
    """Name the set whose figures a run is judged by: validation, or test where something was chosen on validation."""
    about = run.about
    has_test = bool((run.predictions["set"] == "test").any())
    chosen_there = about.get("selected_on") == "validation" or about.get("calibrated_on") == "validation"
    return "test" if has_test and chosen_there else "validation"


def evaluate_predictions(
    run: Run, predictions: pd.DataFrame, baselines: Mapping[str, pd.DataFrame], sets: Sequence[str]
) -> AnyEvaluation:
    """Score predictions of a run, by the figures that belong to its target.

    Args:
        run: Says what the predictions are about; its calibration is applied.
        predictions: One row a scan (and member), with targets.
        baselines: The same scans: name → table.
        sets: Which sets of the predictions.
    """
    about = run.about
    digests = {"split": about["split_digest"][:12], "recipe": about["recipe_digest"][:12]}
    meta = {"selected_on": about.get("selected_on"), **(digests if "new" not in sets else {})}
    name, seed = run.recipe.modality, run.recipe.seed
    if run.target["kind"] != "age":
        known = read_label_calibration(run)
        return evaluate_labels(predictions, run.target, baselines, sets, seed, name=name, meta=meta, calibration=known)
    calibration = read_calibration(run)
    across = calibration is not None and "new" not in sets and out_of_fold_set(run) in sets
    return evaluate(predictions, baselines, sets, seed, name=name, meta=meta, calibration=calibration, across=across)


def write_pages(evaluation: AnyEvaluation, folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Write what a person reads of an evaluation: page, pictures, tables."""
    if isinstance(evaluation, Evaluation):
        return write_evaluation(evaluation, folder)
    return write_label_evaluation(evaluation, folder)
