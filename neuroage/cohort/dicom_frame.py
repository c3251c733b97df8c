"""One slice of a DICOM volume, and how elements of its header become numbers and words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom import Dataset

_Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Frame:
    """One slice: where it lies, and what tells it from the slices of another volume in the same series.

    Attributes:
        path: The file.
        index: Which frame of the file, from 0.
        size: Rows and columns.
        position: Centre of the first pixel, mm, LPS+; None when the header has none.
        orientation: Direction cosines along a row, then along a column, six numbers; None when the header has none.
        spacing_mm: Between rows, and between columns; None when the header has none.
        echo_ms: Echo time; NaN when unknown.
        image_type: The values of `ImageType` or `FrameType`.
        scaling: Rescale slope and intercept; None when the header has none.
        order: Temporal position, acquisition, b-value and trigger time, "" where unknown: what may tell repeats apart.
        stack: Name of the stack in an enhanced file.
    """

    path: Path
    index: int
    size: tuple[int, int]
    position: _Triple | None
    orientation: tuple[float, ...] | None
    spacing_mm: tuple[float, float] | None
    echo_ms: float
    image_type: tuple[str, ...]
    scaling: tuple[float, float] | None
    order: tuple[str, ...]
    stack: str = ""


def classic_frame(dataset: Dataset, path: Path) -> Frame:
    """Give the one slice of a classic file."""
    slope, intercept = number(dataset.get("RescaleSlope")), number(dataset.get("RescaleIntercept"))
    position, orientation, spacing = (
        numbers(dataset.get(name), n)
        for name, n in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2))
    )
    return Frame(
        path,
        0,
        (int(dataset.Rows), int(dataset.Columns)),
        position,
        orientation,
        spacing,
        number(dataset.get("EchoTime")),
        words_of(dataset, "ImageType"),
        None if slope != slope else (slope, 0.0 if intercept != intercept else intercept),
        tuple(
            text_of(dataset, name)
            for name in ("TemporalPositionIdentifier", "AcquisitionNumber", "DiffusionBValue", "TriggerTime")
        ),
    )


def number(value: Any) -> float:
    """Give an element as a number; NaN when it is none."""
    try:
        return float(value[0] if isinstance(value, (list, tuple)) or hasattr(value, "append") else value)
    except (TypeError, ValueError, IndexError):
        return float("nan")


def numbers(value: Any, n: int) -> Any:
    """Give an element of n numbers as a tuple; None when it has not n."""
    try:
        found = tuple(float(part) for part in value)
    except (TypeError, ValueError):
        return None
    return found if len(found) == n and all(abs(part) < float("inf") for part in found) else None


def words_of(dataset: Dataset, name: str) -> tuple[str, ...]:
    """Give an element of one or several words as upper-case words."""
    value = dataset.get(name)
    parts = [] if value is None else [value] if isinstance(value, str) else list(value)
    return tuple(str(part).strip().upper() for part in parts)


def text_of(dataset: Dataset, name: str) -> str:
    """Give an element as text; "" when it is not there."""
    value = dataset.get(name)
    return "" if value is None else str(value).strip()
