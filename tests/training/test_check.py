"""Phantom brains, a network that was hardly trained on them, and the mistakes that people make with scans."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

import neuroage as na
from neuroage.cohort import Cohort, uniform_age_split
from neuroage.errors import RefusedError
from neuroage.files import write_json
from neuroage.imaging.phantom_mistakes import MISTAKES, phantom_scan, phantom_tof
from neuroage.imaging.store import Store
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run
from neuroage.training.check import Reference, check, nearest_distance
from neuroage.training.inputs import gather_scans
from neuroage.training.observer import Observer
from neuroage.training.predict import evaluate_on, predict
from neuroage.training.train import train

N_SUBJECTS, N_HELD_OUT = 32, 10


def save(path: Path, data: np.ndarray, affine: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(np.ascontiguousarray(data), affine), path)
    return path


@pytest.fixture(scope="module")
def brains(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("brains")
    rows = []
    for index in range(N_SUBJECTS):
        data, affine, age = phantom_scan(index)
        path = save(folder / f"sub-{index:02d}.nii", data, affine)
        rows.append({"scan_id": path.stem, "subject_id": path.stem, "path": str(path), "age": age})
    return Cohort(pd.DataFrame(rows).assign(session="", modality="t1", sex="", site="phantom"))


@pytest.fixture(scope="module")
def run(brains: Cohort, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Run:
    recipe = Recipe.from_dict(
        {
            "modality": "t1",
            "prepare": {"spacing_mm": 6.0, "size": [30, 36, 30]},
            "backbone": {"name": "cnn", "n_blocks": 2, "features": 4},
            "training": {"epochs": 2, "batch_size": 8, "precision": "fp32"},
        }
    )
    split = uniform_age_split(brains, n_validation=N_HELD_OUT, seed=0)
    return train(recipe, brains, split, tmp_path_factory.mktemp("runs") / "t1", store=store)


@pytest.fixture(scope="module")
def held_out(run: Run, brains: Cohort) -> list[Path]:
    subjects = run.split.subjects("validation")
    return [Path(path) for path in brains.table.loc[brains.table["subject_id"].isin(subjects), "path"]]


def checked(run: Run, files: list[Path], store: Store) -> pd.DataFrame:
    return check(run, gather_scans(files, "t1"), store=store)[0]


def test_clean_held_out_scans_are_ok(run: Run, held_out: list[Path], store: Store) -> None:
    table = checked(run, held_out, store)
    assert len(table) == N_HELD_OUT
    assert (table["verdict"] != "ok").sum() <= 1, table["concerns"].tolist()


WORDS = {
    "flipped front–back": ("refuse", "flipped front–back"),
    "flipped up–down": ("refuse", "flipped up–down"),
    "axes exchanged": ("refuse", "axes exchanged"),
    "centimetres as millimetres": ("refuse", "centimetres taken for millimetres"),
    "voxels doubled": ("refuse", "wrong voxel size"),
    "intensities × 1000": ("warn", "other units"),
    "intensities inverted": ("refuse", "inverted"),
    "half the field of view": (None, "bottom to top"),
    "blurred by 4 mm": ("warn", "smoothed"),
    "label map": ("refuse", "distinct values"),
}


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_each_mistake_is_flagged_in_its_own_words(
    mistake: str, run: Run, held_out: list[Path], store: Store, tmp_path: Path
) -> None:
    verdict, words = WORDS[mistake]
    files = []
    for path in held_out[:2]:
        image = nib.load(path)
        data, affine = MISTAKES[mistake](np.asarray(image.dataobj), image.affine)
        files.append(save(tmp_path / path.name, data, affine))
    table = checked(run, files, store)
    assert (table["verdict"] != "ok").all()
    assert verdict is None or (table["verdict"] == verdict).all(), table["concerns"].tolist()
    assert table["concerns"].str.contains(words).all(), table["concerns"].tolist()


def test_another_modality_and_a_skull_left_on_are_refused(run: Run, store: Store, tmp_path: Path) -> None:
    tof = save(tmp_path / "tof.nii", *phantom_tof(0))
    head = save(tmp_path / "head.nii", *phantom_scan(0, stripped=False)[:2])
    table = checked(run, [tof, head], store).set_index("scan_id")
    assert table["verdict"].tolist() == ["refuse", "refuse"]
    assert "skull is still on" in table.loc["head", "concerns"]


def test_a_file_that_cannot_be_prepared_is_refused_with_its_reason(run: Run, store: Store, tmp_path: Path) -> None:
    empty = save(tmp_path / "empty.nii", np.zeros((8, 8, 8), dtype=np.int16), np.eye(4))
    row = checked(run, [empty], store).iloc[0]
    assert row["verdict"] == "refuse" and "every voxel is zero" in row["concerns"]


@pytest.fixture
def mixed(held_out: list[Path], tmp_path: Path) -> list[Path]:
    """A clean scan, and one upside down."""
    image = nib.load(held_out[1])
    return [held_out[0], save(tmp_path / "wrong.nii", np.asarray(image.dataobj)[:, :, ::-1], image.affine)]


def test_a_refused_scan_stays_in_the_table_without_an_age_unless_forced(
    run: Run, mixed: list[Path], store: Store
) -> None:
    scans = gather_scans(mixed, "t1")
    table = predict(run, scans, store=store).table.set_index("scan_id")
    assert table["predicted_age"].isna().tolist() == [False, True]
    assert table.loc["wrong", "verdict"] == "refuse"
    assert table.loc["wrong", "n_training_near"] == 0
    forced = predict(run, scans, store=store, force=True).table.set_index("scan_id")
    assert forced["predicted_age"].notna().all()
    assert forced.loc["wrong", "verdict"] == "refuse"
    assert forced["predicted_age"].iloc[0] == pytest.approx(table["predicted_age"].iloc[0], abs=1e-4)


def test_when_every_scan_is_refused_there_is_no_prediction(run: Run, mixed: list[Path], store: Store) -> None:
    with pytest.raises(RefusedError, match="flipped up–down"):
        predict(run, gather_scans(mixed[1:], "t1"), store=store)
    model = na.load(run.folder)
    model._store = store.folder
    assert model.check(mixed)["verdict"].tolist()[1] == "refuse"
    assert model.predict(mixed[1:], force=True)["predicted_age"].notna().all()


def test_the_table_says_how_much_training_there_was_near_a_prediction(
    run: Run, held_out: list[Path], store: Store
) -> None:
    table = predict(run, gather_scans(held_out, "t1"), store=store).table
    ages = run.cohort.table.set_index("subject_id")["age"].drop(list(run.split.subjects("validation")))
    for row in table.to_dict("records"):
        assert row["n_training_near"] == (abs(ages - row["predicted_age"]) <= 5).sum()
        assert row["outside_ages"] == (not ages.min() <= row["predicted_age"] <= ages.max())
    assert table["far_from_training"].between(0.3, 3).all()


def test_refused_scans_are_left_out_of_an_evaluation(
    run: Run, brains: Cohort, held_out: list[Path], mixed: list[Path], store: Store
) -> None:
    table = brains.table[brains.table["path"].isin(map(str, held_out[:3]))].copy()
    table.loc[table["path"] == str(held_out[1]), "path"] = str(mixed[1])
    evaluation, answer = evaluate_on(run, Cohort(table), store=store)
    assert evaluation.n_subjects == 2
    assert len(answer.table) == 3


def test_an_older_run_has_only_the_smaller_contract_and_says_so(
    run: Run, held_out: list[Path], mixed: list[Path], store: Store, tmp_path: Path
) -> None:
    old = Run(run.copy_to(tmp_path / "old"))
    old.reference_path.unlink()
    content = {
        key: value
        for key, value in run.contract.to_dict().items()
        if key not in ("ranges", "margin", "native_size", "native_orientations")
    }
    write_json(old.folder / "contract.json", content)
    told: list[str] = []

    class Listener(Observer):
        def note(self, text: str) -> None:
            told.append(text)

    table, _ = check(old, gather_scans(mixed, "t1"), store=store, observer=Listener())
    assert "before the full contract" in told[0]
    assert table["verdict"].tolist() == ["ok", "ok"]


def test_a_run_whose_scans_were_prepared_otherwise_says_so(
    run: Run, held_out: list[Path], store: Store, tmp_path: Path
) -> None:
    told: list[str] = []

    class Listener(Observer):
        def note(self, text: str) -> None:
            told.append(text)

    cohort = gather_scans(held_out[:1], "t1")
    same = predict(run, cohort, store=store, observer=Listener())
    assert not any("have changed" in text for text in told)
    old = Run(run.copy_to(tmp_path / "old"))
    old.update(steps_version=1)
    table = predict(old, cohort, store=store, observer=Listener()).table
    assert "have changed since" in " ".join(told) and "version 1, now" in " ".join(told)
    assert table["predicted_age"].tolist() == same.table["predicted_age"].tolist()


def test_the_nearest_distance_leaves_the_scan_itself_out() -> None:
    points = np.array([[0.0, 0.0], [3.0, 4.0]])
    assert nearest_distance(points, points, skip=1) == pytest.approx([5 / np.sqrt(2)] * 2)
    assert nearest_distance(points[:1], points, skip=0) == pytest.approx([2.5 / np.sqrt(2)])


def test_the_reference_survives_its_file(run: Run, tmp_path: Path) -> None:
    reference = Reference.load(run.reference_path)
    assert reference is not None
    reference.save(tmp_path / "again.safetensors")
    again = Reference.load(tmp_path / "again.safetensors")
    assert all(np.array_equal(a, b) for a, b in zip(vars(reference).values(), vars(again).values(), strict=True))
    assert Reference.load(tmp_path / "missing.safetensors") is None
