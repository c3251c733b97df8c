"""The bias field is found, divided out, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest

from neuroage.errors import DataError
from neuroage.imaging.read import Volume
from neuroage.imaging.steps import bias
from neuroage.imaging.steps.bias import coarsening, correct_bias

SHAPE, SPACING_MM = (48, 56, 44), 3.5


def volume_of(data: np.ndarray, spacing_mm: tuple[float, ...] = (SPACING_MM,) * 3) -> Volume:
    return Volume(data[None].astype(np.float32), np.diag([*spacing_mm, 1.0]))


def ball(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A ball of two tissues in patches, in noise; 0 around it. Also where the brighter tissue is."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij", sparse=True)
    inside = x**2 + y**2 + z**2 < 0.8
    white = inside & (np.sin(9 * x) * np.sin(11 * y) * np.sin(10 * z) > 0)
    tissue = np.where(white, 200.0, 120.0) + rng.normal(0, 4, shape)
    return np.where(inside, tissue, 0.0), white


def smooth_field(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij", sparse=True)
    return np.exp(0.25 * x - 0.15 * y**2 + 0.2 * z * y)


def spread(values: np.ndarray) -> float:
    return float(values.std() / values.mean())


@pytest.mark.parametrize("masked", [True, False])
def test_a_known_field_is_found_and_white_matter_becomes_even(masked: bool) -> None:
    true, white = ball()
    field = smooth_field()
    corrected, record = correct_bias(volume_of(true * field), true > 0 if masked else None)
    found = (true * field)[white] / corrected.data[0][white]
    assert np.corrcoef(np.log(found), np.log(field[white]))[0, 1] > 0.97
    assert spread(corrected.data[0][white]) < 0.5 * spread((true * field)[white])
    assert spread(corrected.data[0][white]) < 1.6 * spread(true[white])
    assert record["inside"] == ("mask" if masked else "otsu")
    assert record["field_min"] < 0.85 and record["field_max"] > 1.15
    assert record["seconds"] > 0 and len(record["iterations"]) == 3


def test_a_scan_without_a_field_hardly_changes() -> None:
    true, _ = ball()
    corrected, record = correct_bias(volume_of(true), true > 0)
    ratio = corrected.data[0][true > 0] / true[true > 0]
    assert abs(ratio - 1).max() < 0.03
    assert 0.97 < record["field_min"] <= record["field_max"] < 1.03


def test_zeros_stay_zeros_and_negative_voxels_stay_negative() -> None:
    data, _ = ball()
    data[2, 2, 2] = -7.0
    original = data.astype(np.float32)
    volume = volume_of(data)
    corrected, _ = correct_bias(volume)
    assert ((corrected.data[0] == 0) == (original == 0)).all()
    assert ((corrected.data[0] < 0) == (original < 0)).all()
    assert (volume.data[0] == original).all(), "the scan itself is left alone"
    assert corrected.data.dtype == np.float32


def test_the_same_scan_gives_the_same_voxels_again() -> None:
    data, _ = ball()
    one, other = (correct_bias(volume_of(data * smooth_field()))[0].data for _ in range(2))
    assert (one == other).all()


def test_the_field_is_that_of_itk() -> None:
    import SimpleITK as sitk

    shape, spacing_mm = (24, 28, 22), 7.0  # ITK takes its time
    data = (ball(shape)[0] * smooth_field(shape)).astype(np.float32)
    places = np.argwhere(data > 0)
    box = tuple(slice(low, high + 1) for low, high in zip(places.min(axis=0), places.max(axis=0), strict=True))
    shown = data[box]  # the splines span what is looked at; ITK's span the whole image
    image, mask = (
        sitk.GetImageFromArray(np.ascontiguousarray(part.T)) for part in (shown, (shown > 0).astype(np.uint8))
    )
    for part in (image, mask):
        part.SetSpacing([spacing_mm] * 3)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([12, 8])
    n4.SetConvergenceThreshold(bias.ENOUGH)
    n4.SetNumberOfControlPoints([4, 4, 4])
    n4.Execute(image, mask)
    theirs = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)).T[shown > 0]
    corrected, _ = correct_bias(volume_of(data, (spacing_mm,) * 3), data > 0, iterations=(12, 8))
    ours = np.log(data[data > 0] / corrected.data[0][data > 0])
    assert theirs.std() > 0.05
    assert np.abs((ours - ours.mean()) - (theirs - theirs.mean())).max() < 0.002


def test_empty_space_around_a_head_changes_nothing() -> None:
    shape = (24, 28, 22)
    data = (ball(shape)[0] * smooth_field(shape)).astype(np.float32)
    wider = np.pad(data, ((8, 20), (4, 12), (16, 0)))
    corrected, wide = (correct_bias(volume_of(part, (4.0,) * 3), part > 0)[0].data[0] for part in (data, wider))
    np.testing.assert_allclose(wide[8:-20, 4:-12, 16:], corrected, rtol=1e-5)


def test_coarse_axes_are_shrunk_less() -> None:
    assert coarsening((1.0, 1.0, 1.0), 4) == (4, 4, 4)
    assert coarsening((0.5, 0.5, 5.0), 8) == (8, 8, 1)
    assert coarsening((2.0, 2.0, 2.0), 4) == (2, 2, 2), "at most about 4 mm"
    assert coarsening((6.0, 6.0, 6.0), 4) == (1, 1, 1)


def test_thick_slices_are_corrected_too() -> None:
    shape = (96, 90, 20)
    true, white = ball(shape)
    field = smooth_field(shape)
    corrected, record = correct_bias(volume_of(true * field, (1.8, 1.8, 7.0)), true > 0)
    assert record["coarse_mm"] == [3.6, 3.6, 7.0]
    assert spread(corrected.data[0][white]) < 0.6 * spread((true * field)[white])


@pytest.mark.parametrize("value", [0.0, -5.0])
def test_an_empty_mask_is_refused(value: float) -> None:
    data = np.full(SHAPE, value)
    data[0, 0, 0] = 1.0
    with pytest.raises(DataError, match="to estimate a bias field from"):
        correct_bias(volume_of(data))
