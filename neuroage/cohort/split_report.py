"""What a split reached: how uniform, against chance, at what cost to training, how balanced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neuroage.cohort.assignment import Allowance, Floats, Ints
from neuroage.cohort.drawing import Categories
from neuroage.cohort.subject_pool import SubjectPool, decade_of

N_RANDOM_SPLITS = 10_000
# A numeric column with more values than this is balanced by fifths of its subjects.
MAX_VALUES = 10
_MAX_CELLS = 4_000_000  # ages held at once while random splits are drawn: 32 MB


def w1_years(ages: Floats, low: float, high: float) -> float:
    """Give W1 in years: the mean distance of the sorted ages (n,) from the midpoints of n equal parts of the range.

    Example:
        >>> w1_years(np.array([25.0, 35.0]), 20.0, 40.0)
        0.0
    """
    n = len(ages)
    return float(np.abs(np.sort(ages) - (low + (np.arange(n) + 0.5) * (high - low) / n)).mean())


def ks_uniform(ages: Floats, low: float, high: float) -> tuple[float, float]:
    """Give the Kolmogorov-Smirnov distance of ages (n,) from uniform over low to high, and its p value.

    Source: Stephens, J R Stat Soc B 32 (1970) 115: for finite n the limit law at D (sqrt n + 0.12 + 0.11 / sqrt n).
    """
    from scipy.special import kolmogorov

    n = len(ages)
    share = (np.sort(ages) - low) / (high - low)
    steps = np.arange(n + 1) / n
    distance = float(max((steps[1:] - share).max(), (share - steps[:-1]).max()))
    root = np.sqrt(n)
    return distance, float(kolmogorov(distance * (root + 0.12 + 0.11 / root)))


def random_w1(ages: Floats, n: int, low: float, high: float, rng: np.random.Generator) -> Floats:
    """Give W1 in years of 10,000 random sets of n among the sorted ages (N,): what a split without planning reaches."""
    target = low + (np.arange(n) + 0.5) * (high - low) / n
    per_block = max(1, _MAX_CELLS // max(n, len(ages) if len(ages) <= 4 * n else n))
    values: list[Floats] = []
    for start in range(0, N_RANDOM_SPLITS, per_block):
        rows = min(per_block, N_RANDOM_SPLITS - start)
        drawn = _random_sets(len(ages), n, rows, rng)
        values.append(np.abs(ages[drawn] - target).mean(axis=1))
    return np.concatenate(values)


def _random_sets(n_all: int, n: int, n_sets: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw sets without repetition, each sorted, (n_sets, n); what is drawn twice is drawn again."""
    if n_all <= 4 * n:
        keys = rng.random((n_sets, n_all), dtype=np.float32)
        return np.sort(np.argpartition(keys, n - 1, axis=1)[:, :n], axis=1).astype(np.int64)
    drawn = np.sort(rng.integers(n_all, size=(n_sets, n)), axis=1)
    rows = np.arange(n_sets)
    while len(rows):
        again = np.zeros((len(rows), n), dtype=bool)
        again[:, 1:] = drawn[rows, 1:] == drawn[rows, :-1]
        rows, again = rows[again.any(axis=1)], again[again.any(axis=1)]
        block = drawn[rows]
        block[again] = rng.integers(n_all, size=int(again.sum()))
        drawn[rows] = np.sort(block, axis=1)
    return drawn


def categorise(subjects: pd.DataFrame, columns: Sequence[str]) -> Categories:
    """Number the values of the columns to balance; numbers with more than ten values are cut into fifths."""
    codes, shares, names, offset = [], [], [], 0
    for name in columns:
        column = subjects[name]
        if pd.api.types.is_numeric_dtype(column) and column.nunique() > MAX_VALUES:
            column = pd.qcut(column, 5, duplicates="drop").astype(str)
        values = column.astype(object).where(column.notna(), "").astype(str).replace({"": "unknown"})
        code, levels = pd.factorize(values, sort=True)
        codes.append(code + offset)
        shares.append(np.bincount(code, minlength=len(levels)) / len(code))
        names += [(name, str(level)) for level in levels]
        offset += len(levels)
    return Categories(np.column_stack(codes).astype(np.int64), np.concatenate(shares), names)


def report_uniform(
    pool: SubjectPool,
    members: list[Ints],
    targets: list[Floats],
    optimum: list[float],
    allowance: Allowance,
    balance: Sequence[str],
    folds: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Collect what `neuroage split` prints about a uniform split; every number is a plain Python number."""
    names = _set_names(folds, len(members))
    sets = []
    for name, rows, target, best in zip(names, members, targets, optimum, strict=True):
        distance, p = ks_uniform(pool.ages[rows], pool.low, pool.high)
        w1 = float(np.abs(pool.ages[rows] - target).mean())
        sets.append(
            {
                "set": name,
                "n": len(rows),
                "w1_years": w1,
                "optimum_w1_years": best,
                "ks_distance": distance,
                "ks_p": p,
                "mean_age": float(pool.ages[rows].mean()),
            }
        )
    n = len(targets[0])
    chance = random_w1(pool.ages, n, pool.low, pool.high, rng)
    report = {
        "sets": sets,
        "optimum_w1_years": float(np.average(optimum, weights=[len(t) for t in targets])),
        "random_splits": {
            "n_splits": N_RANDOM_SPLITS,
            "n": n,
            "best_w1_years": float(chance.min()),
            "median_w1_years": float(np.median(chance)),
        },
        **report_common(pool, members, balance, folds),
    }
    report["advice"] = _advice(pool, sets, report["decades"])
    return report


def report_common(pool: SubjectPool, members: list[Ints], balance: Sequence[str], folds: int) -> dict[str, Any]:
    """Collect what is said of every planned split: counts, what each decade had, gave and kept, and the balance."""
    names = _set_names(folds, len(members))
    chosen = np.concatenate(members)
    is_chosen = np.zeros(len(pool), dtype=bool)
    is_chosen[chosen] = True
    sibling = np.isin(pool.groups, pool.groups[chosen]) & ~is_chosen
    decade = decade_of(pool.ages)
    decades = [
        {
            "decade": int(value),
            "had": int((decade == value).sum()),
            "gave": int((is_chosen & (decade == value)).sum()),
            "left_out": int((sibling & (decade == value)).sum()),
            "kept": int((~is_chosen & ~sibling & (decade == value)).sum()),
        }
        for value in np.unique(decade)
    ]
    counts = {
        "subjects": len(pool) + len(pool.left_out),
        "train": int((~is_chosen & ~sibling).sum()),
        "validation": sum(len(rows) for rows in members[:folds]),
        "test": sum(len(rows) for rows in members[folds:]),
        "left_out": len(pool.left_out) + int(sibling.sum()),
    }
    report: dict[str, Any] = {"age_range": [pool.low, pool.high], "counts": counts, "decades": decades}
    if balance:
        categories = categorise(pool.subjects, balance)
        report["balance"] = {
            "measure": "half the sum of |share in the set - share in the pool|, mean over the columns; 0 is perfect",
            "sets": [
                {"set": name, "imbalance": categories.imbalance(rows)}
                for name, rows in zip(names, members, strict=True)
            ],
            "shares": _shares(categories, members, names),
        }
    return report


def _set_names(folds: int, n_sets: int) -> list[str]:
    validation = ["validation"] if folds == 1 else [f"fold {k}" for k in range(folds)]
    return validation + ["test"] * (n_sets - folds)


def _shares(categories: Categories, members: list[Ints], names: list[str]) -> list[dict[str, Any]]:
    table = []
    for number, (column, value) in enumerate(categories.names):
        row: dict[str, Any] = {"column": column, "value": value, "pool": float(categories.share[number])}
        for name, rows in zip(names, members, strict=True):
            row[name] = float((categories.code[rows] == number).any(axis=1).mean())
        table.append(row)
    return table


def _advice(pool: SubjectPool, sets: list[dict[str, Any]], decades: list[dict[str, Any]]) -> list[str]:
    """Say in words what a reader should not overlook."""
    advice = []
    part = (pool.high - pool.low) / 50
    worst = max(entry["w1_years"] for entry in sets)
    if worst > max(1.0, part):
        thin = ", ".join(f"{entry['decade']}s" for entry in decades if entry["kept"] <= entry["gave"])
        advice.append(
            f"W1 of {worst:.1f} y is not uniform"
            + (f": few subjects in their {thin}" if thin else "")
            + "; fewer subjects, fewer folds or a narrower age range come nearer"
        )
    empty = [f"{entry['decade']}s" for entry in decades if entry["kept"] == 0]
    if empty:
        advice.append(f"training keeps nobody in their {', '.join(empty)}")
    return advice
