"""Which slices make one volume: a series may hold several (echoes, phases, directions of a localizer, repeats)."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neuroage.cohort.dicom_frame import Frame
from neuroage.cohort.dicom_geometry import files_of, repeated_slices
from neuroage.cohort.dicom_header import Headers, Series

SAME_DIRECTION = 1e-2  # of direction cosines: half a degree apart is another stack, less is a fault or rounding
MANY = 4  # a slice alone beside at least so many others is a stranger among them, not a volume


@dataclass(frozen=True)
class DicomVolume:
    """One volume of a series.

    Attributes:
        series: What the header says.
        frames: Its slices, in the order of their files.
    """

    series: Series
    frames: tuple[Frame, ...]

    @property
    def name(self) -> str:
        """A short name of the series for people: eight digits of a hash, which lead back to nobody."""
        return short_hash(self.series.uid)

    @property
    def files(self) -> list[Path]:
        """The files of its slices, sorted."""
        return files_of(self.frames)


def short_hash(uid: str) -> str:
    """Give eight digits that stand for a uid."""
    return hashlib.sha256(uid.encode()).hexdigest()[:8]


def group_volumes(headers: Headers) -> list[DicomVolume]:
    """Sort the slices of every series into volumes, in a stable order: by file, echo time and what tells repeats apart.

    Slices belong to one volume when series, image type, echo time, stack, size and direction agree. Where they then
    lie at the same places several times, temporal position, acquisition, b-value or trigger time parts them if that
    gives equal volumes without repeats; else the repeats stay, for the reader to refuse.
    """
    volumes = []
    for uid, frames in headers.frames.items():
        by_kind: dict[Hashable, list[Frame]] = defaultdict(list)
        for frame in frames:
            echo = -1.0 if frame.echo_ms != frame.echo_ms else round(frame.echo_ms, 1)
            by_kind[echo, frame.stack, frame.image_type].append(frame)
        for key in sorted(by_kind, key=repr):
            for stack in _stacks(by_kind[key]):
                volumes += [DicomVolume(headers.series[uid], tuple(part)) for part in _part_repeats(stack)]
    return sorted(volumes, key=lambda volume: (volume.files[0], volume.frames[0].index))


def _stacks(frames: list[Frame]) -> list[list[Frame]]:
    """Part slices by size and direction; one alone that differs from many stays with them, to be refused with them."""
    stacks: list[list[Frame]] = []
    for frame in frames:
        home = next((stack for stack in stacks if _alike(stack[0], frame)), None)
        stacks.append([frame]) if home is None else home.append(frame)
    largest = max(stacks, key=len)
    if len(largest) >= MANY:
        strangers = [stack for stack in stacks if len(stack) == 1]
        largest.extend(frame for stack in strangers for frame in stack)
        stacks = [stack for stack in stacks if len(stack) > 1]
    return stacks


def _alike(a: Frame, b: Frame) -> bool:
    if a.size != b.size or (a.orientation is None) != (b.orientation is None):
        return False
    if a.orientation is None or b.orientation is None:
        return True
    return bool(np.abs(np.subtract(a.orientation, b.orientation)).max() <= SAME_DIRECTION)


def _part_repeats(frames: list[Frame]) -> list[list[Frame]]:
    if len(frames) < 2 or any(frame.position is None or frame.orientation is None for frame in frames):
        return [frames]
    if not repeated_slices(frames):
        return [frames]
    for k in range(len(frames[0].order)):
        parts: dict[str, list[Frame]] = defaultdict(list)
        for frame in frames:
            parts[frame.order[k]].append(frame)
        equal = len({len(part) for part in parts.values()}) == 1
        if len(parts) > 1 and equal and not any(repeated_slices(part) for part in parts.values()):
            return list(parts.values())
    return [frames]
