"""Vessels of an angiography: enhanced by their shape, and cut out.

    head → intensities relative to the tissue around → contrast of bright tubes at several radii → threshold

Intensities are divided by those of the tissue around, so that neither a coil's field nor the bands of several slabs
matter. At each radius the second eigenvalue of the Hessian says how bright a tube passes through a voxel: it is large
only where intensity falls in two directions, which leaves out sheets such as skin and the edges of a mask. On phantoms,
thresholds on it gave better masks than on the measures of Frangi 1998 (doi:10.1007/BFb0056195) and of Jerman 2016
(doi:10.1109/TMI.2016.2587102).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from scipy import ndimage, special

from neuroage.imaging.read import Volume
from neuroage.imaging.resampling import block_mean
from neuroage.runs.recipe_raw import Vessels

RADII_MM = (0.5, 1.0, 1.5, 2.0)  # small cortical branches to the carotid artery
COARSE_MM = 3.0  # the head and the tissue around are found at this voxel size
SCALP_MM = 8.0  # skin, fat and the arteries within them: not looked at; the brain's arteries lie deeper
AROUND_MM = 25.0  # σ of the average that gives the tissue around; found on phantoms, 30 is alike, 10 is worse
ZEROED = 0.3  # of a scan's voxels being exactly 0: its background was removed
AIR = 0.4  # of the head's median intensity: darker is air
FILLED = 0.95  # of the volume being head: it was cropped within the head and shows no scalp
CORE = 0.3  # of the tissue's intensity: tubes of this contrast are vessels in any scan, and give the lumen's level
LUMEN_PERCENTILE = 95  # of intensities there; found on phantoms
LEAST_LUMEN = 1.5  # times the tissue's intensity; where the scan shows no vessels at all
# Least vesselness, and least brightness on the way from tissue (0) to lumen (1): of a vessel's voxels, and of those of
# which a piece needs some to count as a vessel; found on phantoms, as is the volume.
WEAK, CLEAR = (0.05, 0.45), (0.2, 0.6)
LEAST_CLEAR_MM3 = 2.0
# A disc of radius r, smoothed at σ = r/√2, where its response is strongest, has λ σ² = contrast / e at its middle.
SIGMA_OF_RADIUS = 1 / np.sqrt(2)
CONTRAST_OF_RESPONSE = math.e
LEAST_SIGMA_VOXELS = 0.5  # below, a Gaussian has no shape on the grid; thinner tubes are seen at this scale


def vessels_of(volume: Volume, settings: Vessels, mask: np.ndarray | None = None) -> tuple[Volume, dict[str, Any]]:
    """Enhance or cut out the vessels as a recipe's `prepare.vessels` says.

    Args:
        volume: An angiography, data (1, I, J, K), arteries bright.
        settings: Radii and kind of output.
        mask: True where vessels are looked for, shape (I, J, K), mostly the brain; None: the head below the scalp.

    Returns:
        The volume, data (1, I, J, K): vesselness 0 to 1, a mask of 0 and 1, or intensity × vesselness; and what was
        done and found, JSON-ready.
    """
    if settings.output == "binary":
        return binarise_vessels(volume, settings.radii_mm, mask, share=settings.share)
    vesselness, record = enhance_vessels(volume, settings.radii_mm, mask)
    if settings.output == "vesselness":
        return vesselness, record
    return replace(volume, data=volume.data * vesselness.data), {**record, "output": "enhanced"}


def enhance_vessels(
    volume: Volume, radii_mm: tuple[float, ...] = RADII_MM, mask: np.ndarray | None = None
) -> tuple[Volume, dict[str, Any]]:
    """Give each voxel's vesselness: the contrast of the bright tube that it lies in, 1 being that of large arteries.

    Args:
        volume: An angiography, data (1, I, J, K), any voxel size; a removed background is 0.
        radii_mm: Radii that are looked for. What is thinner than a voxel is seen at the voxel's scale.
        mask: True where vessels are looked for, shape (I, J, K); None: the head without its outermost 8 mm, or where
            the background was removed, what is left.

    Returns:
        Vesselness 0 to 1, data (1, I, J, K) float32, and the record.

    Source:
        The second eigenvalue of the Hessian as a line filter: Sato 1998, doi:10.1016/S1361-8415(98)80009-1; scales and
        relatives: Frangi 1998, doi:10.1007/BFb0056195.
    """
    started = time.perf_counter()
    found = _find_tubes(volume, radii_mm, mask)
    record = {**found.record, "output": "vesselness", "seconds": round(time.perf_counter() - started, 2)}
    return replace(volume, data=found.whole(found.vesselness)[None]), record


def binarise_vessels(
    volume: Volume,
    radii_mm: tuple[float, ...] = RADII_MM,
    mask: np.ndarray | None = None,
    *,
    share: float | None = None,
) -> tuple[Volume, dict[str, Any]]:
    """Cut out the vessels: voxels within a bright tube that are about half-way up from tissue to lumen or brighter.

    Half-way a voxel is half vessel. Two thresholds (hysteresis) keep what is connected to a clear vessel and leave
    specks out; both come from this scan's own tissue and lumina.

    Args:
        volume: An angiography, data (1, I, J, K), any voxel size; a removed background is 0.
        radii_mm: Radii that are looked for.
        mask: As in `enhance_vessels`.
        share: Share of the head (or of the mask) that vessels take, 0 to 0.5, instead of the thresholds above: the
            brightest voxels within tubes. Fewer where there are not as many.

    Returns:
        Volume of 0 and 1, data (1, I, J, K) float32, and the record with `vessel_ml` and `vessel_share` of the head.

    Example:
        >>> from neuroage.imaging.phantom import phantom_subject
        >>> tof = phantom_subject(60.0, seed=1, modalities=("tof",)).scans["tof"]
        >>> mask, record = binarise_vessels(Volume(tof.data[None].astype("float32"), tof.affine))
        >>> 10 < record["vessel_ml"] < 40
        True
    """
    started = time.perf_counter()
    found = _find_tubes(volume, radii_mm, mask)
    voxel_ml = float(np.prod(volume.spacing_mm)) / 1000
    if share is None:
        least = LEAST_CLEAR_MM3 / (1000 * voxel_ml)
        vessels = _connected(found.above(*WEAK), found.above(*CLEAR), least)
    else:
        vessels = _brightest(found, max(round(share * found.n_head), 1))
    n_vessel = int(vessels.sum())
    record = {
        **found.record,
        "output": "binary",
        "share_asked": share,
        "vessel_ml": round(n_vessel * voxel_ml, 4),
        "vessel_share": round(n_vessel / max(found.n_head, 1), 6),
        "seconds": round(time.perf_counter() - started, 2),
    }
    return replace(volume, data=found.whole(vessels)[None]), record


@dataclass(frozen=True)
class _Tubes:
    """What was found in the box around the head: vesselness, and intensity relative to the tissue around."""

    vesselness: np.ndarray
    ratio: np.ndarray
    lumen: float
    n_head: int
    box: tuple[slice, ...]
    shape: tuple[int, ...]
    record: dict[str, Any]

    def above(self, vesselness: float, brightness: float) -> np.ndarray:
        """Find voxels by vesselness and by brightness, 0 being tissue and 1 lumen."""
        return (self.vesselness > vesselness) & (self.ratio > 1 + brightness * (self.lumen - 1))

    def whole(self, part: np.ndarray) -> np.ndarray:
        """Put what belongs to the box where it lies in the scan; 0 around it."""
        result = np.zeros(self.shape, dtype=np.float32)
        result[self.box] = part
        return result


def _find_tubes(volume: Volume, radii_mm: tuple[float, ...], mask: np.ndarray | None) -> _Tubes:
    data, spacing = np.ascontiguousarray(volume.data[0]), np.asarray(volume.spacing_mm)
    region, n_head, found_by = _find_region(data, spacing, mask)
    box = _box_of(region)
    data, region = np.ascontiguousarray(data[box]), np.ascontiguousarray(region[box])
    ratio = _relative_to_tissue(data, region, spacing, vessels_alone=found_by == "vessels alone")
    contrast = _contrast_of_tubes(ratio, region, spacing, radii_mm)
    core = ratio[contrast > CORE]
    lumen = max(float(np.percentile(core, LUMEN_PERCENTILE)), LEAST_LUMEN) if core.size else LEAST_LUMEN
    vesselness = np.minimum(contrast, np.float32(lumen - 1), out=contrast)
    vesselness /= np.float32(lumen - 1)
    record = {
        "radii_mm": [float(radius) for radius in radii_mm],
        "head_by": found_by,
        "head_ml": round(n_head * float(np.prod(spacing)) / 1000, 1),
        "lumen_of_tissue": round(lumen, 4),
    }
    return _Tubes(vesselness, ratio, lumen, n_head, box, volume.shape, record)


def _find_region(data: np.ndarray, spacing: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, int, str]:
    """Find where to look for vessels, how many voxels the head has, and say how the head was found."""
    if mask is not None:
        return mask.astype(bool), int(mask.sum()), "mask"
    left = data != 0
    if left.mean() < 1 - ZEROED:
        return _region_without_background(left, spacing)
    step = np.maximum(np.round(COARSE_MM / spacing), 1).astype(int)
    step = np.minimum(step, data.shape)
    coarse = block_mean(data, step.tolist())
    tissue = np.median(coarse[coarse > AIR * np.percentile(coarse, 75)])
    head = _closed(coarse > AIR * tissue)
    share = float(head.mean())
    if share > FILLED:
        return np.ones(data.shape, dtype=bool), data.size, "whole volume"
    depth = ndimage.distance_transform_edt(head, sampling=spacing * step)
    return _onto(depth > SCALP_MM, step, data.shape), round(share * data.size), "intensity"


def _region_without_background(left: np.ndarray, spacing: np.ndarray) -> tuple[np.ndarray, int, str]:
    """A brain or head keeps its inside when the background goes; of vessels that were cut out, little is deep."""
    step = np.minimum(np.maximum(np.round(COARSE_MM / spacing), 1).astype(int), left.shape)
    coarse = _closed(block_mean(left.astype(np.float32), step.tolist()) > 0.5)
    deep = ndimage.binary_erosion(coarse, iterations=2)
    if deep.sum() > 0.1 * coarse.sum():
        return left, int(left.sum()), "nonzero"
    return np.ones(left.shape, dtype=bool), left.size, "vessels alone"


def _closed(head: np.ndarray) -> np.ndarray:
    """Keep the largest piece and fill what it encloses, in space and in each plane: sinuses open to the slab's face."""
    pieces, _ = ndimage.label(head)
    head = pieces == 1 + np.argmax(np.bincount(pieces.ravel(), minlength=2)[1:])
    padded = ndimage.binary_closing(np.pad(head, 4, mode="edge"), iterations=3)
    for axis in range(3):
        planes = np.moveaxis(padded, axis, 0)
        for plane in planes:
            plane[:] = ndimage.binary_fill_holes(plane)
    return padded[4:-4, 4:-4, 4:-4]


def _onto(coarse: np.ndarray, step: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Repeat coarse voxels onto the scan's; those at an end that fill no block take the nearest."""
    places = [np.minimum(np.arange(n) // s, m - 1) for n, s, m in zip(shape, step, coarse.shape, strict=True)]
    return coarse[np.ix_(*places)]


def _box_of(region: np.ndarray) -> tuple[slice, ...]:
    """Give the box around a region with four voxels to spare; the whole grid where the region is empty."""
    if not region.any():
        return tuple(slice(0, n) for n in region.shape)
    ends = [np.flatnonzero(region.any(axis=tuple({0, 1, 2} - {axis})))[[0, -1]] for axis in range(3)]
    return tuple(slice(max(low - 4, 0), min(high + 5, n)) for (low, high), n in zip(ends, region.shape, strict=True))


def _relative_to_tissue(
    data: np.ndarray, region: np.ndarray, spacing: np.ndarray, *, vessels_alone: bool
) -> np.ndarray:
    """Divide by the intensity of the tissue around; a removed background counts as tissue, so that it has no edge."""
    left = data != 0
    if vessels_alone:
        level = np.median(data[left]) if left.any() else 1.0
        return 1 + data / np.float32(level)
    step = np.minimum(np.maximum(np.round(COARSE_MM / spacing), 1).astype(int), data.shape)
    counted = region & left
    average = partial(ndimage.gaussian_filter, sigma=AROUND_MM / (spacing * step), mode="constant", truncate=3.0)
    weight = block_mean(counted.astype(np.float32), step.tolist())
    total = block_mean(np.where(counted, data, np.float32(0)), step.tolist())
    mean = total / np.maximum(weight, 1e-6)
    kept = weight * (mean < 2 * np.median(mean[weight > 0])) if weight.any() else weight
    for _ in range(3):  # blocks with a vessel in them are left out
        around = average(kept * mean) / np.maximum(average(kept), 1e-6)
        kept = weight * (mean < 1.3 * around)
    around = np.maximum(around, 1e-3 * max(float(around.max()), 1e-30)).astype(np.float32)
    ratio = _divided(data, around, step)
    ratio[~left] = 1
    return np.maximum(ratio, 1, out=ratio)  # next to the dark, tissue must not look like a vessel


def _divided(data: np.ndarray, coarse: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Divide by a coarse volume, interpolated linearly between the middles of its blocks."""
    across, along = (_weights(n, s, m) for n, s, m in zip(data.shape[1:], step[1:], coarse.shape[1:], strict=True))
    lines = np.tensordot(_weights(data.shape[0], step[0], coarse.shape[0]), coarse, axes=1)
    result = np.empty_like(data)
    for plane, line, target in zip(data, lines, result, strict=True):
        np.divide(plane, across @ line @ along.T, out=target)
    return result


def _weights(n: int, step: int, n_coarse: int) -> np.ndarray:
    """Weights of linear interpolation from block middles to voxels, shape (n, n_coarse), float32."""
    place = np.clip((np.arange(n) - (step - 1) / 2) / step, 0, n_coarse - 1)
    return np.maximum(1 - np.abs(place[:, None] - np.arange(n_coarse)), 0).astype(np.float32)


def _contrast_of_tubes(
    ratio: np.ndarray, region: np.ndarray, spacing: np.ndarray, radii_mm: tuple[float, ...]
) -> np.ndarray:
    """Give the contrast of the brightest tube through each voxel over all radii, the tissue's intensity being 1."""
    from neuroage.imaging.steps.vessel_kernels import keep_strongest, smooth_last, smooth_middle

    padded, inside = np.pad(ratio, 1, mode="edge"), np.pad(region, 1)
    n_i, _, n_k = padded.shape
    first, second, contrast = np.empty_like(padded), np.empty_like(padded), np.zeros_like(padded)
    sigmas = {tuple(np.maximum(radius * SIGMA_OF_RADIUS / spacing, LEAST_SIGMA_VOXELS)) for radius in radii_mm}
    for sigma in sorted(sigmas):  # in voxels; radii below the voxel's scale share one
        smooth_middle(padded.reshape(1, n_i, -1), _gaussian(sigma[0]), first.reshape(1, n_i, -1))
        smooth_middle(first, _gaussian(sigma[1]), second)
        smooth_last(second.reshape(-1, n_k), _gaussian(sigma[2]), first.reshape(-1, n_k))
        a, b, c = spacing
        scale = CONTRAST_OF_RESPONSE * float(np.prod(np.asarray(sigma) * spacing)) ** (2 / 3)
        factors = scale / np.array([a * a, b * b, c * c, 4 * a * b, 4 * a * c, 4 * b * c])
        keep_strongest(first, inside, tuple(factors.astype(np.float32)), contrast)
    return np.ascontiguousarray(contrast[1:-1, 1:-1, 1:-1])


def _gaussian(sigma: float) -> np.ndarray:
    """Integrals of a Gaussian over voxels, from its middle outwards to 3 σ, float32, summing to 1 with both sides."""
    edges = (np.arange(int(np.ceil(3 * sigma)) + 2) - 0.5) / (sigma * np.sqrt(2))
    weights = np.diff(special.erf(edges))
    return np.asarray(weights / (weights[0] + 2 * weights[1:].sum()), dtype=np.float32)


def _connected(weak: np.ndarray, clear: np.ndarray, least_voxels: float) -> np.ndarray:
    """Keep the pieces of `weak` that hold at least so many voxels of `clear`."""
    pieces, n = ndimage.label(weak, structure=np.ones((3, 3, 3)))
    kept = np.bincount(pieces[clear], minlength=n + 1) >= max(least_voxels, 1)
    kept[0] = False
    return np.asarray(kept[pieces])


def _brightest(found: _Tubes, n_wanted: int) -> np.ndarray:
    """Give the brightest voxels within tubes, as many as wanted where there are."""
    tubes = found.vesselness > WEAK[0]
    inside = np.sort(found.ratio[tubes])
    return tubes & (found.ratio >= (inside[max(inside.size - n_wanted, 0)] if inside.size else np.inf))
