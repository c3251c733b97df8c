"""Volumes as SimpleITK images and back; ITK's world is LPS+, ours RAS+."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import SimpleITK as sitk

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS+ to LPS+ and back


def to_itk(data: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """Give voxels as a SimpleITK image in its own place in space.

    Args:
        data: Shape (I, J, K).
        affine: Voxel index to millimetres (RAS+), (4, 4), without shear.
    """
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T))
    world = LPS @ affine
    spacing = np.linalg.norm(world[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((world[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(world[:3, 3].tolist())
    return image


def from_itk(image: sitk.Image) -> tuple[np.ndarray, np.ndarray]:
    """Give an image's voxels, shape (I, J, K), and its affine to RAS+ millimetres, (4, 4)."""
    import SimpleITK as sitk

    affine = np.eye(4)
    affine[:3, :3] = np.asarray(image.GetDirection()).reshape(3, 3) * np.asarray(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).T, LPS @ affine
