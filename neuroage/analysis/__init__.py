"""What it means: tables of predictions in; metrics, comparisons, figures and pages out. No torch, no pixels."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuroage.analysis.calibration import Calibration, fit_calibration
    from neuroage.analysis.compare import Comparison, compare_models
    from neuroage.analysis.cross_domain import CrossDomain, cross_domain_table
    from neuroage.analysis.cross_domain_report import write_cross_domain
    from neuroage.analysis.curves import loss_curves, overfitting_onset, overlay_curves
    from neuroage.analysis.evaluation import Evaluation, evaluate
    from neuroage.analysis.label_calibration import LabelCalibration, fit_label_calibration
    from neuroage.analysis.label_evaluation import LabelEvaluation, evaluate_labels
    from neuroage.analysis.label_factor_report import factor_bars, write_factor_view
    from neuroage.analysis.label_factors import FactorView, factor_view, factors_of
    from neuroage.analysis.label_report import write_label_evaluation
    from neuroage.analysis.label_thresholds import choose_thresholds, predicted_labels
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
    "cross_domain": ("CrossDomain", "cross_domain_table"),
    "cross_domain_report": ("write_cross_domain",),
    "curves": ("loss_curves", "overfitting_onset", "overlay_curves"),
    "evaluation": ("Evaluation", "evaluate"),
    "label_calibration": ("LabelCalibration", "fit_label_calibration"),
    "label_evaluation": ("LabelEvaluation", "evaluate_labels"),
    "label_factor_report": ("factor_bars", "write_factor_view"),
    "label_factors": ("FactorView", "factor_view", "factors_of"),
    "label_report": ("write_label_evaluation",),
    "label_thresholds": ("choose_thresholds", "predicted_labels"),
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
    "CrossDomain",
    "Evaluation",
    "FactorView",
    "LabelCalibration",
    "LabelEvaluation",
    "age_metrics",
    "choose_thresholds",
    "compare_models",
    "cross_domain_table",
    "describe_metric",
    "evaluate",
    "evaluate_labels",
    "factor_bars",
    "factor_view",
    "factors_of",
    "fit_calibration",
    "fit_label_calibration",
    "loss_curves",
    "mean_interval",
    "metric_intervals",
    "overfitting_onset",
    "overlay_curves",
    "paired_difference",
    "predicted_labels",
    "sign_flip_p",
    "smallest_detectable_difference",
    "write_comparison",
    "write_cross_domain",
    "write_evaluation",
    "write_factor_view",
    "write_label_evaluation",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
