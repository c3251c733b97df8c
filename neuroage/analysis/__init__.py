"""What it means: tables of predictions in; metrics, comparisons, figures and pages out. No torch, no pixels."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuroage.analysis.calibration import Calibration, fit_calibration
    from neuroage.analysis.compare import Comparison, compare_models
    from neuroage.analysis.curves import loss_curves, overfitting_onset, overlay_curves
    from neuroage.analysis.evaluation import Evaluation, evaluate
    from neuroage.analysis.metrics import age_metrics, describe_metric
    from neuroage.analysis.report import write_comparison, write_evaluation
    from neuroage.analysis.statistics import (
        mean_interval,
        metric_intervals,
        paired_difference,
        sign_flip_p,
        smallest_detectable_difference,
    )

# Loaded on first use, so that the command line starts without pandas and matplotlib.
_HOMES = {
    "calibration": ("Calibration", "fit_calibration"),
    "compare": ("Comparison", "compare_models"),
    "curves": ("loss_curves", "overfitting_onset", "overlay_curves"),
    "evaluation": ("Evaluation", "evaluate"),
    "metrics": ("age_metrics", "describe_metric"),
    "report": ("write_comparison", "write_evaluation"),
    "statistics": (
        "mean_interval",
        "metric_intervals",
        "paired_difference",
        "sign_flip_p",
        "smallest_detectable_difference",
    ),
}

__all__ = [
    "Calibration",
    "Comparison",
    "Evaluation",
    "age_metrics",
    "compare_models",
    "describe_metric",
    "evaluate",
    "fit_calibration",
    "loss_curves",
    "mean_interval",
    "metric_intervals",
    "overfitting_onset",
    "overlay_curves",
    "paired_difference",
    "sign_flip_p",
    "smallest_detectable_difference",
    "write_comparison",
    "write_evaluation",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
