"""How uniform a set of ages is, and how uniform sets come out by chance."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from neuroage.cohort.assignment import Floats

N_RANDOM_SPLITS, N_LEAST_SPLITS = 10_000, 1_000
# Ages drawn in all; reached at sets of 2,000. Larger sets come out ever more alike, so that fewer of them tell as much.
MAX_DRAWN = 20_000_000
_MAX_EXACT = 300  # beyond, the matrix grows and the limit law is right to the second digit
_MAX_CELLS = 4_000_000  # ages held at once while random splits are drawn: 32 MB


def w1_years(ages: Floats, low: float, high: float) -> float:
    """Give W1 in years: the mean distance of the sorted ages (n,) from the midpoints of n equal parts of the range.

    Example:
        >>> w1_years(np.array([25.0, 35.0]), 20.0, 40.0)
        0.0
    """
    n = len(ages)
    return float(np.abs(np.sort(ages) - (low + (np.arange(n) + 0.5) * (high - low) / n)).mean())


def ks_uniform(ages: Floats, low: float, high: float) -> tuple[float, float]:
    """Give the Kolmogorov-Smirnov distance of ages (n,) from uniform over low to high, and its p value.

    The p value is exact up to n = 300 and from the limit law beyond.

    Source: Marsaglia, Tsang and Wang, J Stat Softw 8 (2003) 18; Stephens, J R Stat Soc B 32 (1970) 115.
    """
    n = len(ages)
    share = (np.sort(ages) - low) / (high - low)
    steps = np.arange(n + 1) / n
    distance = float(max((steps[1:] - share).max(), (share - steps[:-1]).max()))
    if n <= _MAX_EXACT:
        return distance, float(np.clip(1 - _ks_below(distance, n), 0, 1))
    root = np.sqrt(n)
    return distance, _limit_law(distance * float(root + 0.12 + 0.11 / root))


def _ks_below(distance: float, n: int) -> float:
    """Give the probability of a smaller distance, by the n-th power of Marsaglia's matrix."""
    k = int(n * distance) + 1
    size, h = 2 * k - 1, k - n * distance
    row, column = np.indices((size, size))
    lag = row - column + 1
    matrix = (lag >= 0).astype(float)
    powers = h ** np.arange(1, size + 1)
    matrix[:, 0] -= powers
    matrix[-1, :] -= powers[::-1]
    matrix[-1, 0] += max(2 * h - 1, 0.0) ** size
    matrix /= np.array([math.factorial(min(max(step, 0), 170)) for step in range(size + 1)], dtype=float)[
        np.maximum(lag, 0)
    ]
    # The n-th power times n! / n^n, with 1 / e in every factor so that neither over- nor underflows.
    power = np.linalg.matrix_power(matrix / math.e, n)[k - 1, k - 1]
    return float(power * math.exp(math.lgamma(n + 1) - n * math.log(n) + n))


def _limit_law(x: float) -> float:
    if x < 0.2:  # the series needs ever more terms; the true value is 1 to twelve digits
        return 1.0
    k = np.arange(1, 101)
    return float(np.clip(2 * np.sum((-1.0) ** (k - 1) * np.exp(-2 * k**2 * x**2)), 0, 1))


def random_w1(ages: Floats, n: int, low: float, high: float, rng: np.random.Generator) -> Floats:
    """Give W1 in years of random sets of n among the sorted ages (N,): what a split without planning reaches.

    There are 10,000 sets; above n = 2,000 fewer, down to 1,000.
    """
    target = low + (np.arange(n) + 0.5) * (high - low) / n
    per_block = max(1, _MAX_CELLS // max(n, len(ages) if len(ages) <= 4 * n else n))
    values: list[Floats] = []
    n_splits = max(N_LEAST_SPLITS, min(N_RANDOM_SPLITS, MAX_DRAWN // n))
    for start in range(0, n_splits, per_block):
        rows = min(per_block, n_splits - start)
        drawn = _random_sets(len(ages), n, rows, rng)
        values.append(np.abs(ages[drawn] - target).mean(axis=1))
    return np.concatenate(values)


def _random_sets(n_all: int, n: int, n_sets: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw sets without repetition, each sorted, (n_sets, n); what is drawn twice is drawn again."""
    if n_all <= 4 * n:
        keys = rng.random((n_sets, n_all), dtype=np.float32)
        return np.sort(np.argpartition(keys, n - 1, axis=1)[:, :n], axis=1).astype(np.int64)
    drawn = np.sort(rng.integers(n_all, size=(n_sets, n)), axis=1)
    rows = np.arange(n_sets)
    while len(rows):
        again = np.zeros((len(rows), n), dtype=bool)
        again[:, 1:] = drawn[rows, 1:] == drawn[rows, :-1]
        rows, again = rows[again.any(axis=1)], again[again.any(axis=1)]
        block = drawn[rows]
        block[again] = rng.integers(n_all, size=int(again.sum()))
        drawn[rows] = np.sort(block, axis=1)
    return drawn
