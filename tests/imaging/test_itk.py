"""Volumes as SimpleITK images: the same voxel lies at the same place, with x and y turned around."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from neuroage.imaging.itk import LPS, from_itk, to_itk


def oblique_affine() -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [10, -25, 40], degrees=True).as_matrix() * [0.5, 0.7, 2.0]
    affine[:3, 3] = [12.0, -30.5, 7.25]
    return affine


@pytest.fixture
def data() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)


def test_there_and_back_changes_neither_voxels_nor_affine(data: np.ndarray) -> None:
    voxels, affine = from_itk(to_itk(data, oblique_affine()))
    assert np.array_equal(voxels, data) and voxels.dtype == np.float32
    assert np.allclose(affine, oblique_affine(), atol=1e-12)


def test_a_mirrored_affine_survives(data: np.ndarray) -> None:
    affine = oblique_affine() @ np.diag([-1.0, 1.0, 1.0, 1.0])
    assert np.allclose(from_itk(to_itk(data, affine))[1], affine, atol=1e-12)


def test_every_voxel_lies_where_the_affine_says(data: np.ndarray) -> None:
    image = to_itk(data, oblique_affine())
    assert image.GetSize() == data.shape
    for index in ((0, 0, 0), (3, 0, 0), (1, 4, 2), (0, 0, 5)):
        world = oblique_affine() @ [*index, 1.0]
        assert np.allclose(image.TransformIndexToPhysicalPoint(index), (LPS @ world)[:3])
        assert image.GetPixel(*index) == data[index]


def test_itk_reads_a_nifti_file_to_the_same_place(data: np.ndarray, tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(data, oblique_affine()), tmp_path / "scan.nii")
    voxels, affine = from_itk(sitk.ReadImage(str(tmp_path / "scan.nii")))
    assert np.array_equal(voxels, data)
    assert np.allclose(affine, oblique_affine(), atol=1e-5)  # NIfTI stores the affine in single precision


def test_transposed_voxels_are_not_mixed_up(data: np.ndarray) -> None:
    turned = np.asfortranarray(data)
    assert np.array_equal(from_itk(to_itk(turned, np.eye(4)))[0], data)
