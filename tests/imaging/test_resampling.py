import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from neuroage.imaging.resampling import Grid, box_mean, carry_mask, cover, own_grid, resample_to


def turned(degrees: float = 20.0, stretch: float = 1.0, shear: float = 0.0) -> np.ndarray:
    angle = np.radians(degrees)
    linear = np.array([[np.cos(angle), -np.sin(angle), shear], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]) * stretch
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = [3.0, -4.0, 5.0]
    return matrix


def places(size: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def waves(places_mm: np.ndarray) -> np.ndarray:
    x, y, z = np.moveaxis(places_mm, -1, 0)
    return (np.sin(x / 14) + np.cos(y / 11) * np.sin(z / 16)).astype(np.float32)


@pytest.mark.parametrize("affine", [turned(0), turned(20), turned(-35, 1.1), turned(10, 0.9, 0.1)])
def test_every_voxel_shows_its_own_place_through_turns_stretches_and_shear(affine: np.ndarray) -> None:
    data = waves(places((60, 60, 60), affine))
    centre = affine[:3, :3] @ np.full(3, 29.5) + affine[:3, 3]
    grid = Grid.about(centre, np.eye(3), (1.0, 1.2, 0.9), (24, 20, 22))
    seen = resample_to(data, affine, grid)
    assert seen.shape == grid.size
    np.testing.assert_allclose(seen, waves(places(grid.size, grid.affine)), atol=0.01)


def test_a_grid_along_the_scans_axes_gives_the_same_by_both_ways() -> None:
    data = np.random.default_rng(0).random((20, 22, 18), dtype=np.float32)
    affine = np.diag([1.0, 1.0, 1.2, 1.0])
    grid = Grid.about(np.array([9.0, 10.0, 9.0]), np.eye(3), (1.5, 1.5, 1.5), (10, 10, 10))
    bent = affine.copy()
    bent[0, 1] = 1e-7  # enough for the way that takes any affine
    np.testing.assert_allclose(resample_to(data, affine, grid), resample_to(data, bent, grid), atol=1e-4)


def test_coarser_voxels_are_averages_and_what_lies_outside_is_background() -> None:
    noise = np.random.default_rng(0).normal(5, 1, (48, 48, 48)).astype(np.float32)
    grid = Grid.about(np.full(3, 23.5), turned(30)[:3, :3], (4.0, 4.0, 4.0), (6, 6, 6))
    assert resample_to(noise, np.eye(4), grid).std() < 0.3
    far = Grid.about(np.full(3, 500.0), np.eye(3), (4.0, 4.0, 4.0), (6, 6, 6))
    assert (resample_to(noise, np.eye(4), far, background=-7.0) == -7.0).all()
    assert (resample_to(noise, np.eye(4), far) == noise.min()).all()


def test_a_scan_of_the_wanted_spacing_is_cropped_and_not_interpolated() -> None:
    data = np.random.default_rng(0).random((12, 12, 12), dtype=np.float32)
    grid = own_grid(np.eye(4), np.array([5.4, 5.6, 5.5]), (1.0, 1.0, 1.0), (6, 6, 6))
    seen, affine = resample_to(data, np.eye(4), grid), grid.affine
    start = affine[:3, 3].astype(int)
    np.testing.assert_array_equal(seen, data[tuple(slice(s, s + 6) for s in start)])


def test_a_mask_keeps_its_volume_on_another_grid() -> None:
    affine = turned(25)
    at = places((50, 50, 50), affine)
    centre = at[25, 25, 25]
    mask = np.linalg.norm(at - centre, axis=-1) < 15
    grid = Grid.about(centre, np.eye(3), (2.0, 2.0, 2.0), (24, 24, 24))
    carried = carry_mask(mask, affine, grid)
    truth = np.linalg.norm(places(grid.size, grid.affine) - centre, axis=-1) < 15
    assert carried.dtype == bool and (carried ^ truth).sum() < 0.06 * truth.sum()


def test_a_scan_is_padded_to_what_a_grid_reaches_and_no_further() -> None:
    data = np.random.default_rng(0).uniform(1, 2, (6, 7, 8)).astype(np.float32)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    inner = Grid((2, 2, 2), np.array([[2.0, 0, 0, 3], [0, 2, 0, 3], [0, 0, 2, 3], [0, 0, 0, 1]]))
    same, place, within = cover(data, affine, inner)
    assert same is data and place is affine
    assert within.sum() == 8 and within[1:3, 1:3, 1:3].all(), "the middles of these lie in the grid or on its low face"

    axes = Rotation.from_euler("xyz", (10, 20, 30), degrees=True).as_matrix()
    grid = Grid.about(np.array([5.0, 6.0, 7.0]), axes, (2.0, 2.0, 2.0), (12, 12, 12))
    padded, place, within = cover(data, affine, grid)
    start = np.rint(-place[:3, 3] / 2).astype(int)
    np.testing.assert_array_equal(padded[tuple(slice(s, s + n) for s, n in zip(start, data.shape, strict=True))], data)
    assert abs(within.sum() - 12**3) < 30, "all of the grid, as voxels of its size"
    assert padded.min() == data.min()
    ends = [np.argwhere(within).min(0), np.array(padded.shape) - 1 - np.argwhere(within).max(0)]
    assert np.max(ends) <= 1, "no more than its corners need"


def test_boxes_average_what_lies_in_them() -> None:
    data = np.random.default_rng(1).uniform(0, 1, (8, 6, 9)).astype(np.float32)
    blocks = data.reshape(4, 2, 3, 2, 3, 3).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(box_mean(data, (0.5, 0.5, 1), (2, 2, 3), (4, 3, 3)), blocks, rtol=1e-5)
    np.testing.assert_array_equal(box_mean(data, (0, 0, 0), (1, 1, 1), data.shape), data)
    wide = box_mean(data, (-1.2, 0, 0), (1.7, 1, 1), (7, 6, 9))
    assert wide.sum() * 1.7 == pytest.approx(data.sum(), rel=1e-5), "nothing is lost between boxes"
    assert wide[0].max() < data.max() * 0.1 and box_mean(data, (-9, 0, 0), (1, 1, 1), (2, 6, 9)).max() == 0
