"""Label columns of a cohort: `label` (one class per image) and `label_<Name>` (1, 0, or NaN where it is unknown)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neuroage.cohort.columns import recognise_columns
from neuroage.cohort.problem import Problem, refuse_all
from neuroage.errors import UsageError, did_you_mean

CLASS_COLUMN = "label"
LABEL_PREFIX = "label_"
Uncertain = Literal["missing", "positive", "negative"]
_UNCERTAIN = -1.0  # how CheXpert (Irvin 2019, arXiv 1901.07031) and its kin write "the report does not decide"
_VALUES = {
    "1": 1.0, "1.0": 1.0, "true": 1.0, "yes": 1.0,
    "0": 0.0, "0.0": 0.0, "false": 0.0, "no": 0.0,
    "-1": _UNCERTAIN, "-1.0": _UNCERTAIN, "−1": _UNCERTAIN,
    "": np.nan, "n/a": np.nan, "nan": np.nan, "<na>": np.nan,
}  # fmt: skip
_NO_CLASS = frozenset({"", "n/a", "nan", "NaN", "<NA>"})  # "none" is a class: no tumour


def is_label_column(name: str) -> bool:
    """Say whether a column of a cohort holds labels.

    Example:
        >>> [is_label_column(name) for name in ("label", "label_Edema", "labels")]
        [True, True, False]
    """
    return name == CLASS_COLUMN or is_named_label(name)


def is_named_label(name: str) -> bool:
    """Say whether a column is one label, `label_<Name>`."""
    return name.startswith(LABEL_PREFIX) and len(name) > len(LABEL_PREFIX)


def has_labels(table: pd.DataFrame) -> bool:
    """Say whether any row of a cohort's table has a label."""
    return any(
        bool((table[name] != "").any() if name == CLASS_COLUMN else table[name].notna().any())
        for name in table.columns
        if is_label_column(name)
    )


def choose_labels(
    raw: pd.DataFrame, label: str | None, labels: Sequence[str] | None, name: str
) -> tuple[pd.DataFrame, list[Problem]]:
    """Call the columns that the user named `label` and `label_<Name>`.

    A column that also means something else (`sex` as the label) stays beside its copy.

    Args:
        raw: Text cells as found.
        label: Header of the column with one class per row; None leaves the table as it is.
        labels: Headers of the columns with one label each; the others that are called `label_…` are then left out.
        name: What to call the table in reports.

    Raises:
        UsageError: When a header is not in the table, or the name is taken by another column.
    """
    if isinstance(labels, str):
        raise UsageError(f"labels={labels!r} is one text", expected="a list of columns", fix=f"labels=[{labels!r}]")
    wanted = {header: header if is_named_label(header) else LABEL_PREFIX + header for header in labels or ()}
    if label is not None:
        wanted[label] = CLASS_COLUMN
    for header, column in wanted.items():
        if header not in raw.columns:
            raise UsageError(f"{name} has no column {header!r}", expected=did_you_mean(header, raw.columns))
        if header != column and column in raw.columns:
            raise UsageError(f"{name} has a column {column!r} beside {header!r}", fix=f"Rename one of {name}'s two.")
    problems = []
    if labels is not None:
        others = [header for header in raw.columns if is_named_label(header) and header not in wanted]
        if others:
            problems.append(Problem(name, f"labels that were not asked for: {', '.join(others)}", "left out"))
            raw = raw.drop(columns=others)
    shared = set(recognise_columns(raw.columns).values()) & set(wanted)
    raw = raw.assign(**{wanted[header]: raw[header] for header in shared})
    return raw.rename(columns={header: column for header, column in wanted.items() if header not in shared}), problems


def read_label_columns(
    table: pd.DataFrame, where: pd.Series, name: str, uncertain: Uncertain | None = None
) -> tuple[pd.DataFrame, list[Problem]]:
    """Read every label column of a table.

    Args:
        table: Cells as text, numbers or booleans; columns that are no labels are ignored.
        where: For every row, what to call it in a report.
        name: What to call the table in reports.
        uncertain: What −1 means: the label is missing (NaN), positive (1) or negative (0). None refuses it.

    Returns:
        The label columns alone: `label` as text ("" when missing), every `label_<Name>` as 1.0, 0.0 or NaN. And one
        problem for each column in which −1 was decided.

    Raises:
        UsageError: When the policy has another name.
        DataError: When cells are none of 1, 0, blank, −1, true, false, yes, no: all of them with their rows.
    """
    if uncertain is not None and uncertain not in get_args(Uncertain):
        raise UsageError(f"uncertain={uncertain!r}", expected=did_you_mean(uncertain, get_args(Uncertain)))
    decided = {"missing": np.nan, "positive": 1.0, "negative": 0.0}[uncertain or "missing"]
    result: dict[str, pd.Series] = {}
    notes: list[Problem] = []
    bad: list[Problem] = []
    for column in (column for column in table.columns if is_label_column(column)):
        text, code = _distinct_words(table[column])
        if column == CLASS_COLUMN:
            words = np.array(["" if word in _NO_CLASS else word for word in text], dtype=object)
            result[column] = pd.Series(words[code], index=table.index, dtype=object).astype(str)
            continue
        wrong = np.array([word.lower() not in _VALUES for word in text])[code]
        values = np.array([_VALUES.get(word.lower(), np.nan) for word in text])[code]
        undecided = values == _UNCERTAIN
        if uncertain is None:
            wrong |= undecided
        elif n := int(undecided.sum()):
            notes.append(Problem(name, f"{column} is uncertain (−1) in {n} rows", f"read as {uncertain}"))
        bad += [Problem(str(where.iloc[k]), f"{column} is {text[code[k]]!r}") for k in np.flatnonzero(wrong)]
        result[column] = pd.Series(np.where(undecided, decided, values), index=table.index)
    refuse_all(
        bad,
        f"{name} has labels that cannot be read",
        expected="1, 0, blank, true, false, yes, no" + (", and −1 for uncertain" if uncertain else ""),
        fix="Correct these rows; or rename a column that is no label, so that it does not begin with label_."
        + ("" if uncertain else " For −1 state the policy: Cohort.from_csv(…, uncertain='missing')."),
    )
    return pd.DataFrame(result, index=table.index), notes


def _distinct_words(column: pd.Series) -> tuple[list[str], NDArray[np.intp]]:
    """Give the distinct cells as text, and for each row the place of its own among them."""
    code, distinct = pd.factorize(column.to_numpy(dtype=object), use_na_sentinel=False)
    return [_word(cell) for cell in distinct] or [""], code


def _word(cell: object) -> str:
    if isinstance(cell, (bool, np.bool_)):
        return str(bool(cell))
    if isinstance(cell, (float, np.floating)):
        return f"{cell:.15g}" if cell == cell else ""
    return "" if cell is None or cell is pd.NA else str(cell).strip()
