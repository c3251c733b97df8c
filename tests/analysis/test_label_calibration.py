from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from label_cases import NAMES, class_predictions, multilabel_predictions, target_of
from sklearn.metrics import roc_auc_score

from neuroage.analysis import LabelCalibration, choose_thresholds, fit_label_calibration, predicted_labels
from neuroage.analysis.label_metrics import expected_calibration_error
from neuroage.errors import DataError, UsageError


@pytest.fixture(scope="module")
def overconfident():
    return multilabel_predictions(n_scans=1200, n_subjects=600, sharp=2.5).assign(set="validation")


def test_the_temperature_that_was_put_in_is_found(overconfident):
    found = fit_label_calibration(overconfident, target_of())
    assert found.temperatures == pytest.approx([2.5] * 3, rel=0.2)
    assert found.offsets == pytest.approx([0] * 3, abs=0.35)
    for entry in found.fitted:
        for figure in ("nll", "brier", "ece"):
            assert entry[f"{figure}_after"] < entry[f"{figure}_before"], figure
    assert found.n_scans == 1200 and found.notes == []


def test_applying_it_changes_probabilities_and_keeps_their_order(overconfident):
    calibration = fit_label_calibration(overconfident, target_of())
    changed = calibration.apply(overconfident)
    assert (changed["probability_Mass"].rank() == overconfident["probability_Mass"].rank()).all()
    assert np.abs(changed["probability_Mass"] - 0.5).mean() < np.abs(overconfident["probability_Mass"] - 0.5).mean()
    others = [column for column in overconfident.columns if not column.startswith("probability_")]
    pd.testing.assert_frame_equal(changed[others], overconfident[others])


def test_classes_share_one_temperature_and_still_add_up_to_one():
    table = class_predictions(n_scans=2000, strength=2.0)
    columns = [f"probability_{name}" for name in "abcd"]
    sharp = table[columns].to_numpy() ** 3
    table[columns] = sharp / sharp.sum(axis=1, keepdims=True)
    found = fit_label_calibration(table, target_of(*"abcd", kind="multiclass"), set_name="test")
    assert len(found.temperatures) == 1 and found.temperatures[0] > 1.5
    assert found.fitted[0]["nll_after"] < found.fitted[0]["nll_before"]
    changed = found.apply(table)[columns]
    assert changed.sum(axis=1).to_numpy() == pytest.approx(1)
    assert (changed.to_numpy().argmax(axis=1) == sharp.argmax(axis=1)).all()


def test_a_label_with_too_few_positives_keeps_its_probabilities_and_says_so(overconfident):
    rare = overconfident.assign(target_Hernia=(np.arange(len(overconfident)) < 4).astype(float))
    found = fit_label_calibration(rare, target_of())
    assert found.temperatures[2] == 1.0 and found.temperatures[1] > 1.5
    assert found.notes == [
        "Hernia: probabilities stay as they are, for there are 4 positives and 1196 negatives, and 5 of each are "
        "needed."
    ]
    assert (found.apply(rare)["probability_Hernia"] == rare["probability_Hernia"]).all()


def weighted(table, label, weight, sharp=1.0):
    """The same model, trained with each positive counted `weight` times: odds too high, then overconfident."""
    column = f"probability_{label}"
    odds = (weight * table[column] / (1 - table[column])) ** sharp
    return table.assign(**{column: odds / (1 + odds)})


@pytest.mark.parametrize("sharp", [1.0, 2.0])
def test_odds_raised_by_weighing_positives_are_brought_back(sharp):
    right = multilabel_predictions(n_scans=8000, n_subjects=4000, shift=1.2)
    fitted_on, other = (
        weighted(part, "Hernia", 5.7, sharp).assign(set="validation") for part in (right.head(4000), right.tail(4000))
    )
    found = fit_label_calibration(fitted_on, target_of("Hernia", kind="binary"))
    assert found.temperatures[0] == pytest.approx(sharp, rel=0.15)
    assert found.offsets[0] == pytest.approx(-np.log(5.7), abs=0.25)
    truth, after = other["target_Hernia"], found.apply(other)["probability_Hernia"]
    assert other["probability_Hernia"].mean() > truth.mean() + 0.15
    assert after.mean() == pytest.approx(truth.mean(), abs=0.02)  # three standard errors of 4,000 scans
    from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

    assert roc_auc_score(truth, after) == roc_auc_score(truth, other["probability_Hernia"])
    best = right.tail(4000)["probability_Hernia"]
    assert log_loss(truth, after) == pytest.approx(log_loss(truth, best), abs=0.003)
    assert brier_score_loss(truth, after) < brier_score_loss(truth, other["probability_Hernia"]) - 0.03
    assert expected_calibration_error(truth, after)[0] < 0.02


def test_mean_probability_is_the_prevalence_of_the_scans_it_was_fitted_on(overconfident):
    table = weighted(overconfident, "Hernia", 5.7)
    found = fit_label_calibration(table, target_of()).apply(table)
    assert found["probability_Hernia"].mean() == pytest.approx(table["target_Hernia"].mean(), abs=1e-5)


def test_few_positives_move_the_temperature_less_than_many():
    few = multilabel_predictions(n_scans=40, n_subjects=40, sharp=3.0).assign(set="validation")
    many = pd.concat([few.assign(scan_id=few["scan_id"] + str(copy)) for copy in range(25)])
    less, more = (fit_label_calibration(part, target_of()).temperatures[0] for part in (few, many))
    assert 1.1 < less < 0.9 * more


def test_labels_that_are_told_apart_perfectly_get_sharper_and_stay_finite(overconfident):
    perfect = overconfident.assign(probability_Mass=0.3 + 0.4 * overconfident["target_Mass"])
    found = fit_label_calibration(perfect, target_of())
    assert 0.05 < found.temperatures[1] < 0.3 and abs(found.offsets[1]) < 1 and found.notes == []


def test_one_probability_for_all_becomes_the_prevalence(overconfident):
    same = overconfident.assign(probability_Mass=0.9)
    found = fit_label_calibration(same, target_of()).apply(same)
    assert found["probability_Mass"].to_numpy() == pytest.approx(same["target_Mass"].mean(), abs=1e-5)


def test_members_are_averaged_before_the_fit(overconfident):
    other = overconfident.assign(member=1, probability_Mass=overconfident["probability_Mass"] ** 3)
    mean = overconfident.assign(probability_Mass=(overconfident["probability_Mass"] + other["probability_Mass"]) / 2)
    both = fit_label_calibration(pd.concat([overconfident, other]), target_of())
    assert both.offsets == pytest.approx(fit_label_calibration(mean, target_of()).offsets)


def test_files_without_offsets_still_load_and_change_temperatures_alone(overconfident):
    content = LabelCalibration("multilabel", NAMES, (2.0, 1.0, 1.0)).to_dict()
    del content["offsets"]
    old = LabelCalibration.from_dict(content)
    changed = old.apply(overconfident)
    odds = changed["probability_Edema"] / (1 - changed["probability_Edema"])
    before = overconfident["probability_Edema"] / (1 - overconfident["probability_Edema"])
    told = before > 1e-6  # float32's end
    assert odds[told].to_numpy() == pytest.approx(np.sqrt(before[told]).to_numpy())
    assert (changed["probability_Mass"] == overconfident["probability_Mass"]).all()


def test_labels_are_matched_by_name_whatever_their_order():
    one = LabelCalibration("multilabel", ("a", "b"), (1.0, 2.0), offsets=(-1.0, 0.0))
    straight, turned = (
        one.recalibrate(np.array([[0.3, 0.6]]), ("a", "b")),
        one.recalibrate(np.array([[0.6, 0.3]]), ("b", "a")),
    )
    assert straight[0].tolist() == turned[0, ::-1].tolist()
    assert np.log(straight[0, 0] / (1 - straight[0, 0])) == pytest.approx(np.log(0.3 / 0.7) - 1)


def test_it_survives_json_with_thresholds_that_cannot_be_met(overconfident):
    fitted = fit_label_calibration(overconfident, target_of())
    kept = fitted.with_thresholds({"Mass": 0.25, "Hernia": float("nan")}, "f1")
    again = LabelCalibration.from_dict(json.loads(json.dumps(kept.to_dict()).replace("NaN", "null")))
    assert again.temperatures == kept.temperatures and again.labels == NAMES and again.offsets == kept.offsets
    assert again.thresholds["Mass"] == 0.25 and np.isnan(again.thresholds["Hernia"])
    assert again.notes == ["Hernia: no threshold meets f1."]


def test_only_the_named_set_is_fitted_on(overconfident):
    other = multilabel_predictions(n_scans=400, n_subjects=200, sharp=0.2).assign(
        set="test", scan_id=lambda t: "t" + t["scan_id"], subject_id=lambda t: "t" + t["subject_id"]
    )
    both = pd.concat([overconfident, other])
    assert fit_label_calibration(both, target_of()) == fit_label_calibration(overconfident, target_of())
    assert choose_thresholds(both, target_of(), "f1") == choose_thresholds(overconfident, target_of(), "f1")
    with pytest.raises(DataError, match="no row of set"):
        fit_label_calibration(other, target_of())


def test_another_models_calibration_is_refused(overconfident):
    calibration = fit_label_calibration(overconfident, target_of())
    with pytest.raises(DataError, match="probability_Edema"):
        calibration.apply(overconfident.drop(columns="probability_Edema"))
    with pytest.raises(DataError, match="one of them only"):
        calibration.recalibrate(np.full((2, 2), 0.5), ("Edema", "Mass"))


def rates(table, label, threshold):
    real, called = table[f"target_{label}"] == 1, table[f"probability_{label}"] >= threshold
    return called[real].mean(), (~called[~real]).mean()


def test_a_rule_is_met_and_no_other_threshold_meets_it_better(overconfident):
    small = overconfident.head(100)
    for label, threshold in choose_thresholds(small, target_of(), "sensitivity>=0.9").items():
        sensitivity, specificity = rates(small, label, threshold)
        assert sensitivity >= 0.9
        for other in small[f"probability_{label}"]:
            if rates(small, label, other)[0] >= 0.9:
                assert rates(small, label, other)[1] <= specificity + 1e-12
    for label, threshold in choose_thresholds(overconfident, target_of(), "specificity >= 0.95").items():
        sensitivity, specificity = rates(overconfident, label, threshold)
        assert specificity >= 0.95 and 0.2 < sensitivity < 0.9


def test_thresholds_are_for_members_that_are_averaged_and_then_calibrated(overconfident):
    other = overconfident.assign(member=1, probability_Mass=overconfident["probability_Mass"] ** 3)
    both = pd.concat([overconfident, other])
    mean = overconfident.assign(probability_Mass=(overconfident["probability_Mass"] + other["probability_Mass"]) / 2)
    calibration = fit_label_calibration(both, target_of())
    found = choose_thresholds(both, target_of(), "youden", calibration=calibration)
    assert found == pytest.approx(choose_thresholds(calibration.apply(mean), target_of(), "youden"))
    assert found["Mass"] != pytest.approx(choose_thresholds(both, target_of(), "youden")["Mass"])


def test_f1_and_youden_find_their_maximum(overconfident):
    small = overconfident.head(80)
    youden = choose_thresholds(small, target_of(), "youden")["Mass"]
    best = max(sum(rates(small, "Mass", at)) for at in small["probability_Mass"])
    assert sum(rates(small, "Mass", youden)) == pytest.approx(best)
    from sklearn.metrics import f1_score

    def f1(at):
        return f1_score(small["target_Mass"], small["probability_Mass"] >= at)

    assert f1(choose_thresholds(small, target_of(), "F1")["Mass"]) == pytest.approx(
        max(map(f1, small["probability_Mass"]))
    )


def test_a_rule_that_cannot_be_met_gives_nan(overconfident):
    found = choose_thresholds(overconfident.assign(target_Hernia=0.0), target_of(), "sensitivity>=0.9")
    assert np.isnan(found["Hernia"]) and np.isfinite(found["Mass"])
    constant = overconfident.assign(probability_Mass=0.3)
    assert np.isnan(choose_thresholds(constant, target_of(), "specificity>=0.95")["Mass"])


@pytest.mark.parametrize("rule", ["sensitivity>0.9", "sensitivity>=90", "specificity>=0", "recall>=0.9", "", "f2"])
def test_rules_that_cannot_be_read_are_refused_with_an_example(rule):
    with pytest.raises(UsageError, match=r"sensitivity>=0\.9"):
        choose_thresholds(multilabel_predictions(), target_of(), rule)


def test_decisions_follow_the_thresholds():
    table = pd.DataFrame({"probability_a": [0.2, 0.5, 0.7], "probability_b": [0.2, 0.5, 0.7]})
    found = predicted_labels(table, target_of("a", "b"), {"a": 0.6, "b": float("nan")})
    assert found["predicted_a"].tolist() == [0, 0, 1] and found["predicted_b"].isna().all()
    assert predicted_labels(table, target_of("a", "b"))["predicted_b"].tolist() == [0, 1, 1]
    of_classes = predicted_labels(table.assign(probability_b=0.5), target_of("a", "b", kind="multiclass"))
    assert of_classes["predicted_label"].tolist() == ["b", "a", "a"]
    with pytest.raises(DataError, match="probability_c"):
        predicted_labels(table, target_of("a", "c"))


def test_thresholds_for_classes_are_refused():
    with pytest.raises(UsageError, match="most probable class"):
        choose_thresholds(class_predictions(), target_of(*"abcd", kind="multiclass"), "f1")


def test_even_the_surest_answers_keep_their_order():
    random = np.random.default_rng(0)
    truth = (random.random(2000) < 0.1).astype(float)
    logit = 12 * (1.2 * truth + random.normal(size=2000)) - 25
    sure = (1 / (1 + np.exp(-logit))).astype(np.float32).astype(np.float64)
    assert (sure < 1e-7).mean() > 0.5  # what a network that was trained for long says of most scans
    names = [f"scan{at}" for at in range(2000)]
    table = pd.DataFrame({"scan_id": names, "subject_id": names, "target_Mass": truth, "probability_Mass": sure})
    target = target_of("Mass", kind="binary")
    changed = fit_label_calibration(table, target).apply(table)
    assert roc_auc_score(truth, changed["probability_Mass"]) == pytest.approx(roc_auc_score(truth, sure), abs=1e-6)
    classes = table.assign(target_label=np.where(truth == 1, "a", "b"), probability_a=sure, probability_b=1 - sure)
    softer = fit_label_calibration(classes, target_of("a", "b", kind="multiclass")).apply(classes)
    assert roc_auc_score(truth, softer["probability_a"]) == pytest.approx(roc_auc_score(truth, sure), abs=1e-6)
