"""Transforms in space: matrices in RAS+ millimetres, their parts, and ITK's file format."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np

from neuroage.errors import DataError
from neuroage.files import write_text
from neuroage.imaging.itk import LPS
from neuroage.imaging.read import Volume


def place(volume: Volume, matrix: np.ndarray) -> Volume:
    """Put a volume where it lies in the fixed space: its affine changes, its voxels do not.

    Args:
        volume: In the moving space.
        matrix: Fixed millimetres to moving millimetres, (4, 4).
    """
    return replace(volume, affine=np.linalg.solve(matrix, volume.affine))


def apply(matrix: np.ndarray, points_mm: np.ndarray) -> np.ndarray:
    """Move points, shape (N, 3), in millimetres."""
    return np.asarray(points_mm @ matrix[:3, :3].T + matrix[:3, 3])


def mean_distance_mm(one: np.ndarray, other: np.ndarray, points_mm: np.ndarray) -> float:
    """Give the mean distance between the places to which two transforms take the same points, shape (N, 3)."""
    return float(np.linalg.norm(apply(one, points_mm) - apply(other, points_mm), axis=1).mean())


def describe(matrix: np.ndarray) -> dict[str, float | list[float]]:
    """Take a transform apart, by polar decomposition.

    Returns:
        `rotation_deg` (angle about one axis), `scale` (three factors along the principal axes of stretch, largest
        first; a stretch along oblique axes is what others call shear), `mirrors` (1 where it exchanges left and right)
        and `translation_mm` (three).
    """
    linear = matrix[:3, :3]
    left, stretch, right = np.linalg.svd(linear)
    rotation = left @ right
    mirrors = float(np.linalg.det(rotation) < 0)
    if mirrors:
        rotation = -rotation
    angle = np.degrees(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1)))
    return {
        "rotation_deg": round(float(angle), 3),
        "scale": np.round(stretch, 4).tolist(),
        "mirrors": mirrors,
        "translation_mm": np.round(matrix[:3, 3], 3).tolist(),
    }


def write_transform(path: str | os.PathLike[str], matrix: np.ndarray) -> None:
    """Write a transform as an ITK text file (`.txt`, `.tfm`), which ANTs, SimpleITK and 3D Slicer read.

    Like ITK's own it takes points of the fixed space (LPS+) to the moving space, which resamples the moving image.
    """
    world = LPS @ matrix @ LPS
    numbers = " ".join(f"{value:.12g}" for value in [*world[:3, :3].ravel(), *world[:3, 3]])
    write_text(
        path,
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        f"Parameters: {numbers}\nFixedParameters: 0 0 0\n",
    )


def read_transform(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a linear transform from an ITK text or binary file (`.txt`, `.tfm`, `.mat` of ANTs).

    Returns:
        Matrix (4, 4), fixed millimetres to moving millimetres, RAS+.

    Raises:
        DataError: The file is broken, or its transform is not linear.
    """
    import SimpleITK as sitk

    try:
        transform = sitk.ReadTransform(os.fspath(path))
    except RuntimeError as error:
        raise DataError(f"{path}: not a transform that ITK reads", fix="Write it again.") from error
    if not transform.IsLinear():
        raise DataError(f"{path}: the transform is not linear", expected="a rigid or affine transform")
    corners = np.vstack([np.zeros(3), np.eye(3)])
    moved = np.array([transform.TransformPoint(corner.tolist()) for corner in corners])
    matrix = np.eye(4)
    matrix[:3, :3] = (moved[1:] - moved[0]).T
    matrix[:3, 3] = moved[0]
    return LPS @ matrix @ LPS
