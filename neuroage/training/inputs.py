"""What a user names on the command line or in Python, as a cohort: image files, DICOM folders, layouts, tables."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from neuroage.cohort import Cohort
from neuroage.cohort.dicom import LOOKED_AT
from neuroage.cohort.dicom_header import looks_like_dicom
from neuroage.cohort.image_files import split_volume
from neuroage.errors import UsageError
from neuroage.imaging import picture, read

TABLE_SUFFIXES = (".csv", ".tsv", ".xls", ".xlsx")


def gather_scans(
    inputs: Sequence[str | os.PathLike[str]], modality: str, *, kind: str = "volume", reference: str = ""
) -> Cohort:
    """Make a cohort of what a user names: image files, folders of them, folders of a known layout, tables.

    Args:
        inputs: Paths, mixed as they come.
        modality: Of files that stand alone; cohorts keep only their scans of it.
        kind: Of the run's `prepare`: a folder of DICOM files is one `volume`, or a `picture` each.
        reference: Modality of the scans that others are registered through, looked for in cohorts; "" for none.

    Raises:
        UsageError: A path does not exist, or holds no scan.
    """
    parts: list[pd.DataFrame] = []
    alone: list[Path] = []
    for given in map(Path, inputs):
        if not split_volume(given)[0].exists():
            raise UsageError(f"No such file or folder: {given}", expected="scans, folders or cohort tables")
        name = given.name.lower()
        if name.endswith(TABLE_SUFFIXES):
            parts.append(_scans_of(given, modality, reference))
        elif given.is_dir() and not (kind == "volume" and _is_dicom_folder(given)):
            images = FILES_OF[kind](given)
            has_table = any(path.name.lower().endswith(TABLE_SUFFIXES) for path in given.iterdir())
            if has_table or not images:
                parts.append(_scans_of(given, modality, reference))
            else:
                alone.extend(images)
        else:
            alone.append(given)
    if alone:
        parts.append(_table_of_files(alone, modality))
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    if table.empty:
        raise UsageError(f"No {modality} scan among {', '.join(map(str, inputs))}")
    return Cohort(table)


def _scans_of(cohort_file: Path, modality: str, reference: str) -> pd.DataFrame:
    cohort = Cohort.read(cohort_file)
    return (cohort.with_references(reference) if reference else cohort).select(modality=modality).table


def _volumes_in(folder: Path) -> list[Path]:
    files = (path for path in folder.iterdir() if path.name.lower().endswith(read.SUFFIXES) and path.suffix != ".img")
    return sorted(files)


def _pictures_in(folder: Path) -> list[Path]:
    """Give the pictures in a folder and those below it; DICOM files often have no suffix."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return sorted(
        path
        for path in files
        if path.suffix.lower() in picture.SUFFIXES or (not path.suffix[1:].isalpha() and picture.is_dicom(path))
    )


FILES_OF = {"volume": _volumes_in, "picture": _pictures_in}


def _is_dicom_folder(folder: Path) -> bool:
    files = (path for path in sorted(folder.iterdir()) if path.is_file())
    return any(looks_like_dicom(path) for path in itertools.islice(files, LOOKED_AT))


def _table_of_files(files: Sequence[Path], modality: str) -> pd.DataFrame:
    stems = [_stem(path) for path in files]
    count = Counter(stems)
    names = [stem if count[stem] == 1 else f"{stem}_{index}" for index, stem in enumerate(stems)]
    return pd.DataFrame(
        {
            "scan_id": names,
            "subject_id": names,
            "session": "",
            "modality": modality,
            "path": [str(path.resolve()) for path in files],
            "age": np.nan,
            "sex": "",
            "site": "",
        }
    )


def _stem(path: Path) -> str:
    name = path.name
    for suffix in sorted((*read.SUFFIXES, *picture.SUFFIXES), key=len, reverse=True):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
            break
    return re.sub(r"[^\w.-]", "_", name)
