from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from neuroage.analysis import compare_models, paired_difference
from neuroage.errors import DataError, RefusedError, UsageError


def pair_of(comparison, a, b):
    return next(pair for pair in comparison.pairs if (pair["a"], pair["b"]) == (a, b))


def test_the_nearer_model_is_told_apart(comparison):
    assert comparison.models["t1"]["mae"] < comparison.models["tof"]["mae"]
    pair = pair_of(comparison, "t1", "tof")
    assert pair["difference_high"] < 0 and pair["p"] < 0.001
    assert pair["difference"] == pytest.approx(comparison.models["t1"]["mae"] - comparison.models["tof"]["mae"])
    assert comparison.verdict.startswith("T1 tells age better than TOF on these 50 subjects: MAE ")


def test_the_pair_is_the_paired_statistic_of_the_subject_table(comparison):
    subjects = comparison.subjects
    found = paired_difference(subjects["age"], subjects["predicted_age_t1"], subjects["predicted_age_tof"])
    pair = pair_of(comparison, "t1", "tof")
    assert (pair["difference"], pair["difference_low"], pair["p"]) == (found.difference, found.low, found.p)
    assert subjects["error_difference_t1_tof"].mean() == pytest.approx(pair["difference"])


def test_swapping_the_models_flips_the_sign(models, baselines, comparison):
    swapped = compare_models({"tof": models["tof"], "t1": models["t1"]}, baselines)
    one, other = pair_of(comparison, "t1", "tof"), pair_of(swapped, "tof", "t1")
    assert other["difference"] == pytest.approx(-one["difference"])
    assert other["difference_low"] == pytest.approx(-one["difference_high"])
    assert other["p"] == pytest.approx(one["p"])
    assert swapped.verdict == comparison.verdict


def test_the_order_of_rows_changes_nothing(models, baselines, comparison):
    shuffled = {name: table.sample(frac=1, random_state=3) for name, table in models.items()}
    again = compare_models(shuffled, baselines)
    pd.testing.assert_frame_equal(again.subjects, comparison.subjects)
    assert again.verdict == comparison.verdict


def test_fusion_is_the_mean_of_the_models_predictions(comparison):
    subjects = comparison.subjects
    mean = (subjects["predicted_age_t1"] + subjects["predicted_age_tof"]) / 2
    np.testing.assert_allclose(subjects["predicted_age_fusion"], mean)
    assert comparison.models["fusion"]["mae"] == pytest.approx(float((mean - subjects["age"]).abs().mean()))
    assert comparison.models["fusion"]["kind"] == "fusion"


def test_fusing_two_equally_good_models_with_own_errors_helps(predictions):
    found = compare_models({"a": predictions(8, seed=21), "b": predictions(8, seed=22)})
    assert found.models["fusion"]["mae"] < min(found.models["a"]["mae"], found.models["b"]["mae"])


def test_decades_add_up_to_the_whole(comparison):
    table = comparison.tables["decades"]
    assert table["n"].sum() == comparison.n_subjects == 50
    for name, figures in comparison.models.items():
        assert np.average(table[f"mae_{name}"], weights=table["n"]) == pytest.approx(figures["mae"])
        assert np.average(table[f"gap_mean_{name}"], weights=table["n"]) == pytest.approx(figures["gap_mean"])


def test_only_shared_subjects_are_compared_and_the_others_are_counted(models, baselines):
    fewer = models["tof"][~models["tof"]["subject_id"].isin(["s00", "s07"])]
    found = compare_models({"t1": models["t1"], "tof": fewer}, baselines)
    assert found.n_subjects == 48
    assert found.given["t1"] == {"given": 50, "compared": 48, "dropped": 2}
    assert found.given["tof"] == {"given": 48, "compared": 48, "dropped": 0}
    assert not set(found.subjects["subject_id"]) & {"s00", "s07"}


def test_every_model_is_paired_with_every_other_and_with_each_baseline(comparison):
    pairs = [(pair["a"], pair["b"]) for pair in comparison.pairs]
    assert pairs[0] == ("t1", "tof")
    assert set(pairs[1:3]) == {("fusion", "t1"), ("fusion", "tof")}
    assert set(pairs[3:]) == {(name, baseline) for name in ("t1", "tof", "fusion") for baseline in ("mean", "ridge")}


def test_what_cannot_be_told_is_said_with_what_could_have_been(predictions):
    found = compare_models({"t1": predictions(6, seed=31), "tof": predictions(6, seed=32)})
    pair = found.pairs[0]
    assert pair["p"] > 0.05
    assert "These 50 subjects cannot tell which is better" in found.verdict
    assert f"could have shown is {pair['smallest_detectable']:.1f} years" in found.verdict


def test_models_that_do_not_beat_the_mean_are_called_out(predictions, baselines):
    found = compare_models({"a": predictions(23, seed=41), "b": predictions(23, seed=42)}, baselines)
    assert "neither a nor b is shown to beat predicting the mean age" in found.verdict
    found = compare_models({"a": predictions(4, seed=41), "b": predictions(40, seed=42)}, baselines)
    assert "b is not shown to beat predicting the mean age" in found.verdict


def test_a_model_against_itself_is_a_tie(models):
    found = compare_models({"one": models["t1"], "two": models["t1"]})
    assert found.pairs[0]["difference"] == 0 and found.pairs[0]["p"] == 1
    assert "equally far" in found.verdict


def test_three_models_are_ranked_and_the_best_two_compared(predictions):
    found = compare_models({"a": predictions(9, seed=1), "b": predictions(3, seed=2), "c": predictions(20, seed=3)})
    assert found.verdict.startswith("Of 3 models b has the lowest MAE. b tells age better than a")


def test_spread_over_members_and_folds_is_that_of_their_maes(predictions):
    table = predictions(5, seed=5, n_members=3)
    table["fold"] = table["subject_id"].str[1:].astype(int) % 2
    found = compare_models({"a": table, "b": predictions(5, seed=6)}).spread
    errors = table.assign(error=(table["predicted_age"] - table["age"]).abs())
    by_member = errors.groupby(["fold", "member"])["error"].mean().unstack()
    assert found["a"]["n_members"] == 3 and found["a"]["n_folds"] == 2
    assert found["a"]["member_sd"] == pytest.approx(np.sqrt(by_member.var(axis=1, ddof=1).mean()))
    averaged = table.groupby(["fold", "subject_id"])[["age", "predicted_age"]].mean()
    by_fold = (averaged["predicted_age"] - averaged["age"]).abs().groupby("fold").mean()
    assert found["a"]["fold_sd"] == pytest.approx(by_fold.std(ddof=1))
    assert np.isnan(found["b"]["member_sd"]) and np.isnan(found["b"]["fold_sd"])


def test_a_subject_with_many_scans_counts_once(predictions):
    table = predictions(5, seed=7)
    rescans = pd.concat(
        [table, *(table.iloc[:1].assign(scan_id=f"again_{index}", predicted_age=90.0) for index in range(3))]
    )
    found = compare_models({"a": rescans, "b": predictions(5, seed=8)})
    assert found.n_subjects == 50
    first = found.subjects.loc[found.subjects["subject_id"] == "s00", "predicted_age_a"].item()
    assert first == pytest.approx((table["predicted_age"].iloc[0] + 3 * 90.0) / 4)


def test_different_ages_of_one_subject_are_refused(models):
    other = models["tof"].copy()
    other.loc[other["subject_id"] == "s03", "age"] += 0.5
    with pytest.raises(RefusedError, match=r"'s03' is .* for 't1' and .* for 'tof'"):
        compare_models({"t1": models["t1"], "tof": other})
    other["age"] = models["tof"]["age"] + 0.004  # rounding is no difference
    assert compare_models({"t1": models["t1"], "tof": other}).n_subjects == 50


def test_no_shared_subject_is_refused(models):
    with pytest.raises(RefusedError, match="no subject was predicted by all"):
        compare_models({"t1": models["t1"], "tof": models["tof"].assign(subject_id=lambda t: "x" + t["subject_id"])})


def test_subjects_that_a_model_trained_on_are_refused(models):
    leaky = pd.concat([models["tof"], models["tof"].iloc[:4].assign(set="train", scan_id="other")])
    leaky["member"] = range(len(leaky))
    with pytest.raises(RefusedError, match="'tof' trained on 4 of the subjects"):
        compare_models({"t1": models["t1"], "tof": leaky})


def test_training_in_another_fold_is_no_leak(models):
    folds = pd.concat([models["tof"], models["tof"].iloc[:4].assign(set="train", fold=1)])
    assert compare_models({"t1": models["t1"], "tof": folds}).n_subjects == 50


def test_one_model_or_a_taken_name_is_refused(models, baselines):
    with pytest.raises(UsageError, match="two or more"):
        compare_models({"t1": models["t1"]})
    with pytest.raises(UsageError, match="'fusion' is taken"):
        compare_models({"t1": models["t1"], "fusion": models["tof"]})
    with pytest.raises(UsageError, match="'ridge' is taken"):
        compare_models({"t1": models["t1"], "ridge": models["tof"]}, baselines)


def test_broken_tables_are_named(models):
    def compared_with(table):
        return compare_models({"t1": models["t1"], "tof": table})

    with pytest.raises(DataError, match="lack the column 'age'"):
        compared_with(models["tof"].drop(columns="age"))
    with pytest.raises(DataError, match=r"predicted_age is nan for scan 's00_scan' \(1 such"):
        compared_with(models["tof"].assign(predicted_age=lambda t: t["predicted_age"].where(t.index != 0)))
    with pytest.raises(DataError, match="appears twice"):
        compared_with(pd.concat([models["tof"], models["tof"].iloc[:1]]))
    with pytest.raises(DataError, match=r"no row of set 'validation'; expected one of 'test'"):
        compared_with(models["tof"].assign(set="test"))
    with pytest.raises(DataError, match="has two ages"):
        compared_with(models["tof"].assign(age=lambda t: t["age"] + (t.index == 0)))


def test_the_given_tables_are_left_alone(models, baselines):
    before = {name: table.copy() for name, table in (models | baselines).items()}
    compare_models(models, baselines)
    for name, table in (models | baselines).items():
        pd.testing.assert_frame_equal(table, before[name])


def test_two_subjects_are_compared_without_pretending_to_know(predictions):
    found = compare_models({"a": predictions(5, seed=1, n_subjects=2), "b": predictions(9, seed=2, n_subjects=2)})
    assert "too few" in found.verdict
    assert np.isnan(found.pairs[0]["difference_low"])
