"""How far an image's measures lie outside of what the training images had, and the words for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from neuroage.runs.measures import MEASURES


@dataclass(frozen=True)
class Concern:
    """One thing about a scan that differs from the training scans.

    Attributes:
        what: In words, with the value and what training scans had.
        fix: What to do.
        refuse: Whether it makes a prediction meaningless.
        measures: Those it explains.
    """

    what: str
    fix: str = ""
    refuse: bool = False
    measures: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.what + (f" ({self.fix})" if self.fix else "")


class Departures:
    """How far a scan's measures lie outside of the training ranges.

    Args:
        ranges: For each measure: low, median and high on its scale.
        margin: Allowed departure, in widths.
        measures: The scan's values, in their units.
        turn: In which other orientation it would fit best, in words.
    """

    def __init__(
        self, ranges: Mapping[str, list[float]], margin: float, measures: Mapping[str, float], turn: str = ""
    ) -> None:
        self.ranges, self.margin, self.measures, self.turn = ranges, margin, measures, turn
        self.scaled = {key: MEASURES[key].scale(measures[key]) for key in ranges if key in measures}
        found = [key for key in MEASURES if self.above(key) or self.below(key)]
        self.flagged = sorted(found, key=self.departure, reverse=True)

    @property
    def of_picture(self) -> bool:
        """Whether the training images are pictures, which have measures of their own."""
        return "megapixels" in self.ranges

    def _width(self, key: str) -> float:
        low, _, high = self.ranges[key]
        return max(high - low, MEASURES[key].floor)

    def departure(self, key: str) -> float:
        """How far a measure lies outside of its range, in widths; infinite where it could not be taken."""
        low, _, high = self.ranges[key]
        away = max(low - self.scaled[key], self.scaled[key] - high) / self._width(key)
        return away if away == away else float("inf")

    def inside(self, key: str, scaled: float) -> bool:
        """Whether a value, on the scale of a measure's range, lies within the range and its margin."""
        low, _, high = self.ranges[key]
        return low - self.margin * self._width(key) <= scaled <= high + self.margin * self._width(key)

    def above(self, key: str, margin: float | None = None) -> bool:
        """Whether a measure lies above its range and margin (the contract's, or another), and that is a concern."""
        if key not in self.scaled or not MEASURES[key].high:
            return False
        margin = self.margin if margin is None else margin
        limit = min(self.ranges[key][2] + margin * self._width(key), MEASURES[key].scale(MEASURES[key].most))
        return not self.scaled[key] <= limit

    def below(self, key: str, margin: float | None = None) -> bool:
        """Whether a measure lies below its range and margin (the contract's, or another), and that is a concern."""
        if key not in self.scaled or not MEASURES[key].low:
            return False
        margin = self.margin if margin is None else margin
        return not self.scaled[key] >= self.ranges[key][0] - margin * self._width(key)

    def ratio(self, key: str) -> float:
        """A measure's value over the training median, for measures on a logarithmic scale; 1 where it is not known."""
        return 10 ** (self.scaled[key] - self.ranges[key][1]) if key in self.scaled else 1.0

    def compared(self, key: str) -> str:
        """Set a measure beside its training range."""
        low, _, high = self.ranges[key]
        shown = MEASURES[key].shown
        return f"{shown(self.scaled[key])}, where training scans had {shown(low)} to {shown(high)}"

    def concern(self, key: str) -> Concern:
        """Say one departure in words."""
        measure = MEASURES[key]
        hint = measure.high if self.above(key) else measure.low
        return Concern(f"{measure.name} {self.compared(key)}", hint, measures=(key,))
