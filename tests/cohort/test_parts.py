from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from neuroage.cohort import Cohort, Split, stratified_age_split
from neuroage.cohort.parts import Part, all_parts, deal_parts
from neuroage.errors import InfeasibleError


def make_cohort(n=60, family=False):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "scan_id": [f"x{index}" for index in range(n)],
            "subject_id": [f"s{index:02d}" for index in range(n)],
            "session": "",
            "modality": "t1",
            "path": "",
            "age": rng.uniform(20, 80, n).round(1),
            "sex": "",
            "site": "",
        }
    )
    return Cohort(table.assign(family_id=[f"f{index // 3}" for index in range(n)]) if family else table)


def test_every_training_subject_is_in_one_part_and_nobody_else_is():
    cohort = make_cohort()
    split = stratified_age_split(cohort, n_validation=10, n_test=5, seed=1)
    dealt = deal_parts(split, cohort, 4)
    assert sorted(dealt) == split.subjects("train")
    sizes = np.bincount(list(dealt.values()))
    assert len(sizes) == 4 and np.ptp(sizes) <= 1
    assert all_parts(3) == [Part(0, 3), Part(1, 3), Part(2, 3)] and all_parts(1) == []


def test_parts_have_the_same_mix_of_ages():
    cohort = make_cohort(200)
    split = stratified_age_split(cohort, n_validation=20, seed=1)
    ages = cohort.subjects().set_index("subject_id")["age"]
    dealt = pd.Series(deal_parts(split, cohort, 5))
    by_part = ages.loc[dealt.index].groupby(dealt)
    assert by_part.mean().std() < 1.0
    assert by_part.quantile(0.9).std() < 2.0


def test_the_same_split_gives_the_same_parts_whatever_else_is_in_the_cohort():
    cohort = make_cohort()
    split = stratified_age_split(cohort, n_validation=10, seed=1)
    first = deal_parts(split, cohort, 3)
    few = cohort.select(subject_ids=split.subjects("train")[:20])
    changed = Cohort(cohort.table.assign(age=100 - cohort.table["age"]).sample(frac=1, random_state=0))
    assert deal_parts(split, few, 3) == deal_parts(split, changed, 3) == first
    other = stratified_age_split(cohort, n_validation=10, seed=2)
    shared = set(first) & set(deal_parts(other, cohort, 3))
    assert any(deal_parts(other, cohort, 3)[subject] != first[subject] for subject in shared)


def test_a_split_without_ages_takes_those_of_the_cohort():
    cohort = make_cohort()
    made = stratified_age_split(cohort, n_validation=10, seed=1)
    bare = Split(made.table.drop(columns="age"), made.meta)
    assert deal_parts(bare, cohort, 3) == deal_parts(made, cohort, 3)


def test_families_that_the_split_kept_together_stay_together():
    cohort = make_cohort(90, family=True)
    split = stratified_age_split(cohort, n_validation=15, group="family_id", seed=1)
    dealt = pd.Series(deal_parts(split, cohort, 4))
    family = cohort.table.set_index("subject_id")["family_id"].loc[dealt.index]
    assert (dealt.groupby(family).nunique() == 1).all()
    assert np.ptp(np.bincount(dealt)) <= 6


def test_more_parts_than_subjects_are_infeasible():
    cohort = make_cohort(12)
    split = stratified_age_split(cohort, n_validation=6, seed=1)
    with pytest.raises(InfeasibleError, match="7 parts"):
        deal_parts(split, cohort, 7)
