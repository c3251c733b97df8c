"""Baselines of labels: the training frequencies, and logistic regression on coarse voxels."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from neuroage.files import atomic_path
from neuroage.imaging.store import StoredVolume
from neuroage.models.tasks import Task
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run
from neuroage.training.baselines import without_predictions
from neuroage.training.baselines.ridge import AT_ONCE, MIN_STD_SHARE, Features

MOST_SCANS = 5000  # that it is fitted on: beyond, a linear model on a thousand pixels hardly gains
STRENGTHS = (3e-5, 3e-4, 3e-3, 3e-2)  # C of scikit-learn, for standardised features; the training scans choose
N_PARTS = 3  # of the training subjects, each left out once to choose
MOST_ITERATIONS = 200
TOLERANCE = 1e-3  # of the gradient: the second digit of any figure no longer moves


@dataclass(frozen=True)
class LabelBaselines:
    """The training frequencies, and a linear model on coarse, standardised voxels.

    Attributes:
        labels: Their names.
        exclusive: Exactly one of the labels is right (classes): probabilities are those of a softmax.
        shares: How frequent each is among the training scans, shape (n_labels,).
        features: What the linear model sees: averages of blocks of 4 mm, of pictures a 32nd of the longer side.
        mean, std: Of each feature over the training scans, shape (n_features,).
        weights: Shape (n_features, n_labels).
        intercepts: Shape (n_labels,).
    """

    labels: tuple[str, ...]
    exclusive: bool
    shares: np.ndarray
    features: Features
    mean: np.ndarray
    std: np.ndarray
    weights: np.ndarray
    intercepts: np.ndarray

    @classmethod
    def fit(cls, volumes: Sequence[StoredVolume], rows: pd.DataFrame, recipe: Recipe, task: Task) -> LabelBaselines:
        """Fit the linear model; its penalty is the one with the smallest loss on subjects who are left out.

        Of more than `MOST_SCANS` scans it is fitted on as many, drawn with a fixed seed.
        """
        if len(volumes) > MOST_SCANS:
            chosen = np.sort(np.random.default_rng(0).permutation(len(volumes))[:MOST_SCANS])
            volumes, rows = [volumes[index] for index in chosen], rows.iloc[chosen]
        target, matrix = task.target, task.encode(rows).numpy()
        features = Features(tuple(float(step) for step in recipe.prepare.spacing), 0.0, False)
        seen = features.of(volumes)
        mean, std = seen.mean(axis=0), seen.std(axis=0)
        overall = float(np.sqrt(np.mean(std.astype(np.float64) ** 2)))
        std = np.where(std > 0, std + np.float32(MIN_STD_SHARE * overall), np.float32(np.inf))
        seen = (seen - mean) / std
        groups = pd.factorize(rows["group"] if "group" in rows else rows["subject_id"])[0]
        exclusive = target["kind"] == "multiclass"
        shares = np.asarray(task.state()["shares"])
        weights, intercepts = (_fit_classes if exclusive else _fit_labels)(seen, matrix, groups, shares)
        return cls(tuple(target["labels"]), exclusive, shares, features, mean, std, weights, intercepts)

    def tables(self, rows: pd.DataFrame, volumes: Sequence[StoredVolume]) -> dict[str, pd.DataFrame]:
        """Predict scans by the training frequencies and by the linear model."""
        keys = without_predictions(rows)
        constant = np.tile(self.shares, (len(rows), 1))
        return {
            "majority": pd.concat([keys, self._columns(constant, keys)], axis=1),
            "linear": pd.concat([keys, self._columns(self._probabilities(volumes), keys)], axis=1),
        }

    def _columns(self, probabilities: np.ndarray, keys: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame(probabilities, columns=[f"probability_{name}" for name in self.labels], index=keys.index)

    def _probabilities(self, volumes: Sequence[StoredVolume]) -> np.ndarray:
        from scipy.special import expit, softmax

        parts = [np.empty((0, len(self.labels)))]
        for start in range(0, len(volumes), AT_ONCE):
            rows = (self.features.of(volumes[start : start + AT_ONCE]) - self.mean) / self.std
            logits = (rows @ self.weights + self.intercepts).astype(float)
            parts.append(softmax(logits, axis=1) if self.exclusive else expit(logits))
        return np.concatenate(parts)

    def save(self, run: Run) -> None:
        """Keep them with the run."""
        from safetensors.numpy import save_file

        names = ("shares", "mean", "std", "weights", "intercepts")
        about = {"labels": self.labels, "exclusive": self.exclusive, "features": asdict(self.features)}
        arrays = {name: np.ascontiguousarray(getattr(self, name), dtype=np.float32) for name in names}
        with atomic_path(run.linear_path) as temporary:
            save_file(arrays, temporary, metadata={"about": json.dumps(about)})

    @classmethod
    def load(cls, run: Run) -> LabelBaselines:
        """Open those of a training."""
        from safetensors import safe_open

        with safe_open(Path(run.linear_path), framework="np") as file:
            about = json.loads(file.metadata()["about"])
            arrays = {name: file.get_tensor(name) for name in ("shares", "mean", "std", "weights", "intercepts")}
        given = about["features"]
        features = Features(tuple(given["spacing_mm"]), given["blur_mm"], given["mirrored"])
        return cls(tuple(about["labels"]), about["exclusive"], features=features, **arrays)


def _fit_classes(
    seen: np.ndarray, matrix: np.ndarray, groups: np.ndarray, shares: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One softmax over all classes."""
    wanted = matrix.argmax(axis=1)
    weights, intercepts, classes = _logistic(seen, wanted, groups)
    full = np.zeros((seen.shape[1], matrix.shape[1])), np.full(matrix.shape[1], -20.0)  # a class that none has
    if len(classes) == 2:  # scikit-learn gives one logit
        weights, intercepts = np.hstack([-weights / 2, weights / 2]), np.array([-intercepts[0] / 2, intercepts[0] / 2])
    full[0][:, classes], full[1][classes] = weights, intercepts
    return full


def _fit_labels(
    seen: np.ndarray, matrix: np.ndarray, groups: np.ndarray, shares: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One logit for each label, on the scans where it is known."""
    weights, intercepts = np.zeros((seen.shape[1], matrix.shape[1])), np.zeros(matrix.shape[1])
    for label, column in enumerate(matrix.T):
        known = np.isfinite(column)
        share = min(max(float(shares[label]), 1e-6), 1 - 1e-6)
        intercepts[label] = np.log(share / (1 - share))
        if len(np.unique(column[known])) == 2:
            found = _logistic(seen[known], column[known].astype(int), groups[known])
            weights[:, label], intercepts[label] = found[0][:, 0], found[1][0]
    return weights, intercepts


def _logistic(seen: np.ndarray, wanted: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give weights (n_features, n_logits), intercepts and the classes they are of."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a baseline to two digits needs no more iterations
        best = max(STRENGTHS, key=lambda strength: _left_out_likelihood(seen, wanted, groups, strength))
        model = LogisticRegression(C=best, max_iter=MOST_ITERATIONS, tol=TOLERANCE).fit(seen, wanted)
    return model.coef_.T, model.intercept_, model.classes_


def _left_out_likelihood(seen: np.ndarray, wanted: np.ndarray, groups: np.ndarray, strength: float) -> float:
    """Mean log-likelihood of scans whose subjects were left out."""
    from sklearn.linear_model import LogisticRegression

    part = np.random.default_rng(0).permutation(groups.max() + 1)[groups] % N_PARTS
    total = 0.0
    for index in range(N_PARTS):
        train, left_out = part != index, part == index
        if not left_out.any() or len(np.unique(wanted[train])) < 2:
            continue
        model = LogisticRegression(C=strength, max_iter=MOST_ITERATIONS, tol=TOLERANCE).fit(seen[train], wanted[train])
        place = {name: column for column, name in enumerate(model.classes_)}
        probability = model.predict_proba(seen[left_out])
        for row, name in zip(probability, wanted[left_out], strict=True):
            total += float(np.log(max(row[place[name]], 1e-6))) if name in place else np.log(1e-6)
    return total / len(wanted)


BASELINES = LabelBaselines
