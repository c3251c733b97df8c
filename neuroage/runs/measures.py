"""What the input contract measures of a scan or picture: name, unit, and what a value outside of training's means."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """One measure of a scan.

    Attributes:
        name: In words.
        unit: Behind the value.
        floor: Least width that the range of training values is taken to have: differences below it change no
            prediction that we have seen. In decades where `log`.
        low, high: What a value below or above the training range suggests, and what to do; empty: not a concern.
        log: Ranges are those of the logarithm to base 10.
        most: A value that is a concern wherever the training range ends; infinite: none is.
    """

    name: str
    unit: str
    floor: float
    low: str = ""
    high: str = ""
    log: bool = False
    most: float = math.inf

    def scale(self, value: float) -> float:
        """Bring a value to the scale of its range."""
        return math.log10(max(value, 1e-9)) if self.log else value

    def unscale(self, scaled: float) -> float:
        """Bring a value from the scale of its range back to its own."""
        return float(10**scaled if self.log else scaled)

    def shown(self, scaled: float) -> str:
        """Set a value on the scale of its range as a person reads it."""
        return f"{self.unscale(scaled):.3g}{' ' * bool(self.unit)}{self.unit}"


CUT = "part of the head is missing: export the whole scan"
WIDE = "crop it to what the training scans showed"
SPACING = "untested on such voxels: check the header"
LARGE = "if the skull is still on and the run was trained on brains, strip it as the training scans were"
FULL = "not stripped as the training scans were, or smoothed"
SMALL = "if the skull was stripped and the run was trained on heads, give the whole head"
SHAPE = "cut, stretched or turned: give the whole picture as it was made"
UNITS = "other units or scaling: harmless only where nothing else differs"
LABEL_MAP_VALUES = 40  # FreeSurfer's aseg has as many labels; an image of 8 bits has more values in use

MEASURES: dict[str, Measure] = {
    "voxel_mm": Measure("voxel size", "mm", 0.10, SPACING, SPACING, log=True),
    "voxel_ratio": Measure("longest to shortest side of a voxel", "", 0.15, "", "slices are thick", log=True),
    "field_mm_r": Measure("field of view from left to right", "mm", 0.08, CUT, WIDE, log=True),
    "field_mm_a": Measure("field of view from back to front", "mm", 0.08, CUT, WIDE, log=True),
    "field_mm_s": Measure("field of view from bottom to top", "mm", 0.08, CUT, WIDE, log=True),
    "head_ml": Measure("volume of the head or brain", "ml", 0.08, SMALL, LARGE, log=True),
    "head_mm_r": Measure("head or brain from left to right", "mm", 0.05, CUT, LARGE, log=True),
    "head_mm_a": Measure("head or brain from back to front", "mm", 0.05, CUT, LARGE, log=True),
    "head_mm_s": Measure("head or brain from bottom to top", "mm", 0.05, CUT, LARGE, log=True),
    "background_share": Measure("share of empty background", "", 0.1, FULL, "the background was set to one value"),
    "border_level": Measure("brightness of the border", "", 0.1, "", "inverted, or cut too tight"),
    "brightness": Measure("brightness", "", 0.3, UNITS, UNITS, log=True),
    "aspect_ratio": Measure("width over height", "", 0.05, SHAPE, SHAPE, log=True),
    "megapixels": Measure("size", "megapixels", 0.3, "fine detail is missing: give it in full size", "", log=True),
    "margin_share": Measure("share of empty margins", "", 0.05, "", "crop them as those of the training scans were"),
    "black_share": Measure("share of the darkest value", "", 0.1, "", "dark parts were cut off, or margins were added"),
    "white_share": Measure("share of the brightest value", "", 0.05, "", "bright parts were cut off: widen the window"),
    "colourfulness": Measure("difference between colours", "", 0.02, "", "a photograph, or drawn upon"),
    "middle_level": Measure("middle level between dark and bright", "", 0.15, "another contrast", "another contrast"),
    "bright_tail": Measure(
        "brightest parts in units of the middle", "", 0.12, "another contrast", "another contrast, vessels", log=True
    ),
    "negative_share": Measure("share of negative values", "", 0.05, "", "the scan was standardised or centred before"),
    "distinct_values": Measure(
        "number of distinct values", "", 0.5, "a label map, a mask or few levels", "", log=True
    ),
    "blur_mm": Measure("blur", "mm", 0.10, "sharper or noisier", "smoothed, or of lower resolution", log=True),
    "blur_px": Measure("blur", "prepared pixels", 0.10, "sharper or noisier", "smoothed or enlarged", log=True),
    "symmetry": Measure("left–right symmetry", "", 0.05, "turned, cut or one-sided", ""),
    "likeness": Measure("likeness to the training scans", "", 0.05, "another kind of picture or another pose", ""),
    "turned": Measure("gain in likeness when turned", "", 0.05, "", "turned or flipped"),
    "mirrored": Measure("gain in likeness when mirrored", "", 0.02, "", "left and right are exchanged? See the marker"),
    "inverted": Measure("gain in likeness when inverted", "", 0.05),  # a concern only where it puts a picture right
    "first_layer": Measure("distance of the first layer's responses", "", 1.0, "", "intensities or texture are unlike"),
    "features": Measure(
        "distance to the nearest training scans, in the network's features,",
        "times the usual",
        0.15,
        "",
        "the network has seen nothing like it: do not believe the prediction",
        log=True,
        most=6.0,  # of 52 held-out scans of OASIS-1 the farthest had 4.9; a brain of another scanner, guessed wrong, 18
    ),
}  # fmt: skip

# Measures that one mistake moves together: once it is named, no further word is needed on them.
GEOMETRY = (*(key for key in MEASURES if key.startswith(("voxel", "field", "head"))), "blur_mm")
LOOKS = ("likeness", "symmetry", "turned", "mirrored", "inverted", "first_layer", "features")
CONTRAST = (
    *("middle_level", "bright_tail", "background_share", "border_level", "negative_share"),
    *("black_share", "white_share", "margin_share"),
)
