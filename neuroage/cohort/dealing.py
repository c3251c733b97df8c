"""Dealing whole units (persons, groups of like pictures) into sets, so that every class has its share of every set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neuroage.cohort.assignment import Floats, Ints
from neuroage.cohort.labels import CLASS_COLUMN, LABEL_PREFIX, has_labels, is_label_column, is_named_label
from neuroage.errors import UsageError, did_you_mean

UNLABELLED = "unlabelled"
NO_LABEL_POSITIVE = "none"
AGE_CLASSES = 10  # tenths of the images by age


def columns_to_stratify(table: pd.DataFrame, stratify: str | Sequence[str] | None = None) -> list[str]:
    """Give the columns whose values are dealt evenly: those named, else `label`, else all `label_…`, else `age`.

    Raises:
        UsageError: When a column does not exist, or there is none to choose.
    """
    if stratify is not None:
        columns = [stratify] if isinstance(stratify, str) else list(stratify)
        for name in columns:
            if name not in table.columns:
                raise UsageError(f"no column {name!r} to stratify by", expected=did_you_mean(name, table.columns))
        return columns
    if CLASS_COLUMN in table.columns and has_labels(table[[CLASS_COLUMN]]):
        return [CLASS_COLUMN]
    labels = [name for name in table.columns if is_label_column(name) and name != CLASS_COLUMN]
    if labels:
        return labels
    if not table["age"].notna().any():
        raise UsageError("the cohort has neither labels nor ages", fix="Name a column with stratify=…")
    return ["age"]


def class_matrix(table: pd.DataFrame, columns: Sequence[str]) -> tuple[NDArray[np.bool_], list[str]]:
    """Say which classes each row belongs to.

    A text column gives one class for each value. All `label_<Name>` columns together give one class a label for the
    rows where it is 1, and `none` for rows where some are known and no one is 1. A numeric column with more than ten
    values (`age`) gives its tenths. Rows of which nothing is known are `unlabelled`.

    Args:
        table: N rows.
        columns: Names of columns to stratify by.

    Returns:
        Shape (N, C), and the C names, sorted but for `none` and `unlabelled` at the end of their column's; classes
        without rows are left out.
    """
    parts: list[pd.DataFrame] = []
    named = [name for name in columns if is_named_label(name)]
    if named:
        known = table[named].apply(pd.to_numeric, errors="coerce")
        positive = known.eq(1).rename(columns=lambda name: str(name).removeprefix(LABEL_PREFIX))
        positive[NO_LABEL_POSITIVE] = ~positive.any(axis=1) & known.notna().any(axis=1)
        positive[UNLABELLED] = known.isna().all(axis=1)
        parts.append(positive)
    for name in [column for column in columns if column not in named]:
        column = table[name]
        if pd.api.types.is_numeric_dtype(column) and column.nunique() > AGE_CLASSES:
            column = pd.qcut(column, AGE_CLASSES, duplicates="drop").map(lambda cut: f"{cut.left:g} to {cut.right:g}")
        text = column.astype(object).where(column.notna(), "").astype(str).replace({"": UNLABELLED})
        prefix = f"{name} " if len(columns) > 1 and name != CLASS_COLUMN else ""
        parts.append(pd.get_dummies(text, dtype=bool).add_prefix(prefix))
    whole = pd.concat(parts, axis=1)
    whole = whole.loc[:, whole.any(axis=0).to_numpy()]
    return whole.to_numpy(dtype=bool), [str(name) for name in whole.columns]


def deal_units(counts: Ints, sizes: Ints, shares: Floats, rng: np.random.Generator) -> Ints:
    """Give the set of every unit, so that each set has its share of each class and of the images.

    The class with the fewest units left is dealt first, its largest units before its smaller ones, each to the set that
    is furthest behind its share of this class among those that have room. Then classes that a set lacks are brought
    there by single units where another set can spare one: the first set comes first, so it has every class.

    Args:
        counts: Images of each class in each unit, (U, C); every unit has some class.
        sizes: Images in each unit, (U,).
        shares: Share of each set, (K,), in the order in which sets shall have every class; sum 1.
        rng: All randomness comes from here.

    Returns:
        Number of the set, (U,).

    Source: Sechidis, Tsoumakas, Vlahavas 2011, doi:10.1007/978-3-642-23808-6_10, here with whole groups.
    """
    owner = np.full(len(counts), -1, dtype=np.int64)
    behind = np.outer(counts.sum(axis=0), shares)  # images of each class that each set still wants, (C, K)
    behind_in_size = sizes.sum() * shares
    jitter = rng.uniform(1, 1.5, len(counts))  # so that not the same large units go first for every seed
    chance = rng.random((len(counts), len(shares)))
    pending = (counts > 0).sum(axis=0)
    while pending.any():
        c = int(np.argmin(np.where(pending > 0, pending, np.iinfo(np.int64).max)))
        members = np.flatnonzero((owner < 0) & (counts[:, c] > 0))
        for unit in members[np.argsort(-counts[members, c] * jitter[members], kind="stable")]:
            room = behind[c] >= counts[unit, c] / 2
            wanted = np.where(room, behind[c] / shares, -np.inf) if room.any() else behind[c]
            wanted_in_size = behind_in_size / shares
            k = int(np.lexsort((chance[unit], -wanted_in_size, -np.round(wanted, 9)))[0])
            owner[unit] = k
            behind[:, k] -= counts[unit]
            behind_in_size[k] -= sizes[unit]
        pending = ((counts > 0) & (owner < 0)[:, None]).sum(axis=0)
    _bring_absent_classes(owner, counts > 0, sizes, len(shares))
    _fill_empty(owner, counts > 0, sizes, len(shares))
    return owner


def _bring_absent_classes(owner: Ints, has: NDArray[np.bool_], sizes: Ints, n_sets: int) -> None:
    """Move single units, the smallest first, into sets that lack a class, in the order of the sets.

    A set gives a unit away when it keeps each of the unit's classes, or comes later in the order than the receiver.
    """
    n_units = np.stack([has[owner == k].sum(axis=0) for k in range(n_sets)])
    for c in np.argsort(has.sum(axis=0), kind="stable"):
        for k in range(n_sets):
            if n_units[k, c]:
                continue
            for unit in sorted(np.flatnonzero(has[:, c]), key=lambda unit: (sizes[unit], unit)):
                giver = owner[unit]
                if giver > k or (n_units[giver][has[unit]] > 1).all():
                    owner[unit] = k
                    n_units[giver] -= has[unit]
                    n_units[k] += has[unit]
                    break


def _fill_empty(owner: Ints, has: NDArray[np.bool_], sizes: Ints, n_sets: int) -> None:
    """Give a set without units the smallest one that its set can spare without losing a class."""
    for k in range(n_sets):
        if (owner == k).any():
            continue
        n_units = np.stack([has[owner == other].sum(axis=0) for other in range(n_sets)])
        spare = [unit for unit in range(len(owner)) if (n_units[owner[unit]][has[unit]] > 1).all()]
        if spare:
            owner[min(spare, key=lambda unit: (sizes[unit], unit))] = k
