"""From rows of predictions to one row per subject: the only unit that statistics may count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from neuroage.errors import DataError, RefusedError, did_you_mean

MODEL, FUSION, BASELINE = "model", "fusion", "baseline"
SAME_AGE_YEARS = 0.01  # four days: ages written with two decimals differ by less
_NEEDED = ("scan_id", "subject_id", "age", "predicted_age")


class Aligned(NamedTuple):
    """Predictions side by side.

    `table`: subject_id, age, decade and one `predicted_age_<name>` column per model, one row per shared subject, by
    age. `given`: name to the number of subjects it had. `rows`: name to its checked rows, shared subjects only.
    """

    table: pd.DataFrame
    given: dict[str, int]
    rows: dict[str, pd.DataFrame]


def scored_rows(predictions: pd.DataFrame, sets: Sequence[str], name: str) -> pd.DataFrame:
    """Check a predictions table and keep the rows of the sets that are to be scored.

    Args:
        predictions: Columns scan_id, subject_id, age, predicted_age (years); set, fold and member where there are any.
        sets: Sets to keep, such as `("validation",)`. A table without a `set` column is kept whole.
        name: The model's name, for messages.

    Returns:
        The rows, with subject_id and scan_id as text, and `fold` and `member` filled with 0 where absent.

    Raises:
        DataError: When a column is missing, an age is not a number, a scan was predicted twice by one member, one scan
            has two ages, or no row is left.
        RefusedError: When a subject that is to be scored is also a training subject of the same fold.
    """
    missing = [column for column in _NEEDED if column not in predictions.columns]
    if missing:
        raise DataError(
            f"predictions of {name!r} lack the column {missing[0]!r}", expected="columns " + ", ".join(_NEEDED)
        )
    table = predictions.copy()
    for column in ("scan_id", "subject_id"):
        table[column] = table[column].astype(str)
    for column in ("fold", "member"):
        table[column] = table[column].astype(object).fillna(0) if column in table.columns else 0
    if "set" in table.columns:
        chosen = table[table["set"].isin(list(sets))]
        if chosen.empty:
            present = sorted(table["set"].dropna().astype(str).unique())
            raise DataError(
                f"predictions of {name!r} have no row of set {', '.join(map(repr, sets))}",
                expected=did_you_mean(sets[0] if sets else "", present),
                fix="Name a set that was predicted, or predict that set first.",
            )
        _refuse_leaks(table, chosen, name)
        table = chosen
    if table.empty:
        raise DataError(f"predictions of {name!r} have no rows", expected="at least one scan")
    _check_rows(table, name)
    return table.reset_index(drop=True)


def average_per_subject(rows: pd.DataFrame) -> pd.DataFrame:
    """Average members per scan, then scans per subject.

    Args:
        rows: As `scored_rows` returns them.

    Returns:
        One row per subject: subject_id, age, predicted_age (years), n_scans. A subject with many scans counts once.
    """
    scans = rows.groupby(["subject_id", "scan_id"], sort=True)[["age", "predicted_age"]].mean()
    subjects = scans.groupby("subject_id", sort=True)[["age", "predicted_age"]].mean()
    subjects["n_scans"] = scans.groupby("subject_id", sort=True).size()
    return subjects.reset_index()


def align(predictions: Mapping[str, pd.DataFrame], sets: Sequence[str]) -> Aligned:
    """Put several models' predictions side by side on the subjects that all of them have.

    Args:
        predictions: Name to predictions table.
        sets: Sets to keep in every table.

    Returns:
        The shared subjects, how many each had, and each one's rows.

    Raises:
        RefusedError: When no subject is shared, or the same subject has two ages that differ by more than 0.01 years.
        DataError: As `scored_rows` does.
    """
    rows = {name: scored_rows(table, sets, name) for name, table in predictions.items()}
    subjects = {name: average_per_subject(table).set_index("subject_id") for name, table in rows.items()}
    shared = sorted(set.intersection(*(set(table.index) for table in subjects.values())))
    if not shared:
        counts = ", ".join(f"{name!r} has {len(table)}" for name, table in subjects.items())
        raise RefusedError(
            f"no subject was predicted by all of them ({counts})",
            expected="the same subjects, under the same subject_id",
            fix="Predict one split with every model, and compare those.",
        )
    first = next(iter(subjects))
    ages = subjects[first].loc[shared, "age"]
    for name, table in subjects.items():
        _refuse_other_ages(ages, table.loc[shared, "age"], first, name)
    wide = pd.DataFrame({"subject_id": shared, "age": ages.to_numpy(), "decade": decades_of(ages.to_numpy())})
    for name, table in subjects.items():
        wide[f"predicted_age_{name}"] = table.loc[shared, "predicted_age"].to_numpy()
    return Aligned(
        wide.sort_values(["age", "subject_id"], ignore_index=True),
        {name: len(table) for name, table in subjects.items()},
        {name: table[table["subject_id"].isin(shared)] for name, table in rows.items()},
    )


def decades_of(age: np.ndarray) -> np.ndarray:
    """Give the decade of each age in years: 20 for 20.0 up to just below 30."""
    return np.asarray(np.floor(np.asarray(age, dtype=np.float64) / 10) * 10, dtype=np.int64)


def _check_rows(table: pd.DataFrame, name: str) -> None:
    for column in ("age", "predicted_age"):
        values = pd.to_numeric(table[column], errors="coerce").to_numpy(dtype=np.float64)
        wrong = np.flatnonzero(~np.isfinite(values))
        if wrong.size:
            scan, value = table["scan_id"].iloc[wrong[0]], table[column].iloc[wrong[0]]
            raise DataError(
                f"predictions of {name!r}: {column} is {value} for scan {scan!r} ({wrong.size} such rows)",
                expected="a finite age in years",
                fix="Leave out scans without an age, and look at what made the prediction.",
            )
        table[column] = values
    twice = table.duplicated(["scan_id", "fold", "member"])
    if twice.any():
        row = table[twice].iloc[0]
        raise DataError(
            f"predictions of {name!r}: scan {row['scan_id']!r} appears twice for fold {row['fold']}, "
            f"member {row['member']}",
            expected="one row per scan and member",
        )
    ages = table.groupby("scan_id")["age"]
    spread = ages.max() - ages.min()
    if float(spread.max()) > SAME_AGE_YEARS:
        raise DataError(f"predictions of {name!r}: scan {spread.idxmax()!r} has two ages", expected="one age per scan")


def _refuse_leaks(table: pd.DataFrame, chosen: pd.DataFrame, name: str) -> None:
    keys = ["subject_id", "fold"]
    trained = table.loc[table["set"] == "train", keys].drop_duplicates()
    leaked = chosen.loc[chosen["set"] != "train", keys].drop_duplicates().merge(trained, on=keys)
    if len(leaked):
        raise RefusedError(
            f"{name!r} trained on {len(leaked)} of the subjects it would be scored on, "
            f"{leaked['subject_id'].iloc[0]!r} first",
            expected="subjects that the model has never seen",
            fix="Split by subject and train again.",
        )


def _refuse_other_ages(ages: pd.Series, others: pd.Series, first: str, name: str) -> None:
    apart = (ages - others).abs()
    if float(apart.max()) > SAME_AGE_YEARS:
        subject = str(apart.idxmax())
        raise RefusedError(
            f"subject {subject!r} is {ages[subject]:.2f} years old for {first!r} and {others[subject]:.2f} for {name!r}"
            f" ({int((apart > SAME_AGE_YEARS).sum())} such subjects)",
            expected=f"one age per subject, to {SAME_AGE_YEARS} years",
            fix="Use one table of ages for both, and the same sessions of each subject.",
        )
