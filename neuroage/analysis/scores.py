"""What an evaluation and a comparison share: figures per model, paired differences, decades, the ages behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from neuroage.analysis.bootstrap import N_METRIC_RESAMPLES, Interval, mean_interval, metric_intervals
from neuroage.analysis.formatting import label_of
from neuroage.analysis.metrics import age_metrics
from neuroage.analysis.statistics import paired_difference

# Metrics that are the mean of one value per subject get the studentised bootstrap, which covers best; the others get
# BCa.
_MEANS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"mae": np.abs, "gap_mean": np.asarray}


@dataclass(frozen=True)
class Scores:
    """Figures on one set of subjects; the shared part of `Evaluation` and `Comparison`.

    Attributes:
        models: Name to `{"kind", "label", "mae", "mae_low", "mae_high", …}`; kind is model, fusion or baseline. Years.
        pairs: Paired differences in MAE, each `{"a", "b", "difference", "difference_low", "difference_high", "p", …}`.
        decades: One entry per age decade: `{"decade", "label", "n", "mae": {name: …}, "gap_mean": {name: …}}`.
        ages: `{"min", "max", "mean", "sd", "range", "uniform_mean_mae"}` of the subjects, years.
        subjects: One row per subject: age, predictions and gaps side by side.
        sets: Sets that were scored.
        seed: Seed of every resample.
        verdict: What the figures say, in words.
        meta: Whatever the caller wants on the page.
    """

    models: dict[str, dict[str, Any]]
    pairs: list[dict[str, Any]]
    decades: list[dict[str, Any]]
    ages: dict[str, float]
    subjects: pd.DataFrame
    sets: tuple[str, ...]
    seed: int
    verdict: str
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def n_subjects(self) -> int:
        """Subjects behind every figure."""
        return len(self.subjects)

    @property
    def selected_on(self) -> str:
        """The scored set on which something about a model was chosen (`meta["selected_on"]`), or ""."""
        selected = str(self.meta.get("selected_on") or "")
        return selected if selected in self.sets else ""

    def names(self, *kinds: str) -> list[str]:
        """Names of the models of these kinds, in order; of all when no kind is named."""
        return [name for name, figures in self.models.items() if not kinds or figures["kind"] in kinds]

    def predicted(self, name: str) -> np.ndarray:
        """Predicted ages of one model in years, one per row of `subjects`."""
        return self.subjects[f"predicted_age_{name}"].to_numpy(dtype=np.float64)

    def to_dict(self) -> dict[str, Any]:
        """Give every figure under its key; what the JSON file holds and the page shows."""
        return {
            "n_subjects": self.n_subjects,
            "sets": list(self.sets),
            "seed": self.seed,
            "selected_on": self.selected_on,
            "verdict": self.verdict,
            "ages": self.ages,
            "models": self.models,
            "pairs": self.pairs,
            "decades": self.decades,
            "meta": self.meta,
        }

    def metrics_table(self) -> pd.DataFrame:
        """One row per model: its metrics with their bounds."""
        return pd.DataFrame([{"model": name, **figures} for name, figures in self.models.items()])

    def pairs_table(self) -> pd.DataFrame:
        """One row per pair of models."""
        return pd.DataFrame(self.pairs)

    def decades_table(self) -> pd.DataFrame:
        """One row per decade: n, and `mae_<name>` and `gap_mean_<name>` per model."""
        return pd.DataFrame(
            [
                {"decade": row["decade"], "label": row["label"], "n": row["n"]}
                | {f"{figure}_{name}": value for figure in ("mae", "gap_mean") for name, value in row[figure].items()}
                for row in self.decades
            ]
        )


def score_model(age: np.ndarray, predicted_age: np.ndarray, *, kind: str, label: str, seed: int) -> dict[str, Any]:
    """Give every metric with its 95% bounds as flat entries `mae`, `mae_low`, `mae_high`, …; `mae_se`: standard error.

    Args:
        age: Real ages in years, one per subject.
        predicted_age: Predicted ages in years, same shape.
        kind: "model", "fusion" or "baseline".
        label: How the page calls it.
        seed: Same seed, same bounds.
    """
    gap = predicted_age - age
    metrics = age_metrics()
    others = {name: metric for name, metric in metrics.items() if name not in _MEANS}
    found = metric_intervals(others, age, predicted_age, n_resamples=N_METRIC_RESAMPLES, seed=seed)
    for name, value_of in _MEANS.items():
        found[name] = mean_interval(value_of(gap), seed=seed)
    floor = max(found["mae"].low, 0.0) if np.isfinite(found["mae"].low) else found["mae"].low
    found["mae"] = Interval(found["mae"].value, floor, found["mae"].high)
    entry: dict[str, Any] = {"kind": kind, "label": label, "n_subjects": len(age)}
    entry["mae_se"] = float(np.abs(gap).std(ddof=1) / np.sqrt(len(age))) if len(age) > 1 else float("nan")
    for name in metrics:
        entry |= {name: found[name].value, f"{name}_low": found[name].low, f"{name}_high": found[name].high}
    return entry


def score_pair(age: np.ndarray, predictions: Mapping[str, np.ndarray], a: str, b: str, seed: int) -> dict[str, Any]:
    """Give the paired difference in MAE, a − b, as one flat entry."""
    found = paired_difference(age, predictions[a], predictions[b], seed=seed)
    return {
        "a": a,
        "b": b,
        "n_subjects": found.n,
        "difference": found.difference,
        "difference_low": found.low,
        "difference_high": found.high,
        "p": found.p,
        "sd": found.sd,
        "smallest_detectable": found.smallest_detectable,
    }


def score_decades(table: pd.DataFrame, names: list[str]) -> list[dict[str, Any]]:
    """Give n, MAE and mean gap per age decade; weighted by n the decades' MAEs average to the whole MAE."""
    entries = []
    for decade, part in table.groupby("decade", sort=True):
        gaps = {name: (part[f"predicted_age_{name}"] - part["age"]).to_numpy() for name in names}
        start = int(str(decade))
        entries.append(
            {
                "decade": start,
                "label": f"{start}–{start + 9}",
                "n": len(part),
                "mae": {name: float(np.abs(gap).mean()) for name, gap in gaps.items()},
                "gap_mean": {name: float(gap.mean()) for name, gap in gaps.items()},
            }
        )
    return entries


def describe_ages(age: np.ndarray) -> dict[str, float]:
    """Describe the ages; `uniform_mean_mae` is what predicting the mean gives on a uniform range, a quarter of it."""
    width = float(np.ptp(age))
    return {
        "min": float(age.min()),
        "max": float(age.max()),
        "mean": float(age.mean()),
        "sd": float(age.std(ddof=1)) if len(age) > 1 else float("nan"),
        "range": width,
        "uniform_mean_mae": width / 4,
    }


def add_gaps(table: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Add `gap_<name>` (predicted − real age, years) for every model."""
    gaps = {f"gap_{name}": table[f"predicted_age_{name}"] - table["age"] for name in names}
    return pd.concat([table, pd.DataFrame(gaps, index=table.index)], axis=1)


def label_models(names: list[str]) -> dict[str, str]:
    """Give each model the name that people read."""
    return {name: label_of(name) for name in names}
