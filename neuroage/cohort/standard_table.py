"""From a table as found to the columns of a cohort: names, ages, sexes, duplicates; every problem noted."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neuroage.cohort.ages import read_ages, read_sexes
from neuroage.cohort.columns import recognise_columns
from neuroage.cohort.image_files import name_files
from neuroage.cohort.labels import Uncertain, is_label_column, read_label_columns
from neuroage.cohort.modalities import canonical_modality
from neuroage.cohort.problem import MAX_LISTED, Problem
from neuroage.cohort.table_file import looks_headless
from neuroage.errors import DataError

FIELDS = ("scan_id", "subject_id", "session", "modality", "path", "age", "sex", "site")
# Two entries of one scan may differ by a birthday or a rounding; more than a year is two people or a slip of the pen.
AGE_CONFLICT_YEARS = 1.0
_PLAIN_NUMBER = re.compile(r"-?(0|[1-9]\d{0,14})(\.\d+)?([eE][+-]?\d+)?$")


def standardise(
    raw: pd.DataFrame, name: str, *, needs_age: bool = True, uncertain: Uncertain = "missing"
) -> tuple[pd.DataFrame, list[Problem]]:
    """Bring a found table into the columns of a cohort; rows with an unreadable age or no subject are left out.

    A table with label columns needs no age, and where it names only images, each image is a subject of its own.

    Args:
        raw: Text cells; the index is the line in the file.
        name: What to call the table in reports, usually its file name.
        needs_age: Whether a table without labels and without an age column is refused.
        uncertain: What a label of −1 means.

    Returns:
        A table with every field of a cohort (scan_id "" where the table has none), further columns after them, indexed
        by line; and the problems.

    Raises:
        DataError: When no column names the subject, none the age (if needed), a label cannot be read, or no row is
            left.
    """
    problems: list[Problem] = []
    columns = recognise_columns(raw.columns)
    if any(is_label_column(header) for header in raw.columns):
        needs_age = False
        raw, problems = _name_after_images(raw, columns, name)
        columns = recognise_columns(raw.columns)
    _require_columns(raw, columns, name, needs_age)
    where = pd.Series([f"{name} line {line}" for line in raw.index], index=raw.index, dtype=object)
    table = pd.DataFrame(index=raw.index)
    for field in FIELDS:
        cells = raw[columns[field]] if field in columns else pd.Series("", index=raw.index, dtype=object)
        table[field] = cells.fillna("").astype(str).str.strip()
    table["modality"] = map_distinct(table["modality"], canonical_modality)
    if "sex" in columns:
        table["sex"], notes = read_sexes(table["sex"], f"{name} column {columns['sex']!r}")
        problems += notes
    ages, refused, notes = read_ages(table["age"], where)
    problems += notes
    table["age"] = ages
    nameless = (table["subject_id"] == "").to_numpy() | table["subject_id"].str.lower().isin(["n/a", "nan"]).to_numpy()
    problems += [Problem(where[line], "no subject id", "row left out") for line in raw.index[nameless & ~refused]]
    labels, notes = read_label_columns(raw, where, name, uncertain)
    problems += notes
    for header in raw.columns:
        if header not in columns.values():
            cells = labels[header] if header in labels else as_numbers_where_plain(raw[header])
            table[_free_name(header, table)] = cells
    kept = table[~refused & ~nameless]
    if len(kept) == 0:
        raise DataError(f"none of the {len(raw)} rows of {name} can be used: {_first(problems)}")
    return kept, problems


def _name_after_images(raw: pd.DataFrame, columns: dict[str, str], name: str) -> tuple[pd.DataFrame, list[Problem]]:
    if "path" not in columns or {"scan_id", "subject_id"} <= set(columns):
        return raw, []
    paths = [str(path).strip().replace("\\", "/") for path in raw[columns["path"]]]
    names = name_files([path.rsplit("/", 1)[-1] for path in paths])
    if len(set(names)) < len(names):
        names = name_files(paths)
    if "scan_id" in columns:
        names = raw[columns["scan_id"]].tolist()
    elif len(set(names)) == len(names) and all(names):
        raw = raw.assign(scan_id=names)
    if "subject_id" in columns:
        return raw, []
    what = "no column names the subject: every image counts as a subject of its own"
    return raw.assign(subject_id=names), [Problem(name, what, "add a column subject_id if a subject has several")]


def _free_name(header: str, table: pd.DataFrame) -> str:
    return header if header not in table.columns else f"{header}_2"


def _first(problems: Sequence[Problem]) -> str:
    return f"{problems[0]}" if problems else "it has a header and nothing below it"


def _require_columns(raw: pd.DataFrame, columns: dict[str, str], name: str, needs_age: bool) -> None:
    missing = [field for field in ("subject_id", "age") if field not in columns and (field != "age" or needs_age)]
    if not missing:
        return
    if looks_headless(raw):
        first = ", ".join(str(header) for header in list(raw.columns)[:4])
        raise DataError(
            f"{name} has no header: its first line ({first}, …) is a record", fix="Add a line of column names."
        )
    words = {"subject_id": "a subject (participant_id, subject, …)", "age": "an age (age, AGE_AT_SCAN, …)"}
    listed = ", ".join(str(header) for header in list(raw.columns)[:12]) + (", …" if raw.shape[1] > 12 else "")
    raise DataError(
        f"{name} has no column for {' nor '.join(words[field] for field in missing)}; its columns are {listed}",
        fix=f"Rename the column to {missing[0]!r}, or add it."
        + " Of labels, name their columns: --label COLUMN or --labels A,B." * ("age" in missing),
    )


def map_distinct(column: pd.Series, function: object) -> pd.Series:
    """Apply a function of one text to a column, once for every distinct value."""
    assert callable(function)
    meaning = {value: function(value) for value in column.unique()}
    return column.map(meaning)


def as_numbers_where_plain(column: pd.Series) -> pd.Series:
    """Turn a text column into numbers when that loses nothing: no leading zeros, no words; empty cells become NaN."""
    if pd.api.types.is_numeric_dtype(column):
        return column
    text = column.fillna("").astype(str).str.strip()
    words = text.unique()
    filled = [word for word in words if word not in ("", "n/a", "nan", "NaN")]
    if not filled or not all(_PLAIN_NUMBER.match(word) for word in filled):
        return text
    return pd.to_numeric(text, errors="coerce").astype(float)


def settle_duplicates(table: pd.DataFrame, key: Sequence[str], name: str) -> tuple[pd.DataFrame, list[Problem]]:
    """Leave one row for every key, by a stated rule.

    Entries whose ages agree, or are there only once, become the first entry with that age. Ages that differ by at most
    one
    year are replaced by their mean. Ages further apart are a conflict, and the scan is left out. Sexes that
    contradict each other are emptied.

    Args:
        table: Rows as `standardise` gives them, indexed by line.
        key: The columns that should have been unique together.
        name: What to call the table in reports.

    Returns:
        The table without duplicates in its old order, and one problem for every key that had several rows.
    """
    key = list(key)
    repeated = table[table.duplicated(key, keep=False)]
    if len(repeated) == 0:
        return table, []
    groups = repeated.groupby(key, sort=False)
    ages = groups["age"].agg(["min", "max", "mean", "count"])
    spread = (ages["max"] - ages["min"]).fillna(0.0).to_numpy()
    named_sexes = repeated["sex"].where(repeated["sex"] != "").groupby([repeated[name] for name in key], sort=False)
    disputed = named_sexes.nunique().to_numpy() > 1
    first = repeated[~repeated.duplicated(key)].copy()  # in the order of the groups
    first["age"] = np.where(spread > 0, ages["mean"], ages["min"])
    first["sex"] = first["sex"].where(~disputed, "")
    kept = first[spread <= AGE_CONFLICT_YEARS]
    rows_of = _rows_of_groups(np.asarray(groups.ngroup(), dtype=np.int64))
    problems = [
        _duplicate_problem(repeated.iloc[rows], key, float(spread[k]), bool(disputed[k]), name)
        for k, rows in enumerate(rows_of[:MAX_LISTED])
    ]
    if len(rows_of) > MAX_LISTED:
        n_conflicts = int((spread[MAX_LISTED:] > AGE_CONFLICT_YEARS).sum())
        what = f"{len(rows_of) - MAX_LISTED} further scans are there more than once"
        problems.append(
            Problem(name, what, f"{n_conflicts} left out for conflicting ages, of the others the first kept")
        )
    return pd.concat([table[~table.index.isin(repeated.index)], kept]).sort_index(), problems


def _rows_of_groups(numbers: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    order = np.argsort(numbers, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)


def _duplicate_problem(rows: pd.DataFrame, key: list[str], spread: float, disputed: bool, name: str) -> Problem:
    lines = ", ".join(str(line) for line in rows.index[:6]) + (", …" if len(rows) > 6 else "")
    label = " ".join(str(value) for value in rows[key].iloc[0] if value != "")
    what = f"{label} is there {len(rows)} times"
    if spread > AGE_CONFLICT_YEARS:
        listed = " and ".join(f"{age:g}" for age in sorted(set(rows["age"].dropna().round(2))))
        return Problem(f"{name} lines {lines}", f"{what} with ages {listed}", "left out")
    action = f"first kept with the mean age {rows['age'].mean():.2f}" if spread > 0 else "first kept"
    return Problem(f"{name} lines {lines}", what, action + (", contradicting sexes emptied" if disputed else ""))


def name_scans(table: pd.DataFrame) -> pd.Series:
    """Make scan ids `subject_session_modality`; repeats get `_run-2`, `_run-3`, … in the order of the rows.

    Example:
        >>> scans = pd.DataFrame({"subject_id": ["a", "a"], "session": ["1", "1"], "modality": ["t1", "t1"]})
        >>> name_scans(scans).tolist()
        ['a_1_t1', 'a_1_t1_run-2']
    """
    names = table["subject_id"].astype(object)
    for column in ("session", "modality"):
        part = table[column].astype(object)
        names = names + np.where(part == "", "", "_" + part)
    count = (names.groupby(names).cumcount() + 1).to_numpy()
    runs = np.array([f"_run-{n}" if n > 1 else "" for n in count], dtype=object)
    named: pd.Series = names + runs
    while named.duplicated().any():  # a subject may itself be called "a_run-2"
        named = named.where(~named.duplicated(), named + "x")
    return pd.Series(named.astype(str))
