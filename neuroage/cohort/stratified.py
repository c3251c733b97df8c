"""Splits that give every set the same mix of ages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neuroage.cohort.assignment import Floats, Ints
from neuroage.cohort.cohort import Cohort
from neuroage.cohort.split import Split
from neuroage.cohort.split_report import report_common
from neuroage.cohort.subject_pool import SubjectPool, gather_subjects
from neuroage.cohort.uniform import split_table
from neuroage.errors import InfeasibleError, UsageError

_SPLIT_STREAM = 0x57A7  # names this use of the seed, so that other uses of the same seed stay independent


def stratified_age_split(
    cohort: Cohort | pd.DataFrame,
    n_validation: int | float = 0.2,
    n_test: int | float = 0,
    folds: int = 1,
    balance: Sequence[str] = (),
    age_range: tuple[float, float] | None = None,
    group: str | None = None,
    seed: int = 0,
) -> Split:
    """Deal subjects out along their ages, so that every set has the age mix of the whole.

    Use it for the inner part of training that early stopping looks at, or to compare with other people's splits. Whole
    groups are dealt out by their mean age, so nobody is left out for a relative's sake.

    Invariants: no subject and no group is on two sides; the order of the rows does not matter; the same seed gives the
    same split; without groups every set has exactly its number, with groups as nearly as whole groups allow.

    Args:
        cohort: A cohort or a table with `subject_id` and `age`.
        n_validation: Subjects in each validation fold: a number, or a share of all when below 1.
        n_test: Subjects in the test set: a number, or a share of all when below 1.
        folds: Number of disjoint validation folds.
        balance: Columns such as `sex`: subjects are dealt out within each combination of their values.
        age_range: Lowest and highest age in years; subjects outside are left out.
        group: A column such as `family_id`.
        seed: Different seeds give different sets.

    Returns:
        The split; `meta["report"]` holds counts, decades, balance and the Kolmogorov-Smirnov distance of every set's
        ages from those of training.

    Raises:
        UsageError: When a number or a column cannot be meant.
        InfeasibleError: When nobody would be left to train on, or a set stays empty.

    Example:
        >>> ages = pd.DataFrame({"subject_id": [f"s{k}" for k in range(50)], "age": [20.0 + k for k in range(50)]})
        >>> len(stratified_age_split(ages, 0.2).subjects("validation"))
        10
    """
    balance = [balance] if isinstance(balance, str) else list(balance)
    if folds < 1:
        raise UsageError(f"folds is {folds}", expected="1 or more")
    pool = gather_subjects(cohort, age_range, group, balance)
    quotas = [_count("n_validation", n_validation, len(pool), 1)] * folds + [_count("n_test", n_test, len(pool), 0)]
    # K folds of a share 1/K are cross-validation: everybody is tested once and nobody is in the train set for good.
    if sum(quotas) > len(pool) or (sum(quotas) == len(pool) and folds == 1):
        raise InfeasibleError(
            f"{folds} x {quotas[0]} validation and {quotas[-1]} test subjects leave none of {len(pool)} to train on",
            expected=f"n_validation at most {max((len(pool) - quotas[-1]) // folds - (folds == 1), 0)}",
        )
    rng = np.random.default_rng([seed, _SPLIT_STREAM])
    owner = _deal(pool, _strata(pool, balance), np.array([*quotas, len(pool) - sum(quotas)]), rng)
    members = [np.flatnonzero(owner == k) for k in range(folds + 1)]
    short = [k for k, quota in enumerate(quotas) if quota and not len(members[k])]
    if short:
        raise InfeasibleError("the groups are too large to fill every set", expected="fewer folds or larger sets")
    used = members if n_test else members[:folds]
    table = split_table(pool, members[:folds], members[folds] if n_test else None, None)
    parameters = {
        "n_validation": n_validation,
        "n_test": n_test,
        "folds": folds,
        "balance": balance,
        "age_range": [pool.low, pool.high],
        "group": group,
    }
    report = report_common(pool, used, balance, folds)
    report["sets"] = _compare_with_training(pool, used, np.flatnonzero(owner > folds), folds)
    # Whole groups are placed together, so nobody is left out for a relative's sake.
    meta: dict[str, Any] = {"method": "stratified_age", "parameters": parameters, "seed": seed, "report": report}
    if isinstance(cohort, Cohort):
        meta["cohort_digest"] = cohort.digest
    return Split(table, meta)


def _count(name: str, value: int | float, n: int, least: int) -> int:
    if value < 0 or (value >= 1 and value != int(value)):
        raise UsageError(f"{name} is {value:g}", expected="a whole number, or a share below 1")
    count = int(value) if value >= 1 else round(value * n)
    if count < least:
        raise UsageError(f"{name} {value:g} is {count} of {n} subjects", expected=f"{least} or more")
    return count


def _strata(pool: SubjectPool, balance: Sequence[str]) -> NDArray[np.int64]:
    if not balance:
        return np.zeros(len(pool), dtype=np.int64)
    joined = pool.subjects[list(balance)].astype(object).fillna("").astype(str).agg("\x1f".join, axis=1)
    return np.asarray(pd.factorize(joined, sort=True)[0], dtype=np.int64)


def _deal(pool: SubjectPool, strata: Ints, quotas: Ints, rng: np.random.Generator) -> Ints:
    """Give the set of every subject: units by age, each to the set that is furthest behind its share.

    A unit is a group, at its mean age. Units that are neighbours in age are shuffled first, so that seeds differ.
    """
    n_units = int(np.unique(pool.groups).size)
    unit = np.unique(pool.groups, return_inverse=True)[1].ravel()
    size = np.bincount(unit, minlength=n_units)
    mean_age = np.bincount(unit, weights=pool.ages, minlength=n_units) / size
    stratum = np.zeros(n_units, dtype=np.int64)
    stratum[unit[::-1]] = strata[::-1]  # a unit belongs where its youngest member does
    first = np.full(n_units, len(pool))
    np.minimum.at(first, unit, np.arange(len(pool)))
    order = np.lexsort((first, mean_age, stratum))
    smallest = quotas[quotas > 0].min()
    width = max(2, int(np.ceil(2 * quotas.sum() / smallest)))  # two of the smallest set's turns
    jitter = rng.uniform(0, width, n_units)
    order = order[np.lexsort((np.arange(n_units) + jitter, stratum[order]))]
    share, due, given = (
        quotas / quotas.sum(),
        rng.uniform(-0.5, 0.5, len(quotas)),
        np.zeros(len(quotas), dtype=np.int64),
    )
    owner = np.zeros(n_units, dtype=np.int64)
    for unit_number in order:
        due += share * size[unit_number]
        room = quotas - given >= size[unit_number]
        ahead = np.where(room, due, -np.inf) if room.any() else (quotas - given).astype(float)
        k = int(np.argmax(ahead))
        owner[unit_number] = k
        due[k] -= size[unit_number]
        given[k] += size[unit_number]
    _fill_empty(owner, size, np.abs(mean_age - mean_age.mean()), quotas)
    return owner[unit]


def _fill_empty(owner: Ints, size: Ints, oddness: Floats, quotas: Ints) -> None:
    """Give a set that no group fitted into the smallest group of training, of middle age where several are."""
    train = len(quotas) - 1
    for k in np.flatnonzero(quotas[:-1]):
        mine = np.flatnonzero(owner == train)
        if (owner != k).all() and len(mine) > 1:
            owner[mine[np.lexsort((oddness[mine], size[mine]))[0]]] = k


def _compare_with_training(pool: SubjectPool, members: list[Ints], train: Ints, folds: int) -> list[dict[str, Any]]:
    rows = []
    for k, chosen in enumerate(members):
        trained = np.setdiff1d(np.concatenate([train, *members[:folds]]), chosen)
        points = np.concatenate([pool.ages[chosen], pool.ages[trained]])
        below = [np.searchsorted(pool.ages[rows], points, side="right") / len(rows) for rows in (chosen, trained)]
        name = "test" if k >= folds else "validation" if folds == 1 else f"fold {k}"
        rows.append(
            {
                "set": name,
                "n": len(chosen),
                "mean_age": float(pool.ages[chosen].mean()),
                "train_mean_age": float(pool.ages[trained].mean()),
                "ks_distance_from_train": float(np.abs(below[0] - below[1]).max()),
            }
        )
    return rows
