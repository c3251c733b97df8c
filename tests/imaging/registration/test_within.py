"""A slab in the head of the same person: found in another contrast, wherever the headers say it is, or flagged."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from neuroage.imaging.read import Volume
from neuroage.imaging.registration.result import Registration
from neuroage.imaging.registration.transform import apply, mean_distance_mm
from neuroage.imaging.registration.within import register_within

HEAD_MM, SPACING_MM = 180.0, 3.0
SLAB_MM = (150.0, 170.0, 60.0)


@pytest.fixture(scope="module")
def t1() -> Volume:
    """A ball of folded tissues in a dark skull and a bright scalp: something to recognise in every direction."""
    n = int(HEAD_MM / SPACING_MM)
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    affine[:3, 3] = -HEAD_MM / 2 + SPACING_MM / 2
    axes = np.meshgrid(*[np.arange(n) * SPACING_MM + affine[0, 3]] * 3, indexing="ij")
    radius = np.sqrt((axes[0] / 0.85) ** 2 + axes[1] ** 2 + (axes[2] / 0.95) ** 2)
    rng = np.random.default_rng(0)
    folds = ndimage.gaussian_filter(rng.standard_normal((n, n, n)), 2.5)
    tissue = np.digitize(folds / folds.std(), [-0.8, 0.3])
    levels = np.array([0.2, 0.55, 0.85])[tissue]
    head = np.select([radius < 66, radius < 72, radius < 80], [levels, 0.05, 1.0], 0.0)
    noisy = head + 0.01 * rng.standard_normal(head.shape)
    return Volume(ndimage.gaussian_filter(noisy, 0.5).astype(np.float32)[None], affine)


def random_pose(seed: int, degrees: float = 15.0, shift_mm: float = 15.0) -> np.ndarray:
    """T1 millimetres to slab millimetres."""
    rng = np.random.default_rng(seed)
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("xyz", rng.uniform(-degrees, degrees, 3), degrees=True).as_matrix()
    pose[:3, 3] = rng.uniform(-shift_mm, shift_mm, 3)
    return pose


def slab_of(t1: Volume, pose: np.ndarray, spacing_mm: tuple[float, float, float] = (2.0, 2.0, 4.0)) -> Volume:
    """The head in the pose as a proton density scan shows it: fluid brightest, white matter dark."""
    shape = tuple(np.rint(np.array(SLAB_MM) / spacing_mm).astype(int).tolist())
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * spacing_mm + [0, 0, 10]
    density = np.interp(t1.data[0], [0, 0.08, 0.2, 0.55, 0.85, 1.0], [0, 0.05, 1.0, 0.85, 0.6, 0.7])
    to_t1 = np.linalg.solve(pose @ t1.affine, affine)
    data = ndimage.affine_transform(density, to_t1[:3, :3], to_t1[:3, 3], shape, order=1)
    data = np.abs(data + np.random.default_rng(1).normal(0, 0.03, shape))
    return Volume(data.astype(np.float32)[None], affine)


def off_mm(found: np.ndarray, pose: np.ndarray, slab: Volume) -> float:
    """Mean distance over the slab."""
    corners = np.array(np.meshgrid(*[(0.1 * n, 0.5 * n, 0.9 * n) for n in slab.shape])).reshape(3, -1).T
    return mean_distance_mm(found, pose, apply(np.linalg.solve(pose, slab.affine), corners))


@pytest.fixture(scope="module")
def slab(t1: Volume) -> Volume:
    return slab_of(t1, random_pose(0))


@pytest.fixture(scope="module")
def found(t1: Volume, slab: Volume) -> Registration:
    return register_within(slab, t1)


def test_a_slab_of_another_contrast_is_found_within_half_a_millimetre(slab: Volume, found: Registration) -> None:
    assert found.problem == ""
    assert off_mm(found.matrix, random_pose(0), slab) < 0.5
    assert off_mm(np.eye(4), random_pose(0), slab) > 5  # it was not there before
    assert np.allclose(found.matrix[:3, :3] @ found.matrix[:3, :3].T, np.eye(3), atol=1e-9)


def test_the_same_scans_give_the_same_numbers(t1: Volume, slab: Volume, found: Registration) -> None:
    again = register_within(slab, t1)
    assert np.array_equal(again.matrix, found.matrix) and again.quality == found.quality


def test_coverage_is_the_share_of_the_head_within_the_slab(t1: Volume, slab: Volume, found: Registration) -> None:
    head = apply(random_pose(0) @ t1.affine, np.argwhere(t1.data[0] > 0.2))
    voxels = apply(np.linalg.inv(slab.affine), head)
    share = ((voxels > -0.5) & (voxels < np.array(slab.shape) - 0.5)).all(axis=1).mean()
    assert found.quality["coverage"] == pytest.approx(share, abs=0.05) and 0.2 < share < 0.6
    assert found.quality["inside"] > 0.6


def test_headers_that_disagree_by_decimetres_are_made_up_for(t1: Volume) -> None:
    lost = random_pose(4)
    lost[:3, 3] += [250, -180, 310]
    moved = slab_of(t1, random_pose(4))
    slab = Volume(moved.data, moved.affine + np.pad([[250], [-180], [310], [0]], ((0, 0), (3, 0))))
    found = register_within(slab, t1)
    assert found.problem == "" and off_mm(found.matrix, lost, slab) < 0.5
    assert found.quality["shift_mm"] > 300


def test_the_voxels_outside_of_the_brain_may_be_zero(t1: Volume) -> None:
    slab = slab_of(t1, random_pose(5))
    brain = ndimage.gaussian_filter(slab.data[0], [2, 2, 1]) > 0.55
    slab = Volume(slab.data * brain, slab.affine)
    assert off_mm(register_within(slab, t1).matrix, random_pose(5), slab) < 1


def test_noise_is_flagged_and_the_headers_positions_stand(t1: Volume) -> None:
    slab = slab_of(t1, np.eye(4))
    noise = np.random.default_rng(0).uniform(0, 1, slab.data.shape).astype(np.float32)
    found = register_within(Volume(noise, slab.affine), t1)
    assert "too little" in found.problem and np.array_equal(found.matrix, np.eye(4))


def test_a_head_upside_down_is_flagged(t1: Volume) -> None:
    slab = slab_of(t1, np.eye(4))
    turned = Volume(slab.data, np.diag([1.0, -1, -1, 1]) @ slab.affine)  # no scanner does that within a session
    assert register_within(turned, t1).problem
