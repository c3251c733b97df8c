from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from neuroage.cohort import Cohort, Split
from neuroage.errors import UsageError
from neuroage.imaging.preparation import prepare_scans
from neuroage.imaging.store import Store
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run
from neuroage.training.checkpoint import load_checkpoint, save_checkpoint
from neuroage.training.selftest import selftest
from neuroage.training.train import train

RECIPE = {
    "modality": "t1",
    "prepare": {"spacing_mm": 8.0, "size": [12, 12, 12], "centre": "image"},
    "backbone": {"name": "cnn", "n_blocks": 2, "features": 4},
    "training": {"epochs": 1, "batch_size": 6, "precision": "fp32"},
    "predict": {"ridge_share": 0.3},
}


@pytest.fixture(scope="module")
def trained(cohort: Cohort, split: Split, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("runs") / "t1"
    return train(Recipe.from_dict(RECIPE), cohort, split, folder, store=store)


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    return Run(trained.copy_to(tmp_path / "run"))


def test_a_run_passes_where_it_was_trained(run: Run) -> None:
    (result,) = selftest(run)
    assert result.passed
    assert result.differences["prediction"] < 0.001
    assert result.differences["prepared"] == result.differences["weights"] == result.differences["phantom"] == 0
    assert "own numbers" in result.words


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        (lambda kept: kept["phantom"].update(sha256="0", mean=kept["phantom"]["mean"] + 5), "phantom"),
        (lambda kept: kept["prepared"]["samples"].__setitem__(40, 9.0), "prepared"),
        (lambda kept: kept["prediction"].__setitem__(0, kept["prediction"][0] + 1), "prediction"),
    ],
)
def test_a_number_that_differs_is_named_by_its_stage(run: Run, change: object, stage: str) -> None:
    kept = run.selftest
    change(kept)  # type: ignore[operator]
    run.save_selftest(kept)
    (result,) = selftest(run)
    assert result.failed == stage
    assert f"`{stage}`" in result.words and "Versions that changed" in result.words


def test_altered_weights_are_found(run: Run) -> None:
    groups, about = load_checkpoint(run.weights_path)
    name = next(name for name in groups["network"] if name.startswith("head") and name.endswith("weight"))
    groups["network"][name] += 1.0
    save_checkpoint(run.weights_path, groups, about)
    (result,) = selftest(run)
    assert result.failed == "weights"
    assert result.differences["prediction"] > result.tolerances["prediction"]


def test_a_phantom_that_is_rounded_otherwise_does_not_fail_the_test(run: Run) -> None:
    kept = run.selftest
    kept["phantom"]["sha256"] = "another library's exponential"
    run.save_selftest(kept)
    assert selftest(run)[0].passed


def test_every_member_of_a_parent_is_tested(trained: Run, cohort: Cohort, split: Split, tmp_path: Path) -> None:
    parent = Run.create_parent(tmp_path / "parent", trained.recipe, cohort.select(modality="t1"), split)
    for name in ("fold0-seed0", "fold0-seed1"):
        shutil.copytree(trained.folder, parent.member_folder(name))
    results = selftest(parent)
    assert [result.member for result in results] == ["fold0-seed0", "fold0-seed1"]
    assert all(result.passed for result in results)


def test_a_run_without_a_kept_phantom_says_so(run: Run) -> None:
    run.save_selftest({"impossible": "the foreground is empty"})
    with pytest.raises(UsageError, match="cannot take the phantom"):
        selftest(run)
    (run.folder / "selftest.json").unlink()
    with pytest.raises(UsageError, match="has no self-test"):
        selftest(run)


def test_training_on_prepared_scans_needs_nothing_that_prepares(
    cohort: Cohort, split: Split, recipe: Recipe, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_scans(cohort.select(modality="t1").scans(), recipe.prepare, store)
    for package in ("SimpleITK", "torchio", "nibabel"):
        monkeypatch.setitem(sys.modules, package, None)
    run = train(recipe.updated("training.epochs=1"), cohort, split, tmp_path / "run", store=store)
    assert run.complete
    with pytest.raises(UsageError, match="has no self-test: it was trained where nibabel is not installed"):
        selftest(run)
