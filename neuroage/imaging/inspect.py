"""Inspect a scan: a few cheap measures that tell what it is like, for the input contract.

Those of `measure_native` are taken from the file as it is, before any preparation: geometry, size of the head,
background, intensities, sharpness. Those of a `Template` are taken from the prepared volume: how much it looks like the
mean training scan, and whether it would look more like it the other way round.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import fft

if TYPE_CHECKING:
    from neuroage.imaging.read import Volume

COARSE_VOXELS = 40  # an axis of the strided copy: at 4 to 6 mm, fine enough for the box and the volume of a head
BLOCK_VOXELS = 40  # an axis of the block in the middle whose sharpness is measured
TEMPLATE_MM = 8.0  # ventricles, face and cerebellum are still told apart
SHIFT_MM = 24.0  # heads of a cohort lie at most about this far from each other
AXES = ("left–right", "front–back", "up–down")


def measure_native(volume: Volume) -> dict[str, float]:
    """Measure a scan as its file gives it.

    Everything but sharpness comes from a strided copy, so the cost hardly depends on the size of the scan.

    Args:
        volume: As `read` gives it, data (1, I, J, K), RAS+.

    Returns:
        `voxel_mm` (geometric mean), `voxel_ratio` (longest to shortest side), `field_mm_r`, `field_mm_a`, `field_mm_s`
        (extent of the grid), `head_ml` and `head_mm_r`, `_a`, `_s` (what lies above Otsu's threshold),
        `background_share` (voxels that have exactly the least value), `border_level` (the border's median between the
        1st and 99th percentile, 0 to 1), `brightness` (95th percentile of the head, in the file's units),
        `middle_level` (median of the head between its 5th and 95th percentile), `bright_tail` (99.5th percentile of
        the head in units of its median), `negative_share`, `distinct_values` (among some ten thousand voxels of the
        head) and `blur_mm`.
    """
    from neuroage.imaging.prepare import otsu_threshold  # which measures each scan that it prepares

    data, spacing = volume.data[0], np.asarray(volume.spacing_mm)
    step = np.maximum(1, np.asarray(data.shape) // COARSE_VOXELS)
    coarse = np.ascontiguousarray(data[tuple(slice(int(s) // 2, None, int(s)) for s in step)])
    lowest, threshold = float(coarse.min()), otsu_threshold(coarse)
    head = coarse > threshold
    values = coarse[head] if head.any() else coarse.ravel()
    low, middle, high, top = (float(v) for v in np.percentile(values, [5, 50, 95, 99.5]))
    overall = np.percentile(coarse, [1, 99])
    found = {
        "voxel_mm": float(np.prod(spacing) ** (1 / 3)),
        "voxel_ratio": float(spacing.max() / spacing.min()),
        "head_ml": float(head.sum() * np.prod(spacing * step) / 1000),
        "background_share": float((coarse == lowest).mean()),
        "border_level": float((_border_median(coarse) - overall[0]) / max(overall[1] - overall[0], 1e-12)),
        "brightness": abs(high),
        "middle_level": (middle - low) / max(high - low, 1e-12),
        "bright_tail": (top - lowest) / max(middle - lowest, 1e-12),
        "negative_share": float((coarse < 0).mean()),
        "distinct_values": float(len(np.unique(values[:: max(1, values.size // 20_000)]))),
        "blur_mm": _blur_mm(data, spacing, threshold),
    }
    extent = _extent_mm(head, spacing * step)
    for axis, letter in enumerate("ras"):
        found[f"field_mm_{letter}"] = float(spacing[axis] * data.shape[axis])
        found[f"head_mm_{letter}"] = extent[axis]
    return {name: float(f"{value:.5g}") for name, value in found.items()}


def _border_median(data: np.ndarray) -> float:
    faces = [np.take(data, end, axis).ravel() for axis in range(3) for end in (0, -1)]
    return float(np.median(np.concatenate(faces)))


def _extent_mm(head: np.ndarray, spacing_mm: np.ndarray) -> list[float]:
    """Box of the head along each axis, millimetres, without the outermost percent at either end."""
    extents = []
    for axis in range(3):
        profile = head.sum(axis=tuple(other for other in range(3) if other != axis)).astype(float)
        share = np.cumsum(profile) / max(profile.sum(), 1)
        low, high = np.searchsorted(share, [0.01, 0.99])
        extents.append(float((high - low + 1) * spacing_mm[axis]))
    return extents


def _blur_mm(data: np.ndarray, spacing_mm: np.ndarray, threshold: float) -> float:
    """Length over which intensities change inside the head: root of the energy of slopes over that of curvatures.

    Neither contrast nor inversion changes it. White noise has 0.6 voxels; smoothing with a Gaussian brings it to the
    order of the Gaussian's σ.
    """
    middle = tuple(
        slice(max(0, (n - BLOCK_VOXELS) // 2), max(0, (n - BLOCK_VOXELS) // 2) + BLOCK_VOXELS) for n in data.shape
    )
    block = np.ascontiguousarray(data[middle], dtype=np.float32)
    head = block > threshold
    slopes = curvatures = 0.0
    for axis in range(3):
        if block.shape[axis] < 3:
            continue
        before, here, after = (_along(block, axis, start) for start in range(3))
        inside = _along(head, axis, 0) & _along(head, axis, 1) & _along(head, axis, 2)
        if not inside.any():
            continue
        slopes += float(np.mean((after - here)[inside] ** 2)) / spacing_mm[axis] ** 2
        curvatures += float(np.mean((after - 2 * here + before)[inside] ** 2)) / spacing_mm[axis] ** 4
    return float(np.sqrt(slopes / curvatures)) if curvatures > 0 else float("nan")


def _along(data: np.ndarray, axis: int, start: int) -> np.ndarray:
    return data[tuple(slice(start, start + n - 2) if a == axis else slice(None) for a, n in enumerate(data.shape))]


def coarse_cube(data: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Bring a prepared volume to a small cube that can be compared in any orientation.

    Args:
        data: Shape (C, I, J, K); channels are levels of rising intensity, or one.
        spacing_mm: Voxel size of the prepared volume.

    Returns:
        Shape (n, n, n), float32, mean 0 and norm 1 over the scan, 0 around it; voxels of about 8 mm.
    """
    from neuroage.imaging.prepare import block_mean

    weights = np.arange(1, len(data) + 1, dtype=np.float32)
    picture = np.tensordot(weights, data.astype(np.float32), axes=1)
    factor = [max(1, min(round(TEMPLATE_MM / mm), n // 6)) for mm, n in zip(spacing_mm, picture.shape, strict=True)]
    picture = block_mean(picture, factor)
    picture = picture - picture.mean()
    picture /= max(float(np.linalg.norm(picture)), 1e-12)
    side = fft.next_fast_len(max(picture.shape) + _reach(spacing_mm, factor))
    cube = np.zeros((side, side, side), dtype=np.float32)
    start = [(side - n) // 2 for n in picture.shape]
    cube[tuple(slice(s, s + n) for s, n in zip(start, picture.shape, strict=True))] = picture
    return cube


def _reach(spacing_mm: Sequence[float], factor: Sequence[int]) -> int:
    return max(1, round(SHIFT_MM / max(mm * f for mm, f in zip(spacing_mm, factor, strict=True))))


class Template:
    """The mean training scan, to which others are compared in 24 orientations.

    A head is nearly its own mirror image from left to right, so orientations that differ only by that are one: whether
    left and right are exchanged cannot be told.

    Args:
        cubes: Of `coarse_cube`, shape (n_scans, n, n, n).
        reach: How many voxels of the cube a scan may be shifted.
    """

    def __init__(self, cubes: np.ndarray, reach: int = 3) -> None:
        mean = np.asarray(cubes, dtype=np.float32).mean(axis=0)
        self.mean, self.reach = mean / max(float(np.linalg.norm(mean)), 1e-12), reach
        self.orientations = [
            (order, tuple(axis for axis, flipped in zip((1, 2), flips, strict=True) if flipped))
            for order in itertools.permutations(range(3))
            for flips in itertools.product((False, True), repeat=2)
        ]
        # ⟨flip(transpose(scan)), mean⟩ = ⟨scan, transpose⁻¹(flip(mean))⟩: the template is turned, once.
        turned = [np.flip(self.mean, axes).transpose(np.argsort(order)) for order, axes in self.orientations]
        self._spectra = np.conj(fft.rfftn(np.stack(turned), axes=(1, 2, 3)))

    def compare(self, cube: np.ndarray) -> tuple[float, float, str]:
        """Compare a scan with the mean training scan.

        Args:
            cube: Of `coarse_cube`.

        Returns:
            Correlation as it is; by how much the best other orientation correlates better (negative: worse); what that
            orientation would mean, in words.
        """
        n, reach = len(cube), self.reach
        maps = fft.irfftn(fft.rfftn(cube)[None] * self._spectra, s=(n, n, n), axes=(1, 2, 3))
        near = np.r_[0 : reach + 1, -reach:0]
        best = maps[np.ix_(np.arange(len(maps)), near, near, near)].max(axis=(1, 2, 3))
        other = 1 + int(np.argmax(best[1:]))
        return float(best[0]), float(best[other] - best[0]), describe_turn(*self.orientations[other])


def describe_turn(order: tuple[int, ...], flipped: tuple[int, ...]) -> str:
    """Say what is wrong with a scan that fits once its axes are put in `order` and `flipped`.

    Example:
        >>> describe_turn((0, 1, 2), (1,))
        'flipped front–back'
    """
    parts = []
    if order != (0, 1, 2):
        swapped = [AXES[axis] for axis in range(3) if order[axis] != axis]
        parts.append(f"stored with its axes exchanged ({' and '.join(swapped) if len(swapped) == 2 else 'all three'})")
    if flipped == (1, 2):
        parts.append("upside down and back to front")
    elif flipped:
        parts.append({1: "flipped front–back", 2: "flipped up–down"}[flipped[0]])
    return ", ".join(parts)


def left_right_symmetry(cube: np.ndarray, reach: int = 3) -> float:
    """Correlate a scan with its own left–right mirror image, best over shifts; 1 for perfect symmetry."""
    spectrum = fft.rfftn(cube)
    mirrored = fft.rfftn(np.flip(cube, 0))
    correlation = fft.irfftn(spectrum * np.conj(mirrored), s=cube.shape)
    near = np.r_[0 : 2 * reach + 1, -2 * reach : 0]
    return float(correlation[np.ix_(near, near[:1], near[:1])].max())
