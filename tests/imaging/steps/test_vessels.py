"""Vessels are found where the phantom has them, whatever the scan's gain, bands and background."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from neuroage.imaging import phantom_vessels
from neuroage.imaging.phantom_effects import draw_traits
from neuroage.imaging.phantom_scanner import acquire, draw_settings
from neuroage.imaging.read import Volume
from neuroage.imaging.steps.vessels import binarise_vessels, enhance_vessels, vessels_of
from neuroage.runs.recipe_raw import Vessels


@pytest.fixture(scope="module")
def angiogram() -> tuple[Volume, np.ndarray]:
    """A phantom TOF slab of 1.4 mm voxels with bias field and noise, and which voxels are vessel."""
    rng = np.random.default_rng(1)
    settings = replace(draw_settings("tof", "north", 1.0, rng), orientation="RAS")
    arteries = phantom_vessels.grow_arteries(draw_traits("tof", 50.0, rng), rng)
    data, affine = acquire(phantom_vessels.paint_slab(arteries, settings), "tof", settings, rng)
    return Volume(data[None].astype(np.float32), affine), phantom_vessels.vessel_share(arteries, settings) > 0.5


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    return float(2 * (found & truth).sum() / (found.sum() + truth.sum()))


def tube(
    radius_mm: float = 1.0, spacing_mm: tuple[float, float, float] = (0.5, 0.5, 0.8), axis: int = 2, lumen: float = 300
) -> tuple[Volume, np.ndarray]:
    """A straight tube of `lumen` in noisy tissue of 100; each voxel's share of it."""
    shape = tuple(round(24 / step) for step in spacing_mm)
    fine = [(np.arange(3 * n) - (3 * n - 1) / 2) * step / 3 for n, step in zip(shape, spacing_mm, strict=True)]
    places = np.meshgrid(*[line for n, line in enumerate(fine) if n != axis], indexing="ij")
    inside = np.expand_dims(places[0] ** 2 + places[1] ** 2 < radius_mm**2, axis).repeat(3 * shape[axis], axis)
    share = inside.reshape([n for size in shape for n in (size, 3)]).mean(axis=(1, 3, 5))
    noise = np.random.default_rng(0).normal(0, 5, shape)
    data = 100 + (lumen - 100) * share + noise
    return Volume(data[None].astype(np.float32), np.diag([*spacing_mm, 1.0])), share


def test_vessels_of_the_phantom_are_cut_out_better_than_by_the_brightest_voxels(
    angiogram: tuple[Volume, np.ndarray],
) -> None:
    volume, truth = angiogram
    found, record = binarise_vessels(volume)
    brightest = [dice(volume.data[0] > np.percentile(volume.data, at), truth) for at in (97, 98, 99, 99.5)]
    assert dice(found.data[0] > 0, truth) > 0.8 > max(brightest) + 0.05
    assert set(np.unique(found.data)) == {0.0, 1.0}
    voxel_ml = np.prod(volume.spacing_mm) / 1000
    assert record["vessel_ml"] == pytest.approx(found.data.sum() * voxel_ml, rel=1e-3)
    assert record["vessel_share"] == pytest.approx(record["vessel_ml"] / record["head_ml"], rel=1e-2)


def test_a_removed_background_has_no_edge(angiogram: tuple[Volume, np.ndarray]) -> None:
    volume, truth = angiogram
    places = np.meshgrid(*[np.linspace(-1, 1, n) for n in volume.shape], indexing="ij")
    brain = sum(place**2 for place in places[:2]) < 0.55
    stripped = replace(volume, data=volume.data * brain)
    rim = brain & ~(sum(place**2 for place in places[:2]) < 0.5) & ~truth
    for mask in (None, brain):
        vesselness = enhance_vessels(stripped, mask=mask)[0].data[0]
        assert vesselness[rim].mean() < 0.01 and (vesselness[rim] > 0.2).mean() < 0.002
        assert vesselness[truth & brain].mean() > 20 * vesselness[rim].mean()
        assert not vesselness[~brain].any()
        found = binarise_vessels(stripped, mask=mask)[0].data[0] > 0
        assert dice(found, truth & brain) > 0.8


def test_bright_skin_is_no_vessel_and_arteries_below_it_stay(angiogram: tuple[Volume, np.ndarray]) -> None:
    volume, truth = angiogram
    places = np.meshgrid(*[np.linspace(-1, 1, n) for n in volume.shape], indexing="ij")
    radius = np.sqrt(sum(place**2 for place in places[:2]))
    data = np.where(radius < 0.93, volume.data[0], 2.0)
    tissue = np.median(volume.data)
    data[(radius > 0.89) & (radius < 0.93)] = 3 * tissue
    found, record = binarise_vessels(replace(volume, data=data[None].astype(np.float32)))
    assert record["head_by"] == "intensity"
    assert not found.data[0][radius > 0.89].any()
    assert dice(found.data[0] > 0, truth & (radius < 0.8)) > 0.7


def test_gain_and_slab_bands_do_not_matter(angiogram: tuple[Volume, np.ndarray]) -> None:
    volume, truth = angiogram
    plain = binarise_vessels(volume)[0].data[0] > 0
    louder = binarise_vessels(replace(volume, data=3 * volume.data))[0].data[0] > 0
    np.testing.assert_array_equal(plain, louder)
    band = np.where(np.arange(volume.shape[2]) < volume.shape[2] // 2, 0.88, 1.12).astype(np.float32)
    banded = binarise_vessels(replace(volume, data=volume.data * band))[0].data[0] > 0
    assert dice(banded, truth) > dice(plain, truth) - 0.06


@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("radius_mm", [0.8, 1.5])
def test_vesselness_is_high_along_a_tube_of_any_direction_in_voxels_that_are_no_cubes(
    radius_mm: float, axis: int
) -> None:
    volume, share = tube(radius_mm, axis=axis)
    vesselness = enhance_vessels(volume)[0].data[0]
    middle, far = np.sort(vesselness[share > 0.99])[-20:], share == 0
    assert middle.mean() > 0.4
    assert vesselness[far].mean() < 0.05
    assert vesselness.min() >= 0 and vesselness.max() <= 1


def test_a_tubes_width_is_kept() -> None:
    for radius_mm in (1.0, 2.5):
        volume, share = tube(radius_mm)
        found, record = binarise_vessels(volume)
        assert found.data.sum() == pytest.approx(share.sum(), rel=0.15)
        assert record["head_by"] == "whole volume"


def test_a_sheet_and_an_edge_are_no_vessels() -> None:
    volume, _ = tube(1.0, lumen=100)
    data = volume.data[0].copy()
    data[10:12] += 200
    data[44:] += 200
    vesselness = enhance_vessels(replace(volume, data=data[None]))[0].data[0]
    assert vesselness[4:, 4:-4, 4:-4].mean() < 0.03
    tubes = data.copy()
    tubes[20:22, 20:22] += 200
    assert enhance_vessels(replace(volume, data=tubes[None]))[0].data[0, 20:22, 20:22].mean() > 0.4


def test_the_share_that_is_asked_for_is_given(angiogram: tuple[Volume, np.ndarray]) -> None:
    volume, _ = angiogram
    for share in (0.002, 0.004):
        found, record = binarise_vessels(volume, share=share)
        assert record["vessel_share"] == pytest.approx(share, rel=0.03)
        assert found.data.sum() > 0


def test_vessels_whose_tissue_was_removed_are_kept(angiogram: tuple[Volume, np.ndarray]) -> None:
    volume, truth = angiogram
    alone = replace(volume, data=volume.data * truth)
    found, record = binarise_vessels(alone)
    assert record["head_by"] == "vessels alone"
    assert not found.data[0][~truth].any() and found.data[0][truth].mean() > 0.7


def test_outputs_of_the_recipe(angiogram: tuple[Volume, np.ndarray]) -> None:
    volume, _ = angiogram
    results = {name: vessels_of(volume, Vessels(output=name)) for name in ("vesselness", "binary", "enhanced")}
    for name, (result, record) in results.items():
        assert result.data.shape == volume.data.shape and result.data.dtype == np.float32
        assert record["output"] == name and record["radii_mm"] == [0.5, 1.0, 1.5, 2.0]
        np.testing.assert_array_equal(result.affine, volume.affine)
    np.testing.assert_allclose(results["enhanced"][0].data, volume.data * results["vesselness"][0].data)
    again = vessels_of(replace(volume, data=np.asfortranarray(volume.data)), Vessels(output="vesselness"))[0]
    np.testing.assert_array_equal(again.data, results["vesselness"][0].data)


def test_a_volume_without_vessels_or_an_empty_mask_gives_none() -> None:
    noise = np.random.default_rng(0).normal(100, 8, (1, 30, 30, 20)).astype(np.float32)
    volume = Volume(noise, np.diag([0.6, 0.6, 0.8, 1.0]))
    assert binarise_vessels(volume)[1]["vessel_share"] < 0.001
    found, record = binarise_vessels(volume, mask=np.zeros(volume.shape, dtype=bool))
    assert not found.data.any() and record["vessel_ml"] == 0
