"""What can be wrong with a picture so that its prediction means nothing: mistakes that have a name."""

from __future__ import annotations

from collections.abc import Callable

from neuroage.runs.departures import Concern, Departures
from neuroage.runs.measures import CONTRAST, LOOKS

GAIN = 0.02  # in likeness, above what training pictures gain: of 100 held-out chests and slices none gained as much
UNLIKE = 0.05  # in likeness, below what training pictures have
MANY = 4  # of 20 measures: of 100 held-out pictures none had so many, and so little likeness
NARROW = 0.5  # widths: the least margin of a contract; pictures of many kinds need wide ones, which hide such company


def _put_right(scan: Departures, key: str) -> bool:
    """Whether a picture gains more likeness than any training picture would, and then looks like one."""
    if key not in scan.scaled or not {key, "likeness"} <= set(scan.ranges):
        return False
    gain, likeness = scan.scaled[key], scan.scaled["likeness"]
    enough = gain > max(scan.ranges[key][2], 0.0) + GAIN
    return enough and likeness + gain >= scan.ranges["likeness"][0] - UNLIKE


def _inverted(scan: Departures) -> Concern | None:
    gain = scan.scaled.get("inverted", 0.0)
    if not _put_right(scan, "inverted") or gain < scan.scaled.get("turned", 0.0):
        return None
    what = f"dark and bright are exchanged: inverted, its likeness to training scans gains {gain:.2f}"
    return Concern(what, "export it as MONOCHROME2, or invert it", True, (*CONTRAST, *LOOKS, "brightness"))


def _turned(scan: Departures) -> Concern | None:
    gain = scan.scaled.get("turned", 0.0)
    if not _put_right(scan, "turned") or gain <= scan.scaled.get("inverted", 0.0):
        return None
    if "90°" in scan.turn and not scan.inside("aspect_ratio", -scan.scaled["aspect_ratio"]):
        return None  # turned back, it would be too wide or too narrow: it is stretched or cut
    what = f"the scan seems to be {scan.turn or 'turned'}: put right, its likeness to training scans gains {gain:.2f}"
    return Concern(what, "turn it as the training scans are", True, (*LOOKS, "aspect_ratio"))


def unlike_pictures(scan: Departures) -> Concern | None:
    """Say that a picture is of another kind: it hardly looks like any of training, and other measures say so too."""
    key = "likeness"
    if key not in scan.scaled or scan.scaled[key] > scan.ranges[key][0] - UNLIKE:
        return None
    n_departing = sum(scan.above(other, NARROW) or scan.below(other, NARROW) for other in scan.scaled)
    if n_departing < MANY and not scan.above("features"):
        return None
    what = f"hardly like the training scans: correlation with the nearest {scan.compared(key)}"
    return Concern(what, "another kind of picture? Look at it with `neuroage preview`", True, LOOKS)


PICTURE_RULES: tuple[Callable[[Departures], Concern | None], ...] = (_inverted, _turned)
