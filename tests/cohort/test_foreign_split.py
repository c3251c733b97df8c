from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from neuroage.cohort import Cohort, read_split
from neuroage.errors import DataError, RefusedError, UsageError


@pytest.fixture
def cohort() -> Cohort:
    table = pd.DataFrame(
        {
            "subject_id": ["sub-1", "sub-1", "sub-2", "sub-3", "sub-4"],
            "session": ["a", "b", "", "", ""],
            "path": [f"/data/scan{k}_T1w.nii.gz" for k in range(5)],
            "age": [30.0, 31.0, 40.0, 50.0, 60.0],
        }
    )
    return Cohort(table)


def sets(split: object) -> dict[str, tuple[str, int]]:
    table = split.table  # type: ignore[attr-defined]
    return {row.subject_id: (row.set, int(row.fold)) for row in table.itertuples()}


EXPECTED = {"sub-1": ("train", -1), "sub-2": ("validation", 0), "sub-3": ("test", -1), "sub-4": ("left_out", -1)}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "participant_id,split\nsub-1,training\nsub-2,val\nsub-3,TEST\n"),
        ("a.tsv", "subject\tsubset\n1\tTrain\n2\tdev\n3\ttesting\n"),
        (
            "a.csv",
            "filename,set\nscan0_T1w.nii.gz,train\nx/scan1_T1w,train\n/data/scan2_T1w.nii.gz,valid\nscan3_T1w,test\n",
        ),
        ("a.json", json.dumps({"train": ["sub-1"], "val": ["sub-2"], "test": ["sub-3"]})),
        ("a.json", json.dumps({"sub-1": "train", "sub-2": "validation", "sub-3": "test"})),
        ("a.json", json.dumps([{"id": "1", "split": "tr"}, {"id": "2", "split": "val"}, {"id": "3", "split": "ts"}])),
    ],
)
def test_usual_spellings_are_read(name: str, text: str, cohort: Cohort, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    split = read_split(tmp_path / name, cohort)
    assert sets(split) == EXPECTED
    assert split.table.set_index("subject_id").reason["sub-4"] == "not in the split file"
    assert split.meta["method"] == "foreign" and split.meta["cohort_digest"] == cohort.digest


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("f.csv", "subject,fold\nsub-1,0\nsub-2,1\nsub-3,1\nsub-4,0\n"),
        ("f.json", json.dumps([{"train": ["sub-2", "sub-3"], "val": ["sub-1", "sub-4"]},
                               {"train": ["sub-1", "sub-4"], "val": ["sub-2", "sub-3"]}])),
    ],
)  # fmt: skip
def test_folds_are_read(name: str, text: str, cohort: Cohort, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    split = read_split(tmp_path / name, cohort)
    assert split.n_folds == 2 and split.subjects("validation", 1) == ["sub-2", "sub-3"]
    assert split.subjects("train", 1) == ["sub-1", "sub-4"]


def test_a_split_by_scans_that_leaks_is_refused_with_names(cohort: Cohort, tmp_path: Path) -> None:
    (tmp_path / "leak.csv").write_text("scan_id,set\nsub-1_a,train\nsub-1_b,test\nsub-2,train\n")
    with pytest.raises(RefusedError, match="1 of 2 subjects on two sides: sub-1"):
        read_split(tmp_path / "leak.csv", cohort)


def test_folds_of_json_that_validate_a_subject_twice_are_refused(cohort: Cohort, tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text(
        json.dumps([{"train": ["sub-2"], "val": ["sub-1"]}, {"train": [], "val": ["sub-1"]}])
    )
    with pytest.raises(RefusedError, match="sub-1"):
        read_split(tmp_path / "f.json", cohort)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "subject,group\nsub-1,train\n", "is no split"),
        ("a.csv", "subject,set\nsub-1,trian\n", "line 2: set 'trian'.*did you mean 'train'"),
        ("a.csv", "subject,set\nx,train\ny,test\n", "names no subject .*2 ids, for example x, y"),
        ("a.json", "{", "is no JSON"),
        ("a.json", "[1, 2]", "holds no split"),
    ],
)
def test_what_is_no_split_says_why(name: str, text: str, words: str, cohort: Cohort, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=words):
        read_split(tmp_path / name, cohort)


def test_a_missing_file_is_a_usage_error(cohort: Cohort, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        read_split(tmp_path / "no.csv", cohort)
