"""The recipe's section `prepare`: what is done to every scan once, before any training."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import Field, model_validator

from neuroage.files import digest_text
from neuroage.runs.recipe_sections import Positive, Section

Size = Annotated[int, Field(ge=4, le=1024)]


class Binning(Section):
    """Reduce intensities to a few levels; two levels make a binary volume.

    Attributes:
        method: equal_width or quantile (`levels` of them), or two levels split at a threshold, a percentile or Otsu's
            threshold.
        levels: Number of levels for equal_width and quantile.
        at: The threshold (in scaled intensities, or file units when native) or the percentile (0–100).
        native: Bin on the scan's own grid before resampling, so that thin vessels survive as fractions of coarse
            voxels.
    """

    method: Literal["equal_width", "quantile", "threshold", "percentile", "otsu"] = "equal_width"
    levels: Annotated[int, Field(ge=2, le=256)] = 32
    at: float | None = None
    native: bool = False

    @model_validator(mode="after")
    def _at_belongs_to_a_method(self) -> Binning:
        needs = self.method in ("threshold", "percentile")
        if needs and self.at is None:
            raise ValueError(f"method {self.method} needs `at`, the {self.method}")
        if not needs and self.at is not None:
            raise ValueError(f"`at` has no meaning for method {self.method}; it belongs to threshold and percentile")
        if self.method == "percentile" and not 0 < float(self.at or 0) < 100:
            raise ValueError("a percentile lies between 0 and 100")
        return self


class Prepare(Section):
    """What is done to every scan once, before any training.

    Attributes:
        spacing_mm: Voxel size of the prepared volume in millimetres, one number or one per axis (R, A, S).
        size: Voxels of the prepared volume along R, A and S.
        centre: What the field of view is centred on: the middle of the `head`, of the `image` grid, or `auto`: of the
            MNI152 template where the scan lies on a grid of that template, else of the head.
        labels: The scan is a label map or mask: every voxel above 0 becomes 1, the rest 0, before resampling.
        nonfinite: `refuse` scans with NaN, or read NaN as `zero`.
        intensity: zscore, percentile (0–1 between the clip percentiles), mean (divide by it) or none.
        foreground: The voxels that give the intensity statistics: above the mean of the volume, nonzero, or all.
        clip_percentiles: Intensities beyond these percentiles of the foreground are clipped first; null clips nothing.
        binning: Reduce to a few levels afterwards; null keeps the full range.
        fractions: Edges in scaled intensities, such as [-1.6, -0.7, 0.1, 0.8]: the volume then has one channel for each
            interval, the share of every prepared voxel whose intensity lies in it on the scan's own, finer grid. Coarse
            voxels so keep what thin cortex and narrow sulci say. Background is in no interval. null: one channel.
        store_as: uint8 (256 levels over each scan's range), float16 (relative step 0.0005) or float32 (exact).
    """

    spacing_mm: Positive | tuple[Positive, Positive, Positive] = 2.0
    size: tuple[Size, Size, Size] = (80, 96, 80)
    centre: Literal["auto", "head", "image"] = "auto"
    labels: bool = False
    nonfinite: Literal["refuse", "zero"] = "refuse"
    intensity: Literal["zscore", "percentile", "mean", "none"] = "zscore"
    foreground: Literal["above_mean", "nonzero", "all"] = "above_mean"
    clip_percentiles: tuple[Annotated[float, Field(ge=0, le=100)], Annotated[float, Field(ge=0, le=100)]] | None = (
        0.5,
        99.5,
    )
    binning: Binning | None = None
    fractions: tuple[float, ...] | None = None
    store_as: Literal["uint8", "float16", "float32"] = "uint8"

    @model_validator(mode="after")
    def _percentiles_in_order(self) -> Prepare:
        if self.clip_percentiles is not None and not self.clip_percentiles[0] < self.clip_percentiles[1]:
            raise ValueError("clip_percentiles needs the lower percentile first")
        if self.intensity == "percentile" and self.clip_percentiles is None:
            raise ValueError("intensity: percentile needs clip_percentiles")
        if self.fractions is not None:
            if not self.fractions or list(self.fractions) != sorted(set(self.fractions)):
                raise ValueError("fractions needs rising edges, such as [-1.6, -0.7, 0.1, 0.8]")
            if self.binning or self.labels:
                raise ValueError("fractions, binning and labels exclude each other")
        return self

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along R, A, S in millimetres."""
        given = self.spacing_mm
        return given if isinstance(given, tuple) else (given, given, given)

    @property
    def n_channels(self) -> int:
        """Channels of the prepared volume."""
        return 1 if self.fractions is None else len(self.fractions) + 1

    @property
    def digest(self) -> str:
        """Sha256 of the section; equal preparations share stored volumes."""
        return digest_text(json.dumps(self.model_dump(mode="json"), sort_keys=True))
