"""The input contract: what a run was trained on, against which later inputs are checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from neuroage.runs.concerns import grave_concerns
from neuroage.runs.departures import Concern, Departures
from neuroage.runs.measures import LABEL_MAP_VALUES, MEASURES

MARGINS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)  # in widths of the central 95 %; 0.5 is 4 standard deviations of a Gaussian
LEFT_OUT_FLAGGED = 0.02  # share of training scans that may be flagged by the others: 5 % on new ones leaves room
PARTS = 50  # into which training scans are dealt to be judged by the others
MOST_BESIDE_GRAVE = 3  # further departures that are told of a scan that is refused anyway
MEANINGLESS_FOR_LABELS = ("brightness", "middle_level", "bright_tail", "blur_mm")
CENTRAL = (2.5, 50.0, 97.5)  # percentiles that make a range; a few failed scans in training do not widen it


@dataclass(frozen=True)
class InputContract:
    """What the training scans were like.

    Attributes:
        modality: Of the training scans.
        spacing_mm, size: The prepared grid.
        orientation: Axes of the prepared grid.
        native_spacing_mm: Smallest and largest voxel size seen in the files, along each axis, millimetres; 1 where
            a picture's file does not say it.
        intensity: For each prepared statistic (mean, std, foreground_share): 1st, 50th and 99th percentile over
            training scans.
        age_years: Youngest, mean and oldest training age; NaN where none is known.
        n_scans: Number of training scans.
        native_orientations: How the axes of the files were stored: codes such as "LPS", with their number.
        native_size: Smallest and largest matrix seen in the files, along each axis.
        ranges: For each measure: 2.5th, 50th and 97.5th percentile over training scans, on the measure's scale (see
            `neuroage.runs.measures`); empty in runs of before there were any.
        margin: By how many widths of a range a scan may lie outside of it.
    """

    modality: str
    spacing_mm: tuple[float, ...]
    size: tuple[int, ...]
    orientation: str
    native_spacing_mm: list[list[float]]
    intensity: dict[str, list[float]]
    age_years: tuple[float, float, float]
    n_scans: int
    native_orientations: dict[str, int] = field(default_factory=dict)
    native_size: list[list[int]] = field(default_factory=list)
    ranges: dict[str, list[float]] = field(default_factory=dict)
    margin: float = MARGINS[0]

    @classmethod
    def of(
        cls,
        modality: str,
        spacing_mm: Sequence[float],
        size: Sequence[int],
        records: Iterable[dict[str, Any]],
        ages: np.ndarray,
        measures: Sequence[Mapping[str, float]] = (),
    ) -> InputContract:
        """Summarise the training scans.

        Args:
            modality, spacing_mm, size: As in the recipe.
            records: Preparation records, one a scan.
            ages: Years, shape (n_scans,); NaN where unknown.
            measures: Measures, one dictionary a scan; without any the contract is the smaller one.
        """
        keys = ("mean", "std", "foreground_share")
        orientations: dict[str, int] = {}
        few, sizes, axes = [], [], "RAS+"
        for record in records:
            axes = str(record.get("orientation", axes))  # one recipe prepared all of them
            few.append((record["native_spacing_mm"], [record.get(key, np.nan) for key in keys]))
            sizes.append(record.get("native_size", [0] * len(size)))
            code = str(record.get("native_orientation", "RAS"))
            orientations[code] = orientations.get(code, 0) + 1
        spacings, figures = (np.asarray(part, dtype=float) for part in zip(*few, strict=True))
        statistics = {
            key: np.percentile(column, [1, 50, 99]).round(5).tolist()
            for key, column in zip(keys, figures.T, strict=True)
        }
        scaled = scaled_measures(measures)
        known = ages[np.isfinite(ages)] if np.isfinite(ages).any() else np.full(1, np.nan)
        return cls(
            modality=modality,
            spacing_mm=tuple(spacing_mm),
            size=tuple(size),
            orientation=axes,
            native_spacing_mm=[spacings.min(axis=0).tolist(), spacings.max(axis=0).tolist()],
            intensity=statistics,
            age_years=(float(known.min()), float(known.mean()), float(known.max())),
            n_scans=max(len(ages), len(few)),  # where there are labels, ages may be missing
            native_orientations=dict(sorted(orientations.items())),
            native_size=[np.min(sizes, axis=0).tolist(), np.max(sizes, axis=0).tolist()],
            ranges={
                key: np.percentile(column, CENTRAL).round(6).tolist()
                for key, column in scaled.items()
                if np.isfinite(column).all()
            },
            margin=choose_margin(scaled),
        )

    @property
    def is_full(self) -> bool:
        """Whether it has the measures by which every mistake is told; runs of before have the smaller contract."""
        return bool(self.ranges)

    def to_dict(self) -> dict[str, Any]:
        """Give a JSON-ready dictionary."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> InputContract:
        """Take back what `to_dict` gave."""
        return cls(**content)

    def concerns(
        self, record: Mapping[str, Any], measures: Mapping[str, float] | None = None, turn: str = ""
    ) -> list[Concern]:
        """Say in words where a scan lies outside of what the run was trained on.

        Args:
            record: The scan's preparation record.
            measures: Its measures; None: only the smaller contract is checked.
            turn: In which other orientation it would fit best, in words.

        Returns:
            What makes a prediction meaningless first; empty when there is nothing.
        """
        if not self.is_full or measures is None:
            return self._few_concerns(record)
        departures = Departures(self.ranges, self.margin, measures, turn)
        grave, explained = grave_concerns(departures)
        others = [departures.concern(key) for key in departures.flagged if key not in explained]
        if grave and len(others) > MOST_BESIDE_GRAVE:
            n_more = len(others) - MOST_BESIDE_GRAVE
            others = [*others[:MOST_BESIDE_GRAVE], Concern(f"and {n_more} measures more")]
        found = grave + others
        return [_of_picture(concern) for concern in found] if departures.of_picture else found

    def _few_concerns(self, record: Mapping[str, Any]) -> list[Concern]:
        found = []
        for key, name in (("mean", "mean intensity"), ("std", "contrast"), ("foreground_share", "share of foreground")):
            low, middle, high = self.intensity[key]
            width = max(high - low, 0.05 * abs(middle), 1e-6)
            value = float(record.get(key, np.nan))
            if not low - width <= value <= high + width:
                found.append(
                    Concern(f"{name} {value:.3g} after preparation, where training scans had {low:.3g} to {high:.3g}")
                )
        smallest, largest = np.asarray(self.native_spacing_mm)
        spacing = np.asarray(record["native_spacing_mm"])
        if (spacing < smallest / 2).any() or (spacing > largest * 2).any():
            shown, finest, coarsest = (
                "×".join(f"{value:.2g}" for value in values) for values in (spacing, smallest, largest)
            )
            found.append(Concern(f"voxels of {shown} mm, where training scans had {finest} to {coarsest} mm"))
        return found


def _of_picture(concern: Concern) -> Concern:
    return replace(concern, what=concern.what.replace("scan", "picture"), fix=concern.fix.replace("scan", "picture"))


def scaled_measures(measures: Sequence[Mapping[str, float]]) -> dict[str, np.ndarray]:
    """Lay measures out by name, on the scales of their ranges, shape (n_scans,) each.

    Where the training scans are label maps, what is said of intensities is left out.
    """
    if not measures:
        return {}
    n_values = np.median([scan.get("distinct_values", np.inf) for scan in measures])
    without = MEANINGLESS_FOR_LABELS if n_values <= LABEL_MAP_VALUES else ()
    return {
        key: np.array([measure.scale(scan[key]) for scan in measures])
        for key, measure in MEASURES.items()
        if key not in without and all(key in scan for scan in measures)
    }


def choose_margin(scaled: Mapping[str, np.ndarray]) -> float:
    """Choose how far a scan may lie outside of the ranges, for all measures together.

    Each training scan is judged by ranges that it had no part in (leave one out; of more than 50 scans, leave a
    fiftieth out); the smallest margin at which at most 2 % of them (or one) would be flagged by any measure is taken.
    So the share of false alarms is held for the measures combined, whatever their number and however they depend on
    each other.

    Args:
        scaled: Measures of the training scans, on the scales of their ranges, shape (n_scans,) each.

    Returns:
        The margin in widths of a range.
    """
    if not scaled:
        return MARGINS[0]
    n_scans = len(next(iter(scaled.values())))
    if n_scans < 3:
        return MARGINS[-1]
    excess = np.zeros(n_scans)
    part = np.arange(n_scans) % min(n_scans, PARTS)
    for key, column in scaled.items():
        measure = MEASURES[key]
        if not np.isfinite(column).all():
            continue
        for left_out in range(part.max() + 1):
            low, _, high = np.percentile(column[part != left_out], CENTRAL)
            width, values = max(high - low, measure.floor), column[part == left_out]
            beyond = np.maximum((low - values) * bool(measure.low), (values - high) * bool(measure.high)) / width
            excess[part == left_out] = np.maximum(excess[part == left_out], beyond)
    allowed = max(1, int(LEFT_OUT_FLAGGED * n_scans))
    return next((margin for margin in MARGINS if (excess > margin).sum() <= allowed), MARGINS[-1])
