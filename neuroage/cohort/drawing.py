"""Drawing one of the many sets that are nearly as uniform as the best one.

A Metropolis chain walks over the plans (which subject is in which set). A step takes one placed subject and the subject
some ranks older or younger, and exchanges their places. The proposal is symmetric, and a plan is allowed when every set
keeps its W1 below its bound and every decade its allowance; so without balancing, every allowed plan that can be
reached is equally likely in the long run. With balancing the chain is annealed, and the best balanced plan it has
visited is kept.

Source: Metropolis et al., J Chem Phys 21 (1953) 1087; annealing: Kirkpatrick et al., Science 220 (1983) 671.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neuroage.cohort.assignment import Allowance, Floats, Ints

# Enough that every place is tried some eighty times; measured on 275 to 100,000 subjects, longer chains change nothing
# that the seeds do not change already. The upper limit keeps 100,000 subjects within seconds.
STEPS_PER_SUBJECT, MIN_STEPS, MAX_STEPS = 80, 4_000, 30_000
# Annealing of the imbalance, whose values are shares of a set: from one in ten subjects wrong to one in two thousand.
WARM, COLD = 0.05, 0.0005
# Bounds are sums of ages in years; rounding of such sums stays far below a second.
ROUNDING_YEARS = 1e-9


@dataclass(frozen=True)
class Categories:
    """The columns to balance, as counts.

    Args:
        code: For every subject and column, the number of its category among all C categories of all columns, (N,
            columns).
        share: The share that every category has in the pool, (C,).
        names: Column and value of every category.
    """

    code: Ints
    share: Floats
    names: list[tuple[str, str]]

    def imbalance(self, rows: Ints) -> float:
        """Give the imbalance of a set: half the sum of |share in the set - share in the pool|, mean over the columns.

        It is the part of the set that would have to be exchanged for the shares to agree: 0 is perfect, 1 the worst.
        """
        return self.distance(np.bincount(self.code[rows].ravel(), minlength=len(self.share)), len(rows))

    def distance(self, counts: Ints, n: int) -> float:
        """Give the imbalance of a set of n subjects whose categories are counted, (C,)."""
        return float(np.abs(counts / n - self.share).sum() / (2 * self.code.shape[1]))


class Plan:
    """Which subject is in which of the sets; one exchange at a time.

    Args:
        ages: Ages in years, ascending, (N,).
        members: Ascending positions of the subjects of every set.
        targets: Ascending target ages of every set, as many as it has members.
        bounds: The largest W1 allowed for every set, in years.
        allowance: What each decade may lose, and the groups.
    """

    def __init__(
        self, ages: Floats, members: list[Ints], targets: list[Floats], bounds: list[float], allowance: Allowance
    ) -> None:
        self.ages, self.targets, self.allowance = ages, targets, allowance
        self.sorted_ages = [ages[rows].copy() for rows in members]
        self.work = [float(np.abs(a - t).sum()) for a, t in zip(self.sorted_ages, targets, strict=True)]
        self.most = [bound * len(t) + ROUNDING_YEARS * len(t) for bound, t in zip(bounds, targets, strict=True)]
        self.placed: list[int] = np.concatenate(members).tolist()
        self.set_of_place = np.repeat(np.arange(len(members)), [len(rows) for rows in members]).tolist()
        self.place_of = {subject: place for place, subject in enumerate(self.placed)}
        self.group_place = {int(allowance.groups[subject]): place for place, subject in enumerate(self.placed)}
        self.lost = allowance.removal[self.placed].sum(axis=0)

    def members(self) -> list[Ints]:
        """Give the ascending positions of the subjects of every set."""
        placed, sets = np.array(self.placed), np.array(self.set_of_place)
        return [np.sort(placed[sets == k]) for k in range(len(self.targets))]

    def exchanged(self, k: int, leaving: int, coming: int) -> tuple[Floats, float]:
        """Give the sorted ages and the work of set k after one of its subjects made way for another."""
        old, target = self.sorted_ages[k], self.targets[k]
        out, into = int(np.searchsorted(old, self.ages[leaving])), int(np.searchsorted(old, self.ages[coming]))
        new = old.copy()
        if into > out:
            into -= 1
            new[out:into] = old[out + 1 : into + 1]
        else:
            new[into + 1 : out + 1] = old[into:out]
        new[into] = self.ages[coming]
        return new, float(np.abs(new - target).sum())

    def allows(self, place: int, coming: int) -> bool:
        """Say whether an unplaced subject may take a place, by its group and what the decades can spare."""
        holder = self.group_place.get(int(self.allowance.groups[coming]), place)
        if holder != place:
            return False
        lost = self.lost + self.allowance.removal[coming] - self.allowance.removal[self.placed[place]]
        return bool((lost <= self.allowance.caps).all())

    def put(self, place: int, coming: int) -> None:
        """Give a place to an unplaced subject; the caller has checked it and updates the ages of the set."""
        leaving = self.placed[place]
        self.lost = self.lost + self.allowance.removal[coming] - self.allowance.removal[leaving]
        del self.place_of[leaving], self.group_place[int(self.allowance.groups[leaving])]
        self._seat(place, coming)

    def swap(self, place: int, other: int) -> None:
        """Exchange two placed subjects."""
        first, second = self.placed[place], self.placed[other]
        self._seat(place, second)
        self._seat(other, first)

    def _seat(self, place: int, subject: int) -> None:
        self.placed[place] = subject
        self.place_of[subject] = place
        self.group_place[int(self.allowance.groups[subject])] = place


def draw(plan: Plan, categories: Categories | None, rng: np.random.Generator) -> list[Ints]:
    """Walk the chain from a plan and give the members of every set where it ends, or the best balanced ones it met.

    Args:
        plan: Where the chain starts, within its bounds; it is changed.
        categories: What to balance, or None.
        rng: All randomness comes from here.
    """
    n_places, n_subjects = len(plan.placed), len(plan.ages)
    n_steps = int(np.clip(STEPS_PER_SUBJECT * n_places, MIN_STEPS, MAX_STEPS))
    n_steps = n_steps * 2 if categories else n_steps
    places = rng.integers(n_places, size=n_steps)
    # Steps of every size are tried: in a large cohort near ages are many ranks away, at its old end few.
    far = np.exp(rng.uniform(0, np.log(max(n_subjects / 2, 1.5)), n_steps)).astype(np.int64)
    shift = np.where(rng.random(n_steps) < 0.5, -far, far)
    chance = rng.random(n_steps)
    heat = WARM * (COLD / WARM) ** (np.arange(n_steps) / n_steps)
    tally = _Tally(plan, categories) if categories else None
    for step in range(n_steps):
        place = int(places[step])
        coming = plan.placed[place] + int(shift[step])
        if 0 <= coming < n_subjects:
            _try_exchange(plan, place, coming, tally, heat[step], chance[step])
    return tally.best if tally else plan.members()


def _try_exchange(plan: Plan, place: int, coming: int, tally: _Tally | None, heat: float, chance: float) -> None:
    k, leaving = plan.set_of_place[place], plan.placed[place]
    other = plan.place_of.get(coming)
    changes = [(k, leaving, coming)]
    if other is not None:
        if plan.set_of_place[other] == k:
            return
        changes.append((plan.set_of_place[other], coming, leaving))
    elif not plan.allows(place, coming):
        return
    results = [plan.exchanged(*change) for change in changes]
    if any(work > plan.most[change[0]] for change, (_, work) in zip(changes, results, strict=True)):
        return
    if tally and not tally.accepts(changes, heat, chance):
        return
    for (number, _, _), (ages, work) in zip(changes, results, strict=True):
        plan.sorted_ages[number], plan.work[number] = ages, work
    if other is None:
        plan.put(place, coming)
    else:
        plan.swap(place, other)
    if tally:
        tally.remember(plan)


class _Tally:
    """The category counts of every set along the chain, and the best balanced plan met."""

    def __init__(self, plan: Plan, categories: Categories) -> None:
        self.categories = categories
        self.best = plan.members()
        self.counts = [
            np.bincount(categories.code[rows].ravel(), minlength=len(categories.share)) for rows in self.best
        ]
        self.sizes = [len(rows) for rows in self.best]
        self.distances = [categories.distance(c, n) for c, n in zip(self.counts, self.sizes, strict=True)]
        self.least = sum(self.distances)

    def accepts(self, changes: list[tuple[int, int, int]], heat: float, chance: float) -> bool:
        """Decide by the Metropolis rule on the summed imbalance, and take the new counts over when accepted."""
        news = []
        for k, leaving, coming in changes:
            counts = self.counts[k].copy()
            counts[self.categories.code[leaving]] -= 1
            counts[self.categories.code[coming]] += 1
            news.append((k, counts, self.categories.distance(counts, self.sizes[k])))
        worse = sum(distance - self.distances[k] for k, _, distance in news)
        if worse > 0 and chance >= np.exp(-worse / heat):
            return False
        for k, counts, distance in news:
            self.counts[k], self.distances[k] = counts, distance
        return True

    def remember(self, plan: Plan) -> None:
        """Keep the plan when no better balanced one was met; equal ones replace each other, so that seeds differ."""
        now = sum(self.distances)
        if now <= self.least + ROUNDING_YEARS:
            self.least = min(now, self.least)
            self.best = plan.members()
