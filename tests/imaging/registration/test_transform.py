"""Transforms: which way they point, how they compose, and that their files mean the same to ITK."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from neuroage.errors import DataError
from neuroage.imaging.itk import LPS, from_itk, to_itk
from neuroage.imaging.read import Volume
from neuroage.imaging.registration.transform import (
    apply,
    describe,
    mean_distance_mm,
    place,
    read_transform,
    write_transform,
)
from neuroage.imaging.resampling import Grid, resample_to

# Long beside a voxel, so that interpolation is nearly exact.
WAVE_MM = np.array([[130.0, 170.0, 150.0], [-110.0, 120.0, 190.0]])


def rigid(
    angles_deg: tuple[float, float, float], shift_mm: tuple[float, float, float], scale: float = 1.0
) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", angles_deg, degrees=True).as_matrix() * scale
    matrix[:3, 3] = shift_mm
    return matrix


T1_TO_SLAB = rigid((6, -9, 12), (5, -8, 11))
MNI_TO_T1 = rigid((-11, 4, 7), (-3, 14, 6), 0.92) @ np.diag([1.02, 0.97, 1.05, 1.0])


def wave(places_mm: np.ndarray) -> np.ndarray:
    return np.sin(places_mm @ (2 * np.pi / WAVE_MM).T).sum(axis=-1)


def centred(spacing_mm: tuple[float, float, float], size: tuple[int, int, int]) -> Grid:
    return Grid.about(np.zeros(3), np.eye(3), spacing_mm, size)


def places_of(grid: Grid) -> np.ndarray:
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.size], indexing="ij"), axis=-1)
    return index @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def test_the_composed_transform_equals_the_two_steps_but_for_the_second_interpolation() -> None:
    slab, t1, mni = (
        centred((1.5, 1.5, 2), (100, 110, 60)),
        centred((2, 2, 2), (110, 120, 90)),
        centred((2, 2, 2), (24, 24, 14)),
    )
    scan = Volume(wave(places_of(slab)).astype(np.float32)[None], slab.affine)

    once = place(scan, T1_TO_SLAB @ MNI_TO_T1)
    at_once = resample_to(once.data[0], once.affine, mni)
    on_t1 = place(scan, T1_TO_SLAB)
    halfway = Volume(resample_to(on_t1.data[0], on_t1.affine, t1)[None], t1.affine)
    twice = place(halfway, MNI_TO_T1)
    in_two_steps = resample_to(twice.data[0], twice.affine, mni)

    exact = wave(apply(T1_TO_SLAB @ MNI_TO_T1, places_of(mni).reshape(-1, 3))).reshape(mni.size)
    assert np.ptp(exact) > 2  # there is something to compare
    assert np.abs(at_once - in_two_steps).max() < 0.01
    assert np.abs(at_once - exact).max() < 0.005
    assert np.abs(at_once - exact).mean() < 0.75 * np.abs(in_two_steps - exact).mean()


def test_the_other_order_of_composition_is_wrong_and_seen_to_be() -> None:
    places = places_of(centred((20, 20, 20), (6, 6, 6))).reshape(-1, 3)
    assert mean_distance_mm(T1_TO_SLAB @ MNI_TO_T1, MNI_TO_T1 @ T1_TO_SLAB, places) > 5


def test_placing_in_two_steps_is_placing_by_the_product() -> None:
    scan = Volume(np.zeros((1, 2, 2, 2), np.float32), rigid((3, 2, 1), (4, 5, 6)))
    stepwise = place(place(scan, T1_TO_SLAB), MNI_TO_T1)
    assert np.allclose(stepwise.affine, place(scan, T1_TO_SLAB @ MNI_TO_T1).affine, atol=1e-9)
    assert stepwise.data is scan.data


def test_a_placed_voxel_lies_where_the_transform_finds_it() -> None:
    scan = Volume(np.zeros((1, 2, 2, 2), np.float32), rigid((3, 2, 1), (4, 5, 6)))
    voxel = np.array([[1.0, 0.0, 1.0]])
    assert np.allclose(apply(MNI_TO_T1, apply(place(scan, MNI_TO_T1).affine, voxel)), apply(scan.affine, voxel))


def test_the_mean_distance_of_a_shift_is_its_length() -> None:
    places = np.random.default_rng(0).normal(0, 50, (20, 3))
    shift = rigid((0, 0, 0), (3, 4, 12))
    assert mean_distance_mm(shift, np.eye(4), places) == pytest.approx(13)
    assert mean_distance_mm(MNI_TO_T1, MNI_TO_T1, places) == 0


def test_a_description_takes_rotation_and_scale_apart() -> None:
    turned = describe(rigid((0, 0, 30), (1, 2, 3), 0.9))
    assert turned == {"rotation_deg": 30.0, "scale": [0.9, 0.9, 0.9], "mirrors": 0.0, "translation_mm": [1, 2, 3]}
    mirrored = describe(rigid((0, 0, 30), (0, 0, 0)) @ np.diag([-1.0, 1, 1, 1]))
    assert mirrored["mirrors"] == 1 and np.allclose(mirrored["scale"], 1)


def test_a_written_transform_is_read_back(tmp_path: Path) -> None:
    write_transform(tmp_path / "affine.txt", MNI_TO_T1)
    assert np.allclose(read_transform(tmp_path / "affine.txt"), MNI_TO_T1, atol=1e-9)


def test_itk_resamples_with_a_written_transform_to_the_same_picture(tmp_path: Path) -> None:
    moving, fixed = centred((2, 2, 2), (60, 60, 60)), centred((3, 3, 3), (12, 12, 12))
    image = to_itk(wave(places_of(moving)).astype(np.float32), moving.affine)
    onto = to_itk(np.zeros(fixed.size, np.float32), fixed.affine)
    write_transform(tmp_path / "affine.tfm", T1_TO_SLAB)
    theirs, _ = from_itk(sitk.Resample(image, onto, sitk.ReadTransform(str(tmp_path / "affine.tfm")), sitk.sitkLinear))
    exact = wave(apply(T1_TO_SLAB, places_of(fixed).reshape(-1, 3))).reshape(fixed.size)
    assert np.abs(theirs - exact).max() < 0.01


def test_a_transform_about_a_centre_is_read_as_one_matrix(tmp_path: Path) -> None:
    theirs = sitk.Euler3DTransform((10.0, 20.0, 30.0), 0.1, -0.2, 0.3, (4.0, 5.0, 6.0))
    sitk.WriteTransform(theirs, str(tmp_path / "rigid.tfm"))
    place_mm = np.array([[7.0, -8.0, 9.0]])
    in_lps = theirs.TransformPoint((LPS[:3, :3] @ place_mm[0]).tolist())
    assert np.allclose(apply(read_transform(tmp_path / "rigid.tfm"), place_mm)[0], LPS[:3, :3] @ in_lps)


def test_a_broken_file_and_a_warp_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.txt").write_text("not a transform")
    with pytest.raises(DataError, match=r"broken\.txt"):
        read_transform(tmp_path / "broken.txt")
    field = sitk.DisplacementFieldTransform(sitk.Image([3, 3, 3], sitk.sitkVectorFloat64, 3))
    sitk.WriteTransform(field, str(tmp_path / "warp.tfm"))
    with pytest.raises(DataError, match="not linear"):
        read_transform(tmp_path / "warp.tfm")
