"""Bootstrap intervals over subjects: studentised for means, BCa for any other figure.

Everything is seeded, and vectorised over means (rows), so that the tests simulate the promised coverage with this very
code.

The work of resampling grows with the subjects times the resamples. Above `MANY_SUBJECTS` it is spared, without loss:
what the resamples would give is then known to far better than their own Monte Carlo error, for means from the first
two terms of its expansion, for other figures from smaller resamples whose spread is scaled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neuroage.analysis.metrics import AgeMetric, checked_ages
from neuroage.errors import DataError

Array = NDArray[np.float64]

LEVEL = 0.95  # the field's custom
N_RESAMPLES = 10_000  # the Monte Carlo error of a 95% bound is then about 2% of the interval's half width
N_METRIC_RESAMPLES = 2_000  # BCa evaluates Python functions; Efron & Tibshirani 1993, ch. 14, ask for 2,000
MINIMUM_SUBJECTS = 5  # below this a bootstrap sees too few different resamples (35 at n = 4) to say anything
# Beyond, the expansion's error (order 1/n, some tenths of a percent of an interval's half width) lies below the Monte
# Carlo error of 10,000 resamples (about 2%).
MANY_SUBJECTS = 2_000
MOST_SKEW = 0.05  # skewness / √n up to which the expansion is trusted; what it leaves out is of the order of its square
BLOCK = 500_000  # numbers held at once while resampling: 4 MB of float64, which stays near the processor


class Interval(NamedTuple):
    """A figure with its interval; `low` and `high` are NaN where there are too few subjects to tell."""

    value: float
    low: float
    high: float


def mean_interval(
    values: ArrayLike, *, level: float = LEVEL, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> Interval:
    """Bound a mean over subjects by the studentised bootstrap, which keeps its promise for skewed values too.

    Args:
        values: One value per subject, shape `(n_subjects,)`, finite.
        level: The share of such intervals that cover the true mean, 0 to 1.
        n_resamples: Bootstrap resamples.
        seed: Same seed, same interval.

    Returns:
        The mean with its bounds; NaN bounds below 5 subjects.

    Raises:
        DataError: When a value is missing or infinite.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 12 (bootstrap-t).
    """
    rows = finite_rows(np.atleast_1d(np.asarray(values, dtype=np.float64))[None])
    mean = float(rows.mean()) if rows.size else float("nan")
    low, high = mean_bounds(rows, level=level, n_resamples=n_resamples, seed=seed)
    return Interval(mean, float(low[0]), float(high[0]))


def mean_bounds(
    rows: ArrayLike, *, level: float = LEVEL, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> tuple[Array, Array]:
    """Bound many means at once: `mean_interval` for every row, all rows sharing the resampled subjects.

    Args:
        rows: Shape `(n_means, n_subjects)`, finite; a column is a subject.
        level: The share of such intervals that cover the true mean, 0 to 1.
        n_resamples: Bootstrap resamples.
        seed: Same seed, same bounds.

    Returns:
        Lower and upper bounds, each of shape `(n_means,)`. Above 2,000 subjects they come from the expansion of the
        bootstrap's distribution, except for rows so skewed that it may be wrong.

    Source: the expansion, Hall 1992, The Bootstrap and Edgeworth Expansion, section 2.6.
    """
    values = finite_rows(rows)
    n_rows, n = values.shape
    if n < MINIMUM_SUBJECTS:
        return np.full(n_rows, np.nan), np.full(n_rows, np.nan)
    mean = values.mean(axis=1)
    centred = values - mean[:, None]  # so that the second moments below lose no digits
    standard_error = centred.std(axis=1, ddof=1) / np.sqrt(n)
    tail = (1 - level) / 2
    quantiles, told = _expanded(centred, tail)
    rest = np.flatnonzero(~told)
    rows_at_once = max(1, BLOCK // n_resamples)
    for start in range(0, len(rest), rows_at_once):
        part = rest[start : start + rows_at_once]
        quantiles[:, part] = np.quantile(_studentised(centred[part], n_resamples, seed), [1 - tail, tail], axis=1)
    low, high = mean - quantiles * standard_error
    return low, high


def _expanded(centred: Array, tail: float) -> tuple[Array, NDArray[np.bool_]]:
    """Give the quantiles of t* at 1 − tail and tail, `(2, n_rows)`, and for which rows they may stand."""
    n_rows, n = centred.shape
    if n <= MANY_SUBJECTS:
        return np.empty((2, n_rows)), np.zeros(n_rows, dtype=bool)
    squares = np.square(centred)
    variance = squares.mean(axis=1)
    skewness = (squares * centred).mean(axis=1) / np.where(variance > 0, variance, 1.0) ** 1.5
    z = NormalDist().inv_cdf(1 - tail)
    shift = skewness * (2 * z**2 + 1) / (6 * np.sqrt(n))
    return np.stack([z - shift, -z - shift]), np.abs(skewness) / np.sqrt(n) <= MOST_SKEW


def _studentised(centred: Array, n_resamples: int, seed: int) -> Array:
    """Give t* = (resampled mean − mean) / resampled standard error, shape `(n_rows, n_resamples)`."""
    n = centred.shape[1]
    pieces = []
    for counts in _resample_counts(n, n_resamples, seed):
        mean = centred @ counts.T / n
        variance = np.square(centred) @ counts.T / n - np.square(mean)
        error = np.sqrt(np.maximum(variance, 0.0) / (n - 1))
        # A resample of one subject only has no spread; it is as extreme as a resample can be, on its side.
        pieces.append(np.where(error > 1e-12, mean / np.maximum(error, 1e-12), np.sign(mean) * np.sqrt(n) * n))
    return np.concatenate(pieces, axis=1)


def _resample_counts(n: int, n_resamples: int, seed: int) -> Iterator[Array]:
    """Yield how often each subject was drawn, in blocks of shape `(n_resamples_in_block, n_subjects)`."""
    random = np.random.default_rng(seed)
    for size in block_sizes(n_resamples, n):
        drawn = random.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)


def metric_intervals(
    metrics: Mapping[str, AgeMetric],
    age: ArrayLike,
    predicted_age: ArrayLike,
    *,
    level: float = LEVEL,
    n_resamples: int = N_METRIC_RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """Bound any metric by the bias-corrected and accelerated (BCa) bootstrap over subjects.

    Args:
        metrics: Name to function `(age, predicted_age) -> float`.
        age: Real ages in years, shape `(n_subjects,)`.
        predicted_age: Predicted ages in years, same shape.
        level: The share of such intervals that cover the true figure, 0 to 1.
        n_resamples: Bootstrap resamples.
        seed: Same seed, same intervals.

    Returns:
        Name to interval; NaN bounds where the metric is undefined, or below 5 subjects. Above 2,000 subjects resamples
        are of 2,000 of them, and the distance of the bounds from the figure shrinks with √n, as that of every figure
        here does.

    Source: see `bca_bounds`; smaller resamples, Bickel, Götze and van Zwet 1997, Statistica Sinica 7, 1-31.
    """
    real, predicted = checked_ages(age, predicted_age)
    n, names = real.size, list(metrics)
    values = {name: metrics[name](real, predicted) for name in names}
    told = [name for name in names if np.isfinite(values[name])] if n >= MINIMUM_SUBJECTS else []
    random = np.random.default_rng(seed)
    drawn = min(n, MANY_SUBJECTS)
    shrink = np.sqrt(drawn / n)  # 1 for all but many subjects
    resamples = (random.integers(0, n, drawn) for _ in range(n_resamples if told else 0))
    resampled = np.array([[metrics[name](real[at], predicted[at]) for name in told] for at in resamples])
    some = np.arange(n) if drawn == n else np.sort(random.permutation(n)[:drawn])
    left_out = np.array([[metrics[name](real[at], predicted[at]) for name in told] for at in _all_but_one(some)])
    found = {name: Interval(values[name], float("nan"), float("nan")) for name in names}
    for column, name in enumerate(told):
        value = values[name]
        low, high = bca_bounds(value, resampled[:, column], left_out[:, column], n_subjects=drawn, level=level)
        if drawn < n:
            low, high = (value + (end - value) * shrink for end in (low, high))
        found[name] = Interval(value, low, high)
    return found


def _all_but_one(subjects: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    """Yield the subjects that stay when one is left out; above 200 subjects, when one of 200 blocks is."""
    for block in np.array_split(np.arange(len(subjects)), min(len(subjects), 200)):
        yield np.delete(subjects, block)


def bca_bounds(
    value: float, resampled: Array, left_out: Array, *, n_subjects: int, level: float = LEVEL
) -> tuple[float, float]:
    """Turn resampled figures into BCa bounds, widened for few subjects.

    Plain BCa bounds cover 92–94% at 50 subjects (simulated); the widening, from normal to t quantiles and by
    √(n / (n − 1)), brings that to 93–96% and vanishes with many.

    Args:
        value: The figure on all subjects.
        resampled: The figure on each bootstrap resample; undefined ones (NaN) are left out.
        left_out: The figure with each subject, or block of subjects, left out.
        n_subjects: Subjects behind it.
        level: The share of such intervals that cover the true figure, 0 to 1.

    Returns:
        Lower and upper bound; NaN when hardly any resample is defined.

    Source: Efron 1987, doi:10.1080/01621459.1987.10478410; the widening is Hesterberg's 2015,
    doi:10.1080/00031305.2015.1089789.
    """
    from scipy.special import stdtrit

    resampled, left_out = resampled[np.isfinite(resampled)], left_out[np.isfinite(left_out)]
    if resampled.size < 100 or left_out.size < 2:
        return float("nan"), float("nan")
    normal = NormalDist()
    below = float((resampled < value).mean() + 0.5 * (resampled == value).mean())
    bias = normal.inv_cdf(min(max(below, 1e-6), 1 - 1e-6))
    pull = left_out.mean() - left_out
    cubed = float(np.square(pull).sum() ** 1.5)
    acceleration = float((pull**3).sum() / (6 * cubed)) if cubed > 0 else 0.0
    width = float(np.sqrt(n_subjects / (n_subjects - 1)) * stdtrit(n_subjects - 1, (1 + level) / 2))
    ends = [normal.cdf(bias + z / (1 - acceleration * z)) for z in (bias - width, bias + width)]
    low, high = np.quantile(resampled, ends)
    return float(low), float(high)


def finite_rows(rows: ArrayLike) -> Array:
    """Turn values into `(n_rows, n_subjects)`, or say what is wrong with them."""
    values = np.asarray(rows, dtype=np.float64)
    if values.ndim != 2:
        raise DataError(f"values of shape {values.shape}", expected="one value per subject")
    if not np.isfinite(values).all():
        raise DataError("a value that is missing or infinite", expected="one finite value per subject")
    return values


def block_sizes(total: int, width: int) -> Iterator[int]:
    """Split `total` draws into blocks of at most `BLOCK` numbers when each draw is `width` wide."""
    at_once = max(1, BLOCK // max(width, 1))
    for start in range(0, total, at_once):
        yield min(at_once, total - start)
