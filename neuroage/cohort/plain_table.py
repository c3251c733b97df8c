"""Any table of subjects with ages or labels; the images are in its path column, lie beside it, or are elsewhere."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pandas as pd

from neuroage.cohort.cohort import Cohort
from neuroage.cohort.columns import recognise_columns
from neuroage.cohort.image_files import find_images, image_fault, modality_of_image, split_volume
from neuroage.cohort.labels import has_labels, is_label_column
from neuroage.cohort.layouts import Layout
from neuroage.cohort.paths import absolute_paths
from neuroage.cohort.problem import Problem
from neuroage.cohort.standard_table import settle_duplicates, standardise
from neuroage.cohort.table_file import TABLE_SUFFIXES, read_table, table_head
from neuroage.errors import DataError, UsageError

_KEY = ("scan_id", "subject_id", "session", "modality", "path")


def read(source: Path) -> Cohort:
    """Read a table, or a folder that holds one table and images whose names contain its subject ids.

    Rules: rows that repeat a subject, session, modality and path are settled as `settle_duplicates` says. When no path
    of the table exists here, the rows are kept without images; when only some are missing, those rows are left out.
    Bare file names, none of which lies beside the table, are looked for in the folders below it.
    """
    if source.is_dir():
        return _read_folder(source)
    table, problems = standardise(read_table(source), source.name)
    table, notes = settle_duplicates(table, _KEY, source.name)
    problems += notes
    if (table["path"] != "").any():
        table, notes = _check_paths(table, source)
        problems += notes
    return Cohort(table, problems + ageless(table, source.name))


def ageless(table: pd.DataFrame, name: str) -> list[Problem]:
    """Note the rows without an age, in one problem; a table of labels without any age is as it should be."""
    rows = table["subject_id"][table["age"].isna()]
    if len(rows) == 0 or (len(rows) == len(table) and has_labels(table)):
        return []
    listed = ", ".join(rows.astype(str).iloc[:10]) + (", …" if len(rows) > 10 else "")
    return [Problem(name, f"no age for {len(rows)} of {len(table)} rows: {listed}", "kept; splits leave them out")]


def _check_paths(table: pd.DataFrame, source: Path) -> tuple[pd.DataFrame, list[Problem]]:
    table, found = _find_by_name(table, source)
    table = table.assign(path=absolute_paths(table["path"], source.parent))
    faults = {path: image_fault(Path(path)) for path in table["path"].unique() if path}
    guessed = table["path"].map(modality_of_image)
    table["modality"] = table["modality"].where(table["modality"] != "", guessed)
    if faults and not any(os.path.lexists(split_volume(Path(path))[0]) for path in faults):
        example = next(iter(faults))
        what = f"none of its {len(faults)} image paths exists here, for example {example}"
        return table.assign(path=""), [Problem(source.name, what, "rows kept without images")]
    fault = table["path"].map(lambda path: faults.get(path, ""))
    problems = [
        Problem(f"{source.name} line {line}", f"{table.loc[line, 'path']} {fault[line]}", "row left out")
        for line in table.index[fault != ""]
    ]
    return table[fault == ""], found + problems


def _find_by_name(table: pd.DataFrame, source: Path) -> tuple[pd.DataFrame, list[Problem]]:
    """Look below the table's folder for its images when it gives bare file names and none of them lies beside it."""
    names = [path for path in table["path"].unique() if path]
    if any("/" in name or "\\" in name or os.path.lexists(source.parent / name) for name in names):
        return table, []
    wanted, found = set(names), dict[str, list[str]]()
    for path in find_images(source.parent):
        if path.name in wanted:
            found.setdefault(path.name, []).append(str(path))
    only = {name: paths[0] for name, paths in found.items() if len(paths) == 1}
    problems = []
    if only:
        what = f"{len(only)} of {len(names)} file names were found in folders below"
        problems.append(Problem(source.name, what, f"for example {os.path.relpath(only[min(only)], source.parent)}"))
    if several := sorted(set(found) - set(only)):
        what = f"{len(several)} file names are in several folders, for example {several[0]}"
        problems.append(Problem(source.name, what, "not taken"))
    return table.assign(path=[only.get(path, path) for path in table["path"]]), problems


def _read_folder(folder: Path) -> Cohort:
    table_path = _the_table(folder)
    table, problems = standardise(read_table(table_path), table_path.name)
    if (table["path"] != "").any():
        return read(table_path)
    table, notes = settle_duplicates(table, ("subject_id", "session"), table_path.name)
    problems += notes
    images = find_images(folder)
    if not images:
        return Cohort(table, problems + ageless(table, table_path.name))
    scans, notes = _match_images(table, images, table_path.name, folder)
    return Cohort(scans, problems + notes + ageless(scans, table_path.name))


def _the_table(folder: Path) -> Path:
    usable = [path for path in sorted(folder.iterdir()) if is_subject_table(path)]
    if len(usable) == 1:
        return usable[0]
    named = ", ".join(path.name for path in usable)
    raise UsageError(
        f"{folder} holds {len(usable)} tables of subjects with ages or labels" + (f": {named}" if usable else ""),
        expected="exactly one",
        fix="Give the table itself.",
    )


def is_subject_table(path: Path) -> bool:
    """Say whether a file is a table of subjects with ages, or of subjects or images with labels; reads its head."""
    head = table_head(path)
    if head is None:
        return False
    columns = set(recognise_columns(head.columns))
    labelled = any(is_label_column(header) for header in head.columns) and bool({"subject_id", "path"} & columns)
    return {"subject_id", "age"} <= columns or labelled


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in re.split(r"[^0-9A-Za-z]+", text.lower()) if word)


def _match_images(
    table: pd.DataFrame, images: list[Path], name: str, folder: Path
) -> tuple[pd.DataFrame, list[Problem]]:
    rows_of: dict[tuple[str, ...], list[int]] = {}
    for row, subject in enumerate(table["subject_id"]):
        rows_of.setdefault(_words(subject), []).append(row)
    longest = max(len(words) for words in rows_of)
    rows: list[int] = []
    paths: list[str] = []
    problems: list[Problem] = []
    strangers: list[str] = []
    for path in images:
        fault = image_fault(path)
        if fault:
            problems.append(Problem(str(path.relative_to(folder)), fault, "scan left out"))
            continue
        match = _row_of_image(_words(str(path.relative_to(folder))), rows_of, longest, table["session"].tolist())
        if match is None:
            strangers.append(path.name)
        else:
            rows.append(match)
            paths.append(str(path))
    if strangers:
        what = f"{len(strangers)} images name no subject of the table, for example {strangers[0]}"
        problems.append(Problem(name, what, "left out"))
    if not rows:
        raise DataError(f"none of the {len(images)} images in {folder} names a subject of {name}")
    absent = len(table) - len(set(rows))
    if absent:
        problems.append(Problem(name, f"{absent} of {len(table)} rows have no image here", "not indexed"))
    scans = table.iloc[rows].assign(path=paths)
    scans["modality"] = np.where(
        scans["modality"] != "", scans["modality"], [modality_of_image(path) for path in paths]
    )
    return scans.assign(scan_id=""), problems


def _row_of_image(
    words: tuple[str, ...], rows_of: dict[tuple[str, ...], list[int]], longest: int, sessions: list[str]
) -> int | None:
    for size in range(min(longest, len(words)), 0, -1):  # the longest id wins: "s1_b" before "s1"
        for start in range(len(words) - size, -1, -1):  # the file name before its folders
            rows = rows_of.get(words[start : start + size])
            if rows:
                named = [row for row in rows if sessions[row] and set(_words(sessions[row])) <= set(words)]
                return (named or rows)[0]
    return None


def recognises(source: Path) -> bool:
    """Any table file, or a folder with a table of subjects and ages, or of images and labels, at its top."""
    if source.is_file():
        return source.suffix.lower() in TABLE_SUFFIXES
    return any(is_subject_table(path) for path in source.iterdir())


LAYOUT = Layout(
    "plain_table", "a table with a subject column and ages or labels, images optional", recognises, read, order=100
)
