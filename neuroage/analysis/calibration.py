"""Calibration: age bias and intervals of a model, fitted on subjects whom it had not seen, applied to others."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from neuroage.analysis.age_bias import AgeBias, fit_age_bias
from neuroage.analysis.conformal import N_BINS, ConformalIntervals, Population, fit_intervals
from neuroage.errors import InfeasibleError

LEVEL = 0.9  # the field's custom for prediction intervals: 95% asks for twice the subjects in every bin
FEWEST_SUBJECTS = 20  # fewer give a slope with a standard error as large as itself, and intervals of no use
MOST_UNSEEN = 0.1  # of a population, of ages that no subject has: as many as 90% intervals may miss
N_PARTS = 5  # parts in which a calibration is checked on its own subjects; each is fitted on four fifths
COLUMNS = ("predicted_age_corrected", "gap_corrected", "interval_low", "interval_high")


@dataclass(frozen=True)
class Calibration:
    """What turns predicted ages into intervals, and gaps into gaps without age bias.

    Attributes:
        age_bias: The line that the gap follows with age.
        intervals: Around predicted ages.
        n_subjects: On whom both were fitted.
        n_bins: Slices of age that were asked for.
        fitted_on: Which predictions, in words.
    """

    age_bias: AgeBias
    intervals: ConformalIntervals
    n_subjects: int
    n_bins: int
    fitted_on: str

    def apply(self, table: pd.DataFrame) -> pd.DataFrame:
        """Put intervals beside predicted ages and, where the real age is known, corrected figures beside raw ones.

        Args:
            table: A column predicted_age, and age where it is known, years.

        Returns:
            The table with `interval_low`, `interval_high`, `predicted_age_corrected` and `gap_corrected`; no column
            is changed. The corrected prediction contains the real age: it is for comparing gaps, not for telling age.
        """
        low, high = self.intervals.bounds(table["predicted_age"])
        age = pd.to_numeric(table["age"]) if "age" in table.columns else pd.Series(np.nan, index=table.index)
        corrected = table["predicted_age"] - self.age_bias.expected_gap(age)
        return table.assign(
            predicted_age_corrected=corrected, gap_corrected=corrected - age, interval_low=low, interval_high=high
        )

    @property
    def words(self) -> str:
        """Say for whom the intervals are, and what they were fitted on."""
        return f"{self.intervals.words}; fitted on {self.n_subjects} {self.fitted_on}"

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain values; what calibration.json holds."""
        return {
            "words": self.words,
            "fitted_on": self.fitted_on,
            "n_subjects": self.n_subjects,
            "n_bins": self.n_bins,
            "age_bias": asdict(self.age_bias),
            "intervals": self.intervals.to_dict(),
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Calibration:
        """Undo `to_dict`."""
        return cls(
            AgeBias(**content["age_bias"]),
            ConformalIntervals.from_dict(content["intervals"]),
            content["n_subjects"],
            content["n_bins"],
            content["fitted_on"],
        )


def fit_calibration(
    subjects: pd.DataFrame,
    *,
    population: Population,
    level: float = LEVEL,
    n_bins: int = N_BINS,
    fitted_on: str = "out-of-fold subjects",
) -> Calibration:
    """Fit age bias and intervals on subjects whom the model had not seen.

    Args:
        subjects: One row a subject: age, predicted_age (years), members and scans averaged.
        population: Whose ages the intervals are for.
        level, n_bins: As in `fit_intervals`.
        fitted_on: Who the subjects are, in words.

    Raises:
        InfeasibleError: Fewer than 20 subjects are of the population's ages, or more than 10% of the population is
            younger or older than every subject.
    """
    span = f"{population.low:.0f} to {population.high:.0f}"
    n_inside = int(subjects["age"].between(population.low, population.high).sum())
    if n_inside < FEWEST_SUBJECTS:
        raise InfeasibleError(
            f"{n_inside} {fitted_on} aged {span} are too few for a calibration", expected=f"at least {FEWEST_SUBJECTS}"
        )
    youngest, oldest = subjects["age"].min(), subjects["age"].max()
    if population.share_between(youngest, oldest) < 1 - MOST_UNSEEN:
        raise InfeasibleError(
            f"Intervals for ages {span} from {fitted_on} who are {youngest:.0f} to {oldest:.0f} years old",
            expected=f"at least {1 - MOST_UNSEEN:.0%} of the ages between those of the youngest and the oldest",
            fix="Name ages for which there are training subjects.",
        )
    age, predicted = (subjects[column].to_numpy(dtype=np.float64) for column in ("age", "predicted_age"))
    intervals = fit_intervals(age, predicted, level=level, population=population, n_bins=n_bins)
    return Calibration(fit_age_bias(age, predicted), intervals, len(subjects), n_bins, fitted_on)


def apply_across(calibration: Calibration, subjects: pd.DataFrame) -> pd.DataFrame:
    """Apply a calibration's settings to the subjects on whom it was fitted, each by a fit on others.

    The subjects are dealt by age into five parts, and each part gets what was fitted on the other four, so that what is
    read off the result was not fitted on the same people.

    Args:
        calibration: Its level, population and bins are used, its fit is not.
        subjects: One row a subject: age, predicted_age (years).

    Returns:
        The table with the columns of `Calibration.apply`.
    """
    ordered = subjects.sort_values(["age", "predicted_age"], kind="stable")
    turns = np.random.default_rng(0).permuted(
        np.tile(np.arange(N_PARTS), (-(-len(ordered) // N_PARTS), 1)), axis=1
    )  # five neighbours in age go to five parts
    part = turns.ravel()[: len(ordered)]
    wanted, pieces = calibration.intervals, []
    for index in range(N_PARTS):
        others = ordered[part != index]
        age, predicted = (others[column].to_numpy(dtype=np.float64) for column in ("age", "predicted_age"))
        intervals = fit_intervals(
            age, predicted, level=wanted.level, population=wanted.population, n_bins=calibration.n_bins
        )
        fitted = Calibration(fit_age_bias(age, predicted), intervals, len(others), calibration.n_bins, "")
        pieces.append(fitted.apply(ordered[part == index]))
    return pd.concat(pieces).loc[subjects.index]
