"""Splits whose validation and test ages are as uniform as the cohort allows."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neuroage.cohort.assignment import Allowance, Floats, Ints, allow, choose_nearest
from neuroage.cohort.cohort import Cohort
from neuroage.cohort.drawing import Plan, draw
from neuroage.cohort.split import Split
from neuroage.cohort.split_report import categorise, report_uniform
from neuroage.cohort.subject_pool import SubjectPool, gather_subjects
from neuroage.errors import InfeasibleError, UsageError

# How much a drawn set's W1 may exceed the optimum, in years: a quarter of a year is below the rounding of most tables.
SLACK_YEARS = 0.25
# Training keeps at least two fifths of every decade; below that the ages tested are hardly trained on.
MAX_SHARE_PER_DECADE = 0.6
_SPLIT_STREAM = 0x5917  # names this use of the seed, so that other uses of the same seed stay independent


def uniform_age_split(
    cohort: Cohort | pd.DataFrame,
    n_validation: int = 50,
    n_test: int = 0,
    folds: int = 1,
    balance: Sequence[str] = (),
    age_range: tuple[float, float] | None = None,
    group: str | None = None,
    max_share_per_decade: float = MAX_SHARE_PER_DECADE,
    seed: int = 0,
    exact: bool = False,
) -> Split:
    """Choose validation subjects whose ages are nearest to uniform over the range; everybody else trains.

    With uniform ages no age dominates the mean absolute error, and predicting the mean age is wrong by a quarter of the
    range. The i-th of n target ages is the midpoint of the i-th n-th of the range, and
    W1 = mean |i-th youngest age - i-th target|. All folds and the test set are planned together. The optimum is solved,
    not searched. Unless `exact`, the seed then draws among the sets whose W1 is at most 0.25 years above the optimum's.

    Invariants: no subject and no group is on two sides; the order of the rows does not matter; the same seed gives the
    same split; every subject is placed, or left out with the reason.

    Args:
        cohort: A cohort or a table with `subject_id` and `age`; images are not needed. The age of a subject is that of
            its first session.
        n_validation: Subjects in each validation fold.
        n_test: Subjects in the test set.
        folds: Number of disjoint validation folds.
        balance: Columns, `sex` or `site` for example, whose shares in each set shall be those of the whole.
        age_range: Lowest and highest age in years; subjects outside are left out. None: the range of the ages.
        group: A column such as `family_id`. One member of a group may be chosen; the others are then left out.
        max_share_per_decade: The share of each decade's subjects that all sets together may take from training, 0 to 1.
        seed: Different seeds give different sets. With `exact` they differ only among subjects of equal age.
        exact: Take the optimum itself.

    Returns:
        The split; `meta["report"]` holds W1 and optimum of every set, the Kolmogorov-Smirnov distance and p, what
        10,000 random splits (fewer for sets above 2,000) would have reached, what each decade had, gave and kept, and
        the balance.

    Raises:
        UsageError: When a number or a column cannot be meant.
        InfeasibleError: When the subjects do not suffice; the message says what is possible instead.

    Example:
        >>> ages = pd.DataFrame({"subject_id": [f"s{k}" for k in range(200)], "age": np.linspace(20, 80, 200)})
        >>> len(uniform_age_split(ages, n_validation=20).subjects("validation"))
        20
    """
    _check_numbers(n_validation, n_test, folds, max_share_per_decade)
    balance = [balance] if isinstance(balance, str) else list(balance)
    pool = gather_subjects(cohort, age_range, group, balance)
    allowance = allow(pool.ages, pool.groups, max_share_per_decade)
    rng = np.random.default_rng([seed, _SPLIT_STREAM])
    targets = [_midpoints(pool, n_validation)] * folds + ([_midpoints(pool, n_test)] if n_test else [])
    chosen = choose_nearest(pool.ages, np.sort(np.concatenate(targets)), allowance)
    if chosen is None:
        raise _infeasible(pool, allowance, n_validation, n_test, folds, max_share_per_decade)
    best = _deal_out(pool.ages, _redraw_equal_ages(pool.ages, chosen, allowance, rng), targets)
    optimum = [float(np.abs(pool.ages[rows] - t).mean()) for rows, t in zip(best, targets, strict=True)]
    categories = categorise(pool.subjects, balance) if balance else None
    members = best
    if not exact or categories:
        slack = 0.0 if exact else SLACK_YEARS
        bounds = _bounds(optimum, folds, slack)
        members = draw(Plan(pool.ages, best, targets, bounds, allowance), categories, rng)
    parameters = {
        "n_validation": n_validation,
        "n_test": n_test,
        "folds": folds,
        "balance": balance,
        "age_range": [pool.low, pool.high],
        "group": group,
        "max_share_per_decade": max_share_per_decade,
        "exact": exact,
    }
    table = split_table(pool, members[:folds], members[folds] if n_test else None, group)
    report = report_uniform(pool, members, targets, optimum, allowance, balance, folds, rng)
    meta: dict[str, Any] = {"method": "uniform_age", "parameters": parameters, "seed": seed, "report": report}
    if isinstance(cohort, Cohort):
        meta["cohort_digest"] = cohort.digest
    return Split(table, meta)


def _check_numbers(n_validation: int, n_test: int, folds: int, share: float) -> None:
    for name, value, least in (("n_validation", n_validation, 1), ("n_test", n_test, 0), ("folds", folds, 1)):
        if value < least:
            raise UsageError(f"{name} is {value}", expected=f"{least} or more")
    if not 0 < share <= 1:
        raise UsageError(f"max_share_per_decade is {share:g}", expected="more than 0, at most 1")


def _midpoints(pool: SubjectPool, n: int) -> Floats:
    return pool.low + (np.arange(n) + 0.5) * (pool.high - pool.low) / n


def _bounds(optimum: list[float], folds: int, slack: float) -> list[float]:
    """Folds are alike, so all may be as far from uniform as the worst of the best plan, plus the slack."""
    return [max(optimum[:folds]) + slack] * folds + [value + slack for value in optimum[folds:]]


def _redraw_equal_ages(ages: Floats, chosen: Ints, allowance: Allowance, rng: np.random.Generator) -> Ints:
    """Replace the chosen by random subjects of exactly the same age; groups of several members are left as they are."""
    alone = np.bincount(allowance.groups)[allowance.groups] == 1
    redrawn = chosen[~alone[chosen]]
    parts = [redrawn]
    values, counts = np.unique(ages[chosen[alone[chosen]]], return_counts=True)
    for value, count in zip(values, counts, strict=True):
        same = np.arange(np.searchsorted(ages, value), np.searchsorted(ages, value, side="right"))
        parts.append(rng.choice(same[alone[same]], size=int(count), replace=False))
    return np.sort(np.concatenate(parts)).astype(np.int64)


def _deal_out(ages: Floats, chosen: Ints, targets: list[Floats]) -> list[Ints]:
    """Give every set one chosen subject for each of its targets, the set that is furthest behind taking the nearest.

    Sorted ages meet sorted targets, which is the cheapest matching; among sets with the same target any exchange costs
    the same in sum, so the sets are kept equal.
    """
    order = np.argsort(np.concatenate(targets), kind="stable")
    owner = np.repeat(np.arange(len(targets)), [len(t) for t in targets])[order]
    target = np.concatenate(targets)[order]
    work = np.zeros(len(targets))
    members: list[list[int]] = [[] for _ in targets]
    starts = np.flatnonzero(np.r_[True, np.diff(target) > 0])
    blocks = np.split(np.arange(len(target)), starts[1:])
    for block in sorted(blocks, key=lambda rows: -float(np.ptp(np.abs(ages[chosen[rows]] - target[rows])))):
        distance = np.abs(ages[chosen[block]] - target[block])
        neediest = sorted(owner[block].tolist(), key=lambda k: -work[k] / len(targets[k]))
        for k, row in zip(neediest, block[np.argsort(distance, kind="stable")], strict=True):
            members[k].append(int(chosen[row]))
            work[k] += abs(ages[chosen[row]] - target[row])
    return [np.sort(np.array(rows, dtype=np.int64)) for rows in members]


def _infeasible(
    pool: SubjectPool, allowance: Allowance, n: int, n_test: int, folds: int, share: float
) -> InfeasibleError:
    spare = _most_choosable(allowance)
    ways = []
    if spare > n_test:
        if (spare - n_test) // folds:
            ways.append(f"n_validation at most {(spare - n_test) // folds}")
        if folds > 1 and (spare - n_test) // n:
            ways.append(f"at most {(spare - n_test) // n} folds")
        if n_test and spare > folds * n:
            ways.append(f"n_test at most {spare - folds * n}")
    wider = _least_share(pool, share, folds * n + n_test)
    if wider is not None:
        ways.append(f"max_share_per_decade at least {wider:.2f}")
    asked = f"{folds} x {n} validation" + (f" and {n_test} test" if n_test else "") + " subjects"
    return InfeasibleError(
        f"{asked} = {folds * n + n_test} cannot be taken from {len(pool)} subjects: "
        f"with max_share_per_decade {share:g} their decades can spare {spare}",
        expected=" or ".join(ways) if ways else "a larger cohort",
        fix="Change one of these." if ways else "Add subjects.",
    )


def _least_share(pool: SubjectPool, share: float, wanted: int) -> float | None:
    """The least share per decade, in hundredths above the one given, that spares enough; None when not even 1 does."""
    hundredths = range(int(share * 100 + 1e-9) + 1, 101)
    enough = bisect_left(
        hundredths, True, key=lambda h: _most_choosable(allow(pool.ages, pool.groups, h / 100)) >= wanted
    )
    return hundredths[enough] / 100 if enough < len(hundredths) else None


def _most_choosable(allowance: Allowance) -> int:
    """The most subjects that can be chosen together; with groups a number that is surely possible (greedy)."""
    _, one_each = np.unique(allowance.groups, return_index=True)
    removal = allowance.removal[one_each]  # a group costs the same whoever of it is chosen
    if len(one_each) == len(allowance.groups):
        return int(np.minimum(allowance.caps, removal.sum(axis=0)).sum())
    left, n = allowance.caps.copy(), 0
    for cost in removal[np.argsort(removal.sum(axis=1), kind="stable")]:
        if (cost <= left).all():
            left -= cost
            n += 1
    return n


def split_table(pool: SubjectPool, folds: Sequence[Ints], test: Ints | None, group: str | None) -> pd.DataFrame:
    """Write down who is where, everybody who is nowhere with the reason, sorted by subject id.

    Args:
        pool: The subjects.
        folds: Positions of the validation subjects of every fold.
        test: Positions of the test subjects.
        group: Name of the group column; the rest of a chosen subject's group is left out.
    """
    n = len(pool)
    sets: NDArray[np.object_] = np.full(n, "train", dtype=object)
    fold = np.full(n, -1, dtype=np.int64)
    reason: NDArray[np.object_] = np.full(n, "", dtype=object)
    ids = pool.subjects["subject_id"].to_numpy(dtype=object)
    for k, rows in enumerate(folds):
        sets[rows], fold[rows] = "validation", k
    if test is not None:
        sets[test] = "test"
    if group is not None:
        chosen = {int(pool.groups[row]): row for row in np.flatnonzero(sets != "train")}
        for row in np.flatnonzero(sets == "train"):
            other = chosen.get(int(pool.groups[row]))
            if other is not None:
                sets[row], reason[row] = "left_out", f"same {group} as {sets[other]} subject {ids[other]}"
    placed = pd.DataFrame({"subject_id": ids, "set": sets, "fold": fold, "reason": reason, "age": pool.ages})
    rest = pool.left_out.assign(set="left_out", fold=-1)[list(placed.columns)]
    whole = pd.concat([placed, rest]) if len(rest) else placed
    return whole.sort_values("subject_id", kind="stable").reset_index(drop=True)
