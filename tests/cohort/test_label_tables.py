from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neuroage.cohort import Cohort
from neuroage.errors import DataError, UsageError


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def report(cohort: Cohort) -> str:
    return "\n".join(map(str, cohort.problems))


def test_one_column_of_classes_becomes_label(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.csv", "Patient ID,filename,diagnosis", "p1,a.png, no tumour ", "p1,b.png,glioma", "p2,c.png,"
    )
    table = Cohort.from_csv(path, label="diagnosis").table
    assert table.label.tolist() == ["no tumour", "glioma", ""] and "diagnosis" not in table.columns
    assert table.subject_id.tolist() == ["p1", "p1", "p2"] and table.scan_id.tolist() == ["a", "b", "c"]
    assert table.path[0] == str(tmp_path / "a.png") and table.age.isna().all()


def test_classes_that_are_numbers_stay_text(tmp_path: Path) -> None:
    cohort = Cohort.from_csv(write(tmp_path / "t.csv", "image,grade", "a.png,1", "b.png,2"), label="grade")
    assert cohort.table.label.tolist() == ["1", "2"]
    assert Cohort(pd.DataFrame({"subject_id": ["a", "b"], "label": [1.0, np.nan]})).table.label.tolist() == ["1", ""]


def test_every_spelling_of_a_label_is_read(tmp_path: Path) -> None:
    cells = ["1", "1.0", "TRUE", "yes", "0", "0.0", "False", "No", "", "nan"]
    rows = [f"i{k}.png,{cell}" for k, cell in enumerate(cells)]
    values = Cohort.from_csv(write(tmp_path / "t.csv", "image,Edema", *rows), labels=["Edema"]).table.label_Edema
    assert values.tolist()[:8] == [1, 1, 1, 1, 0, 0, 0, 0] and values.isna().tolist() == [False] * 8 + [True] * 2


@pytest.mark.parametrize(("policy", "value"), [("missing", np.nan), ("positive", 1.0), ("negative", 0.0)])
def test_uncertain_labels_follow_the_stated_policy(policy: str, value: float, tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "image,A,B", "a.png,-1,1", "b.png,-1.0,0", "c.png,−1,0")
    cohort = Cohort.from_csv(path, labels=["A", "B"], uncertain=policy)  # type: ignore[arg-type]
    np.testing.assert_array_equal(cohort.table.label_A, [value] * 3)
    assert cohort.table.label_B.tolist() == [1, 0, 0]
    assert f"label_A is uncertain (−1) in 3 rows (read as {policy})" in report(cohort) and "label_B" not in report(
        cohort
    )


def test_all_cells_that_are_no_labels_are_in_one_error(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "image,label_A,label_B", "a.png,1,maybe", "b.png,0.5,0", "c.png,2,1")
    with pytest.raises(DataError) as error:
        Cohort.from_csv(path)
    for words in ("line 2: label_B is 'maybe'", "line 3: label_A is '0.5'", "line 4: label_A is '2'", "expected 1, 0"):
        assert words in str(error.value)


def test_a_dataframe_with_an_undecided_label_asks_for_the_policy() -> None:
    with pytest.raises(DataError, match=r"row 1: label_A is '-1'(.|\n)*uncertain="):
        Cohort(pd.DataFrame({"subject_id": ["a", "b"], "label_A": [1, -1]}))


def test_columns_already_called_label_are_taken_unless_others_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "subject_id,image,label_B,label_A,C", "s,a.png,1,0,1")
    assert Cohort.from_csv(path).labels == ["B", "A"]
    some = Cohort.from_csv(path, labels=["C", "label_A"])
    assert sorted(some.labels) == ["A", "C"] and "label_B (left out)" in report(some)


def test_a_column_with_another_meaning_may_be_the_label_too(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "subject_id,age,sex,path", "s,40,F,s_T1w.nii.gz", "t,50,M,t_T1w.nii.gz")
    table = Cohort.from_csv(path, label="sex").table
    assert table.label.tolist() == table.sex.tolist() == ["F", "M"] and table.modality.tolist() == ["t1", "t1"]


def test_names_of_pictures_say_no_modality_but_names_of_volumes_do(tmp_path: Path) -> None:
    table = Cohort.from_csv(write(tmp_path / "t.csv", "image,label", "a_pd.png,x", "b_pd.nii.gz,y")).table
    assert table.modality.tolist() == ["", "pd"]


def test_images_of_one_name_in_two_folders_stay_two(tmp_path: Path) -> None:
    cohort = Cohort.from_csv(write(tmp_path / "t.csv", "image,label", "p1/view.png,x", "p2/view.png,y"))
    assert cohort.table.scan_id.tolist() == cohort.table.subject_id.tolist() == ["p1_view", "p2_view"]
    assert "every image counts as a subject of its own" in report(cohort)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"label": "diagnosi"}, "no column 'diagnosi'.*did you mean 'diagnosis'"),
        ({"labels": ["Mass"]}, "no column 'Mass'"),
        ({"labels": "diagnosis"}, r"labels=\['diagnosis'\]"),
        ({"label": "diagnosis", "uncertain": "mising"}, "did you mean 'missing'"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, str], words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "image,diagnosis", "a.png,x")
    with pytest.raises(UsageError, match=words):
        Cohort.from_csv(path, **arguments)  # type: ignore[arg-type]


def test_a_table_with_two_columns_for_the_class_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "image,diagnosis,label", "a.png,x,y")
    with pytest.raises(UsageError, match="'label' beside 'diagnosis'"):
        Cohort.from_csv(path, label="diagnosis")
    assert Cohort.from_csv(path).table.label.tolist() == ["y"]


@pytest.mark.parametrize("name", ["c.csv", "c.tsv"])
def test_what_is_written_reads_back_the_same(name: str, tmp_path: Path) -> None:
    cohort = Cohort(
        pd.DataFrame(
            {
                "subject_id": ["01", "01", "02", "03"],
                "scan_id": ["a", "b", "c", "d"],
                "path": [str(tmp_path / "img" / f"{k}, x_pd.png") for k in range(3)] + [""],
                "age": [40.0, np.nan, np.nan, np.nan],
                "label": ["no tumour", 'T1C+, "odd"', "", "7"],
                "label_Pleural Thickening": [1.0, 0.0, np.nan, 1.0],
                "label_A|B": [np.nan] * 4,
                "sequence": ["T1", "", "T2", "T1"],
            }
        )
    )
    cohort.to_csv(tmp_path / name)
    for again in (
        Cohort.from_csv(tmp_path / name),
        Cohort.from_csv(tmp_path / name, labels=["label_A|B", "label_Pleural Thickening"]),
    ):
        pd.testing.assert_frame_equal(again.table[cohort.table.columns], cohort.table)
        assert again.digest == cohort.digest and again.labels == ["Pleural Thickening", "A|B"]


# ---- tables as found


def test_a_found_table_of_labels_needs_no_age(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / "img" / f"{name}.png", "x" * 2000)
    path = write(tmp_path / "t.csv", "Patient ID,image,label_A", "1,img/a.png,-1", "1,img/b.png,0", "2,img/c.png,1")
    cohort = Cohort.read(path)
    assert cohort.table.path.tolist() == [str(tmp_path / "img" / f"{name}.png") for name in "ab"]
    np.testing.assert_array_equal(cohort.table.label_A, [np.nan, 0])
    assert "uncertain" in report(cohort) and "c.png does not exist" in report(cohort)
    assert "no age" not in report(cohort)


def test_bare_file_names_are_looked_for_below_the_table(tmp_path: Path) -> None:
    for place in ("images/a.png", "more/b.png", "one/c.png", "two/c.png"):
        write(tmp_path / place, "x" * 2000)
    write(tmp_path / "t.csv", "image,label", "a.png,x", "b.png,y", "c.png,y", "d.png,z")
    cohort = Cohort.read(tmp_path)
    assert cohort.table.path.tolist() == [str(tmp_path / "images" / "a.png"), str(tmp_path / "more" / "b.png")]
    for words in (
        "2 of 4 file names were found",
        "1 file names are in several folders, for example c.png",
        "d.png does not",
    ):
        assert words in report(cohort)


def test_a_folder_with_a_table_of_labels_is_recognised(tmp_path: Path) -> None:
    write(tmp_path / "img" / "a.png", "x" * 2000)
    write(tmp_path / "t.csv", "image,label", "img/a.png,glioma")
    assert Cohort.read(tmp_path).table[["scan_id", "label"]].values.tolist() == [["a", "glioma"]]


def test_a_table_with_neither_ages_nor_labels_is_still_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has an age or a label"):
        Cohort.read(write(tmp_path / "t.csv", "image,label", "a.png,", "b.png,"))
    with pytest.raises(DataError, match=r"no column 'age'.*labels="):
        Cohort.from_csv(write(tmp_path / "u.csv", "subject_id,group", "a,1"))
