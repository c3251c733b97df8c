"""Where a search begins: rotations that leave no gap, and the right one among the best."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from neuroage.imaging.registration import start
from neuroage.imaging.registration.align import Picture
from neuroage.imaging.registration.start import NEAR_DEG, Classes, find_starts, rotations
from neuroage.imaging.registration.transform import apply

SPACING_MM, RADII_MM = 4.0, (52.0, 68.0, 58.0)  # of an ellipsoid like a brain


def angles_deg(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    traces = np.einsum("nij,mij->nm", ones, others)
    return np.degrees(np.arccos(np.clip((traces - 1) / 2, -1, 1)))


def test_no_rotation_is_farther_than_28_degrees_from_one_that_is_tried() -> None:
    drawn = Rotation.random(3000, random_state=0).as_matrix()
    tried = np.array(rotations())

    assert angles_deg(drawn, tried).min(1).max() < 28
    np.testing.assert_allclose(
        np.einsum("nij,nkj->nik", tried, tried), np.broadcast_to(np.eye(3), tried.shape), atol=1e-9
    )
    assert (np.linalg.det(tried) > 0).all()


def paint(matrix: np.ndarray, size: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Two tissues and a ring, placed by a matrix: shares (3, I, J, K) and the affine."""
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    affine[:3, 3] = -(size - 1) / 2 * SPACING_MM
    voxels = np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij"), -1).reshape(-1, 3)
    places = apply(np.linalg.inv(matrix) @ affine, voxels)
    distance = np.linalg.norm(places / RADII_MM, axis=1)
    middle = np.linalg.norm((places - [0, 22, -10]) / (22, 26, 18), axis=1) < 1  # off centre: front and top differ
    shares = np.stack([(distance < 1) & middle, (distance < 1) & ~middle, (distance >= 1) & (distance < 1.15)])
    return shares.reshape(3, size, size, size).astype(np.float32), affine


def test_the_right_pose_is_among_the_best() -> None:
    truth = np.eye(4)
    truth[:3, :3] = Rotation.from_euler("xyz", (40, -25, 30), degrees=True).as_matrix()
    truth[:3, 3] = (18, -22, 14)
    shares, affine = paint(np.eye(4), 44)
    head, head_affine = paint(truth)
    data = np.tensordot([0.3, 0.8, 0.1], head, 1) + 0.02 * np.random.default_rng(0).standard_normal(head.shape[1:])
    mask = ndimage.binary_dilation(head.sum(0) > 0.5, iterations=2)
    picture = Picture(data.astype(np.float32), mask.astype(np.uint8), head_affine)

    starts = find_starts(picture, Classes(shares, affine))

    assert [each.score for each in starts] == sorted((each.score for each in starts), reverse=True)
    turns = np.array([each.matrix[:3, :3] / np.cbrt(np.linalg.det(each.matrix)) for each in starts[:8]])
    assert angles_deg(turns, truth[None, :3, :3]).min() < 28
    assert np.linalg.norm(starts[0].matrix[:3, 3] - truth[:3, 3]) < 15


def test_the_header_decides_which_rotations_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    few = rotations()[::20]
    monkeypatch.setattr(start, "rotations", lambda: few)
    shares, affine = paint(np.eye(4), 44)
    picture = Picture(np.tensordot([0.3, 0.8, 0.1], shares, 1).astype(np.float32), shares.sum(0) > 0.5, affine)

    near, far = (find_starts(picture, Classes(shares, affine), near_header=near) for near in (True, False))

    assert len(near) + len(far) == len(few)
    for starts, within in ((near, True), (far, False)):
        turns = np.array([each.matrix[:3, :3] / np.cbrt(np.linalg.det(each.matrix)) for each in starts])
        assert ((angles_deg(turns, np.eye(3)[None]) <= NEAR_DEG) == within).all()
    assert near[0].score > far[0].score
