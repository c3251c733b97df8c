"""The input contract: what a run was trained on, against which later inputs are checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class InputContract:
    """What the training scans were like.

    Attributes:
        modality: Of the training scans.
        spacing_mm, size: The prepared grid.
        orientation: Axes of the prepared grid.
        native_spacing_mm: Smallest and largest voxel size seen in the files, along each axis, millimetres.
        intensity: For each prepared statistic (mean, std, foreground_share): 1st, 50th and 99th percentile over
            training scans.
        age_years: Youngest, mean and oldest training age.
        n_scans: Number of training scans.
    """

    modality: str
    spacing_mm: tuple[float, ...]
    size: tuple[int, ...]
    orientation: str
    native_spacing_mm: list[list[float]]
    intensity: dict[str, list[float]]
    age_years: tuple[float, float, float]
    n_scans: int

    @classmethod
    def of(
        cls,
        modality: str,
        spacing_mm: Sequence[float],
        size: Sequence[int],
        records: Iterable[dict[str, Any]],
        ages: np.ndarray,
    ) -> InputContract:
        """Summarise the preparation records (one a training scan) and ages (years)."""
        keys = ("mean", "std", "foreground_share")
        few = [(record["native_spacing_mm"], [record.get(key, np.nan) for key in keys]) for record in records]
        spacings, figures = (np.asarray(part, dtype=float) for part in zip(*few, strict=True))
        statistics = {
            key: np.percentile(column, [1, 50, 99]).round(5).tolist()
            for key, column in zip(keys, figures.T, strict=True)
        }
        return cls(
            modality=modality,
            spacing_mm=tuple(spacing_mm),
            size=tuple(size),
            orientation="RAS+",
            native_spacing_mm=[spacings.min(axis=0).tolist(), spacings.max(axis=0).tolist()],
            intensity=statistics,
            age_years=(float(ages.min()), float(ages.mean()), float(ages.max())),
            n_scans=len(few),
        )

    def to_dict(self) -> dict[str, Any]:
        """Give a JSON-ready dictionary."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> InputContract:
        """Take back what `to_dict` gave."""
        return cls(**content)

    def concerns(self, record: dict[str, Any]) -> list[str]:
        """Say in words where a prepared scan lies outside of what the run was trained on.

        Args:
            record: The scan's preparation record.

        Returns:
            One sentence a concern; empty when there is none.
        """
        found = []
        for key, name in (("mean", "mean intensity"), ("std", "contrast"), ("foreground_share", "share of foreground")):
            low, middle, high = self.intensity[key]
            width = max(high - low, 0.05 * abs(middle), 1e-6)
            value = float(record.get(key, np.nan))
            if not low - width <= value <= high + width:
                found.append(f"{name} {value:.3g} after preparation, where training scans had {low:.3g} to {high:.3g}")
        smallest, largest = np.asarray(self.native_spacing_mm)
        spacing = np.asarray(record["native_spacing_mm"])
        if (spacing < smallest / 2).any() or (spacing > largest * 2).any():
            shown, finest, coarsest = (
                "×".join(f"{value:.2g}" for value in values) for values in (spacing, smallest, largest)
            )
            found.append(f"voxels of {shown} mm, where training scans had {finest} to {coarsest} mm")
        return found
