"""Ridge: what it sees, what its training scans choose, what it keeps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.ndimage import gaussian_filter

from neuroage.training.baselines.ridge import Features, Ridge, _errors_left_out, fit_ridge

SPACING = (4.0, 4.0, 4.0)


class Volume:
    """A prepared volume that lies in memory."""

    def __init__(self, data: np.ndarray) -> None:
        self.data = data.astype(np.float32)

    def load(self) -> np.ndarray:
        return self.data


def cohort(n: int, *, blur_voxels: float, seed: int = 0, n_scans: int = 1) -> tuple[list[Volume], np.ndarray]:
    """Volumes in which age is a smooth pattern (or one of single voxels), in noise that differs from voxel to voxel.

    Several scans of a subject, side by side, share most of the noise.
    """
    rng = np.random.default_rng(seed)
    pattern = np.random.default_rng(99).normal(size=(12, 14, 12))
    pattern = gaussian_filter(pattern, blur_voxels) if blur_voxels else pattern
    pattern = (pattern + pattern[::-1]) / 2
    pattern /= pattern.std()
    ages = rng.uniform(20, 90, n)
    volumes = []
    for age in ages:
        head = (age - 55) / 20 * pattern + rng.normal(0, 8, pattern.shape)
        volumes += [Volume((head + (scan > 0) * rng.normal(0, 1.5, pattern.shape))[None]) for scan in range(n_scans)]
    return volumes, np.repeat(ages, n_scans)


def test_plain_features_are_averages_of_blocks() -> None:
    data = np.random.default_rng(0).random((2, 9, 8, 5)).astype(np.float32)
    features = Features((2.0, 2.0, 4.0), 0.0, mirrored=False).of_volume(data)
    wanted = data[:, :8].reshape(2, 4, 2, 4, 2, 5).mean(axis=(2, 4))
    np.testing.assert_allclose(features, wanted.ravel(), rtol=1e-6)


@pytest.mark.parametrize("blur_mm", [0.0, 8.0, 12.0])
def test_mirrored_features_do_not_tell_a_scan_from_its_mirror_image(blur_mm: float) -> None:
    data = np.random.default_rng(1).random((1, 13, 10, 8)).astype(np.float32)
    features = Features(SPACING, blur_mm, mirrored=True)
    np.testing.assert_allclose(features.of_volume(data), features.of_volume(data[:, ::-1]), rtol=1e-5)
    apart = Features(SPACING, blur_mm, mirrored=False)
    assert np.abs(apart.of_volume(data) - apart.of_volume(data[:, ::-1])).max() > 0.01


@pytest.mark.parametrize(("blur_mm", "mirrored"), [(0.0, False), (8.0, True), (12.0, True), (12.0, False)])
def test_a_constant_volume_gives_constant_features(blur_mm: float, mirrored: bool) -> None:
    features = Features((4.0, 2.0, 3.0), blur_mm, mirrored).of_volume(np.full((1, 11, 16, 13), 3.0, np.float32))
    np.testing.assert_allclose(features, 3.0, rtol=1e-5)


def test_a_volume_of_few_voxels_has_features() -> None:
    assert len(Features((8.0, 8.0, 8.0), 12.0, mirrored=True).of_volume(np.ones((1, 2, 3, 4), np.float32))) > 0


def test_the_halves_of_an_image_are_its_columns() -> None:
    image = np.zeros((1, 4, 6), np.float32)
    image[0, 1, 0] = 1
    features = Features((4.0, 4.0), 0.0, mirrored=True).of_volume(image).reshape(4, 3)
    assert features[1, 0] == pytest.approx(0.5)


def test_training_scans_choose_the_blur_that_suits_their_signal() -> None:
    smooth = fit_ridge(*cohort(60, blur_voxels=2.5), SPACING)
    fine = fit_ridge(*cohort(60, blur_voxels=0.0), SPACING)
    assert smooth.features.blur_mm >= 8 > fine.features.blur_mm


def test_blur_lessens_the_error_on_new_scans_where_the_signal_is_smooth() -> None:
    volumes, ages = cohort(60, blur_voxels=2.5)
    new, new_ages = cohort(60, blur_voxels=2.5, seed=5)

    def error(**options: object) -> float:
        return float(np.abs(fit_ridge(volumes, ages, SPACING, **options).predict(new) - new_ages).mean())  # type: ignore[arg-type]

    assert error() < 0.8 * error(blurs_mm=(0.0,), mirrored=False)


def test_rescans_do_not_choose_blur_and_penalty_for_one_another() -> None:
    """Another scan of the same head gives its age away, best without blur and penalty; new heads need both."""
    volumes, ages = cohort(50, blur_voxels=2.5, seed=12, n_scans=2)
    new, new_ages = cohort(80, blur_voxels=2.5, seed=102)
    fits = [
        fit_ridge(volumes, ages, SPACING, subjects=subjects)  # type: ignore[arg-type]
        for subjects in (np.repeat(np.arange(50), 2).astype(str).tolist(), None)
    ]
    together, apart = (np.abs(fit.predict(new) - new_ages).mean() for fit in fits)  # type: ignore[arg-type]
    assert together < 0.95 * apart


@pytest.mark.parametrize("n_scans", [1, 3])
def test_the_error_of_who_is_left_out_is_that_of_a_fit_without_them(n_scans: int) -> None:
    from sklearn.linear_model import Ridge as Peer

    rng = np.random.default_rng(4)
    group = np.repeat(rng.permutation(12), n_scans)
    rows, ages = rng.normal(size=(len(group), 20)), rng.uniform(20, 90, len(group))
    centred = rows - rows.mean(axis=0)
    variances, axes = np.linalg.eigh(centred @ centred.T)
    found = _errors_left_out(axes, variances / (variances + 5.0), ages, group)
    for number in range(12):
        own = group == number
        peer = Peer(alpha=5.0).fit(rows[~own], ages[~own])
        np.testing.assert_allclose(found[own], ages[own] - peer.predict(rows[own]), rtol=1e-8)


@pytest.mark.parametrize("blur_mm", [8.0, 12.0])
def test_a_blur_is_as_wide_as_it_says(blur_mm: float) -> None:
    data = np.zeros((1, 64, 64), np.float32)
    data[0, 30, 29] = 1
    step = 8 if blur_mm >= 12 else 4  # millimetres, and voxels
    wide = np.arange(64 // step) * step + (step - 1) / 2
    away = (wide[:, None] - 30) ** 2 + (wide[None] - 29) ** 2
    wanted = 0.5 ** (away / (blur_mm / 2) ** 2)  # half as high half of the full width away
    found = Features((1.0, 1.0), blur_mm, mirrored=False).of_volume(data).reshape(wanted.shape)
    np.testing.assert_allclose(found / found.max(), wanted / wanted.max(), atol=1e-4)


def test_the_penalty_is_large_where_there_is_nothing_to_learn() -> None:
    rng = np.random.default_rng(3)
    volumes = [Volume(rng.normal(size=(1, 10, 10, 10))) for _ in range(60)]
    ages = rng.uniform(20, 90, 60)
    new = [Volume(rng.normal(size=(1, 10, 10, 10))) for _ in range(60)]
    predicted = fit_ridge(volumes, ages, SPACING).predict(new)
    assert predicted.std() < 0.5 * ages.std()


def test_predictions_are_those_of_ridge_with_an_intercept() -> None:
    from sklearn.linear_model import Ridge as Peer

    volumes, ages = cohort(40, blur_voxels=2.5)
    fitted = fit_ridge(volumes, ages, SPACING)
    rows = fitted.features.of(volumes)  # type: ignore[arg-type]
    peer = Peer(alpha=fitted.alpha).fit((rows - fitted.mean) / fitted.std, ages)
    new, _ = cohort(10, blur_voxels=2.5, seed=7)
    wanted = peer.predict((fitted.features.of(new) - fitted.mean) / fitted.std)  # type: ignore[arg-type]
    np.testing.assert_allclose(fitted.predict(new), wanted, atol=0.01)  # type: ignore[arg-type]


def test_a_saved_ridge_predicts_the_same(tmp_path: Path) -> None:
    volumes, ages = cohort(30, blur_voxels=2.5)
    fitted = fit_ridge(volumes, ages, SPACING)
    fitted.save(tmp_path / "ridge.safetensors")
    again = Ridge.load(tmp_path / "ridge.safetensors")
    assert again.features == fitted.features
    np.testing.assert_array_equal(again.predict(volumes), fitted.predict(volumes))  # type: ignore[arg-type]


def test_a_ridge_saved_before_there_was_blur_is_read(tmp_path: Path) -> None:
    data = np.random.default_rng(0).random((1, 8, 8, 8)).astype(np.float32)
    n = 4**3
    arrays = {"mean": np.zeros(n, np.float32), "std": np.ones(n, np.float32), "weights": np.ones(n, np.float32)}
    about = {"factor": [2, 2, 2], "intercept": 50.0, "alpha": 1.0}
    save_file(arrays, tmp_path / "old.safetensors", metadata={"about": json.dumps(about)})
    blocks = data.reshape(1, 4, 2, 4, 2, 4, 2).mean(axis=(2, 4, 6))
    assert Ridge.load(tmp_path / "old.safetensors").predict([Volume(data)])[0] == pytest.approx(
        50 + blocks.sum(), rel=1e-5
    )  # type: ignore[list-item]
