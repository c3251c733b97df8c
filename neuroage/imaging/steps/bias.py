"""Bias field: the smooth change of brightness that coils leave, found by N4 on a coarse grid and divided out.

N4 (Tustison 2010, doi:10.1109/TMI.2010.2046908) sharpens the histogram of log intensities (Sled 1998,
doi:10.1109/42.668698) and fits B-splines to what that moved. Voxels lie on a grid here, so that the fit is three small
matrix products; ITK's, made for scattered points, gives the same field in many times the seconds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from scipy.interpolate import BSpline

from neuroage.errors import DataError
from neuroage.imaging.intensities import otsu_threshold
from neuroage.imaging.read import Volume
from neuroage.imaging.resampling import block_mean

COARSE_MM = 4.0  # ANTs' scripts estimate 1 mm scans at a shrink factor of 4
ORDER = 3  # of the splines: cubic, as in N4
N_BINS, PADDED = 200, 512  # of the histogram, as in ITK: the next power of two, doubled
FWHM, NOISE = 0.15, 0.01  # of the field in log intensity, and of Wiener's filter: ITK's defaults
ENOUGH = 1e-3  # a level ends when the field changes by less, as coefficient of variation: the default of SimpleITK
FEWEST_VOXELS = 100  # on the coarse grid; a field has 64 coefficients or more


def correct_bias(
    volume: Volume,
    mask: np.ndarray | None = None,
    *,
    shrink: int = 4,
    iterations: Sequence[int] = (50, 50, 30),
    knots_mm: float = 200.0,
) -> tuple[Volume, dict[str, Any]]:
    """Estimate how brightness changes over the scan and divide it out; the mean brightness stays.

    The field is estimated from positive voxels of the mask and divided out everywhere: zeros stay zeros, and negative
    voxels stay negative.

    Args:
        volume: The scan on its own grid.
        mask: Where the field is estimated, best the brain, shape (I, J, K) bool; None takes what Otsu's threshold
            calls bright.
        shrink: How much coarser than the finest axis the grid of the estimate is, at most about 4 mm. Coarse axes are
            shrunk less.
        iterations: Most iterations on each level.
        knots_mm: Distance of the field's knots on the first level; each further level halves it.

    Returns:
        The corrected scan, and what was done: `iterations` run on each level, the field's change in the last,
        lowest and highest factor of the field within the mask, `seconds`.

    Raises:
        DataError: Hardly a voxel is left to estimate from.
    """
    start = time.perf_counter()
    factor = coarsening(volume.spacing_mm, shrink)
    coarse, inside = _shrink(volume.data[0], mask, factor)
    spacing = np.array(volume.spacing_mm) * factor
    if mask is None and inside.any():
        inside &= coarse > otsu_threshold(coarse[inside])
    if inside.sum() < FEWEST_VOXELS:
        raise DataError(
            f"Only {inside.sum()} places of {np.round(spacing, 1).tolist()} mm to estimate a bias field from",
            expected=f"at least {FEWEST_VOXELS} with positive intensities",
            fix="Look at the scan and its mask, or leave out prepare.bias_field.",
        )
    box = _box(inside)  # the splines span what is looked at, so that empty space around it changes nothing
    log_field, done, change = _estimate(coarse[box], inside[box], spacing, iterations, knots_mm)
    beyond = [(part.start, size - part.stop) for part, size in zip(box, coarse.shape, strict=True)]
    log_field = np.pad(log_field, beyond, mode="edge")
    within = np.exp(log_field[inside])
    record = {
        "name": "bias_field",
        "parameters": {"shrink": shrink, "iterations": list(iterations), "knots_mm": knots_mm},
        "inside": "otsu" if mask is None else "mask",
        "coarse_mm": np.round(spacing, 3).tolist(),
        "iterations": done,
        "last_change": float(f"{change:.3g}"),
        "field_min": round(float(within.min()), 4),
        "field_max": round(float(within.max()), 4),
    }
    corrected = _multiply_smoothly(volume.data[0], np.exp(-log_field), factor)
    return replace(volume, data=corrected[None]), record | {"seconds": round(time.perf_counter() - start, 3)}


def _box(inside: np.ndarray) -> tuple[slice, slice, slice]:
    places = np.argwhere(inside)
    i, j, k = (slice(int(low), int(high) + 1) for low, high in zip(places.min(axis=0), places.max(axis=0), strict=True))
    return i, j, k


def coarsening(spacing_mm: tuple[float, float, float], shrink: int) -> tuple[int, int, int]:
    """Give how many voxels along each axis make one of the coarse grid.

    Example:
        >>> coarsening((0.5, 0.5, 3.0), 4)
        (4, 4, 1)
    """
    wanted = min(shrink * min(spacing_mm), max(COARSE_MM, min(spacing_mm)))
    i, j, k = (max(1, round(wanted / spacing)) for spacing in spacing_mm)
    return i, j, k


def _shrink(data: np.ndarray, mask: np.ndarray | None, factor: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Average the positive voxels of the mask in each block; blocks of which half or more are such count as inside."""
    positive = data > 0
    use = positive if mask is None else positive & mask
    # Turned so that the file's fastest axis is numpy's, which makes averaging several times as fast.
    turned = factor[::-1]
    share = block_mean(use.T.astype(np.float32), turned).T
    total = block_mean(np.where(use, data, np.float32(0)).T, turned).T
    inside = share >= 0.5
    return np.divide(total, share, out=np.zeros_like(total), where=inside), inside


class _Splines(NamedTuple):
    """Values of the cubic B-splines at each place of each axis: (n, number of splines) three times."""

    i: np.ndarray
    j: np.ndarray
    k: np.ndarray

    @classmethod
    def over(cls, shape: tuple[int, ...], n_spans: np.ndarray) -> _Splines:
        return cls(*(_splines(n, int(spans)) for n, spans in zip(shape, n_spans, strict=True)))

    def power(self, exponent: int) -> _Splines:
        return _Splines(*(part**exponent for part in self))

    def collect(self, grid: np.ndarray) -> np.ndarray:
        """Sum a picture, weighted by each spline."""
        return _three_products(self.i.T, self.j.T, self.k.T, grid)

    def draw(self, coefficients: np.ndarray) -> np.ndarray:
        """Draw the field of these coefficients."""
        return _three_products(*self, coefficients)


def _three_products(i: np.ndarray, j: np.ndarray, k: np.ndarray, grid: np.ndarray) -> np.ndarray:
    part = np.tensordot(i, grid, (1, 0))
    part = np.matmul(j, part)
    return np.asarray(part @ k.T)


def _splines(n: int, n_spans: int) -> np.ndarray:
    knots = np.arange(-ORDER, n_spans + ORDER + 1, dtype=float)
    places = np.linspace(0, n_spans, n) if n > 1 else np.array([n_spans / 2])
    return np.asarray(BSpline.design_matrix(np.minimum(places, n_spans - 1e-9), knots, ORDER).toarray())


def _estimate(
    coarse: np.ndarray, inside: np.ndarray, spacing: np.ndarray, iterations: Sequence[int], knots_mm: float
) -> tuple[np.ndarray, list[int], float]:
    """Give the log field on the coarse grid, with mean 0 inside; the iterations of each level, and the last change."""
    observed = np.log(coarse[inside].astype(np.float64))
    field, change, done = np.zeros(coarse.shape), np.inf, []
    for level, most in enumerate(iterations):
        n_spans = np.ceil(np.array(coarse.shape) * spacing / knots_mm) * 2**level
        splines = _Splines.over(coarse.shape, n_spans)
        # Least squares at each place alone, then averaged over places (Lee 1997, doi:10.1109/2945.620490).
        square, cube = splines.power(2), splines.power(3)
        norm = square.collect(inside.astype(np.float64))
        at_place = (square.i.sum(1)[:, None, None] * square.j.sum(1)[:, None] * square.k.sum(1))[inside]
        residual = np.zeros(coarse.shape)
        n = 0
        while n < most:
            unbiased = observed - field[inside]
            residual[inside] = (unbiased - _sharpen(unbiased)) / at_place
            total = cube.collect(residual)
            step = splines.draw(np.divide(total, norm, out=np.zeros_like(total), where=norm > 1e-9))
            field += step
            n += 1
            ratio = np.exp(step[inside])
            change = float(ratio.std() / ratio.mean())
            if change < ENOUGH:
                break
        done.append(n)
    return field - field[inside].mean(), done, change


def _sharpen(values: np.ndarray) -> np.ndarray:
    """Give the log intensities that are expected where these are seen blurred by the field (Sled 1998, equation 13)."""
    low, high = values.min(), values.max()
    width = (high - low) / (N_BINS - 1)
    if width <= 0:
        return values
    place = np.minimum((values - low) / width, N_BINS - 1 - 1e-9)
    below = place.astype(np.intp)
    share = place - below
    counts = np.bincount(below, 1 - share, N_BINS) + np.bincount(below + 1, share, N_BINS)[:N_BINS]
    padded, start = np.zeros(PADDED), (PADDED - N_BINS) // 2
    padded[start : start + N_BINS] = counts
    steps = np.minimum(np.arange(PADDED), PADDED - np.arange(PADDED)) * width / FWHM
    blur = np.fft.rfft(2 * np.sqrt(np.log(2) / np.pi) * width / FWHM * np.exp(-4 * np.log(2) * steps**2)).real
    true = np.maximum(np.fft.irfft(np.fft.rfft(padded) * blur / (blur**2 + NOISE)), 0)
    levels = low + (np.arange(PADDED) - start) * width
    above = np.fft.irfft(np.fft.rfft(true * levels) * blur)
    under = np.fft.irfft(np.fft.rfft(true) * blur)
    expected = np.divide(above, under, out=levels.copy(), where=under > 1e-9 * under.max())
    return np.interp(place, np.arange(N_BINS), expected[start : start + N_BINS])


def _multiply_smoothly(data: np.ndarray, coarse: np.ndarray, factor: tuple[int, int, int]) -> np.ndarray:
    """Multiply by values given at the blocks' middles, linear between them and beyond the last.

    Knots are tens of millimetres apart, so between points 4 mm apart a straight line is off by less than 0.1%.
    """
    along_i, along_j, along_k = (
        _linear_weights(n, m, step) for n, m, step in zip(data.shape, coarse.shape, factor, strict=True)
    )
    lines = np.einsum("jb,abk->ajk", along_j, coarse.astype(np.float32), optimize=True)
    result = np.empty_like(data)
    for k in range(data.shape[2]):  # slice by slice: the field at full size is never held
        plane = along_i @ (lines @ along_k[k])
        np.multiply(data[:, :, k], plane, out=result[:, :, k])
    return result


def _linear_weights(n: int, n_coarse: int, step: int) -> np.ndarray:
    if n_coarse == 1:
        return np.ones((n, 1), dtype=np.float32)
    place = (np.arange(n) - (step - 1) / 2) / step
    low = np.clip(np.floor(place).astype(int), 0, n_coarse - 2)
    share = np.clip(place - low, -1, 2)
    weights = np.zeros((n, n_coarse), dtype=np.float32)
    weights[np.arange(n), low] = 1 - share
    weights[np.arange(n), low + 1] += share
    return weights
