"""Resampling by a matrix: one interpolation for everything that moves voxels, without a dense grid of coordinates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.functional import affine_grid, grid_sample

from neuroage.imaging.augment.parts import least_and_most, on_device, run_lines

Pad = Literal["minimum", "border"] | float

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
        rows = on_device(np.array(list(moving)), batch, keep_type=True)
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
    if _compiled(work) and work.ndim == 5 and min(work.shape[2:]) > 1 and interpolation == "linear":
        for index, matrix in enumerate(matrices):
            value = None if outside is None else float(outside[index])
            _resample_image(work[index], np.ascontiguousarray(matrix, dtype=float), whole[index], value)
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
    if _compiled(batch) and out.is_contiguous() and out.dtype == torch.float32:
        from neuroage.imaging.augment.cpu_kernels import sharpen_lines

        for image, target in zip(batch.flatten(0, 1), out.flatten(0, 1), strict=True):
            volume, result = (one.detach().numpy().reshape(-1, *one.shape[-2:]) for one in (image, target))
            run_lines(partial(_lines_of, sharpen_lines, volume, float(strength), result), volume.shape)
        return out
    torch.mul(batch, 1 + 2 * (batch.ndim - 2) * strength, out=out)
    for axis in range(2, batch.ndim):
        last = batch.shape[axis] - 1
        out.narrow(axis, 1, last).sub_(batch.narrow(axis, 0, last), alpha=strength)
        out.narrow(axis, 0, last).sub_(batch.narrow(axis, 1, last), alpha=strength)
        for edge in (0, last):
            out.narrow(axis, edge, 1).sub_(batch.narrow(axis, edge, 1), alpha=strength)
    return out


def _compiled(batch: torch.Tensor) -> bool:
    """Whether the compiled kernels take this batch as it is."""
    return batch.device.type == "cpu" and batch.dtype == torch.float32 and batch.is_contiguous()


def _outside_values(batch: torch.Tensor, pad: Pad) -> torch.Tensor | None:
    if pad == "border":
        return None
    if pad == "minimum":
        if batch.device.type == "cpu":
            return torch.stack([least_and_most(image)[0] for image in batch])
        return batch.amin(dim=tuple(range(1, batch.ndim)))
    return batch.new_full((len(batch),), float(pad))


def _resample_image(source: torch.Tensor, matrix: np.ndarray, out: torch.Tensor, outside: float | None) -> None:
    """Resample one image (C, I, J, K) on a CPU; no coordinates are kept."""
    from neuroage.imaging.augment.cpu_kernels import resample_lines

    value = np.float32(0 if outside is None else outside)
    for channel, target in zip(source.detach().numpy(), out.numpy(), strict=True):
        work = partial(_lines_of, resample_lines, channel, matrix, value, outside is not None, target)
        run_lines(work, target.shape)


def _lines_of(kernel: Callable[..., None], *arguments: Any) -> None:
    *rest, part = arguments
    kernel(*rest, part.start, part.stop)


def _resample_by_grid(
    batch: torch.Tensor,
    matrices: Sequence[np.ndarray],
    out: torch.Tensor,
    outside: torch.Tensor | None,
    interpolation: Literal["linear", "nearest"],
) -> None:
    """Resample by `grid_sample` over the whole batch, a few output planes at a time."""
    sizes, shape, n_axes = np.array(batch.shape[2:]), out.shape[2:], batch.ndim - 2
    planes = max(1, _GRID_VOXELS // max(1, len(batch) * int(np.prod(shape[1:]))))
    for start in range(0, shape[0], planes):
        stop = min(start + planes, shape[0])
        box = np.array([stop - start, *shape[1:]])
        corner = np.array([start, *[0] * (n_axes - 1)])
        grid = affine_grid(_theta(matrices, sizes, box, corner, batch), [len(batch), 1, *box], align_corners=False)
        value = grid_sample(
            batch,
            grid,
            mode="bilinear" if interpolation == "linear" else "nearest",
            padding_mode="border",
            align_corners=False,
        )
        if outside is not None:
            beyond = torch.linalg.vector_norm(grid, ord=float("inf"), dim=-1)[:, None] > 1
            value = torch.where(beyond, outside.reshape(-1, *[1] * (batch.ndim - 1)), value)
        out[:, :, start:stop] = value


def _theta(
    matrices: Sequence[np.ndarray], sizes: np.ndarray, box: np.ndarray, corner: np.ndarray, like: torch.Tensor
) -> torch.Tensor:
    """Give what `affine_grid` wants, last axis first: voxel index x of a grid of n voxels is (2 x + 1) / n − 1 there.

    Args:
        matrices: From output to input voxel indices.
        sizes: Of the input.
        box, corner: Size and first voxel of the part of the output that is made.
        like: Gives type and device.
    """
    rows = np.stack(matrices).astype(float)[:, : len(sizes)]
    linear = rows[:, :, :-1]
    offset = rows[:, :, -1] + linear @ (corner + (box - 1) / 2)
    scaled = np.concatenate([linear * (box / sizes[:, None]), ((2 * offset + 1) / sizes - 1)[:, :, None]], axis=2)
    order = [*range(len(sizes) - 1, -1, -1), len(sizes)]
    return on_device(scaled[:, ::-1][:, :, order].copy(), like)
