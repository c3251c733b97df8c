"""From probabilities to decisions: thresholds chosen by a rule on validation scans."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from neuroage.analysis.label_table import MULTICLASS, Array, align_labels, read_target
from neuroage.errors import DataError, UsageError

if TYPE_CHECKING:
    from neuroage.analysis.label_calibration import LabelCalibration

THRESHOLD = 0.5  # what a calibrated probability says is as likely as not
RULES = ("sensitivity>=X", "specificity>=X", "f1", "youden")


class ThresholdRule(NamedTuple):
    """A rule: `goal` is sensitivity, specificity, f1 or youden; `least` the share asked for, NaN for the last two."""

    goal: str
    least: float


def read_rule(text: str) -> ThresholdRule:
    """Read a rule such as "sensitivity>=0.9", "specificity >= 0.95", "f1" or "youden".

    Raises:
        UsageError: Anything else, or a share that is not above 0 and at most 1.

    Example:
        >>> read_rule("sensitivity>=0.9")
        ThresholdRule(goal='sensitivity', least=0.9)
    """
    plain = str(text).strip().lower()
    if plain in ("f1", "youden"):
        return ThresholdRule(plain, float("nan"))
    found = re.fullmatch(r"(sensitivity|specificity)\s*>=\s*(\d*\.?\d+)", plain)
    if not found or not 0 < float(found[2]) <= 1:
        raise UsageError(
            f"threshold rule {text!r}",
            expected="one of " + ", ".join(repr(rule) for rule in RULES) + ", with X above 0 and at most 1",
            fix='Write for example "sensitivity>=0.9".',
        )
    return ThresholdRule(found[1], float(found[2]))


def choose_thresholds(
    table: pd.DataFrame,
    target: Mapping[str, Any],
    rule: str,
    *,
    set_name: str = "validation",
    calibration: LabelCalibration | None = None,
) -> dict[str, float]:
    """Choose, per label, the probability from which the answer is yes.

    - `sensitivity>=0.9`: the highest specificity among thresholds that find at least 90% of the positives.
    - `specificity>=0.95`: the highest sensitivity among thresholds that call at most 5% of the negatives.
    - `f1`: the highest F1. `youden`: the highest sensitivity + specificity − 1 (Youden 1950,
      doi:10.1002/1097-0142(1950)3:1<32::AID-CNCR2820030106>3.0.CO;2-3).

    Args:
        table: Predictions, as `evaluate_labels` takes them.
        target: Kind and labels; binary or multilabel.
        rule: One of the above.
        set_name: The set to choose on. A table without a `set` column is taken whole.
        calibration: Where predictions will be calibrated: applied first, after averaging members.

    Returns:
        Label to threshold, half-way between two observed probabilities. NaN where the rule cannot be met: without
        positives or negatives, or where the highest probability already belongs to too many negatives.

    Raises:
        UsageError: The rule cannot be read, or the target has classes: of those the most probable is taken.
        DataError: No row belongs to the set, or the table is wrong.
    """
    wanted = read_rule(rule)
    kind, labels = read_target(target)
    if kind == MULTICLASS:
        raise UsageError(
            "thresholds for classes",
            expected="a binary or multilabel target",
            fix="The most probable class is the answer; no threshold is needed.",
        )
    scans = align_labels({"model": table}, target, (set_name,))
    chance = scans.probabilities["model"]
    if calibration:
        chance = calibration.recalibrate(chance, labels)
    return {label: _threshold(scans.truth[:, at], chance[:, at], wanted) for at, label in enumerate(labels)}


def _threshold(truth: Array, chance: Array, rule: ThresholdRule) -> float:
    known = ~np.isnan(truth)
    real, chance = truth[known], chance[known]
    n_yes, n_no = int((real == 1).sum()), int((real == 0).sum())
    if not n_yes or not n_no:
        return float("nan")
    steps = np.unique(chance)[::-1]  # falling: each step calls more scans positive
    hits = n_yes - np.searchsorted(np.sort(chance[real == 1]), steps, side="left")
    false = n_no - np.searchsorted(np.sort(chance[real == 0]), steps, side="left")
    sensitivity, specificity = hits / n_yes, 1 - false / n_no
    allowed = np.ones(len(steps), dtype=bool)
    merit = specificity
    if rule.goal == "sensitivity":
        allowed = sensitivity >= rule.least - 1e-12
    elif rule.goal == "specificity":
        allowed, merit = specificity >= rule.least - 1e-12, sensitivity
    elif rule.goal == "f1":
        merit = 2 * hits / (hits + false + n_yes)
    else:
        merit = sensitivity + specificity - 1
    if not allowed.any():
        return float("nan")
    best = int(np.argmax(np.where(allowed, merit, -np.inf)))
    below = steps[best + 1] if best + 1 < len(steps) else 0.0
    return float((steps[best] + below) / 2)


def predicted_labels(
    table: pd.DataFrame, target: Mapping[str, Any], thresholds: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """Add the decisions to a table of probabilities.

    Args:
        table: A column `probability_<label>` per label or class.
        target: Kind and labels.
        thresholds: Label to threshold; 0.5 where none is named.

    Returns:
        The table with `predicted_<label>`, 1 or 0, NaN where the threshold is NaN; for classes with `predicted_label`,
        the most probable class.

    Raises:
        DataError: A probability column is missing.
    """
    kind, labels = read_target(target)
    columns = [f"probability_{label}" for label in labels]
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise DataError(f"a table without the column {missing[0]!r}", expected="columns " + ", ".join(columns))
    chance = table[columns].to_numpy(dtype=np.float64)
    if kind == MULTICLASS:
        return table.assign(predicted_label=np.array(labels, dtype=object)[chance.argmax(axis=1)])
    decided = decide(chance, labels, thresholds or {})
    return table.assign(**{f"predicted_{label}": decided[:, at] for at, label in enumerate(labels)})


def decide(probability: Array, labels: tuple[str, ...], thresholds: Mapping[str, float]) -> Array:
    """Answer 1 from the threshold on, else 0, NaN where the threshold is NaN; shape `(n_scans, n_labels)`."""
    at = np.array([thresholds.get(label, THRESHOLD) for label in labels], dtype=np.float64)
    return np.asarray(np.where(np.isnan(at), np.nan, probability >= at), dtype=np.float64)


def most_probable(probability: Array) -> Array:
    """Answer 1 for the most probable class of each row and 0 for the others, same shape."""
    return np.asarray(np.eye(probability.shape[1])[probability.argmax(axis=1)])
