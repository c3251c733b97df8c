from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from neuroage.cohort import Cohort
from neuroage.errors import DataError, UsageError


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * 2000)
    return path


def report(cohort: Cohort) -> str:
    return "\n".join(map(str, cohort.problems))


PATTERN = r"(?P<tumour>.+) (?P<sequence>T1C\+|T1|T2)/"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    for name in ("Big tumour T1/1.png", "Big tumour T1C+/1.jpg", "Big tumour T1C+/deep/er/2 b.JPEG", "_NORMAL T2/x.dcm",
                 "_NORMAL T2/y_pd.webp", "_NORMAL T2/z.tiff", "_NORMAL T2/z.bmp"):  # fmt: skip
        picture(root / name)
    return root


def test_the_label_is_the_name_of_the_class_folder(folder: Path) -> None:
    table = Cohort.from_folders(folder).table
    assert table.label.tolist() == ["Big tumour T1"] + ["Big tumour T1C+"] * 2 + ["_NORMAL T2"] * 4
    assert [Path(path).is_file() for path in table.path] == [True] * 7
    assert table.subject_id.tolist() == table.scan_id.tolist() and table.modality.unique().tolist() == [""]


def test_scan_ids_are_readable_unique_and_safe_as_file_names(folder: Path) -> None:
    ids = Cohort.from_folders(folder).table.scan_id
    assert ids.tolist()[:4] == ["Big-tumour-T1_1", "Big-tumour-T1C+_1", "Big-tumour-T1C+_deep_er_2-b", "_NORMAL-T2_x"]
    assert ids.is_unique and ids.str.fullmatch(r"[\w.+-]+").all()


def test_scan_ids_do_not_depend_on_the_other_files(folder: Path) -> None:
    before = Cohort.from_folders(folder).table
    picture(folder / "A first class" / "1.png")
    after = Cohort.from_folders(folder).table
    assert after.scan_id.tolist()[1:] == before.scan_id.tolist()


def test_groups_of_the_pattern_become_columns(folder: Path) -> None:
    table = Cohort.from_folders(folder, PATTERN).table
    assert table.tumour.tolist() == ["Big tumour"] * 3 + ["_NORMAL"] * 4
    assert table.sequence.tolist() == ["T1", "T1C+", "T1C+", "T2", "T2", "T2", "T2"]
    assert table.label[0] == "Big tumour T1" and table.modality.unique().tolist() == [""]


def test_groups_named_as_fields_set_them(tmp_path: Path) -> None:
    for name in ("train/ill/p1_058Y_f_1.png", "train/ill/p1_058Y_f_2.png", "test/well/p2_40_m_1.png"):
        picture(tmp_path / name)
    pattern = r"(?P<official_set>\w+)/(?P<label>\w+)/(?P<subject_id>p\d+)_(?P<age>\w+?)_(?P<sex>\w)_"
    table = Cohort.from_folders(tmp_path, pattern).table
    assert table.subject_id.tolist() == ["p2", "p1", "p1"] and table.age.tolist() == [40, 58, 58]
    assert table.sex.tolist() == ["M", "F", "F"] and table.label.tolist() == ["well", "ill", "ill"]
    assert table.official_set.tolist() == ["test", "train", "train"] and table.scan_id.is_unique


def test_paths_that_do_not_match_are_listed_together_and_cut(folder: Path) -> None:
    for k in range(25):
        picture(folder / "odd" / f"{k:02d}.png")
    with pytest.raises(DataError) as error:
        Cohort.from_folders(folder, PATTERN)
    message = str(error.value)
    assert "25 of 32 paths do not match" in message and "odd/00.png" in message and "odd/19.png" in message
    assert "odd/20.png" not in message and "and 5 more" in message


def test_ages_in_paths_that_are_none_are_listed_together(tmp_path: Path) -> None:
    for name in ("a/x_411.png", "a/y_old.png", "a/z_40.png"):
        picture(tmp_path / name)
    with pytest.raises(DataError, match=r"a/x_411.png: age '411'(.|\n)*a/y_old.png: age 'old'") as error:
        Cohort.from_folders(tmp_path, r".*_(?P<age>\w+)\.")
    assert "z_40" not in str(error.value)


@pytest.mark.parametrize(
    ("pattern", "words"), [("(", "no regular expression"), ("a/", "no named group"), ("(?P<path>.*)", "a group 'path'")]
)
def test_a_wrong_pattern_is_named(pattern: str, words: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=words):
        Cohort.from_folders(folder, pattern)


def test_what_is_left_out_is_noted(folder: Path) -> None:
    (folder / "Empty class").mkdir()
    picture(folder / "stray.png")
    picture(folder / "_NORMAL T2" / "._x.png")
    picture(folder / "_NORMAL T2" / "notes.txt")
    (folder / "_NORMAL T2" / "void.png").touch()
    cohort = Cohort.from_folders(folder)
    assert len(cohort) == 7
    for words in ("1 class folders hold no picture: Empty class", "in no class folder: stray.png", "hidden: ._x.png",
                  "no pictures: _NORMAL T2/notes.txt", "void.png: is empty"):  # fmt: skip
        assert words in report(cohort)


def test_a_folder_without_class_folders_says_what_is_expected(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(DataError, match="no pictures in class folders; expected a folder for each class"):
        Cohort.from_folders(tmp_path)
    with pytest.raises(UsageError, match="no folder"):
        Cohort.from_folders(tmp_path / "gone")


def test_class_folders_are_written_and_read_back_the_same(folder: Path, tmp_path: Path) -> None:
    cohort = Cohort.from_folders(folder, PATTERN)
    cohort.to_csv(tmp_path / "c.csv")
    again = Cohort.from_csv(tmp_path / "c.csv")
    pd.testing.assert_frame_equal(again.table, cohort.table)
    assert again.digest == cohort.digest


def test_class_folders_are_recognised_and_nothing_else_is_taken_for_them(folder: Path, tmp_path: Path) -> None:
    picture(folder / "readme.txt")
    assert Cohort.read(folder).table.label.nunique() == 3
    picture(tmp_path / "one" / "class" / "a.png")
    picture(tmp_path / "volumes" / "p1" / "1.dcm")
    picture(tmp_path / "volumes" / "p2" / "1.dcm")
    for source in (tmp_path / "one", tmp_path / "volumes"):
        with pytest.raises(DataError, match="no data set"):
            Cohort.read(source)
    assert Cohort.read(tmp_path / "volumes", layout="class_folders").table.label.tolist() == ["p1", "p2"]


def test_a_table_beside_the_folders_is_read_instead(folder: Path) -> None:
    (folder / "ages.csv").write_text("subject_id,age,path\na,40,Big tumour T1/1.png\n")
    table = Cohort.read(folder).table
    assert table.age.tolist() == [40.0] and "label" not in table.columns
