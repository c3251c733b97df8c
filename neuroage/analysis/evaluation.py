"""One model on its held-out subjects, with the baselines beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from neuroage.analysis.calibration import Calibration
from neuroage.analysis.formatting import format_figure, label_of
from neuroage.analysis.scores import Scores, add_gaps, describe_ages, score_decades, score_model, score_pair
from neuroage.analysis.subjects import BASELINE, MODEL, align
from neuroage.analysis.uncertainty import calibrate_subjects, score_calibration, score_own_spread
from neuroage.analysis.verdict import baseline_sentence
from neuroage.errors import UsageError


@dataclass(frozen=True)
class Evaluation(Scores):
    """The figures of one model on one set, beside its baselines; made by `evaluate`.

    Attributes:
        name: The model's name, a key of `models`.
        n_scans: Scans behind the subjects.
        given: Name to the subjects that each table had; all figures are on the shared ones.
        calibration: Coverage of the intervals, and figures corrected for age bias, beside the raw ones in `models`;
            empty without a calibration.
        own_spread: How often the real age lies within the spread that the model itself predicts; empty without one.
    """

    name: str = "model"
    n_scans: int = 0
    given: dict[str, int] | None = None
    calibration: dict[str, Any] = field(default_factory=dict)
    own_spread: dict[str, Any] = field(default_factory=dict)

    @property
    def table(self) -> pd.DataFrame:
        """One row per model and baseline: metrics with their 95% bounds."""
        return self.metrics_table()

    def to_dict(self) -> dict[str, Any]:
        """Give every figure under its key; what evaluation.json holds and the page shows."""
        own = {"name": self.name, "n_scans": self.n_scans, "given": self.given or {}}
        uncertainty = {"calibration": self.calibration, "own_spread": self.own_spread}
        return {**own, **super().to_dict(), **uncertainty}


def evaluate(
    predictions: pd.DataFrame,
    baselines: Mapping[str, pd.DataFrame] | None = None,
    sets: Sequence[str] = ("validation",),
    seed: int = 0,
    *,
    name: str = "model",
    meta: Mapping[str, Any] | None = None,
    calibration: Calibration | None = None,
    across: bool = False,
) -> Evaluation:
    """Score a model on its held-out subjects, beside the baselines, with intervals and paired differences.

    Members are averaged per scan and scans per subject, so that a subject counts once however often it was scanned.

    Args:
        predictions: Columns scan_id, subject_id, age, predicted_age (years); set, fold and member where there are any.
        baselines: Name to predictions of the same kind, such as `{"mean": …, "ridge": …}`.
        sets: Sets to score. A table without a `set` column is scored whole.
        seed: Seed of the resamples; the same table and seed give the same figures.
        name: What the model is called in tables and on the page.
        meta: Kept with the figures. `selected_on="validation"` puts a notice on the page that the figure was chosen
            there.
        calibration: Of the model; its intervals and corrected figures are then scored beside the raw ones, which stay
            the headline.
        across: The scored subjects are those on whom the calibration was fitted: each is then treated by a fit on
            others.

    Returns:
        The evaluation; `to_dict()` and `table` hold the figures, ages in years.

    Raises:
        DataError: When a table lacks a column, a value is not finite, or no row belongs to `sets`.
        RefusedError: When a scored subject was also trained on, ages differ between tables, or no subject is shared.
        UsageError: When a baseline bears the model's name.
    """
    if name in (baselines or {}):
        raise UsageError(f"the model and a baseline are both called {name!r}", expected="different names")
    aligned = align({name: predictions, **(baselines or {})}, sets)
    age = aligned.table["age"].to_numpy()
    kinds = {other: MODEL if other == name else BASELINE for other in aligned.given}
    predicted = {other: aligned.table[f"predicted_age_{other}"].to_numpy() for other in kinds}
    models = {
        other: score_model(age, predicted[other], kind=kind, label=label_of(other), seed=seed)
        for other, kind in kinds.items()
    }
    pairs = [score_pair(age, predicted, name, other, seed) for other, kind in kinds.items() if kind == BASELINE]
    subjects = add_gaps(aligned.table, list(kinds))
    calibrated: dict[str, Any] = {}
    if calibration:
        subjects = subjects.join(calibrate_subjects(subjects, name, calibration, across=across))
        calibrated = score_calibration(subjects, calibration, across=across, seed=seed)
    spread = _own_spread(aligned.rows[name])
    if spread is not None:
        subjects["predicted_age_std"] = subjects["subject_id"].map(spread)
    return Evaluation(
        models=models,
        pairs=pairs,
        decades=score_decades(aligned.table, list(kinds)),
        ages=describe_ages(age),
        subjects=subjects,
        sets=tuple(sets),
        seed=seed,
        verdict=_verdict(name, models, pairs),
        meta=dict(meta or {}),
        name=name,
        n_scans=int(aligned.rows[name]["scan_id"].nunique()),
        given=aligned.given,
        calibration=calibrated,
        own_spread=score_own_spread(subjects, name) if spread is not None else {},
    )


def _own_spread(rows: pd.DataFrame) -> pd.Series | None:
    """Give the standard deviation that the model predicts for each subject, years, averaged over members and scans."""
    if "predicted_age_std" not in rows.columns or not np.isfinite(rows["predicted_age_std"]).all():
        return None
    scans = rows.groupby(["subject_id", "scan_id"])["predicted_age_std"].mean()
    return scans.groupby("subject_id").mean()


def _verdict(name: str, models: Mapping[str, Mapping[str, Any]], pairs: list[dict[str, Any]]) -> str:
    figures = models[name]
    n = int(figures["n_subjects"])
    low, high = (format_figure("mae", figures[f"mae_{end}"], n) for end in ("low", "high"))
    said = (
        f"On {n} subjects, {figures['label']} is {format_figure('mae', figures['mae'], n)} years off on average"
        f" (95% interval {low} to {high})."
    )
    return f"{said} {baseline_sentence(name, pairs, models)}".strip()
