"""The recipe's section `prepare` for pictures, images with two spatial axes: what is done to each once."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from neuroage.files import digest_text
from neuroage.runs.recipe_sections import Section

# Pictures seldom say how large what they show is. Whatever speaks of millimetres (augmentation, the coarse voxels of
# baselines, the likeness to training pictures) takes the longer side as this many: 4 of them are then a 32nd of it.
FIELD = 128.0

PictureSize = Annotated[int, Field(ge=8, le=4096)]
Percent = Annotated[float, Field(ge=0, le=100)]


class PreparePicture(Section):
    """What is done to every picture once, before any training.

    Attributes:
        kind: `picture`: images with two spatial axes. Without it, `prepare` is about volumes.
        size: Rows and columns of the prepared picture; one number for a square.
        channels: gray, or rgb where colours say something; gray files then have three equal channels.
        fit: How a picture of another shape is brought to `size`: `pad` keeps all of it and its shape, `crop` keeps its
            shape and cuts what is too long, `stretch` keeps all of it.
        intensity: `range` divides by the largest value that the file's bits can hold, `percentile` sets the clip
            percentiles to 0 and 1, `zscore` subtracts the mean and divides by the standard deviation, `none` keeps the
            file's values.
        foreground: The pixels that give percentiles, mean and standard deviation: all, or those above 0.
        clip_percentiles: Intensities beyond these percentiles of the foreground are clipped first; null clips nothing.
        store_as: uint8 (256 levels over each picture's range), float16 (relative step 0.0005) or float32 (exact).
    """

    kind: Literal["picture"] = "picture"
    size: tuple[PictureSize, PictureSize] = (224, 224)
    channels: Literal["gray", "rgb"] = "gray"
    fit: Literal["pad", "crop", "stretch"] = "pad"
    intensity: Literal["range", "percentile", "zscore", "none"] = "percentile"
    foreground: Literal["all", "nonzero"] = "all"
    clip_percentiles: tuple[Percent, Percent] | None = (0.5, 99.5)
    store_as: Literal["uint8", "float16", "float32"] = "uint8"

    @model_validator(mode="before")
    @classmethod
    def _one_number_is_a_square(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("size"), int):
            return {**given, "size": (given["size"], given["size"])}
        return given

    @model_validator(mode="after")
    def _percentiles_in_order(self) -> PreparePicture:
        if self.clip_percentiles is not None and not self.clip_percentiles[0] < self.clip_percentiles[1]:
            raise ValueError("clip_percentiles needs the lower percentile first")
        if self.intensity == "percentile" and self.clip_percentiles is None:
            raise ValueError("intensity: percentile needs clip_percentiles")
        return self

    @property
    def spacing(self) -> tuple[float, float]:
        """Nominal size of a pixel along rows and columns, in millimetres: the longer side is taken as 128."""
        step = FIELD / max(self.size)
        return step, step

    @property
    def n_channels(self) -> int:
        """Channels of the prepared picture."""
        return 3 if self.channels == "rgb" else 1

    @property
    def digest(self) -> str:
        """Sha256 of the section; equal preparations share stored pictures."""
        return digest_text(json.dumps(self.model_dump(mode="json"), sort_keys=True))
