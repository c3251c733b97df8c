"""Probabilities that mean what they say: temperature and offset of each label's logit, fitted on validation scans."""

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
CLIP = 1e-7  # float32 tells no probability nearer to 1 from 1
SMALLEST = 1e-38  # float32 tells smaller ones from 0; cut off any higher, sure answers would lose their order
SPAN = 20.0  # temperatures searched: 1/20 to 20, far beyond the 1 to 3 that networks need
# Spread of the log temperature that is expected before a scan is seen: mostly 0.4 to 2.7. Of none, 0.3 and 0.5, the one
# of least held-out log loss with 5 to 50 positives (simulated, see docs/explanation/label-metrics.md).
LOG_TEMPERATURE_SD = 0.5


@dataclass(frozen=True)
class LabelCalibration:
    """Temperatures and offsets that change probabilities, and the thresholds that turn them into decisions.

    The logit of a label, ln(p / (1 − p)), becomes logit / temperature + offset.

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
        offsets: One per label, in logits: −1 divides the odds by e, 0 changes nothing. Empty for classes, and where
            only temperatures were fitted.
    """

    kind: str
    labels: tuple[str, ...]
    temperatures: tuple[float, ...]
    fitted: tuple[dict[str, Any], ...] = ()
    fitted_on: str = "validation"
    n_scans: int = 0
    thresholds: dict[str, float] = field(default_factory=dict)
    rule: str = ""
    offsets: tuple[float, ...] = ()

    @property
    def notes(self) -> list[str]:
        """What could not be fitted, and why: one sentence each."""
        stays = "temperature stays 1" if self.kind == MULTICLASS else "probabilities stay as they are"
        unfitted = [f"{entry['label']}: {stays}, {entry['note']}." for entry in self.fitted if entry["note"]]
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
        offsets = self.offsets or (0.0,) * len(self.labels)
        by_label = dict(zip(self.labels, zip(self.temperatures, offsets, strict=True), strict=True))
        temperature, offset = np.array([by_label[label] for label in labels]).T
        return _moved(probabilities, temperature, offset)

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
        tuples = {
            name: tuple(content[name]) for name in ("labels", "temperatures", "fitted", "offsets") if name in content
        }
        return cls(**{**content, **tuples, "thresholds": thresholds})


def fit_label_calibration(
    predictions: pd.DataFrame, target: Mapping[str, Any], *, set_name: str = "validation"
) -> LabelCalibration:
    """Fit temperatures and offsets by the likelihood of the answers, on scans that the model was not trained on.

    Of binary and multilabel targets each label's logit gets both: logit / temperature + offset. A model that saw rare
    positives weighed up (`imbalance`) gives them odds that are too high by a factor; the offset takes it back, which no
    temperature can. Classes share one temperature, so that their order stays. The order of scans by a label's
    probability stays, too, and with it the AUROC.

    Few positives leave the temperature uncertain, so it is drawn towards 1 (a normal prior on its logarithm, standard
    deviation 0.5), which matters below about 30 positives; the offset is free.

    Args:
        predictions: As `evaluate_labels` takes them; members and folds are averaged per scan first.
        target: Kind and labels.
        set_name: The set to fit on. A table without a `set` column is taken whole.

    Returns:
        The calibration. A label with fewer than 5 positives or 5 negatives keeps its probabilities; classes with fewer
        than 5 right or wrong answers, or whose likelihood has no best temperature between 1/20 and 20, keep theirs.
        `notes` says so.

    Raises:
        DataError: No row belongs to the set, or the table is wrong.
        RefusedError: Scans of the set were also trained on.

    Source: both, Platt 1999, Probabilistic Outputs for Support Vector Machines, in Advances in Large Margin
    Classifiers; temperature, Guo 2017, arXiv 1706.04599; odds after weighing, Saerens 2002,
    doi:10.1162/089976602753284446.
    """
    kind, labels = read_target(target)
    scans = align_labels({"model": predictions}, target, (set_name,))
    truth, chance = scans.truth, scans.probabilities["model"]
    if kind == MULTICLASS:
        temperature, about = _fit_classes(truth, chance)
        temperatures, offsets, fitted = (temperature,), (), (about,)
    else:
        fits = [_fit_label(label, truth[:, at], chance[:, at]) for at, label in enumerate(labels)]
        temperatures, offsets, fitted = (tuple(part) for part in zip(*fits, strict=True))
    return LabelCalibration(
        kind=kind,
        labels=labels,
        temperatures=temperatures,
        fitted=fitted,
        fitted_on=set_name,
        n_scans=len(scans.scans),
        offsets=offsets,
    )


def _fit_label(label: str, truth: Array, chance: Array) -> tuple[float, float, dict[str, Any]]:
    known = ~np.isnan(truth)
    real, chance = truth[known], chance[known]
    n_positive = int(real.sum())
    note = _too_few(n_positive, len(real) - n_positive, "positives", "negatives")
    temperature, offset = (1.0, 0.0) if note else _best_line(real, chance)
    about = {"label": label, "n": len(real), "n_positive": n_positive, "note": note}
    for when, values in (("before", chance), ("after", _moved(chance, temperature, offset))):
        about |= {
            f"nll_{when}": _minus_log(np.where(real == 1, values, 1 - values)),
            f"brier_{when}": float(np.square(values - real).mean()) if len(real) else float("nan"),
            f"ece_{when}": expected_calibration_error(real, values)[0],
        }
    return temperature, offset, about


def _best_line(real: Array, chance: Array) -> tuple[float, float]:
    """Give the temperature and offset of the logit that are most probable after seeing the answers."""
    from scipy.optimize import minimize
    from scipy.special import expit

    logits = _logit(chance)

    def loss(at: Array) -> tuple[float, Array]:
        slope, offset = np.exp(-at[0]), at[1]
        moved = slope * logits + offset
        off = expit(moved) - real
        prior = at[0] / LOG_TEMPERATURE_SD**2
        value = (np.logaddexp(0, moved) - real * moved).sum() + prior * at[0] / 2
        return value / len(real), np.array([prior - slope * (off * logits).sum(), off.sum()]) / len(real)

    bounds = [(-log(SPAN), log(SPAN)), (None, None)]  # else a first step too long overflows
    found = minimize(
        loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-13, "gtol": 1e-9}
    )
    return float(np.exp(found.x[0])), float(found.x[1])


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

    note = _too_few(n_yes, n_no, yes, no)
    if note:
        return 1.0, note
    span = log(SPAN)
    found = minimize_scalar(lambda power: loss(float(np.exp(power))), bounds=(-span, span), method="bounded")
    if abs(found.x) > 0.99 * span:
        return 1.0, f"for the likelihood has no best value between 1/{SPAN:.0f} and {SPAN:.0f}"
    return float(np.exp(found.x)), ""


def _too_few(n_yes: int, n_no: int, yes: str, no: str) -> str:
    if min(n_yes, n_no) >= FEWEST_EACH:
        return ""
    return f"for there are {n_yes} {yes} and {n_no} {no}, and {FEWEST_EACH} of each are needed"


def _logit(probability: Array) -> Array:
    from scipy.special import logit

    return np.asarray(logit(np.clip(probability, SMALLEST, 1 - CLIP)))


def _moved(probability: Array, temperature: float | Array, offset: float | Array) -> Array:
    from scipy.special import expit

    changed = expit(_logit(probability) / temperature + offset)
    untouched = (np.asarray(temperature) == 1) & (np.asarray(offset) == 0)
    return np.where(untouched, probability, changed)


def _softened_classes(probability: Array, temperature: float) -> Array:
    from scipy.special import softmax

    if temperature == 1:
        return probability
    return np.asarray(softmax(np.log(np.clip(probability, SMALLEST, 1.0)) / temperature, axis=1))


def _minus_log(probability: Array) -> float:
    return float(-np.log(np.clip(probability, CLIP, 1.0)).mean()) if probability.size else float("nan")
