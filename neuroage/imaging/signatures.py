"""Signatures of pictures: a few bytes that stay nearly the same when a picture is rescaled, recompressed or brightened.

A picture becomes the directions of its edges: the slopes of a thumbnail of 64 × 64, cut at twice their mean so that no
single edge (the skull, an arm, a burnt-in letter) decides, and scaled to length 1. Two pictures are as alike as these
correlate. Black background has no slopes and counts for nothing; brightness and contrast cancel. The signature holds
the signs of 1,024 random projections of the slopes: the share of bits in which two signatures differ is the angle
between them over π, so pictures are compared without keeping them.

Source: random projections: Charikar 2002, doi:10.1145/509907.509965.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.stats import norm

from neuroage.errors import InfeasibleError

THUMBNAIL_SIDE = 64  # of 16, 32 and 64, the one that told different chests and heads apart best
CLIP = 2.0  # times the mean slope; 1 to 3 separate alike, no clipping far worse
ROUNDING = 1e-6  # of the brightest pixel; slopes below come from the running sums, not from the picture
N_BITS = 1024  # standard error of a correlation of 0.7: 0.03
SIEVE_BITS = 256  # compared first, for all pairs
SIEVE_SIGMAS = 3.0  # one pair in 700 that lies right on the limit is missed by the sieve, those well within it never
SIEVE_WORDS = SIEVE_BITS // 64
ROWS = 256  # compared with all later ones by one thread at a time; few enough to share the work evenly
MAX_PAIRS = 20_000_000  # half a gigabyte of pairs; far more than any set of different pictures has
N_SAMPLED = 20_000  # pairs of unrelated pictures; their 99th percentile is then known to 2 %
EXPECTED_FALSE_PAIRS = 0.1  # in the whole cohort
CLOSEST, FURTHEST = 0.15, 0.45  # copies at JPEG quality 30 lie within 0.12; heads of different people beyond 0.48

Bits = NDArray[np.uint8]
Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]


def measure_slopes(data: np.ndarray) -> NDArray[np.float32]:
    """Give the clipped slopes of a picture's thumbnail, of length 1.

    Args:
        data: Shape (C, H, W), any range; channels are averaged.

    Returns:
        Shape (7938,): 63 × 63 slopes along W, then as many along H; zeros for a picture without any edge.
    """
    gray = np.nan_to_num(np.asarray(data, dtype=np.float32).mean(axis=0))
    small = _average_parts(_average_parts(gray).T).T
    slopes = np.concatenate([np.diff(small, axis=1)[:-1].ravel(), np.diff(small, axis=0)[:, :-1].ravel()])
    level = CLIP * float(np.abs(slopes).mean())
    slopes = np.clip(slopes, -level, level)
    length = float(np.linalg.norm(slopes))
    if length <= ROUNDING * float(np.abs(gray).max()):
        return np.zeros(len(slopes), dtype=np.float32)
    return (slopes / length).astype(np.float32)


def _average_parts(data: np.ndarray) -> np.ndarray:
    """Average the rows of (n, m) in 64 equal parts, (64, m); a row that lies in two parts counts for both by its area.

    Running sums, not a product of matrices: several threads do this at once, and each product would start its own.
    """
    sums = np.zeros((len(data) + 1, data.shape[1]))
    np.cumsum(data, axis=0, out=sums[1:])
    edges = np.arange(THUMBNAIL_SIDE + 1) * len(data) / THUMBNAIL_SIDE
    row = np.minimum(edges.astype(np.int64), len(data) - 1)
    share = (edges - row)[:, None]
    parts = np.diff(sums[row] * (1 - share) + sums[row + 1] * share, axis=0)
    return np.asarray(parts * THUMBNAIL_SIDE / len(data))


@lru_cache(maxsize=1)
def _directions() -> NDArray[np.float32]:
    n_slopes = 2 * (THUMBNAIL_SIDE - 1) ** 2
    return np.random.default_rng(0x51).standard_normal((n_slopes, N_BITS), dtype=np.float32)


def sign_slopes(slopes: NDArray[np.float32]) -> Bits:
    """Turn slopes (N, 7938) into signatures (N, 128): 1,024 bits, eight in a byte."""
    return np.packbits(slopes @ _directions() > 0, axis=1)


def find_near_pairs(signatures: Bits, distance: float, threads: int = 1) -> Pairs:
    """Find all pairs of signatures whose pictures differ by `distance` or less.

    Every pair is compared by its first 256 bits and, where these are near enough, by all. That is N²/2 counts of 256
    bits: 5·10⁹ for 100,000 pictures, half a minute on one core. Memory is that of the pairs found.

    Args:
        signatures: Shape (N, 128).
        distance: 1 − correlation of the slopes, 0 (the same) to 1 (unrelated).
        threads: Parts of the work done at a time.

    Returns:
        First index, second index (larger) and distance of each pair, sorted by the indices.

    Raises:
        InfeasibleError: More than 20 million pairs.
    """
    share = np.arccos(1 - distance) / np.pi
    sieve = int(share * SIEVE_BITS + SIEVE_SIGMAS * np.sqrt(SIEVE_BITS * share * (1 - share)))
    words = np.ascontiguousarray(signatures).view(np.uint64)
    found, n_found = [], 0
    with ThreadPoolExecutor(threads) as pool:
        for part in pool.map(lambda start: _compare(words, start, sieve, int(share * N_BITS)), _starts(len(words))):
            found.append(part)
            n_found += len(part)
            if n_found > MAX_PAIRS:
                pool.shutdown(wait=False, cancel_futures=True)
                raise InfeasibleError(
                    f"more than {MAX_PAIRS:,} pairs of pictures are within a distance of {distance:.2f}",
                    fix="Choose a smaller distance.",
                )
    pairs = np.concatenate([np.empty((0, 3), np.int32), *found])
    return pairs[:, 0].astype(np.int64), pairs[:, 1].astype(np.int64), _distance_of_bits(pairs[:, 2])


def _starts(n: int) -> range:
    return range(0, n, ROWS)


def _compare(words: NDArray[np.uint64], start: int, sieve: int, most: int) -> NDArray[np.int32]:
    room = np.empty((ROWS * 16, 3), np.int32)
    n_found = _count_near(words, start, min(start + ROWS, len(words)), sieve, most, room)
    if n_found > len(room):
        room = np.empty((min(n_found, MAX_PAIRS + 1), 3), np.int32)
        n_found = _count_near(words, start, min(start + ROWS, len(words)), sieve, most, room)
    return room[:n_found].copy()


@njit(nogil=True, cache=True)
def _bits_set(word):
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int32((word * np.uint64(0x0101010101010101)) >> np.uint64(56))  # the compiler makes this one instruction


@njit(nogil=True, cache=True)
def _count_near(words, start, stop, sieve, most, room):
    """Count the pairs of rows `start` to `stop` with later ones, and note as many as there is room for."""
    n_found = 0
    for first in range(start, stop):
        for second in range(first + 1, words.shape[0]):
            differing = np.int32(0)
            for k in range(SIEVE_WORDS):
                differing += _bits_set(words[first, k] ^ words[second, k])
            if differing <= sieve:
                for k in range(SIEVE_WORDS, words.shape[1]):
                    differing += _bits_set(words[first, k] ^ words[second, k])
                if differing <= most:
                    if n_found < room.shape[0]:
                        room[n_found, 0], room[n_found, 1], room[n_found, 2] = first, second, differing
                    n_found += 1
    return n_found


def measure_distances(signatures: Bits, first: np.ndarray, second: np.ndarray) -> NDArray[np.float64]:
    """Give 1 − correlation for pairs of pictures, by the bits in which their signatures differ.

    Args:
        signatures: Shape (N, 128).
        first: Indices, (P,).
        second: Indices, (P,).
    """
    return _distance_of_bits(np.unpackbits(signatures[first] ^ signatures[second], axis=1).sum(axis=1, dtype=np.int64))


def _distance_of_bits(differing: np.ndarray) -> NDArray[np.float64]:
    return np.asarray(1 - np.cos(np.pi * differing / N_BITS))


def choose_distance(signatures: Bits, subjects: np.ndarray) -> float:
    """Choose the distance below which no pair of unrelated pictures of this cohort is expected.

    Pictures of one kind, such as chest X-rays, all look alike, and the more there are the nearer the nearest two
    strangers come. So the correlation of random pairs of different subjects is taken as normal, and the limit lies
    where a tenth of a pair is expected among all.

    Args:
        signatures: Shape (N, 128).
        subjects: Subject of each picture, (N,).

    Returns:
        1 − correlation, between 0.15 and 0.45.
    """
    n = len(signatures)
    if n < 2:
        return FURTHEST
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, n, N_SAMPLED), rng.integers(0, n, N_SAMPLED)
    strangers = subjects[first] != subjects[second]
    if not strangers.any():
        return FURTHEST
    correlations = 1 - measure_distances(signatures, first[strangers], second[strangers])
    middle, high = np.percentile(correlations, [50, 99])
    sigma = (high - middle) / norm.ppf(0.99)
    limit = middle + sigma * norm.isf(min(0.5, EXPECTED_FALSE_PAIRS / (n * (n - 1) / 2)))
    return float(np.clip(1 - limit, CLOSEST, FURTHEST))
