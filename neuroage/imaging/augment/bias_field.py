"""Random bias field: the slow brightness drift of a coil, as a polynomial that is evaluated one axis at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from neuroage.errors import DataError
from neuroage.imaging.augment.parts import apart, on_device, run_here, run_lines, run_parts
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

    The polynomial is contracted one axis at a time, in float64; only one axis is left for the voxels: `order` + 1
    multiplications a voxel instead of powers for each term. On a CPU that and the exponential are one compiled pass,
    one read and one write of the volume, and the field is never held.

    Args:
        source: Images (N, C, *spatial), contiguous.
        coefficients: N lists of coefficients.
        order: Highest total order.
        out: As `source`; may be `source` itself.
        floor: (N, 1, …) intensities that the field leaves alone, or None for 0.
    """
    shape = source.shape[2:]
    if source.device.type == "cpu" and source.dtype == out.dtype == torch.float32 and out.is_contiguous():
        tensors, bases = _coefficient_tensor(coefficients, order, len(shape)), [0.0] * len(source)
        if floor is not None:
            bases = floor.flatten().tolist()

        def multiply(index: int, run: Callable[..., None]) -> None:
            _multiply_image(source[index], tensors[index], bases[index], out[index], run)

        if len(source) >= torch.get_num_threads():  # a scan for each thread: they meet once a batch
            run_parts(lambda index, room: multiply(index, run_here), range(len(source)), joins=True)
        else:
            for index in range(len(source)):
                multiply(index, run_lines)
        return
    # On a GPU the first axis is left for the voxels: one matrix product makes the whole field.
    tensor = _coefficient_tensor(coefficients, order, len(shape))
    for axis in range(1, len(shape)):
        tensor = np.moveaxis(np.tensordot(tensor, _basis(shape[axis], order), axes=(axis + 1, 1)), -1, axis + 1)
    inner = on_device(np.ascontiguousarray(tensor).reshape(len(source), order + 1, -1), source)
    powers = on_device(_basis(shape[0], order), source)
    factor = torch.matmul(powers, inner).exp_().view(len(source), 1, *shape)
    if floor is None:
        torch.mul(source, factor, out=out)
    else:
        torch.mul(source - floor, factor, out=out).add_(floor)


def _multiply_image(
    source: torch.Tensor, tensor: np.ndarray, floor: float, out: torch.Tensor, run: Callable[..., None]
) -> None:
    """Multiply one image (C, …) line by line, by 2 to the power of a polynomial; `run` goes over the lines."""
    from neuroage.imaging.augment.cpu_kernels import WIDTH, multiply_lines

    shape = source.shape[1:]
    polynomials = _line_polynomials(tensor, len(tensor) - 1, shape)
    places = np.zeros(-(-shape[-1] // WIDTH) * WIDTH, dtype=np.float32)
    places[: shape[-1]] = _basis(shape[-1], 1)[:, 1]
    images, results = (each.view(len(each), -1, shape[-1]).numpy() for each in (source.detach(), out))

    def multiply(part: slice) -> None:
        for image, result in zip(images, results, strict=True):
            alone = apart(image[part], result)
            multiply_lines(alone, polynomials[part], places, np.float32(floor), result[part])

    run(multiply, images.shape[1:])


def _line_polynomials(tensor: np.ndarray, order: int, shape: Sequence[int]) -> np.ndarray:
    """Give each line's polynomial in the last coordinate, of powers of 2: (n_lines, order + 1), float32."""
    lines = np.tensordot(_basis(shape[0], order), tensor / np.log(2), axes=(1, 0))
    for size in shape[1:-1]:
        lines = np.matmul(_basis(size, order), lines)
    return lines.reshape(-1, order + 1).astype(np.float32)


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
