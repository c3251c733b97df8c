"""The subjects a split may place: one age each, their groups, and those left out with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neuroage.cohort.cohort import Cohort
from neuroage.cohort.columns import recognise_columns
from neuroage.errors import InfeasibleError, UsageError, did_you_mean


@dataclass(frozen=True)
class SubjectPool:
    """Subjects that may be placed, sorted by age and then id, so that no order of the input shows.

    Args:
        subjects: `Cohort.subjects()` of these N subjects.
        ages: Years, ascending, (N,).
        groups: Group number of every subject, (N,); a subject without a group is a group of its own.
        left_out: Everybody else: `subject_id`, `age`, `reason`.
        low: Lower end of the age range in years.
        high: Upper end of the age range in years.
    """

    subjects: pd.DataFrame
    ages: NDArray[np.float64]
    groups: NDArray[np.int64]
    left_out: pd.DataFrame
    low: float
    high: float

    def __len__(self) -> int:
        return len(self.ages)


def gather_subjects(
    source: Cohort | pd.DataFrame,
    age_range: tuple[float, float] | None = None,
    group: str | None = None,
    balance: Sequence[str] = (),
) -> SubjectPool:
    """Collect the subjects that a split may place.

    Args:
        source: A cohort, or any table with columns for subject and age in a usual spelling; images are not needed.
        age_range: Lowest and highest age in years, both included; None takes the range of the ages.
        group: A column (family, for example); members of one group never come to be on two sides.
        balance: Columns that will be balanced; only checked to exist here.

    Raises:
        UsageError: When a column does not exist or the range is empty.
        InfeasibleError: When no two subjects of different age are left.
    """
    cohort = source if isinstance(source, Cohort) else Cohort(_with_our_names(source))
    subjects = cohort.subjects()
    for name in [*balance, *([group] if group else [])]:
        if name not in subjects.columns:
            why = "varies within a subject" if name in cohort.table.columns else "does not exist"
            raise UsageError(f"column {name!r} {why}", expected=did_you_mean(name, subjects.columns[2:]))
    if age_range is not None and not age_range[0] < age_range[1]:
        raise UsageError(
            f"age range {age_range[0]:g}:{age_range[1]:g} is empty", expected="LOWEST:HIGHEST, as in 20:80"
        )
    low, high = age_range if age_range else (float(subjects["age"].min()), float(subjects["age"].max()))
    reason = np.where(subjects["age"].isna(), "no age", "")
    outside = ~subjects["age"].between(low, high) & (reason == "")
    reason[outside] = "x"
    reason = np.where(reason == "x", f"age outside {low:g} to {high:g}", reason)
    placed = subjects[reason == ""].sort_values(["age", "subject_id"], kind="stable").reset_index(drop=True)
    left_out = subjects[["subject_id", "age"]].assign(reason=reason)[reason != ""].reset_index(drop=True)
    ages = placed["age"].to_numpy(dtype=np.float64)
    if len(ages) < 2 or ages[0] == ages[-1]:
        raise InfeasibleError(
            f"{len(ages)} subjects with an age{' in the range' if age_range else ''}, {len(set(ages))} different ages",
            expected="at least two subjects of different age",
        )
    return SubjectPool(placed, ages, _group_numbers(placed, group), left_out, float(low), float(high))


def _with_our_names(table: pd.DataFrame) -> pd.DataFrame:
    found = recognise_columns([str(name) for name in table.columns])
    return table.rename(columns={header: field for field, header in found.items() if field in ("subject_id", "age")})


def _group_numbers(subjects: pd.DataFrame, group: str | None) -> NDArray[np.int64]:
    alone = np.arange(len(subjects), dtype=np.int64)
    if group is None:
        return alone
    column = subjects[group]
    named = column.notna().to_numpy() & ~column.astype(object).isin(["", "n/a"]).to_numpy()
    codes = pd.factorize(column)[0].astype(np.int64)
    return np.where(named, codes, alone + len(subjects))


def decade_of(ages: NDArray[np.float64]) -> NDArray[np.int64]:
    """Give the decade that every age lies in: 20 for 20.0 up to but not including 30.0."""
    return (np.floor(ages / 10) * 10).astype(np.int64)
