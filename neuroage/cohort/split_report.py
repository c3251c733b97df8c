"""What a split reached: how uniform, against chance, at what cost to training, how balanced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from neuroage.cohort.assignment import Allowance, Floats, Ints
from neuroage.cohort.drawing import Categories
from neuroage.cohort.subject_pool import SubjectPool, decade_of
from neuroage.cohort.uniformity import ks_uniform, random_w1

# A numeric column with more values than this is balanced by fifths of its subjects.
MAX_VALUES = 10


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
            "n_splits": len(chance),
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
