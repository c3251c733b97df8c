"""The table inside a cohort: read strictly from a file, and validated; every bad row in one report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from neuroage.cohort.ages import read_ages
from neuroage.cohort.image_files import modality_of_image
from neuroage.cohort.labels import Uncertain, choose_labels, is_label_column, read_label_columns
from neuroage.cohort.paths import absolute_paths, paths_in
from neuroage.cohort.problem import Problem, refuse_all
from neuroage.cohort.standard_table import FIELDS, as_numbers_where_plain, map_distinct, name_scans, standardise
from neuroage.cohort.table_file import read_table
from neuroage.errors import DataError


def read_cohort_table(
    path: Path, label: str | None, labels: Sequence[str] | None, uncertain: Uncertain
) -> tuple[pd.DataFrame, list[Problem]]:
    """Read a table of our own, or of labels, as `Cohort.from_csv` describes; every bad row is refused."""
    raw, problems = choose_labels(read_table(path), label, labels, path.name)
    labelled = any(is_label_column(name) for name in raw.columns)
    missing = [name for name in ("subject_id", "age") if name not in raw.columns and not labelled]
    if missing:
        raise DataError(
            f"{path} is no cohort table: it has no column {' and '.join(map(repr, missing))}",
            expected=f"the columns {', '.join(FIELDS)}; or a column with labels, named by label= or labels=",
            fix=f"For a table as found, run: neuroage index {path} --out cohort.csv",
        )
    table, notes = standardise(raw, path.name, uncertain=uncertain)
    problems += notes
    refuse_all(
        [Problem(p.where, p.what) for p in problems if p.action == "row left out"],
        f"{path} has rows that cannot be used",
        fix="Correct these rows; for a missing age write n/a.",
    )
    _refuse_repeats(table, f"{path.name} line")
    guessed = map_distinct(table["path"], modality_of_image)
    table["modality"] = table["modality"].where(table["modality"] != "", guessed)
    for name in paths_in(table):
        table[name] = absolute_paths(table[name], path.parent)
    return table, problems


def validate_table(table: pd.DataFrame) -> pd.DataFrame:
    """Give the table of a cohort in its standard form: all fields first, scan ids made, ages and labels as numbers.

    Raises:
        DataError: As `Cohort` says.
    """
    if "subject_id" not in table.columns:
        raise DataError("a cohort needs a column subject_id", fix="Name one, or use Cohort.read for a table as found.")
    table = table.reset_index(drop=True)
    row_names = pd.Series([f"row {row}" for row in table.index], dtype=object)
    bad: list[Problem] = []
    clean = pd.DataFrame(index=table.index)
    for name in FIELDS:
        cells = table[name] if name in table.columns else pd.Series("", index=table.index, dtype=object)
        if name == "age":
            clean[name], _, notes = read_ages(cells, row_names)
            bad += [note for note in notes if note.action == "row left out"]
        else:
            clean[name] = cells.astype(object).where(cells.notna(), "").astype(str)
    labels, _ = read_label_columns(table.rename(columns=str), row_names, "the cohort")
    further = {
        str(name): labels[str(name)] if str(name) in labels else as_numbers_where_plain(table[name])
        for name in table.columns
        if name not in FIELDS
    }
    clean = pd.concat([clean, pd.DataFrame(further, index=table.index)], axis=1) if further else clean
    if (clean["scan_id"] == "").any():
        clean["scan_id"] = clean["scan_id"].where(clean["scan_id"] != "", name_scans(clean))
    bad += [Problem(f"row {row}", "no subject id") for row in np.flatnonzero(clean["subject_id"] == "")]
    refuse_all([Problem(problem.where, problem.what) for problem in bad], "the cohort has rows that cannot be used")
    _refuse_repeats(clean, "row")
    return clean


def _refuse_repeats(table: pd.DataFrame, row_name: str) -> None:
    named = table[table["scan_id"] != ""]
    repeated = named["scan_id"][named["scan_id"].duplicated(keep=False)]
    refuse_all(
        [Problem(f"{row_name} {row}", f"scan_id {scan!r} is there more than once") for row, scan in repeated.items()],
        "scans are named twice",
        expected="a scan_id of its own for every row",
    )
