"""Cross-fitting: every training subject is predicted by members that never saw them; the run is calibrated on that."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from neuroage.cohort import Cohort, Split, stratified_age_split
from neuroage.cohort.parts import Part, all_parts, deal_parts
from neuroage.errors import DataError, RefusedError, UsageError
from neuroage.imaging.store import Store
from neuroage.runs.calibration import calibrate, out_of_fold_subjects, read_calibration, read_population
from neuroage.runs.evaluation import evaluate_held_out
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run
from neuroage.training.checkpoint import load_checkpoint
from neuroage.training.experiment import compare_runs, train_members
from neuroage.training.loop import Interrupted
from neuroage.training.observer import Observer
from neuroage.training.predict import predict
from neuroage.training.train import train


@pytest.fixture(scope="module", autouse=True)
def quick_pages() -> Iterator[None]:
    """Spare the members' own pages, and most resamples of the parents'; both are tested on their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("neuroage.analysis.scores.N_METRIC_RESAMPLES", 100)
        patch.setattr("neuroage.training.scoring.write_run_pages", lambda run: None)
        yield


@pytest.fixture(scope="module")
def quick() -> Recipe:
    return Recipe.from_dict(
        {
            "prepare": {"spacing_mm": 8.0, "size": [12, 12, 12], "centre": "image"},
            "augment": [{"step": "flip", "p": 0.5}],
            "backbone": {"name": "cnn", "n_blocks": 2, "features": 4},
            "task": {"name": "soft_label_age"},
            "optim": {"lr": 0.01, "ema": None},
            "training": {"epochs": 2, "batch_size": 6, "precision": "fp32"},
        }
    )


class StopAfterStages(Observer):
    """Sends this process a signal when a member begins, as a scheduler would in the middle of a run."""

    def __init__(self, word: str) -> None:
        self.word, self.armed = word, False

    def stage(self, text: str) -> None:
        self.armed = self.armed or self.word in text

    def step(self, epoch: int, step: int, n_steps: int) -> None:
        if self.armed:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def crossed(cohort: Cohort, split: Split, store: Store, quick: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three members, interrupted in the second, and resumed."""
    folder = tmp_path_factory.mktemp("runs") / "t1"
    with pytest.raises(Interrupted):
        train_members(
            quick, cohort, split, folder, parts=all_parts(3), store=store, observer=StopAfterStages("Member 2")
        )
    assert not Run(folder).complete and Run(folder).members[0].complete
    return train_members(quick, cohort, split, folder, parts=all_parts(3), store=store)


def test_every_training_subject_is_predicted_once_by_a_member_that_did_not_train_on_it(crossed: Run) -> None:
    table = crossed.predictions
    out_of_fold = table[table["set"] == "out_of_fold"]
    assert sorted(out_of_fold["subject_id"]) == crossed.split.subjects("train")
    for leaf in crossed.leaves:
        mine = set(leaf.predictions.query("set == 'out_of_fold'")["subject_id"])
        assert leaf.about["counts"]["train"] == len(crossed.split.subjects("train")) - len(mine)
        assert leaf.part is not None and leaf.name == f"part{leaf.part.index}-seed0"
        parts = deal_parts(crossed.split, crossed.cohort, 3)
        assert mine == {subject for subject, part in parts.items() if part == leaf.part.index}


def test_the_locked_subjects_are_predicted_by_every_member_and_averaged(crossed: Run) -> None:
    rows = crossed.predictions.query("set == 'validation'")
    assert rows.groupby("scan_id").size().tolist() == [3] * 12
    found = evaluate_held_out(crossed)
    mean = rows.groupby("subject_id")["predicted_age"].mean()
    np.testing.assert_allclose(
        found.subjects.set_index("subject_id")["predicted_age_t1"].sort_index(), mean.sort_index(), rtol=1e-12
    )
    for baseline in crossed.baselines.values():
        assert set(baseline["set"]) == {"out_of_fold", "validation"}


def test_an_interrupted_run_resumes_to_the_same_numbers(
    crossed: Run, cohort: Cohort, split: Split, store: Store, quick: Recipe, tmp_path: Path
) -> None:
    alone = train(quick, cohort, split, tmp_path / "alone", part=Part(1, 3), member="part1-seed0", store=store)
    pd.testing.assert_frame_equal(alone.predictions, crossed.members[1].predictions, check_exact=True)


def test_the_run_is_calibrated_by_itself_and_its_page_shows_raw_and_corrected(crossed: Run) -> None:
    found = read_calibration(crossed)
    assert found is not None and found.n_subjects == len(crossed.split.subjects("train"))
    figures = crossed.evaluation
    assert figures["calibration"]["intervals"]["n"] == 12
    assert figures["models"]["t1"]["mae"] != figures["calibration"]["corrected"]["mae"]
    assert figures["own_spread"]["n"] == 12
    text = (crossed.folder / "evaluation.html").read_text(encoding="utf-8")
    for said in ("T1, raw", "corrected for age", "Butler 2021", "every age from", "on whom nothing was fitted"):
        assert said in text
    table = pd.read_csv(crossed.folder / "evaluation.csv")
    np.testing.assert_allclose(table["gap_corrected"], table["predicted_age_corrected"] - table["age"])
    assert (table["interval_low"] <= table["predicted_age_t1"]).all()


def test_nothing_is_fitted_on_the_locked_subjects(crossed: Run, tmp_path: Path) -> None:
    copy = Run(crossed.copy_to(tmp_path / "copy"))
    table = copy.predictions
    locked = table["set"] == "validation"
    table.loc[locked, "predicted_age"] += 30
    copy.save_predictions(table)
    before = read_calibration(crossed)
    assert calibrate(copy) == before
    table.loc[~locked, "predicted_age"] += 30
    copy.save_predictions(table)
    assert calibrate(copy) != before


def test_out_of_fold_subjects_are_scored_by_a_calibration_of_others(crossed: Run) -> None:
    found = evaluate_held_out(crossed, "out_of_fold")
    assert found.n_subjects == len(crossed.split.subjects("train"))
    assert "cross-validation" in found.calibration["checked"]
    calibration = read_calibration(crossed)
    assert calibration is not None
    fitted_on_them = calibration.apply(found.subjects[["age"]].assign(predicted_age=found.subjects["predicted_age_t1"]))
    assert not np.allclose(fitted_on_them["predicted_age_corrected"], found.subjects["predicted_age_corrected"])


def test_predictions_of_new_scans_carry_intervals_and_the_spread_of_the_members(
    crossed: Run, cohort: Cohort, store: Store
) -> None:
    scans = cohort.select("t1", subject_ids=crossed.split.subjects("validation"))
    unknown = Cohort(scans.table.assign(age=[np.nan, *scans.table["age"][1:]]))
    table = predict(crossed, unknown, store=store, force=True).table
    assert (table["members_std"] > 0).all()
    assert (table["interval_low"] < table["interval_high"]).all()
    assert table["gap_corrected"].isna().tolist() == [True] + [False] * 11
    own = crossed.predictions.query("set == 'validation'").groupby("scan_id")["predicted_age"].mean()
    np.testing.assert_allclose(table["predicted_age"], own.loc[table["scan_id"]], atol=1e-4)


def test_a_members_weights_know_nothing_of_the_part_that_it_leaves_out(
    crossed: Run, cohort: Cohort, split: Split, quick: Recipe, tmp_path: Path
) -> None:
    """Other ages and other pixels for the part that is left out: weights, ridge and task stay to the last bit."""
    left_out = [subject for subject, part in deal_parts(split, cohort, 3).items() if part == 0]
    table = cohort.select("t1").table.copy()
    rng = np.random.default_rng(5)
    for row in table.index[table["subject_id"].isin(left_out)]:
        path = tmp_path / f"{table.loc[row, 'scan_id']}.nii.gz"
        image = nib.load(table.loc[row, "path"])
        nib.save(nib.Nifti1Image(rng.normal(500, 90, image.shape).astype(np.float32), image.affine), path)
        table.loc[row, ["path", "age"]] = str(path), 99.0 - table.loc[row, "age"]
    recipe = quick.updated("standardise=voxelwise", "training.inner_fraction=0.2", "training.select=inner")
    store = Store(tmp_path / "store")
    runs = [
        train(recipe, scans, split, tmp_path / name, part=Part(0, 3), member="part0-seed0", store=store)
        for name, scans in (("true", cohort.select("t1")), ("other", Cohort(table)))
    ]
    true, other = (load_checkpoint(run.weights_path)[0]["network"] for run in runs)
    assert all(torch.equal(true[name], other[name]) for name in true)
    assert runs[0].about["task"] == runs[1].about["task"]
    assert runs[0].linear_path.read_bytes() == runs[1].linear_path.read_bytes()
    first, second = (run.predictions.set_index("scan_id") for run in runs)
    same = first["set"] == "validation"
    assert first.loc[same, "predicted_age"].equals(second.loc[same, "predicted_age"])
    assert not np.allclose(first.loc[~same, "predicted_age"], second.loc[~same, "predicted_age"])


def test_another_number_of_parts_or_another_part_is_not_continued(
    crossed: Run, cohort: Cohort, split: Split, store: Store, quick: Recipe
) -> None:
    with pytest.raises(RefusedError, match="3 parts, not 4"):
        train_members(quick, cohort, split, crossed.folder, parts=all_parts(4), store=store)
    with pytest.raises(RefusedError, match="part of the training subjects"):
        train(quick, cohort, split, crossed.members[0].folder, part=Part(1, 3), resume="auto", store=store)
    with pytest.raises(UsageError, match="folds and"):
        train_members(quick, cohort, split, crossed.folder, folds=(0, 1), parts=all_parts(3), store=store)


def test_runs_of_parts_and_seeds_are_compared_on_the_same_subjects(
    crossed: Run, cohort: Cohort, split: Split, store: Store, quick: Recipe, tmp_path: Path
) -> None:
    """K × R members against K members and against one: everybody is averaged per scan, nobody counts twice."""
    recipe = quick.updated("training.epochs=1")
    other = train_members(recipe, cohort, split, tmp_path / "b", parts=all_parts(2), repeats=2, store=store)
    single = crossed.members[0]
    assert len(other.members) == 4
    comparison = compare_runs({"three": crossed, "four": other, "one": single})
    assert comparison.n_subjects == 12
    assert [comparison.spread[name]["n_members"] for name in ("three", "four", "one")] == [3, 4, 1]
    mean = other.predictions.query("set == 'validation'").groupby("subject_id")["predicted_age"].mean()
    found = comparison.subjects.set_index("subject_id")["predicted_age_four"]
    np.testing.assert_allclose(found.sort_index(), mean.sort_index())
    seeds = out_of_fold_subjects(other)
    rows = other.predictions.query("set == 'out_of_fold'")
    assert len(seeds) == len(split.subjects("train")) and len(rows) == 2 * len(seeds)
    bare = Run(single.copy_to(tmp_path / "bare"))
    bare.save_predictions(bare.predictions.query("set == 'validation'"))
    with pytest.raises(UsageError, match="--folds"):
        calibrate(bare)


def test_a_split_with_folds_is_calibrated_on_its_folds_and_checked_across_them(
    cohort: Cohort, store: Store, quick: Recipe, tmp_path: Path
) -> None:
    made = stratified_age_split(cohort, n_validation=12, n_test=8, folds=2, seed=0)
    run = train_members(quick.updated("training.epochs=1"), cohort, made, tmp_path / "run", folds=(0, 1), store=store)
    assert (run.predictions["set"] != "out_of_fold").all()
    calibration = read_calibration(run)
    assert calibration is not None and calibration.n_subjects == 24
    assert "cross-validation" in run.evaluation["calibration"]["checked"]
    assert "nothing was fitted" in evaluate_held_out(run, "test").calibration["checked"]
    run.update(selected_on="validation")
    with pytest.raises(RefusedError, match="selected"):
        calibrate(run)


def test_too_few_out_of_fold_subjects_leave_a_run_without_calibration(
    crossed: Run, cohort: Cohort, split: Split, store: Store, quick: Recipe, tmp_path: Path
) -> None:
    copy = Run(crossed.copy_to(tmp_path / "copy"))
    for member in copy.members:
        table = member.predictions
        kept = table[(table["set"] == "validation") | (table.groupby("set").cumcount() < 6)]
        member.save_predictions(kept)
        member.save_baselines(
            {name: part[part["scan_id"].isin(kept["scan_id"])] for name, part in member.baselines.items()}
        )
    said: list[str] = []

    class Listener(Observer):
        def note(self, text: str) -> None:
            said.append(text)

    run = train_members(quick, cohort, split, copy.folder, parts=all_parts(3), store=store, observer=Listener())
    assert run.complete and read_calibration(run) is None
    assert any("Not calibrated" in text and "18 out-of-fold subjects" in text for text in said)
    assert json.loads((run.folder / "evaluation.json").read_text(encoding="utf-8"))["calibration"] == {}
    with pytest.raises(DataError, match="has no test predictions; expected one of"):
        evaluate_held_out(run, "test")


def test_a_calibration_that_was_asked_for_is_kept_when_members_are_gathered_again(
    crossed: Run, cohort: Cohort, split: Split, store: Store, quick: Recipe, tmp_path: Path
) -> None:
    copy = Run(crossed.copy_to(tmp_path / "copy"))
    ages = out_of_fold_subjects(copy)["age"]
    asked = calibrate(copy, level=0.8, population=read_population("30-70", ages), n_bins=1)
    train_members(quick, cohort, split, copy.folder, parts=all_parts(3), store=store)
    assert read_calibration(copy) == asked
