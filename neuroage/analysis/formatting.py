"""The one way in which figures are written: sentences, pages and pictures all ask here."""

from __future__ import annotations

import math
from typing import Any

from neuroage.analysis.metrics import age_metrics, describe_metric

NOTHING = "–"  # how an undefined figure looks
MINUS = "−"
# With fewer subjects the standard error of a mean absolute error is above 0.2 years, and a second decimal is noise.
_TWO_DECIMALS_FROM = 500

_SIGNED = {"difference", "difference_low", "difference_high", "gap_mean", "gap_mean_low", "gap_mean_high"}
_WITHOUT_YEARS = {"coverage", "level", "slope"}  # figures of a calibration; metrics say their own unit
_ACRONYMS = {"t1", "t2", "pd", "flair", "tof", "swi", "dwi", "ct", "mra"}


def format_figure(name: str, value: Any, n_subjects: int) -> str:
    """Write one figure as people read it.

    Args:
        name: What it is: the last part of its key, such as "mae", "p" or "n_subjects".
        value: The figure; None and NaN are undefined.
        n_subjects: Subjects behind it; 500 or more earn years a second decimal.

    Returns:
        Text with a true minus sign; "–" where undefined.

    Example:
        >>> format_figure("mae", 4.123, 50), format_figure("p", 0.00002, 50), format_figure("difference", -3.8, 50)
        ('4.1', '< 0.001', '−3.8')
    """
    if isinstance(value, str):
        return value
    if value is None or math.isnan(value):
        return NOTHING
    if isinstance(value, int):
        return f"{value:,}"
    if name == "p":
        return format_p(value)
    decimals = 2 if _has_no_years(name) or n_subjects >= _TWO_DECIMALS_FROM else 1
    return number(value, decimals, signed=name in _SIGNED)


def number(value: float, decimals: int, *, signed: bool = False) -> str:
    """Write a number with a true minus sign, and never as −0.0."""
    text = f"{abs(value):.{decimals}f}"
    if float(text) == 0:
        return text
    return (MINUS if value < 0 else "+" if signed else "") + text


def format_p(value: float) -> str:
    """Write a p: three decimals, "< 0.001" below."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def p_phrase(value: float) -> str:
    """Write "p < 0.001" or "p = 0.012"."""
    text = format_p(value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def label_of(name: str) -> str:
    """Give a model's name as people write it: modalities in capitals, all else as it is.

    Example:
        >>> label_of("tof"), label_of("ridge")
        ('TOF', 'ridge')
    """
    return name.upper() if name in _ACRONYMS else name


def _has_no_years(name: str) -> bool:
    metric = name.removesuffix("_low").removesuffix("_high")
    return metric in _WITHOUT_YEARS or (metric in age_metrics() and describe_metric(metric).unit != "years")
