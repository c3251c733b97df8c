"""Prepare a scan: what is done to its pixels once, deterministically, before any training.

    read → labels > 0 or native binning → resample onto one grid → histogram, clip, scale intensities → binning

The grid has the recipe's spacing and size, its axes are the scan's own (nearest to RAS+, or LAS+ where the recipe says
so), and it is centred on the head. Each scan is interpolated once. With `statistics: grid`, intensities are scaled on
the scan's own, whole grid before it is resampled. Every step leaves its figures in the record.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from neuroage.errors import DataError
from neuroage.imaging.inspect import measure_native
from neuroage.imaging.intensities import bin_levels, otsu_threshold, scale_intensities
from neuroage.imaging.read import Volume, read
from neuroage.runs.recipe import Prepare

# The grids of the MNI152 template (1, 1.5 and 2 mm; Fonov 2011, doi:10.1016/j.neuroimage.2010.07.033) share their
# middle; a scanner's own coordinates, whose origin is the magnet's centre, come within 3 mm of it on all three axes by
# rare chance only.
MNI152_MIDDLE_MM = np.array([0.0, -18.0, 18.0])
TEMPLATE_TOLERANCE_MM = 3.0
TISSUE_SHARE = 0.1  # of a coarser voxel: with less it is background
NEARLY = 0.9  # of the wanted voxel size: what is so near is left as it is, since interpolation costs more
STEPS_VERSION = 4  # Raised whenever a step gives other numbers than before, so that stored volumes are made anew.


@dataclass(frozen=True)
class Prepared:
    """A scan as the network sees it.

    Attributes:
        data: Shape (C, I, J, K), float32, RAS+ or LAS+; one channel, or one for each level of `fractions`.
        affine: Voxel index to millimetres in the scan's own space, (4, 4).
        record: What was done and measured, JSON-ready: the input contract is made of these.
    """

    data: np.ndarray
    affine: np.ndarray
    record: dict[str, Any] = field(default_factory=dict)


def prepare_file(path: str | os.PathLike[str], recipe: Prepare) -> Prepared:
    """Read a scan and prepare it; errors are those of `read` and `prepare`, with the file named."""
    volume = read(path, nonfinite=recipe.nonfinite)
    try:
        return prepare(volume, recipe)
    except DataError as error:
        raise DataError(f"{path}: {error.what}", expected=error.expected, fix=error.fix) from None


def prepare(volume: Volume, recipe: Prepare) -> Prepared:
    """Bring a volume to the recipe's grid and intensities.

    Args:
        volume: As `read` gives it, data (1, I, J, K).
        recipe: The `prepare` section.

    Returns:
        Data (recipe.n_channels, *recipe.size), affine and record; the same input always gives the same numbers.

    Raises:
        DataError: Nothing of the head lies in the field of view, no two intensities differ, or too few do for the
            histogram to be standardised.
    """
    data = volume.data[0]
    record: dict[str, Any] = {
        "native_spacing_mm": [round(value, 4) for value in volume.spacing_mm],
        "native_size": list(volume.shape),
        "native_orientation": volume.source_orientation,
        "native": measure_native(volume),
    }
    if recipe.labels:
        data = (data > 0).astype(np.float32)
    elif recipe.binning and recipe.binning.native:
        data = bin_levels(data, recipe.binning)
    record["centred_on"], index = find_centre(data, volume, recipe)
    record["centre_voxel"] = np.round(index, 2).tolist()
    scaled_first = recipe.statistics == "grid" and recipe.fractions is None
    if scaled_first:
        data = scale_intensities(data, recipe, record)
    affine = volume.affine
    channels = [data]
    if recipe.fractions is not None:
        data, affine, index = at_half_spacing(data, affine, index, recipe.spacing)
        channels = intensity_shares(data, recipe, record)
    placed = [resample(channel, affine, index, recipe.spacing, recipe.size) for channel in channels]
    stacked, affine = np.stack([channel for channel, _ in placed]), placed[0][1]
    if stacked.max() == stacked.min():
        raise DataError(
            "nothing of the scan lies in the field of view",
            fix="Look at it with `neuroage preview`; enlarge prepare.size or use centre: image.",
        )
    if recipe.fractions is None:
        if not scaled_first:
            stacked = scale_intensities(stacked, recipe, record)
        if recipe.binning and not recipe.binning.native:
            stacked = bin_levels(stacked, recipe.binning)
    record["orientation"] = f"{recipe.orientation}+"
    if recipe.orientation == "LAS":
        stacked, affine = stacked[:, ::-1], mirrored(affine, recipe.size[0])
    record["mean"], record["std"] = float(stacked.mean()), float(stacked.std())
    return Prepared(np.ascontiguousarray(stacked, dtype=np.float32), affine, record)


def mirrored(affine: np.ndarray, n_voxels: int) -> np.ndarray:
    """Give the affine of a volume whose first axis, of `n_voxels`, runs the other way; every voxel keeps its place."""
    turned = affine.copy()
    turned[:3, 0] = -affine[:3, 0]
    turned[:3, 3] = affine[:3, 3] + (n_voxels - 1) * affine[:3, 0]
    return turned


def at_half_spacing(
    data: np.ndarray, affine: np.ndarray, index: np.ndarray, spacing_mm: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bring a scan that is finer than half of the wanted spacing to that, over its whole extent; leave others alone.

    A voxel of 1 mm holds one tissue where one of 2 mm holds two: shares of intensity levels taken on the scans' own
    grids would tell scanners apart. (A brain at 1 mm was guessed 31 years too old by networks trained on 2 mm.)

    Args:
        data: Shape (I, J, K).
        affine: Voxel index to millimetres, (4, 4).
        index: A fractional voxel index, shape (3,).
        spacing_mm: Of the prepared volume.

    Returns:
        Data, affine, and the index of the same place.
    """
    old = np.linalg.norm(affine[:3, :3], axis=0)
    fine = np.maximum(old, np.asarray(spacing_mm) / 2)
    if (old > NEARLY * fine).all():
        return data, affine, index
    size = np.maximum(np.round(np.asarray(data.shape) * old / fine).astype(int), 1)
    middle = (np.asarray(data.shape) - 1) / 2
    grid = (tuple(fine.tolist()), tuple(size.tolist()))
    coarser, new = resample(data, affine, middle, *grid)
    background = float(data.min())
    inside, _ = resample((data > background).astype(np.float32), affine, middle, *grid)
    coarser[inside < TISSUE_SHARE] = background  # smoothing spreads the head's edge into the empty background
    place = affine[:3, :3] @ index + affine[:3, 3]
    return coarser, new, np.linalg.solve(new[:3, :3], place - new[:3, 3])


def intensity_shares(data: np.ndarray, recipe: Prepare, record: dict[str, Any]) -> list[np.ndarray]:
    """Share each voxel of a scan out among levels of scaled intensity, on the scan's own grid.

    A voxel belongs to the two levels that it lies between, in proportion to its nearness (linear interpolation), so
    that a little noise moves little. Averaged into coarse voxels, the shares say how much dark (fluid), middle (grey)
    and bright (white) tissue there is: a histogram at every place, of which the mean intensity is one number only.

    Args:
        data: Shape (I, J, K), as read.
        recipe: Intensity scale, foreground and the levels `fractions`.
        record: Receives the foreground's figures.

    Returns:
        One array for each level, shape (I, J, K), float32, 0 to 1; they sum to 1, in the background (the scan's
        minimum) to 0.
    """
    levels = np.asarray(recipe.fractions, dtype=np.float64)
    inside = data > data.min()
    place = np.interp(scale_intensities(data, recipe, record), levels, np.arange(len(levels))).astype(np.float32)
    return [np.maximum(1 - np.abs(place - number), 0) * inside for number in range(len(levels))]


def find_centre(data: np.ndarray, volume: Volume, recipe: Prepare) -> tuple[str, np.ndarray]:
    """Find what the field of view is centred on, as the recipe's `centre` says.

    Args:
        data: Shape (I, J, K), RAS+.
        volume: Where the voxels lie in space.
        recipe: Its `centre`, size and spacing.

    Returns:
        "head", "image" or "template", and the centre as a fractional voxel index, shape (3,).
    """
    middle = (np.asarray(volume.shape) - 1) / 2
    if recipe.centre == "auto":
        offset = MNI152_MIDDLE_MM - (volume.affine[:3, :3] @ middle + volume.affine[:3, 3])
        if np.abs(offset).max() <= TEMPLATE_TOLERANCE_MM:
            return "template", middle + np.linalg.solve(volume.affine[:3, :3], offset)
    if recipe.centre == "image":
        return "image", middle
    return "head", head_centre(data, volume.spacing_mm, np.asarray(recipe.size) * recipe.spacing)


def head_centre(data: np.ndarray, spacing_mm: tuple[float, float, float], fov_mm: np.ndarray) -> np.ndarray:
    """Find the voxel index on which to centre the field of view.

    The foreground is what lies above Otsu's threshold; its box is taken between the 1st and 99th percentile of each
    axis, so that a few stray voxels do not move it. Where the box is taller than the field of view (neck and
    shoulders are in the scan), the top of the head decides.

    Args:
        data: Shape (I, J, K), RAS+.
        spacing_mm: Voxel size along each axis.
        fov_mm: Size of the field of view along each axis, millimetres.

    Returns:
        Centre as a fractional voxel index, shape (3,).
    """
    step = tuple(max(1, round(3 / value)) for value in spacing_mm)  # 3 mm are fine enough to find a head
    coarse = data[:: step[0], :: step[1], :: step[2]]
    foreground = coarse > otsu_threshold(coarse)
    low, high = np.empty(3), np.empty(3)
    for axis in range(3):
        profile = foreground.sum(axis=tuple(other for other in range(3) if other != axis)).astype(float)
        share = np.cumsum(profile) / max(profile.sum(), 1)
        low[axis], high[axis] = (np.searchsorted(share, q) * step[axis] for q in (0.01, 0.99))
    centre = (low + high) / 2
    if (high[2] - low[2]) * spacing_mm[2] > fov_mm[2]:
        top_margin_mm = 0.03 * fov_mm[2]
        centre[2] = high[2] + (top_margin_mm - fov_mm[2] / 2) / spacing_mm[2]
    return centre


def resample(
    data: np.ndarray,
    affine: np.ndarray,
    centre: np.ndarray,
    spacing_mm: tuple[float, float, float],
    size: tuple[int, int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Resample along the scan's own axes with one linear interpolation; smoothed first where voxels become larger.

    Smoothing has σ = 0.42 · √(s² − 1) voxels for a factor s, which brings the scan's blur up to the target's (full
    width at half maximum of one voxel each; Cardoso 2015, doi:10.1007/978-3-319-24571-3_81). Outside of the scan lies
    its minimum. A scan that has the wanted spacing already is cropped on its own grid and not interpolated at all.

    Args:
        data: Shape (I, J, K).
        affine: Voxel index to millimetres, (4, 4).
        centre: Fractional voxel index that becomes the middle of the result.
        spacing_mm: Voxel size of the result.
        size: Voxels of the result.

    Returns:
        Data of shape `size`, and its affine.
    """
    import SimpleITK as sitk

    old = np.linalg.norm(affine[:3, :3], axis=0)
    factor = np.asarray(spacing_mm) / old
    start = np.asarray(centre) - (np.asarray(size) - 1) / 2 * factor
    new_affine = affine.copy()
    new_affine[:3, :3] = affine[:3, :3] * factor
    new_affine[:3, 3] = affine[:3, :3] @ start + affine[:3, 3]
    if np.allclose(factor, 1, atol=1e-3):
        new_affine[:3, 3] = affine[:3, :3] @ np.round(start) + affine[:3, 3]
        return _crop_or_pad(data, np.round(start).astype(int), size), new_affine
    variance = (0.42**2) * np.maximum(factor**2 - 1, 0)
    background = float(data.min())
    # Far finer scans are averaged in blocks first, up to half of the target's voxel: most of the smoothing, at no cost.
    block = np.maximum(np.floor(factor / 2), 1).astype(int)
    if block.max() > 1:
        data = block_mean(data, block.tolist())
        start, factor = (start - (block - 1) / 2) / block, factor / block
        variance = np.maximum(variance - (block**2 - 1) / 12, 0) / block**2  # a block of n has variance (n² − 1) / 12
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.transpose(2, 1, 0)))  # voxel units: spacing 1, origin 0
    if variance.max() > 0.05:
        image = sitk.DiscreteGaussian(image, [max(float(value), 1e-6) for value in variance], 16, 0.01, False)
    resampled = sitk.Resample(
        image,
        [int(n) for n in size],
        sitk.Transform(3, sitk.sitkIdentity),
        sitk.sitkLinear,
        start.tolist(),
        factor.tolist(),
        np.eye(3).ravel().tolist(),
        background,
        sitk.sitkFloat32,
    )
    return sitk.GetArrayFromImage(resampled).transpose(2, 1, 0), new_affine


def block_mean(data: np.ndarray, factor: Sequence[int]) -> np.ndarray:
    """Average blocks of `factor` voxels along each axis; what does not fill a block at the end is left out.

    Example:
        >>> block_mean(np.arange(4.0).reshape(2, 2), (2, 2))
        array([[1.5]])
    """
    shape = [size // step for size, step in zip(data.shape, factor, strict=True)]
    data = data[tuple(slice(0, n * step) for n, step in zip(shape, factor, strict=True))]
    split = [number for n, step in zip(shape, factor, strict=True) for number in (n, step)]
    return data.reshape(split).mean(axis=tuple(range(1, 2 * len(shape), 2)))


def _crop_or_pad(data: np.ndarray, start: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
    result = np.full(size, data.min(), dtype=np.float32)
    source = tuple(slice(max(s, 0), min(s + n, m)) for s, n, m in zip(start, size, data.shape, strict=True))
    target = tuple(slice(part.start - s, part.stop - s) for part, s in zip(source, start, strict=True))
    if all(part.stop > part.start for part in source):
        result[target] = data[source]
    return result
