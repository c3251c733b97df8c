"""Prepare a scan: what is done to its pixels once, deterministically, before any training.

    read → what a raw head needs (`imaging.raw`) → labels > 0 or native binning → resample onto one grid
         → histogram, clip, scale intensities → binning

The grid has the recipe's spacing and size. A registered scan lies on the template's axes, about the template's middle;
any other on its own axes (nearest to RAS+, or LAS+ where the recipe says so), about the head. Each scan is interpolated
once. With `statistics: grid`, intensities are scaled on
the scan's own, whole grid before it is resampled. Every step leaves its figures in the record.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from neuroage.errors import DataError
from neuroage.imaging.inspect import measure_native
from neuroage.imaging.intensities import bin_levels, one_channel, scale_intensities
from neuroage.imaging.raw import Frame, Readied, make_ready, settle
from neuroage.imaging.read import Volume, read
from neuroage.imaging.registration.mni152 import MIDDLE_MM
from neuroage.imaging.resampling import Grid, box_mean, carry_mask, cover, head_centre, own_grid, resample_to
from neuroage.imaging.steps.companions import Companions
from neuroage.runs.recipe import Prepare

# A scanner's own coordinates, whose origin is the magnet's centre, come so near the middle of MNI152 on all three axes
# by rare chance only.
TEMPLATE_TOLERANCE_MM = 3.0
TISSUE_SHARE = 0.5  # of a coarser voxel: with less it is background
NEARLY = 0.9  # of the wanted voxel size: what is so near is left as it is, since interpolation costs more
STEPS_VERSION = 5  # Raised whenever a step gives other numbers than before, so that stored volumes are made anew.


@dataclass(frozen=True)
class Prepared:
    """A scan as the network sees it.

    Attributes:
        data: Shape (C, I, J, K), float32, RAS+ or LAS+; one channel, or one for each level of `fractions`.
        affine: Voxel index to millimetres, (4, 4): in the scan's own space, or the template's where it was registered.
        record: What was done and measured, JSON-ready: the input contract is made of these.
        mask: True in the brain, shape (I, J, K); None where none was asked for.
        transforms: Name of a space (`mni152`, a modality) → matrix (4, 4), its millimetres to the scan's.
        problem: Why the result should not be used, such as a failed registration; "" where nothing is known.
    """

    data: np.ndarray
    affine: np.ndarray
    record: dict[str, Any] = field(default_factory=dict)
    mask: np.ndarray | None = None
    transforms: dict[str, np.ndarray] = field(default_factory=dict)
    problem: str = ""


def prepare_file(path: str | os.PathLike[str], recipe: Prepare, companions: Companions | None = None) -> Prepared:
    """Read a scan and prepare it; errors are those of `read` and `prepare`, with the file named."""
    volume = read(path, nonfinite=recipe.nonfinite)
    try:
        return prepare(volume, recipe, path=path, companions=companions)
    except DataError as error:
        raise DataError(f"{path}: {error.what}", expected=error.expected, fix=error.fix) from None


def prepare(
    volume: Volume,
    recipe: Prepare,
    *,
    path: str | os.PathLike[str] | None = None,
    companions: Companions | None = None,
) -> Prepared:
    """Bring a volume to the recipe's grid and intensities.

    Args:
        volume: As `read` gives it, data (1, I, J, K).
        recipe: The `prepare` section.
        path: The file that it was read from: masks beside it, and transforms that were found before, are found by it.
        companions: Files that it is prepared with.

    Returns:
        Data (recipe.n_channels, *recipe.size), affine and record; the same input always gives the same numbers.

    Raises:
        DataError: Nothing of the head lies in the field of view, no two intensities differ, or too few do for the
            histogram to be standardised; a reference scan, mask or template is missing or does not fit.
        UsageError: A package or a program that a step needs is not installed.
    """
    ready = make_ready(volume, recipe, Path(path) if path is not None else None, companions)
    prepared = _bring_to_grid(ready, volume, recipe)
    if ready.template is None or recipe.registration is None:
        return prepared
    near = Volume(one_channel(prepared.data)[None], prepared.affine)
    return _bring_to_grid(settle(ready, near, recipe.registration.kind), volume, recipe)


def _bring_to_grid(ready: Readied, native: Volume, recipe: Prepare) -> Prepared:
    """Prepare a scan that is ready, wherever it lies; `native` is as it was read."""
    record: dict[str, Any] = {
        "native_spacing_mm": [round(value, 4) for value in native.spacing_mm],
        "native_size": list(native.shape),
        "native_orientation": native.source_orientation,
        "native": measure_native(ready.volume),
        **ready.record,
    }
    volume, data = ready.volume, ready.volume.data[0]
    if recipe.labels:
        data = (data > 0).astype(np.float32)
    elif recipe.binning and recipe.binning.native:
        data = bin_levels(data, recipe.binning)
    record["centred_on"], index = find_centre(data, volume, recipe, ready.frame)
    record["centre_voxel"] = np.round(index, 2).tolist()
    scaled_first = recipe.statistics == "grid" and recipe.fractions is None
    if scaled_first:
        data = scale_intensities(data, recipe, record)
    affine = volume.affine
    if recipe.fractions is not None:
        data, affine, index = at_half_spacing(data, affine, index, recipe.spacing)
    if ready.frame is not None:
        grid = Grid.about(ready.frame.centre_mm, ready.frame.axes, recipe.spacing, recipe.size)
    else:
        grid = own_grid(affine, index, recipe.spacing, recipe.size)
    channels = [data]
    if recipe.fractions is not None:
        within = None
        if recipe.statistics == "field_of_view":
            data, affine, within = cover(data, affine, grid)
        channels = intensity_shares(data, recipe, record, within)
    stacked = np.stack([resample_to(channel, affine, grid) for channel in channels])
    mask = carry_mask(ready.mask, volume.affine, grid) if ready.mask is not None else None
    affine = grid.affine
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
        mask = mask[::-1] if mask is not None else None
    record["mean"], record["std"] = float(stacked.mean()), float(stacked.std())
    data = np.ascontiguousarray(stacked, dtype=np.float32)
    return Prepared(data, affine, record, mask, ready.transforms, ready.problem)


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
    grids would tell scanners apart. (A brain at 1 mm was guessed 31 years too old by networks trained on 2 mm.) Each
    new voxel is the mean of what lies in it, as a scanner of that resolution sees it; smoothing, or a dim rim around
    the brain, is read as age too.

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
    factor = fine / old
    size = np.maximum(np.round(np.asarray(data.shape) / factor).astype(int), 1)
    start = (np.asarray(data.shape) - 1) / 2 - (size - 1) / 2 * factor
    background = float(data.min())
    inside = data > background
    means, shares = (box_mean(part, start, factor, size.tolist()) for part in (data - background, inside))
    # Of a voxel that lies across the head's edge, what is not head says nothing of the tissue.
    coarser = np.where(shares >= TISSUE_SHARE, background + means / np.maximum(shares, TISSUE_SHARE), background)
    new = affine.copy()
    new[:3, :3] = affine[:3, :3] * factor
    new[:3, 3] = affine[:3, :3] @ start + affine[:3, 3]
    return coarser.astype(np.float32), new, (index - start) / factor


def intensity_shares(
    data: np.ndarray, recipe: Prepare, record: dict[str, Any], within: np.ndarray | None = None
) -> list[np.ndarray]:
    """Share each voxel of a scan out among levels of scaled intensity, on the scan's own grid.

    A voxel belongs to the two levels that it lies between, in proportion to its nearness (linear interpolation), so
    that a little noise moves little. Averaged into coarse voxels, the shares say how much dark (fluid), middle (grey)
    and bright (white) tissue there is: a histogram at every place, of which the mean intensity is one number only.

    Args:
        data: Shape (I, J, K), as read.
        recipe: Intensity scale, foreground and the levels `fractions`.
        record: Receives the foreground's figures.
        within: Voxels that the intensity statistics are taken over, bool (I, J, K); all when None.

    Returns:
        One array for each level, shape (I, J, K), float32, 0 to 1; they sum to 1, in the background (the scan's
        minimum) to 0.
    """
    levels = np.asarray(recipe.fractions, dtype=np.float64)
    inside = data > data.min()
    scaled = scale_intensities(data, recipe, record, within)
    place = np.interp(scaled, levels, np.arange(len(levels))).astype(np.float32)
    return [np.maximum(1 - np.abs(place - number), 0) * inside for number in range(len(levels))]


def find_centre(data: np.ndarray, volume: Volume, recipe: Prepare, frame: Frame | None) -> tuple[str, np.ndarray]:
    """Find what the field of view is centred on, as the recipe's `centre` says.

    Args:
        data: Shape (I, J, K), RAS+.
        volume: Where the voxels lie in space.
        recipe: Its `centre`, size and spacing.
        frame: Where prepared volumes lie, for a registered scan.

    Returns:
        "head", "image" or "template", and the centre as a fractional voxel index, shape (3,).
    """
    middle = (np.asarray(volume.shape) - 1) / 2
    if frame is not None:
        return "template", np.linalg.solve(volume.affine[:3, :3], frame.centre_mm - volume.affine[:3, 3])
    if recipe.centre == "auto":
        offset = MIDDLE_MM - (volume.affine[:3, :3] @ middle + volume.affine[:3, 3])
        if np.abs(offset).max() <= TEMPLATE_TOLERANCE_MM:
            return "template", middle + np.linalg.solve(volume.affine[:3, :3], offset)
    if recipe.centre == "image":
        return "image", middle
    return "head", head_centre(data, volume.spacing_mm, np.asarray(recipe.size) * recipe.spacing)
