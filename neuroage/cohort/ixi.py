"""IXI: images named `IXI999-Guys-1234-T1.nii.gz` and the table IXI.xls.

Source: https://brain-development.org/ixi-dataset/ (CC BY-SA 3.0).
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from neuroage.cohort.cohort import Cohort
from neuroage.cohort.columns import normal_header
from neuroage.cohort.image_files import find_images, image_fault, is_image_name
from neuroage.cohort.layouts import Layout
from neuroage.cohort.modalities import canonical_modality
from neuroage.cohort.plain_table import ageless
from neuroage.cohort.problem import Problem
from neuroage.cohort.standard_table import settle_duplicates, standardise
from neuroage.cohort.table_file import read_table, table_head
from neuroage.errors import DataError

_NAME = re.compile(r"(IXI\d{3})-(Guys|HH|IOP)-(\d+)-(T1|T2|PD|MRA)(?![A-Za-z0-9])")


def read(source: Path) -> Cohort:
    """Read the IXI table, and the images when the source is a folder that holds some.

    Rules for the ids that the table has twice: the same age twice counts once; ages up to a year apart are replaced by
    their mean; ages further apart cannot both be right, and the scans are left out. Contradicting sexes are emptied.
    1 is male, 2 is female. Scans without an age in the table are kept without one.
    """
    table_path = source if source.is_file() else _the_table(source)
    table, problems = standardise(read_table(table_path), table_path.name)
    table["subject_id"] = table["subject_id"].map(_subject)
    images = find_images(source) if source.is_dir() else []
    scans, notes = _list_images(images, source)
    problems += notes
    if images and len(scans) == 0:
        raise DataError(
            f"none of the {len(images)} images in {source} can be used: {_first(notes)}",
            expected="readable files named like IXI999-Guys-1234-T1.nii.gz",
        )
    if len(scans):
        with_image = table["subject_id"].isin(scans["subject_id"])
        if not with_image.all():
            what = f"{int((~with_image).sum())} of {len(table)} rows have no image here"
            problems.append(Problem(table_path.name, what, "not indexed"))
        table = table[with_image]
    settled, notes = settle_duplicates(table, ("subject_id",), table_path.name)
    problems += notes
    if len(scans):
        conflicting = set(table["subject_id"]) - set(settled["subject_id"])
        scans = scans[~scans["subject_id"].isin(conflicting)]
        settled = scans.merge(
            settled.drop(columns=["scan_id", "session", "modality", "path", "site"]), how="left", on="subject_id"
        )
    return Cohort(settled, problems + ageless(settled, table_path.name))


def _subject(number: str) -> str:
    digits = re.sub(r"\D", "", number)
    return f"IXI{int(digits):03d}" if digits else number


def _first(problems: list[Problem]) -> str:
    return str(problems[0]) if problems else "no name fits"


def _list_images(images: list[Path], folder: Path) -> tuple[pd.DataFrame, list[Problem]]:
    rows, problems, strangers = [], [], []
    for path in images:
        match = _NAME.match(path.name)
        if not match:
            strangers.append(path.name)
            continue
        fault = image_fault(path)
        if fault:
            problems.append(Problem(str(path.relative_to(folder.absolute())), fault, "scan left out"))
            continue
        subject, site, _, sequence = match.groups()
        rows.append((subject, "", canonical_modality(sequence), str(path), site))
    if strangers:
        what = f"{len(strangers)} images are no T1, T2, PD or MRA of IXI, for example {strangers[0]}"
        problems.append(Problem(str(folder), what, "left out"))
    return pd.DataFrame(rows, columns=["subject_id", "session", "modality", "path", "site"]), problems


def _the_table(folder: Path) -> Path:
    tables = [path for path in sorted(folder.iterdir()) if _is_table(path)]
    if not tables:
        raise DataError(
            f"{folder} has IXI images but no table with a column IXI_ID",
            expected="IXI.xls or IXI.csv beside them",
            fix="Copy IXI.xls into the folder.",
        )
    return tables[0]


def _is_table(path: Path) -> bool:
    head = table_head(path)
    return head is not None and "ixi_id" in {normal_header(header) for header in head.columns}


def recognises(source: Path) -> bool:
    """A table with a column IXI_ID, a folder with one, or a folder most images of which are named as IXI's."""
    if source.is_file():
        return _is_table(source)
    beside = list(source.iterdir())
    images = [path.name for path in beside if is_image_name(path.name)]
    n_named = sum(bool(_NAME.match(name)) for name in images)
    return n_named > len(images) / 2 or any(_is_table(path) for path in beside)


LAYOUT = Layout("ixi", "IXI999-Guys-1234-T1.nii.gz … and IXI.xls", recognises, read)
