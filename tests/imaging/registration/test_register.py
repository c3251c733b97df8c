"""A head is found wherever it lies, with or without its skull; what is not found is flagged."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from neuroage.errors import UsageError
from neuroage.imaging import phantom_mistakes
from neuroage.imaging.phantom_effects import draw_traits
from neuroage.imaging.phantom_mistakes import phantom_scan
from neuroage.imaging.read import Volume
from neuroage.imaging.registration import register
from neuroage.imaging.registration.quality import SHARP, find_problem
from neuroage.imaging.registration.register import register_to_template
from neuroage.imaging.registration.result import Registration
from neuroage.imaging.registration.target import mni152_target
from neuroage.imaging.registration.transform import describe, mean_distance_mm

pytest.importorskip("nilearn", reason="brings the template")


def make_phantom(*, stripped: bool) -> Volume:
    data, affine, _ = phantom_scan(2, stripped=stripped)
    return Volume(data[None].astype(np.float32), affine)


@pytest.fixture(scope="module", autouse=True)
def soon_sure() -> Iterator[None]:
    """Phantoms are plainer than brains and leave some doubt: without this all rotations would be tried for each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(register, "SURE", SHARP)
        yield


@pytest.fixture(scope="module")
def head() -> Volume:
    return make_phantom(stripped=False)


@pytest.fixture(scope="module")
def found(head: Volume) -> Registration:
    return register_to_template(head)


def move(volume: Volume, matrix: np.ndarray) -> Volume:
    """Sample a head anew, moved, on a grid of its own, as a scanner with the patient in another pose does."""
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = -126
    to_voxel = np.linalg.inv(matrix @ volume.affine) @ affine
    data = ndimage.affine_transform(volume.data[0], to_voxel[:3, :3], to_voxel[:3, 3], (85, 85, 85), order=1)
    return Volume(data[None], affine)


def distance_mm(one: np.ndarray, other: np.ndarray) -> float:
    target = mni152_target()
    return mean_distance_mm(one, other, target.points[8].places_mm[target.in_brain[8]])


def test_a_moved_head_is_found_where_it_was_moved(head: Volume, found: Registration) -> None:
    matrix = np.eye(4)
    matrix[:3, :3] = 0.9 * Rotation.from_euler("xyz", (40, -30, 35), degrees=True).as_matrix()
    matrix[:3, 3] = (20, -25, 15)

    moved = register_to_template(move(head, matrix))

    assert found.problem == "" and moved.problem == ""
    assert distance_mm(moved.matrix, matrix @ found.matrix) < 2
    assert moved.quality["coverage"] == pytest.approx(1, abs=0.02) and moved.quality["stripped"] == 0


def test_a_header_that_lies_about_the_pose_is_survived(head: Volume, found: Registration) -> None:
    matrix = np.diag([1.0, -1.0, -1.0, 1.0])  # upside down

    lying = register_to_template(Volume(head.data, matrix @ head.affine))

    assert lying.problem == ""
    assert distance_mm(lying.matrix, matrix @ found.matrix) < 2


def test_the_skull_may_be_off(found: Registration) -> None:
    stripped = register_to_template(make_phantom(stripped=True))

    assert stripped.problem == ""
    assert stripped.quality["stripped"] == 1 and stripped.quality["dice"] > 0.85
    assert "dice" not in found.quality
    assert (
        distance_mm(stripped.matrix, found.matrix) < 8
    )  # liquor and dura are part of the one border, not of the other


def test_a_bare_brain_with_vast_ventricles_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = register_to_template(make_phantom(stripped=True))
    monkeypatch.setattr(phantom_mistakes, "draw_traits", lambda *drawn: {**draw_traits(*drawn), "ventricle_scale": 3.0})

    swollen = register_to_template(make_phantom(stripped=True))

    assert swollen.problem == "" and swollen.quality["stripped"] == 1
    assert distance_mm(swollen.matrix, plain.matrix) < 5  # the rest of the brain is the same


def test_a_rigid_registration_turns_and_shifts_as_the_affine_one(head: Volume, found: Registration) -> None:
    rigid = register_to_template(head, kind="rigid")

    assert describe(rigid.matrix)["scale"] == [1.0, 1.0, 1.0]
    assert rigid.quality == found.quality
    centre = [*mni152_target().classes.centre_mm, 1.0]
    np.testing.assert_allclose(rigid.matrix @ centre, found.matrix @ centre)
    with pytest.raises(UsageError, match="spline"):
        register_to_template(head, kind="spline")


def test_what_is_not_a_head_is_flagged() -> None:
    noise = np.random.default_rng(0).random((1, 40, 40, 40)).astype(np.float32)
    places = np.linalg.norm(np.stack(np.meshgrid(*[np.arange(40) - 19.5] * 3)), axis=0)
    ball = (np.where(places < 17, 100.0, 0.0) + noise[0])[None].astype(np.float32)
    affine = np.diag([5.0, 5.0, 5.0, 1.0])

    for data in (noise, ball):
        assert "not found" in register_to_template(Volume(data, affine)).problem
    assert "No head" in register_to_template(Volume(ball, affine / 20)).problem


def test_each_figure_out_of_its_range_is_a_problem_of_its_own(found: Registration) -> None:
    assert find_problem(found.quality) == ""
    for figure, value, word in (
        ("sharpness", 1.1, "wrong poses"),
        ("information_brain", 0.01, "nats"),
        ("coverage", 0.5, "50%"),
        ("scale_most", 1.9, "size"),
        ("scale_least", 0.4, "size"),
    ):
        assert word in find_problem({**found.quality, figure: value})
