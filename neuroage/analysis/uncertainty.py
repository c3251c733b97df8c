"""What a calibration is worth on subjects on whom it was not fitted: coverage, width, and gaps raw beside corrected."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from neuroage.analysis.calibration import Calibration, apply_across
from neuroage.analysis.scores import score_model
from neuroage.analysis.subjects import MODEL

OWN_SPREAD_LEVEL = 0.9  # a normal distribution's share within …
OWN_SPREAD_WIDTH = 1.6449  # … so many standard deviations
LEVEL = 0.95  # of the bounds of a coverage


def coverage_bounds(n_inside: int, n_subjects: int, level: float = LEVEL) -> tuple[float, float]:
    """Bound a share that was counted (Clopper-Pearson).

    Args:
        n_inside: How many were inside.
        n_subjects: Of how many.
        level: The share of such bounds that hold the true share, at least.

    Returns:
        Lower and upper bound, 0 to 1.

    Example:
        >>> low, high = coverage_bounds(45, 50)
        >>> round(low, 3), round(high, 3)
        (0.782, 0.967)

    Source: Clopper & Pearson 1934, doi:10.1093/biomet/26.4.404.
    """
    from scipy.special import betaincinv

    tail = (1 - level) / 2
    low = float(betaincinv(n_inside, n_subjects - n_inside + 1, tail)) if n_inside else 0.0
    high = float(betaincinv(n_inside + 1, n_subjects - n_inside, 1 - tail)) if n_inside < n_subjects else 1.0
    return low, high


def score_coverage(age: ArrayLike, low: ArrayLike, high: ArrayLike) -> dict[str, Any]:
    """Count how often the real age lies inside its interval, and how wide the intervals are on average, years.

    The mean width is NaN where an interval is infinite.
    """
    real, below, above = (np.asarray(values, dtype=np.float64) for values in (age, low, high))
    n_inside = int(((real >= below) & (real <= above)).sum())
    share_low, share_high = coverage_bounds(n_inside, real.size)
    width = above - below
    return {
        "n": int(real.size),
        "n_inside": n_inside,
        "coverage": n_inside / real.size,
        "coverage_low": share_low,
        "coverage_high": share_high,
        "mean_width": float(width.mean()) if np.isfinite(width).all() else float("nan"),
    }


def calibrate_subjects(table: pd.DataFrame, name: str, calibration: Calibration, *, across: bool) -> pd.DataFrame:
    """Give the calibration's columns for a model's subjects: one row a subject, as in `table`.

    Args:
        table: Columns age and predicted_age_<name>.
        name: The model.
        calibration: Of the model.
        across: These subjects are those on whom it was fitted: each is then treated by a fit on the others.
    """
    subjects = table[["age"]].assign(predicted_age=table[f"predicted_age_{name}"])
    treated = apply_across(calibration, subjects) if across else calibration.apply(subjects)
    return treated.drop(columns=["age", "predicted_age"])


def score_calibration(subjects: pd.DataFrame, calibration: Calibration, *, across: bool, seed: int) -> dict[str, Any]:
    """Give coverage, width and corrected figures of calibrated subjects, as entries for the page and the JSON file.

    Args:
        subjects: One row a subject: age, decade and what `calibrate_subjects` gives.
        calibration: What was applied.
        across: As in `calibrate_subjects`.
        seed: Seed of the resamples.
    """
    age = subjects["age"].to_numpy()
    corrected = subjects["predicted_age_corrected"].to_numpy()
    by_decade = [
        {"decade": int(str(decade)), **score_coverage(part["age"], part["interval_low"], part["interval_high"])}
        for decade, part in subjects.groupby("decade", sort=True)
    ]
    return {
        "level": calibration.intervals.level,
        "population": calibration.intervals.population.words,
        "words": calibration.words,
        "checked": (
            "Checked by cross-validation: each subject was treated by a calibration fitted on other subjects."
            if across
            else "Checked on subjects on whom nothing was fitted."
        ),
        "age_bias": calibration.age_bias.to_dict(),
        "corrected": score_model(age, corrected, kind=MODEL, label="corrected for age", seed=seed),
        "intervals": score_coverage(age, subjects["interval_low"], subjects["interval_high"]),
        "decades": by_decade,
    }


def score_own_spread(subjects: pd.DataFrame, name: str) -> dict[str, Any]:
    """Say how often the real age lies within ± 1.645 of the standard deviations that the model itself predicted.

    Args:
        subjects: Columns age, predicted_age_<name> and predicted_age_std, years.
        name: The model.
    """
    reach = OWN_SPREAD_WIDTH * subjects["predicted_age_std"]
    predicted = subjects[f"predicted_age_{name}"]
    return {"level": OWN_SPREAD_LEVEL, **score_coverage(subjects["age"], predicted - reach, predicted + reach)}
