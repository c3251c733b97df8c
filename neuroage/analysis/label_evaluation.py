"""One model's labels on its held-out scans, with the baselines beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import Any

import numpy as np
import pandas as pd

from neuroage.analysis.bootstrap import N_METRIC_RESAMPLES
from neuroage.analysis.formatting import label_of
from neuroage.analysis.label_calibration import LabelCalibration
from neuroage.analysis.label_intervals import resample_figures
from neuroage.analysis.label_metrics import LabelScorer
from neuroage.analysis.label_scores import (
    HEADLINES,
    find_undefined,
    score_label_model,
    score_label_pair,
    score_labels,
)
from neuroage.analysis.label_table import MULTICLASS, Array, LabelScans, align_labels
from neuroage.analysis.label_thresholds import THRESHOLD, decide, most_probable
from neuroage.analysis.label_verdict import label_verdict
from neuroage.analysis.subjects import BASELINE, MODEL
from neuroage.errors import UsageError

N_RESAMPLES = N_METRIC_RESAMPLES


@dataclass(frozen=True)
class LabelEvaluation:
    """The figures of one model's labels on one set, beside its baselines; made by `evaluate_labels`.

    Attributes:
        name: The model's name, a key of `models` and `labels`.
        kind: "binary", "multilabel" or "multiclass".
        label_names: Labels or classes, in order.
        models: Name to `{"kind", "label", "n_labels", "auroc", "auroc_low", "auroc_high", "f1", …, "accuracy",
            "accuracy_constant", "balanced_accuracy", …}`: the one label's figures, or the mean over labels.
        labels: Name to label to `{"n", "n_positive", "prevalence", "threshold", "auroc", "auroc_low", …, "ece",
            "ece_chance"}`; a class is scored against all others.
        pairs: Paired differences from each baseline, `{"a", "b", "metric", "difference", "difference_low",
            "difference_high", …}`; above 0 the model is better.
        undefined: `{"label", "metrics", "why"}`: what is NaN, and left out of the means over labels.
        confusion: Counts of scans, true class down, predicted class across; None without classes.
        scans: Truth and probabilities behind the figures; what the pictures are drawn from.
        decided: Name to decisions, 1, 0 or NaN, shape `(n_scans, n_labels)`.
        sets: Sets that were scored.
        seed: Seed of every resample.
        verdict: What the figures say, in words.
        meta: Whatever the caller wants on the page.
        calibration: Temperatures and thresholds that were applied to the model, as a dictionary; empty without.
    """

    name: str
    kind: str
    label_names: tuple[str, ...]
    models: dict[str, dict[str, Any]]
    labels: dict[str, dict[str, dict[str, Any]]]
    pairs: list[dict[str, Any]]
    undefined: list[dict[str, Any]]
    confusion: pd.DataFrame | None
    scans: LabelScans
    decided: dict[str, Array]
    sets: tuple[str, ...]
    seed: int
    verdict: str
    meta: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)

    @property
    def headline(self) -> str:
        """The metric that the verdict is about: "auroc"; for classes "f1", its mean over classes."""
        return HEADLINES[self.kind][0]

    @property
    def n_scans(self) -> int:
        """Scans scored."""
        return len(self.scans.scans)

    @property
    def n_subjects(self) -> int:
        """Subjects behind them."""
        return self.scans.n_subjects

    @property
    def selected_on(self) -> str:
        """The scored set on which something about the model was chosen or fitted, or ""."""
        chosen = (str(self.meta.get("selected_on") or ""), str(self.calibration.get("fitted_on") or ""))
        return next((name for name in chosen if name in self.sets), "")

    @property
    def table(self) -> pd.DataFrame:
        """One row per label of the model; with several labels a last row, "macro", the means of what is defined."""
        return self.labels_table().query("model == @self.name").drop(columns="model").reset_index(drop=True)

    def labels_table(self) -> pd.DataFrame:
        """As `table`, for the model and every baseline, named in a column `model`."""
        rows = []
        aside = ("kind", "label", "n_subjects", "n_groups")
        for name, by_label in self.labels.items():
            over_all = {key: value for key, value in self.models[name].items() if key not in aside}
            of_labels = [{"model": name, "label": label, **figures} for label, figures in by_label.items()]
            if len(of_labels) > 1:
                rows += [*of_labels, {"model": name, "label": "macro", "n": self.n_scans, **over_all}]
            else:
                rows.append({**over_all, **of_labels[0]})
        table = pd.DataFrame(rows).astype({"n_positive": "Int64", "n_labels": "Int64"})  # counts that some rows lack
        first = ["model", "label", "n", "n_positive", "prevalence"]
        return table[first + [column for column in table.columns if column not in first]]

    @property
    def subjects(self) -> pd.DataFrame:
        """One row per scan: who, `target_<label>`, the model's `probability_<label>` and its decision."""
        found, names = self.scans, self.label_names
        parts = {
            "target": found.truth,
            "probability": found.probabilities[self.name],
            "predicted": self.decided[self.name],
        }
        columns: dict[str, Any] = {}
        if self.kind == MULTICLASS:
            columns["target_label"] = _class_of(parts.pop("target"), names)
            columns["predicted_label"] = _class_of(parts.pop("predicted"), names)
        for what, values in parts.items():
            columns |= {f"{what}_{label}": values[:, at] for at, label in enumerate(names)}
        return pd.concat([found.scans, pd.DataFrame(columns)], axis=1)

    def to_dict(self) -> dict[str, Any]:
        """Give every figure under its key; what evaluation.json holds and the page shows."""
        counts = None if self.confusion is None else self.confusion.to_numpy().tolist()
        return {
            "name": self.name,
            "kind": self.kind,
            "label_names": list(self.label_names),
            "headline": self.headline,
            "n_scans": self.n_scans,
            "n_subjects": self.n_subjects,
            "n_groups": self.scans.n_groups,
            "given": self.scans.given,
            "sets": list(self.sets),
            "seed": self.seed,
            "selected_on": self.selected_on,
            "verdict": self.verdict,
            "models": self.models,
            "pairs": self.pairs,
            "labels": self.labels,
            "undefined": self.undefined,
            "confusion": counts,
            "calibration": self.calibration,
            "meta": self.meta,
        }


def evaluate_labels(
    predictions: pd.DataFrame,
    target: Mapping[str, Any],
    baselines: Mapping[str, pd.DataFrame] | None = None,
    sets: Sequence[str] = ("validation",),
    seed: int = 0,
    *,
    name: str = "model",
    meta: Mapping[str, Any] | None = None,
    calibration: LabelCalibration | None = None,
) -> LabelEvaluation:
    """Score a model's labels on held-out scans, beside the baselines, with intervals and paired differences.

    Members and folds are averaged per scan. A scan counts once; what is resampled is the group (the subject, where the
    table names no group), so that twenty slices of one patient are not twenty patients.

    Args:
        predictions: Columns scan_id, subject_id, and per label `target_<label>` (1, 0, NaN unknown) and
            `probability_<label>`; for classes `target_label` and `probability_<class>`; set, fold, member and group
            where there are any.
        target: `{"kind": "binary" | "multilabel" | "multiclass", "labels": [...]}`.
        baselines: Name to predictions of the same kind, such as `{"majority": …, "linear": …}`.
        sets: Sets to score. A table without a `set` column is scored whole.
        seed: Seed of the resamples; the same table and seed give the same figures.
        name: What the model is called in tables and on the page.
        meta: Kept with the figures. `selected_on="validation"` puts a notice on the page that the figure was chosen
            there.
        calibration: Temperatures and thresholds of the model, fitted on other scans; hand in raw predictions with it.
            Baselines keep their probabilities and the threshold 0.5.

    Returns:
        The evaluation. Undefined figures are NaN and listed, never 0; means over labels leave them out.

    Raises:
        DataError: A column is missing, a value is no probability or no 0, 1 or blank, or no row belongs to `sets`.
        RefusedError: A scored group was also trained on, targets differ between tables, or no scan is shared.
        UsageError: The target cannot be read, or a baseline bears the model's name.
    """
    if name in (baselines or {}):
        raise UsageError(f"the model and a baseline are both called {name!r}", expected="different names")
    scans = align_labels({name: predictions, **(baselines or {})}, target, sets)
    raw = scans.probabilities[name]
    if calibration:
        scans.probabilities[name] = calibration.recalibrate(raw, scans.labels)
    thresholds = {name: dict(calibration.thresholds) if calibration else {}}
    decided = {
        other: most_probable(chance)
        if scans.kind == MULTICLASS
        else decide(chance, scans.labels, thresholds.get(other, {}))
        for other, chance in scans.probabilities.items()
    }
    scorers = {
        other: LabelScorer(scans.truth, chance, decided[other], scans.group)
        for other, chance in scans.probabilities.items()
    }
    found = resample_figures(
        scorers, scans.kind, scans.n_groups, n_scans=len(scans.scans), n_resamples=N_RESAMPLES, seed=seed
    )
    kinds = {other: MODEL if other == name else BASELINE for other in scorers}
    labels, models = {}, {}
    for other, kind in kinds.items():
        at = {label: thresholds.get(other, {}).get(label, THRESHOLD) for label in scans.labels}
        labels[other] = score_labels(scans, other, found[other].labels, at)
        models[other] = score_label_model(scans, other, found[other].overall, labels[other], kind, label_of(other))
    pairs = [
        pair
        for other, kind in kinds.items()
        if kind == BASELINE
        for pair in score_label_pair(scans, found, name, other)
    ]
    undefined = find_undefined(labels[name])
    return LabelEvaluation(
        name=name,
        kind=scans.kind,
        label_names=scans.labels,
        models=models,
        labels=labels,
        pairs=pairs,
        undefined=undefined,
        confusion=_confusion(scans.truth, decided[name], scans.labels) if scans.kind == MULTICLASS else None,
        scans=scans,
        decided=decided,
        sets=tuple(sets),
        seed=seed,
        verdict=label_verdict(name, scans.kind, models, labels[name], pairs, len(scans.scans)),
        meta=dict(meta or {}),
        calibration=_describe(calibration, scans, raw) if calibration else {},
    )


def _confusion(truth: Array, decided: Array, classes: Sequence[str]) -> pd.DataFrame:
    known = ~np.isnan(truth).any(axis=1)
    counts = truth[known].T @ decided[known]
    names = list(classes)
    return pd.DataFrame(
        counts.round().astype(int), index=pd.Index(names, name="true"), columns=pd.Index(names, name="predicted")
    )


def _class_of(one_hot: Array, classes: Sequence[str]) -> Any:
    names = np.array(classes, dtype=object)[np.nan_to_num(one_hot).argmax(axis=1)]
    names[np.isnan(one_hot).any(axis=1)] = None
    return names


def _describe(calibration: LabelCalibration, scans: LabelScans, raw: Array) -> dict[str, Any]:
    """Give what was applied, with the Brier score of the raw probabilities for comparison."""
    squared = np.square(raw - scans.truth)
    raw_brier = {
        label: float(np.nanmean(squared[:, at])) if np.isfinite(squared[:, at]).any() else float("nan")
        for at, label in enumerate(scans.labels)
    }
    told = [value for value in raw_brier.values() if not isnan(value)]
    mean = float(np.mean(told)) if told else float("nan")
    return {**calibration.to_dict(), "notes": calibration.notes, "raw_brier": mean, "raw_brier_by_label": raw_brier}
