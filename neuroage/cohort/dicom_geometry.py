"""Slices of one DICOM volume in their order, and whether they make a whole, regular grid.

Source: DICOM PS3.3 C.7.6.2 (image plane).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neuroage.cohort.dicom_frame import Frame
from neuroage.errors import DataError

# Shares of the distance between slices. Scanners write positions with 5 to 12 digits; a twentieth of a slice is less
# than an interpolation to the next grid blurs.
SAME_PLACE = 0.02
MAX_UNEVENNESS = 0.05
GAP = 1.5
MAX_TILT_DEGREES = 0.5  # a brain of 150 mm is sheared by 1.3 mm then
SAME_COSINE = 1e-3
SAME_SPACING_MM = 1e-3
EXPORT = "Export the series again; nothing is filled in."


@dataclass(frozen=True)
class Grid:
    """The slices of a volume, in order along the normal of their plane.

    Attributes:
        frames: From the lowest to the highest place along the cross product of row and column direction.
        affine: Voxel (column, row, slice) to millimetres, RAS+, shape (4, 4).
    """

    frames: tuple[Frame, ...]
    affine: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows, slices."""
        rows, columns = self.frames[0].size
        return columns, rows, len(self.frames)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Between columns, rows and slices."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)


def arrange_slices(frames: Sequence[Frame], *, same_pixels: Callable[[Frame, Frame], bool] | None = None) -> Grid:
    """Bring slices into their order and make sure that they fill a regular grid.

    Args:
        frames: The slices of one volume, in any order.
        same_pixels: Says whether two slices hold the same values, to tell a copy from another slice; asked only
            about slices at one place.

    Raises:
        DataError: A slice is missing, is there twice, or differs from the others in size, direction, spacing or
            scaling; slices are unevenly spaced or sheared. The slice is named by its place and file.
    """
    _refuse_unplaced(frames)
    if len(frames) < 2:
        raise DataError(f"a single slice ({frames[0].path.name})", expected="a 3-D volume")
    _refuse_strangers(frames)
    ordered, places = order_slices(frames)
    groups = repeated_slices(frames)
    if groups:
        what = say_repeated(groups, len(frames))
        if same_pixels is not None:
            what += f", with {'the same' if same_pixels(*groups[0][:2]) else 'different'} pixels"
        raise DataError(what, expected="every slice once", fix="Keep one of each, or one volume.")
    _refuse_uneven(ordered, places)
    return Grid(tuple(ordered), _affine(ordered))


def order_slices(frames: Sequence[Frame]) -> tuple[list[Frame], np.ndarray]:
    """Sort slices along their normal; give them with their places along it, in millimetres."""
    normal = _normal(frames[0])
    places = np.array([np.dot(np.asarray(frame.position), normal) for frame in frames])
    order = np.lexsort((np.arange(len(frames)), places))
    return [frames[k] for k in order], places[order]


def repeated_slices(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Give the groups of slices that lie at one place, in their order along the normal."""
    ordered, places = order_slices(frames)
    steps = np.diff(places)
    if len(steps) == 0:
        return []
    apart = steps[steps > 1e-3 * max(1e-6, float(steps.max()))]
    typical = float(np.median(apart)) if len(apart) else 1.0
    starts = np.flatnonzero(np.r_[True, steps > SAME_PLACE * typical])
    return [ordered[a:b] for a, b in zip(starts, [*starts[1:], len(ordered)], strict=True) if b - a > 1]


def say_repeated(groups: list[list[Frame]], n_frames: int) -> str:
    """Say which slice is there more than once."""
    first = groups[0]
    place = float(np.dot(np.asarray(first[0].position), _normal(first[0])))
    if len(groups) > 1 and sum(map(len, groups)) == n_frames and len({len(group) for group in groups}) == 1:
        return f"every slice is there {len(first)} times, for example {_files(first)} at {place:.2f} mm"
    more = f", and {len(groups) - 1} more" if len(groups) > 1 else ""
    return f"the slice at {place:.2f} mm is there {len(first)} times: {_files(first)}{more}"


def _files(frames: Sequence[Frame]) -> str:
    return " and ".join(_name(frame) for frame in frames[:3])


def _name(frame: Frame) -> str:
    return f"{frame.path.name} frame {frame.index + 1}" if frame.index else frame.path.name


def _normal(frame: Frame) -> np.ndarray:
    cosines = np.asarray(frame.orientation)
    return np.asarray(np.cross(cosines[:3], cosines[3:]))


def _refuse_unplaced(frames: Sequence[Frame]) -> None:
    for frame in frames:
        if "MOSAIC" in frame.image_type:
            raise DataError(
                f"{_name(frame)} is a mosaic: slices laid out as tiles of one picture",
                expected="one picture for each slice",
                fix="Convert it with dcm2niix, and index the NIfTI files.",
            )
        lacking = [
            word
            for word, value in (
                ("position", frame.position),
                ("orientation", frame.orientation),
                ("pixel spacing", frame.spacing_mm),
            )
            if value is None
        ]
        if lacking:
            raise DataError(f"{_name(frame)} gives no {' and no '.join(lacking)}", expected="a slice in space")


def _refuse_strangers(frames: Sequence[Frame]) -> None:
    """Refuse the slice that differs from most others."""
    _refuse_other(frames, "size", "pixels", lambda frame: frame.size, 0)
    _refuse_other(frames, "direction", "", lambda frame: frame.orientation or (), SAME_COSINE)
    _refuse_other(frames, "pixel spacing", "mm", lambda frame: frame.spacing_mm or (), SAME_SPACING_MM)
    unscaled = [frame for frame in frames if frame.scaling is None]
    if 0 < len(unscaled) < len(frames):
        odd = unscaled[0] if len(unscaled) * 2 <= len(frames) else next(f for f in frames if f.scaling)
        what = "has no rescale slope" if odd.scaling is None else "has a rescale slope"
        raise DataError(f"{_name(odd)} {what}, unlike the other slices", expected="one scaling for all", fix=EXPORT)
    cosines = np.asarray(frames[0].orientation).reshape(2, 3)
    if not np.allclose(cosines @ cosines.T, np.eye(2), atol=1e-2) or min(frames[0].spacing_mm or (0,)) <= 0:
        raise DataError(
            f"{_name(frames[0])} gives no valid plane", expected="two directions at right angles", fix=EXPORT
        )


def _refuse_other(
    frames: Sequence[Frame], what: str, unit: str, value: Callable[[Frame], tuple[float, ...]], tolerance: float
) -> None:
    usual = Counter(value(frame) for frame in frames).most_common(1)[0][0]
    for frame in frames:
        if max(abs(a - b) for a, b in zip(value(frame), usual, strict=True)) > tolerance:
            own, other = ("×".join(f"{part:g}" for part in numbers) for numbers in (value(frame), usual))
            shown = f" ({own} {unit}, not {other})" if unit else ""
            place = float(np.dot(np.asarray(frame.position), _normal(frame)))
            raise DataError(
                f"the slice at {place:.2f} mm ({_name(frame)}) has another {what} than the others{shown}",
                expected="slices of one volume",
                fix="Take it out of the folder if it belongs elsewhere.",
            )


def _refuse_uneven(ordered: list[Frame], places: np.ndarray) -> None:
    steps = np.diff(places)
    usual = float(np.median(steps))
    wide = np.flatnonzero(steps >= GAP * usual)
    if len(wide):
        k, n_all = int(wide[0]), sum(max(1, round(float(step / usual))) for step in steps) + 1
        n_missing = max(1, round(float(steps[k] / usual)) - 1)
        number = sum(max(1, round(float(step / usual))) for step in steps[:k]) + 2
        which = (
            f"slice {number} of {n_all} is"
            if n_missing == 1
            else f"slices {number} to {number + n_missing - 1} of {n_all} are"
        )
        more = f"; {len(wide) - 1} more gaps follow" if len(wide) > 1 else ""
        raise DataError(
            f"{which} missing, at {places[k] + usual:.2f} mm, between {_name(ordered[k])} ({places[k]:.2f} mm) and "
            f"{_name(ordered[k + 1])} ({places[k + 1]:.2f} mm){more}",
            expected=f"a slice every {usual:.2f} mm",
            fix=EXPORT,
        )
    off = np.abs(steps - usual)
    grid = places[0] + (places[-1] - places[0]) / len(steps) * np.arange(len(places))
    if off.max() > MAX_UNEVENNESS * usual or np.abs(places - grid).max() > MAX_UNEVENNESS * usual:
        k = int(np.argmax(off))
        raise DataError(
            f"slices are unevenly spaced: {steps[k]:.3f} mm from {_name(ordered[k])} to {_name(ordered[k + 1])} "
            f"(at {places[k]:.2f} mm), mostly {usual:.3f} mm",
            expected="the same distance between all",
            fix=EXPORT,
        )
    positions = np.array([frame.position for frame in ordered])
    aside = positions - np.outer(places, _normal(ordered[0]))
    shift = np.linalg.norm(aside - aside[0], axis=1)
    tilt = float(np.degrees(np.arctan2(shift[-1], places[-1] - places[0])))
    if tilt > MAX_TILT_DEGREES:
        raise DataError(
            f"slices are sheared by {tilt:.1f}° (a tilted gantry): {_name(ordered[-1])} lies {shift[-1]:.1f} mm beside "
            f"{_name(ordered[0])}",
            expected="slices straight above each other",
            fix="Straighten it with dcm2niix, and index the NIfTI file.",
        )
    line = aside[0] + np.linspace(0, 1, len(aside))[:, None] * (aside[-1] - aside[0])
    beside = np.linalg.norm(aside - line, axis=1)
    if beside.max() > 0.5 * min(ordered[0].spacing_mm or (1,)):
        k = int(np.argmax(beside))
        raise DataError(
            f"the slice at {places[k]:.2f} mm ({_name(ordered[k])}) lies {beside[k]:.2f} mm beside the others",
            expected="slices straight above each other",
            fix=EXPORT,
        )


def _affine(ordered: list[Frame]) -> np.ndarray:
    first, last = np.asarray(ordered[0].position), np.asarray(ordered[-1].position)
    rows_mm, columns_mm = ordered[0].spacing_mm or (1.0, 1.0)
    cosines = np.asarray(ordered[0].orientation)
    affine = np.eye(4)
    affine[:3, 0] = cosines[:3] * columns_mm
    affine[:3, 1] = cosines[3:] * rows_mm
    affine[:3, 2] = (last - first) / (len(ordered) - 1)
    affine[:3, 3] = first
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM's world is LPS, ours RAS


def files_of(frames: Sequence[Frame]) -> list[Path]:
    """Give the files that hold these slices, sorted, each once."""
    return sorted({frame.path for frame in frames})
