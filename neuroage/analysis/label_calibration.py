"""Probabilities that mean what they say: one temperature per label, fitted on validation scans, with the thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isnan, log
from typing import Any

import numpy as np
import pandas as pd

from neuroage.analysis.label_metrics import expected_calibration_error
from neuroage.analysis.label_table import MULTICLASS, Array, align_labels, read_target
from neuroage.errors import DataError

FEWEST_EACH = 5  # positives and negatives, as for every bootstrap here (MINIMUM_SUBJECTS)
CLIP = 1e-7  # float32 tells no probability nearer to 0 or 1 from 0 or 1
SPAN = 20.0  # temperatures searched: 1/20 to 20, far beyond the 1 to 3 that networks need


@dataclass(frozen=True)
class LabelCalibration:
    """Temperatures that soften or sharpen probabilities, and the thresholds that turn them into decisions.

    Attributes:
        kind: "binary", "multilabel" or "multiclass".
        labels: Labels or classes; tables are aligned with them by name.
        temperatures: One per label; for classes one for all. Above 1 softens, below 1 sharpens, 1 changes nothing.
        fitted: Per temperature `{"label", "n", "n_positive", "note", "nll_before", "nll_after", "brier_before", …,
            "ece_before", …}`; the figures after are of the scans that the temperature was fitted on.
        fitted_on: The set that both were fitted on.
        n_scans: Its scans.
        thresholds: Label to the probability from which the answer is yes; 0.5 where none is named, NaN where the rule
            cannot be met. Classes need none: the most probable is taken.
        rule: How the thresholds were chosen, such as "sensitivity>=0.9".
    """

    kind: str
    labels: tuple[str, ...]
    temperatures: tuple[float, ...]
    fitted: tuple[dict[str, Any], ...] = ()
    fitted_on: str = "validation"
    n_scans: int = 0
    thresholds: dict[str, float] = field(default_factory=dict)
    rule: str = ""

    @property
    def notes(self) -> list[str]:
        """What could not be fitted, and why: one sentence each."""
        unfitted = [
            f"{entry['label']}: temperature stays 1, {entry['note']}." for entry in self.fitted if entry["note"]
        ]
        unmet = [label for label, threshold in self.thresholds.items() if isnan(threshold)]
        return unfitted + [f"{label}: no threshold meets {self.rule or 'the rule'}." for label in unmet]

    def recalibrate(self, probabilities: Array, labels: Sequence[str]) -> Array:
        """Change probabilities of shape `(n_scans, n_labels)`, columns named by `labels`.

        Raises:
            DataError: The labels are not those of this calibration.
        """
        if set(labels) != set(self.labels):
            other = sorted(set(labels) ^ set(self.labels))
            raise DataError(
                f"a calibration of {len(self.labels)} labels and probabilities of {len(labels)}, "
                f"{other[0]!r} in one of them only",
                expected="the same labels",
                fix="Use the calibration of this model.",
            )
        if self.kind == MULTICLASS:
            return _softened_classes(probabilities, self.temperatures[0])
        by_label = dict(zip(self.labels, self.temperatures, strict=True))
        return _softened(probabilities, np.array([by_label[label] for label in labels]))

    def apply(self, table: pd.DataFrame) -> pd.DataFrame:
        """Change the columns `probability_<label>` of a table; nothing else. Members are averaged before, not after.

        Raises:
            DataError: A column is missing.
        """
        columns = [f"probability_{label}" for label in self.labels]
        missing = [column for column in columns if column not in table.columns]
        if missing:
            raise DataError(f"a table without the column {missing[0]!r}", expected="columns " + ", ".join(columns))
        changed = self.recalibrate(table[columns].to_numpy(dtype=np.float64), self.labels)
        return table.assign(**dict(zip(columns, changed.T, strict=True)))

    def with_thresholds(self, thresholds: Mapping[str, float], rule: str = "") -> LabelCalibration:
        """Give the same calibration with these thresholds, which are for calibrated probabilities."""
        return replace(self, thresholds=dict(thresholds), rule=rule)

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> LabelCalibration:
        """Undo `to_dict`, also after JSON has turned NaN into null."""
        thresholds = {label: float("nan") if at is None else float(at) for label, at in content["thresholds"].items()}
        tuples = {name: tuple(content[name]) for name in ("labels", "temperatures", "fitted")}
        return cls(**{**content, **tuples, "thresholds": thresholds})


def fit_label_calibration(
    predictions: pd.DataFrame, target: Mapping[str, Any], *, set_name: str = "validation"
) -> LabelCalibration:
    """Fit temperatures by the likelihood of the answers, on scans that the model was not trained on.

    A temperature divides the logits: per label for binary and multilabel, one for all classes. The order of scans by a
    label's probability stays, so its AUROC does too.

    Args:
        predictions: As `evaluate_labels` takes them; members and folds are averaged per scan first.
        target: Kind and labels.
        set_name: The set to fit on. A table without a `set` column is taken whole.

    Returns:
        The calibration. A label with fewer than 5 positives or 5 negatives (classes: right or wrong answers), or one
        whose likelihood has no best temperature between 1/20 and 20, keeps 1, and `notes` says so.

    Raises:
        DataError: No row belongs to the set, or the table is wrong.
        RefusedError: Scans of the set were also trained on.

    Source: Guo 2017, On Calibration of Modern Neural Networks, arXiv 1706.04599.
    """
    kind, labels = read_target(target)
    scans = align_labels({"model": predictions}, target, (set_name,))
    truth, chance = scans.truth, scans.probabilities["model"]
    if kind == MULTICLASS:
        fits = [_fit_classes(truth, chance)]
    else:
        fits = [_fit_label(label, truth[:, at], chance[:, at]) for at, label in enumerate(labels)]
    return LabelCalibration(
        kind=kind,
        labels=labels,
        temperatures=tuple(temperature for temperature, _ in fits),
        fitted=tuple(about for _, about in fits),
        fitted_on=set_name,
        n_scans=len(scans.scans),
    )


def _fit_label(label: str, truth: Array, chance: Array) -> tuple[float, dict[str, Any]]:
    known = ~np.isnan(truth)
    real, chance = truth[known], chance[known]
    n_positive = int(real.sum())

    def loss(temperature: float) -> float:
        softened = _softened(chance, temperature)
        return _minus_log(np.where(real == 1, softened, 1 - softened))

    temperature, note = _best_temperature(loss, n_positive, len(real) - n_positive, "positives", "negatives")
    after = _softened(chance, temperature)
    about = {"label": label, "n": len(real), "n_positive": n_positive, "note": note}
    for when, values, at in (("before", chance, 1.0), ("after", after, temperature)):
        about |= {
            f"nll_{when}": loss(at),
            f"brier_{when}": float(np.square(values - real).mean()) if len(real) else float("nan"),
            f"ece_{when}": expected_calibration_error(real, values)[0],
        }
    return temperature, about


def _fit_classes(truth: Array, chance: Array) -> tuple[float, dict[str, Any]]:
    known = ~np.isnan(truth).any(axis=1)
    real, chance = truth[known], chance[known]
    right = (chance.argmax(axis=1) == real.argmax(axis=1)).astype(np.float64)

    def loss(temperature: float) -> float:
        return _minus_log(_softened_classes(chance, temperature)[real == 1])

    temperature, note = _best_temperature(
        loss, int(right.sum()), int((1 - right).sum()), "right answers", "wrong answers"
    )
    about = {"label": "all classes", "n": len(real), "n_positive": None, "note": note}
    for when, at in (("before", 1.0), ("after", temperature)):
        values = _softened_classes(chance, at)
        about |= {
            f"nll_{when}": loss(at),
            f"brier_{when}": float(np.square(values - real).sum(axis=1).mean()) if len(real) else float("nan"),
            f"ece_{when}": expected_calibration_error(right, values.max(axis=1))[0],
        }
    return temperature, about


def _best_temperature(loss: Any, n_yes: int, n_no: int, yes: str, no: str) -> tuple[float, str]:
    """Give the temperature of least loss, or 1 and why."""
    from scipy.optimize import minimize_scalar

    if min(n_yes, n_no) < FEWEST_EACH:
        return 1.0, f"for there are {n_yes} {yes} and {n_no} {no}, and {FEWEST_EACH} of each are needed"
    span = log(SPAN)
    found = minimize_scalar(lambda power: loss(float(np.exp(power))), bounds=(-span, span), method="bounded")
    if abs(found.x) > 0.99 * span:
        return 1.0, f"for the likelihood has no best value between 1/{SPAN:.0f} and {SPAN:.0f}"
    return float(np.exp(found.x)), ""


def _softened(probability: Array, temperature: float | Array) -> Array:
    from scipy.special import expit, logit

    changed = expit(logit(np.clip(probability, CLIP, 1 - CLIP)) / temperature)
    return np.where(np.asarray(temperature) == 1, probability, changed)


def _softened_classes(probability: Array, temperature: float) -> Array:
    from scipy.special import softmax

    if temperature == 1:
        return probability
    return np.asarray(softmax(np.log(np.clip(probability, CLIP, 1.0)) / temperature, axis=1))


def _minus_log(probability: Array) -> float:
    return float(-np.log(np.clip(probability, CLIP, 1.0)).mean()) if probability.size else float("nan")
