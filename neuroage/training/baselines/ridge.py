"""Ridge regression of age on coarse voxels, which every network must beat."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from neuroage.files import atomic_path
from neuroage.imaging.store import StoredVolume
from neuroage.training.inference import LEFT_RIGHT_AXIS

GRID_MM = 4.0  # voxels as large as those on which ridge is known to do well
# Gaussian blur before sampling, full width at half maximum in millimetres: on brains, 12 mm halve what position and
# folding alone change from person to person (measured; docs/explanation/recipes.md). The training scans choose.
BLURS_MM = (0.0, 8.0, 12.0)
PENALTIES = np.logspace(-3, 3, 25)  # of ridge, in units of the mean squared length of a scan's features
MIN_STD_SHARE = 0.15  # of the overall standard deviation, added to each feature's: hardly changing ones stay small
MOST_SCANS = 2000  # that ridge is fitted on: 0.6 GB of 4 mm voxels
AT_ONCE = 200  # scans held while predicting
FWHM_PER_SIGMA = 2 * np.sqrt(2 * np.log(2))


@dataclass(frozen=True)
class Features:
    """What ridge sees of a prepared volume: its voxels on a coarse grid, blurred, both halves averaged where asked.

    Attributes:
        spacing_mm: Of the prepared volumes.
        blur_mm: Full width at half maximum of a Gaussian, millimetres; 0: plain averages of 4 mm blocks.
        mirrored: Average each scan with its left-right mirror image.
    """

    spacing_mm: tuple[float, ...]
    blur_mm: float
    mirrored: bool

    def of(self, volumes: Sequence[StoredVolume]) -> np.ndarray:
        """Lay each scan out as a row, shape (n_scans, n_features), float32."""
        return np.stack([self.of_volume(volume.load()) for volume in volumes])

    def of_volume(self, data: np.ndarray) -> np.ndarray:
        """Features of one volume (C, *spatial), shape (n_features,), float32."""
        side = LEFT_RIGHT_AXIS[data.ndim + 1] - 1
        if self.mirrored:
            data = (data + np.flip(data, side)) / 2
            data = data.take(range(-(-data.shape[side] // 2)), side)  # the other half says the same
        for axis, spacing in enumerate(self.spacing_mm, start=1):
            sampling = _sampling(data.shape[axis], spacing, self.blur_mm, mirrored=self.mirrored and axis == side)
            data = np.moveaxis(np.tensordot(sampling, data, axes=(1, axis)), 0, axis)
        return np.ascontiguousarray(data, dtype=np.float32).ravel()


@lru_cache(maxsize=32)
def _sampling(size: int, spacing_mm: float, blur_mm: float, mirrored: bool) -> np.ndarray:
    """Give the matrix (n_coarse, size) that blurs and samples one axis; each row sums to 1.

    Blurred features are sampled every 4 mm or, from a blur of 12 mm on, every 8 mm: more would say nothing new.
    `mirrored`: the axis goes on beyond its end with its own mirror image.
    """
    step = GRID_MM * (2 if blur_mm >= 12 else 1)
    factor = max(1, round(step / spacing_mm))
    if blur_mm == 0:
        block = min(factor, size)
        rows = np.zeros((size // block, size), dtype=np.float32)  # what does not fill a block at the end is left out
        for index, row in enumerate(rows):
            row[index * block : (index + 1) * block] = 1 / block
        return rows
    places = (np.arange(max(1, size // factor)) + 0.5) * factor - 0.5
    sigma = max(blur_mm / FWHM_PER_SIGMA / spacing_mm, 0.3)
    voxels = np.arange(size)
    rows = np.exp(-0.5 * ((places[:, None] - voxels) / sigma) ** 2)
    if mirrored:
        rows += np.exp(-0.5 * ((places[:, None] - (2 * size - 1 - voxels)) / sigma) ** 2)
    return (rows / rows.sum(axis=1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True)
class Ridge:
    """Ridge regression of age on coarse, standardised features.

    Attributes:
        features: What it sees.
        mean, std: Of each feature over the training scans, shape (n_features,).
        weights: Shape (n_features,).
        intercept: Mean training age, years.
        alpha: Penalty, chosen by the error on training subjects who are left out, as the blur is.
    """

    features: Features
    mean: np.ndarray
    std: np.ndarray
    weights: np.ndarray
    intercept: float
    alpha: float

    def predict(self, volumes: Sequence[StoredVolume]) -> np.ndarray:
        """Predict ages in years, shape (n_scans,)."""
        ages = []
        for start in range(0, len(volumes), AT_ONCE):
            rows = self.features.of(volumes[start : start + AT_ONCE])
            ages.append(((rows - self.mean) / self.std) @ self.weights + self.intercept)
        return np.concatenate(ages).astype(float)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as safetensors."""
        from safetensors.numpy import save_file

        about = {"features": asdict(self.features), "intercept": self.intercept, "alpha": self.alpha}
        with atomic_path(path) as temporary:
            save_file(
                {"mean": self.mean, "std": self.std, "weights": self.weights},
                temporary,
                metadata={"about": json.dumps(about)},
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Ridge:
        """Read what `save` wrote."""
        from safetensors import safe_open

        with safe_open(Path(path), framework="np") as file:
            about = json.loads(file.metadata()["about"])
            arrays = {name: file.get_tensor(name) for name in ("mean", "std", "weights")}
        if "features" in about:
            given = about["features"]
            features = Features(tuple(given["spacing_mm"]), given["blur_mm"], given["mirrored"])
        else:  # before blurs: plain averages of blocks
            features = Features(tuple(GRID_MM / factor for factor in about["factor"]), 0.0, False)
        return cls(features, **arrays, intercept=about["intercept"], alpha=about["alpha"])


def fit_ridge(
    volumes: Sequence[StoredVolume],
    ages: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    subjects: Sequence[str] | None = None,
    blurs_mm: Sequence[float] = BLURS_MM,
    mirrored: bool = True,
) -> Ridge:
    """Fit ridge regression; blur and penalty are those with the smallest error on subjects who are left out in turn.

    Args:
        volumes: Of the training scans.
        ages: Years, shape (n_scans,).
        spacing_mm: Of the prepared volumes, millimetres.
        subjects: Whose scan each is: all scans of a subject are left out together, since a scan is told by another of
            the same head. None: every scan is another subject's.
        blurs_mm: Blurs to choose from; (0,) is ridge on plain 4 mm voxels.
        mirrored: Average both halves of the head: age does not tell left from right.

    Returns:
        The fitted model. Of more than `MOST_SCANS` scans it is fitted on as many, drawn at random with a fixed seed, so
        that memory does not grow with the cohort.
    """
    if len(volumes) > MOST_SCANS:
        chosen = np.sort(np.random.default_rng(0).permutation(len(volumes))[:MOST_SCANS])
        volumes, ages = [volumes[index] for index in chosen], np.asarray(ages)[chosen]
        subjects = None if subjects is None else [subjects[index] for index in chosen]
    spacing, years = tuple(float(value) for value in spacing_mm), np.asarray(ages, dtype=float)
    group = np.arange(len(years)) if subjects is None else pd.factorize(np.asarray(subjects))[0]
    fits = [_fit(Features(spacing, blur, mirrored), volumes, years, group) for blur in blurs_mm]
    return min(fits, key=lambda fit: fit[0])[1]


def _fit(
    features: Features, volumes: Sequence[StoredVolume], ages: np.ndarray, group: np.ndarray
) -> tuple[float, Ridge]:
    """Fit on some features; gives the mean absolute error on subjects who are left out too."""
    rows = features.of(volumes)
    mean, std = rows.mean(axis=0), rows.std(axis=0)
    overall = float(np.sqrt(np.mean(std.astype(np.float64) ** 2)))
    # A feature that never changes tells nothing.
    std = np.where(std > 0, std + np.float32(MIN_STD_SHARE * overall), np.float32(np.inf))
    centre = float(ages.mean())
    np.divide(rows - mean, std, out=rows)
    variances, axes = np.linalg.eigh((rows @ rows.T).astype(np.float64))
    variances = np.maximum(variances, 0)
    alphas = PENALTIES * variances.mean()
    errors = [np.abs(_errors_left_out(axes, variances / (variances + a), ages, group)).mean() for a in alphas]
    best = int(np.argmin(errors))
    duals = axes @ ((axes.T @ (ages - centre)) / (variances + alphas[best]))
    weights = (rows.T @ duals.astype(np.float32)).astype(np.float32)
    return float(errors[best]), Ridge(features, mean, std, weights, centre, float(alphas[best]))


def _errors_left_out(axes: np.ndarray, shrinkage: np.ndarray, ages: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Give the error on each scan, years, of the ridge regression fitted without the scans of its group.

    Args:
        axes: Eigenvectors of the products of the centred scans, shape (n_scans, n_scans).
        shrinkage: What the penalty leaves of each, shape (n_scans,).
        ages: Years, shape (n_scans,).
        group: Whose scan each is, a number, shape (n_scans,).

    Source: the errors e of the full fit with hat matrix H, and a group g left out of it: (I − H_gg)⁻¹ e_g; Allen 1974,
    doi:10.1080/00401706.1974.10489157. The intercept is in H, so who is left out is left out of the means as well.
    """
    n = len(ages)
    errors = ages - ages.mean() - axes @ (shrinkage * (axes.T @ (ages - ages.mean())))
    left_out = errors / (1 - (np.square(axes) @ shrinkage + 1 / n))
    for number in np.flatnonzero(np.bincount(group) > 1):
        own = np.flatnonzero(group == number)
        hat = (axes[own] * shrinkage) @ axes[own].T + 1 / n
        left_out[own] = np.linalg.solve(np.eye(len(own)) - hat, errors[own])
    return left_out
