from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neuroage.cohort import Cohort, Scan
from neuroage.errors import DataError, UsageError


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    rows = [
        ("s2", "ses-1", "t1", tmp_path / "images" / "a.nii.gz", 31.25, "F", "north", "k1", 3.0),
        ("s1", "ses-10", "t1", tmp_path / "images" / "b.nii.gz", 62.0, "M", "south", "k2", 1.5),
        ("s1", "ses-2", "tof", tmp_path / "images" / "c.nii.gz", 60.0, "M", "south", "k2", 2.5),
        ("s3", "", "t1", "", np.nan, "", "", "k1", np.nan),
    ]
    columns = ["subject_id", "session", "modality", "path", "age", "sex", "site", "family", "score"]
    return Cohort(pd.DataFrame([[str(c) if isinstance(c, Path) else c for c in row] for row in rows], columns=columns))


def test_a_table_survives_writing_and_reading(cohort: Cohort, tmp_path: Path) -> None:
    for name in ("cohort.csv", "deep/er/cohort.tsv"):
        cohort.to_csv(tmp_path / name)
        again = Cohort.from_csv(tmp_path / name)
        pd.testing.assert_frame_equal(again.table, cohort.table)
        assert again.digest == cohort.digest


def test_paths_in_the_file_are_relative_to_it(cohort: Cohort, tmp_path: Path) -> None:
    cohort.to_csv(tmp_path / "tables" / "cohort.csv")
    written = pd.read_csv(tmp_path / "tables" / "cohort.csv", keep_default_na=False)
    assert written.path.tolist() == ["../images/a.nii.gz", "../images/b.nii.gz", "../images/c.nii.gz", ""]
    assert cohort.table.path[0] == str(tmp_path / "images" / "a.nii.gz")


def test_the_digest_ignores_order_and_place_but_not_content(cohort: Cohort) -> None:
    table = cohort.table
    assert Cohort(table.iloc[::-1][list(table.columns[::-1])]).digest == cohort.digest
    assert Cohort(table.assign(path=table.path.str.replace("images", "moved"))).digest == cohort.digest
    assert Cohort(table.assign(age=table.age + 1)).digest != cohort.digest
    assert Cohort(table.assign(score=table.score + 1)).digest != cohort.digest


def test_one_row_per_subject_takes_the_age_of_the_first_session(cohort: Cohort) -> None:
    subjects = cohort.subjects().set_index("subject_id")
    assert subjects.index.tolist() == ["s1", "s2", "s3"]
    assert subjects.age["s1"] == 60.0  # ses-2 comes before ses-10
    assert subjects.n_scans.tolist() == [2, 1, 1]
    assert subjects.family.tolist() == ["k2", "k1", "k1"]
    assert "score" not in subjects.columns  # it differs between the sessions of s1


def test_a_first_session_without_age_does_not_hide_the_second() -> None:
    table = pd.DataFrame({"subject_id": ["a", "a"], "session": ["1", "2"], "age": [np.nan, 44.0]})
    assert Cohort(table).subjects().age.tolist() == [44.0]


def test_select_keeps_what_meets_every_condition(cohort: Cohort) -> None:
    assert cohort.select(modality="MRA").table.subject_id.tolist() == ["s1"]
    assert cohort.select(modality="T1w", subject_ids=["s1", "s9"]).table.scan_id.tolist() == ["s1_ses-10_t1"]
    assert len(cohort.select(scan_ids=[])) == 0
    with pytest.raises(UsageError, match="'t1', 'tof'"):
        cohort.select(modality="flair")


def test_scans_carry_every_column(cohort: Cohort) -> None:
    scan = cohort.scans()[0]
    assert isinstance(scan, Scan) and scan.path is not None and scan.path.name == "a.nii.gz"
    assert (scan.subject_id, scan.modality, scan.age, scan.extra) == ("s2", "t1", 31.25, {"family": "k1", "score": 3.0})
    assert cohort.scans()[3].path is None


def test_scan_ids_are_made_and_unique() -> None:
    table = pd.DataFrame({"subject_id": ["a", "a", "a_run-2"], "modality": "t1"})
    assert Cohort(table).table.scan_id.tolist() == ["a_t1", "a_t1_run-2", "a_run-2_t1"]


def test_every_bad_row_of_our_table_is_in_one_error(tmp_path: Path) -> None:
    path = write(tmp_path / "c.csv", "scan_id,subject_id,age", "1,a,33", "2,b,-1", "3,,50", "4,d,411", "5,e,old")
    with pytest.raises(DataError) as error:
        Cohort.from_csv(path)
    for line, value in ((3, "-1"), (4, "no subject id"), (5, "411"), (6, "old")):
        assert f"line {line}: " in str(error.value) and value in str(error.value)
    assert "line 2:" not in str(error.value)


def test_a_scan_named_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "c.csv", "scan_id,subject_id,age", "x,a,33", "y,b,40", "x,c,50")
    with pytest.raises(DataError, match=r"line 2: scan_id 'x'(.|\n)*line 4: scan_id 'x'"):
        Cohort.from_csv(path)


def test_a_table_with_other_column_names_points_to_index(tmp_path: Path) -> None:
    path = write(tmp_path / "participants.tsv", "participant_id\tAge", "a\t33")
    with pytest.raises(DataError, match="neuroage index"):
        Cohort.from_csv(path)
    assert Cohort.read(path).table.age.tolist() == [33.0]


def test_a_hand_written_table_needs_only_subject_and_age(tmp_path: Path) -> None:
    path = write(tmp_path / "c.csv", "subject_id,age,path", "007,33,img/x_T1w.nii.gz", "008,n/a,y_angio.nii.gz")
    cohort = Cohort.from_csv(path)
    assert cohort.table.subject_id.tolist() == ["007", "008"]
    assert cohort.table.modality.tolist() == ["t1", "tof"]
    assert cohort.table.path[0] == str(tmp_path / "img" / "x_T1w.nii.gz")


def test_ids_with_leading_zeros_stay_text_in_every_column(tmp_path: Path) -> None:
    path = write(tmp_path / "c.csv", "subject_id,age,code,score", "01,33,001,2", "02,34,002,3.5")
    cohort = Cohort.from_csv(path)
    assert cohort.table.code.tolist() == ["001", "002"]
    assert cohort.table.score.tolist() == [2.0, 3.5]


def test_no_such_table_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        Cohort.from_csv(tmp_path / "nowhere.csv")


def test_a_dataframe_with_a_wrong_age_is_refused() -> None:
    with pytest.raises(DataError, match="row 1: age '411'"):
        Cohort(pd.DataFrame({"subject_id": ["a", "b"], "age": [40, 411]}))


def test_a_dataframe_with_ages_as_text_is_read() -> None:
    table = Cohort(pd.DataFrame({"subject_id": ["a", "b", "c"], "age": ["42,5", "90+", "n/a"]})).table
    assert table.age.tolist()[:2] == [42.5, 90.0] and np.isnan(table.age[2])


def test_a_failed_writing_leaves_the_old_table(cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cohort.csv"
    cohort.to_csv(path)
    before = path.read_bytes()

    def fail(self: pd.DataFrame, target: Path, **_: object) -> None:
        Path(target).write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(pd.DataFrame, "to_csv", fail)
    with pytest.raises(OSError, match="disk full"):
        cohort.to_csv(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["cohort.csv"]


def test_a_sample_is_seeded_and_keeps_the_order() -> None:
    cohort = Cohort(pd.DataFrame({"subject_id": [f"s{k:02d}" for k in range(50)]}))
    drawn = cohort.sample(10, seed=3).table.subject_id.tolist()
    assert drawn == cohort.sample(10, seed=3).table.subject_id.tolist() == sorted(set(drawn))
    assert len(drawn) == 10 and drawn != cohort.sample(10, seed=4).table.subject_id.tolist()
    assert cohort.sample(50).digest == cohort.digest


@pytest.mark.parametrize("n", [0, 3])
def test_a_sample_larger_than_the_cohort_is_refused(n: int) -> None:
    with pytest.raises(UsageError, match="expected 1 to 2"):
        Cohort(pd.DataFrame({"subject_id": ["a", "b"]})).sample(n)


def test_a_cohort_that_names_no_modality_is_not_filtered_by_one() -> None:
    table = pd.DataFrame({"subject_id": ["a", "b"]})
    assert len(Cohort(table).select(modality="xray")) == 2
    with pytest.raises(UsageError, match="no scan of modality"):
        Cohort(table.assign(modality=["t1", ""])).select(modality="xray")


def test_labels_are_named_without_their_prefix() -> None:
    table = pd.DataFrame(
        {"subject_id": ["a"], "label_Edema": [1], "label": "x", "labels": "y", "label_Pleural fluid": [0]}
    )
    assert Cohort(table).labels == ["Edema", "Pleural fluid"]


def test_the_digest_of_a_table_without_labels_stays_what_it_was() -> None:
    table = pd.DataFrame(
        {"subject_id": ["a", "b"], "modality": "t1", "age": [30.5, np.nan], "site": ["x", ""], "CDR": [0.5, 1]}
    )
    assert Cohort(table).digest.startswith("60e843d112f6b8a6")
