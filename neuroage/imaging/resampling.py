"""Resampling: from a scan's own grid to the one that a network sees, with one interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from neuroage.imaging.intensities import otsu_threshold

KEPT = 1e-3  # in voxels: grids that differ by less are one


class Grid(NamedTuple):
    """A regular grid in space.

    Attributes:
        size: Voxels along each axis.
        affine: Voxel index to millimetres, (4, 4).
    """

    size: tuple[int, int, int]
    affine: np.ndarray

    @classmethod
    def about(
        cls,
        centre_mm: np.ndarray,
        axes: np.ndarray,
        spacing_mm: Sequence[float],
        size: tuple[int, int, int],
    ) -> Grid:
        """Lay a grid about its middle.

        Args:
            centre_mm: Place of the middle, shape (3,).
            axes: Directions of the axes as columns of length 1, shape (3, 3).
            spacing_mm: Distance of voxels along each axis.
            size: Voxels along each axis.
        """
        affine = np.eye(4)
        affine[:3, :3] = axes * np.asarray(spacing_mm)
        affine[:3, 3] = centre_mm - affine[:3, :3] @ ((np.asarray(size) - 1) / 2)
        return cls(size, affine)


def resample_to(data: np.ndarray, affine: np.ndarray, grid: Grid, *, background: float | None = None) -> np.ndarray:
    """Resample onto any grid with one linear interpolation; smoothed first where voxels become larger.

    Where the grid's voxels are the scan's own, it is cropped and padded, not interpolated.

    Smoothing has σ = 0.42 · √(s² − 1) voxels for a factor s, which brings the scan's blur up to the grid's (full width
    at half maximum of one voxel each; Cardoso 2015, doi:10.1007/978-3-319-24571-3_81).

    Args:
        data: Shape (I, J, K).
        affine: Voxel index to millimetres in the grid's space; may hold rotation and shear.
        grid: Where to.
        background: What lies outside of the scan; its minimum when None.

    Returns:
        float32, shape `grid.size`.
    """
    import SimpleITK as sitk

    to_scan = np.linalg.solve(affine, grid.affine)  # grid index -> fractional scan index
    outside = float(data.min()) if background is None else background
    start = np.round(to_scan[:3, 3])
    if np.abs(to_scan[:3, :3] - np.eye(3)).max() < 1e-9 and np.abs(to_scan[:3, 3] - start).max() < KEPT:
        return _crop_or_pad(data, start.astype(int), grid.size, outside)
    factor = np.linalg.norm(to_scan[:3, :3], axis=1)  # of the scan's voxels along each of its axes
    variance = (0.42**2) * np.maximum(factor**2 - 1, 0)
    # Far finer scans are averaged in blocks first, up to half of the target's voxel: most of the smoothing, at no cost.
    block = np.maximum(np.floor(factor / 2), 1).astype(int)
    if block.max() > 1:
        data = block_mean(data, block.tolist())
        to_scan = to_scan.copy()
        to_scan[:3, 3] -= (block - 1) / 2
        to_scan[:3] /= block[:, None]
        variance = np.maximum(variance - (block**2 - 1) / 12, 0) / block**2  # a block of n has variance (n² − 1) / 12
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.transpose(2, 1, 0)))  # voxel units: spacing 1, origin 0
    if variance.max() > 0.05:
        image = sitk.DiscreteGaussian(image, [max(float(value), 1e-6) for value in variance], 16, 0.01, False)
    straight = np.abs(to_scan[:3, :3] - np.diag(np.diag(to_scan[:3, :3]))).max() < 1e-9
    if straight:  # along the scan's own axes: no transform to be worked out at every voxel
        transform = sitk.Transform(3, sitk.sitkIdentity)
        origin, spacing = to_scan[:3, 3].tolist(), np.diag(to_scan)[:3].tolist()
    else:
        transform = sitk.AffineTransform(to_scan[:3, :3].ravel().tolist(), to_scan[:3, 3].tolist())
        origin, spacing = [0.0] * 3, [1.0] * 3
    size = [int(n) for n in grid.size]
    direction = np.eye(3).ravel().tolist()
    resampled = sitk.Resample(
        image, size, transform, sitk.sitkLinear, origin, spacing, direction, outside, sitk.sitkFloat32
    )
    return np.asarray(sitk.GetArrayFromImage(resampled).transpose(2, 1, 0))


def carry_mask(mask: np.ndarray, affine: np.ndarray, grid: Grid) -> np.ndarray:
    """Give a mask on another grid of the same space: True where at least half of a voxel lies in it.

    Args:
        mask: Shape (I, J, K), bool.
        affine: Voxel index to millimetres in the grid's space.
        grid: Where to.
    """
    return resample_to(mask.astype(np.float32), affine, grid, background=0.0) >= 0.5


def own_grid(affine: np.ndarray, centre: np.ndarray, spacing_mm: Sequence[float], size: tuple[int, int, int]) -> Grid:
    """Lay a grid along a scan's own axes; where it has the scan's spacing, its voxels are the scan's.

    Args:
        affine: Voxel index to millimetres, (4, 4).
        centre: Fractional voxel index in the middle of the grid.
        spacing_mm: Voxel size of the grid.
        size: Voxels of the grid.
    """
    factor = np.asarray(spacing_mm) / np.linalg.norm(affine[:3, :3], axis=0)
    start = np.asarray(centre) - (np.asarray(size) - 1) / 2 * factor
    if np.allclose(factor, 1, atol=KEPT):
        start, factor = np.round(start), np.ones(3)
    result = affine.copy()
    result[:3, :3] = affine[:3, :3] * factor
    result[:3, 3] = affine[:3, :3] @ start + affine[:3, 3]
    return Grid(size, result)


def cover(data: np.ndarray, affine: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Let the background of a scan (its minimum) go on wherever a grid reaches beyond it.

    Args:
        data: Shape (I, J, K).
        affine: Voxel index to millimetres in the grid's space; may hold rotation and shear.
        grid: What is to be covered.

    Returns:
        Data on the scan's own voxels and more of them, their affine, and which of them lie in the grid, bool.
    """
    to_scan = np.linalg.solve(affine, grid.affine)
    ends = [(-0.5, n - 0.5) for n in grid.size]
    corners = np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, 3) @ to_scan[:3, :3].T + to_scan[:3, 3]
    before = np.maximum(np.ceil(-0.5 - corners.min(0) - KEPT), 0).astype(int)
    after = np.maximum(np.ceil(corners.max(0) - np.asarray(data.shape) + 0.5 - KEPT), 0).astype(int)
    if before.any() or after.any():
        data = np.pad(data, list(zip(before, after, strict=True)), constant_values=data.min())
        affine = affine.copy()
        affine[:3, 3] -= affine[:3, :3] @ before
    to_grid = np.linalg.solve(grid.affine, affine)
    steps = np.ogrid[tuple(slice(0, n) for n in data.shape)]
    within = np.ones(data.shape, dtype=bool)
    for row, n in zip(to_grid[:3], grid.size, strict=True):
        place = row[0] * steps[0] + row[1] * steps[1] + row[2] * steps[2] + row[3]
        within &= (place >= -0.5) & (place < n - 0.5)
    return data, affine, within


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


def box_mean(data: np.ndarray, start: Sequence[float], step: Sequence[float], size: Sequence[int]) -> np.ndarray:
    """Average a volume in boxes that need not begin or end between voxels; outside of it all is 0.

    Args:
        data: Shape (I, J, K).
        start: Fractional voxel index of the first box's middle along each axis.
        step: Width and distance of the boxes along each axis, voxels.
        size: Number of boxes along each axis.

    Returns:
        float32, shape `size`.

    Example:
        >>> box_mean(np.array([[[2.0, 4.0, 8.0]]]), (0, 0, 0.25), (1, 1, 1.5), (1, 1, 2)).round(3)
        array([[[2.667, 6.667]]], dtype=float32)
    """
    from scipy import sparse

    result = np.asarray(data, dtype=np.float32)
    for axis in range(3):
        edges = start[axis] + (np.arange(size[axis] + 1) - 0.5) * step[axis]
        voxels = np.arange(result.shape[axis])
        first, last = np.maximum(edges[:-1, None], voxels - 0.5), np.minimum(edges[1:, None], voxels + 0.5)
        shares = sparse.csr_array((np.maximum(last - first, 0) / step[axis]).astype(np.float32))
        lines = np.moveaxis(result, axis, 0)
        averaged = shares @ lines.reshape(len(voxels), -1)
        result = np.moveaxis(averaged.reshape(size[axis], *lines.shape[1:]), 0, axis)
    return np.ascontiguousarray(result)


def _crop_or_pad(data: np.ndarray, start: np.ndarray, size: tuple[int, int, int], outside: float) -> np.ndarray:
    result = np.full(size, outside, dtype=np.float32)
    source = tuple(slice(max(s, 0), min(s + n, m)) for s, n, m in zip(start, size, data.shape, strict=True))
    target = tuple(slice(part.start - s, part.stop - s) for part, s in zip(source, start, strict=True))
    if all(part.stop > part.start for part in source):
        result[target] = data[source]
    return result


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
