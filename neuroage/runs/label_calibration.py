"""The calibration of a run about labels: temperatures, offsets and thresholds, fitted on validation predictions."""

from __future__ import annotations

from math import isnan

import pandas as pd

from neuroage.analysis.label_calibration import LabelCalibration, fit_label_calibration
from neuroage.analysis.label_thresholds import choose_thresholds, predicted_labels
from neuroage.errors import InfeasibleError, UsageError
from neuroage.files import write_json
from neuroage.runs.calibration import read_content
from neuroage.runs.run import Run

VALIDATION = "validation"


def calibrate_labels(run: Run) -> LabelCalibration:
    """Fit temperatures and offsets on a run's validation predictions, and keep them in the run.

    Thresholds that were chosen before are chosen anew by the same rule. Figures are from then on given for the test
    set, where there is one.

    Raises:
        UsageError: The run is about ages, or has no predictions.
    """
    _refuse_others(run)
    before = read_label_calibration(run)
    found = fit_label_calibration(run.predictions, run.target, set_name=VALIDATION)
    _keep(run, found)
    return choose_run_thresholds(run, before.rule) if before and before.rule else found


def choose_run_thresholds(run: Run, rule: str) -> LabelCalibration:
    """Choose, on a run's validation predictions, from which probability on a label is predicted, and keep it.

    Args:
        run: About binary labels or several; calibrated where it shall be.
        rule: "sensitivity>=0.9", "specificity>=0.95", "f1" or "youden".

    Raises:
        UsageError: No such rule; the run is about ages or classes, or has no predictions.
        InfeasibleError: No label gets a threshold.
    """
    _refuse_others(run)
    known = read_label_calibration(run)
    thresholds = choose_thresholds(run.predictions, run.target, rule, set_name=VALIDATION, calibration=known)
    if all(isnan(threshold) for threshold in thresholds.values()):
        raise InfeasibleError(
            f"No label of {run.folder} gets a threshold by {rule!r}",
            expected="validation scans with and without a label, and probabilities that meet the rule",
            fix="Choose another rule, or make a split with more validation subjects.",
        )
    labels = tuple(run.target["labels"])
    plain = LabelCalibration(run.target["kind"], labels, (1.0,) * len(labels), fitted_on=VALIDATION)
    found = (known or plain).with_thresholds(thresholds, rule)
    _keep(run, found)
    return found


def read_label_calibration(run: Run) -> LabelCalibration | None:
    """Give the calibration of a run about labels; None where it has none."""
    content = read_content(run)
    return LabelCalibration.from_dict(content) if content else None


def apply_label_calibration(table: pd.DataFrame, run: Run) -> pd.DataFrame:
    """Bring probabilities to what they promise, where the run is calibrated, and say what is predicted."""
    calibration = read_label_calibration(run)
    if calibration is None:
        decided = predicted_labels(table, run.target)
    else:
        decided = predicted_labels(calibration.apply(table), run.target, calibration.thresholds)
    answers = [name for name in decided.columns if str(name).startswith("predicted_")]
    refused = table[f"probability_{run.target['labels'][0]}"].isna()  # which is no answer, not a no
    return decided.assign(**{name: decided[name].mask(refused) for name in answers})


def _refuse_others(run: Run) -> None:
    if run.target["kind"] == "age":
        raise UsageError(f"{run.folder} predicts ages", expected="a run that predicts labels")
    if not run.scored:
        raise UsageError(f"{run.folder} is not complete", fix="Finish it with `neuroage train … --resume`.")


def _keep(run: Run, calibration: LabelCalibration) -> None:
    write_json(run.calibration_path, calibration.to_dict())
    run.update(calibrated_on=VALIDATION)
