from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from label_cases import NAMES, class_predictions, constant_predictions, multilabel_predictions, target_of
from sklearn.metrics import confusion_matrix, roc_auc_score

from neuroage.analysis import LabelCalibration, evaluate_labels
from neuroage.analysis.label_verdict import format_label_figure
from neuroage.errors import DataError, RefusedError, UsageError

TEST = ("test",)


@pytest.fixture(autouse=True, scope="module")
def few_resamples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("neuroage.analysis.label_evaluation.N_RESAMPLES", 300)
        yield


@pytest.fixture(scope="module")
def table():
    return multilabel_predictions()


@pytest.fixture(scope="module")
def evaluation(table):
    baselines = {"majority": constant_predictions(table), "linear": multilabel_predictions(shift=0.5, noise_seed=2)}
    baselines["linear"][[f"target_{label}" for label in NAMES]] = table[[f"target_{label}" for label in NAMES]]
    return evaluate_labels(table, target_of(), baselines, TEST, name="cnn")


@pytest.fixture(scope="module")
def classes():
    table = class_predictions()
    share = table["target_label"].value_counts(normalize=True)
    baseline = table.assign(**{f"probability_{name}": share[name] for name in "abcd"})
    return evaluate_labels(table, target_of(*"abcd", kind="multiclass"), {"majority": baseline}, TEST, name="cnn")


def test_members_and_folds_are_averaged_per_scan(table):
    sharper = table.assign(member=1, **{f"probability_{name}": table[f"probability_{name}"] ** 2 for name in NAMES})
    found = evaluate_labels(pd.concat([table, sharper]), target_of(), sets=TEST)
    assert found.n_scans == 240 and found.n_subjects == 120
    expected = (table["probability_Mass"] + table["probability_Mass"] ** 2) / 2
    assert found.subjects["probability_Mass"].to_numpy() == pytest.approx(expected.to_numpy())


def test_the_table_has_a_row_per_label_and_their_mean(evaluation, table):
    found = evaluation.table.set_index("label")
    assert list(found.index) == [*NAMES, "macro"]
    for name in NAMES:
        assert found.loc[name, "auroc"] == pytest.approx(
            roc_auc_score(table[f"target_{name}"], table[f"probability_{name}"])
        )
        assert found.loc[name, "auroc_low"] < found.loc[name, "auroc"] < found.loc[name, "auroc_high"]
    assert found.loc["macro", "auroc"] == pytest.approx(found.loc[list(NAMES), "auroc"].mean())
    assert found.loc["Mass", "n_positive"] == table["target_Mass"].sum()
    assert found.loc["Mass", "accuracy_constant"] == pytest.approx(1 - table["target_Mass"].mean())


def test_the_model_is_paired_with_every_baseline(evaluation):
    assert [(pair["a"], pair["b"], pair["metric"]) for pair in evaluation.pairs] == [
        ("cnn", "majority", "auroc"),
        ("cnn", "linear", "auroc"),
    ]
    for pair in evaluation.pairs:
        difference = evaluation.models["cnn"]["auroc"] - evaluation.models[pair["b"]]["auroc"]
        assert pair["difference"] == pytest.approx(difference)
        assert 0 < pair["difference_low"] < pair["difference"] < pair["difference_high"]
    assert evaluation.models["majority"]["auroc"] == 0.5
    assert "cnn beats always giving the most frequent answer" in evaluation.verdict
    assert evaluation.verdict.index("AUROC") < evaluation.verdict.index("accuracy")


def test_a_model_no_better_than_its_baseline_is_not_said_to_beat_it(table):
    twin = {"linear": table.assign(probability_Mass=table["probability_Mass"] * 0.999)}
    assert "is not shown to beat a linear model" in evaluate_labels(table, target_of(), twin, TEST, name="cnn").verdict


def test_a_label_without_positives_is_nan_listed_and_left_out_of_the_mean(table):
    found = evaluate_labels(table.assign(target_Hernia=0.0), target_of(), sets=TEST)
    rows = found.table.set_index("label")
    assert np.isnan(rows.loc["Hernia", ["auroc", "auprc", "f1", "sensitivity"]].to_numpy(dtype=float)).all()
    assert rows.loc["Hernia", "specificity"] > 0.5
    assert found.undefined == [
        {"label": "Hernia", "metrics": ["auroc", "auprc", "f1", "sensitivity"], "why": "no positive scan"}
    ]
    assert found.models["model"]["n_labels"] == 2
    assert rows.loc["macro", "auroc"] == pytest.approx(rows.loc[["Edema", "Mass"], "auroc"].mean())
    assert "over the 2 of 3 labels where it is defined" in found.verdict


def test_unknown_answers_do_not_count(table):
    gaps = table.copy()
    gaps.loc[:99, "target_Mass"] = np.nan
    found = evaluate_labels(gaps, target_of(), sets=TEST).labels["model"]
    assert found["Mass"]["n"] == 140 and found["Edema"]["n"] == 240
    known = table.iloc[100:]
    assert found["Mass"]["auroc"] == pytest.approx(roc_auc_score(known["target_Mass"], known["probability_Mass"]))
    nothing = evaluate_labels(table.assign(target_Mass=np.nan), target_of(), sets=TEST)
    assert {entry["label"]: entry["why"] for entry in nothing.undefined} == {"Mass": "no scan has an answer"}


def test_classes_have_a_confusion_matrix_and_the_majority_beside_accuracy(classes):
    found = classes.subjects
    expected = confusion_matrix(found["target_label"], found["predicted_label"], labels=list("abcd"))
    assert classes.confusion.to_numpy().tolist() == expected.tolist()
    figures = classes.models["cnn"]
    assert figures["accuracy"] == pytest.approx(np.trace(expected) / expected.sum())
    assert figures["accuracy_constant"] == pytest.approx(expected.sum(axis=1).max() / expected.sum())
    assert classes.models["majority"]["accuracy"] == pytest.approx(figures["accuracy_constant"])
    assert classes.headline == "f1" and "macro F1" in classes.verdict
    assert "always naming the most frequent class" in classes.verdict
    assert {pair["metric"] for pair in classes.pairs} == {"f1", "balanced_accuracy"}
    assert classes.scans.n_groups == 50 and "in 50 groups" in classes.verdict


def test_slices_of_one_group_do_not_narrow_the_interval():
    table = class_predictions()
    target = target_of(*"abcd", kind="multiclass")
    grouped = evaluate_labels(table, target, sets=TEST).models["model"]
    torn = evaluate_labels(table.drop(columns="group"), target, sets=TEST).models["model"]
    copied = pd.concat([table, table.assign(scan_id="again " + table["scan_id"])])
    again = evaluate_labels(copied, target, sets=TEST).models["model"]
    assert torn["n_groups"] == 200 and grouped["n_groups"] == 50
    assert again["accuracy_low"] == pytest.approx(grouped["accuracy_low"])


def test_a_binary_target_has_balanced_accuracy_beside_accuracy(table):
    found = evaluate_labels(table, target_of("Mass", kind="binary"), {"majority": constant_predictions(table)}, TEST)
    figures = found.models["model"]
    assert figures["balanced_accuracy"] == pytest.approx((figures["sensitivity"] + figures["specificity"]) / 2)
    assert found.models["majority"]["balanced_accuracy"] == 0.5
    assert found.models["majority"]["accuracy"] == pytest.approx(figures["accuracy_constant"])
    assert found.confusion is None and len(found.table) == 1
    assert "one answer for every scan gives" in found.verdict


def test_thresholds_and_temperatures_of_a_calibration_are_applied(table):
    calibration = LabelCalibration("multilabel", NAMES, (1.0, 2.0, 1.0), fitted_on="validation", n_scans=5)
    calibration = calibration.with_thresholds({"Edema": 0.2, "Mass": 0.5, "Hernia": float("nan")}, "sensitivity>=0.9")
    found = evaluate_labels(table, target_of(), sets=TEST, calibration=calibration)
    raw = evaluate_labels(table, target_of(), sets=TEST)
    mine, plain = found.labels["model"], raw.labels["model"]
    assert mine["Edema"]["sensitivity"] > plain["Edema"]["sensitivity"] and mine["Edema"]["threshold"] == 0.2
    assert mine["Mass"]["brier"] != plain["Mass"]["brier"] and mine["Mass"]["auroc"] == plain["Mass"]["auroc"]
    assert found.undefined == [
        {
            "label": "Hernia",
            "metrics": ["f1", "sensitivity", "specificity", "accuracy"],
            "why": "no threshold meets the rule",
        }
    ]
    assert found.calibration["raw_brier"] == pytest.approx(raw.models["model"]["brier"])
    assert found.selected_on == ""
    seen = evaluate_labels(table.assign(set="validation"), target_of(), calibration=calibration)
    assert seen.selected_on == "validation"


def test_the_same_seed_gives_the_same_figures_whatever_the_order_of_rows(table, evaluation):
    once = evaluate_labels(table, target_of(), sets=TEST)
    again = evaluate_labels(table.sample(frac=1, random_state=1), target_of(), sets=TEST)
    assert json.dumps(once.to_dict()) == json.dumps(again.to_dict())
    other = evaluate_labels(table, target_of(), sets=TEST, seed=1)
    assert other.models["model"]["auroc_low"] != once.models["model"]["auroc_low"]
    assert evaluation.models["cnn"]["auroc_low"] == once.models["model"]["auroc_low"]


def test_too_few_groups_get_figures_without_intervals(table):
    found = evaluate_labels(table.head(4), target_of(), sets=TEST).models["model"]
    assert np.isnan(found["brier_low"]) and np.isfinite(found["brier"])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda t: t.drop(columns="probability_Mass"), DataError, "probability_Mass"),
        (lambda t: t.assign(probability_Mass=1.2), DataError, "1.2 for scan"),
        (lambda t: t.assign(probability_Mass=np.nan), DataError, "a probability, 0 to 1"),
        (lambda t: t.assign(target_Mass=2.0), DataError, "1, 0, or a blank"),
        (lambda t: t.assign(target_Mass="yes"), DataError, "'yes'"),
        (lambda t: pd.concat([t, t]), DataError, "twice"),
        (lambda t: t.assign(set="tset"), DataError, "no row of set 'test'"),
        (lambda t: pd.concat([t, t.head(3).assign(set="train", scan_id="x")]), RefusedError, "trained on 3"),
    ],
)
def test_wrong_tables_are_said_to_be_wrong(table, change, error, words):
    with pytest.raises(error, match=words):
        evaluate_labels(change(table), target_of(), sets=TEST)


def test_wrong_targets_and_baselines_are_refused(table):
    with pytest.raises(UsageError, match="did you mean 'multilabel'"):
        evaluate_labels(table, {"kind": "multilabl", "labels": ["Mass"]})
    with pytest.raises(UsageError, match="expected one label"):
        evaluate_labels(table, target_of("Mass", "Edema", kind="binary"))
    with pytest.raises(RefusedError, match="different targets"):
        other = table.assign(target_Mass=1 - table["target_Mass"])
        evaluate_labels(table, target_of(), {"linear": other}, TEST)
    with pytest.raises(RefusedError, match="no scan"):
        evaluate_labels(table, target_of(), {"linear": table.assign(scan_id="x" + table["scan_id"])}, TEST)
    with pytest.raises(UsageError, match="both called 'linear'"):
        evaluate_labels(table, target_of(), {"linear": table}, TEST, name="linear")
    with pytest.raises(DataError, match="class 'd' is none"):
        evaluate_labels(class_predictions(), target_of(*"abc", kind="multiclass"), sets=TEST)


def test_labels_are_aligned_by_name_and_not_by_position(table, evaluation):
    found = evaluate_labels(table[table.columns[::-1]], target_of(*NAMES[::-1]), sets=TEST)
    assert found.labels["model"]["Mass"]["auroc"] == evaluation.labels["cnn"]["Mass"]["auroc"]


def test_figures_are_written_as_people_read_them():
    assert format_label_figure("auroc", 0.8412, 600) == "0.841"
    assert format_label_figure("difference", -0.034, 60) == "−0.03"
    assert format_label_figure("n_positive", 1234, 60) == "1,234"
    assert format_label_figure("auroc", float("nan"), 60) == "–"
