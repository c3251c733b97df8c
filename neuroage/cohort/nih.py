"""NIH ChestX-ray14: `Data_Entry_2017*.csv`, the official lists, the boxes, and the images below.

Source: Wang et al., CVPR 2017, https://doi.org/10.1109/CVPR.2017.369
"""

from __future__ import annotations

import csv
import gzip
import os
from pathlib import Path
from typing import IO, cast

import numpy as np
import pandas as pd

from neuroage.cohort.ages import parse_age, read_sexes
from neuroage.cohort.cohort import Cohort
from neuroage.cohort.columns import normal_header
from neuroage.cohort.image_files import PICTURE_SUFFIXES, image_fault
from neuroage.cohort.labels import LABEL_PREFIX
from neuroage.cohort.layouts import Layout
from neuroage.cohort.problem import Problem, refuse_all
from neuroage.errors import DataError, UsageError

FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip  # in the order of Wang 2017, Table 1 and its supplement
BOX_IMAGE_PIXELS = 1024  # width and height of the published images, in which the boxes are drawn
_NO_FINDING = "No_Finding"  # words are joined by an underscore before they are compared
_SPELLINGS = {"Infiltrate": "Infiltration"}  # so in the table of boxes
_COLUMNS = {
    "image_index": "image", "finding_labels": "findings", "patient_id": "subject_id", "patient_age": "age",
    "patient_gender": "sex", "patient_sex": "sex", "view_position": "view", "follow_up": "followup",
}  # fmt: skip
_NEEDED = ("image", "findings", "subject_id")
_LISTS = {"train_val_list.txt": "train", "test_list.txt": "test"}


def read_nih(source: Path, images: str = "present") -> Cohort:
    """Read the table and the images; `Cohort.from_nih` says how.

    Rules: ages that are none (411 years) are emptied, the row stays. An image that is there in several folders is taken
    from one called `images…`. `No Finding` means 0 for all 14 labels, and so does every finding that is not named.
    """
    if images not in ("present", "all"):
        raise UsageError(f"images={images!r}", expected="'present' or 'all'")
    path = _the_table(source)
    raw = _read_columns(path)
    scan_ids = raw["image"].map(_stem)
    table = pd.DataFrame({"scan_id": scan_ids, "subject_id": raw["subject_id"], "modality": "xray"})
    table["age"], problems = _read_ages(raw["age"], path.name)
    table["sex"], notes = read_sexes(raw["sex"], f"{path.name} column Patient Gender")
    problems += notes
    table = table.assign(view=raw["view"], followup=pd.to_numeric(raw["followup"], errors="coerce").astype(float))
    table = pd.concat([table, _read_findings(raw["findings"], path.name)], axis=1)
    official, notes = _read_lists(path.parent, scan_ids)
    problems += notes
    if official is not None:
        table["official_set"] = official
    table["path"], notes = _find_images(path.parent, scan_ids)
    problems += notes
    here = table["path"] != ""
    if images == "present" and here.any() and not here.all():
        what = f"{int((~here).sum()):,} of {len(table):,} rows have no image here"
        problems.append(Problem(path.name, what, "left out; images='all' keeps them"))
        table = table[here]
    elif not here.all():
        what = f"{int((~here).sum()):,} of {len(table):,} rows have no image here"
        problems.append(Problem(path.name, what, "rows kept without images"))
    return Cohort(table, problems)


def read_boxes(source: str | os.PathLike[str]) -> pd.DataFrame:
    """Read the boxes that radiologists drew around findings.

    Args:
        source: `BBox_List_2017.csv` (or `.csv.gz`), or the folder that holds it.

    Returns:
        One row per box: `scan_id`, `label` (as the cohort calls it), `x`, `y` (left upper corner), `width`, `height`,
        and `image_width`, `image_height`; all in pixels of the published images, 1024 × 1024.

    Raises:
        DataError: When there is no such table, or it has other columns.
    """
    path = Path(source)
    if path.is_dir():
        found = sorted(entry for entry in path.iterdir() if entry.name.startswith("BBox_List"))
        if not found:
            raise DataError(f"{path} has no table of boxes", expected="BBox_List_2017.csv in it")
        path = found[0]
    header = _header(path)
    if [normal_header(name) for name in header[:3]] != ["image_index", "finding_label", "bbox"]:
        raise DataError(
            f"{path} is no table of boxes", expected="the columns Image Index, Finding Label, Bbox [x,y,w,h]"
        )
    names = ["file", "label", "x", "y", "width", "height"]  # the header has a comma inside its brackets, and some after
    raw = pd.read_csv(path, header=None, skiprows=1, usecols=range(6), names=names, dtype={"file": str, "label": str})
    label = raw["label"].str.strip().str.replace(" ", "_")
    boxes = pd.DataFrame({"scan_id": raw["file"].map(_stem), "label": label.replace(_SPELLINGS)})
    boxes[["x", "y", "width", "height"]] = raw[["x", "y", "width", "height"]].astype(float)
    return boxes.assign(image_width=BOX_IMAGE_PIXELS, image_height=BOX_IMAGE_PIXELS)


def _the_table(source: Path) -> Path:
    if not source.exists():
        raise UsageError(f"{source} does not exist", expected="the folder of ChestX-ray14", fix="Check the path.")
    tables = [source] if source.is_file() else sorted(source.iterdir())
    found = [path for path in tables if _is_table(path)]
    if len(found) != 1:
        named = ": " + ", ".join(path.name for path in found) if found else ""
        raise DataError(
            f"{source} has {len(found)} tables of ChestX-ray14{named}",
            expected="one Data_Entry_2017*.csv, which begins with the columns Image Index and Finding Labels",
            fix="Give the table itself." if found else "",
        )
    return found[0]


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return cast(IO[str], gzip.open(path, "rt", encoding="utf-8-sig", errors="replace", newline=""))
    return open(path, encoding="utf-8-sig", errors="replace", newline="")


def _header(path: Path) -> list[str]:
    with _open(path) as handle:
        return next(csv.reader([handle.readline(10_000)]), [])


def _is_table(path: Path) -> bool:
    if not path.name.lower().endswith((".csv", ".csv.gz")) or path.name.startswith("."):
        return False
    try:
        names = {normal_header(name) for name in _header(path)}
    except (OSError, EOFError, csv.Error):
        return False
    return {"image_index", "finding_labels"} <= names


def _read_columns(path: Path) -> pd.DataFrame:
    # Two headers hold a comma inside their brackets and the older table ends every line with one, so the columns are
    # counted; those that are read stand ahead of the first bracket.
    places: dict[str, int] = {}
    for place, name in enumerate(_header(path)):
        places.setdefault(_COLUMNS.get(normal_header(name), ""), place)
    missing = [name for name in _NEEDED if name not in places]
    if missing:
        raise DataError(
            f"{path} has no column for {', '.join(missing)}", expected="Image Index, Finding Labels, Patient ID"
        )
    places.pop("", None)
    raw = pd.read_csv(
        path, header=None, skiprows=1, usecols=sorted(places.values()), dtype=str, na_filter=False,
        encoding_errors="replace",
    )  # fmt: skip
    raw = raw.rename(columns={place: name for name, place in places.items()})
    for name in set(_COLUMNS.values()) - set(raw.columns):
        raw[name] = ""
    return raw


def _stem(file: str) -> str:
    return os.path.splitext(file.strip())[0]


def _read_ages(column: pd.Series, name: str) -> tuple[pd.Series, list[Problem]]:
    years: dict[str, float] = {}
    wrong: dict[str, int] = {}
    for text, n_rows in column.value_counts().items():
        try:
            years[str(text)] = parse_age(text)[0]
        except DataError:
            years[str(text)], wrong[str(text)] = np.nan, int(n_rows)
    problems = []
    if wrong:
        listed = ", ".join(list(wrong)[:8]) + (", …" if len(wrong) > 8 else "")
        problems.append(Problem(name, f"ages that are none in {sum(wrong.values())} rows: {listed}", "age emptied"))
    return column.map(years).astype(float), problems


def _read_findings(column: pd.Series, name: str) -> pd.DataFrame:
    code, distinct = pd.factorize(column)
    meaning = []
    for text in distinct:
        words = (word.strip().replace(" ", "_") for word in text.split("|"))
        meaning.append({_SPELLINGS.get(word, word) for word in words} - {_NO_FINDING})
    strange = np.array([not found <= set(FINDINGS) for found in meaning])
    refuse_all(
        [Problem(f"{name} line {row + 2}", f"findings {column.iloc[row]!r}") for row in np.flatnonzero(strange[code])],
        "findings are none of the 14",
        expected=f"'No Finding', or {', '.join(FINDINGS)} joined by |",
        fix="A table with other labels is read by Cohort.from_csv(…, labels=[…]).",
    )
    values = np.array([[float(finding in found) for finding in FINDINGS] for found in meaning])
    return pd.DataFrame(values[code], columns=[f"{LABEL_PREFIX}{finding}" for finding in FINDINGS], index=column.index)


def _read_lists(folder: Path, scan_ids: pd.Series) -> tuple[pd.Series | None, list[Problem]]:
    set_of: dict[str, str] = {}
    problems = []
    for file, name in _LISTS.items():
        path = next((folder / f for f in (file, f"{file}.gz") if (folder / f).is_file()), None)
        if path is None:
            problems.append(Problem(str(folder), f"no official list {file}"))
            continue
        with _open(path) as handle:
            listed = {_stem(line) for line in handle if line.strip()}
        if both := listed & set(set_of):
            raise DataError(f"{len(both)} images are in both official lists, for example {min(both)}")
        set_of.update(dict.fromkeys(listed, name))
    if not set_of:
        return None, [Problem(str(folder), f"no official lists ({', '.join(_LISTS)})", "no column official_set")]
    official = scan_ids.map(lambda scan_id: set_of.get(scan_id, ""))
    if n := int((official == "").sum()):
        problems.append(Problem(str(folder), f"{n:,} images are in no official list", "official_set left empty"))
    return official, problems


def _find_images(folder: Path, scan_ids: pd.Series) -> tuple[pd.Series, list[Problem]]:
    wanted = set(scan_ids)
    found: dict[str, str] = {}
    repeated: set[str] = set()
    problems: list[Problem] = []
    root = os.path.abspath(folder)
    walk: list[tuple[str, list[str]]] = []
    for place, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        walk.append((place, sorted(names)))
    walk.sort(key=lambda entry: (not _in_images(entry[0][len(root) :]), entry[0]))
    for place, names in walk:
        for name in names:
            stem = _stem(name)
            if stem not in wanted or not name.lower().endswith(PICTURE_SUFFIXES):
                continue
            path = os.path.join(place, name)
            if stem in found:
                repeated.add(stem)
            elif fault := image_fault(Path(path)):
                problems.append(Problem(os.path.relpath(path, root), fault, "image left out"))
            else:
                found[stem] = path
    if repeated:
        example = found[min(repeated)]
        what = f"{len(repeated)} images are there in several folders or formats"
        problems.append(Problem(str(folder), what, f"first taken, for example {os.path.relpath(example, root)}"))
    return scan_ids.map(lambda scan_id: found.get(scan_id, "")), problems


def _in_images(place: str) -> bool:
    return any(part.startswith("images") for part in place.replace(os.sep, "/").split("/"))


def recognises(source: Path) -> bool:
    """A table with the columns Image Index and Finding Labels, or a folder with one."""
    if source.is_file():
        return _is_table(source)
    return any(_is_table(path) for path in source.iterdir())


LAYOUT = Layout("nih_chest_xray14", "Data_Entry_2017*.csv, official lists, images/*.png", recognises, read_nih)
