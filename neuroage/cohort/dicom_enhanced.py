"""Enhanced (multi-frame) DICOM: the functional groups of each frame, read into the same form as classic slices.

Source: DICOM PS3.3 C.7.6.16 (multi-frame functional groups), C.8.13.5 (enhanced MR functional groups).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroage.cohort.dicom_frame import Frame, number, numbers, words_of

if TYPE_CHECKING:
    from pydicom import Dataset


def enhanced_frames(dataset: Dataset, path: Path) -> list[Frame]:
    """Give every frame of a multi-frame file; what all frames share is taken for each.

    Args:
        dataset: Its header with the functional groups.
        path: The file.
    """
    shared = _first(dataset, "SharedFunctionalGroupsSequence")
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or [None] * int(dataset.get("NumberOfFrames") or 1)
    whole = words_of(dataset, "ImageType")
    size = int(dataset.Rows), int(dataset.Columns)
    return [_frame(_Groups(own, shared), path, index, size, whole) for index, own in enumerate(groups)]


class _Groups:
    """The functional groups of one frame: its own, else the shared ones."""

    def __init__(self, own: Any, shared: Any) -> None:
        self.parts = [part for part in (own, shared) if part is not None]

    def get(self, sequence: str, name: str) -> Any:
        for part in self.parts:
            item = _first(part, sequence)
            if item is not None and item.get(name) is not None:
                return item.get(name)
        return None


def _first(dataset: Any, sequence: str) -> Any:
    items = None if dataset is None else dataset.get(sequence)
    return items[0] if items else None


def _frame(groups: _Groups, path: Path, index: int, size: tuple[int, int], whole: tuple[str, ...]) -> Frame:
    frame_type = groups.get("MRImageFrameTypeSequence", "FrameType") or groups.get(
        "CTImageFrameTypeSequence", "FrameType"
    )
    component = groups.get("MRImageFrameTypeSequence", "ComplexImageComponent")
    image_type = tuple(str(part).upper() for part in frame_type or whole)
    if component:
        image_type += (str(component).upper(),)
    slope = number(groups.get("PixelValueTransformationSequence", "RescaleSlope"))
    intercept = number(groups.get("PixelValueTransformationSequence", "RescaleIntercept"))
    order = (
        groups.get("FrameContentSequence", "TemporalPositionIndex"),
        groups.get("FrameContentSequence", "FrameAcquisitionNumber"),
        groups.get("MRDiffusionSequence", "DiffusionBValue"),
        groups.get("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    )
    return Frame(
        path,
        index,
        size,
        numbers(groups.get("PlanePositionSequence", "ImagePositionPatient"), 3),
        numbers(groups.get("PlaneOrientationSequence", "ImageOrientationPatient"), 6),
        numbers(groups.get("PixelMeasuresSequence", "PixelSpacing"), 2),
        number(groups.get("MREchoSequence", "EffectiveEchoTime")),
        image_type,
        None if slope != slope else (slope, 0.0 if intercept != intercept else intercept),
        tuple("" if value is None else str(value) for value in order),
        str(groups.get("FrameContentSequence", "StackID") or ""),
    )


def enhanced_facts(dataset: Dataset) -> dict[str, Any]:
    """Give what an enhanced file says of its sequence, by the names of `Series`; nothing of a classic one."""
    own = _first(dataset, "PerFrameFunctionalGroupsSequence")
    shared = _first(dataset, "SharedFunctionalGroupsSequence")
    if own is None and shared is None:
        return {}
    groups = _Groups(own, shared)
    timing = "MRTimingAndRelatedParametersSequence"
    inversion = groups.get("MRModifierSequence", "InversionTimes")
    pulse = str(dataset.get("EchoPulseSequence") or "").upper()
    facts = {
        "tr_ms": number(groups.get(timing, "RepetitionTime")),
        "flip_degrees": number(groups.get(timing, "FlipAngle")),
        "ti_ms": number(inversion),
        "thickness_mm": number(groups.get("PixelMeasuresSequence", "SliceThickness")),
        "sequence": frozenset(
            word
            for word, given in (("SE", "SPIN" in pulse), ("GR", "GRADIENT" in pulse), ("EP", _is_epi(dataset)))
            if given
        ),
        "angio": "YES" in str(dataset.get("TimeOfFlightContrast") or "").upper(),
    }
    return {name: value for name, value in facts.items() if value == value and value != frozenset()}


def _is_epi(dataset: Dataset) -> bool:
    return str(dataset.get("EchoPlanarPulseSequence") or "").upper() == "YES"
