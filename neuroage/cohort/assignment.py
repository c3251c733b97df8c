"""The optimum: which subjects lie nearest to given target ages, solved exactly as a transport along the age line.

Matching n ages to n targets costs least when both are sorted, so the sum of |sorted age - target| over all sets is the
least work of carrying one unit from each chosen subject to each target along a line. On a line that is a flow between
neighbouring ages: as many variables as ages, not ages x targets. Limits on what each decade may give are further rows.
Without groups the matrix is that of a network (source, decade, age, line, target), whose optimum is a whole number by
itself; with groups the solver branches.

Source: transport on a line as minimum-cost flow, e.g. Ahuja, Magnanti and Orlin, Network Flows (1993), chapters 1 and
9.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroage.cohort.subject_pool import decade_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Allowance:
    """What training can spare.

    Args:
        decades: The D decades that occur, ascending, (D,).
        caps: The most subjects that each decade may lose, (D,).
        removal: How many subjects of each decade training loses when a subject is chosen: itself and the rest of its
            group, (N, D).
        groups: Group number of every subject, (N,).
    """

    decades: Ints
    caps: Ints
    removal: Ints
    groups: Ints


def allow(ages: Floats, groups: Ints, max_share: float) -> Allowance:
    """Work out what each decade may lose: the whole part of `max_share` times the subjects it has."""
    decades, where, had = np.unique(decade_of(ages), return_inverse=True, return_counts=True)
    _, group = np.unique(groups, return_inverse=True)
    members = np.zeros((int(group.max()) + 1, len(decades)), dtype=np.int64)
    np.add.at(members, (group, where), 1)
    # A share such as 0.29 of 100 is 28.999… in binary; it means 29.
    caps = np.floor(max_share * had + 1e-9).astype(np.int64)
    return Allowance(decades, caps, members[group], group.astype(np.int64))


def allow_alone(ages: Floats, allowance: Allowance) -> Allowance:
    """Give the same caps for people without groups, whose choice costs training nobody but themselves."""
    own = (decade_of(ages)[:, None] == allowance.decades).astype(np.int64)
    return Allowance(allowance.decades, allowance.caps, own, np.arange(len(ages), dtype=np.int64))


def _keeps(chosen: Ints, allowance: Allowance) -> bool:
    apart = len(np.unique(allowance.groups[chosen])) == len(chosen)
    return apart and bool((allowance.removal[chosen].sum(axis=0) <= allowance.caps).all())


def choose_nearest(ages: Floats, targets: Floats, allowance: Allowance) -> Ints | None:
    """Choose one subject for every target so that the sum of |age - target| is the least possible.

    Args:
        ages: Ages in years, ascending, (N,).
        targets: Target ages in years, ascending, (M,); a target that is there twice gets two subjects.
        allowance: What each decade may lose, and the groups, of which one member each may be chosen.

    Returns:
        Ascending positions of the chosen subjects (M,), or None when the allowance cannot give M subjects.
    """
    if len(np.unique(allowance.groups)) < len(ages):
        alone = choose_nearest(ages, targets, allow_alone(ages, allowance))
        if alone is None or _keeps(alone, allowance):
            return alone  # without regard to groups more is possible, so that nothing better can be missed
        if len(np.unique(allowance.groups)) < len(targets):
            return None
    near = _prune(ages, targets, allowance)
    classes, members = _classes(ages[near], allowance, near)
    taken = _solve(ages[near][classes.first], classes, targets, allowance)
    if taken is None:
        return None
    picked = [near[rows[:n]] for rows, n in zip(members, taken, strict=True) if n]
    return np.sort(np.concatenate(picked))


def _prune(ages: Floats, targets: Floats, allowance: Allowance) -> Ints:
    """Keep, for every target, the nearest of each kind of subject; further ones cannot be needed.

    Of one kind are subjects of one decade whose choice costs training the same. At most M subjects are chosen, and each
    blocks its own group, so that among the M x (group's members in the decade) nearest of a kind one is always
    free, and no worse.
    """
    sizes = np.bincount(allowance.groups)
    wanted = np.unique(targets)
    kind = decade_of(ages)
    if sizes.max() > 1:
        kind = np.unique(np.column_stack([kind, allowance.removal]), axis=0, return_inverse=True)[1].ravel()
    order = np.argsort(kind, kind="stable")  # by kind, and by age within it
    starts = np.flatnonzero(np.r_[True, np.diff(kind[order]) > 0])
    edge = np.zeros(len(ages) + 1, dtype=np.int64)
    for start, stop in zip(starts, np.r_[starts[1:], len(ages)], strict=True):
        first = order[start]
        own_decade = int(np.searchsorted(allowance.decades, decade_of(ages[first : first + 1])[0]))
        reach = len(targets) * int(allowance.removal[first, own_decade])
        place = start + np.searchsorted(ages[order[start:stop]], wanted)
        np.add.at(edge, np.maximum(place - reach, start), 1)
        np.add.at(edge, np.minimum(place + reach, stop), -1)
    return np.sort(order[np.cumsum(edge[:-1]) > 0])


@dataclass(frozen=True)
class _Classes:
    """Interchangeable subjects: same age, same losses, nobody else of the group in sight."""

    first: Ints  # position of one member
    count: Ints
    removal: Ints
    group: Ints  # -1 where no other class has that group


def _classes(ages: Floats, allowance: Allowance, near: Ints) -> tuple[_Classes, list[Ints]]:
    group = allowance.groups[near]
    shared = np.bincount(group, minlength=1)[group] > 1
    own = np.where(shared, np.arange(len(near)) + 1, 0)
    key = np.column_stack([ages, allowance.removal[near], own])
    _, first, label, count = np.unique(key, axis=0, return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort(label.ravel(), kind="stable")
    members = np.split(order, np.cumsum(count)[:-1])
    classes = _Classes(
        first.astype(np.int64),
        count.astype(np.int64),
        allowance.removal[near][first],
        np.where(shared[first], group[first], -1),
    )
    return classes, [np.asarray(rows, dtype=np.int64) for rows in members]


def _solve(class_ages: Floats, classes: _Classes, targets: Floats, allowance: Allowance) -> Ints | None:
    from scipy.optimize import Bounds, LinearConstraint, milp

    n = len(class_ages)
    cost, matrix, lower, upper = _line_flow(class_ages, targets)
    rows, limits = _side_rows(classes, allowance)
    limited = _widen(rows, matrix.shape[1])
    n_gaps = (matrix.shape[1] - n) // 2
    top = np.concatenate([classes.count.astype(float), np.full(2 * n_gaps, float(len(targets)))])
    # Only where a choice costs training more than itself is the matrix no network, and whole numbers must be asked for.
    is_network = bool((classes.removal.sum(axis=1) == 1).all())
    whole = np.concatenate([np.full(n, 0 if is_network else 1), np.zeros(2 * n_gaps, dtype=int)])
    result = milp(
        cost,
        integrality=whole,
        bounds=Bounds(0, top),
        constraints=[LinearConstraint(matrix, lower, upper), LinearConstraint(limited, -np.inf, limits)],
        options={"mip_rel_gap": 0.0},
    )
    if result.x is None:
        return None
    taken: Ints = np.rint(result.x[:n]).astype(np.int64)
    return taken


def _line_flow(class_ages: Floats, targets: Floats) -> tuple[Floats, Any, Floats, Floats]:
    """Balance at every point of the line: chosen here + carried in - carried out = wanted here."""
    from scipy.sparse import coo_array

    points = np.unique(np.concatenate([class_ages, targets]))
    n, n_gaps = len(class_ages), len(points) - 1
    gap = np.arange(n_gaps)
    row = np.concatenate([np.searchsorted(points, class_ages), gap, gap + 1, gap, gap + 1])
    column = np.concatenate([np.arange(n), n + gap, n + gap, n + n_gaps + gap, n + n_gaps + gap])
    value = np.concatenate([np.ones(n), -np.ones(n_gaps), np.ones(n_gaps), np.ones(n_gaps), -np.ones(n_gaps)])
    matrix = coo_array((value, (row, column)), shape=(len(points), n + 2 * n_gaps)).tocsr()
    wanted = np.bincount(np.searchsorted(points, targets), minlength=len(points)).astype(float)
    work = np.diff(points)
    return np.concatenate([np.zeros(n), work, work]), matrix, wanted, wanted


def _side_rows(classes: _Classes, allowance: Allowance) -> tuple[Any, Floats]:
    from scipy.sparse import coo_array, vstack

    decades = coo_array(classes.removal.T.astype(float))
    limits = allowance.caps.astype(float)
    numbers, row = np.unique(classes.group, return_inverse=True)
    inside = classes.group >= 0
    if not inside.any():
        return decades, limits
    one_each = coo_array(
        (np.ones(inside.sum()), (row.ravel()[inside], np.flatnonzero(inside))), shape=(len(numbers), len(classes.group))
    )
    return vstack([decades, one_each]), np.concatenate([limits, np.ones(len(numbers))])


def _widen(rows: Any, n_columns: int) -> Any:
    wide = rows.tocoo()
    wide.resize((rows.shape[0], n_columns))
    return wide.tocsr()
