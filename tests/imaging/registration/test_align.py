"""Two pictures of one thing: brought together whatever their contrasts, and by the same numbers every time."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from neuroage.errors import UsageError
from neuroage.imaging.read import Volume
from neuroage.imaging.registration import align as registration
from neuroage.imaging.registration.align import align, coarsen, draw_points
from neuroage.imaging.registration.mutual_information import climb, count, information, sample
from neuroage.imaging.registration.transform import apply, describe, mean_distance_mm

SIZE, SPACING_MM = 56, 3.0
T1, T2 = np.array([0.2, 0.55, 0.85]), np.array([1.0, 0.6, 0.4])


def make_ball(tissue_levels: np.ndarray, moved: np.ndarray | None = None) -> Volume:
    """A ball of folded tissues of which no two directions look alike; `moved` takes its places to new ones."""
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    affine[:3, 3] = -(SIZE - 1) / 2 * SPACING_MM
    noise = np.random.default_rng(0).standard_normal((SIZE,) * 3)
    folds = ndimage.gaussian_filter(noise, 2.5)
    back = np.linalg.inv(affine) @ np.linalg.inv(np.eye(4) if moved is None else moved) @ affine
    folds = ndimage.affine_transform(folds / folds.std(), back[:3, :3], back[:3, 3], order=3)
    places = np.stack(np.meshgrid(*[np.arange(SIZE)] * 3, indexing="ij"), -1)
    radius = np.linalg.norm(apply(affine @ back, places.reshape(-1, 3)), axis=1).reshape(folds.shape)
    data = np.where(radius < 66, tissue_levels[np.digitize(folds, [-0.6, 0.4])], 0.0)
    return Volume(ndimage.gaussian_filter(data, 0.6).astype(np.float32)[None], affine)


def pose(degrees: tuple[float, float, float], shift: tuple[float, float, float], scale: object = 1.0) -> np.ndarray:
    matrix = np.eye(4)
    turn = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, :3] = turn @ np.diag(np.broadcast_to(np.asarray(scale), 3))
    matrix[:3, 3] = shift
    return matrix


@pytest.fixture(scope="module")
def fixed() -> Volume:
    return make_ball(T1)


def error_mm(fixed: Volume, found: np.ndarray, truth: np.ndarray) -> float:
    return mean_distance_mm(found, truth, apply(fixed.affine, np.argwhere(fixed.data[0] > 0.1)[::97]))


@pytest.mark.parametrize(
    ("kind", "scale"),
    [("rigid", 1.0), ("similarity", 0.93), ("affine", (0.95, 1.06, 1.0))],
    ids=lambda value: str(value),
)
def test_a_pose_is_recovered_in_another_contrast(fixed: Volume, kind: str, scale: object) -> None:
    truth = pose((9, -7, 8), (8, -6, 5), scale)

    found, record = align(fixed, make_ball(T2, truth), kind=kind, spacings_mm=(8, 4))

    assert error_mm(fixed, found, truth) < 0.4
    assert error_mm(fixed, np.eye(4), truth) > 10
    assert record["inside"] > 0.7 and record["information"] > 0.3


def test_a_slab_is_placed_in_a_whole(fixed: Volume) -> None:
    truth = pose((4, -5, 6), (4, -3, 3))
    affine = fixed.affine.copy()
    affine[:3, 3] += affine[:3, 2] * 20
    slab = Volume(fixed.data[..., 20:36], affine)

    found, _ = align(slab, make_ball(T2, truth), spacings_mm=(6, 4))

    assert error_mm(slab, found, truth) < 0.5


def test_what_the_masks_leave_out_does_not_count(fixed: Volume) -> None:
    truth = pose((5, 4, -6), (4, 3, -4))
    moving = make_ball(T2, truth)
    rubbish = np.random.default_rng(1).random(moving.shape).astype(np.float32)
    counts = np.ones(moving.shape, bool)
    counts[30:] = False
    broken = Volume(np.where(counts, moving.data[0], 3 * rubbish)[None], moving.affine)

    found, record = align(fixed, broken, fixed_mask=fixed.data[0] > 0.1, moving_mask=counts, spacings_mm=(8, 4))

    assert error_mm(fixed, found, truth) < 0.5
    assert 0.4 < record["inside"] < 0.7


def test_a_rigid_transform_has_no_scale_and_a_similarity_one(fixed: Volume) -> None:
    moving = make_ball(T2, pose((3, 0, 0), (2, 0, 0), (0.94, 1.03, 1.0)))

    for kind, alike in (("rigid", True), ("similarity", True), ("affine", False)):
        scale = describe(align(fixed, moving, kind=kind, spacings_mm=(8,))[0])["scale"]
        assert isinstance(scale, list)
        assert (scale[0] - scale[2] < 1e-3) == alike
        assert (abs(scale[1] - 1) < 1e-3) or kind != "rigid"


def test_the_same_volumes_give_the_same_numbers(fixed: Volume) -> None:
    moving = make_ball(T2, pose((5, 5, 5), (3, 3, 3)))

    first, second = (align(fixed, moving, kind="affine", spacings_mm=(8,))[0] for _ in range(2))

    assert (first == second).all()


def test_the_slope_is_that_of_the_information(fixed: Volume) -> None:
    points, picture = draw_points(fixed, None, 6), coarsen(make_ball(T2), None, 6)
    places, centre, radius = points.places_mm, points.places_mm.mean(0), 60.0
    start = pose((6, -4, 5), (5, 4, 3))

    def informs(matrix: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
        levels, slopes = np.empty(len(places)), np.zeros((len(places), 3))
        to_voxel = np.linalg.solve(picture.affine, matrix)[:3]
        sample(picture.data, picture.mask, to_voxel, places, -0.1, 1.1, levels, slopes)
        joint = count(levels, points.labels, points.n_labels)
        return information(joint), joint, levels, slopes

    _, joint, levels, slopes = informs(start)
    log_share = np.log(np.maximum(joint, 1e-12) / np.maximum(joint.sum(0), 1e-12))
    slope, _ = climb(levels, slopes, points.labels, log_share, places, centre, radius)
    change = []
    for number in range(12):
        ends = []
        for step in (-0.02, 0.02):
            motion = np.zeros(12)
            motion[number] = step
            ends.append(informs(start @ registration._as_matrix(motion, centre, radius))[0])
        change.append((ends[1] - ends[0]) / 0.04)

    assert np.corrcoef(slope, change)[0, 1] > 0.98
    np.testing.assert_allclose(slope, change, atol=0.2 * np.abs(change).max())


def test_blocks_are_averaged_where_they_lie() -> None:
    data = np.random.default_rng(0).random((9, 8, 6)).astype(np.float32)
    volume = Volume(np.asfortranarray(data)[None], np.diag([1.0, 2.0, 4.0, 1.0]))

    coarse = coarsen(volume, None, 4)

    np.testing.assert_allclose(coarse.data, data[:8].reshape(2, 4, 4, 2, 6).mean((1, 3)), rtol=1e-5)
    np.testing.assert_allclose(coarse.affine @ [0, 0, 0, 1], [1.5, 1, 0, 1])


def test_an_unknown_kind_is_refused(fixed: Volume) -> None:
    with pytest.raises(UsageError, match="spline"):
        align(fixed, fixed, kind="spline")
