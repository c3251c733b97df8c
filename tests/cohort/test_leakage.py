from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neuroage.cohort import Cohort, read_split
from neuroage.cohort.leakage import measure_leakage
from neuroage.errors import DataError, RefusedError


def people(n_subjects: int, n_images: int) -> Cohort:
    names = [f"s{s}" for s in range(n_subjects) for _ in range(n_images)]
    ids = [f"s{s}-{k}" for s in range(n_subjects) for k in range(n_images)]
    return Cohort(
        pd.DataFrame({"subject_id": names, "scan_id": ids, "path": [f"/x/{i}.png" for i in ids], "label": "a"})
    )


def test_a_split_by_subjects_shares_nothing() -> None:
    cohort = people(6, 2)
    sets = {
        scan: "test" if subject < "s3" else "train"
        for scan, subject in zip(cohort.table.scan_id, cohort.table.subject_id, strict=True)
    }
    leakage = measure_leakage(cohort, sets)
    assert not leakage.leaks and leakage.words == "No subject is in two sets (12 images)."
    assert [overlap.share for overlap in leakage.overlaps] == [0.0]


def test_the_share_is_of_the_tested_images() -> None:
    cohort = people(4, 3)
    sets = dict.fromkeys(cohort.table.scan_id, "train")
    sets |= {"s0-0": "test", "s1-0": "test", "s1-1": "test", "s2-0": "val", "s2-1": "val", "s2-2": "val"}
    leakage = measure_leakage(cohort, sets)
    test, validation, between = leakage.overlaps
    assert (test.tested, test.known, test.n_images, test.n_images_by_subject, test.n_subjects) == (
        "test",
        "train",
        3,
        3,
        2,
    )
    assert (validation.tested, validation.share, between.known, between.share) == ("validation", 0.0, "validation", 0.0)
    assert leakage.words == "100% of test images belong to subjects that are in training too (3 of 3, 2 subjects)."


def test_a_random_split_of_images_leaks_all_but_the_subjects_that_are_wholly_tested() -> None:
    cohort = people(2000, 3)
    tested = np.random.default_rng(0).random((2000, 3)) < 0.2
    sets = dict(zip(cohort.table.scan_id, np.where(tested.ravel(), "test", "train"), strict=True))
    (overlap,) = measure_leakage(cohort, sets).overlaps
    assert overlap.n_images_by_subject == tested.sum() - 3 * tested.all(axis=1).sum() and overlap.share > 0.9


def test_duplicates_across_sets_are_counted_beside_subjects() -> None:
    cohort = people(4, 1)
    sets = {"s0-0": "train", "s1-0": "train", "s2-0": "test", "s3-0": "test"}
    (unlooked,) = measure_leakage(cohort, sets).overlaps
    assert unlooked.n_images_by_duplicate is None and not unlooked.share
    copies = Cohort(cohort.table.assign(duplicate_group=["g1", "", "g1", ""]))
    leakage = measure_leakage(copies, sets)
    assert leakage.leaks and leakage.overlaps[0].share == 0.5 and leakage.overlaps[0].share_by_subject == 0
    assert leakage.words == "50% of test images have a duplicate in training (1 of 2)."


@pytest.mark.parametrize("column", ["scan_id", "Image Index", "filename"])
def test_tables_name_images_by_id_or_file(column: str) -> None:
    cohort = people(2, 2)
    names = cohort.table.scan_id if column == "scan_id" else "images/" + cohort.table.scan_id + ".png"
    table = pd.DataFrame({column: names, "split": ["Training", "testing", "train", "left_out"]})
    leakage = measure_leakage(cohort, pd.concat([table, pd.DataFrame({column: ["z"], "split": ["test"]})]))
    assert leakage.overlaps[0].n_images_by_subject == 1 and leakage.n_placed == 4 and leakage.n_strangers == 1


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        ({"s0-0": "trian"}, "did you mean 'train'"),
        ({"q": "train"}, "none of the 1 names"),
        ({"s0-0": "train", "s0-0.png": "test"}, "in the sets train and test"),
        (pd.DataFrame({"subject_id": ["s0"], "set": ["train"]}), "expected scan_id or a file name"),
    ],
)
def test_what_cannot_be_measured_says_why(sets: dict[str, str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        measure_leakage(people(2, 2), sets)


def test_a_split_file_of_images_that_tears_subjects_apart_is_refused_with_the_figure(tmp_path: Path) -> None:
    rows = "".join(f"s{s}-{k}.png,{'test' if k == 0 and s < 3 else 'train'}\n" for s in range(4) for k in range(2))
    path = tmp_path / "images.csv"
    path.write_text("image,set\n" + rows)
    with pytest.raises(RefusedError, match=r"100% of test images belong to subjects that are in training too .*3 of 4"):
        read_split(path, people(4, 2))


def test_a_split_file_of_subjects_on_two_sides_is_refused_without_a_figure(tmp_path: Path) -> None:
    path = tmp_path / "subjects.csv"
    path.write_text("subject_id,set\ns0,train\ns0,test\ns1,train\n")
    with pytest.raises(RefusedError, match="1 of 2 subjects on two sides: s0") as error:
        read_split(path, people(2, 2))
    assert "%" not in str(error.value)


def test_folds_of_images_that_tear_subjects_apart_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "folds.csv"
    path.write_text("image,fold\ns0-0,0\ns0-1,1\ns1-0,0\ns1-1,0\n")
    with pytest.raises(RefusedError, match="1 of 2 subjects on two sides: s0"):
        read_split(path, people(2, 2))


@pytest.mark.parametrize("blank", ["", "n/a", None])
@pytest.mark.parametrize("name", ["like-a", 7])
def test_images_without_a_duplicate_group_are_no_copies_of_each_other(blank: object, name: object) -> None:
    table = pd.DataFrame({"scan_id": list("abcd"), "subject_id": list("abcd")})
    cohort = Cohort(table.assign(duplicate_group=[name, name, blank, blank]))
    apart, torn = {"a": "train", "b": "train"}, {"a": "train", "b": "test"}
    assert not measure_leakage(cohort, {**apart, "c": "train", "d": "test"}).leaks
    assert measure_leakage(cohort, {**torn, "c": "train", "d": "test"}).overlaps[0].n_images_by_duplicate == 1
