"""What age does to the phantom, and how well age can be told from it at best.

Every picture is drawn from an *apparent age*, the true age plus a normal error of known size that is drawn once per
subject and modality. That error is the noise ceiling: it is known exactly, no model can see through it, and because T1
and TOF have errors of their own, seeing both helps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from neuroage.errors import UsageError, did_you_mean

AGE_RANGE_YEARS = (20.0, 80.0)
"""Ages of a phantom cohort unless told otherwise; drawn uniformly."""

APPARENT_AGE_SD_YEARS = {"t1": 6.0, "tof": 9.0}
"""Spread of apparent around true age: the ceilings that follow (4.3 and 6.0 years) are like errors on real scans."""


@dataclass(frozen=True)
class AgeEffect:
    """One anatomical trait that changes in a straight line with apparent age.

    Args:
        name: Key of the trait.
        modality: The modality whose picture shows it.
        unit: Unit of the values.
        at_20: Mean value at an apparent age of 20 years.
        at_80: Mean value at an apparent age of 80 years.
        subject_sd: Spread between subjects of one apparent age, in `unit`.
        meaning: What a reader of the picture sees.
    """

    name: str
    modality: str
    unit: str
    at_20: float
    at_80: float
    subject_sd: float
    meaning: str

    def value(self, apparent_age: float, deviation: float = 0.0) -> float:
        """Give the trait at `apparent_age` (years) for a subject `deviation` standard deviations off the mean."""
        slope_per_year = (self.at_80 - self.at_20) / 60.0
        mean = self.at_20 + slope_per_year * (apparent_age - 20.0)
        return max(mean + deviation * self.subject_sd, 0.0)


EFFECTS: tuple[AgeEffect, ...] = (
    AgeEffect(
        "ventricle_scale",
        "t1",
        "1",
        0.70,
        1.38,
        0.04,
        "width of the lateral ventricles relative to mid-life; the third ventricle follows",
    ),
    AgeEffect(
        "sulcal_half_width_mm",
        "t1",
        "mm",
        0.40,
        1.10,
        0.055,
        "half the width of sulci and fissures; the brain also draws back from the skull",
    ),
    AgeEffect("cortical_thickness_mm", "t1", "mm", 3.80, 2.30, 0.10, "thickness of the grey ribbon"),
    AgeEffect("lesion_load", "t1", "lesions", 0.0, 24.0, 2.0, "dark spots and periventricular caps in white matter"),
    AgeEffect(
        "calibre_scale",
        "tof",
        "1",
        1.25,
        0.70,
        0.03,
        "visible width of every artery relative to mid-life (older arteries show less inflow)",
    ),
    AgeEffect("tortuosity_mm", "tof", "mm", 0.30, 3.00, 0.18, "amplitude of the winding of an artery about its course"),
    AgeEffect("branch_share", "tof", "1", 1.00, 0.20, 0.05, "share of the distal branches that are visible"),
)
"""Directions follow the literature on healthy ageing; sizes are chosen so that a small network learns them from about
110 subjects, which makes some of them larger than life.

Source: Fjell & Walhovd 2010, Reviews in the Neurosciences 21:187 (T1); Bullitt et al. 2010, Neurobiology of
Aging 31:290 (arteries).
"""


def draw_traits(modality: str, apparent_age: float, rng: np.random.Generator | None) -> dict[str, float]:
    """Draw one subject's traits of a modality at an apparent age.

    Args:
        modality: `"t1"` or `"tof"`.
        apparent_age: Age that the picture shows, in years.
        rng: Source of the differences between subjects; None gives the mean subject.

    Returns:
        Trait name → value in the effect's unit.
    """
    effects = [effect for effect in EFFECTS if effect.modality == modality]
    deviations = np.zeros(len(effects)) if rng is None else np.clip(rng.standard_normal(len(effects)), -2.5, 2.5)
    return {effect.name: effect.value(apparent_age, float(d)) for effect, d in zip(effects, deviations, strict=True)}


def best_age(apparent_age: np.ndarray, modality: str, age_range: tuple[float, float] = AGE_RANGE_YEARS) -> np.ndarray:
    """Give the guess with the smallest expected absolute error when apparent age is known exactly.

    It is the median of age given apparent age: with ages uniform over the range, a normal distribution cut at its ends.

    Args:
        apparent_age: Years, any shape.
        modality: `"t1"` or `"tof"`.
        age_range: Lowest and highest age of the cohort in years.

    Returns:
        Years, the shape of `apparent_age`, inside `age_range`.

    Raises:
        UsageError: The phantom does not draw that modality.
    """
    if modality not in APPARENT_AGE_SD_YEARS:
        raise UsageError(
            f"modality '{modality}' of the phantom", expected=did_you_mean(modality, APPARENT_AGE_SD_YEARS)
        )
    sd = APPARENT_AGE_SD_YEARS[modality]
    # Beyond 20 standard deviations the guess is the end of the range, and the tail areas would underflow.
    shown = np.clip(np.asarray(apparent_age, float), age_range[0] - 20 * sd, age_range[1] + 20 * sd)
    low, high = ((edge - shown) / sd for edge in age_range)
    # Far below the range both areas round to 1; mirrored, they keep their digits.
    sign = np.where(low + high > 0, -1.0, 1.0)
    low, high = np.where(sign > 0, low, -high), np.where(sign > 0, high, -low)
    middle = ndtri((ndtr(low) + ndtr(high)) / 2)
    return np.asarray(np.clip(shown + sd * sign * middle, *age_range))


def noise_ceiling(modality: str, age_range: tuple[float, float] = AGE_RANGE_YEARS) -> float:
    """Give the mean absolute error below which no model can come on average.

    The error of `best_age`, which knows the apparent age exactly, averaged over ages uniform in the range. A sample of
    50 subjects scatters about this value by roughly a tenth of it.

    Args:
        modality: `"t1"` or `"tof"`.
        age_range: Lowest and highest age of the cohort in years.

    Returns:
        Mean absolute error in years.

    Raises:
        UsageError: The phantom does not draw that modality.

    Example:
        >>> noise_ceiling("t1") < noise_ceiling("tof")
        True
    """
    steps = 400
    quantiles = (np.arange(steps) + 0.5) / steps
    ages = age_range[0] + (age_range[1] - age_range[0]) * quantiles[:, None]
    sd = APPARENT_AGE_SD_YEARS.get(modality, 0.0)
    guesses = best_age(ages + sd * ndtri(quantiles)[None, :], modality, age_range)
    return float(np.abs(guesses - ages).mean())
