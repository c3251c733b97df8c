"""Shared fixtures: a small cohort whose scans carry a known age signal, and recipes that learn it in seconds."""

from __future__ import annotations

import os
from pathlib import Path

from neuroage.imaging.machine import THREAD_VARIABLES

if "PYTEST_XDIST_WORKER" in os.environ:  # several workers share the cores; libraries read this when they are loaded
    for variable in THREAD_VARIABLES:
        os.environ.setdefault(variable, "1")

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from picture_cases import PICTURE_PIXELS, write_pictures

from neuroage.cohort import Cohort, Split, uniform_age_split
from neuroage.cohort.grouped import grouped_split
from neuroage.imaging.store import Store
from neuroage.runs.recipe import Recipe

N_SUBJECTS = 48
SPACING_MM = 4.0


def aging_ball(age: float, rng: np.random.Generator, size: int = 24) -> np.ndarray:
    """A bright ball with a dark middle that grows with age, in noise: what a ventricle does, in the smallest form."""
    axes = np.meshgrid(*[np.arange(size) - (size - 1) / 2 + shift for shift in (1.5, 0, -1.5)], indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    data = np.where(radius < 10, 100.0, 0.0)
    data[radius < 2 + age / 14] = 30.0
    return np.maximum(data + rng.normal(0, 3, data.shape) * (data > 0), 0).astype(np.float32)


def write_scans(folder: Path, modality: str, seed: int, noise_years: float) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    ages = np.linspace(20, 80, N_SUBJECTS).round(1)
    rows = []
    for index, age in enumerate(ages):
        path = folder / f"sub-{index:02d}_{modality}.nii.gz"
        data = aging_ball(age + rng.normal(0, noise_years), rng)
        nib.save(nib.Nifti1Image(data, np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1])), path)
        rows.append(
            {
                "scan_id": path.name.split(".")[0],
                "subject_id": f"sub-{index:02d}",
                "session": "",
                "modality": modality,
                "path": str(path),
                "age": age,
                "sex": "FM"[index % 2],
                "site": "here",
            }
        )
    return pd.DataFrame(rows)


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """48 subjects, each with a t1 and a (noisier) tof scan of 24³ voxels."""
    folder = tmp_path_factory.mktemp("scans")
    return Cohort(
        pd.concat([write_scans(folder, "t1", 1, 1.0), write_scans(folder, "tof", 2, 12.0)], ignore_index=True)
    )


@pytest.fixture(scope="session")
def split(cohort: Cohort) -> Split:
    return uniform_age_split(cohort, n_validation=12, seed=0)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def recipe() -> Recipe:
    """A recipe for the small cohort; a training takes about a second an epoch or less."""
    return Recipe.from_dict(
        {
            "modality": "t1",
            "prepare": {"spacing_mm": 8.0, "size": [12, 12, 12], "centre": "image"},
            "augment": [{"step": "flip", "p": 0.5}],
            "backbone": {"name": "cnn", "n_blocks": 2, "features": 4},
            "optim": {"lr": 0.01, "ema": 0.9},
            "training": {"epochs": 3, "batch_size": 6, "precision": "fp32"},
        }
    )


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """96 pictures of 48 subjects, with labels (some unknown), classes and ages."""
    return Cohort(write_pictures(tmp_path_factory.mktemp("pictures"), 48, seed=3))


@pytest.fixture(scope="session")
def picture_split(pictures: Cohort) -> Split:
    """A quarter of the pictures to validate on and a fifth to test on; subjects who share a picture stay together."""
    return grouped_split(pictures, validation=0.25, test=0.2, seed=0)


@pytest.fixture
def picture_recipe() -> Recipe:
    """A recipe for the pictures' classes; a training takes a second or two."""
    return Recipe.from_dict(
        {
            "modality": "picture",
            "task": {"name": "multiclass"},
            "prepare": {"kind": "picture", "size": PICTURE_PIXELS},
            "augment": [{"step": "flip", "p": 0.5}],
            "backbone": {"name": "cnn", "n_blocks": 2, "features": 8},
            "optim": {"lr": 0.03, "ema": 0.8},
            "training": {"epochs": 3, "batch_size": 8, "precision": "fp32", "train_eval_scans": 16},
        }
    )
