"""Ranges as people write them in a recipe: `10`, `[-5, 10]`, or one `[low, high]` for each axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import AfterValidator

Pair = tuple[float, float]


def _ordered(pair: Pair) -> Pair:
    if not pair[0] <= pair[1]:
        raise ValueError(f"the low end {pair[0]:g} lies above the high end {pair[1]:g}; write [low, high]")
    return pair


Range = Annotated[Pair, AfterValidator(_ordered)]
"""`[low, high]`, uniform, low not above high."""

AxisRange = float | Range | list[Range]
"""A number d (uniform within d of the neutral value), one `[low, high]`, or a list of them, one for each axis."""


def axis_pairs(value: AxisRange, n_axes: int, neutral: float) -> list[Pair]:
    """Spell a range out as one (low, high) for each axis.

    Args:
        value: As written in the recipe.
        n_axes: How many axes are drawn.
        neutral: The value that changes nothing: 0 for angles and shifts, 1 for scales.

    Returns:
        `n_axes` pairs.

    Raises:
        ValueError: A list of another length.
    """
    if isinstance(value, (int, float)):
        return [(neutral - value, neutral + value)] * n_axes
    if isinstance(value, tuple):
        return [value] * n_axes
    if len(value) != n_axes:
        raise ValueError(
            f"{len(value)} ranges for {n_axes} axes; give one number, one [low, high], or {n_axes} of them"
        )
    return list(value)


def draw_uniform(rng: np.random.Generator, pairs: Sequence[Pair]) -> list[float]:
    """Draw one uniform number from each pair."""
    return [
        float(low + (high - low) * fraction)
        for (low, high), fraction in zip(pairs, rng.random(len(pairs)), strict=True)
    ]
