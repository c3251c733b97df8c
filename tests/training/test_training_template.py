"""Ellipsoids with a dark middle stand for heads; where registration leads is set by the test."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from neuroage.cohort import Cohort, uniform_age_split
from neuroage.errors import DataError, RefusedError, UsageError
from neuroage.imaging.read import Volume
from neuroage.imaging.registration.result import Registration
from neuroage.imaging.steps.companions import companions_of
from neuroage.imaging.store import Store, prepare_image
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run
from neuroage.training.predict import predict
from neuroage.training.template import TrainingTemplate, preparation_for_raw
from neuroage.training.train import train

N_SUBJECTS = 24
RECIPE = Recipe.from_dict(
    {
        "modality": "t1",
        "prepare": {"spacing_mm": 6.0, "size": [26, 32, 26], "centre": "image"},
        "backbone": {"name": "cnn", "n_blocks": 2, "features": 4},
        "training": {"epochs": 2, "batch_size": 8, "precision": "fp32"},
    }
)


def nod(degrees: float, scale: float = 1.0) -> np.ndarray:
    angle = np.radians(degrees)
    matrix = np.eye(4)
    matrix[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix[:3, :3] *= scale
    return matrix


def ellipsoid(age: float, pose: np.ndarray, n: int = 40, spacing_mm: float = 4.5) -> tuple[np.ndarray, np.ndarray]:
    """A brain-sized ellipsoid about the origin, turned by `pose`, whose dark middle grows with age."""
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = -spacing_mm * (n - 1) / 2
    index = np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), axis=-1)
    at = (index @ affine[:3, :3].T + affine[:3, 3]) @ np.linalg.inv(pose[:3, :3]).T
    radius = np.sqrt(((at / [66.0, 84.0, 60.0]) ** 2).sum(axis=-1))
    data = np.where(radius < 1, 100.0 + 20 * at[..., 1] / 84 * (at[..., 2] > 0), 0.0)
    data[np.sqrt((at**2).sum(axis=-1)) < 10 + age / 4] = 30.0
    return data.astype(np.float32), affine


def write(folder: Path, name: str, age: float, pose: np.ndarray) -> dict[str, object]:
    path = folder / f"{name}.nii"
    nib.save(nib.Nifti1Image(*ellipsoid(age, pose)), path)
    return {"scan_id": name, "subject_id": name, "modality": "t1", "path": str(path), "age": age}


def trained(folder: Path, store: Store, poses: list[np.ndarray]) -> Run:
    ages = np.linspace(20, 80, N_SUBJECTS)
    rows = [write(folder, f"s{i:02d}", float(ages[i]), pose) for i, pose in enumerate(poses)]
    cohort = Cohort(pd.DataFrame(rows))
    return train(RECIPE, cohort, uniform_age_split(cohort, n_validation=6, seed=0), folder / "run", store=store)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Run:
    return trained(tmp_path_factory.mktemp("aligned"), store, [np.eye(4)] * N_SUBJECTS)


def template_of(folder: Path, store: Store, poses: list[np.ndarray]) -> TrainingTemplate:
    volumes = []
    for index, pose in enumerate(poses):
        path = str(write(folder, f"v{index}", 40, pose)["path"])
        volumes.append(store.prepare(path, RECIPE.prepare)[0])
    return TrainingTemplate.of(volumes, RECIPE.prepare)


def test_a_run_keeps_the_mean_of_its_training_scans(run: Run) -> None:
    kept = TrainingTemplate.load(run.template_path)
    training = run.split.table.query("set == 'train'")["subject_id"]
    paths = run.cohort.select(subject_ids=training).table["path"]
    mean = np.mean([prepare_image(path, run.recipe.prepare).data[0] for path in paths], axis=0)
    np.testing.assert_allclose(kept.mean, mean, atol=0.03)  # rounded to 255 steps
    assert kept.n_scans == len(paths) and kept.is_brain_only and kept.alignment == "affine"


def test_how_training_scans_lay_is_told_from_their_poses(tmp_path: Path, store: Store) -> None:
    rng = np.random.default_rng(0)
    names = ("still", "sizes", "poses")
    spread = {"still": (0.7, 0.005), "sizes": (0.7, 0.05), "poses": (8.0, 0.05)}
    found = {}
    for name in names:
        (tmp_path / name).mkdir()
        degrees, size = spread[name]
        poses = [nod(rng.normal(0, degrees), 1 + rng.normal(0, size)) for _ in range(12)]
        found[name] = template_of(tmp_path / name, store, poses).alignment
    assert found == {"still": "affine", "sizes": "rigid", "poses": ""}


def test_what_is_saved_comes_back_and_damage_is_told(run: Run, tmp_path: Path) -> None:
    kept = TrainingTemplate.load(run.template_path)
    kept.save(tmp_path / "again.safetensors")
    again = TrainingTemplate.load(tmp_path / "again.safetensors")
    np.testing.assert_array_equal(again.mean, kept.mean)
    assert (again.nod_deg, again.turn_deg, again.size) == (kept.nod_deg, kept.turn_deg, kept.size)
    (tmp_path / "again.safetensors").write_bytes(run.template_path.read_bytes()[:500])
    with pytest.raises(DataError, match="damaged"):
        TrainingTemplate.load(tmp_path / "again.safetensors")
    with pytest.raises(UsageError, match="Train the run again"):
        TrainingTemplate.load(tmp_path / "none.safetensors")


def test_scans_that_lay_as_they_came_give_nothing_to_align_to(run: Run, store: Store, tmp_path: Path) -> None:
    class Loose:
        folder, recipe, template_path = run.folder, run.recipe, tmp_path / "template.safetensors"

    replace(TrainingTemplate.load(run.template_path), nod_deg=8.0).save(Loose.template_path)
    with pytest.raises(RefusedError, match="did not lie alike"):
        preparation_for_raw(Loose(), store)  # type: ignore[arg-type]


def test_a_raw_scan_in_any_pose_is_predicted_as_the_same_scan_in_place(
    run: Run, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pose = nod(35, 1.1)

    def register_to_template(volume: Volume, template: object = None, *, kind: str = "affine") -> Registration:
        is_mean = volume.shape == RECIPE.prepare.size
        return Registration(np.eye(4) if is_mean else pose)

    monkeypatch.setattr("neuroage.imaging.registration.register.register_to_template", register_to_template)
    steps = preparation_for_raw(run, store)
    assert steps.registration.kind == "affine" and steps.brain.mask == "auto" and steps.bias_field is not None
    moved = Cohort(pd.DataFrame([write(tmp_path, "moved", 60.0, pose)]))
    still = Cohort(pd.DataFrame([write(tmp_path, "still", 60.0, np.eye(4))]))
    scan, other = moved.scans()[0], still.scans()[0]
    raw = prepare_image(scan.path, steps, companions_of(scan, steps)).data
    as_it_is, wanted = prepare_image(scan.path, run.recipe.prepare).data, prepare_image(other.path, RECIPE.prepare).data
    assert np.corrcoef(raw.ravel(), wanted.ravel())[0, 1] > 0.97
    assert np.corrcoef(as_it_is.ravel(), wanted.ravel())[0, 1] < 0.93
    answers = [predict(run, moved, store=store, prepare="auto", force=True), predict(run, still, store=store)]
    ages = [float(answer.table["predicted_age"].iloc[0]) for answer in answers]
    assert abs(ages[0] - ages[1]) < 1.0


def test_a_recipe_that_registers_takes_raw_scans_as_it_is(run: Run, store: Store) -> None:
    class Registering:
        recipe = run.recipe.updated("prepare.registration={}")

    assert preparation_for_raw(Registering(), store) == Registering.recipe.prepare  # type: ignore[arg-type]
