"""Random affine: rotation, scale and shift about the middle of the volume, by one interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from neuroage.imaging.augment.ranges import AxisRange, axis_pairs, draw_uniform
from neuroage.imaging.augment.resample import Pad
from neuroage.imaging.augment.step import Parameters, SpatialStep


class Affine(SpatialStep):
    """Rotate, scale and shift each scan about its middle; ranges, signs and order are TorchIO's `RandomAffine`.

    Linear interpolation blurs, and validation scans are not interpolated. Measured on brains at 4 mm (2 mm), it takes
    4% (2%) of the variance and 34% (21%) of the gradient energy, a shift that batch normalisation picks up. Two things
    are done about it: half of the scans stay on their grid (p = 0.5), and `sharpness` gives the detail back. At 0.1,
    variance is within 0.3% and gradient energy within 9% (2%), as with cubic splines, and the error falls by 29%.
    """

    step: Literal["affine"] = "affine"
    p: float = Field(default=0.5, ge=0, le=1)
    degrees: AxisRange = 10.0
    """Rotation about each axis in degrees: uniform within ±this, in [low, high], or one [low, high] for each axis."""
    scales: AxisRange = 0.1
    """Scale of each axis, 1.1 looks 10% larger: uniform within 1 ± this, in [low, high], or one such for each axis."""
    translation_mm: AxisRange = 0.0
    """Shift along each axis in mm: uniform within ±this, in [low, high], or one [low, high] for each axis."""
    isotropic: bool = False
    """Whether one scale is drawn for all axes."""
    spacing_mm: float | list[float] = 1.0
    """Size of a prepared voxel in mm, one number or one for each axis; a pipeline can fill it in."""
    pad: Pad = "minimum"
    """What stands outside the scan: its own `minimum`, its nearest `border` voxel, or a number."""
    sharpness: float = Field(default=0.1, ge=0, le=0.25)
    """Gives back detail that interpolation takes, see `sharpen`; 0 is plain linear interpolation, as TorchIO's."""

    @model_validator(mode="after")
    def _possible(self) -> Affine:
        n_axes = len(self.spacing_mm) if isinstance(self.spacing_mm, list) else 3
        if min(low for low, _ in _pairs(self.scales, n_axes, 1.0)) <= 0:
            raise ValueError("scales must stay above 0")
        if self.isotropic and isinstance(self.scales, list):
            raise ValueError("isotropic draws one scale: give scales as one number or one [low, high]")
        if np.min(self.spacing_mm) <= 0:
            raise ValueError("spacing_mm must be above 0")
        return self

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Parameters:
        """Draw scales, angles and shifts (images have one angle)."""
        n_axes = len(shape)
        scales = draw_uniform(rng, axis_pairs(self.scales, n_axes, neutral=1.0))
        degrees = draw_uniform(rng, axis_pairs(self.degrees, 3 if n_axes == 3 else 1, neutral=0.0))
        shifts = draw_uniform(rng, axis_pairs(self.translation_mm, n_axes, neutral=0.0))
        return {
            "scales": scales[:1] * n_axes if self.isotropic else scales,
            "degrees": degrees,
            "translation_mm": shifts,
            "spacing_mm": _each(self.spacing_mm, n_axes),
        }

    def matrix(self, parameters: Parameters, shape: Sequence[int]) -> np.ndarray:
        """Give the homogeneous matrix from output to input voxel indices."""
        return affine_matrix(shape, **parameters)


def affine_matrix(
    shape: Sequence[int],
    *,
    scales: Sequence[float],
    degrees: Sequence[float],
    translation_mm: Sequence[float] = (0, 0, 0),
    spacing_mm: Sequence[float] = (1, 1, 1),
) -> np.ndarray:
    """Give the matrix of an affine step: where in the input each output voxel is read.

    With world coordinates w in mm about the middle of the volume: w_in = Rᵀ (w_out / scales − translation), R the
    rotation.
    This is TorchIO's `Affine` for a volume in canonical orientation.

    Args:
        shape: Spatial shape, two or three numbers.
        scales: One for each axis; 2 makes things look twice as large.
        degrees: Three angles about the three axes, or one for an image.
        translation_mm: Shift in mm for each axis.
        spacing_mm: Voxel size in mm for each axis.

    Returns:
        Homogeneous matrix (D + 1, D + 1) from output to input voxel indices.
    """
    n_axes = len(shape)
    spacing, middle = np.asarray(spacing_mm[:n_axes], dtype=float), (np.asarray(shape) - 1) / 2
    inverse = rotation(degrees).T
    linear = inverse / np.asarray(scales, dtype=float)
    linear = linear * spacing / spacing[:, None]
    matrix = np.eye(n_axes + 1)
    matrix[:-1, :-1] = linear
    matrix[:-1, -1] = middle - linear @ middle - (inverse @ np.asarray(translation_mm[:n_axes], dtype=float)) / spacing
    return matrix


def rotation(degrees: Sequence[float]) -> np.ndarray:
    """Give the rotation matrix of one angle (2, 2), or of three angles about the axes (3, 3): y, x, z as in ITK."""
    cosines, sines = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    if len(degrees) == 1:
        return np.array([[cosines[0], -sines[0]], [sines[0], cosines[0]]])
    about_x = np.array([[1, 0, 0], [0, cosines[0], -sines[0]], [0, sines[0], cosines[0]]])
    about_y = np.array([[cosines[1], 0, sines[1]], [0, 1, 0], [-sines[1], 0, cosines[1]]])
    about_z = np.array([[cosines[2], -sines[2], 0], [sines[2], cosines[2], 0], [0, 0, 1]])
    combined: np.ndarray = about_z @ about_x @ about_y
    return combined


def _pairs(value: AxisRange, n_axes: int, neutral: float) -> list[tuple[float, float]]:
    return list(value) if isinstance(value, list) else axis_pairs(value, n_axes, neutral)


def _each(value: float | list[float], n_axes: int) -> list[float]:
    return [float(value)] * n_axes if isinstance(value, (int, float)) else [float(number) for number in value]
