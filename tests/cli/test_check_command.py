"""`neuroage check`, `selftest` and `predict --force` as users type them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from neuroage.cohort import Cohort, Split
from neuroage.imaging.store import Store
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run
from neuroage.training.train import train

RECIPE = {
    "prepare": {"spacing_mm": 8.0, "size": [12, 12, 12], "centre": "image"},
    "backbone": {"name": "cnn", "n_blocks": 2, "features": 4},
    "training": {"epochs": 1, "batch_size": 6, "precision": "fp32"},
}


@pytest.fixture(scope="module")
def trained(cohort: Cohort, split: Split, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("runs") / "t1"
    return train(Recipe.from_dict(RECIPE), cohort, split, folder, store=store)


@pytest.fixture
def scans(trained: Run, tmp_path: Path) -> list[Path]:
    """A scan of the run's own, and a label map of it."""
    path = Path(trained.cohort.scans()[0].path)
    image = nib.load(path)
    labels = (np.asarray(image.dataobj) > 60).astype(np.int16) + (np.asarray(image.dataobj) > 10)
    nib.save(nib.Nifti1Image(labels.astype(np.int16), image.affine), tmp_path / "labels.nii")
    return [path, tmp_path / "labels.nii"]


def test_check_prints_verdicts_and_reasons_and_writes_a_table(
    type_in: Any, trained: Run, scans: list[Path], tmp_path: Path
) -> None:
    code, out, err = type_in("check", trained.folder, *scans, "--out", "verdicts.csv")
    assert code == 0, err
    assert "distinct values" in out and "refuse" in out
    table = pd.read_csv(tmp_path / "verdicts.csv")
    assert table["verdict"].tolist() == ["ok", "refuse"]
    code, out, _ = type_in("check", trained.folder, *scans, "--json")
    said = json.loads(out)
    assert [scan["verdict"] for scan in said["scans"]] == ["ok", "refuse"]
    assert said["measures"]["labels"]["distinct_values"] <= 3


def test_predict_refuses_and_can_be_forced(type_in: Any, trained: Run, scans: list[Path], tmp_path: Path) -> None:
    code, _, err = type_in("predict", trained.folder, *scans)
    assert code == 0, err
    assert "1 of 2 scans are refused" in err
    assert pd.read_csv(tmp_path / "predictions.csv")["predicted_age"].isna().tolist() == [False, True]
    code, _, err = type_in("predict", trained.folder, scans[1])
    assert code == 5
    assert "--force" in err
    code, _, _ = type_in("predict", trained.folder, scans[1], "--force")
    assert code == 0
    assert pd.read_csv(tmp_path / "predictions.csv")["predicted_age"].notna().all()


def test_selftest_passes_here_and_fails_with_a_code_and_words(type_in: Any, trained: Run, tmp_path: Path) -> None:
    code, out, err = type_in("selftest", trained.folder)
    assert code == 0, err
    assert "own numbers" in out
    altered = Run(trained.copy_to(tmp_path / "altered"))
    altered.save_selftest({**altered.selftest, "prediction": 1000.0})
    code, out, err = type_in("selftest", altered.folder, "--json")
    assert code == 5
    assert "`prediction`" in err
    assert json.loads(out)["passed"] is False


@pytest.mark.parametrize("verb", ["predict", "check"])
def test_a_table_never_takes_the_place_of_an_input(verb: str, trained: Run, scans: list[Path], type_in: Any) -> None:
    before = scans[1].read_bytes()
    code, _, said = type_in(verb, trained.folder, scans[1], "--out", scans[1])
    assert code == 2
    assert ".csv" in said
    assert scans[1].read_bytes() == before
    table = Path("scans.csv")
    trained.cohort.to_csv(table)
    before = table.read_bytes()
    code, _, said = type_in(verb, trained.folder, table, "--out", table.resolve())
    assert code == 2
    assert "would be lost" in said
    assert table.read_bytes() == before


def test_a_path_that_cannot_be_written_is_named(trained: Run, scans: list[Path], type_in: Any) -> None:
    Path("file").write_text("x")
    code, _, said = type_in("check", trained.folder, scans[0], "--out", "file/verdicts.csv")
    assert code == 2
    assert said.count("file") and "Unexpected" not in said


def test_a_run_without_its_training_scans_responses_does_not_call_scans_fine(
    trained: Run, scans: list[Path], type_in: Any, tmp_path: Path
) -> None:
    copy = Run(trained.copy_to(tmp_path / "copy"))
    copy.reference_path.write_bytes(b"x")
    code, _, said = type_in("check", copy.folder, scans[0])
    assert (code, "contract.safetensors is damaged" in said) == (3, True)
    copy.reference_path.unlink()
    code, _, said = type_in("check", copy.folder, scans[0])
    assert (code, "has no contract.safetensors" in said) == (3, True)


def test_own_subjects_and_another_cohort_exclude_each_other(trained: Run, type_in: Any) -> None:
    code, _, said = type_in("evaluate", trained.folder, "--data", "other.csv", "--subjects", "validation")
    assert code == 2
    assert "--subjects" in said
