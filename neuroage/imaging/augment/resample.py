"""Resampling by a matrix: one interpolation for everything that moves voxels, without a dense grid of coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch.nn.functional import grid_sample

from neuroage.imaging.augment.parts import box_parts, part_sizes, run_parts

Pad = Literal["minimum", "border"] | float

_LARGEST_ROW = 12288
"""Rows that a flattened part may span. Float32 places a sample among 12,288 rows to 0.0007 voxel; 1e-3 is the aim."""
_GRID_VOXELS = 1 << 25
"""Voxels whose coordinates are held at a time off the CPU: 400 MB of float32."""


def move(
    batch: torch.Tensor, matrices: Sequence[np.ndarray | None], *, pad: Pad = "minimum", sharpness: float = 0.0
) -> torch.Tensor:
    """Move the voxels of each scan by its own matrix, interpolating only where the matrix asks for it.

    Args:
        batch: Images (B, C, *spatial), floating point; left alone.
        matrices: B matrices (D + 1, D + 1) from output to input voxel indices, or None to leave a scan as it is.
        pad: What stands outside: the scan's own `minimum`, its nearest `border` voxel, or a number.
        sharpness: Strength of `sharpen` after the interpolation.

    Returns:
        New images of the same shape. Scans without a matrix and flips are exact.
    """
    out = torch.empty_like(batch, memory_format=torch.contiguous_format)
    moving: dict[int, np.ndarray] = {}
    for index, matrix in enumerate(matrices):
        axes = () if matrix is None else flipped_axes(matrix, batch.shape[2:])
        if matrix is not None and axes is None:
            moving[index] = matrix
        else:
            out[index] = batch[index].flip([axis + 1 for axis in axes]) if axes else batch[index]
    if batch.device.type == "cpu":  # scan by scan: nothing is held twice
        for index, matrix in moving.items():
            one, target = batch[index : index + 1], out[index : index + 1]
            if sharpness:
                sharpen(resample_affine(one, [matrix], pad=pad), sharpness, out=target)
            else:
                resample_affine(one, [matrix], pad=pad, out=target)
    elif moving:
        rows = torch.tensor(list(moving), device=batch.device)
        some = batch if len(moving) == len(batch) else batch.index_select(0, rows)
        moved = resample_affine(some, list(moving.values()), pad=pad)
        out.index_copy_(0, rows, sharpen(moved, sharpness) if sharpness else moved)
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

    Rotation, scale, shift, flip and crop are one matrix. Voxels whose centre lies within the input's grid (its
    outermost half voxels included) are interpolated, all others get `pad`, as ITK does.

    Args:
        batch: Images (B, C, *spatial), floating point, finite; left alone.
        matrices: B matrices (D + 1, D + 1) from output to input voxel indices.
        output_shape: Spatial shape of the result; as the input when None. A crop is a smaller shape, its corner in the
            matrix.
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


def sharpen(batch: torch.Tensor, strength: float, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Give back the fine detail that linear interpolation takes: x + strength · Σ_axes (2 x − x₋ − x₊).

    Args:
        batch: Images (B, C, *spatial), floating point; left alone.
        strength: 0 changes nothing. Linear interpolation at random places keeps 1 − (1 − cos ω) / 3 of the power at
            frequency ω of an axis; 1/12 undoes that to first order.
        out: Where to write, not overlapping `batch`. New memory when None.

    Returns:
        Images of the same shape; beyond the edges the outermost voxels are repeated.
    """
    if out is None:
        out = torch.empty_like(batch, memory_format=torch.contiguous_format)
    shape, on_cpu = batch.shape[2:], batch.device.type == "cpu"

    def sharpen_box(part: tuple[slice, ...], room: Sequence[torch.Tensor]) -> None:
        place = [part[0], slice(None), *part[1:]]
        centre, target = batch[tuple(place)], out[tuple(place)]
        torch.mul(centre, 1 + 2 * len(shape) * strength, out=target)
        for axis in range(2, batch.ndim):
            start, stop, last = place[axis].start, place[axis].stop, batch.shape[axis] - 1
            for step in (-1, 1):
                low, high = max(start + step, 0), min(stop + step, last + 1)
                beside = batch[(*place[:axis], slice(low, high), *place[axis + 1 :])]
                target.narrow(axis, low - step - start, high - low).sub_(beside, alpha=strength)
                edge = 0 if step < 0 else last
                if start <= edge < stop:
                    line = centre.narrow(axis, edge - start, 1)
                    target.narrow(axis, edge - start, 1).sub_(line, alpha=strength)

    everything = (len(batch), *shape)
    if on_cpu:
        run_parts(sharpen_box, box_parts([1, *part_sizes(shape)], everything))
    else:  # in this thread: a device's current stream belongs to the thread
        sharpen_box(tuple(slice(0, size) for size in everything), ())
    return out


def _outside_values(batch: torch.Tensor, pad: Pad) -> torch.Tensor | None:
    if pad == "border":
        return None
    if pad == "minimum":
        return batch.amin(dim=tuple(range(1, batch.ndim)))
    return batch.new_full((len(batch),), float(pad))


def _resample_volume(source: torch.Tensor, matrix: np.ndarray, out: torch.Tensor, outside: float | None) -> None:
    """Resample one volume (C, I, J, K) on a CPU, part by part.

    torch samples volumes with scalar code, but images with vector code. A volume read as an image of I·J rows is
    bilinear within a plane; with the same memory shifted by one plane as a second channel, the third axis is one
    `lerp`.
    """
    shape, n_k = tuple(out.shape[1:]), source.shape[3]
    lines = [row[0] * np.arange(shape[0])[:, None] + (row[1] * np.arange(shape[1]) + row[3]) for row in matrix[:3]]
    along = [torch.from_numpy((slope * np.arange(shape[2])).astype(np.float32)) for slope in matrix[:3, 2]]
    within = None if outside is None else _intervals(matrix, lines, source.shape[1:], shape[2])
    # grid_sample counts from −1 to 1
    column_lines = torch.from_numpy((lines[2] * (2 / (n_k - 1)) - 1).astype(np.float32))
    column_along = along[2] * (2 / (n_k - 1))

    def resample(part: tuple[slice, ...], room: Sequence[torch.Tensor]) -> None:
        box = [piece.stop - piece.start for piece in part]
        n_voxels = box[0] * box[1] * box[2]
        plane, whole, row = (memory[:n_voxels].view(box) for memory in room[:3])
        grid = room[3][: 2 * n_voxels].view(1, box[0] * box[1], box[2], 2)
        scale = _place_rows(lines, along, part, source.shape[1:3], plane, whole, row)
        column, rows = grid.view(*box, 2).unbind(-1)
        torch.add(column_lines[part[:2]][:, :, None], column_along[part[2]], out=column)
        rows.copy_(row)
        mask = None if within is None else _mark_inside(within, part, out=row)
        for channel, target in zip(source, out[(slice(None), *part)], strict=True):
            value = _sample(channel, grid, scale).view(2, *box)
            value = torch.lerp(value[0], value[1], plane)
            if mask is None:
                target.copy_(value)
            else:
                torch.lerp(empty[:n_voxels].view(box), value, mask, out=target)

    sizes = _part_sizes(matrix, shape, source.shape[2])
    n_voxels = int(np.prod(sizes))
    empty = torch.full((n_voxels,), outside if outside is not None else 0.0)
    run_parts(resample, box_parts(sizes, shape), room=[n_voxels, n_voxels, n_voxels, 2 * n_voxels])


def _part_sizes(matrix: np.ndarray, shape: Sequence[int], n_rows: int) -> list[int]:
    """Choose the size of a part whose input spans few enough planes for float32."""
    sizes, slopes = part_sizes(shape), np.abs(matrix[0, :3])
    while (np.dot(slopes, np.array(sizes) - 1) + 2) * n_rows > _LARGEST_ROW and max(sizes) > 16:
        widest = int(np.argmax(slopes * sizes * (np.array(sizes) > 16)))
        if sizes[widest] <= 16:
            break
        sizes[widest] = -(-sizes[widest] // 2)
        grown = next((axis for axis in (0, 1, 2) if axis != widest and 2 * sizes[axis] <= shape[axis]), None)
        if grown is not None and slopes[grown] < slopes[widest]:
            sizes[grown] *= 2
    return sizes


def _place_rows(
    lines: Sequence[np.ndarray],
    along: Sequence[torch.Tensor],
    part: tuple[slice, ...],
    sizes: Sequence[int],
    plane: torch.Tensor,
    whole: torch.Tensor,
    row: torch.Tensor,
) -> tuple[int, int]:
    """Place a part in the planes and rows of the input.

    Writes the fraction between two planes into `plane`, the row (from −1 to 1 over the rows that are read) into `row`.

    Returns:
        The first plane that is read, and the number of pairs of neighbouring planes from there.
    """
    n_planes, n_rows = sizes
    across, rest = lines[0][part[:2]], along[0][part[2]]
    reach = sorted((float(rest[0]), float(rest[-1])))
    first = int(np.clip(np.floor(across.min() + reach[0]), 0, n_planes - 2))
    n_pairs = int(np.clip(np.floor(across.max() + reach[1]), first, n_planes - 2)) - first + 1
    per_row = 2 / (n_pairs * n_rows - 1)

    torch.add(_column(across - first), rest, out=plane).clamp_(0, n_pairs)
    torch.floor(plane, out=whole).clamp_(max=n_pairs - 1)
    plane.sub_(whole)
    # Rows must not run over into the next plane: clamped within their own before the planes are added.
    torch.add(_column(lines[1][part[:2]] * per_row - 1), along[1][part[2]] * per_row, out=row)
    row.clamp_(-1, (n_rows - 1) * per_row - 1).add_(whole, alpha=n_rows * per_row)
    return first, n_pairs


def _column(lines: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(lines.astype(np.float32))[:, :, None]


def _sample(volume: torch.Tensor, grid: torch.Tensor, planes: tuple[int, int]) -> torch.Tensor:
    """Sample lower and upper plane of each pair, (2, voxels); the border rule of `grid_sample` clamps columns."""
    first, n_pairs = planes
    size = volume.shape[1] * volume.shape[2]
    rows = volume.as_strided(
        (1, 2, n_pairs * volume.shape[1], volume.shape[2]),
        (0, size, volume.shape[2], 1),
        volume.storage_offset() + first * size,
    )
    return grid_sample(rows, grid, mode="bilinear", padding_mode="border", align_corners=True)


def _intervals(
    matrix: np.ndarray, lines: Sequence[np.ndarray], sizes: Sequence[int], length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Say which part of each output line is read from within the input: one interval, as its middle and half width."""
    enter, leave = np.full(lines[0].shape, -1.0), np.full(lines[0].shape, float(length))
    for row, start, size in zip(matrix, lines, sizes, strict=False):
        if abs(row[2]) < 1e-12:
            leave = np.where((start >= -0.5) & (start < size - 0.5), leave, -2.0)
            continue
        ends = (-0.5 - start) / row[2], (size - 0.5 - start) / row[2]
        enter, leave = np.maximum(enter, np.minimum(*ends)), np.minimum(leave, np.maximum(*ends))
    leave = np.maximum(leave, -2.0)
    return ((enter + leave) / 2).astype(np.float32), ((leave - enter) / 2).astype(np.float32)


def _mark_inside(
    within: tuple[np.ndarray, np.ndarray], part: tuple[slice, ...], out: torch.Tensor
) -> torch.Tensor | None:
    """Write 1 where a part is read from within the input and 0 elsewhere; None when all of it is within."""
    middle, half = (values[part[:2]] for values in within)
    low, high = part[2].start, part[2].stop - 1
    if (middle - half <= low).all() and (middle + half >= high).all():
        return None
    place = torch.arange(low, high + 1, dtype=torch.float32)
    torch.sub(place, torch.from_numpy(middle)[:, :, None], out=out).abs_()
    return out.le_(torch.from_numpy(half)[:, :, None])


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
    per_axis = rows.view(len(rows), *[1] * n_axes, n_axes, n_axes + 1)
    planes = max(1, _GRID_VOXELS // max(1, len(batch) * int(np.prod(shape[1:]))))
    axes = [torch.arange(size, dtype=batch.dtype, device=batch.device) for size in shape]
    for start in range(0, shape[0], planes):
        part = slice(start, min(start + planes, shape[0]))
        grid = per_axis[..., -1]
        for axis, step in enumerate([axes[0][part], *axes[1:]]):
            across = step.reshape([-1 if other == axis else 1 for other in range(n_axes)])
            grid = grid + across[None, ..., None] * per_axis[..., axis]
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
