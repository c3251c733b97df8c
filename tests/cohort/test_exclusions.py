"""Exclusions: what a table of unwanted scans takes out of a cohort, and what is said about it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from neuroage.cohort import Cohort
from neuroage.cohort.exclusions import count_reasons, read_exclusions
from neuroage.errors import DataError, UsageError


@pytest.fixture
def small() -> Cohort:
    return Cohort(pd.DataFrame({"scan_id": ["a", "b", "c", "007"], "subject_id": ["s", "s", "t", "u"], "age": 40.0}))


def write(folder: Path, text: str) -> Path:
    path = folder / "exclude.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_named_scans_are_left_out_and_counted_by_reason(small: Cohort, tmp_path: Path) -> None:
    kept = small.exclude(write(tmp_path, "scan_id,reason\nc,blurred\na,blurred\n007,\n"))
    assert kept.table["scan_id"].tolist() == ["b"]
    assert [str(problem) for problem in kept.problems] == [
        "exclude.csv: 3 scans excluded (2 blurred, 1 no reason given)"
    ]
    assert len(small) == 4, "the cohort that was asked stays as it is"


def test_ids_that_are_not_in_the_cohort_are_told_once_and_ignored(small: Cohort, tmp_path: Path) -> None:
    kept = small.exclude(write(tmp_path, "scan_id\nx\ny\nb\nx\n"))
    assert kept.table["scan_id"].tolist() == ["a", "c", "007"]
    assert [problem.what for problem in kept.problems] == ["1 scan excluded", "2 ids are not in the cohort: x, y"]


def test_an_empty_table_excludes_nothing_and_says_so(small: Cohort, tmp_path: Path) -> None:
    kept = small.exclude(write(tmp_path, "scan_id,reason\n"))
    assert len(kept) == len(small)
    assert str(kept.problems[-1]) == "exclude.csv: no scan excluded"


def test_a_table_without_scan_id_is_refused_in_one_sentence(small: Cohort, tmp_path: Path) -> None:
    path = write(tmp_path, "subject,reason\na,blurred\n")
    with pytest.raises(DataError, match=r"exclude\.csv has no column scan_id \(it has subject, reason\)"):
        small.exclude(path)
    with pytest.raises(UsageError, match="no table"):
        small.exclude(tmp_path / "missing.csv")


def test_a_table_may_not_take_every_scan(small: Cohort, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="excludes all 4 scans"):
        small.exclude(write(tmp_path, "scan_id\na\nb\nc\n007\n"))


def test_headings_cells_and_separators_are_read_as_people_write_them(tmp_path: Path) -> None:
    assert read_exclusions(write(tmp_path, 'Scan_ID;Reason\n a ;"cut; off"\n007;\na;again\n')) == {
        "a": "cut; off",
        "007": "",
    }
    assert read_exclusions(write(tmp_path, "reason,scan_id\n,a\nlate,a\n")) == {"a": "late"}


def test_reasons_are_counted_the_most_frequent_first() -> None:
    assert count_reasons({"a": "x", "b": "y", "c": "y"}) == "2 y, 1 x"
