"""Random flip: left and right exchanged; exact, no interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field, field_validator

from neuroage.errors import DataError
from neuroage.imaging.augment.step import Parameters, SpatialStep

LEFT_RIGHT = {3: 0, 2: 1}  # the axis from side to side, by the number of axes


class Flip(SpatialStep):
    """Mirror a scan or picture: left–right unless other axes are named, along which brains look alike."""

    step: Literal["flip"] = "flip"
    p: float = Field(default=0.5, ge=0, le=1)
    """Probability that a scan is flipped along every axis in `axes`."""
    axes: list[int] | None = Field(default=None, min_length=1)
    """Spatial axes; null is left–right: the first axis of volumes (RAS+), the columns (axis 1) of pictures."""

    @field_validator("axes")
    @classmethod
    def _known_axes(cls, axes: list[int] | None) -> list[int] | None:
        if axes is None:
            return None
        if any(axis not in (0, 1, 2) for axis in axes) or len(set(axes)) != len(axes):
            raise ValueError(f"axes {axes} cannot be; write different numbers out of 0, 1, 2")
        return sorted(axes)

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Parameters:
        """Draw nothing further: a flipped scan is flipped along the axes named."""
        axes = [LEFT_RIGHT[len(shape)]] if self.axes is None else list(self.axes)
        if axes[-1] >= len(shape):
            raise DataError(f"axis {axes[-1]} cannot be flipped in {len(shape)} dimensions", expected="axes from 0 up")
        return {"axes": axes}

    def matrix(self, parameters: Parameters, shape: Sequence[int]) -> np.ndarray:
        """Give the homogeneous matrix from output to input voxel indices."""
        return flip_matrix(parameters["axes"], shape)


def flip_matrix(axes: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Give the matrix that mirrors `axes` of a volume of `shape` about its middle, in voxel indices."""
    matrix = np.eye(len(shape) + 1)
    for axis in axes:
        matrix[axis, axis], matrix[axis, -1] = -1, shape[axis] - 1
    return matrix
