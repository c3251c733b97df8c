"""Which of two is nearer, and could these subjects have told: paired differences, permutation, smallest detectable.

Subjects are the unit: hand in one value per subject, never one per scan. Everything is seeded, and vectorised
over comparisons (rows), so that the promised share of false alarms is simulated in the tests with this very code.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neuroage.analysis.bootstrap import (
    MANY_SUBJECTS,
    MINIMUM_SUBJECTS,
    Array,
    Interval,
    bca_bounds,
    block_sizes,
    finite_rows,
    mean_bounds,
    mean_interval,
    metric_intervals,
)
from neuroage.analysis.metrics import checked_ages

MOST_PEAKED = 0.01  # Σd⁴ / (Σd²)² up to which the expansion is trusted: no few subjects decide the sum
N_FLIPS = 10_000  # the smallest p that can be reported is 1/10,001


@dataclass(frozen=True)
class PairedDifference:
    """The difference in mean absolute error between two models on the same subjects.

    `difference` is MAE(a) − MAE(b) in years: below 0, a is nearer. `low` and `high` bound it (95%, studentised
    bootstrap over subjects), `p` is the two-sided paired sign-flip p, `sd` the standard deviation of the per-subject
    differences, and `smallest_detectable` the true difference that this many subjects would have shown with 80% power.
    """

    n: int
    difference: float
    low: float
    high: float
    p: float
    sd: float
    smallest_detectable: float

    def to_dict(self) -> dict[str, float]:
        """Give the figures by name."""
        return asdict(self)


def sign_flip_p(differences: ArrayLike, *, n_flips: int = N_FLIPS, seed: int = 0) -> float:
    """Test whether paired differences centre on 0, by flipping their signs at random (two-sided).

    Args:
        differences: One per subject, shape `(n_subjects,)`, finite; a − b on the same subject.
        n_flips: Random flips, B.
        seed: Same seed, same p.

    Returns:
        (b + 1) / (B + 1), where b flips gave a mean at least as far from 0; 1 when every difference is 0; NaN for no
        subject. Above 2,000 subjects b is what B flips give on average, from the expansion of their distribution,
        unless few subjects decide the sum.

    Source: Phipson & Smyth 2010, Permutation p-values should never be zero, doi:10.2202/1544-6115.1585; the expansion,
    Hall 1992, The Bootstrap and Edgeworth Expansion, section 2.3.
    """
    return float(
        sign_flip_ps(np.atleast_1d(np.asarray(differences, dtype=np.float64))[None], n_flips=n_flips, seed=seed)[0]
    )


def sign_flip_ps(rows: ArrayLike, *, n_flips: int = N_FLIPS, seed: int = 0) -> Array:
    """Test many comparisons at once: `sign_flip_p` for every row of shape `(n_comparisons, n_subjects)`."""
    values = finite_rows(rows)
    n_rows, n = values.shape
    if n == 0:
        return np.full(n_rows, np.nan)
    # Sums in another order differ in the last bits; a tie has to count as a tie.
    reached = np.abs(values.sum(axis=1)) - 1e-9 * np.abs(values).sum(axis=1)
    share, told = _expanded_share(values, reached)
    as_far = share * n_flips
    rest = np.flatnonzero(~told)
    as_far[rest] = 0
    random = np.random.default_rng(seed)
    for size in block_sizes(n_flips if len(rest) else 0, max(n, n_rows)):
        signs = random.integers(0, 2, (size, n)).astype(np.float64) * 2 - 1
        as_far[rest] += (np.abs(values[rest] @ signs.T) >= reached[rest, None]).sum(axis=1)
    return np.asarray((as_far + 1) / (n_flips + 1))


def _expanded_share(values: Array, reached: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Give the share of all flips whose sum is as far from 0 as `reached`, and for which rows it may stand."""
    n_rows, n = values.shape
    if n <= MANY_SUBJECTS:
        return np.zeros(n_rows), np.zeros(n_rows, dtype=bool)
    from scipy.special import ndtr

    squares = np.square(values)
    variance = squares.sum(axis=1)
    variance = np.where(variance > 0, variance, 1.0)
    peaked = np.square(squares).sum(axis=1) / variance**2
    z = np.maximum(reached, 0) / np.sqrt(variance)
    # Signs are symmetric: no term of third order; the fourth cumulant of the sum is −2 Σd⁴.
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    tails = 2 * (ndtr(-z) - density * peaked * (z**3 - 3 * z) / 12)
    return np.clip(tails, 0, 1), peaked <= MOST_PEAKED


def paired_difference(
    age: ArrayLike, predicted_a: ArrayLike, predicted_b: ArrayLike, *, seed: int = 0
) -> PairedDifference:
    """Compare two models' absolute errors on the same subjects: difference in MAE, interval, p, smallest detectable.

    The pairing is what makes it sharp: a subject who is hard for both models cancels. Swapping a and b flips the sign
    of `difference` and swaps and flips the bounds, exactly.

    Args:
        age: Real ages in years, shape `(n_subjects,)`.
        predicted_a: First model's predictions in years, same shape.
        predicted_b: Second model's predictions in years, same shape.
        seed: Same seed, same figures.

    Returns:
        The figures, in years.

    Example:
        >>> found = paired_difference([20, 30, 40, 50, 60], [21, 31, 39, 50, 61], [25, 38, 47, 44, 66])
        >>> round(found.difference, 1), found.high < 0
        (-5.6, True)
    """
    real, a = checked_ages(age, predicted_a)
    _, b = checked_ages(age, predicted_b)
    differences = np.abs(a - real) - np.abs(b - real)
    interval = mean_interval(differences, seed=seed)
    sd = float(differences.std(ddof=1)) if real.size > 1 else float("nan")
    return PairedDifference(
        n=int(real.size),
        difference=interval.value,
        low=interval.low,
        high=interval.high,
        p=sign_flip_p(differences, seed=seed),
        sd=sd,
        smallest_detectable=smallest_detectable_difference(sd, int(real.size)),
    )


def smallest_detectable_difference(sd: float, n: int, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Say how large a true mean difference must be for n subjects to show it.

    Args:
        sd: Standard deviation of the paired differences, in their unit.
        n: Subjects.
        alpha: Two-sided share of false alarms.
        power: The chance of seeing a difference of this size.

    Returns:
        (t[1 − alpha/2] + t[power]) · sd / √n with n − 1 degrees of freedom; NaN below 5 subjects.

    Source: Julious 2004, Sample sizes for clinical trials with normal data, doi:10.1002/sim.1783.

    Example:
        >>> round(smallest_detectable_difference(sd=5.0, n=50), 2)
        2.02
    """
    if n < MINIMUM_SUBJECTS or not np.isfinite(sd):
        return float("nan")
    from scipy.special import stdtrit  # scipy.stats takes half a second to import for the same quantile

    factor = float(stdtrit(n - 1, 1 - alpha / 2) + stdtrit(n - 1, power))
    return factor * sd / float(np.sqrt(n))


__all__ = [
    "Interval",
    "PairedDifference",
    "bca_bounds",
    "mean_bounds",
    "mean_interval",
    "metric_intervals",
    "paired_difference",
    "sign_flip_p",
    "sign_flip_ps",
    "smallest_detectable_difference",
]
