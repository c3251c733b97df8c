import numpy as np
import pytest

from neuroage.imaging.resampling import Grid, carry_mask, resample, resample_to


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
    seen, affine = resample(data, np.eye(4), np.array([5.4, 5.6, 5.5]), (1.0, 1.0, 1.0), (6, 6, 6))
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
