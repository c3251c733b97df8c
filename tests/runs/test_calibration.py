"""The calibration of a run, from the tables that its members left; no network is trained here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neuroage.analysis.report import write_evaluation
from neuroage.cohort import Cohort, Split, uniform_age_split
from neuroage.errors import InfeasibleError, RefusedError, UsageError
from neuroage.runs.calibration import (
    apply_calibration,
    calibrate,
    calibrate_again,
    intervals_in_words,
    out_of_fold_set,
    out_of_fold_subjects,
    read_calibration,
    read_population,
)
from neuroage.runs.evaluation import evaluate_held_out
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("neuroage.analysis.scores.N_METRIC_RESAMPLES", 100)
        yield


@pytest.fixture(scope="module")
def people() -> Cohort:
    """260 subjects, most of them young, as training cohorts are."""
    rng = np.random.default_rng(0)
    age = np.r_[rng.uniform(18, 30, 110), rng.uniform(18, 92, 150)]
    names = [f"s{index:03d}" for index in range(len(age))]
    return Cohort(
        pd.DataFrame(
            {"scan_id": names, "subject_id": names, "session": "", "modality": "t1", "path": "", "age": age.round(2)}
        ).assign(sex="", site="")
    )


@pytest.fixture(scope="module")
def locked(people: Cohort) -> Split:
    return uniform_age_split(people, n_validation=50, seed=0)


def predicted(people: Cohort, sets: pd.Series, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    table = people.table[["scan_id", "subject_id", "age"]].assign(set=people.table["subject_id"].map(sets), fold=0)
    error = rng.normal(0, 2 + 0.06 * (table["age"] - 18))
    return table.assign(
        member=f"part{seed}-seed0",
        predicted_age=table["age"] - 0.25 * (table["age"] - 45) + error,
        predicted_age_std=4.0,
    )


def make_run(folder: Path, people: Cohort, split: Split, *, parts: int = 2, rows: pd.DataFrame | None = None) -> Run:
    run = Run.create_parent(folder, Recipe(), people, split, n_parts=parts)
    if rows is None:
        sets = split.sets(0).replace("train", "out_of_fold")
        pieces = [predicted(people, sets, seed) for seed in range(parts)]
        turns = np.arange(len(people)) % parts
        rows = pd.concat([part[(part["set"] != "out_of_fold") | (turns == index)] for index, part in enumerate(pieces)])
    run.save_predictions(rows)
    run.save_baselines({"mean": rows.assign(predicted_age=40.0)})
    run.update(status="complete", selected_on="nothing (fixed length)")
    return run


@pytest.fixture
def run(tmp_path: Path, people: Cohort, locked: Split) -> Run:
    return make_run(tmp_path / "run", people, locked)


def test_it_is_fitted_on_out_of_fold_subjects_and_scored_on_the_locked_ones(run: Run) -> None:
    assert out_of_fold_set(run) == "out_of_fold"
    found = calibrate(run)
    assert found == read_calibration(run)
    assert found.n_subjects == len(out_of_fold_subjects(run)) == 210
    assert found.age_bias.slope_low < -0.25 < found.age_bias.slope_high
    assert found.intervals.population.kind == "uniform"
    evaluation = evaluate_held_out(run)
    inside = evaluation.calibration["intervals"]
    assert inside["n"] == 50 and inside["coverage_low"] < 0.9 <= inside["coverage_high"]
    raw, corrected = evaluation.models["t1"], evaluation.calibration["corrected"]
    assert raw["gap_slope_high"] < -0.1
    assert corrected["gap_slope_low"] < 0 < corrected["gap_slope_high"]
    assert sum(row["n"] for row in evaluation.calibration["decades"]) == 50
    assert evaluation.own_spread["mean_width"] == pytest.approx(2 * 1.6449 * 4.0)


def test_the_headline_stays_raw(run: Run) -> None:
    before = evaluate_held_out(run)
    calibrate(run)
    after = evaluate_held_out(run)
    assert after.verdict == before.verdict and json.dumps(after.models) == json.dumps(before.models)
    assert before.calibration == {} and "gap_corrected" not in before.subjects


def test_the_page_shows_raw_and_corrected_coverage_and_for_whom(run: Run, tmp_path: Path) -> None:
    calibrate(run)
    text = write_evaluation(evaluate_held_out(run), tmp_path / "page")["html"].read_text(encoding="utf-8")
    for heading in ("Raw and corrected for age", "Intervals"):
        assert f"<h2>{heading}</h2>" in text
    for key in ("calibration.corrected.mae", "calibration.intervals.coverage", "calibration.age_bias.slope_low"):
        assert f'data-key="{key}"' in text
    assert "people of whom every age from 18 to 92 years is equally frequent" in text
    assert "The figure to report is the raw one" in text
    assert "but for the row that says corrected" in text


def test_the_population_decides_the_width(run: Run) -> None:
    ages = out_of_fold_subjects(run)["age"]
    young = calibrate(run, population=read_population("18-30", ages), n_bins=1)
    old = calibrate(run, population=read_population("60-90", ages), n_bins=1)
    assert young.intervals.bins[0].years_below < old.intervals.bins[0].years_above
    assert "every age from 60 to 90 years" in intervals_in_words(run)
    assert calibrate_again(run) == old
    assert "ages of the training subjects" in calibrate(run, population=read_population("training", ages)).words


def test_ages_of_a_table_are_read_and_nonsense_is_refused(run: Run, tmp_path: Path) -> None:
    ages = out_of_fold_subjects(run)["age"]
    (tmp_path / "clinic.csv").write_text("id,Age\na,60\nb,71.5\nc,\nd,80\n")
    found = read_population(str(tmp_path / "clinic.csv"), ages)
    assert (found.kind, found.low, found.high, len(found.ages)) == ("table", 60.0, 80.0, 3)
    assert "3 who were given" in calibrate(run, population=found, n_bins=1).words
    (tmp_path / "none.csv").write_text("id\na\n")
    for wrong in ("old", "90-20", "-5", str(tmp_path / "none.csv"), str(tmp_path / "absent.csv")):
        with pytest.raises(UsageError):
            read_population(wrong, ages)


def test_new_predictions_get_its_columns_and_those_of_an_uncalibrated_run_none(run: Run) -> None:
    table = pd.DataFrame({"scan_id": ["a", "b"], "age": [40.0, np.nan], "predicted_age": [45.0, 30.0]})
    assert list(apply_calibration(table, run)) == list(table)
    assert intervals_in_words(run) == ""
    calibrate(run)
    treated = apply_calibration(table, run)
    assert treated["gap_corrected"].isna().tolist() == [False, True]
    assert (treated["interval_low"] < table["predicted_age"]).all()


def test_a_run_without_out_of_fold_predictions_is_told_how_to_get_them(
    tmp_path: Path, people: Cohort, locked: Split
) -> None:
    rows = predicted(people, locked.sets(0), 0).query("set == 'validation'")
    single = make_run(tmp_path / "single", people, locked, rows=rows)
    with pytest.raises(UsageError, match=r"--folds 5.*nothing is fitted on them"):
        calibrate(single)
    assert not single.calibration_path.exists()
    single.update(status="training")
    with pytest.raises(UsageError, match="not complete"):
        calibrate(single)


def test_subjects_that_chose_the_weights_and_too_few_are_refused(tmp_path: Path, people: Cohort, locked: Split) -> None:
    rows = pd.concat(
        [predicted(people, locked.sets(0), 0).query("set == 'validation'").assign(fold=fold) for fold in (0, 1)]
    )
    run = make_run(tmp_path / "folds", people, locked, rows=rows)
    for fold in (0, 1):
        Run.create(run.member_folder(f"fold{fold}-seed0"), Recipe(), people, locked, fold=fold)
    assert out_of_fold_set(run) == "validation"
    run.update(selected_on="validation")
    with pytest.raises(RefusedError, match="selected"):
        calibrate(run)
    few = rows[rows["subject_id"].isin(rows["subject_id"].unique()[:19])]
    run.update(selected_on="an inner part of training")
    run.save_predictions(few)
    with pytest.raises(InfeasibleError, match="19"):
        calibrate(run)
