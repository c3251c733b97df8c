from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from neuroage.imaging.inspect import measure_native
from neuroage.imaging.phantom_mistakes import phantom_scan
from neuroage.imaging.read import Volume
from neuroage.imaging.template import Template, coarse_cube, describe_turn, left_right_symmetry


@pytest.fixture(scope="module")
def brains() -> list[Volume]:
    scans = [phantom_scan(index, seed=1) for index in range(5)]
    return [Volume(data[None].astype(np.float32), affine) for data, affine, _ in scans]


def changed(volume: Volume, data: np.ndarray) -> Volume:
    return Volume(data[None].astype(np.float32), volume.affine)


def test_volumes_grow_with_the_cube_of_the_voxel_size(brains: list[Volume]) -> None:
    before = measure_native(brains[0])
    after = measure_native(Volume(brains[0].data, brains[0].affine @ np.diag([2.0, 2.0, 2.0, 1.0])))
    assert 900 < before["head_ml"] < 2200
    assert after["head_ml"] == pytest.approx(8 * before["head_ml"], rel=1e-4)
    for name in ("voxel_mm", "field_mm_r", "head_mm_a", "blur_mm"):
        assert after[name] == pytest.approx(2 * before[name], rel=1e-3)


def test_units_change_the_brightness_alone(brains: list[Volume]) -> None:
    before, after = measure_native(brains[0]), measure_native(changed(brains[0], brains[0].data[0] * 1000))
    assert after.pop("brightness") == pytest.approx(1000 * before.pop("brightness"), rel=1e-3)
    assert after == pytest.approx(before, rel=1e-3)


def test_inversion_brightens_the_border_and_keeps_the_background_of_one_value(brains: list[Volume]) -> None:
    data = brains[0].data[0]
    assert measure_native(brains[0])["border_level"] < 0.05
    assert measure_native(changed(brains[0], data.max() - data))["border_level"] > 0.9


def test_blur_grows_with_smoothing(brains: list[Volume]) -> None:
    data = brains[0].data[0]
    blurs = [measure_native(changed(brains[0], ndimage.gaussian_filter(data, s)))["blur_mm"] for s in (0, 0.5, 1.0)]
    assert blurs[0] < blurs[1] < blurs[2]
    assert measure_native(changed(brains[0], -data + data.max() + 1))["distinct_values"] > 50


def test_few_values_are_counted(brains: list[Volume]) -> None:
    data = brains[0].data[0]
    assert measure_native(changed(brains[0], np.digitize(data, [50, 150, 250])))["distinct_values"] <= 4


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        (lambda cube: cube[:, ::-1], "flipped front–back"),
        (lambda cube: cube[:, :, ::-1], "flipped up–down"),
        (lambda cube: cube.transpose(0, 2, 1), "stored with its axes exchanged (front–back and up–down)"),
        (lambda cube: cube.transpose(1, 0, 2), "stored with its axes exchanged (left–right and front–back)"),
        (lambda cube: cube[:, ::-1, ::-1], "upside down and back to front"),
    ],
)
def test_a_turned_brain_is_found_and_named(brains: list[Volume], turn: object, words: str) -> None:
    cubes = np.stack([coarse_cube(volume.data, volume.spacing_mm) for volume in same_grid(brains)])
    template = Template(cubes[:4])
    right, wrong = template.compare(np.stack([cubes[4], turn(cubes[4])]))  # type: ignore[operator]
    assert right.likeness > 0.8 and right.turned < -0.02
    assert wrong.likeness < right.likeness and wrong.turned > 0.02
    assert wrong.turn == words


def same_grid(volumes: list[Volume]) -> list[Volume]:
    """Cut all to the smallest grid; their spacing differs a little, which heads of other sizes do as well."""
    size = np.min([volume.shape for volume in volumes], axis=0)
    cut = []
    for volume in volumes:
        start = (np.array(volume.shape) - size) // 2
        middle = tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))
        cut.append(changed(volume, volume.data[0][middle]))
    spacing = np.mean([volume.spacing_mm for volume in volumes], axis=0)
    return [Volume(volume.data, np.diag([*spacing, 1.0])) for volume in cut]


def test_exchanging_left_and_right_cannot_be_told(brains: list[Volume]) -> None:
    cubes = np.stack([coarse_cube(volume.data, volume.spacing_mm) for volume in same_grid(brains)])
    assert Template(cubes[:4]).compare(cubes[4:, ::-1])[0].turned < 0
    assert left_right_symmetry(cubes[4]) > 0.9


def test_every_wrong_orientation_has_words() -> None:
    template = Template(np.random.default_rng(0).normal(size=(2, 8, 8, 8)))
    words = {describe_turn(*orientation) for orientation in template.orientations}
    assert len(template.orientations) == 24
    assert "" in words and len(words) >= 20
