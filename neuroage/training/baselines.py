"""What every network must beat: the mean training age, and ridge regression on coarse voxels."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from neuroage.files import atomic_path
from neuroage.imaging.prepare import block_mean
from neuroage.imaging.store import StoredVolume

COARSE_MM = 4.0  # voxels as large as those on which ridge is known to do well
ALPHAS = np.logspace(1, 7, 25)
MIN_STD = 1e-6
MOST_SCANS = 2000  # that ridge is fitted on: 1.2 GB of 4 mm voxels in the double precision of scikit-learn
AT_ONCE = 200  # scans held while predicting


@dataclass(frozen=True)
class Ridge:
    """Ridge regression of age on coarse, standardised voxels.

    Attributes:
        factor: Prepared voxels averaged along each axis.
        mean, std: Of each coarse voxel over the training scans, shape (n_voxels,).
        weights: Shape (n_voxels,).
        intercept: Mean training age, years.
        alpha: Penalty, chosen by leave-one-out error on the training scans.
    """

    factor: tuple[int, ...]
    mean: np.ndarray
    std: np.ndarray
    weights: np.ndarray
    intercept: float
    alpha: float

    def predict(self, volumes: Sequence[StoredVolume]) -> np.ndarray:
        """Predict ages in years, shape (n_scans,)."""
        ages = []
        for start in range(0, len(volumes), AT_ONCE):
            voxels = coarse_voxels(volumes[start : start + AT_ONCE], self.factor)
            ages.append(((voxels - self.mean) / self.std) @ self.weights + self.intercept)
        return np.concatenate(ages).astype(float)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as safetensors."""
        from safetensors.numpy import save_file

        about = {"factor": list(self.factor), "intercept": self.intercept, "alpha": self.alpha}
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
        return cls(tuple(about["factor"]), **arrays, intercept=about["intercept"], alpha=about["alpha"])


def fit_ridge(volumes: Sequence[StoredVolume], ages: np.ndarray, spacing_mm: Sequence[float]) -> Ridge:
    """Fit ridge regression; the penalty is the one with the smallest leave-one-out error on these scans.

    Args:
        volumes: Of the training scans.
        ages: Years, shape (n_scans,).
        spacing_mm: Of the prepared volumes.

    Returns:
        The fitted model. Of more than `MOST_SCANS` scans it is fitted on as many, drawn at random with a fixed seed, so
        that memory does not grow with the cohort.
    """
    from sklearn.linear_model import RidgeCV

    if len(volumes) > MOST_SCANS:
        chosen = np.sort(np.random.default_rng(0).permutation(len(volumes))[:MOST_SCANS])
        volumes, ages = [volumes[index] for index in chosen], np.asarray(ages)[chosen]
    factor = tuple(max(1, round(COARSE_MM / spacing)) for spacing in spacing_mm)
    voxels = coarse_voxels(volumes, factor)
    mean, std = voxels.mean(axis=0), voxels.std(axis=0)
    std = np.where(std > MIN_STD, std, np.float32(np.inf))  # a voxel that never changes tells nothing
    centre = float(np.mean(ages))
    np.divide(voxels - mean, std, out=voxels)
    model = RidgeCV(alphas=ALPHAS, fit_intercept=False).fit(voxels, ages - centre)
    return Ridge(factor, mean, std, model.coef_.astype(np.float32), centre, float(model.alpha_))


def coarse_voxels(volumes: Sequence[StoredVolume], factor: Sequence[int]) -> np.ndarray:
    """Average blocks of voxels and lay each scan out as a row, shape (n_scans, n_voxels), float32."""
    return np.stack([block_mean(volume.load(), (1, *factor)).ravel() for volume in volumes])


def baseline_tables(rows: pd.DataFrame, mean_age: float, ridge_ages: np.ndarray) -> dict[str, pd.DataFrame]:
    """Make the predictions tables of both baselines for the scans in `rows` (a predictions table)."""
    keys = rows.drop(
        columns=[column for column in rows.columns if column.startswith(("predicted_", "gap", "members_std"))]
    )
    return {"mean": keys.assign(predicted_age=mean_age), "ridge": keys.assign(predicted_age=ridge_ages)}
