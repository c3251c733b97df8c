"""Predictions as a table: one row a scan (and member), `gap = predicted − age` everywhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from neuroage.errors import DataError, UsageError, did_you_mean
from neuroage.files import atomic_path

TEXT_COLUMNS = ("scan_id", "subject_id", "group", "set", "member", "target_label")
LEADING_COLUMNS = ("scan_id", "subject_id", "set", "fold", "member", "age", "predicted_age", "gap")


def save_predictions(table: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write a predictions table as CSV, atomically, with `gap` beside each prediction and every digit kept."""
    table = table.copy()
    if {"age", "predicted_age"} <= set(table.columns):
        table["gap"] = table["predicted_age"] - table["age"]
    leading = [column for column in LEADING_COLUMNS if column in table.columns]
    table = table[leading + [column for column in table.columns if column not in leading]]
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)


def read_predictions(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a predictions table; identifiers stay text.

    Raises:
        UsageError: No such file.
        DataError: A column is missing.
    """
    if not Path(path).is_file():
        raise UsageError(f"No predictions at {path}", fix="Run `neuroage predict`, or train to the end.")
    table = pd.read_csv(path, dtype=dict.fromkeys(TEXT_COLUMNS, str))
    # In text only a blank is missing: a class, or a person, may be called "None" or "NA".
    texts = pd.read_csv(
        path, usecols=lambda name: name in TEXT_COLUMNS, dtype=str, keep_default_na=False, na_values=[""]
    )
    table[list(texts.columns)] = texts
    wanted = ["scan_id", "subject_id"]
    if not any(str(column).startswith("probability_") for column in table.columns):
        wanted.append("predicted_age")
    for column in wanted:
        if column not in table.columns:
            raise DataError(f"{path} has no column {column!r}", expected=did_you_mean(column, list(table.columns)))
    return table


def average_members(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Average the predictions of several members, scan by scan; of ages their standard deviation is `members_std`.

    Args:
        tables: One predictions table a member, with the same scans.

    Returns:
        One row a scan, in the order of the first table.
    """
    if len(tables) == 1:
        return tables[0]
    stacked = pd.concat(tables, ignore_index=True)
    grouped = stacked.groupby("scan_id", sort=False)
    predicted = [column for column in stacked.columns if column.startswith(("predicted_", "probability_"))]
    result = grouped.first().reset_index()
    means = grouped[predicted].mean()
    result[predicted] = means.loc[result["scan_id"]].to_numpy()
    if "predicted_age" not in result.columns:
        return result
    result["members_std"] = grouped["predicted_age"].std(ddof=0).loc[result["scan_id"]].to_numpy()
    if "age" in result.columns:
        result["gap"] = result["predicted_age"] - result["age"]
    return result
