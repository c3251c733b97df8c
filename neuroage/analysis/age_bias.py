"""Age bias: the straight line that the gap follows with age, and the gap without it.

Any regression with noise guesses the young too old and the old too young. The line is fitted on subjects whom the model
has not seen; taking it off makes gaps of people of different age comparable. It needs the real age, so it improves no
prediction: the raw figures stay the headline.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from neuroage.analysis.metrics import checked_ages
from neuroage.errors import InfeasibleError

LEVEL = 0.95  # the field's custom for a coefficient's interval
FEWEST_SUBJECTS = 3  # a line through two points leaves nothing to judge it by


@dataclass(frozen=True)
class AgeBias:
    """The line gap = intercept + slope · age.

    Attributes:
        intercept: Years, at age 0.
        slope: Years per year; below 0 the young are guessed too old and the old too young.
        slope_se: Standard error of the slope, valid for errors that grow with age.
        slope_low, slope_high: 95% interval of the slope.
        n_subjects: On whom it was fitted.
    """

    intercept: float
    slope: float
    slope_se: float
    slope_low: float
    slope_high: float
    n_subjects: int

    def expected_gap(self, age: ArrayLike) -> NDArray[np.float64]:
        """Give the gap that the line expects at these ages, years; NaN for an unknown age."""
        return np.asarray(self.intercept + self.slope * np.asarray(age, dtype=np.float64))

    def to_dict(self) -> dict[str, Any]:
        """Give the figures by name."""
        return asdict(self)


def fit_age_bias(age: ArrayLike, predicted_age: ArrayLike) -> AgeBias:
    """Fit the line that the gap follows with age, by least squares.

    Hand in predictions of subjects whom the model was not trained on, and never those that are to be scored afterwards.

    Args:
        age: Real ages in years, one per subject.
        predicted_age: Predicted ages in years, same shape.

    Returns:
        The line, its slope with standard error (HC3) and 95% interval (t).

    Raises:
        InfeasibleError: Fewer than 3 subjects, or all of one age.

    Example:
        >>> line = fit_age_bias([20, 40, 60, 80], [32, 44, 56, 68])
        >>> round(line.slope, 2), round(float(line.expected_gap(50)), 1)
        (-0.4, 0.0)

    Source: de Lange & Cole 2020, doi:10.1016/j.nicl.2020.102229; Beheshti 2019, doi:10.1016/j.nicl.2019.102063; the
    standard error, MacKinnon & White 1985, doi:10.1016/0304-4076(85)90158-7.
    """
    real, predicted = checked_ages(age, predicted_age)
    n = real.size
    if n < FEWEST_SUBJECTS or np.ptp(real) == 0:
        raise InfeasibleError(f"{n} subjects give no line of gap and age", expected="at least 3, of different age")
    from scipy.special import stdtrit  # scipy.stats takes half a second to import for the same quantile

    gap, centred = predicted - real, real - real.mean()
    spread = float(centred @ centred)
    slope = float(centred @ gap / spread)
    intercept = float(gap.mean() - slope * real.mean())
    residual = gap - intercept - slope * real
    leverage = np.minimum(1 / n + centred**2 / spread, 1 - 1e-9)
    slope_se = float(np.sqrt(np.square(centred * residual / (1 - leverage)).sum()) / spread)
    reach = float(stdtrit(n - 2, (1 + LEVEL) / 2)) * slope_se
    return AgeBias(intercept, slope, slope_se, slope - reach, slope + reach, n)
