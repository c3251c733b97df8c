from __future__ import annotations

import json

import pandas as pd
import pytest

from neuroage.analysis import age_metrics, evaluate
from neuroage.errors import DataError, RefusedError, UsageError


def test_members_are_averaged_per_scan_then_scans_per_subject():
    rows = [("a1", "a", 0, 50.0), ("a1", "a", 1, 60.0), ("a2", "a", 0, 70.0), ("b1", "b", 0, 20.0)]
    table = pd.DataFrame(rows, columns=["scan_id", "subject_id", "member", "predicted_age"])
    table["age"] = table["subject_id"].map({"a": 60.0, "b": 30.0})
    found = evaluate(table)
    assert found.n_subjects == 2 and found.n_scans == 3
    assert found.subjects.set_index("subject_id").loc["a", "predicted_age_model"] == pytest.approx(62.5)
    assert found.models["model"]["mae"] == pytest.approx((2.5 + 10) / 2)


def test_the_baselines_stand_beside_the_model(evaluation):
    assert list(evaluation.table["model"]) == ["t1", "mean", "ridge"]
    assert list(evaluation.table["kind"]) == ["model", "baseline", "baseline"]
    assert [(pair["a"], pair["b"]) for pair in evaluation.pairs] == [("t1", "mean"), ("t1", "ridge")]
    assert all(pair["difference_high"] < 0 for pair in evaluation.pairs)
    assert "T1 beats predicting the mean age (18.5 years) and ridge regression" in evaluation.verdict


def test_every_metric_lies_inside_its_interval(evaluation):
    for figures in evaluation.models.values():
        for name in age_metrics():
            if figures[name] == figures[name]:
                assert figures[f"{name}_low"] - 1e-9 <= figures[name] <= figures[f"{name}_high"] + 1e-9, name


def test_a_model_no_better_than_ridge_is_not_said_to_beat_it(predictions, baselines):
    found = evaluate(predictions(9.5, seed=13), baselines, name="cnn")
    assert "cnn beats predicting the mean age (18.5 years), but is not shown to beat ridge" in found.verdict


def test_decades_add_up_to_the_whole(evaluation):
    assert sum(row["n"] for row in evaluation.decades) == evaluation.n_subjects
    whole = sum(row["n"] * row["mae"]["t1"] for row in evaluation.decades) / evaluation.n_subjects
    assert whole == pytest.approx(evaluation.models["t1"]["mae"])


def test_only_the_asked_set_is_scored(predictions):
    table = predictions(4, seed=1)
    table.loc[:19, "set"] = "test"
    assert evaluate(table, sets=("test",)).n_subjects == 20
    assert evaluate(table, sets=("test", "validation")).n_subjects == 50
    with pytest.raises(DataError, match="did you mean 'validation'"):
        evaluate(table, sets=("validaton",))


def test_the_same_seed_gives_the_same_figures(models, baselines, evaluation):
    again = evaluate(models["t1"], baselines, name="t1")
    assert json.dumps(again.to_dict()) == json.dumps(evaluation.to_dict())
    other = evaluate(models["t1"], baselines, name="t1", seed=1)
    assert other.models["t1"]["mae_low"] != evaluation.models["t1"]["mae_low"]


def test_a_figure_selected_on_the_scored_set_says_so(models):
    assert evaluate(models["t1"], meta={"selected_on": "validation"}).to_dict()["selected_on"] == "validation"
    assert evaluate(models["t1"], meta={"selected_on": "inner"}).to_dict()["selected_on"] == ""


def test_a_single_subject_is_scored_without_intervals(predictions):
    found = evaluate(predictions(4, seed=1, n_subjects=1))
    assert found.models["model"]["mae"] > 0
    assert found.models["model"]["mae_low"] != found.models["model"]["mae_low"]


def test_a_baseline_on_other_people_or_with_the_models_name_is_refused(models, baselines):
    with pytest.raises(RefusedError, match="no subject"):
        evaluate(models["t1"], {"mean": baselines["mean"].assign(subject_id=lambda t: "x" + t["subject_id"])})
    with pytest.raises(UsageError, match="both called 'mean'"):
        evaluate(models["t1"], baselines, name="mean")
