"""Concerns about a scan, in words: what departs from the training scans, what it means, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from neuroage.runs.concerns_picture import PICTURE_RULES, unlike_pictures
from neuroage.runs.departures import Concern, Departures
from neuroage.runs.measures import CONTRAST, GEOMETRY, LABEL_MAP_VALUES, LOOKS

UNIT_FACTOR = 3.5  # no scanner's voxels differ from another's by more; 10 and 1,000 are units
SIZE_FACTOR = 1.6  # of a head's length; a whole head has 1.3 times a brain's
SAME_FACTOR = 1.5  # within which a head has changed as its voxels have
LEAST_GAIN = 0.02  # in correlation; a brain turned front to back gains 0.1 when put right (OASIS-1), a head more
MANY = 6  # of 22 measures; a brain from another scanner departs in 3 to 5 and looks usual to the network (two tried)
BRIGHT_BORDER = 0.5  # of the range; the border of a scan that is cut through the head has 0.15
TURNED_ALIKE = 0.85  # a scan that was only turned has, put right, the usual likeness; an angiogram has not
SKULL_ALIKE = 0.45  # a whole head compared with brains has 0.6 (measured on three), an angiogram 0.1 to 0.2
ALIKE = 0.65  # share of the usual correlation below which a scan is another kind of picture
ODD_UNITS = {10: "centimetres taken for millimetres", 1000: "metres or micrometres taken for millimetres"}


def verdict_of(concerns: Iterable[Concern]) -> str:
    """Give `refuse` where a concern makes the prediction meaningless, else `warn` where there is any, else `ok`."""
    found = list(concerns)
    return "refuse" if any(concern.refuse for concern in found) else "warn" if found else "ok"


def grave_concerns(scan: Departures) -> tuple[list[Concern], set[str]]:
    """Find what has a name: mistakes that make a prediction meaningless.

    Returns:
        The concerns, and the measures that need no further word.
    """
    rules, unlike = (PICTURE_RULES, unlike_pictures) if scan.of_picture else (RULES, _unlike)
    found = [concern for rule in (_label_map, *rules) if (concern := rule(scan))]
    if not found and (concern := unlike(scan)):  # where nothing else says why
        found = [concern]
    return found, {key for concern in found for key in concern.measures}


def _label_map(scan: Departures) -> Concern | None:
    key = "distinct_values"
    if key not in scan.scaled:
        return None
    n, usual = scan.measures[key], 10 ** scan.ranges[key][1]
    if scan.below(key) and n <= LABEL_MAP_VALUES:
        what = (
            f"only {n:.0f} distinct values, where training scans had {usual:.0f}: a label map or a mask, not an image"
        )
        return Concern(what, "give the scan itself", True, (key, *CONTRAST, *LOOKS, "brightness", "blur_mm"))
    if usual <= LABEL_MAP_VALUES < n:
        what = f"{n:.0f} distinct values, where training scans had {usual:.0f}: an image, not a label map"
        return Concern(what, "segment it as the training scans were", True, (key, *CONTRAST, *LOOKS, "brightness"))
    return None


def _wrong_units(scan: Departures) -> Concern | None:
    factor, size = scan.ratio("voxel_mm"), scan.ratio("head_ml") ** (1 / 3)
    far = max(factor, 1 / factor) > UNIT_FACTOR
    explained = 1 / SAME_FACTOR < size / factor < SAME_FACTOR  # the head has grown as the voxels have
    too_large = scan.above("head_ml") and size > SIZE_FACTOR
    too_small = scan.below("head_ml") and size < 1 / SIZE_FACTOR
    if scan.scaled.get("border_level", 0.0) > BRIGHT_BORDER:
        return None  # inverted: the background is taken for the head
    if not (too_large or ((too_small or scan.above("head_ml")) and far and explained)):
        return None
    times = max(factor, 1 / factor)
    guess = next((words for unit, words in ODD_UNITS.items() if unit / 2 < times < unit * 2), "a wrong voxel size")
    litres, usual = scan.measures["head_ml"] / 1000, 10 ** scan.ranges["head_ml"][1] / 1000
    what = f"a head of {litres:.3g} l, where training scans had {usual:.2g} l, with voxels of "
    what += f"{scan.measures['voxel_mm']:.3g} mm: {guess}?"
    return Concern(what, "mend the voxel size in the header", True, (*GEOMETRY, *LOOKS, "background_share"))


def _turned(scan: Departures) -> Concern | None:
    gain = scan.scaled.get("turned", 0.0)
    likeness = scan.scaled.get("likeness", 0.0)
    if not scan.above("turned") or gain < LEAST_GAIN or likeness + gain < TURNED_ALIKE * scan.ranges["likeness"][1]:
        return None
    what = f"the scan seems to be {scan.turn or 'turned'}: put right, its likeness to training scans gains {gain:.2f}"
    fix = "the orientation in its header is wrong: mend it where the file was made, or export it again"
    return Concern(what, fix, True, (*LOOKS, *(key for key in GEOMETRY if key[:-2] in ("field_mm", "head_mm"))))


def _inverted(scan: Departures) -> Concern | None:
    key = "border_level"
    if not scan.above(key) or scan.scaled[key] < BRIGHT_BORDER or scan.ranges[key][2] > 0.3:
        return None
    what = f"the background is bright ({scan.scaled['border_level']:.2f} of the range): intensities are inverted?"
    return Concern(what, "invert them again, or export the scan anew", True, (*CONTRAST, *LOOKS, *GEOMETRY))


def _skull(scan: Departures) -> Concern | None:
    litres, usual = scan.measures.get("head_ml", 0) / 1000, 10 ** scan.ranges["head_ml"][1] / 1000
    if scan.scaled.get("likeness", 1.0) < SKULL_ALIKE * scan.ranges["likeness"][1]:
        return None  # another modality
    if scan.below("field_mm_s") or scan.above("blur_mm") or scan.scaled["border_level"] > BRIGHT_BORDER:
        return None  # a slab, a brain that was smoothed beyond its edge, or inverted
    grown = scan.above("head_ml") or any(scan.above(f"head_mm_{axis}") for axis in "ras")
    if scan.below("background_share") and scan.ranges["background_share"][0] > 0.3 and grown:
        empty = scan.measures["background_share"]
        what = f"a head of {litres:.2g} l with {empty:.0%} empty background, where training scans had {usual:.2g} l: "
        what += "the skull is still on, and the run was trained on brains"
        return Concern(what, "strip the skull as for the training scans", True, (*GEOMETRY, *CONTRAST, *LOOKS))
    return None


def _unlike(scan: Departures) -> Concern | None:
    key = "likeness"
    if len(scan.flagged) >= MANY and scan.above("features") and scan.above("first_layer"):
        what = f"unlike the training scans in {len(scan.flagged)} of {len(scan.scaled)} measures and to the network"
        return Concern(what, "another modality or part of the head? Look at it with `neuroage preview`", True)
    if not scan.below(key) or scan.scaled[key] > ALIKE * scan.ranges[key][1]:
        return None
    what = f"hardly like the training scans: correlation with their mean {scan.compared(key)}"
    return Concern(what, "another modality, contrast or field of view? Look at it with `neuroage preview`", True, LOOKS)


RULES: tuple[Callable[[Departures], Concern | None], ...] = (_wrong_units, _inverted, _turned, _skull)
