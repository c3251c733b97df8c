"""The phantom's documented age effects, measured on what is drawn, and its noise ceiling."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from neuroage.errors import UsageError
from neuroage.imaging.phantom_effects import APPARENT_AGE_SD_YEARS, EFFECTS, best_age, draw_traits, noise_ceiling
from neuroage.imaging.phantom_head import draw_head
from neuroage.imaging.phantom_scanner import ORIENTATIONS, ScanSettings, acquire, plain_settings
from neuroage.imaging.phantom_vessels import Vessel, grow_arteries, vessel_share

AGES = (25.0, 50.0, 75.0)


def rising(values: list[float]) -> bool:
    return bool(np.all(np.diff(values) > 0))


def test_ventricles_fluid_and_lesions_grow_and_grey_matter_shrinks_with_age() -> None:
    heads = [draw_head(draw_traits("t1", age, None), None) for age in AGES]
    for part in ("ventricles", "csf", "lesions"):
        assert rising([head.volume_ml(part) for head in heads]), part
    assert rising([-head.volume_ml("grey") for head in heads])
    assert 10 < heads[0].volume_ml("ventricles") < heads[-1].volume_ml("ventricles") < 90


@pytest.mark.parametrize(
    ("trait", "part", "sign"),
    [
        ("ventricle_scale", "ventricles", 1),
        ("sulcal_half_width_mm", "csf", 1),
        ("cortical_thickness_mm", "white", 1),
        ("lesion_load", "lesions", 1),
    ],
)
def test_each_t1_effect_alone_moves_its_own_tissue_in_a_straight_line(trait: str, part: str, sign: int) -> None:
    middle = draw_traits("t1", 50.0, None)
    volumes = [draw_head({**middle, trait: draw_traits("t1", age, None)[trait]}, None).volume_ml(part) for age in AGES]
    first, second = np.diff(volumes) * sign
    assert first > 0 and second > 0
    assert 0.4 < first / second < 2.5


def test_arteries_narrow_wind_and_lose_branches_with_age() -> None:
    trees = [grow_arteries(draw_traits("tof", age, None), None) for age in AGES]
    assert rising([-sum(vessel.distal for vessel in tree) for tree in trees])
    assert rising([-float(np.mean([v.radius_mm.mean() for v in tree if not v.distal])) for tree in trees])
    winding = [
        np.mean([v.length_mm() / np.linalg.norm(v.points_mm[-1] - v.points_mm[0]) for v in t if not v.distal])
        for t in trees
    ]
    assert rising([float(value) for value in winding])
    settings = plain_settings("tof")
    assert rising([-float(vessel_share(tree, settings).sum()) for tree in trees])


def test_a_tube_has_the_volume_that_its_radius_says() -> None:
    settings = plain_settings("tof")
    for radius_mm in (0.4, 1.0, 2.5):
        course = np.linspace([-30.0, -20.0, -15.0], [25.0, 30.0, 10.0], 160)
        tube = Vessel(course, np.full(160, radius_mm), distal=False)
        drawn_mm3 = float(vessel_share([tube], settings).sum()) * float(np.prod(settings.spacing_mm))
        assert drawn_mm3 == pytest.approx(np.pi * radius_mm**2 * tube.length_mm(), rel=0.1), radius_mm


def test_traits_are_straight_lines_through_the_documented_values() -> None:
    for effect in EFFECTS:
        assert effect.value(20.0) == pytest.approx(effect.at_20)
        assert effect.value(80.0) == pytest.approx(effect.at_80)
        assert effect.value(50.0) == pytest.approx((effect.at_20 + effect.at_80) / 2)
        assert effect.value(-500.0, -3.0) >= 0


@pytest.mark.parametrize("modality", ["t1", "tof"])
@pytest.mark.parametrize("age_range", [(20.0, 80.0), (40.0, 60.0)])
def test_the_stated_ceiling_is_the_error_of_the_best_guess(modality: str, age_range: tuple[float, float]) -> None:
    rng = np.random.default_rng(0)
    ages = rng.uniform(*age_range, 200_000)
    apparent = ages + APPARENT_AGE_SD_YEARS[modality] * rng.standard_normal(ages.size)
    errors = np.abs(best_age(apparent, modality, age_range) - ages)
    assert errors.mean() == pytest.approx(noise_ceiling(modality, age_range), abs=0.03)
    # No other rule does better: neither the apparent age itself nor a straight line through it.
    assert errors.mean() < np.abs(np.clip(apparent, *age_range) - ages).mean()
    assert errors.mean() < np.abs(np.polyval(np.polyfit(apparent, ages, 1), apparent) - ages).mean()


def test_the_best_guess_stays_in_range_and_rises_even_far_outside() -> None:
    guesses = best_age(np.array([-400.0, -100.0, 0.0, 50.0, 100.0, 200.0, 500.0]), "t1")
    assert np.all(np.isfinite(guesses)) and np.all(np.diff(guesses) >= 0)
    assert guesses.min() >= 20 and guesses.max() <= 80 and guesses[3] == pytest.approx(50)


def test_t1_tells_more_about_age_than_tof() -> None:
    assert noise_ceiling("t1") < 0.8 * noise_ceiling("tof")


def test_an_unknown_modality_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="'t1', 'tof'"):
        noise_ceiling("flair")


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_stored_orientation_is_the_same_picture_once_turned_back(orientation: str) -> None:
    plain = ScanSettings((1.0, 2.0, 3.0), (4, 5, 6), (0.0, 1.0, 2.0))
    turned = ScanSettings((1.0, 2.0, 3.0), (4, 5, 6), (0.0, 1.0, 2.0), orientation=orientation)
    signal = np.random.default_rng(0).random((4, 5, 6)).astype(np.float32)
    straight, affine = acquire(signal.copy(), "t1", plain, None)
    data, turned_affine = acquire(signal.copy(), "t1", turned, None)
    assert "".join(nib.aff2axcodes(turned_affine)) == orientation
    back = nib.as_closest_canonical(nib.Nifti1Image(data, turned_affine))
    np.testing.assert_array_equal(np.asanyarray(back.dataobj), straight)
    np.testing.assert_allclose(back.affine, affine)
