from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from neuroage.cohort import Split
from neuroage.errors import DataError, UsageError


@pytest.fixture
def split() -> Split:
    table = pd.DataFrame(
        {
            "subject_id": ["001", "b", "c", "d", "e", "f"],
            "set": ["train", "validation", "validation", "test", "left_out", "train"],
            "fold": [-1, 0, 1, -1, -1, -1],
            "reason": ["", "", "", "", "no age", ""],
            "age": [30.0, 41.5, 52.0, 63.0, float("nan"), 25.0],
        }
    )
    return Split(table, {"method": "by hand", "seed": 3, "report": {"w1": 0.5}})


def test_a_fold_is_validation_and_the_other_folds_train(split: Split) -> None:
    assert split.n_folds == 2
    assert split.sets(0).to_dict() == {
        "001": "train", "b": "validation", "c": "train", "d": "test", "e": "left_out", "f": "train",
    }  # fmt: skip
    assert split.subjects("train", fold=1) == ["001", "b", "f"]
    assert split.subjects("validation", fold=1) == ["c"]
    assert split.subjects("validation") == ["b", "c"] and split.subjects("train") == ["001", "f"]


@pytest.mark.parametrize("name", ["split.csv", "deep/er/split.tsv"])
def test_a_split_survives_saving_and_loading(split: Split, tmp_path: Path, name: str) -> None:
    split.save(tmp_path / name)
    again = Split.load(tmp_path / name)
    pd.testing.assert_frame_equal(again.table, split.table)
    assert again.meta == split.meta and again.digest == split.digest


def test_the_digest_ignores_the_order_of_rows_but_not_a_set(split: Split) -> None:
    assert Split(split.table.iloc[::-1]).digest == split.digest
    moved = split.table.assign(set=["validation", *split.table.set[1:]], fold=[0, *split.table.fold[1:]])
    assert Split(moved).digest != split.digest


def test_a_table_edited_by_hand_is_accepted_and_says_so(split: Split, tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    split.save(path)
    path.write_text(path.read_text(encoding="utf-8").replace("d,test", "d,train"))
    again = Split.load(path)
    assert again.subjects("test") == [] and "edited by hand" in again.meta["edited"]
    path.with_suffix(".json").unlink()
    assert "no split.json" in Split.load(path).meta["edited"]


def test_a_short_table_by_hand_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_text("subject_id,set\n001,train\n002,validation\nNA,train\n")
    split = Split.load(path)
    assert split.subjects("train") == ["001", "NA"] and split.subjects("validation", 0) == ["002"]


def test_every_wrong_row_is_in_one_error() -> None:
    table = pd.DataFrame(
        {"subject_id": ["a", "a", "b", "c", "d"], "set": ["train", "test", "trian", "validation", "train"],
         "fold": [-1, -1, -1, 1, 0]}
    )  # fmt: skip
    with pytest.raises(DataError) as error:
        Split(table)
    for words in ("line 3: subject 'a'", "line 4: set 'trian'", "line 6: a train subject with fold 0"):
        assert words in str(error.value)


def test_a_missing_fold_number_is_refused() -> None:
    with pytest.raises(DataError, match="fold 0 has no subject"):
        Split(pd.DataFrame({"subject_id": ["a", "b"], "set": ["train", "validation"], "fold": [-1, 1]}))


def test_unknown_sets_folds_and_files_are_named(split: Split, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'validation'"):
        split.subjects("validaton")
    with pytest.raises(UsageError, match="no fold 2"):
        split.sets(2)
    with pytest.raises(UsageError, match="neuroage split"):
        Split.load(tmp_path / "none.csv")
    (tmp_path / "other.csv").write_text("id,group\na,1\n")
    with pytest.raises(DataError, match="'subject_id' and 'set'"):
        Split.load(tmp_path / "other.csv")
