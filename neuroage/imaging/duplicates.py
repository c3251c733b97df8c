"""Duplicates in a cohort: the same picture twice, and pictures so alike that they must stay on one side of a split.

Copies that were rescaled, recompressed or brightened and neighbouring slices of one head are found by their signatures
(`signatures`). Turned, mirrored or inverted copies, and those cropped or padded by more than about 2 %, are not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from neuroage.cohort.cohort import Cohort
from neuroage.cohort.labels import is_label_column
from neuroage.cohort.problem import Problem
from neuroage.errors import UsageError
from neuroage.imaging.fingerprints import take_fingerprints
from neuroage.imaging.signatures import Pairs, choose_distance, find_near_pairs

GROUP_COLUMN = "duplicate_group"
SURE_DISTANCE = 0.1  # nearer than any two strangers come in any kind of picture looked at: one picture, altered
LARGEST_GROUP = 0.05  # share of the cohort; a chain of chance likenesses glues whole classes, real series are shorter
SMALLEST_LARGEST = 50  # pictures that a group may have in a small cohort, too: a long series of slices
NAMED = 3  # scans named in a finding; the others are counted


@dataclass(frozen=True)
class Duplicates:
    """What was found: groups, the pairs they rest on, and what is odd about them.

    Args:
        table: `scan_id`, `duplicate_group` ("" for a scan that is like no other), in the order of the cohort.
        pairs: `scan_id`, `other_scan_id`, `kind` ("exact" or "near") and `distance` (1 − correlation of slopes, 0 to
            1). Of equal scans each is paired with the first alone, and only the first has near pairs.
        conflicts: Equal or nearly equal pictures (distance up to 0.1) whose labels contradict each other.
        notes: What was not compared, and what was not joined.
        distance: The limit used for near pairs.
    """

    table: pd.DataFrame
    pairs: pd.DataFrame
    conflicts: list[Problem]
    notes: list[Problem]
    distance: float

    def add_to(self, cohort: Cohort) -> Cohort:
        """Give the cohort with the column `duplicate_group`, the conflicts and notes among its problems."""
        groups = cohort.table["scan_id"].map(self.table.set_index("scan_id")[GROUP_COLUMN]).fillna("")
        problems = [*cohort.problems, *self.conflicts, *self.notes]
        return Cohort(cohort.table.assign(**{GROUP_COLUMN: groups}), problems)

    @property
    def report(self) -> dict[str, Any]:
        """Counts that can be saved: scans, pairs, groups, the sizes of the ten largest groups."""
        groups = self.table.loc[self.table[GROUP_COLUMN] != "", GROUP_COLUMN]
        sizes = sorted(groups.value_counts().tolist(), reverse=True)
        kinds = self.pairs["kind"].value_counts()
        return {
            "scans": len(self.table),
            "distance": self.distance,
            "exact_pairs": int(kinds.get("exact", 0)),
            "near_pairs": int(kinds.get("near", 0)),
            "groups": len(sizes),
            "scans_in_groups": len(groups),
            "largest_groups": sizes[:10],
            "conflicts": len(self.conflicts),
        }


def find_duplicates(
    cohort: Cohort,
    *,
    distance: float | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Duplicates:
    """Find exact and near duplicates among the images of a cohort.

    Use it before a split of pictures: data sets collected from the web hold the same picture under several names, and
    neighbouring slices of one head that say whose they are to any network.

    Pictures are exact duplicates when their decoded pixels are equal, volumes when their files are. Near duplicates are
    looked for among pictures alone. Groups are joined from the nearest pair on; pairs further apart than 0.1 join no
    group beyond a twentieth of the cohort (at least 50 scans), and a note counts what that left apart.

    Invariants: neither the order of the rows nor the number of threads matters; a scan is in one group at most.

    Args:
        cohort: Scans with files; others are not compared.
        distance: Largest 1 − correlation of a near pair, 0 to 0.8; 0 finds exact duplicates alone. None chooses 0.15
            to 0.45 by how alike pictures of different subjects of this cohort are.
        threads: Files read at a time; the number of usable cores when None.
        progress: Called with (done, all) after each scan.

    Raises:
        UsageError: When the distance is out of its range.
        DataError: When no picture at all can be read.
        InfeasibleError: When more than 20 million pairs are that near.

    Example:
        >>> find_duplicates(Cohort(pd.DataFrame({"subject_id": ["a", "b"]}))).report["groups"]
        0
    """
    if distance is not None and not 0 <= distance <= 0.8:
        raise UsageError(f"distance is {distance:g}", expected="0 to 0.8, or None")
    threads = threads or len(
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )
    rows = cohort.table[["scan_id", "subject_id", "path"]].sort_values("scan_id").reset_index(drop=True)
    taken = take_fingerprints(rows["path"].tolist(), threads, progress)
    first = _first_of_equal(taken.digests, len(rows))
    shown = np.array([row for row in taken.rows if first[row] == row], dtype=np.int64)
    signatures = taken.signatures[np.isin(taken.rows, shown)]
    if distance is None:
        distance = choose_distance(signatures, rows["subject_id"].to_numpy(dtype=object)[shown])
    near = find_near_pairs(signatures, distance, threads) if distance > 0 else _NO_PAIRS
    near = (shown[near[0]], shown[near[1]], near[2])
    groups, n_apart = _join(first, near)
    names = rows["scan_id"].to_numpy(dtype=object)
    sure = near[2] <= SURE_DISTANCE
    rows["exact"], rows["group"] = first, groups
    rows["sure"], _ = _join(first, (near[0][sure], near[1][sure], near[2][sure]))
    notes = [Problem(names[row], fault, "not compared") for row, fault in sorted(taken.faults.items())]
    notes += taken.remarks + _note_apart(n_apart, len(rows)) + _note_strangers(rows)
    rows[GROUP_COLUMN] = np.where(rows["group"].duplicated(keep=False), "like-" + names[groups], "")
    table = cohort.table[["scan_id"]].merge(rows[["scan_id", GROUP_COLUMN]], how="left")
    return Duplicates(table, _pairs(names, first, near), _find_conflicts(rows, cohort.table), notes, float(distance))


def count_shared_images(training: Cohort, tested: Cohort) -> int:
    """Count the scans of one cohort that are also in another, by content: equal, or one picture altered."""
    tables = [
        cohort.table.assign(scan_id=side + "/" + cohort.table["scan_id"], side=side)
        for side, cohort in (("training", training), ("tested", tested))
    ]
    joined = pd.concat(tables, ignore_index=True)
    plain = Cohort(joined[["scan_id", "subject_id", "path", "side"]])
    groups = find_duplicates(plain, distance=SURE_DISTANCE).table.set_index("scan_id")[GROUP_COLUMN]
    joined["alike"] = joined["scan_id"].map(groups).fillna("")
    both = joined[(joined["side"] == "training") & (joined["alike"] != "")]["alike"]
    return int(((joined["side"] == "tested") & joined["alike"].isin(both)).sum())


_NO_PAIRS = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))


def _first_of_equal(digests: dict[int, str], n: int) -> np.ndarray:
    """Give for each of `n` rows the first row with the same digest; a row without one is alone."""
    first = np.arange(n)
    seen: dict[str, int] = {}
    for row in sorted(digests):
        first[row] = seen.setdefault(digests[row], row)
    return first


def _join(first: np.ndarray, near: Pairs) -> tuple[np.ndarray, int]:
    """Join equal rows and near pairs, nearest first.

    Returns:
        The lowest row of each row's group, and the number of pairs that were left apart for the size of their group.
    """
    parent = first.copy()
    size = np.bincount(first, minlength=len(first))
    most = max(SMALLEST_LARGEST, int(LARGEST_GROUP * len(first)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = int(parent[row])
        return row

    n_apart = 0
    for pair in np.lexsort((near[1], near[0], near[2])):
        low, high = sorted((root(int(near[0][pair])), root(int(near[1][pair]))))
        if low == high:
            continue
        if near[2][pair] > SURE_DISTANCE and size[low] + size[high] > most:
            n_apart += 1
            continue
        parent[high] = low
        size[low] += size[high]
    return np.array([root(row) for row in range(len(first))], dtype=np.int64), n_apart


def _pairs(names: np.ndarray, first: np.ndarray, near: Pairs) -> pd.DataFrame:
    equal = np.flatnonzero(first != np.arange(len(first)))
    return pd.DataFrame(
        {
            "scan_id": np.concatenate([names[first[equal]], names[near[0]]]),
            "other_scan_id": np.concatenate([names[equal], names[near[1]]]),
            "kind": ["exact"] * len(equal) + ["near"] * len(near[0]),
            "distance": np.concatenate([np.zeros(len(equal)), near[2]]),
        }
    )


def _find_conflicts(rows: pd.DataFrame, table: pd.DataFrame) -> list[Problem]:
    """Say where equal pictures, then those within 0.1, have labels that contradict each other.

    Beyond that labels may well differ: neighbouring slices with and without the tumour.
    """
    labels = table[["scan_id", *(name for name in table.columns if is_label_column(name))]]
    rows = rows.merge(labels, on="scan_id", how="left")
    conflicts, told = [], set()
    for column, words in (("exact", "equal pixels"), ("sure", "nearly the same picture")):
        several = rows[rows[column].duplicated(keep=False)]
        for name in labels.columns[1:]:
            known = several[several[name].notna() & (several[name] != "")]
            n_values = known.groupby(column)[name].nunique()
            for _, part in known[known[column].isin(n_values.index[n_values > 1])].groupby(column):
                scans = tuple(part["scan_id"])
                if (name, scans) in told:
                    continue
                told.add((name, scans))
                counts = ", ".join(f"{_plain(value)} ({n})" for value, n in part[name].value_counts().items())
                conflicts.append(Problem(_named(scans), f"{words} with {name} {counts}", "kept on one side of a split"))
    return conflicts


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _named(scans: Sequence[str]) -> str:
    more = f" and {len(scans) - NAMED} more" if len(scans) > NAMED else ""
    return ", ".join(scans[:NAMED]) + more


def _note_apart(n_apart: int, n: int) -> list[Problem]:
    most = max(SMALLEST_LARGEST, int(LARGEST_GROUP * n))
    what = f"{n_apart} pairs of like pictures would have made groups of more than {most}"
    return [Problem("duplicates", what, "left apart; a smaller distance makes smaller groups")] if n_apart else []


def _note_strangers(rows: pd.DataFrame) -> list[Problem]:
    """Say how many groups hold several subjects, where the cohort knows more than one image of a subject."""
    if not rows["subject_id"].duplicated().any():
        return []
    strangers = rows.drop_duplicates(["group", "subject_id"])
    strangers = strangers[strangers["group"].duplicated(keep=False)].sort_values(["group", "scan_id"])
    if strangers.empty:
        return []
    example = _named(strangers.loc[strangers["group"] == strangers["group"].iloc[0], "scan_id"].tolist())
    what = f"{strangers['group'].nunique()} groups of like pictures hold several subjects, for example {example}"
    return [Problem("duplicates", what, "kept on one side of a split")]
