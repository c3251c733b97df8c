from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from neuroage.cohort.assignment import allow, choose_nearest


def brute_force(ages: np.ndarray, targets: np.ndarray, groups: np.ndarray, share: float) -> float | None:
    """Try every set; the least sum of |sorted age - target| of those that every decade can spare."""
    decades = (ages // 10).astype(int)
    least = None
    for chosen in map(list, combinations(range(len(ages)), len(targets))):
        if len(set(groups[chosen])) < len(chosen):
            continue
        lost = np.isin(groups, groups[chosen])
        if any(lost[decades == d].sum() > np.floor(share * (decades == d).sum() + 1e-9) for d in set(decades)):
            continue
        work = np.abs(np.sort(ages[chosen]) - targets).sum()
        least = work if least is None else min(least, work)
    return least


@pytest.mark.parametrize("seed", range(40))
def test_the_solution_equals_trying_every_set(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ages = np.sort(rng.uniform(20, 49, 9))
    if seed % 2:
        ages = np.round(ages / 3) * 3
    groups = rng.integers(0, 6, 9) if seed % 4 > 1 else np.arange(9)
    share = float(rng.choice([0.4, 0.6, 0.8, 1.0]))
    targets = np.sort(rng.uniform(18, 52, 3)) if seed % 3 else np.repeat(rng.uniform(18, 52, 1), 3)
    chosen = choose_nearest(ages, targets, allow(ages, groups, share))
    expected = brute_force(ages, targets, groups, share)
    if chosen is None:
        assert expected is None
    else:
        assert len(set(chosen)) == 3
        assert np.abs(ages[chosen] - targets).sum() == pytest.approx(expected, abs=1e-9)


def test_pruning_does_not_change_the_optimum() -> None:
    rng = np.random.default_rng(0)
    ages = np.sort(rng.uniform(20, 60, 400))
    targets = np.sort(rng.uniform(20, 60, 3))
    allowance = allow(ages, np.arange(400), 1.0)
    # Without limits and with ages this dense, every target takes its own nearest subject.
    nearest = np.abs(ages[None] - targets[:, None]).min(axis=1).sum()
    chosen = choose_nearest(ages, targets, allowance)
    assert chosen is not None and np.abs(ages[chosen] - targets).sum() == pytest.approx(nearest)


def test_a_decade_gives_the_whole_part_of_its_share() -> None:
    ages = np.concatenate([np.full(100, 25.0), np.full(7, 35.0)])
    assert allow(ages, np.arange(107), 0.29).caps.tolist() == [29, 2]


def test_choosing_one_counts_its_whole_group_as_lost() -> None:
    allowance = allow(np.array([21.0, 25.0, 31.0]), np.array([5, 5, 9]), 1.0)
    assert allowance.removal.tolist() == [[2, 0], [2, 0], [0, 1]]


def test_more_than_the_decades_can_spare_is_refused() -> None:
    ages = np.linspace(20, 59, 40)
    assert choose_nearest(ages, np.linspace(20, 59, 21), allow(ages, np.arange(40), 0.5)) is None
    assert choose_nearest(ages, np.linspace(20, 59, 20), allow(ages, np.arange(40), 0.5)) is not None
