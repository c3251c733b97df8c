from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neuroage.cohort import Cohort
from neuroage.cohort.nih import FINDINGS, read_boxes
from neuroage.errors import DataError, UsageError

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
ROWS = [
    "00000001_000.png,Cardiomegaly|Emphysema,0,1,{0},M,PA,2682,2749,0.143,0.143",
    "00000001_001.png,No Finding,1,1,{1},M,AP,2894,2729,0.143,0.143",
    "00000002_000.png,Pleural_Thickening,0,2,{2},F,PA,2500,2048,0.171,0.171",
]


def report(cohort: Cohort) -> str:
    return "\n".join(map(str, cohort.problems))


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * 2000)
    return path


def make(
    folder: Path,
    ages: tuple[str, str, str] = ("58", "59", "40"),
    end: str = "",
    name: str = "Data_Entry_2017_v2020.csv",
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join([HEADER + end, *(row.format(*ages) + end for row in ROWS)]) + "\n"
    (folder / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    (folder / "train_val_list.txt").write_text("00000001_000.png\n00000001_001.png\n")
    (folder / "test_list.txt.gz").write_bytes(gzip.compress(b"00000002_000.png"))
    return folder


@pytest.mark.parametrize(
    ("name", "end"), [("Data_Entry_2017.csv", ","), ("Data_Entry_2017_v2020.csv", ""), ("Data_Entry_2017.csv.gz", "")]
)
def test_both_spellings_of_the_table_are_read(name: str, end: str, tmp_path: Path) -> None:
    cohort = Cohort.from_nih(make(tmp_path, ("058Y", "018M", "073D"), end, name))
    table = cohort.table
    assert table.scan_id.tolist() == ["00000001_000", "00000001_001", "00000002_000"]
    assert table.subject_id.tolist() == ["1", "1", "2"] and table.sex.tolist() == ["M", "M", "F"]
    np.testing.assert_allclose(table.age, [58, 1.5, 73 / 365.25])
    assert table.view.tolist() == ["PA", "AP", "PA"] and table.followup.tolist() == [0, 1, 0]
    assert table.official_set.tolist() == ["train", "train", "test"] and set(table.modality) == {"xray"}


def test_findings_become_fourteen_columns_in_the_published_order(tmp_path: Path) -> None:
    cohort = Cohort.from_nih(make(tmp_path))
    assert tuple(cohort.labels) == FINDINGS and len(FINDINGS) == 14
    values = cohort.table[[f"label_{name}" for name in FINDINGS]].to_numpy()
    assert [[FINDINGS[k] for k in np.flatnonzero(row)] for row in values] == [
        ["Cardiomegaly", "Emphysema"], [], ["Pleural_Thickening"],
    ]  # fmt: skip
    assert set(np.unique(values)) == {0.0, 1.0}


def test_impossible_ages_are_emptied_and_noted(tmp_path: Path) -> None:
    cohort = Cohort.from_nih(make(tmp_path, ("414", "411Y", "40")))
    assert cohort.table.age.isna().tolist() == [True, True, False]
    assert "ages that are none in 2 rows: 414, 411Y (age emptied)" in report(cohort)


def test_only_rows_with_an_image_are_kept_unless_all_are_wanted(tmp_path: Path) -> None:
    make(tmp_path)
    picture(tmp_path / "images_002" / "images" / "00000002_000.png")
    picture(tmp_path / "images_001" / "00000001_001.png")
    here = Cohort.from_nih(tmp_path)
    assert here.table.scan_id.tolist() == ["00000001_001", "00000002_000"]
    assert here.table.path[1].endswith("images_002/images/00000002_000.png")
    assert "1 of 3 rows have no image here (left out" in report(here)
    everyone = Cohort.from_nih(tmp_path, images="all")
    assert len(everyone) == 3 and everyone.table.path[0] == "" and "rows kept without images" in report(everyone)


def test_a_table_alone_keeps_every_row(tmp_path: Path) -> None:
    cohort = Cohort.from_nih(make(tmp_path) / "Data_Entry_2017_v2020.csv")
    assert len(cohort) == 3 and set(cohort.table.path) == {""} and "3 of 3 rows have no image" in report(cohort)


def test_an_image_in_two_folders_is_taken_from_the_images(tmp_path: Path) -> None:
    make(tmp_path)
    for name in ("copies", "images", ".hidden"):
        picture(tmp_path / name / "00000002_000.png")
    (tmp_path / "images" / "00000001_000.png").touch()
    cohort = Cohort.from_nih(tmp_path)
    assert cohort.table.path.tolist() == [str(tmp_path / "images" / "00000002_000.png")]
    assert "1 images are there in several folders" in report(cohort) and "00000001_000.png: is empty" in report(cohort)


def test_missing_and_contradicting_official_lists_are_said(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "test_list.txt.gz").unlink()
    cohort = Cohort.from_nih(tmp_path)
    assert cohort.table.official_set.tolist() == [
        "train",
        "train",
        "",
    ] and "1 images are in no official list" in report(cohort)
    (tmp_path / "test_list.txt").write_text("00000001_000.png\n")
    with pytest.raises(DataError, match="1 images are in both official lists"):
        Cohort.from_nih(tmp_path)
    (tmp_path / "test_list.txt").unlink()
    (tmp_path / "train_val_list.txt").unlink()
    cohort = Cohort.from_nih(tmp_path)
    assert "official_set" not in cohort.table.columns and "no official lists" in report(cohort)


def test_other_findings_are_refused_with_all_their_lines(tmp_path: Path) -> None:
    path = make(tmp_path) / "Data_Entry_2017_v2020.csv"
    path.write_text(path.read_text().replace("No Finding", "Nodule|Fracture").replace("Emphysema", "Emphyzema"))
    with pytest.raises(DataError, match=r"line 2: findings 'Cardiomegaly\|Emphyzema'(.|\n)*line 3: .*Fracture"):
        Cohort.from_nih(tmp_path)


def test_the_data_set_is_recognised_by_its_table_and_reads_back(tmp_path: Path) -> None:
    cohort = Cohort.read(make(tmp_path / "set"))
    assert len(cohort) == 3 and "xray" in cohort.modalities
    cohort.to_csv(tmp_path / "c.csv")
    again = Cohort.from_csv(tmp_path / "c.csv")
    pd.testing.assert_frame_equal(again.table, cohort.table)
    assert again.digest == cohort.digest == Cohort.read(tmp_path / "c.csv").digest


def test_wrong_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        Cohort.from_nih(tmp_path / "gone")
    with pytest.raises(DataError, match="0 tables of ChestX-ray14"):
        Cohort.from_nih(tmp_path)
    with pytest.raises(UsageError, match="images='some'"):
        Cohort.from_nih(make(tmp_path), images="some")  # type: ignore[arg-type]
    make(tmp_path, name="Data_Entry_2017.csv")
    with pytest.raises(DataError, match=r"2 tables .*Data_Entry_2017.csv, Data_Entry_2017_v2020.csv"):
        Cohort.from_nih(tmp_path)


def test_boxes_are_read_in_pixels_of_the_published_images(tmp_path: Path) -> None:
    text = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n00000001_000.png,Infiltrate,225.5,547.25,86.75,79.5,,,\n"
    (tmp_path / "BBox_List_2017.csv").write_text(text)
    (row,) = read_boxes(tmp_path).to_dict("records")
    assert row == {
        "scan_id": "00000001_000", "label": "Infiltration", "x": 225.5, "y": 547.25, "width": 86.75, "height": 79.5,
        "image_width": 1024, "image_height": 1024,
    }  # fmt: skip
    (tmp_path / "BBox_List_2017.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="no table of boxes"):
        read_boxes(tmp_path / "BBox_List_2017.csv")
    (tmp_path / "BBox_List_2017.csv").unlink()
    with pytest.raises(DataError, match="has no table of boxes"):
        read_boxes(tmp_path)
