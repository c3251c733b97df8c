"""OASIS-1 cross-sectional: `OAS1_0001_MR1…` as NIfTI or Analyze, and oasis_cross-sectional.csv.

Source: Marcus et al., J Cogn Neurosci 19 (2007) 1498, https://doi.org/10.1162/jocn.2007.19.9.1498
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from neuroage.cohort.cohort import Cohort
from neuroage.cohort.image_files import find_images, image_fault
from neuroage.cohort.layouts import Layout
from neuroage.cohort.plain_table import ageless
from neuroage.cohort.problem import Problem
from neuroage.cohort.standard_table import settle_duplicates, standardise
from neuroage.cohort.table_file import read_table, table_head
from neuroage.errors import DataError

_ID = re.compile(r"(OAS1_\d{4})_(MR\d+)")
# What the discs hold of one session, most processed first; only the first kind present is indexed.
_STAGES = ("_t88_masked_gfc", "_t88_gfc", "_sbj_111", "_mpr-")


def read(source: Path) -> Cohort:
    """Read the table and, when the source is a folder that holds some, the images.

    Rules: MR2 is a second visit of the same subject; where the table has no row for it, it takes age and sex of MR1.
    Of a session that is there in several stages of processing (the original discs) the most processed one is taken: the
    brain-masked atlas image, then the unmasked one, the average, the raw repeats. A CDR of 0 without an MMSE means that
    nobody was examined (both come from one interview), so that CDR is emptied.
    """
    table_path = source if source.is_file() else _the_table(source)
    table, problems = standardise(read_table(table_path), table_path.name)
    parts = table["subject_id"].str.extract(r"^(OAS1_\d{4})(?:_(MR\d+))?")
    table["subject_id"] = parts[0].fillna(table["subject_id"])
    table["session"] = parts[1].fillna("MR1")
    table, notes = settle_duplicates(table, ("subject_id", "session"), table_path.name)
    problems += notes + _empty_unexamined(table, table_path.name)
    images = find_images(source) if source.is_dir() else []
    if not images:
        return Cohort(table, problems + ageless(table, table_path.name))
    scans, notes = _list_images(images, source)
    problems += notes
    if len(scans) == 0:
        reason = str(notes[0]) if notes else "no name fits"
        raise DataError(
            f"none of the {len(images)} images in {source} can be used: {reason}", expected="names with OAS1_0001_MR1"
        )
    table, notes = _lend_first_session(table, scans, table_path.name)
    problems += notes
    merged = scans.merge(table.drop(columns=["scan_id", "modality", "path"]), how="left", on=["subject_id", "session"])
    absent = len(table) - len(table.merge(scans[["subject_id", "session"]].drop_duplicates()))
    if absent:
        problems.append(Problem(table_path.name, f"{absent} of {len(table)} rows have no image here", "not indexed"))
    return Cohort(merged, problems + ageless(merged, table_path.name))


def _empty_unexamined(table: pd.DataFrame, name: str) -> list[Problem]:
    if not {"CDR", "MMSE"} <= set(table.columns):
        return []
    cdr, mmse = (pd.to_numeric(table[column], errors="coerce") for column in ("CDR", "MMSE"))
    unexamined = (cdr == 0) & mmse.isna()
    table["CDR"] = cdr.mask(unexamined)
    n = int(unexamined.sum())
    return [Problem(name, f"CDR is 0 without an MMSE in {n} rows: not examined", "CDR emptied")] if n else []


def _list_images(images: list[Path], folder: Path) -> tuple[pd.DataFrame, list[Problem]]:
    found: dict[tuple[str, str], list[Path]] = {}
    problems, strangers = [], 0
    for path in images:
        match = _ID.match(path.name)
        if not match or "_fseg" in path.name:  # FAST's tissue labels are no image
            strangers += 1
        elif fault := image_fault(path):
            problems.append(Problem(str(path.relative_to(folder.absolute())), fault, "scan left out"))
        else:
            found.setdefault((match[1], match[2]), []).append(path)
    rows, n_passed = [], 0
    for (subject, session), paths in found.items():
        chosen = _most_processed(paths)
        n_passed += len(paths) - len(chosen)
        rows += [(subject, session, "t1", str(path)) for path in chosen]
    if strangers + n_passed:
        what = f"{strangers + n_passed} files are label maps, strangers or less processed copies"
        problems.append(Problem(str(folder), what, "left out"))
    return pd.DataFrame(rows, columns=["subject_id", "session", "modality", "path"]), problems


def _most_processed(paths: list[Path]) -> list[Path]:
    for stage in _STAGES:
        chosen = [path for path in paths if stage in path.name]
        if chosen:
            return chosen
    return paths


def _lend_first_session(table: pd.DataFrame, scans: pd.DataFrame, name: str) -> tuple[pd.DataFrame, list[Problem]]:
    have = set(zip(table["subject_id"], table["session"], strict=True))
    wanted = scans[["subject_id", "session"]].drop_duplicates()
    lacking = [(s, v) for s, v in zip(wanted["subject_id"], wanted["session"], strict=True) if (s, v) not in have]
    first = table.drop_duplicates("subject_id").set_index("subject_id", drop=False)
    lent = [(s, v) for s, v in lacking if s in first.index]
    if not lent:
        return table, []
    rows = first.loc[[subject for subject, _ in lent], ["subject_id", "age", "sex"]].assign(
        session=[v for _, v in lent]
    )
    named = ", ".join(f"{s}_{v}" for s, v in lent[:5]) + (", …" if len(lent) > 5 else "")
    problem = Problem(name, f"no row for {len(lent)} sessions: {named}", "age and sex of the subject's first row taken")
    return pd.concat([table, rows], ignore_index=True).fillna(
        {"site": "", "scan_id": "", "modality": "", "path": ""}
    ), [problem]


def _the_table(folder: Path) -> Path:
    tables = [path for path in sorted(folder.iterdir()) if _is_table(path)]
    if not tables:
        raise DataError(
            f"{folder} has OASIS-1 images but no table of them",
            expected="oasis_cross-sectional.csv beside them",
            fix="Copy it into the folder.",
        )
    return tables[0]


def _is_table(path: Path) -> bool:
    head = table_head(path)
    return head is not None and len(head) > 0 and "ID" in head.columns and bool(_ID.match(head["ID"].iloc[0]))


def recognises(source: Path) -> bool:
    """A table whose ID column holds OAS1_0001_MR1 …, a folder with one, or the discs with such names."""
    if source.is_file():
        return _is_table(source)
    names = [*source.iterdir(), *source.glob("disc*/OAS1_*")]
    return any(_ID.match(path.name) or _is_table(path) for path in names)


LAYOUT = Layout("oasis1", "OAS1_0001_MR1… as NIfTI or Analyze, and oasis_cross-sectional.csv", recognises, read)
