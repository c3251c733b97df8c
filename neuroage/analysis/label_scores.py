"""Figures of labels as flat entries with their bounds; what an evaluation's tables, page and JSON are made of."""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan
from typing import Any

import numpy as np

from neuroage.analysis.bootstrap import Interval
from neuroage.analysis.label_intervals import (
    Resampled,
    ResampledFigures,
    bound,
    bound_difference,
    bound_mean,
    carriers,
)
from neuroage.analysis.label_metrics import METRICS, expected_calibration_error, mean_defined
from neuroage.analysis.label_table import BINARY, MULTICLASS, MULTILABEL, LabelScans

# Metrics that the paired differences are about; the first is the headline.
HEADLINES = {BINARY: ("auroc", "balanced_accuracy"), MULTILABEL: ("auroc",), MULTICLASS: ("f1", "balanced_accuracy")}
_NO_THRESHOLD = "no threshold meets the rule"
_NEEDS = {
    "auroc": ("n_positive", "n_negative"),
    "auprc": ("n_positive", "n_negative"),
    "f1": ("n_positive",),
    "sensitivity": ("n_positive",),
    "specificity": ("n_negative",),
    "accuracy": ("n",),
    "brier": ("n",),
    "ece": ("n",),
}


def score_labels(
    scans: LabelScans, name: str, figures: Mapping[str, Resampled], thresholds: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """Give each label's counts and metrics, with bounds.

    Args:
        scans: Truth and probabilities.
        name: The model.
        figures: Its metrics, one column per label.
        thresholds: Label to threshold; not shown for classes, whose answer is the most probable.

    Returns:
        Label to entry. Accuracy is left out for classes: against all others it flatters every rare class.
    """
    carried = carriers(scans.truth, scans.group)
    classes = scans.kind == MULTICLASS
    entries = {}
    for at, label in enumerate(scans.labels):
        truth, chance = scans.truth[:, at], scans.probabilities[name][:, at]
        n, n_positive = int((~np.isnan(truth)).sum()), int((truth == 1).sum())
        entry: dict[str, Any] = {"n": n, "n_positive": n_positive, "prevalence": n_positive / n if n else float("nan")}
        entry["threshold"] = None if classes else float(thresholds[label])
        for metric in METRICS:
            if classes and metric == "accuracy":
                continue
            entry |= _named(metric, bound(metric, _column(figures[metric], at), int(carried[metric][at])))
        if not classes:
            entry["accuracy_constant"] = max(n_positive, n - n_positive) / n if n else float("nan")
        entry["ece"], entry["ece_chance"] = expected_calibration_error(truth, chance)
        entries[label] = entry
    return entries


def score_label_model(
    scans: LabelScans,
    name: str,
    figures: Mapping[str, Resampled],
    labels: Mapping[str, Mapping[str, Any]],
    kind: str,
    shown_as: str,
) -> dict[str, Any]:
    """Give a model's figures over all labels with bounds: one label's own, or means of what is defined.

    Args:
        scans: Truth and probabilities.
        name: The model.
        figures: Its metrics over labels.
        labels: Its entries per label.
        kind: "model" or "baseline".
        shown_as: How the page calls it.
    """
    entry: dict[str, Any] = {"kind": kind, "label": shown_as, "n_subjects": scans.n_subjects}
    entry |= {"n_groups": scans.n_groups, "n_labels": sum(not isnan(one["auroc"]) for one in labels.values())}
    for metric, figure in figures.items():
        n_carriers = overall_carriers(scans, metric)
        found = bound_mean(figure, n_carriers) if is_mean(scans, metric) else bound(metric, figure, n_carriers)
        entry |= _named(metric, found)
    entry["accuracy_constant"] = _constant_accuracy(scans, labels)
    for metric in ("prevalence", "ece", "ece_chance"):
        entry[metric] = float(mean_defined(np.array([one[metric] for one in labels.values()], dtype=np.float64)))
    if scans.kind == MULTICLASS:
        known = ~np.isnan(scans.truth).any(axis=1)
        chance, truth = scans.probabilities[name][known], scans.truth[known]
        right = (chance.argmax(axis=1) == truth.argmax(axis=1)).astype(np.float64)
        sure = chance.max(axis=1)
        entry["confidence_ece"], entry["confidence_ece_chance"] = expected_calibration_error(right, sure)
    return entry


def overall_carriers(scans: LabelScans, metric: str) -> int:
    """Count the groups that carry a figure over all labels: the label's own for one, else all that have an answer."""
    if scans.kind == BINARY:
        return int(carriers(scans.truth, scans.group)[metric][0])
    return len(np.unique(scans.group[~np.isnan(scans.truth).all(axis=1)]))


def is_mean(scans: LabelScans, metric: str) -> bool:
    """Whether a figure over all labels is a mean of theirs; the accuracy of classes is a share of scans."""
    return scans.kind != BINARY and not (scans.kind == MULTICLASS and metric == "accuracy")


def score_label_pair(scans: LabelScans, found: Mapping[str, ResampledFigures], a: str, b: str) -> list[dict[str, Any]]:
    """Give the paired differences a − b of two models in the headline metrics; above 0, a is better."""
    entries = []
    for metric in HEADLINES[scans.kind]:
        difference = found[a].overall[metric].minus(found[b].overall[metric])
        n_carriers = overall_carriers(scans, metric)
        bounds = (bound_mean if is_mean(scans, metric) else bound_difference)(difference, n_carriers)
        entries.append(
            {
                "a": a,
                "b": b,
                "metric": metric,
                "n_subjects": scans.n_subjects,
                "difference": bounds.value,
                "difference_low": bounds.low,
                "difference_high": bounds.high,
            }
        )
    return entries


def find_undefined(labels: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """List what is NaN, and why: one entry per label and reason."""
    entries = []
    for label, figures in labels.items():
        reasons: dict[str, list[str]] = {}
        for metric in (name for name in _NEEDS if name in figures and isnan(figures[name])):
            reasons.setdefault(_why(figures, metric), []).append(metric)
        entries += [{"label": label, "metrics": metrics, "why": why} for why, metrics in reasons.items()]
    return entries


def _why(figures: Mapping[str, Any], metric: str) -> str:
    counts = {**figures, "n_negative": figures["n"] - figures["n_positive"]}
    if not figures["n"]:
        return "no scan has an answer"
    missing = [count for count in _NEEDS[metric] if not counts[count]]
    if missing:
        return {"n_positive": "no positive scan", "n_negative": "no negative scan"}[missing[0]]
    return _NO_THRESHOLD


def _constant_accuracy(scans: LabelScans, labels: Mapping[str, Mapping[str, Any]]) -> float:
    """Give the accuracy of the best single answer given to every scan."""
    if scans.kind == MULTICLASS:
        counts = np.nansum(scans.truth, axis=0)
        return float(counts.max() / counts.sum()) if counts.sum() else float("nan")
    return float(mean_defined(np.array([one["accuracy_constant"] for one in labels.values()])))


def _column(figure: Resampled, at: int) -> Resampled:
    return Resampled(figure.value[at], figure.drawn[:, at], figure.left_out[:, at])


def _named(metric: str, found: Interval) -> dict[str, float]:
    low, high = (float(np.clip(end, 0.0, 1.0)) for end in (found.low, found.high))  # every metric here lies between
    return {metric: found.value, f"{metric}_low": low, f"{metric}_high": high}
