"""The recipe's section `prepare`: what is done to every scan once, before any training."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from neuroage.files import digest_text
from neuroage.runs.recipe_raw import BiasField, Brain, Register, Vessels
from neuroage.runs.recipe_sections import Positive, Section

Size = Annotated[int, Field(ge=4, le=1024)]
N_LANDMARKS = 13  # percentiles 1, 10, 20, 25, 30, 40, 50, 60, 70, 75, 80, 90, 99

# The input that published weights were trained on; keys given beside `preset` win.
PRESETS: dict[str, dict[str, Any]] = {
    "li2017": {  # Li 2017, doi:10.1007/978-3-319-59050-9_28, as applied by its publishers (NiftyNet, highresnet)
        "spacing_mm": 1.0,
        "size": (160, 192, 160),  # theirs is the whole scan; the network takes any size
        "centre": "auto",
        "intensity": "zscore",
        "foreground": "above_mean",
        "clip_percentiles": None,
        "histogram": {"landmarks": "li2017", "over": "all"},
        "statistics": "grid",
        "orientation": "RAS",
        "store_as": "float16",
    },
    "sfcn_ukb": {  # Peng 2021, doi:10.1016/j.media.2020.101871: brains on FSL's MNI152 grid of 182×218×182 voxels
        "spacing_mm": 1.0,
        "size": (160, 192, 160),
        "centre": "image",
        "intensity": "mean",
        "foreground": "all",
        "clip_percentiles": None,
        "histogram": None,
        "statistics": "grid",
        "orientation": "LAS",
        "store_as": "float16",
    },
}


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


class Histogram(Section):
    """Bring the histogram of every scan to common landmarks, linearly between percentiles (Nyúl 2000).

    Meant for whole heads. Brain-extracted scans take `over: nonzero`. TOF works too, with landmarks of its own; with
    those of T1 its intensities come to mean something else than the network has learnt. Masks and binary volumes have
    no histogram and are refused.

    Attributes:
        landmarks: Intensities for the percentiles 1, 10, 20, 25, 30, 40, 50, 60, 70, 75, 80, 90 and 99: `li2017`
            (published with the weights of that name) or thirteen rising numbers.
        over: The voxels that give the percentiles: all (as published), nonzero or above_mean.
    """

    landmarks: Literal["li2017"] | tuple[float, ...] = "li2017"
    over: Literal["all", "nonzero", "above_mean"] = "all"

    @model_validator(mode="after")
    def _thirteen_rising_landmarks(self) -> Histogram:
        given = self.landmarks
        if not isinstance(given, str) and (len(given) != N_LANDMARKS or any(a >= b for a, b in pairwise(given))):
            raise ValueError(f"landmarks are {N_LANDMARKS} rising numbers, or a published name: li2017")
        return self


class Prepare(Section):
    """What is done to every scan once, before any training.

    Attributes:
        kind: `volume`: images with three spatial axes. For those with two, see `PreparePicture`.
        registration: Register every scan to a template first; null: scans lie alike already, or need not.
        bias_field: Correct the bias field by N4; null: leave it.
        brain: Cut out the brain; null: keep the head as it is.
        vessels: Enhance the vessels of an angiography and cut them out; null: leave intensities alone.
        preset: Fill this section with the input that published weights were trained on: li2017 or sfcn_ukb; keys given
            beside it win. null: nothing.
        spacing_mm: Voxel size of the prepared volume in millimetres, one number or one per axis (R, A, S).
        size: Voxels of the prepared volume along R, A and S.
        centre: What the field of view is centred on: the middle of the `head`, of the `image` grid, or `auto`: of the
            MNI152 template where the scan lies on a grid of that template, else of the head.
        labels: The scan is a label map or mask: every voxel above 0 becomes 1, the rest 0, before resampling.
        nonfinite: `refuse` scans with NaN, or read NaN as `zero`.
        intensity: zscore, percentile (0–1 between the clip percentiles), mean (divide by it) or none.
        foreground: The voxels that give the intensity statistics: above the mean of the volume, nonzero, or all.
        statistics: What intensity statistics are taken over: the prepared `field_of_view`, or the scan's own, whole
            `grid`, before anything is cropped from it.
        histogram: Bring the histogram to common landmarks before intensities are clipped and scaled; null: leave it.
        clip_percentiles: Intensities beyond these percentiles of the foreground are clipped first; null clips nothing.
        binning: Reduce to a few levels afterwards; null keeps the full range.
        fractions: Levels of scaled intensity, such as [-1.6, -0.7, 0.1, 0.8]: the volume then has one channel for each,
            the share of every prepared voxel whose intensity on the scan's own, finer grid is near that level (linear
            between two levels). Coarse voxels so keep what thin cortex and narrow sulci say. Background has no share.
            null: one channel.
        orientation: Order of the prepared axes: RAS (first axis from left to right) or LAS (from right to left, as FSL
            stores MNI152).
        store_as: uint8 (256 levels over each scan's range), float16 (relative step 0.0005) or float32 (exact).
    """

    kind: Literal["volume"] = "volume"
    registration: Register | None = None
    bias_field: BiasField | None = None
    brain: Brain | None = None
    vessels: Vessels | None = None
    preset: Literal["li2017", "sfcn_ukb"] | None = None
    spacing_mm: Positive | tuple[Positive, Positive, Positive] = 2.0
    size: tuple[Size, Size, Size] = (80, 96, 80)
    centre: Literal["auto", "head", "image"] = "auto"
    labels: bool = False
    nonfinite: Literal["refuse", "zero"] = "refuse"
    intensity: Literal["zscore", "percentile", "mean", "none"] = "zscore"
    foreground: Literal["above_mean", "nonzero", "all"] = "above_mean"
    statistics: Literal["field_of_view", "grid"] = "field_of_view"
    histogram: Histogram | None = None
    clip_percentiles: tuple[Annotated[float, Field(ge=0, le=100)], Annotated[float, Field(ge=0, le=100)]] | None = (
        0.5,
        99.5,
    )
    binning: Binning | None = None
    fractions: tuple[float, ...] | None = None
    orientation: Literal["RAS", "LAS"] = "RAS"
    store_as: Literal["uint8", "float16", "float32"] = "uint8"

    @model_validator(mode="before")
    @classmethod
    def _filled_from_preset(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("preset"), str):
            return {**PRESETS.get(given["preset"], {}), **given}
        return given

    @model_validator(mode="after")
    def _percentiles_in_order(self) -> Prepare:
        if self.clip_percentiles is not None and not self.clip_percentiles[0] < self.clip_percentiles[1]:
            raise ValueError("clip_percentiles needs the lower percentile first")
        if self.intensity == "percentile" and self.clip_percentiles is None:
            raise ValueError("intensity: percentile needs clip_percentiles")
        if self.histogram is not None and (self.labels or (self.binning is not None and self.binning.native)):
            raise ValueError("histogram has no meaning for masks and binned volumes, whose few levels have none")
        if self.fractions is not None:
            if len(self.fractions) < 2 or list(self.fractions) != sorted(set(self.fractions)):
                raise ValueError("fractions needs two or more rising levels, such as [-1.6, -0.7, 0.1, 0.8]")
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
        return 1 if self.fractions is None else len(self.fractions)

    @property
    def digest(self) -> str:
        """Sha256 of the section; equal preparations share stored volumes, whatever preset filled them."""
        raw = (
            "registration",
            "bias_field",
            "brain",
            "vessels",
        )  # where absent they leave the digests of before as they were
        absent = {name for name in raw if getattr(self, name) is None}
        given = self.model_dump(mode="json", exclude={"kind", "preset", *absent})
        return digest_text(json.dumps(given, sort_keys=True))
