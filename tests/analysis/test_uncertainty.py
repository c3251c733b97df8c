"""An evaluation with a calibration, and with a model's own spread: what the figures and the page say."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_analysis_report import Page, assert_page_shows

from neuroage.analysis import evaluate, fit_calibration, write_evaluation
from neuroage.analysis.conformal import Population
from neuroage.analysis.subjects import average_per_subject


@pytest.fixture(scope="module")
def calibration(predictions):
    others = predictions(5, seed=40, slope=-0.3, n_subjects=150)
    return fit_calibration(average_per_subject(others), population=Population("uniform", 18, 92))


@pytest.fixture(scope="module")
def calibrated(predictions, baselines, calibration):
    table = predictions(5, seed=41, slope=-0.3, n_members=3).assign(predicted_age_std=2.0)
    table.loc[table["member"] == 1, "predicted_age_std"] = 5.0
    return evaluate(table, baselines, name="t1", calibration=calibration)


def test_raw_and_corrected_stand_side_by_side(calibrated):
    raw, corrected = calibrated.models["t1"], calibrated.calibration["corrected"]
    assert raw["gap_slope_high"] < -0.2 and corrected["gap_slope_low"] < 0 < corrected["gap_slope_high"]
    assert corrected["mae"] < raw["mae"]
    assert f"{raw['mae']:.1f} years off" in calibrated.verdict
    subjects = calibrated.subjects
    np.testing.assert_allclose(
        subjects["gap_corrected"],
        subjects["gap_t1"] - (subjects["predicted_age_t1"] - subjects["predicted_age_corrected"]),
    )


def test_coverage_is_counted_per_subject_in_all_and_by_decade(calibrated):
    found, subjects = calibrated.calibration, calibrated.subjects
    inside = subjects["age"].between(subjects["interval_low"], subjects["interval_high"])
    assert found["intervals"]["n_inside"] == inside.sum() and found["intervals"]["n"] == 50
    assert sum(row["n_inside"] for row in found["decades"]) == inside.sum()
    assert found["intervals"]["coverage_low"] < 0.9 < found["intervals"]["coverage_high"]


def test_a_models_own_spread_is_averaged_over_members_and_judged(calibrated):
    assert calibrated.subjects["predicted_age_std"].unique() == pytest.approx([3.0])
    assert calibrated.own_spread["mean_width"] == pytest.approx(2 * 1.6449 * 3.0)
    near = np.abs(calibrated.subjects["gap_t1"]) <= 1.6449 * 3
    assert calibrated.own_spread["n_inside"] == near.sum()


def test_the_page_shows_every_figure_of_the_json_and_no_other(calibrated, tmp_path):
    written = write_evaluation(calibrated, tmp_path)
    page = Page(written["html"].read_text(encoding="utf-8"))
    assert_page_shows(page, json.loads(written["json"].read_text(encoding="utf-8")))
    assert page.loose == []
    assert page.headings[4:6] == ["Raw and corrected for age", "Intervals"]


def test_a_spread_without_calibration_is_shown_alone(predictions, tmp_path):
    found = evaluate(predictions(4, seed=1).assign(predicted_age_std=4.0), name="t1")
    page = Page(write_evaluation(found, tmp_path)["html"].read_text(encoding="utf-8"))
    assert "Intervals" in page.headings and "Raw and corrected for age" not in page.headings
    assert found.calibration == {} and 0.8 < found.own_spread["coverage"] <= 1


def test_infinite_intervals_are_said_on_the_page(predictions, baselines, tmp_path):
    few = average_per_subject(predictions(5, seed=40, n_subjects=30))
    calibration = fit_calibration(few, population=Population("training", 18, 92), level=0.99)
    found = evaluate(predictions(5, seed=41), name="t1", calibration=calibration)
    assert found.calibration["intervals"]["coverage"] == 1.0
    text = write_evaluation(found, tmp_path)["html"].read_text(encoding="utf-8")
    assert "30 subjects are too few for this level (at least 199)" in text
