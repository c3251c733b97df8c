"""Class folders: one folder of pictures for each class, `tumour/a.png`, `normal/b.png`."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

import pandas as pd

from neuroage.cohort.ages import read_ages, read_sexes
from neuroage.cohort.cohort import Cohort
from neuroage.cohort.image_files import PICTURE_SUFFIXES, image_fault, modality_of_image, name_files
from neuroage.cohort.labels import CLASS_COLUMN
from neuroage.cohort.layouts import Layout
from neuroage.cohort.modalities import canonical_modality
from neuroage.cohort.plain_table import is_subject_table
from neuroage.cohort.problem import Problem, refuse_all
from neuroage.errors import DataError, UsageError

_SUFFIXES = (*PICTURE_SUFFIXES, ".dcm")
_TABLE_SUFFIXES = (".csv", ".tsv", ".xls", ".xlsx")
_RESERVED_GROUPS = ("scan_id", "path")
_MAX_NAMED = 20  # paths in one error; the reader sees the pattern in them


def read_class_folders(folder: Path, pattern: str | None = None) -> Cohort:
    """Read every picture below the class folders; `Cohort.from_folders` says how.

    Rules: pictures at any depth belong to the class at the top. Hidden files, files that are no pictures, empty class
    folders, pictures beside the class folders and broken files are left out and noted.
    """
    matcher = _compile(pattern)
    if not folder.is_dir():
        raise UsageError(f"no folder {folder}", expected="a folder that holds one folder for each class")
    found, problems = _list_pictures(folder)
    if not found:
        raise DataError(
            f"{folder} has no pictures in class folders",
            expected=f"a folder for each class, with files that end in {', '.join(_SUFFIXES)}",
        )
    table = pd.DataFrame({CLASS_COLUMN: [path.split("/", 1)[0] for path in found]}, dtype=object)
    if matcher:
        table, notes = _take_groups(table, found, matcher)
        problems += notes
    table["scan_id"] = name_files(found)
    table["path"] = [os.path.join(os.path.abspath(folder), *path.split("/")) for path in found]
    if "subject_id" not in table.columns:
        table["subject_id"] = table["scan_id"]
    modality = table["modality"].map(canonical_modality) if "modality" in table.columns else ""
    table["modality"] = modality
    table["modality"] = table["modality"].where(table["modality"] != "", table["path"].map(modality_of_image))
    return Cohort(table, problems)


def _compile(pattern: str | None) -> re.Pattern[str] | None:
    if pattern is None:
        return None
    try:
        matcher = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"pattern {pattern!r} is no regular expression: {error}") from error
    reserved = [name for name in matcher.groupindex if name in _RESERVED_GROUPS]
    if reserved or not matcher.groupindex:
        raise UsageError(
            f"pattern {pattern!r} has " + (f"a group {reserved[0]!r}" if reserved else "no named group"),
            expected="groups such as (?P<subject_id>…), none of them called " + " or ".join(_RESERVED_GROUPS),
        )
    return matcher


def _list_pictures(folder: Path) -> tuple[list[str], list[Problem]]:
    found: list[str] = []
    problems: list[Problem] = []
    hidden: list[str] = []
    others: list[str] = []
    unclassed: list[str] = []
    for root, folders, files in os.walk(folder, followlinks=False):
        hidden += [name for name in [*folders, *files] if name.startswith(".")]
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        place = Path(root).relative_to(folder).as_posix()
        for name in sorted(name for name in files if not name.startswith(".")):
            path = name if place == "." else f"{place}/{name}"
            if not name.lower().endswith(_SUFFIXES):
                others.append(path)
            elif place == ".":
                unclassed.append(path)
            elif fault := image_fault(Path(root) / name):
                problems.append(Problem(path, fault, "image left out"))
            else:
                found.append(path)
    counts = Counter(path.split("/", 1)[0] for path in found)
    empty = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    for paths, what in (
        (unclassed, "pictures lie in no class folder"),
        (others, "files are no pictures"),
        (hidden, "files or folders are hidden"),
        ([name for name in empty if not counts[name]], "class folders hold no picture"),
    ):
        if paths:
            listed = ", ".join(paths[:5]) + (", …" if len(paths) > 5 else "")
            problems.append(Problem(str(folder), f"{len(paths)} {what}: {listed}", "left out"))
    return sorted(found), problems


def _take_groups(table: pd.DataFrame, found: list[str], matcher: re.Pattern[str]) -> tuple[pd.DataFrame, list[Problem]]:
    matches = [matcher.match(path) for path in found]
    strangers = [path for path, match in zip(found, matches, strict=True) if match is None]
    if strangers:
        more = f"\n  … and {len(strangers) - _MAX_NAMED} more" if len(strangers) > _MAX_NAMED else ""
        raise DataError(
            f"{len(strangers)} of {len(found)} paths do not match {matcher.pattern!r}:\n  "
            + "\n  ".join(strangers[:_MAX_NAMED])
            + more,
            fix="The pattern is matched from the start of the path below the folder, with forward slashes.",
        )
    problems: list[Problem] = []
    for group in matcher.groupindex:
        table[group] = pd.Series([(match[group] or "").strip() for match in matches if match], dtype=object)
    if "age" in table.columns:
        table["age"], _, notes = read_ages(table["age"], pd.Series(found, dtype=object))
        wrong = [Problem(note.where, note.what) for note in notes if note.action == "row left out"]
        refuse_all(wrong, "the pattern finds ages that cannot be read")
        problems += notes
    if "sex" in table.columns:
        table["sex"], notes = read_sexes(table["sex"], "group sex of the pattern")
        problems += notes
    return table, problems


def recognises(source: Path) -> bool:
    """A folder without a table, two folders of which hold pictures directly; not DICOM, which may be slices."""
    if not source.is_dir():
        return False
    n_classes = 0
    for entry in sorted(source.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            n_classes += n_classes < 2 and _holds_pictures(entry)
        elif entry.suffix.lower() in _TABLE_SUFFIXES or is_subject_table(entry):
            return False
    return n_classes >= 2


def _holds_pictures(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(
            entry.name.lower().endswith(PICTURE_SUFFIXES) and not entry.name.startswith(".") for entry in entries
        )


LAYOUT = Layout(
    "class_folders", "one folder of pictures for each class: tumour/a.png, normal/b.png", recognises,
    read_class_folders, order=90,
)  # fmt: skip
