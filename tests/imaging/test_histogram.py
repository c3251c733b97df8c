"""Histogram standardisation is TorchIO's, and refuses what has no histogram."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import torchio as tio

from neuroage.errors import DataError, UsageError
from neuroage.imaging.histogram import (
    LANDMARKS,
    PERCENTILES,
    foreground_of,
    learn_landmarks,
    standardise_histogram,
)
from neuroage.imaging.prepare import prepare
from neuroage.imaging.read import Volume, read
from neuroage.runs.recipe import Histogram, Recipe

OWN = (0, 3, 5, 9, 10, 20, 40, 41, 60, 62, 70, 90, 101)


def head(seed: int = 0, background: float = 0.45) -> np.ndarray:
    """Three tissues in noise, around them air; shape (24, 26, 22)."""
    rng = np.random.default_rng(seed)
    data = rng.choice([300.0, 600.0, 900.0], size=(24, 26, 22)) + rng.normal(0, 60, (24, 26, 22))
    data[rng.random(data.shape) < background] = 0
    return np.maximum(data, 0).astype(np.float32)


@pytest.mark.parametrize("landmarks", ["li2017", OWN])
@pytest.mark.parametrize(
    ("over", "masking"),
    [("all", None), ("nonzero", lambda data: data != 0), ("above_mean", lambda data: data > data.float().mean())],
)
def test_it_is_torchios_standardisation(landmarks: object, over: str, masking: object) -> None:
    data = head()
    values = np.asarray(LANDMARKS["li2017"] if landmarks == "li2017" else landmarks, dtype=float)
    theirs = tio.HistogramStandardization({"t1": values}, masking_method=masking)
    expected = theirs(tio.Subject(t1=tio.ScalarImage(tensor=torch.from_numpy(data)[None])))["t1"].data[0].numpy()
    ours = standardise_histogram(data, Histogram(landmarks=landmarks, over=over), {})
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-3)
    assert ours.dtype == np.float32 and ours.std() > 5


def test_percentiles_of_the_foreground_become_the_landmarks() -> None:
    data, record = head(), {}
    mapped = standardise_histogram(data, Histogram(landmarks=OWN, over="nonzero"), record)
    found = np.percentile(mapped[foreground_of(data, "nonzero")], PERCENTILES)
    used = [index for index, percentile in enumerate(PERCENTILES) if percentile not in (25, 75)]
    np.testing.assert_allclose(found[used], np.asarray(OWN)[used], atol=0.05)
    assert len(record["histogram_percentiles"]) == 13


def test_the_scanners_units_do_not_matter_and_order_is_kept() -> None:
    data = head()
    plain = standardise_histogram(data, Histogram(), {})
    louder = standardise_histogram(4 * data + 100, Histogram(), {})
    np.testing.assert_allclose(plain, louder, atol=1e-2)
    order = np.argsort(data.ravel(), kind="stable")
    assert (np.diff(plain.ravel()[order]) >= -1e-4).all()


@pytest.mark.parametrize("levels", [2, 3, 4])
def test_binary_volumes_and_label_maps_are_refused(levels: int) -> None:
    labels = np.random.default_rng(0).integers(0, levels, (12, 12, 12)).astype(np.float32)
    with pytest.raises(DataError, match=r"no histogram to standardise.*over: nonzero"):
        standardise_histogram(labels, Histogram(), {})


def test_a_mostly_empty_grid_is_refused_until_its_background_is_left_out() -> None:
    brain = head(background=0.85)
    with pytest.raises(DataError, match="no histogram"):
        standardise_histogram(brain, Histogram(over="all"), {})
    assert standardise_histogram(brain, Histogram(over="nonzero"), {}).max() > 90


@pytest.mark.parametrize(
    "wrong",
    [
        {"histogram": {"landmarks": [1, 2, 3]}},
        {"histogram": {"landmarks": [0, 0, *range(11)]}},
        {"histogram": {"landmarks": "li2018"}},
        {"histogram": {}, "labels": True, "intensity": "none"},
        {"histogram": {}, "binning": {"method": "otsu", "native": True}},
    ],
)
def test_a_histogram_without_meaning_is_refused(wrong: dict) -> None:
    with pytest.raises(UsageError, match="histogram"):
        Recipe.from_dict({"prepare": wrong})


@pytest.mark.parametrize("statistics", ["grid", "field_of_view"])
def test_the_histogram_is_that_of_what_statistics_are_taken_over(statistics: str) -> None:
    data = head(background=0.2)
    data[4:20, 4:22, 4:18] *= 0.5  # the middle is another tissue
    recipe = Recipe.from_dict(
        {
            "prepare": {
                "spacing_mm": 1.0,
                "size": [12, 14, 10],
                "centre": "image",
                "intensity": "none",
                "clip_percentiles": None,
                "histogram": {"landmarks": "li2017"},
                "statistics": statistics,
            }
        }
    ).prepare
    prepared = prepare(Volume(data[None], np.eye(4)), recipe).data[0]
    crop = (slice(6, 18), slice(6, 20), slice(6, 16))
    whole = standardise_histogram(data, Histogram(), {})[crop]
    part = standardise_histogram(data[crop], Histogram(), {})
    np.testing.assert_allclose(prepared, whole if statistics == "grid" else part, atol=1e-4)
    assert np.abs(whole - part).mean() > 3


@pytest.mark.parametrize(
    ("over", "masking"),
    [("nonzero", lambda data: data != 0), ("above_mean", lambda data: data > data.float().mean())],
)
def test_learnt_landmarks_are_torchios(tmp_path: Path, over: str, masking: object) -> None:
    paths = []
    for seed, gain in enumerate((1.0, 2.5, 0.4)):
        paths.append(tmp_path / f"{seed}.nii.gz")
        nib.save(nib.Nifti1Image(gain * head(seed) ** (1 + 0.1 * seed), np.eye(4)), paths[-1])
    theirs = tio.HistogramStandardization.train(paths, masking_function=masking, progress=False)
    ours = learn_landmarks(paths, over=over)
    np.testing.assert_allclose(ours, theirs, atol=0.05)
    assert Histogram(landmarks=ours, over=over).landmarks == ours
    assert learn_landmarks([read(path) for path in paths], over=over) == ours


def test_scans_of_other_gain_agree_once_brought_to_learnt_landmarks() -> None:
    volumes = [Volume(gain * head(seed)[None], np.eye(4)) for seed, gain in enumerate((1.0, 3.0))]
    histogram = Histogram(landmarks=learn_landmarks(volumes), over="nonzero")
    one, other = (standardise_histogram(volume.data[0], histogram, {}) for volume in volumes)
    assert np.mean(one[one > 5]) == pytest.approx(np.mean(other[other > 5]), rel=0.02)


def test_landmarks_cannot_be_learnt_from_masks_air_or_nothing() -> None:
    mask = Volume((head() > 0)[None].astype(np.float32), np.eye(4))
    with pytest.raises(DataError, match="do not differ"):
        learn_landmarks([mask])
    mostly_air = Volume((head(background=0.6))[None], np.eye(4))
    with pytest.raises(DataError, match="do not rise"):
        learn_landmarks([mostly_air], over="all")
    with pytest.raises(UsageError, match="no scans"):
        learn_landmarks([])
    with pytest.raises(UsageError, match="brain"):
        learn_landmarks([mask], over="brain")
