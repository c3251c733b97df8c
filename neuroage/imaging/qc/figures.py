"""Figures of prepared scans, and how unlike the rest of the cohort each scan is.

A figure's robust z is its distance to the cohort's median in units of 1.4826 · MAD (the standard deviation, were it
normal), so that a few bad scans do not move the scale they are judged by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

FEWEST = 8  # scans with a figure; of fewer, no usual spread can be told
FURTHEST = 10.0  # a z beyond it says no more
N_JUDGED = 3  # figures whose z make the oddness: one alone is often chance
FLOOR = 0.01  # of the median: a spread below it is no spread (all scans of one scanner, and rounding)
# Words in names of figures of which more is better, so that only a low one is odd.
HIGH_IS_GOOD = {
    "similarity", "information", "score", "corr", "correlation", "overlap", "dice", "coverage", "covered", "inside",
    "likeness", "sharpness", "in_head", "lead",
}  # fmt: skip
OF_THE_SEARCH = (
    "seconds",
    "iterations",
    "change",
    "coarse",
    "translation",
)  # words in names of figures that are no quality
# How a file was written, not how good it is.
GEOMETRY = (
    "voxel_mm", "voxel_ratio", "field_mm_r", "field_mm_a", "field_mm_s", "brightness", "distinct_values",
    "negative_share", "border_level", "background_share",
)  # fmt: skip

# What is known of a figure: name, unit, meaning. Others are shown under their own name.
KNOWN: dict[str, tuple[str, str, str]] = {
    "oddness": ("Oddness", "", "how unlike the cohort: mean of the three largest robust z"),
    "likeness": ("Likeness", "", "correlation of the picture with the cohort's mean picture"),
    "head_ml": ("Head", "ml", "volume above Otsu's threshold; of the brain where the skull is gone"),
    "blur_mm": ("Blur", "mm", "length over which intensities change inside the head: low is noise, high is blur"),
    "bright_tail": ("Bright tail", "", "99.5th percentile of the head in units of its median"),
    "middle_level": ("Middle level", "", "median of the head between its 5th and 95th percentile"),
    "head_mm_r": ("Width", "mm", "of the head, left to right"),
    "head_mm_a": ("Length", "mm", "of the head, back to front"),
    "head_mm_s": ("Height", "mm", "of the head, bottom to top"),
    "background_share": ("Background", "", "share of voxels that have exactly the least value"),
    "field_mm_r": ("Field width", "mm", "of the file's grid, left to right"),
    "field_mm_a": ("Field length", "mm", "of the file's grid, back to front"),
    "field_mm_s": ("Field height", "mm", "of the file's grid, bottom to top"),
    "voxel_mm": ("Voxel", "mm", "geometric mean of the file's voxel sides"),
    "spacing": ("Spacing", "mm", "voxel sides of the file"),
    "orientation": ("Axes", "", "orientation of the file's axes"),
    "rotation_deg": ("Rotation", "°", "of the head against the template"),
    "information": ("Information", "", "mutual information of the registered scan and what it was registered to"),
    "inside": ("Inside", "", "share of the template that lies inside of the scan"),
    "sharpness": ("Sharpness", "", "information where the template was found over the most at wrong poses"),
    "information_brain": ("In the brain", "nats", "mutual information of scan and template within the brain"),
    "in_head": ("On the head", "", "share of the template's brain that lies on the head"),
    "scale_least": ("Least scale", "", "of the head against the template, along its most shrunk direction"),
    "scale_most": ("Most scale", "", "of the head against the template, along its most stretched direction"),
    "template_overlap": ("Mask overlap", "", "Dice of the brain mask and the template's"),
    "volume_ml": ("Brain", "ml", "volume of the brain mask"),
    "similarity": ("Similarity", "", "of the registered scan and the template"),
    "overlap": ("Overlap", "", "of the registered scan's head or brain and the template's"),
    "coverage": ("Coverage", "", "share of the template that the scan covers"),
}
UNITS = {"_mm": "mm", "_ml": "ml", "_deg": "°", "_percent": "%"}
SHOWN = ("likeness", "brain.volume_ml", "head_ml", "blur_mm", "bright_tail", "spacing", "orientation")  # at first
N_SHOWN_OF_REGISTRATION = 3  # and so many of registration's own


@dataclass
class Column:
    """One figure of all scans.

    Attributes:
        key: Its name in the record.
        values: One each scan: a number, text, or None.
        judged: Whether it counts for the oddness.
        shown: Whether the page shows it at first.
        z: Robust z of each scan, NaN where there is none.
        usual: Median and 5th and 95th percentile of a number.
    """

    key: str
    values: list[Any]
    judged: bool = True
    shown: bool = False
    z: np.ndarray = field(default_factory=lambda: np.empty(0))
    usual: tuple[float, float, float] | None = None

    @property
    def low_is_odd(self) -> bool:
        """Whether more of it is better, so that only a low one is odd."""
        name = self.key.rpartition(".")[2]
        return not HIGH_IS_GOOD.isdisjoint([name, *name.split("_")])

    def to_dict(self) -> dict[str, Any]:
        """Give what the page needs to know of it."""
        step, _, last = self.key.rpartition(".")
        label, unit, meaning = KNOWN.get(last, ("", "", ""))
        ending = next((ending for ending in UNITS if last.endswith(ending)), "")
        name = last.removesuffix(ending).replace("_", " ")
        return {
            "key": self.key,
            "label": label or name[:1].upper() + name[1:],
            "step": step.replace("_", " "),
            "unit": unit or UNITS.get(ending, ""),
            "meaning": meaning,
            "shown": self.shown,
            "judged": self.judged,
            "text": any(isinstance(value, str) for value in self.values),
            "usual": self.usual,
            "lowIsOdd": self.low_is_odd,
        }


def figures_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Take the figures out of a scan's record, flat: those of the steps, and the file's own.

    A figure of a step is called `step.figure`, such as `registration.inside`; of a second step of that name
    `step_target.figure`. Lists of two or three numbers become one figure each.
    """
    found: dict[str, Any] = {}
    names = set[str]()
    for step in record.get("steps") or []:
        name = str(step.get("name", "step"))
        name = f"{name}_{step.get('to', 'again')}" if name in names else name
        names.add(name)
        _flatten({key: value for key, value in step.items() if key != "parameters"}, name, found)
    found.update({key: value for key, value in (record.get("native") or {}).items() if _is_number(value)})
    if spacing := record.get("native_spacing_mm"):
        found["spacing"] = " × ".join(f"{value:.2f}".rstrip("0").rstrip(".") for value in spacing)
    if record.get("native_orientation"):
        found["orientation"] = str(record["native_orientation"])
    return found


def _flatten(values: Mapping[str, Any], prefix: str, found: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping):
            _flatten(value, prefix, found)
        elif isinstance(value, list) and 1 < len(value) <= 3 and all(_is_number(part) for part in value):
            found.update({f"{prefix}.{key}_{place}": part for place, part in enumerate(value, start=1)})
        elif _is_number(value):
            found[f"{prefix}.{key}"] = value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def make_columns(figures: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Lay the figures of all scans side by side, and judge each scan by the others.

    Args:
        figures: Those of each scan; empty for a scan that has none.

    Returns:
        A column for each figure that differs between scans: registration's first, then what is shown at first, then
        the rest by name.
    """
    keys = list(dict.fromkeys(key for row in figures for key in row))
    varies = {key: len({row.get(key) for row in figures} - {None}) for key in keys}
    of_registration = [key for key in keys if key.startswith("registration.") and _judged(key) and varies[key] > 2]
    first = {*of_registration[:N_SHOWN_OF_REGISTRATION], *SHOWN}
    columns = []
    for key in keys:
        values = [row.get(key) for row in figures]
        if key in SHOWN or varies[key] > 1:
            columns.append(Column(key, values, _judged(key) and varies[key] > 2, key in first))  # yes or no is no size
    for column in columns:
        _judge(column)
    order = {key: place for place, key in enumerate([*of_registration, *SHOWN])}
    return sorted(columns, key=lambda column: (not column.shown, order.get(column.key, len(order)), column.key))


def _judged(key: str) -> bool:
    last = key.rpartition(".")[2]
    return last not in GEOMETRY and not any(word in last for word in OF_THE_SEARCH)


def _judge(column: Column) -> None:
    values = np.array([value if _is_number(value) else np.nan for value in column.values], dtype=float)
    values[~np.isfinite(values)] = np.nan
    column.z = np.full(len(values), np.nan)
    known = values[~np.isnan(values)]
    if not known.size:
        column.judged = False
        return
    low, middle, high = (float(value) for value in np.percentile(known, [5, 50, 95]))
    column.usual = (middle, low, high)
    if known.size < FEWEST:
        column.judged = False
        return
    away = np.abs(known - middle)
    spread = 1.4826 * float(np.median(away)) or 1.2533 * float(away.mean())  # half of them may well be equal
    spread = max(spread, FLOOR * abs(middle))
    if spread > 0:
        column.z = np.clip((values - middle) / spread, -FURTHEST, FURTHEST)


def oddness(columns: Sequence[Column]) -> np.ndarray:
    """Say how unlike the cohort each scan is: the mean of its three largest |z|; NaN without any.

    Of figures of which more is better (likeness, coverage, …) only low values count.
    """
    judged = [column for column in columns if column.judged]
    if not judged:
        return np.full(len(columns[0].values) if columns else 0, np.nan)
    distances = np.stack([_distance(column) for column in judged])
    none = np.isnan(distances).all(axis=0)
    largest = np.sort(np.nan_to_num(distances), axis=0)[-N_JUDGED:]
    return np.asarray(np.where(none, np.nan, largest.mean(axis=0)))


def _distance(column: Column) -> np.ndarray:
    return np.asarray(np.maximum(-column.z, 0) if column.low_is_odd else np.abs(column.z))
