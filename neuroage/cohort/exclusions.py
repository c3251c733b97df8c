"""Exclusions: a small table of scans that somebody has looked at and does not want.

`neuroage qc` makes such a page and its button saves such a table; one written by hand serves as well.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from neuroage.cohort.problem import Problem
from neuroage.cohort.table_file import read_table
from neuroage.errors import DataError

if TYPE_CHECKING:
    from neuroage.cohort.cohort import Cohort

COLUMN, REASON = "scan_id", "reason"
NO_REASON = "no reason given"
N_NAMED = 5  # strangers that are named, not only counted


def read_exclusions(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read which scans are excluded, and why.

    Args:
        path: Table with the column `scan_id` and, if there is one, `reason`; further columns are ignored.

    Returns:
        scan_id → reason, "" where none is given; of a scan that is there twice, the first reason that is not empty.

    Raises:
        UsageError: There is no such table.
        DataError: It has no column `scan_id`.
    """
    table = read_table(Path(path))
    columns = {str(name).strip().lower(): name for name in table.columns}
    if COLUMN not in columns:
        raise DataError(
            f"{Path(path)} has no column scan_id (it has {', '.join(map(str, table.columns)) or 'none'})",
            expected="the columns scan_id and reason, as `neuroage qc` saves them",
        )
    ids = table[columns[COLUMN]].str.strip()
    reasons = table[columns[REASON]].str.strip() if REASON in columns else ids.map(lambda _: "")
    found: dict[str, str] = {}
    for scan_id, reason in zip(ids, reasons, strict=True):
        if scan_id:
            found[scan_id] = found.get(scan_id) or reason
    return found


def exclude(cohort: Cohort, path: str | os.PathLike[str]) -> Cohort:
    """Leave out the scans that a table names.

    Args:
        cohort: Of any modalities.
        path: As `read_exclusions` reads it.

    Returns:
        The other scans, in their order. Its `problems` end with what was excluded, by reason, and with the ids that
        are not in the cohort, where there are such.

    Raises:
        UsageError, DataError: As `read_exclusions` raises them, or no scan is left.
    """
    excluded = read_exclusions(path)
    name = Path(path).name
    there = set(cohort.table[COLUMN])
    reasons = {scan_id: reason for scan_id, reason in excluded.items() if scan_id in there}
    if there and len(reasons) == len(there):
        raise DataError(f"{Path(path)} excludes all {len(there)} scans of the cohort", fix="Take some out of it.")
    said = f"{len(reasons) or 'no'} {'scans' if len(reasons) > 1 else 'scan'} excluded"
    problems = [*cohort.problems, Problem(name, said, count_reasons(reasons))]
    if strangers := [scan_id for scan_id in excluded if scan_id not in there]:
        named = ", ".join(strangers[:N_NAMED]) + (", …" if len(strangers) > N_NAMED else "")
        one = len(strangers) == 1
        what = f"{len(strangers)} {'id is' if one else 'ids are'} not in the cohort: {named}"
        problems.append(Problem(name, what, "ignored"))
    return type(cohort)(cohort.table[~cohort.table[COLUMN].isin(list(reasons))], problems)


def count_reasons(reasons: Mapping[str, str]) -> str:
    """Count excluded scans by reason, the most frequent first.

    Example:
        >>> count_reasons({"a": "blurred", "b": "blurred", "c": ""})
        '2 blurred, 1 no reason given'
    """
    counts = Counter(reason or NO_REASON for reason in reasons.values()).most_common()
    return ", ".join(f"{count} {reason}" for reason, count in counts)
