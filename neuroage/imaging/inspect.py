"""Inspect a scan or picture: a few cheap measures that tell what it is like, for the input contract.

Those of `measure_native` (volumes) and `measure_picture` are taken from the file as it is, before any preparation:
geometry, size of the head, background, intensities, sharpness. Those of a template (`neuroage.imaging.template`) are
taken from the prepared image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from neuroage.imaging.picture_form import Picture
    from neuroage.imaging.read import Volume

COARSE_VOXELS = 40  # an axis of the strided copy: at 4 to 6 mm, fine enough for the box and the volume of a head
BLOCK_VOXELS = 40  # an axis of the block in the middle whose sharpness is measured
PICTURE_PIXELS = 128  # a side of the strided copy of a picture
EVEN = 0.03  # of the range: rows and columns that vary less are margin; JPEG's ringing stays below


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
    from neuroage.imaging.intensities import otsu_threshold  # which measures each scan that it prepares

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
        "blur_mm": _blur(data, spacing, threshold, BLOCK_VOXELS),
    }
    extent = _extent_mm(head, spacing * step)
    for axis, letter in enumerate("ras"):
        found[f"field_mm_{letter}"] = float(spacing[axis] * data.shape[axis])
        found[f"head_mm_{letter}"] = extent[axis]
    return {name: float(f"{value:.5g}") for name, value in found.items()}


def _border_median(data: np.ndarray) -> float:
    faces = [np.take(data, end, axis).ravel() for axis in range(data.ndim) for end in (0, -1)]
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


def _blur(data: np.ndarray, spacing_mm: np.ndarray, threshold: float, block_size: int) -> float:
    """Length over which intensities change inside the head: root of the energy of slopes over that of curvatures.

    Neither contrast nor inversion changes it. White noise has 0.6 voxels; smoothing with a Gaussian brings it to the
    order of the Gaussian's σ.
    """
    middle = tuple(slice(max(0, (n - block_size) // 2), max(0, (n - block_size) // 2) + block_size) for n in data.shape)
    block = np.ascontiguousarray(data[middle], dtype=np.float32)
    head = block > threshold
    slopes = curvatures = 0.0
    for axis in range(block.ndim):
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


def measure_picture(picture: Picture) -> dict[str, float]:
    """Measure a picture as its file gives it, from a strided copy: the cost hardly depends on its size.

    Args:
        picture: As `read_picture` gives it.

    Returns:
        `aspect_ratio` (width over height), `megapixels`, `margin_share` (part of the picture in even rows and columns
        at its edges), `black_share` and `white_share` (pixels that have exactly the least and the greatest value),
        `border_level` (the border's median between the 1st and 99th percentile, 0 to 1), `brightness` (95th percentile
        over full scale), `middle_level` (median between the 5th and 95th percentile of what is not black),
        `bright_tail` (99.5th percentile of that in units of its median), `distinct_values` and `colourfulness` (mean
        difference of the channels over full scale). Sharpness is that of the prepared grid, see `blur_pixels`.
    """
    from neuroage.imaging.picture_form import luminance

    step = [max(1, n // PICTURE_PIXELS) for n in picture.shape]
    sample = picture.data[:, step[0] // 2 :: step[0], step[1] // 2 :: step[1]]
    coarse = luminance(sample)[0]
    lowest, highest = float(coarse.min()), float(coarse.max())
    values = coarse[coarse > lowest] if highest > lowest else coarse.ravel()
    low, middle, high, top = (float(v) for v in np.percentile(values, [5, 50, 95, 99.5]))
    overall = np.percentile(coarse, [1, 99])
    found = {
        "aspect_ratio": picture.shape[1] * picture.spacing_mm[1] / (picture.shape[0] * picture.spacing_mm[0]),
        "megapixels": picture.shape[0] * picture.shape[1] / 1e6,
        "margin_share": _margin_share(coarse),
        "black_share": float((coarse == lowest).mean()),
        "white_share": float((coarse == highest).mean()),
        "border_level": float((_border_median(coarse) - overall[0]) / max(overall[1] - overall[0], 1e-12)),
        "brightness": abs(high) / picture.full_scale,
        "middle_level": (middle - low) / max(high - low, 1e-12),
        "bright_tail": (top - lowest) / max(middle - lowest, 1e-12),
        "distinct_values": float(len(np.unique(values))),
        "colourfulness": float(np.ptp(sample, axis=0).mean() / picture.full_scale) if len(sample) > 1 else 0.0,
    }
    return {name: float(f"{value:.5g}") for name, value in found.items()}


def _margin_share(picture: np.ndarray) -> float:
    """Share of a picture outside of the box around every row and column that is not even."""
    even = EVEN * float(picture.max() - picture.min())
    inside = 1.0
    for axis in (0, 1):
        uneven = np.flatnonzero(np.ptp(picture, axis=1 - axis) > even)
        inside *= (uneven[-1] - uneven[0] + 1) / picture.shape[axis] if len(uneven) else 0.0
    return 1.0 - inside


def blur_pixels(data: np.ndarray) -> float:
    """Measure the length, in pixels, over which the intensities of a picture (H, W) change."""
    return float(f"{_blur(data, np.ones(2), -np.inf, max(data.shape)):.5g}")
