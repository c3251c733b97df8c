"""Random bias field: the slow brightness drift of a coil, as a polynomial that is evaluated one axis at a time."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from neuroage.errors import DataError
from neuroage.imaging.augment.parts import box_parts, part_sizes, run_parts
from neuroage.imaging.augment.ranges import Range, axis_pairs, draw_uniform
from neuroage.imaging.augment.step import Parameters, Step


class BiasField(Step):
    """Multiply each scan by exp(polynomial of its position), the coefficients drawn uniformly.

    The model, the coordinates, the order of the coefficients and the default ranges are TorchIO's `RandomBiasField`.
    Intensities whose background is not 0 (z-scores) are multiplied all the same, as TorchIO does: bright and dark move
    away from 0 together. `relative_to: minimum` multiplies the height above the scan's minimum instead, which is what
    a coil does to raw intensities.

    Source: Van Leemput et al. 1999, doi:10.1109/42.811270; Sudre et al. 2017, doi:10.1016/j.media.2017.01.005
    (NiftyNet).
    """

    step: Literal["bias_field"] = "bias_field"
    p: float = Field(default=0.5, ge=0, le=1)
    coefficients: float | Range = 0.5
    """Coefficients are uniform within ±this, or in [low, high]; 0 changes nothing."""
    order: int = Field(default=3, ge=0, le=10)
    """Highest total order of the polynomial."""
    relative_to: Literal["zero", "minimum"] = "zero"
    """What is multiplied: the intensity itself, or its height above the scan's minimum."""

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Parameters:
        """Draw as many coefficients as the order has terms in this number of dimensions."""
        pairs = axis_pairs(self.coefficients, n_coefficients(self.order, len(shape)), neutral=0.0)
        return {"coefficients": draw_uniform(rng, pairs)}

    def change(self, source: torch.Tensor, parameters: Sequence[Parameters], out: torch.Tensor) -> None:
        """Multiply by the field, part by part: on a CPU it is never held as a whole."""
        coefficients = [drawn["coefficients"] for drawn in parameters]
        floor = source.amin(dim=tuple(range(1, source.ndim)), keepdim=True) if self.relative_to == "minimum" else None
        multiply_by_field(source, coefficients, self.order, out, floor)


def n_coefficients(order: int, n_axes: int) -> int:
    """Count the terms of a polynomial of total order `order` in `n_axes` variables."""
    return len(exponents(order, n_axes))


@functools.lru_cache(maxsize=64)
def exponents(order: int, n_axes: int) -> tuple[tuple[int, ...], ...]:
    """List the exponents of all terms, in TorchIO's order: the last axis runs fastest, the total is at most `order`."""
    if n_axes == 0:
        return ((),)
    return tuple((first, *rest) for first in range(order + 1) for rest in exponents(order - first, n_axes - 1))


def bias_field(
    coefficients: Sequence[float], shape: Sequence[int], order: int = 3, *, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Evaluate one bias field, exp(Σ c_ijk xⁱ yʲ zᵏ) with i + j + k ≤ order; coordinates run from −1 to 1.

    Args:
        coefficients: One number for each term, ordered as TorchIO's three nested loops.
        shape: Spatial shape, two or three numbers, odd or even.
        order: Highest total order.
        device: Where to evaluate it.

    Returns:
        Field of `shape`, float32, positive; equal to TorchIO's for the same coefficients.

    Raises:
        DataError: The number of coefficients does not fit the order.

    Example:
        >>> bias_field([0.0] * 20, (4, 5, 6)).unique()
        tensor([1.])
    """
    ones = torch.ones((1, 1, *shape), device=device)
    multiply_by_field(ones, [coefficients], order, ones)
    return ones[0, 0]


def multiply_by_field(
    source: torch.Tensor,
    coefficients: Sequence[Sequence[float]],
    order: int,
    out: torch.Tensor,
    floor: torch.Tensor | None = None,
) -> None:
    """Write `source` times each scan's own field into `out`.

    The polynomial is contracted one axis at a time, in float64; only the first axis is left for the voxels, as a
    small matrix product: `order` + 1 multiplications a voxel instead of powers for each term. One read and one write
    of the volume.

    Args:
        source: Images (N, C, *spatial), contiguous.
        coefficients: N lists of coefficients.
        order: Highest total order.
        out: As `source`; may be `source` itself.
        floor: (N, 1, …) intensities that the field leaves alone, or None for 0.
    """
    shape = source.shape[2:]
    tensor = _coefficient_tensor(coefficients, order, len(shape))
    bases = [_basis(size, order) for size in shape]
    for axis in range(len(shape) - 1, 0, -1):
        tensor = np.moveaxis(np.tensordot(tensor, bases[axis], axes=(axis + 1, 1)), -1, axis + 1)
    inner = torch.from_numpy(np.ascontiguousarray(tensor.reshape(len(source), order + 1, -1), dtype=np.float32))
    powers = torch.from_numpy(bases[0].astype(np.float32)).to(source.device)
    if source.device.type == "cpu":
        for index in range(len(source)):
            base = None if floor is None else float(floor[index])
            _multiply_planes(source[index], inner[index], powers, out[index], base)
        return
    factor = torch.matmul(powers, inner.to(source.device)).exp_().view(len(source), 1, *shape)
    if floor is None:
        torch.mul(source, factor, out=out)
    else:
        torch.mul(source - floor, factor, out=out).add_(floor)


def _multiply_planes(
    source: torch.Tensor, inner: torch.Tensor, powers: torch.Tensor, out: torch.Tensor, floor: float | None
) -> None:
    """Multiply one image (C, n, …), a few planes at a time; field = exp(`powers` @ `inner`)."""
    channels, n_planes, n_columns = source.shape[0], source.shape[1], inner.shape[1]
    source, out = source.view(channels, n_planes, n_columns), out.view(channels, n_planes, n_columns)
    sizes = part_sizes((n_planes, n_columns))

    def multiply(part: tuple[slice, ...], room: Sequence[torch.Tensor]) -> None:
        planes, columns = part
        field = room[0][: (planes.stop - planes.start) * (columns.stop - columns.start)]
        field = field.view(-1, columns.stop - columns.start)
        torch.mm(powers[planes], inner[:, columns], out=field).exp_()
        for image, target in zip(source[:, planes, columns], out[:, planes, columns], strict=True):
            if floor is None:
                torch.mul(image, field, out=target)
            else:
                torch.mul(image - floor, field, out=target).add_(floor)

    run_parts(multiply, box_parts(sizes, (n_planes, n_columns)), room=[sizes[0] * sizes[1]])


def _coefficient_tensor(coefficients: Sequence[Sequence[float]], order: int, n_axes: int) -> np.ndarray:
    terms = exponents(order, n_axes)
    for given in coefficients:
        if len(given) != len(terms):
            raise DataError(
                f"{len(given)} bias-field coefficients for order {order} in {n_axes} dimensions",
                expected=f"{len(terms)}",
            )
    tensor = np.zeros((len(coefficients), *[order + 1] * n_axes))
    tensor[(slice(None), *np.transpose(terms))] = np.asarray(coefficients, dtype=float)
    return tensor


@functools.lru_cache(maxsize=64)
def _basis(size: int, order: int) -> np.ndarray:
    """Powers 0..order of the voxel centres of an axis, (size, order + 1), float64."""
    position = np.arange(size) - (size - 1) / 2
    largest = position[-1]
    return np.vander(position / largest if largest > 0 else position, order + 1, increasing=True)
