from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroage.cohort import stratified_age_split
from neuroage.errors import InfeasibleError, UsageError


def people(n: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "subject_id": [f"s{k:04d}" for k in range(n)],
            "age": np.round(np.clip(rng.gamma(6, 7, n) + 10, 18, 90), 1),
            "sex": rng.choice(["F", "M"], n, p=[0.3, 0.7]),
            "family": [f"f{k}" for k in rng.integers(0, max(n // 2, 1), n)],
        }
    )


quickly = settings(max_examples=20, deadline=None)
numbers = {
    "n": st.integers(40, 120),
    "seed": st.integers(0, 999),
    "folds": st.integers(1, 3),
    "n_test": st.integers(0, 6),
}


@quickly
@given(**numbers)
def test_every_set_gets_exactly_its_number(n: int, seed: int, folds: int, n_test: int) -> None:
    split = stratified_age_split(people(n, seed), n_validation=8, n_test=n_test, folds=folds, seed=seed)
    assert split.table.fold[split.table.set == "validation"].value_counts().tolist() == [8] * folds
    assert len(split.subjects("test")) == n_test
    assert len(split.subjects("train")) == n - 8 * folds - n_test


@quickly
@given(**numbers)
def test_no_family_is_on_two_sides_and_none_is_left_out(n: int, seed: int, folds: int, n_test: int) -> None:
    table = people(n, seed)
    split = stratified_age_split(table, n_validation=8, n_test=n_test, folds=folds, group="family", seed=seed)
    rows = split.table.merge(table[["subject_id", "family"]])
    assert (rows.assign(side=rows.set + rows.fold.astype(str)).groupby("family").side.nunique() == 1).all()
    assert "left_out" not in set(rows.set) and len(rows) == n


@quickly
@given(**numbers, shuffle=st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(n: int, seed: int, folds: int, n_test: int, shuffle: object) -> None:
    table = people(n, seed)
    order = list(range(n))
    shuffle.shuffle(order)  # type: ignore[attr-defined]
    options = {"n_validation": 8, "n_test": n_test, "folds": folds, "group": "family", "balance": ["sex"], "seed": seed}
    assert stratified_age_split(table, **options).digest == stratified_age_split(table.iloc[order], **options).digest


@pytest.mark.parametrize("seed", range(5))
def test_both_sides_have_the_same_mix_of_ages(seed: int) -> None:
    table = people(300, seed)
    split = stratified_age_split(table, 60, seed=seed)
    distance = split.meta["report"]["sets"][0]["ks_distance_from_train"]
    assert distance < 0.05  # two random sets of 60 and 240 differ by 0.12 in the median


def test_seeds_differ() -> None:
    table = people(200)
    sets = [set(stratified_age_split(table, 40, seed=seed).subjects("validation")) for seed in (0, 1)]
    assert len(sets[0] & sets[1]) < 25


def test_balance_deals_within_each_sex() -> None:
    table = people(200)
    split = stratified_age_split(table, 40, balance=["sex"])
    share = table.sex[table.subject_id.isin(split.subjects("validation"))].eq("F").mean()
    assert share == pytest.approx(table.sex.eq("F").mean(), abs=0.03)


def test_cross_validation_tests_everybody_once() -> None:
    split = stratified_age_split(people(50), n_validation=10, folds=5)
    assert len(split.subjects("validation")) == 50 and len(split.subjects("train", fold=2)) == 40


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InfeasibleError, match="leave none of 50"):
        stratified_age_split(people(50), n_validation=50)
    with pytest.raises(UsageError, match="whole number"):
        stratified_age_split(people(50), n_validation=1.5)
    with pytest.raises(UsageError, match="is 0 of 50"):
        stratified_age_split(people(50), n_validation=0.001)
