"""Shared fixtures: a small cohort whose scans carry a known age signal, and recipes that learn it in seconds."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

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


PICTURE_PIXELS = 24
PICTURE_LABELS = ("Rows", "Columns", "Spot")


def striped_picture(rows: bool, columns: bool, spot: bool, age: float, rng: np.random.Generator) -> np.ndarray:
    """A disc that grows with age, under stripes of any phase and a small spot anywhere: uint8 of 24 × 24 pixels.

    No pixel says by itself whether there are stripes, so that a linear model sees the age and nothing else.
    """
    across = np.arange(PICTURE_PIXELS)
    y, x = np.meshgrid(across, across, indexing="ij")
    middle = (PICTURE_PIXELS - 1) / 2
    shades = 85.0 + 50 * (np.hypot(y - middle, x - middle) < 3 + age / 10)
    for there, axis in ((rows, y), (columns, x)):
        shades += there * 30 * np.sin(2 * np.pi * (axis / 4 + rng.random()))
    top, left = rng.integers(2, PICTURE_PIXELS - 5, size=2)
    shades[top : top + 3, left : left + 3] += 100 * spot
    return np.clip(shades + rng.normal(0, 6, shades.shape), 0, 255).astype(np.uint8)


def write_pictures(folder: Path, n_subjects: int, seed: int) -> pd.DataFrame:
    """Two pictures of each subject, with every label (some unknown), a class and an age."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    table = []
    for index in range(2 * n_subjects):
        rows, columns = index // 2 % 2 == 0, index // 4 % 2 == 0
        spot, age = bool(rng.random() < 0.4), round(float(rng.uniform(20, 80)), 1)
        path = folder / f"picture-{index:03d}.png"
        Image.fromarray(striped_picture(rows, columns, spot, age, rng)).save(path)
        known = [1.0 if rng.random() > 0.1 else np.nan for _ in PICTURE_LABELS]
        table.append(
            {
                "scan_id": path.stem,
                "subject_id": f"person-{index // 2:03d}",
                "modality": "",
                "path": str(path),
                "age": age,
                "sex": "FM"[index // 2 % 2],
                "label": {(1, 0): "rows", (0, 1): "columns", (1, 1): "both", (0, 0): "None"}[rows, columns],
                "label_Rows": known[0] * rows,
                "label_Columns": known[1] * columns,
                "label_Spot": known[2] * spot,
                # Of the first persons two have a picture in common, which binds them.
                "duplicate_group": f"pair-{index // 4}" if index < 24 and index % 2 == 0 else "",
            }
        )
    return pd.DataFrame(table)


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
