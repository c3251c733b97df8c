"""Resampling by a matrix: one interpolation for everything that moves voxels, without a dense grid of coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch.nn.functional import grid_sample

Pad = Literal["minimum", "border"] | float

_BLOCK_VOXELS = 1 << 18
"""Output voxels computed at a time: their coordinates (a few MiB) stay in the cache. Measured: 49 to 56 ms from 8 to 2 planes
of 192 × 160 at a time on one core, 75 ms plane by plane."""
_LARGEST_ROW = 8192
"""Rows that a flattened block may span. Float32 places a sample among 8,192 rows to 0.0005 voxel, the error aimed at."""
_GRID_VOXELS = 1 << 25
"""Voxels whose coordinates are held at a time off the CPU: 400 MB of float32."""


def move(batch: torch.Tensor, matrices: Sequence[np.ndarray | None], *, pad: Pad = "minimum") -> torch.Tensor:
    """Move the voxels of each scan by its own matrix, interpolating only where the matrix asks for it.

    Args:
        batch: Images (B, C, *spatial), floating point; left alone.
        matrices: B matrices (D + 1, D + 1) from output to input voxel indices, or None to leave a scan as it is.
        pad: What stands outside: the scan's own `minimum`, its nearest `border` voxel, or a number.

    Returns:
        New images of the same shape. Scans without a matrix and flips are exact.
    """
    out = torch.empty_like(batch, memory_format=torch.contiguous_format)
    interpolated = []
    for index, matrix in enumerate(matrices):
        axes = () if matrix is None else flipped_axes(matrix, batch.shape[2:])
        if axes is None:
            interpolated.append(index)
        else:
            out[index] = batch[index].flip([axis + 1 for axis in axes]) if axes else batch[index]
    chosen = [matrix for index, matrix in enumerate(matrices) if index in interpolated and matrix is not None]
    if len(interpolated) == len(batch):
        resample_affine(batch, chosen, pad=pad, out=out)
    elif batch.device.type == "cpu":
        for index, matrix in zip(interpolated, chosen, strict=True):
            resample_affine(batch[index : index + 1], [matrix], pad=pad, out=out[index : index + 1])
    elif interpolated:
        rows = torch.tensor(interpolated, device=batch.device)
        out.index_copy_(0, rows, resample_affine(batch.index_select(0, rows), chosen, pad=pad))
    return out


def flipped_axes(matrix: np.ndarray, shape: Sequence[int]) -> tuple[int, ...] | None:
    """Name the axes that `matrix` merely mirrors, () when it moves nothing, None when it needs interpolation."""
    axes = tuple(axis for axis in range(len(shape)) if matrix[axis, axis] < 0)
    expected = np.diag([*(-1.0 if axis in axes else 1.0 for axis in range(len(shape))), 1.0])
    expected[:-1, -1] = [size - 1 if axis in axes else 0 for axis, size in enumerate(shape)]
    return axes if np.abs(matrix - expected).max() < 1e-9 else None


def resample_affine(
    batch: torch.Tensor,
    matrices: Sequence[np.ndarray],
    *,
    output_shape: Sequence[int] | None = None,
    pad: Pad = "minimum",
    interpolation: Literal["linear", "nearest"] = "linear",
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Read each output voxel from where its scan's matrix says, by one interpolation.

    Rotation, scale, shift, flip and crop are one matrix. Voxels whose centre lies within the input's grid (its outermost
    half voxels included) are interpolated, all others get `pad`, as ITK does.

    Args:
        batch: Images (B, C, *spatial), floating point, finite; left alone.
        matrices: B matrices (D + 1, D + 1) from output to input voxel indices.
        output_shape: Spatial shape of the result; as the input when None. A crop is a smaller shape and a shifted matrix.
        pad: What stands outside: the scan's own `minimum`, its nearest `border` voxel, or a number.
        interpolation: `linear`, or `nearest` for labels.
        out: Where to write, not overlapping `batch`. New memory when None.

    Returns:
        Images (B, C, *output_shape), same dtype and device.
    """
    shape = tuple(batch.shape[2:] if output_shape is None else output_shape)
    work = (batch if batch.dtype in (torch.float32, torch.float64) else batch.float()).contiguous()
    outside = _outside_values(work, pad)
    whole = out if out is not None and out.dtype == work.dtype else work.new_empty((*batch.shape[:2], *shape))
    flat_fits = work.ndim == 5 and work.dtype == torch.float32 and min(work.shape[2:]) > 1
    if work.device.type == "cpu" and flat_fits and interpolation == "linear":
        for index, matrix in enumerate(matrices):
            value = None if outside is None else float(outside[index])
            _resample_volume(work[index], np.asarray(matrix, dtype=float), whole[index], value)
    else:
        _resample_by_grid(work, matrices, whole, outside, interpolation)
    return whole.to(batch.dtype) if out is None else out if out is whole else out.copy_(whole)


def _outside_values(batch: torch.Tensor, pad: Pad) -> torch.Tensor | None:
    if pad == "border":
        return None
    if pad == "minimum":
        return batch.amin(dim=tuple(range(1, batch.ndim)))
    return batch.new_full((len(batch),), float(pad))


def _resample_volume(source: torch.Tensor, matrix: np.ndarray, out: torch.Tensor, outside: float | None) -> None:
    """Resample one volume (C, I, J, K) on a CPU, block by block.

    torch samples volumes with scalar code on one thread, but images with vector code. A volume read as an image of I·J rows is
    bilinear within a plane; with the same memory shifted by one plane as a second channel, the third axis is one `lerp`.
    """
    corners, sizes = _block_grid(matrix, out.shape[1:], source.shape[2])
    room = torch.empty((5, int(np.prod(sizes))))
    for corner in corners:
        stop = np.minimum(np.add(corner, sizes), out.shape[1:])
        part = tuple(slice(low, int(high)) for low, high in zip(corner, stop, strict=True))
        _resample_block(source, matrix, out[(slice(None), *part)], part, outside, room)


def _block_grid(matrix: np.ndarray, shape: Sequence[int], n_rows: int) -> tuple[list[tuple[int, ...]], list[int]]:
    """Choose a block size whose input spans few enough planes for float32, and list the blocks' corners."""
    sizes = [max(1, min(shape[0], _BLOCK_VOXELS // (shape[1] * shape[2]))), shape[1], shape[2]]
    slopes = np.abs(matrix[0, :3])
    while (np.dot(slopes, np.array(sizes) - 1) + 2) * n_rows > _LARGEST_ROW:
        widest = int(np.argmax(slopes * (np.array(sizes) > 16) * sizes))
        if sizes[widest] <= 16:
            break
        sizes[widest] = -(-sizes[widest] // 2)
    axes = [range(0, size, step) for size, step in zip(shape, sizes, strict=True)]
    return [(i, j, k) for i in axes[0] for j in axes[1] for k in axes[2]], sizes


def _resample_block(
    source: torch.Tensor,
    matrix: np.ndarray,
    out: torch.Tensor,
    part: tuple[slice, ...],
    outside: float | None,
    room: torch.Tensor,
) -> None:
    """Fill one block of the output; `room` is memory for its coordinates, used again by every block."""
    channels, n_i, n_j, n_k = source.shape
    steps = [np.arange(piece.start, piece.stop, dtype=float) for piece in part]
    first, n_planes = _planes_read(matrix[0], steps, n_i)
    n_rows = n_planes * n_j

    block = [len(step) for step in steps]
    n_voxels = int(np.prod(block))
    plane, whole, row = (room[place, :n_voxels].view(block) for place in range(3))
    grid = room[3:5].view(-1)[: 2 * n_voxels].view(*block, 2)
    _coordinates(matrix[0], steps, plane, shift=-first).clamp_(0, n_planes)
    torch.floor(plane, out=whole).clamp_(max=n_planes - 1)
    plane.sub_(whole)
    # grid_sample counts from −1 to 1; its own border rule clamps the columns, rows must not run over into the next plane.
    _coordinates(matrix[1], steps, row).clamp_(0, n_j - 1)
    grid[..., 1] = row.add_(whole, alpha=n_j).mul_(2 / (n_rows - 1)).sub_(1)
    _coordinates(matrix[2] * (2 / (n_k - 1)), steps, grid[..., 0], shift=-1.0)

    halves = 2 if block[0] % 2 == 0 else 1  # torch spreads images of a batch over threads, so one is handed over as two
    grid = grid.view(halves, -1, block[2], 2)
    mask = None if outside is None else _inside(matrix, steps, source.shape[1:], out=row)
    fill = None if mask is None or outside is None else torch.mul(mask, -outside, out=whole).add_(outside)
    for channel in range(channels):
        offset = source.storage_offset() + (channel * n_i + first) * n_j * n_k
        rows = source.as_strided((halves, 2, n_rows, n_k), (0, n_j * n_k, n_k, 1), offset)
        pair = grid_sample(rows, grid, mode="bilinear", padding_mode="border", align_corners=True)
        below, above = pair.view(halves, 2, -1, *block[1:]).unbind(1)
        value = torch.lerp(below, above, plane.view(below.shape)).view(block)
        if mask is None or fill is None:
            out[channel] = value
        else:
            torch.add(value.mul_(mask), fill, out=out[channel])


def _planes_read(row: np.ndarray, steps: Sequence[np.ndarray], n_planes: int) -> tuple[int, int]:
    """Give the first input plane that a block reads, and how many pairs of neighbouring planes it reads from there."""
    ends = [sorted((slope * step[0], slope * step[-1])) for slope, step in zip(row, steps, strict=False)]
    lowest, highest = row[3] + sum(low for low, _ in ends), row[3] + sum(high for _, high in ends)
    first = int(np.clip(np.floor(lowest), 0, n_planes - 2))
    return first, int(np.clip(np.floor(highest), first, n_planes - 2)) - first + 1


def _coordinates(row: np.ndarray, steps: Sequence[np.ndarray], out: torch.Tensor, shift: float = 0.0) -> torch.Tensor:
    """Write one input coordinate of every voxel of a block: row · (i, j, k, 1) + shift."""
    i, j, k = (step * slope for step, slope in zip(steps, row, strict=False))
    across = np.add.outer(i, j + (row[3] + shift)).astype(np.float32)
    return torch.add(torch.from_numpy(across)[:, :, None], torch.from_numpy(k.astype(np.float32)), out=out)


def _inside(
    matrix: np.ndarray, steps: Sequence[np.ndarray], shape: Sequence[int], out: torch.Tensor
) -> torch.Tensor | None:
    """Mark with 1 the voxels of a block that are read from within the input, others with 0; None when all are within.

    Along a line of the output they are one interval, so a voxel is compared with one middle and one half width.
    """
    i, j, k = steps
    enter, leave = np.full((len(i), len(j)), -np.inf), np.full((len(i), len(j)), np.inf)
    for row, size in zip(matrix, shape, strict=False):
        start = np.add.outer(row[0] * i, row[1] * j + row[3])
        if abs(row[2]) < 1e-12:
            leave = np.where((start >= -0.5) & (start < size - 0.5), leave, -np.inf)
            continue
        ends = (-0.5 - start) / row[2], (size - 0.5 - start) / row[2]
        enter, leave = np.maximum(enter, np.minimum(*ends)), np.minimum(leave, np.maximum(*ends))
    if (enter <= k[0]).all() and (leave >= k[-1]).all():
        return None
    # Bounds just beyond the line keep middles finite where nothing limits it.
    enter, leave = np.maximum(enter, k[0] - 1), np.minimum(np.maximum(leave, k[0] - 2), k[-1] + 1)
    middle, half = ((bound / 2).astype(np.float32)[:, :, None] for bound in (enter + leave, leave - enter))
    torch.sub(torch.from_numpy(k.astype(np.float32)), torch.from_numpy(middle), out=out).abs_()
    return out.le_(torch.from_numpy(half))


def _resample_by_grid(
    batch: torch.Tensor,
    matrices: Sequence[np.ndarray],
    out: torch.Tensor,
    outside: torch.Tensor | None,
    interpolation: Literal["linear", "nearest"],
) -> None:
    """Resample by `grid_sample` over the whole batch, a few output planes at a time."""
    sizes, shape, n_axes = batch.shape[2:], out.shape[2:], batch.ndim - 2
    scaled = np.stack(matrices).astype(float)[:, :n_axes]
    # Voxel index x becomes (2 x + 1) / size − 1: the grid's outermost half voxels end at −1 and 1.
    scaled = scaled * (2 / np.array(sizes))[:, None]
    scaled[:, :, -1] += 1 / np.array(sizes) - 1
    rows = torch.tensor(scaled[:, ::-1].copy(), dtype=batch.dtype, device=batch.device)
    planes = max(1, _GRID_VOXELS // max(1, len(batch) * int(np.prod(shape[1:]))))
    axes = [torch.arange(size, dtype=batch.dtype, device=batch.device) for size in shape]
    for start in range(0, shape[0], planes):
        part = slice(start, min(start + planes, shape[0]))
        grid = rows[:, *[None] * n_axes, :, -1]
        for axis, step in enumerate([axes[0][part], *axes[1:]]):
            across = step.reshape([-1 if other == axis else 1 for other in range(n_axes)])
            grid = grid + across[None, ..., None] * rows[:, *[None] * n_axes, :, axis]
        value = grid_sample(
            batch,
            grid,
            mode="bilinear" if interpolation == "linear" else "nearest",
            padding_mode="border",
            align_corners=False,
        )
        if outside is not None:
            inside = (grid.abs() <= 1).all(-1)[:, None]
            value = torch.where(inside, value, outside.reshape(-1, *[1] * (batch.ndim - 1)))
        out[:, :, part] = value
