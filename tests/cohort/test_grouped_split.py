from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroage.cohort import Cohort, Split
from neuroage.cohort.grouped import grouped_split
from neuroage.cohort.parts import deal_parts
from neuroage.errors import DataError, InfeasibleError, RefusedError, UsageError

quickly = settings(max_examples=20, deadline=None)
cases = {"n": st.integers(60, 200), "seed": st.integers(0, 999), "folds": st.integers(1, 3)}


def pictures(n: int, seed: int = 0, classes: int = 6) -> pd.DataFrame:
    """Pictures of people who have several, some like those of others, of classes from common to rare."""
    rng = np.random.default_rng(seed)
    share = 2.0 ** -np.arange(classes)
    duplicate = rng.integers(0, n, n)
    return pd.DataFrame(
        {
            "scan_id": [f"x{k:04d}" for k in range(n)],
            "subject_id": [f"s{k}" for k in rng.integers(0, n // 2, n)],
            "duplicate_group": [f"d{k}" if k < n // 5 else "" for k in duplicate],
            "label": rng.choice([f"c{k}" for k in range(classes)], n, p=share / share.sum()),
        }
    )


def findings(n: int, seed: int = 0) -> pd.DataFrame:
    """Pictures with several labels, one of them rare, some unknown."""
    rng = np.random.default_rng(seed)
    table = pictures(n, seed).drop(columns=["label", "duplicate_group"])
    for name, share in (("Effusion", 0.2), ("Mass", 0.06), ("Hernia", 0.01)):
        table[f"label_{name}"] = np.where(rng.random(n) < 0.1, np.nan, rng.random(n) < share)
    return table


def sides(table: pd.DataFrame, split: Split) -> pd.Series:
    placed = split.table.set_index("subject_id")
    side = placed["set"] + placed["fold"].astype(str)
    return table["subject_id"].map(side)


@quickly
@given(**cases)
def test_no_person_and_no_group_is_on_two_sides(n: int, seed: int, folds: int) -> None:
    table = pictures(n, seed)
    split = grouped_split(table, folds=folds, validation=0.15, test=0.2, seed=seed)
    side = sides(table, split)
    assert side.notna().all() and set(split.table["set"]) == {"train", "validation", "test"}
    like = table[table["duplicate_group"] != ""]
    assert (side.groupby(like["duplicate_group"]).nunique() == 1).all()
    assert (
        split.table.assign(side=split.table.set + split.table.fold.astype(str)).groupby("group").side.nunique() == 1
    ).all()


@quickly
@given(**cases)
def test_every_class_is_trained_on_whatever_hangs_together(n: int, seed: int, folds: int) -> None:
    for table in (pictures(n, seed), findings(n, seed)):
        split = grouped_split(table, folds=folds, validation=0.15, test=0.2, seed=seed)
        assert all(row["train"] > 0 for row in split.meta["report"]["labels"])


@quickly
@given(**cases)
def test_a_class_of_k_groups_is_in_training_then_test_then_the_folds(n: int, seed: int, folds: int) -> None:
    table = pictures(n, seed).assign(subject_id=[f"s{k}" for k in range(n)], duplicate_group="")
    split = grouped_split(table, folds=folds, validation=0.15, test=0.2, seed=seed)
    order = ["train", "test", *(["validation"] if folds == 1 else [f"fold {k}" for k in range(folds)])]
    for row in split.meta["report"]["labels"]:
        assert [row[name] > 0 for name in order] == [k < row["groups"] for k in range(len(order))]


@quickly
@given(**cases, shuffle=st.integers(0, 99))
def test_the_order_of_the_rows_does_not_matter_and_the_seed_does(n: int, seed: int, folds: int, shuffle: int) -> None:
    table = pictures(n, seed)
    options = {"folds": folds, "validation": 0.15, "test": 0.2}
    first = grouped_split(table, seed=seed, **options)
    assert grouped_split(table.sample(frac=1, random_state=shuffle), seed=seed, **options).digest == first.digest
    if n > 100:
        assert grouped_split(table, seed=seed + 1, **options).digest != first.digest


@pytest.mark.parametrize("make", [pictures, findings])
@pytest.mark.parametrize("seed", range(3))
def test_every_set_has_the_same_labels_and_its_share_of_images(make: object, seed: int) -> None:
    split = grouped_split(make(3000, seed), seed=seed)  # type: ignore[operator]
    report = split.meta["report"]
    for entry, share in zip(report["sets"], (0.6, 0.15, 0.25), strict=True):
        assert entry["share"] == pytest.approx(share, abs=0.015)
        assert entry["imbalance"] < 0.01
    for row in report["labels"]:
        assert row["test"] == pytest.approx(0.25 * row["images"], abs=max(4, 0.06 * row["images"]))


def test_a_random_split_would_be_less_even() -> None:
    table = pictures(400, 1)
    reached = grouped_split(table).meta["report"]["sets"][2]["imbalance"]
    rng, whole, drawn = np.random.default_rng(0), table["label"].value_counts(normalize=True), []
    for _ in range(50):
        test = table[table["subject_id"].isin(rng.permutation(table["subject_id"].unique())[:50])]
        drawn.append((test["label"].value_counts(normalize=True).sub(whole, fill_value=0)).abs().sum() / 2)
    assert reached < min(drawn)


def test_what_cannot_be_in_every_set_is_listed() -> None:
    table = pictures(120).drop(columns="duplicate_group")
    odd = pd.DataFrame(
        {
            "scan_id": ["one", "two_a", "two_b"],
            "subject_id": ["lone", "pair_a", "pair_b"],
            "label": ["unique", "twice", "twice"],
        }
    )
    report = grouped_split(pd.concat([table, odd])).meta["report"]
    absent = {(entry["label"], entry["set"]) for entry in report["absent"]}
    assert {("unique", "validation"), ("unique", "test"), ("twice", "validation")} <= absent
    assert not any(entry[1] == "train" for entry in absent)
    assert any("test has no image of unique: nothing can be said" in line for line in report["advice"])
    json.dumps(report)


def test_cross_validation_tests_every_image_once_and_spreads_each_class() -> None:
    table = pictures(300)
    split = grouped_split(table, folds=5, validation=0.2, test=0)
    assert (split.table["set"] == "validation").all() and split.n_folds == 5
    assert len(split.subjects("train", fold=2)) + len(split.subjects("validation", fold=2)) == len(split.table)
    assert all(row[f"fold {k}"] > 0 for row in split.meta["report"]["labels"] for k in range(5) if row["images"] > 20)


def test_official_lists_are_kept_and_like_pictures_are_left_out() -> None:
    table = pictures(300, 2).assign(duplicate_group="")
    in_test = table["subject_id"].isin(table["subject_id"].unique()[:40])
    table["official_set"] = np.where(in_test, "test", "train")
    trained = table.loc[~in_test, "scan_id"].iloc[0]
    tested = table.loc[in_test, "scan_id"].iloc[0]
    table.loc[table["scan_id"].isin([trained, tested]), "duplicate_group"] = "twins"
    split = grouped_split(table, "official", validation=0.2)
    assert set(split.subjects("test")) == set(table.loc[in_test, "subject_id"])
    left_out = split.table[split.table["set"] == "left_out"]
    assert left_out["subject_id"].tolist() == table.loc[table["scan_id"] == trained, "subject_id"].tolist()
    assert left_out["reason"].tolist() == ["like a picture of the official test set"]
    entries = {entry["set"]: entry["images"] for entry in split.meta["report"]["sets"]}
    assert entries["validation"] == pytest.approx(0.2 * (entries["validation"] + entries["train"]), abs=6)


def test_official_lists_that_leak_are_refused() -> None:
    table = pictures(60).assign(official_set=["train", "test"] * 30)
    with pytest.raises(RefusedError, match="on two sides of the official lists"):
        grouped_split(table, "official")
    with pytest.raises(UsageError, match="official_set"):
        grouped_split(pictures(60), "official")
    with pytest.raises(InfeasibleError, match="no test image"):
        grouped_split(pictures(60).assign(official_set="train"), "official")


def test_official_validation_is_used_as_it_is() -> None:
    table = pictures(90).drop(columns="duplicate_group").assign(subject_id=[f"s{k}" for k in range(90)])
    table["official_set"] = np.repeat(["train", "valid", "test"], 30)
    split = grouped_split(table, "official")
    assert sorted(split.subjects("validation")) == sorted(table["subject_id"][30:60])
    with pytest.raises(UsageError, match="name one validation set"):
        grouped_split(table, "official", folds=2)


def test_images_without_labels_and_ages_only() -> None:
    table = pictures(100).assign(subject_id=[f"s{k}" for k in range(100)])
    table.loc[:9, "label"] = ""
    split = grouped_split(table)
    assert split.table.loc[split.table["set"] == "left_out", "reason"].tolist() == ["no label"] * 10
    ages = table[["scan_id", "subject_id"]].assign(age=np.linspace(20, 80, 100))
    split = grouped_split(ages)
    assert abs(split.table.groupby("set")["age"].mean().sub(50)).max() < 3
    with pytest.raises(UsageError, match="neither labels nor ages"):
        grouped_split(table[["scan_id", "subject_id"]])
    by_sex = grouped_split(table.assign(sex=["F", "M"] * 50), stratify="sex")
    assert {row["label"] for row in by_sex.meta["report"]["labels"]} == {"F", "M"}


def test_further_columns_bind_groups() -> None:
    table = pictures(200)
    table["hospital_visit"] = ["v" + name[1:-1] for name in table["subject_id"]]
    split = grouped_split(table, groups=["hospital_visit"])
    assert (sides(table, split).groupby(table["hospital_visit"]).nunique() == 1).all()
    with pytest.raises(UsageError, match="hospital"):
        grouped_split(table, groups=["hospital_vist"])


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="leave nothing to train on"):
        grouped_split(pictures(60), validation=0.5, test=0.5)
    with pytest.raises(UsageError, match="a share of the images"):
        grouped_split(pictures(60), validation=12)
    with pytest.raises(InfeasibleError, match="1 groups of images for 3 sets"):
        grouped_split(pictures(60).assign(duplicate_group="all"))
    with pytest.raises(UsageError, match="official"):
        grouped_split(pictures(60), "offical")


def test_groups_survive_saving_and_old_splits_stay_as_they_were(tmp_path: Path) -> None:
    split = grouped_split(pictures(60))
    split.save(tmp_path / "split.csv")
    loaded = Split.load(tmp_path / "split.csv")
    assert loaded.table.equals(split.table) and loaded.digest == split.digest and "edited" not in loaded.meta
    old = Split(split.table.drop(columns="group"))
    assert "group" not in old.table.columns and old.digest != split.digest
    assert old.groups().tolist() == old.table["subject_id"].tolist()
    known = Split(pd.DataFrame({"subject_id": ["a", "b"], "set": ["train", "test"]}))
    assert known.digest == "e8a83f2ac04a542f0ee1e92b8583cde8932470f4307fe8ba24c76ca9d9c4288a"


def test_a_group_on_two_sides_is_refused() -> None:
    rows = {"subject_id": ["a", "b", "c"], "set": ["train", "test", "left_out"], "group": ["g", "g", "g"]}
    with pytest.raises(DataError, match="group 'g': is on two sides"):
        Split(pd.DataFrame(rows))
    beside = pd.DataFrame({**rows, "set": ["train", "left_out", "left_out"], "group": ["g", "g", ""]})
    assert Split(beside).groups().tolist() == ["g", "g", "c"]


def test_parts_of_labelled_images_keep_groups_and_labels() -> None:
    cohort = Cohort(pictures(400))
    split = grouped_split(cohort)
    dealt = pd.Series(deal_parts(split, cohort, 4))
    assert sorted(dealt.index) == split.subjects("train")
    assert (dealt.groupby(split.groups().loc[dealt.index]).nunique() == 1).all()
    assert deal_parts(split, Cohort(cohort.table.sample(frac=1, random_state=1)), 4) == dealt.to_dict()
    trained = cohort.table[cohort.table["subject_id"].isin(dealt.index)]
    counts = trained.groupby([trained["subject_id"].map(dealt), "label"]).size().unstack(fill_value=0)
    assert np.ptp(counts.sum(axis=1)) <= 0.1 * len(trained) and (counts["c0"] / counts.sum(axis=1)).std() < 0.05


def test_parts_of_images_without_ages_need_no_group_column() -> None:
    cohort = Cohort(pictures(100))
    split = grouped_split(cohort)
    bare = Split(split.table.drop(columns="group"))
    dealt = deal_parts(bare, cohort, 3)
    assert sorted(dealt) == split.subjects("train") and set(dealt.values()) == {0, 1, 2}
    with pytest.raises(InfeasibleError, match="parts"):
        deal_parts(split, cohort, 500)
