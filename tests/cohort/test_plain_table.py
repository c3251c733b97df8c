from __future__ import annotations

from pathlib import Path

import pytest

from neuroage.cohort import Cohort
from neuroage.cohort.columns import recognise_columns
from neuroage.errors import DataError, NeuroageError, UsageError


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "header",
    [
        "participant_id,age,gender,site",
        "SUB_ID,AGE_AT_SCAN,SEX,SITE_ID",
        "Subject,Age,Sex,Site",
        "ID,AGE,M/F,study_site",
    ],
)
def test_columns_are_recognised_in_their_public_spellings(header: str, tmp_path: Path) -> None:
    cohort = Cohort.read(write(tmp_path / "t.csv", header, "x1,33.5,F,north"))
    assert cohort.table[["subject_id", "age", "sex", "site"]].iloc[0].tolist() == ["x1", 33.5, "F", "north"]


def test_our_own_name_wins_over_other_spellings() -> None:
    found = recognise_columns(["subject", "SUB_ID", "subject_id", "Age"])
    assert found == {"subject_id": "subject_id", "age": "Age"}


def test_a_column_of_social_status_is_no_session() -> None:
    assert "session" not in recognise_columns(["ID", "SES", "Age"])


def test_bad_rows_are_left_out_and_named(tmp_path: Path) -> None:
    path = write(tmp_path / "t.tsv", "participant_id\tage", "a\t30", "b\t-1", "c\t90+", "d\tn/a", "\t44", "e\t411")
    cohort = Cohort.read(path)
    assert cohort.table.subject_id.tolist() == ["a", "c", "d"]
    report = "\n".join(map(str, cohort.problems))
    for words in (
        "line 3: age '-1'",
        "line 4: age '90+'",
        "line 6: no subject id",
        "line 7: age '411'",
        "no age for 1 of 3",
    ):
        assert words in report


def test_a_semicolon_table_with_decimal_commas_is_read(tmp_path: Path) -> None:
    cohort = Cohort.read(write(tmp_path / "t.csv", "subject;age;sex", "a;42,5;w", "b;18,25;m"))
    assert cohort.table.age.tolist() == [42.5, 18.25] and cohort.table.sex.tolist() == ["F", "M"]


def test_latin_1_and_byte_order_marks_are_read(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_bytes("subject,age,site\na,40,Zürich\n".encode("latin-1"))
    (tmp_path / "b.csv").write_bytes("\ufeffsubject,age\na,40\n".encode())
    assert Cohort.read(tmp_path / "l.csv").table.site.tolist() == ["Zürich"]
    assert Cohort.read(tmp_path / "b.csv").table.subject_id.tolist() == ["a"]


def test_repeated_rows_follow_the_stated_rule(tmp_path: Path) -> None:
    rows = ["a,30,F", "a,30,F", "b,40,M", "b,40.6,F", "c,50,M", "c,58,M", "d,60,F"]
    cohort = Cohort.read(write(tmp_path / "t.csv", "subject,age,sex", *rows))
    table = cohort.table.set_index("subject_id")
    assert table.index.tolist() == ["a", "b", "d"]
    assert table.age.tolist() == [30.0, pytest.approx(40.3), 60.0]
    assert table.sex["b"] == ""
    report = "\n".join(map(str, cohort.problems))
    assert "c is there 2 times with ages 50 and 58 (left out)" in report and "lines 2, 3: a is there 2 times" in report


def test_paths_of_another_machine_leave_a_table_without_images(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "Subject,Age,File.location", "a,40,/gone/a_T1w.nii", "b,50,/gone/b_T1w.nii")
    cohort = Cohort.read(path)
    assert cohort.table.path.tolist() == ["", ""]
    assert len(cohort.problems) == 1 and "none of its 2 image paths exists" in cohort.problems[0].what


def test_a_missing_image_leaves_its_row_out(tmp_path: Path) -> None:
    write(tmp_path / "img" / "a_T2w.nii", "x" * 2000)
    cohort = Cohort.read(write(tmp_path / "t.csv", "subject,age,path", "a,40,img/a_T2w.nii", "b,50,img/b.nii"))
    assert cohort.table[["subject_id", "modality", "path"]].values.tolist() == [
        ["a", "t2", str(tmp_path / "img/a_T2w.nii")]
    ]
    assert "line 3" in cohort.problems[0].where and "does not exist" in cohort.problems[0].what


def test_a_folder_with_a_table_and_named_images_is_matched(tmp_path: Path) -> None:
    write(tmp_path / "people.csv", "id,age", "s1,30", "s1_b,40", "s7,70")
    for name in ("s1_T1w.nii.gz", "s1_b_T1w.nii.gz", "deep/s1_angio.nii.gz", "other_T1w.nii.gz"):
        write(tmp_path / name, "x" * 2000)
    cohort = Cohort.read(tmp_path)
    assert sorted(cohort.table.scan_id) == ["s1_b_t1", "s1_t1", "s1_tof"]
    report = "\n".join(map(str, cohort.problems))
    assert "1 images name no subject" in report and "1 of 3 rows have no image" in report


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["participant_id,group", "a,1"], "no column for an age"),
        (["age,group", "30,1"], "no column for a subject"),
        (["x,1,30,2", "y,2,31,3"], "has no header"),
        (["subject,age", "a,-1", "b,411"], "none of the 2 rows"),
        (["subject,age", "a,n/a", "b,"], "none of the 2 rows of .* has an age"),
        (["subject,age"], "none of the 0 rows"),
        ([""], "has no column|is empty"),
        (["subject,age", "a,30,1,2,3"], "cannot be read as a table"),
    ],
)
def test_an_unusable_table_says_why_in_one_sentence(lines: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words) as error:
        Cohort.read(write(tmp_path / "t.csv", *lines))
    assert "Traceback" not in str(error.value)


def test_wrong_sources_and_layouts_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        Cohort.read(tmp_path / "nothing")
    with pytest.raises(UsageError, match="did you mean 'bids'"):
        Cohort.read(tmp_path, layout="bidz")
    with pytest.raises(NeuroageError, match="no data set that can be read"):
        Cohort.read(tmp_path)
