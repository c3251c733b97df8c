"""Conformal intervals: how far to either side of a predicted age the real age lies, for a stated share of people.

The promise holds for people of the ages that the intervals were made for: errors differ with age, and a training set
that is mostly young says little about a clinic that is mostly old. Subjects are therefore weighted to the ages of a
stated population. Within that population the two sides differ with the predicted age, which is known for everyone: the
young are guessed too old, and the old too young.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neuroage.analysis.metrics import checked_ages
from neuroage.errors import InfeasibleError, UsageError

Array = NDArray[np.float64]

CLASS_YEARS = 10.0  # in which subjects are counted: of some hundred, classes of 5 years weigh chance more than age
FEWEST_IN_CLASS = 10  # the share of a class is then known to about a third of itself; no weight is one person's
FEWEST_IN_BIN = 40  # 5% of 40 are two people to each side: fewer would let one person's error be the width
N_BINS = 3  # young, middle, old: as many as some hundred subjects can tell apart


@dataclass(frozen=True)
class Population:
    """The ages of the people whom intervals are for.

    Attributes:
        kind: "training" (ages as they come), "uniform" (every age equally often) or "table" (as in a list of ages).
        low, high: Youngest and oldest age, years.
        ages: The list, for "table".
    """

    kind: str
    low: float
    high: float
    ages: tuple[float, ...] = ()

    @property
    def words(self) -> str:
        """Say who they are."""
        span = f"from {self.low:.0f} to {self.high:.0f} years"
        if self.kind == "uniform":
            return f"people of whom every age {span} is equally frequent"
        if self.kind == "table":
            return f"people with the ages of the {len(self.ages):,} who were given, {span}"
        return f"people with the ages of the training subjects, {span}"

    def shares(self, edges: Array) -> Array:
        """Give the share of these people in each age class, `(n_classes,)`, summing to 1."""
        if self.kind == "uniform":
            return np.asarray(np.diff(edges) / (edges[-1] - edges[0]))
        return np.histogram(self.ages, edges)[0] / max(len(self.ages), 1)

    def share_between(self, low: float, high: float) -> float:
        """Give the share of these people whose age lies from `low` to `high` years, 0 to 1."""
        if self.kind == "table":
            return float(np.mean([low <= age <= high for age in self.ages]))
        if self.kind == "uniform":
            return max(min(high, self.high) - max(low, self.low), 0.0) / (self.high - self.low)
        return 1.0


@dataclass(frozen=True)
class Bin:
    """Predicted ages whose intervals reach equally far.

    Attributes:
        low, high: Predicted ages from, and below, years; the outermost are open.
        n_subjects: Out-of-fold subjects behind it.
        n_effective: As many equally weighted subjects would tell as much.
        years_below, years_above: How far the interval reaches to each side of the predicted age; infinite where too few
            subjects stand behind the level.
    """

    low: float
    high: float
    n_subjects: int
    n_effective: float
    years_below: float
    years_above: float


@dataclass(frozen=True)
class ConformalIntervals:
    """Intervals around predicted ages.

    Attributes:
        level: The promised share of real ages inside, 0 to 1.
        population: For whom the promise is.
        bins: By predicted age, ascending.
    """

    level: float
    population: Population
    bins: tuple[Bin, ...]

    def bounds(self, predicted_age: ArrayLike) -> tuple[Array, Array]:
        """Give the lower and upper bound of each interval, years; −∞ and ∞ where too few subjects stand behind it."""
        predicted = np.asarray(predicted_age, dtype=np.float64)
        at = np.searchsorted([each.low for each in self.bins[1:]], predicted, side="right")
        below, above = (
            np.array([getattr(each, side) for each in self.bins])[at] for side in ("years_below", "years_above")
        )
        return predicted - below, predicted + above

    @property
    def words(self) -> str:
        """Say what the intervals promise, for whom, and where they cannot."""
        said = f"{self.level:.0%} intervals for {self.population.words}"
        empty = [each for each in self.bins if not np.isfinite(each.years_below + each.years_above)]
        if empty:
            fewest = min(each.n_effective for each in empty)
            said += (
                f"; for {len(empty)} of {len(self.bins)} ranges of predicted age they are infinite, because "
                f"{fewest:.0f} subjects are too few for this level (at least {fewest_subjects(self.level)})"
            )
        return said

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain values; infinity as None."""
        bins = [
            {key: value if np.isfinite(value) else None for key, value in asdict(each).items()} for each in self.bins
        ]
        return {"level": self.level, "population": asdict(self.population), "bins": bins}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> ConformalIntervals:
        """Undo `to_dict`."""
        open_ended = {"low": -np.inf, "high": np.inf, "years_below": np.inf, "years_above": np.inf}
        bins: list[dict[str, Any]] = [
            {key: open_ended[key] if value is None else value for key, value in each.items()}
            for each in content["bins"]
        ]
        population = content["population"]
        return cls(
            content["level"],
            Population(**{**population, "ages": tuple(population["ages"])}),
            tuple(Bin(**each) for each in bins),
        )


def fewest_subjects(level: float) -> int:
    """Give the number of subjects below which an interval of this level, half of the rest to each side, is infinite."""
    return int(np.ceil((1 + level) / (1 - level) - 1e-9))


def conformal_quantile(residuals: ArrayLike, level: float, weights: ArrayLike | None = None) -> float:
    """Give the residual that a new subject's does not exceed, with probability `level` at least.

    Args:
        residuals: Of subjects whom the model has not seen, years, shape `(n_subjects,)`.
        level: 0 to 1.
        weights: How often a person of this subject's age is met, relative; None: all alike.

    Returns:
        The ⌈level · (n + 1)⌉-th smallest residual; with weights, the smallest residual that the share
        level · (1 + 1/n) of the weight does not exceed, n being the effective number (Σw)² / Σw². Infinite where n is
        too small for the level.

    Example:
        >>> conformal_quantile([1, 2, 3, 4, 5, 6, 7, 8, 9], 0.9), conformal_quantile([1, 2, 3], 0.9)
        (9.0, inf)

    Source: Vovk, Gammerman & Shafer 2005, doi:10.1007/b106715; weighted, Tibshirani 2019, arXiv:1904.06019, and for a
    shift of the target Podkopaev & Ramdas 2021, arXiv:2103.03323. There the new subject's own weight stands beside the
    others; it is unknown where it depends on the age that is asked for, and stands here as its mean, Σw² / Σw.
    """
    errors = np.asarray(residuals, dtype=np.float64)
    weight = np.ones(errors.size) if weights is None else np.asarray(weights, dtype=np.float64)
    total = float(weight.sum())
    if total <= 0:
        return float("inf")
    order = np.argsort(errors, kind="stable")
    reached = np.cumsum(weight[order]) / (total + float(weight @ weight) / total)
    at = int(np.searchsorted(reached, level - 1e-12))  # sums differ in their last bits; a tie has to count as reached
    return float(errors[order][at]) if at < errors.size else float("inf")


def effective_number(weights: ArrayLike) -> float:
    """Give the number of equally weighted subjects that would tell as much: (Σw)² / Σw² (Kish 1965)."""
    weight = np.asarray(weights, dtype=np.float64)
    return float(weight.sum() ** 2 / (weight @ weight)) if weight.any() else 0.0


def age_weights(age: ArrayLike, population: Population) -> Array:
    """Give the weight of each subject that makes their ages those of a population.

    Args:
        age: Real ages in years, shape `(n_subjects,)`.
        population: For whom.

    Returns:
        Share of the population over share of the subjects in the subject's age class; 0 outside of the population's
        ages; all 1 for "training". Classes are 10 years wide; neighbours with few subjects are joined.

    Raises:
        InfeasibleError: Hardly a subject is of these ages.
    """
    real = np.asarray(age, dtype=np.float64)
    if population.kind == "training":
        return np.ones(real.size)
    inside = (real >= population.low) & (real <= population.high)
    if inside.sum() < FEWEST_IN_CLASS:
        raise InfeasibleError(
            f"{int(inside.sum())} out-of-fold subjects are {population.low:g} to {population.high:g} years old",
            expected=f"at least {FEWEST_IN_CLASS}",
            fix="Name ages for which there are training subjects.",
        )
    n_classes = max(1, round((population.high - population.low) / CLASS_YEARS))
    edges = np.linspace(population.low, population.high, n_classes + 1)
    counts = np.histogram(real[inside], edges)[0].astype(np.float64)
    edges = edges[_joined(counts, FEWEST_IN_CLASS)]
    counts = np.histogram(real[inside], edges)[0]
    per_class = population.shares(edges) / (counts / counts.sum())
    at = np.clip(np.searchsorted(edges, real, side="right") - 1, 0, len(per_class) - 1)
    return np.where(inside, per_class[at], 0.0)


def fit_intervals(
    age: ArrayLike, predicted_age: ArrayLike, *, level: float, population: Population, n_bins: int = N_BINS
) -> ConformalIntervals:
    """Fit intervals on subjects whom the model has not seen; one residual a subject.

    Args:
        age: Real ages in years, one per subject.
        predicted_age: Predicted ages in years, same shape.
        level: The promised share of real ages inside, above 0 and below 1.
        population: For whom the promise is.
        n_bins: Equal slices of the population's ages by which predicted ages are grouped, each group with its own
            interval; slices with fewer (effective) subjects than 40, or than the level needs, are joined to their
            neighbours.

    Returns:
        The intervals. Half of those that may lie outside lie below and half above; every interval holds the prediction.

    Raises:
        UsageError: `level` or `n_bins` is out of range.
        InfeasibleError: Hardly a subject is of the population's ages.
    """
    if not 0 < level < 1:
        raise UsageError(f"level {level:g}", expected="above 0 and below 1, such as 0.9")
    if n_bins < 1:
        raise UsageError(f"{n_bins} bins", expected="1 or more")
    real, predicted = checked_ages(age, predicted_age)
    weights = age_weights(real, population)
    older = real - predicted
    edges = np.linspace(population.low, population.high, n_bins + 1)[1:-1]
    slices = np.searchsorted(edges, predicted, side="right")
    fewest = max(FEWEST_IN_BIN, fewest_subjects(level))
    kept = _joined([effective_number(weights[slices == index]) for index in range(n_bins)], fewest)[1:-1]
    inner = edges[np.asarray(kept, dtype=np.intp) - 1]
    groups = np.searchsorted(inner, predicted, side="right")
    ends = [-np.inf, *inner.tolist(), np.inf]
    bins = []
    for index in range(len(inner) + 1):
        own = groups == index
        sides = [conformal_quantile(sign * older[own], (1 + level) / 2, weights[own]) for sign in (-1, 1)]
        n = int((weights[own] > 0).sum())
        below, above = (max(side, 0.0) for side in sides)
        bins.append(Bin(ends[index], ends[index + 1], n, effective_number(weights[own]), below, above))
    return ConformalIntervals(level, population, tuple(bins))


def _joined(counts: Sequence[float] | Array, fewest: float) -> list[int]:
    """Give the edges that stay, first and last included, when slices with fewer than `fewest` join a neighbour."""
    kept, held = [0], 0.0
    for index, count in enumerate(counts, start=1):
        held += count
        if held >= fewest:
            kept.append(index)
            held = 0.0
    if len(kept) == 1:
        return [0, len(counts)]
    return [*kept[:-1], len(counts)]
