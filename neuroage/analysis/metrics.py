"""Figures of merit for predicted ages: one function each, found by itself.

To add a metric, write one function here whose first two parameters are `age` and `predicted_age`, and say its unit and
its better direction on a line of its docstring (`Unit: years. Better: lower.`). Every table, interval and page picks it
up.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neuroage.errors import DataError, UsageError, did_you_mean

Vector = NDArray[np.float64]
AgeMetric = Callable[[ArrayLike, ArrayLike], float]

# Averaging equal numbers in another order moves the last bits; a spread below this share of the size is no spread.
_NO_SPREAD = 1e-9


class MetricNote(NamedTuple):
    """What a metric says of itself: `name`, `title`, `summary`, `unit` ("years", "none"), `better` ("lower", …)."""

    name: str
    title: str
    summary: str
    unit: str
    better: str


def mae(age: ArrayLike, predicted_age: ArrayLike) -> float:
    """Mean absolute error: the mean distance between predicted and real age.

    Unit: years. Better: lower.

    It depends on the age range, so it compares models on the same subjects, not cohorts (de Lange 2022, PMC9188975).
    """
    real, predicted = checked_ages(age, predicted_age)
    return float(np.abs(predicted - real).mean()) if real.size else float("nan")


def rmse(age: ArrayLike, predicted_age: ArrayLike) -> float:
    """Root mean squared error: like the mean absolute error, but large misses weigh more.

    Unit: years. Better: lower.
    """
    real, predicted = checked_ages(age, predicted_age)
    return float(np.sqrt(np.square(predicted - real).mean())) if real.size else float("nan")


def median_ae(age: ArrayLike, predicted_age: ArrayLike) -> float:
    """Median absolute error: half of the subjects are nearer than this.

    Unit: years. Better: lower.
    """
    real, predicted = checked_ages(age, predicted_age)
    return float(np.median(np.abs(predicted - real))) if real.size else float("nan")


def pearson_r(age: ArrayLike, predicted_age: ArrayLike) -> float:
    """Pearson r: the linear correlation of predicted with real age; undefined (NaN) when either is constant.

    Unit: none. Better: higher.
    """
    real, predicted = checked_ages(age, predicted_age)
    if _is_constant(real) or _is_constant(predicted):
        return float("nan")
    real, predicted = real - real.mean(), predicted - predicted.mean()
    return float(np.clip(real @ predicted / np.sqrt((real @ real) * (predicted @ predicted)), -1.0, 1.0))


def r2(age: ArrayLike, predicted_age: ArrayLike) -> float:
    """R²: the share of the age variance that is explained; below 0 is worse than the mean of these very subjects.

    Unit: none. Better: higher.

    It is 1 − Σ gap² / Σ (age − mean age)², not the square of r; undefined (NaN) when all ages are equal.
    """
    real, predicted = checked_ages(age, predicted_age)
    if _is_constant(real):
        return float("nan")
    return float(1.0 - np.square(predicted - real).sum() / np.square(real - real.mean()).sum())


def gap_mean(age: ArrayLike, predicted_age: ArrayLike) -> float:
    """Mean gap: how much too old (above 0) or too young (below 0) the predictions are on average.

    Unit: years. Better: nearer 0.
    """
    real, predicted = checked_ages(age, predicted_age)
    return float((predicted - real).mean()) if real.size else float("nan")


def gap_sd(age: ArrayLike, predicted_age: ArrayLike) -> float:
    """Gap spread: the standard deviation (n − 1) of predicted − real age; undefined (NaN) below two subjects.

    Unit: years. Better: lower.
    """
    real, predicted = checked_ages(age, predicted_age)
    return float((predicted - real).std(ddof=1)) if real.size > 1 else float("nan")


def gap_slope(age: ArrayLike, predicted_age: ArrayLike) -> float:
    """Gap slope: how the gap changes with age; below 0 the young are guessed too old and the old too young.

    Unit: years per year. Better: nearer 0.

    The least-squares slope of gap on age; undefined (NaN) when all ages are equal. Always predicting one age gives −1.
    Source: regression dilution in brain age, Le 2018, doi:10.3389/fnagi.2018.00317.
    """
    real, predicted = checked_ages(age, predicted_age)
    if _is_constant(real):
        return float("nan")
    centred = real - real.mean()
    return float(centred @ (predicted - real) / (centred @ centred))


def checked_ages(age: ArrayLike, predicted_age: ArrayLike) -> tuple[Vector, Vector]:
    """Turn two lists of years into two float vectors, or say what is wrong with them.

    Args:
        age: Real ages in years, shape `(n_subjects,)`, finite.
        predicted_age: Predicted ages in years, the same shape, finite.

    Returns:
        Both as float64 vectors.

    Raises:
        DataError: When they are not vectors of one length, or a value is missing or infinite.
    """
    try:
        real, predicted = np.asarray(age, dtype=np.float64), np.asarray(predicted_age, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"ages that are not numbers ({error})", expected="ages in years") from error
    if real.ndim != 1 or real.shape != predicted.shape:
        raise DataError(
            f"ages of shape {real.shape} and predicted ages of shape {predicted.shape}",
            expected="two lists of the same length, one value per subject",
        )
    for name, values in (("age", real), ("predicted_age", predicted)):
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values))[0])
            raise DataError(
                f"{name} is {values[row]} in position {row}",
                expected="a finite age in years for every subject",
                fix="Leave out subjects without an age, and look at what made the prediction.",
            )
    return real, predicted


def age_metrics() -> dict[str, AgeMetric]:
    """Find every metric of this module, in the order in which they are written.

    Returns:
        Name to function `(age, predicted_age) -> float`; a figure that is undefined comes back as NaN, never as 0.

    Example:
        >>> round(age_metrics()["mae"]([20, 40], [25, 38]), 2)
        3.5
    """
    return {
        name: function
        for name, function in vars(sys.modules[__name__]).items()
        if inspect.isfunction(function)
        and function.__module__ == __name__
        and name != checked_ages.__name__
        and list(inspect.signature(function).parameters)[:2] == ["age", "predicted_age"]
    }


def describe_metric(name: str) -> MetricNote:
    """Read a metric's title, meaning, unit and better direction from its docstring.

    Args:
        name: One of `age_metrics()`.

    Returns:
        The note; `unit` and `better` as the docstring spells them.

    Raises:
        UsageError: When there is no such metric.

    Example:
        >>> describe_metric("mae").unit
        'years'
    """
    known = age_metrics()
    if name not in known:
        raise UsageError(f"no metric {name!r}", expected=did_you_mean(name, known))
    text = inspect.getdoc(known[name]) or ""
    unit = re.search(r"Unit: (.+?)\. Better: (.+?)\.", text)
    title, _, summary = text.partition("\n")[0].partition(": ")
    return MetricNote(name, title, summary.rstrip("."), *(unit.groups() if unit else ("", "")))


def _is_constant(values: Vector) -> bool:
    return values.size < 2 or bool(np.ptp(values) <= _NO_SPREAD * max(1.0, float(np.abs(values).max())))
