from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from neuroage.cohort import Cohort, Split, uniform_age_split, uniformity
from neuroage.cohort.uniformity import _random_sets, ks_uniform, random_w1, w1_years
from neuroage.errors import InfeasibleError, UsageError


def people(n: int, seed: int = 0, whole_years: bool = True) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    ages = np.clip(rng.gamma(6, 7, n) + 10, 18, 90)
    return pd.DataFrame(
        {
            "subject_id": [f"s{k:04d}" for k in range(n)],
            "age": np.round(ages) if whole_years else ages,
            "sex": rng.choice(["F", "M"], n, p=[0.3, 0.7]),
            "site": rng.choice(["north", "south", "east"], n),
            "family": [f"f{k}" for k in rng.integers(0, max(n * 2 // 3, 1), n)],
        }
    )


def w1_of_set(split: Split, name: str = "validation", fold: int = 0) -> float:
    low, high = split.meta["parameters"]["age_range"]
    rows = split.table[(split.table.set == name) & ((split.table.fold == fold) | (name != "validation"))]
    ages = rows.age.to_numpy(dtype=float)
    return w1_years(ages, low, high)


tables = st.builds(people, n=st.integers(40, 90), seed=st.integers(0, 10_000), whole_years=st.booleans())
plans = st.fixed_dictionaries(
    {
        "n_validation": st.integers(2, 6),
        "n_test": st.integers(0, 3),
        "folds": st.integers(1, 3),
        "group": st.sampled_from([None, "family"]),
        "exact": st.booleans(),
        "seed": st.integers(0, 99),
        "balance": st.sampled_from([(), ("sex",), ("sex", "site")]),
    }
)
quickly = settings(max_examples=10, deadline=None)


def feasible(table: pd.DataFrame, plan: dict, **more: object) -> Split | None:
    try:
        return uniform_age_split(table, **{**plan, **more})
    except InfeasibleError:
        return None


@quickly
@given(table=tables, plan=plans)
def test_every_subject_is_placed_once_or_left_out_with_a_reason(table: pd.DataFrame, plan: dict) -> None:
    table.loc[::17, "age"] = np.nan
    split = feasible(table, plan, age_range=(20, 85))
    assume(split is not None)
    assert split is not None
    assert sorted(split.table.subject_id) == sorted(table.subject_id)
    left_out = split.table.set == "left_out"
    assert (split.table.reason[left_out] != "").all() and (split.table.reason[~left_out] == "").all()
    by_id = split.table.set_index("subject_id")
    assert (by_id.reason[table.subject_id[table.age.isna()]] == "no age").all()
    outside = table.subject_id[(table.age < 20) | (table.age > 85)]
    assert (by_id.reason[outside] == "age outside 20 to 85").all()
    sizes = [len(split.table[split.table.fold == k]) for k in range(plan["folds"])]
    assert sizes == [plan["n_validation"]] * plan["folds"]
    assert len(split.subjects("test")) == plan["n_test"]


@quickly
@given(table=tables, plan=plans)
def test_no_group_is_on_two_sides(table: pd.DataFrame, plan: dict) -> None:
    split = feasible(table, plan, group="family")
    assume(split is not None)
    assert split is not None
    rows = split.table.merge(table[["subject_id", "family"]]).query("set != 'left_out'")
    sides = rows.assign(side=rows.set + rows.fold.astype(str)).groupby("family").side.nunique()
    assert (sides == 1).all()
    siblings = split.table[split.table.reason.str.startswith("same family as")]
    chosen = rows[rows.set != "train"]
    assert set(siblings.merge(table).family) <= set(chosen.family)


@quickly
@given(table=tables, plan=plans, shuffle=st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(table: pd.DataFrame, plan: dict, shuffle: object) -> None:
    order = list(range(len(table)))
    shuffle.shuffle(order)  # type: ignore[attr-defined]
    first, second = feasible(table, plan), feasible(table.iloc[order], plan)
    assert (first is None) == (second is None)
    if first and second:
        assert first.digest == second.digest
        pd.testing.assert_frame_equal(first.table, second.table)


@quickly
@given(table=tables, plan=plans)
def test_the_same_seed_gives_the_same_split_and_report(table: pd.DataFrame, plan: dict) -> None:
    first, second = feasible(table, plan), feasible(table, plan)
    assume(first is not None and second is not None)
    assert first is not None and second is not None
    assert first.digest == second.digest and first.meta == second.meta


@quickly
@given(table=tables, plan=plans)
def test_no_draw_beats_the_optimum_or_leaves_the_slack(table: pd.DataFrame, plan: dict) -> None:
    plan = {**plan, "folds": 1, "n_test": 0}
    drawn, exact = feasible(table, plan, exact=False), feasible(table, plan, exact=True)
    assume(drawn is not None and exact is not None)
    assert drawn is not None and exact is not None
    optimum = exact.meta["report"]["sets"][0]["optimum_w1_years"]
    assert w1_of_set(exact) == pytest.approx(optimum, abs=1e-8)
    assert optimum - 1e-8 <= w1_of_set(drawn) <= optimum + 0.25 + 1e-8


@quickly
@given(table=tables, plan=plans, share=st.sampled_from([0.2, 0.4, 0.6]))
def test_training_keeps_its_share_of_every_decade(table: pd.DataFrame, plan: dict, share: float) -> None:
    split = feasible(table, plan, max_share_per_decade=share)
    assume(split is not None)
    assert split is not None
    decades = split.table.assign(decade=split.table.age // 10).groupby("decade").set
    for had, kept in zip(decades.size(), decades.apply(lambda sets: (sets == "train").sum()), strict=True):
        assert had - kept <= share * had + 1e-9


@quickly
@given(table=tables, plan=plans)
def test_folds_and_test_are_all_planned_within_the_slack(table: pd.DataFrame, plan: dict) -> None:
    drawn, exact = feasible(table, plan, exact=False), feasible(table, plan, exact=True)
    assume(drawn is not None and exact is not None)
    assert drawn is not None and exact is not None
    worst = max(entry["optimum_w1_years"] for entry in exact.meta["report"]["sets"][: plan["folds"]])
    for fold in range(plan["folds"]):
        assert w1_of_set(drawn, fold=fold) <= worst + 0.25 + 1e-8
    if plan["n_test"]:
        assert w1_of_set(drawn, "test") <= drawn.meta["report"]["sets"][-1]["optimum_w1_years"] + 0.25 + 1e-8


def test_other_seeds_give_other_sets() -> None:
    table = people(300)
    sets = [frozenset(uniform_age_split(table, 30, seed=seed).subjects("validation")) for seed in range(5)]
    shared = [len(a & b) / 30 for k, a in enumerate(sets) for b in sets[:k]]
    assert len(set(sets)) == 5 and np.mean(shared) < 0.6


def test_exact_seeds_differ_only_among_equal_ages() -> None:
    table = people(300)
    splits = [uniform_age_split(table, 30, seed=seed, exact=True) for seed in (1, 2)]
    ages = [np.sort(s.table.age[s.table.set == "validation"]).tolist() for s in splits]
    assert ages[0] == ages[1] and splits[0].digest != splits[1].digest


def test_joint_folds_beat_folds_taken_one_after_the_other() -> None:
    table = people(150, seed=3)
    joint = uniform_age_split(table, 25, folds=3, exact=True, max_share_per_decade=1.0)
    worst_joint = max(w1_of_set(joint, fold=k) for k in range(3))
    rest, one_by_one = table, []
    low, high = joint.meta["parameters"]["age_range"]
    for _ in range(3):
        split = uniform_age_split(rest, 25, exact=True, age_range=(low, high), max_share_per_decade=1.0)
        one_by_one.append(w1_of_set(split))
        rest = rest[~rest.subject_id.isin(split.subjects("validation"))]
    assert worst_joint < max(one_by_one) and np.ptp([w1_of_set(joint, fold=k) for k in range(3)]) < 0.1


def test_balance_brings_the_shares_nearer_and_keeps_the_ages_uniform() -> None:
    table = people(400, seed=1)
    plain = uniform_age_split(table, 40, seed=2)
    balanced = uniform_age_split(table, 40, seed=2, balance=["sex", "site"])

    def distance(split: Split) -> float:
        rows = table[table.subject_id.isin(split.subjects("validation"))]
        off = [
            (rows[name].value_counts(normalize=True).reindex(table[name].unique(), fill_value=0)
             - table[name].value_counts(normalize=True)).abs().sum() / 2
            for name in ("sex", "site")
        ]  # fmt: skip
        return float(np.mean(off))

    assert distance(balanced) < 0.02 < distance(plain)
    assert balanced.meta["report"]["balance"]["sets"][0]["imbalance"] == pytest.approx(distance(balanced))
    assert w1_of_set(balanced) <= balanced.meta["report"]["sets"][0]["optimum_w1_years"] + 0.25 + 1e-8


def test_one_age_per_subject_even_with_many_scans() -> None:
    table = people(60)
    later = table.assign(age=table.age + 3, session="2")
    cohort = Cohort(pd.concat([table.assign(session="1"), later]))
    split = uniform_age_split(cohort, 10)
    assert len(split.table) == 60 and split.digest == uniform_age_split(table, 10).digest
    assert split.meta["cohort_digest"] == cohort.digest


def test_a_table_as_found_needs_no_renaming() -> None:
    table = people(60)
    found = table.rename(columns={"subject_id": "participant_id", "age": "Age"})
    assert uniform_age_split(found, 10).digest == uniform_age_split(table, 10).digest


@pytest.mark.parametrize("group", [None, "family"])
def test_an_infeasible_plan_says_what_is_possible_and_that_works(group: str | None) -> None:
    table = people(100)
    with pytest.raises(InfeasibleError) as error:
        uniform_age_split(table, 30, folds=4, group=group)
    possible = int(str(error.value).split("n_validation at most ")[1].split()[0])
    n_folds = str(error.value).split("or at most ")[1].split()[0]
    assert len(uniform_age_split(table, possible, folds=4, group=group).subjects("validation")) == 4 * possible
    assert uniform_age_split(table, 30, folds=int(n_folds), group=group).n_folds == int(n_folds)
    if group is None:
        with pytest.raises(InfeasibleError):
            uniform_age_split(table, possible + 1, folds=4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_validation": 0}, "n_validation is 0"),
        ({"folds": 0}, "folds is 0"),
        ({"n_test": -1}, "n_test is -1"),
        ({"max_share_per_decade": 1.2}, "max_share_per_decade is 1.2"),
        ({"age_range": (80, 20)}, "age range 80:20 is empty"),
        ({"balance": ["sexx"]}, "did you mean 'sex'"),
        ({"group": "clan"}, "column 'clan' does not exist"),
    ],
)
def test_a_mistyped_option_is_named(options: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        uniform_age_split(people(100), **{"n_validation": 10, **options})


def test_people_of_one_age_cannot_be_split_uniformly() -> None:
    with pytest.raises(InfeasibleError, match="1 different ages"):
        uniform_age_split(pd.DataFrame({"subject_id": ["a", "b"], "age": [40, 40]}), 1)


def test_the_report_adds_up_and_is_json() -> None:
    table = people(300)
    split = uniform_age_split(table, 30, n_test=10, folds=2, group="family", balance="sex")
    report = json.loads(json.dumps(split.meta))["report"]
    counts = report["counts"]
    assert counts["train"] + counts["validation"] + counts["test"] + counts["left_out"] == counts["subjects"] == 300
    for name in ("train", "validation", "test", "left_out"):
        assert counts[name] == len(split.subjects(name))
    for row in report["decades"]:
        assert row["had"] == row["gave"] + row["left_out"] + row["kept"]
    assert sum(row["gave"] for row in report["decades"]) == 70
    assert [entry["set"] for entry in report["sets"]] == ["fold 0", "fold 1", "test"]
    assert report["sets"][1]["w1_years"] == pytest.approx(w1_of_set(split, fold=1))
    assert report["random_splits"]["best_w1_years"] > report["optimum_w1_years"]


def test_w1_is_the_mean_distance_from_the_midpoints() -> None:
    assert w1_years(np.array([30.0, 10.0]), 0.0, 40.0) == 0.0
    assert w1_years(np.array([0.0, 0.0]), 0.0, 40.0) == 20.0


@pytest.mark.parametrize("n", [2, 10, 50, 300, 301, 2000])
def test_the_kolmogorov_smirnov_test_agrees_with_scipy(n: int) -> None:
    ages = np.random.default_rng(n).uniform(20, 80, n) * 1.02
    distance, p = ks_uniform(ages, 20, 90)
    reference = kstest(ages, "uniform", args=(20, 70))
    assert distance == pytest.approx(reference.statistic)
    assert p == pytest.approx(reference.pvalue, abs=1e-9 if n <= 300 else 3e-3)


@pytest.mark.parametrize(("n_all", "n"), [(12, 4), (40, 4), (5, 5)])
def test_random_sets_have_no_repeats_and_miss_nobody(n_all: int, n: int) -> None:
    drawn = _random_sets(n_all, n, 20_000, np.random.default_rng(0))
    assert (np.diff(drawn, axis=1) > 0).all()
    often = np.bincount(drawn.ravel(), minlength=n_all) / 20_000
    assert np.abs(often - n / n_all).max() < 0.015


def test_ten_thousand_random_splits_are_measured_as_sets_are() -> None:
    ages = np.sort(people(80).age.to_numpy())
    values = random_w1(ages, 80, ages[0], ages[-1], np.random.default_rng(0))
    assert values.shape == (10_000,) and values == pytest.approx(w1_years(ages, ages[0], ages[-1]))


def test_a_hundred_thousand_subjects_need_a_bounded_amount_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    from neuroage.cohort import assignment

    rng = np.random.default_rng(0)
    table = pd.DataFrame({"subject_id": np.arange(100_000).astype(str), "age": rng.uniform(18, 95, 100_000)})
    sizes = []
    original = assignment._solve

    def counted(ages: np.ndarray, *rest: object) -> object:
        sizes.append(len(ages))
        return original(ages, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(assignment, "_solve", counted)
    split = uniform_age_split(table, 50)
    assert len(split.subjects("validation")) == 50
    assert sizes[0] < 8_000  # 50 targets x 100 neighbours, and the ends of 8 decades; never the whole cohort


def test_large_sets_are_drawn_less_often_so_that_the_work_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    ages = np.sort(np.random.default_rng(0).uniform(20, 80, 20_000))
    monkeypatch.setattr(uniformity, "MAX_DRAWN", 2_000_000)
    assert len(random_w1(ages, 200, 20.0, 80.0, np.random.default_rng(0))) == 10_000
    assert len(random_w1(ages, 800, 20.0, 80.0, np.random.default_rng(0))) == 2_500
    assert len(random_w1(ages, 3_000, 20.0, 80.0, np.random.default_rng(0))) == 1_000
