"""Headers of DICOM files, without their pixels: what a series is, where each slice lies, and of the person only an age.

Names, ids and birth dates are used while a header is read and are in nothing that is given back. They do not reach
pydicom's log or warnings either, which may quote what they find odd.

Source: DICOM PS3.3 C.7 (common modules), C.8.3 (MR image), C.8.13 (enhanced MR image).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroage.cohort.ages import MAX_AGE_YEARS, UNITS_PER_YEAR, parse_age, parse_sex
from neuroage.cohort.dicom_enhanced import enhanced_facts, enhanced_frames
from neuroage.cohort.dicom_frame import Frame, classic_frame, number, text_of, words_of
from neuroage.errors import DataError, UsageError

if TYPE_CHECKING:
    from pydicom import Dataset

THREADS = 8  # most of the waiting is for the disk, or for a share on the network
HEAD_BYTES = 132  # preamble and the letters DICM (PS3.10, 7.1)
LAST_GROUP = 0x0028  # of what describes a classic image; private groups with long reports follow
PER_FRAME = 0x5200  # functional groups of an enhanced image
IMAGE_CLASSES = ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4")  # CT and MR (PS3.4 B.5)
# What people write where they took the patient's id away; such studies are told apart by other means.
NO_IDS = frozenset({"", "0", "anon", "anonymous", "anonymized", "anonymised", "unknown", "none", "na", "n/a", "xxx"})


@dataclass(frozen=True, slots=True)
class Series:
    """What the header of one series says; nothing in it names the person.

    Attributes:
        uid, study, person, date: To group and order by; none of them may be shown. `person` is a hash whose key is
            drawn anew in every process, "" when the header has no id.
        kind: `Modality`: MR, CT, …
        text: Description, protocol and sequence names, in lower case. They may hold anything: show only words out of
            a list.
        sequence: `ScanningSequence` and `SequenceVariant`, such as {"GR", "MP"}.
        tr_ms, ti_ms, flip_degrees: NaN when unknown.
        n_images: How many images the scanner says it made; 0 when it does not.
        age: Years at the scan, NaN when unknown; `age_note` says what was odd.
    """

    uid: str = field(repr=False)
    study: str = field(repr=False)
    person: str = field(repr=False)
    date: str = field(repr=False)
    text: str = field(repr=False)
    kind: str = ""
    number: int = 0
    sequence: frozenset[str] = frozenset()
    is_3d: bool = False
    tr_ms: float = float("nan")
    ti_ms: float = float("nan")
    flip_degrees: float = float("nan")
    angio: bool = False
    contrast_agent: bool = False
    thickness_mm: float = float("nan")
    n_images: int = 0
    age: float = float("nan")
    age_note: str = ""
    sex: str = ""


@dataclass
class Headers:
    """What was read of many files.

    Attributes:
        series: Every series by its uid.
        frames: The slices of each, by the uid.
        unreadable: "FILE: why" of the broken files of each series, by the uid; "" where even that cannot be read.
    """

    series: dict[str, Series] = field(default_factory=dict)
    frames: dict[str, list[Frame]] = field(default_factory=dict)
    unreadable: dict[str, list[str]] = field(default_factory=dict)


def read_headers(paths: Sequence[Path], *, people: bool = False) -> Headers:
    """Read the headers of DICOM files, several at a time.

    Args:
        paths: Files; those that are no DICOM, or hold no image, are passed over.
        people: Whether ages, sexes and dates are read; whoever reads pixels needs none.

    Returns:
        The series, and the frames of each in the order of the paths.

    Raises:
        UsageError: pydicom is not installed.
    """
    try:
        import pydicom  # noqa: F401
    except ImportError:
        raise UsageError("DICOM needs pydicom", fix="Install it: pip install pydicom") from None
    found = Headers()
    with quiet_pydicom(), ThreadPoolExecutor(THREADS) as pool:
        for dataset, frames, problem in pool.map(_read_file, paths):
            uid = "" if dataset is None else text_of(dataset, "SeriesInstanceUID")
            if problem:
                found.unreadable.setdefault(uid, []).append(problem)
            elif dataset is not None:
                if uid not in found.series:
                    found.series[uid] = _series(dataset, people)
                found.frames.setdefault(uid, []).extend(frames)
    return found


def looks_like_dicom(path: Path) -> bool:
    """Say whether a file begins as DICOM does, with the preamble or, as old files do, without."""
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return False
    return head[128:] == b"DICM" or (head[:2] == b"\x08\x00" and head[3:4] == b"\x00" and len(head) == HEAD_BYTES)


_quiet = contextlib.ExitStack()
_quiet_lock, _n_quiet = threading.Lock(), 0


@contextlib.contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Keep pydicom from checking, warning and logging: its words quote values, which may be a patient's.

    Warnings and settings belong to the whole process, so the first thread that enters sets them, and the last one that
    leaves puts them back.
    """
    global _n_quiet
    with _quiet_lock:
        if _n_quiet == 0:
            _quiet.enter_context(_silence())
        _n_quiet += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _n_quiet -= 1
            if _n_quiet == 0:
                _quiet.close()


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    from pydicom import config

    logger = logging.getLogger("pydicom")
    was, mode = logger.disabled, config.settings.reading_validation_mode
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.disabled, config.settings.reading_validation_mode = True, config.IGNORE
        try:
            yield
        finally:
            logger.disabled, config.settings.reading_validation_mode = was, mode


def _read_file(path: Path) -> tuple[Dataset | None, list[Frame], str]:
    """Give header, slices and what is wrong; no header and nothing wrong for what is no image."""
    if not looks_like_dicom(path):
        return None, [], ""
    dataset = None
    try:
        dataset = _read_dataset(path)
        if "Rows" not in dataset or "SeriesInstanceUID" not in dataset:
            if text_of(dataset, "SOPClassUID").startswith(IMAGE_CLASSES):
                return dataset, [], f"{path.name}: its header is cut short"
            return None, [], ""  # a report, a directory, raw data
        if int(dataset.get("NumberOfFrames") or 1) > 1 or "PerFrameFunctionalGroupsSequence" in dataset:
            return dataset, enhanced_frames(dataset, path), ""
        return dataset, [classic_frame(dataset, path)], ""
    except Exception as error:  # pydicom raises dozens of types; their words may quote a patient's data
        return dataset, [], f"{path.name}: its header cannot be read ({type(error).__name__})"


def _read_dataset(path: Path) -> Dataset:
    from pydicom.filereader import read_partial

    with open(path, "rb") as file:
        dataset = read_partial(file, stop_when=lambda tag, vr, length: tag.group > LAST_GROUP, force=True)
        if int(dataset.get("NumberOfFrames") or 1) > 1 or "1.2.840.10008.5.1.4.1.1.4.1" in text_of(
            dataset, "SOPClassUID"
        ):
            file.seek(0)
            dataset = read_partial(file, stop_when=lambda tag, vr, length: tag.group > PER_FRAME, force=True)
    return dataset


def _series(dataset: Dataset, people: bool) -> Series:
    names = ("SeriesDescription", "ProtocolName", "SequenceName", "PulseSequenceName", "AcquisitionContrast")
    facts: dict[str, Any] = {
        "uid": text_of(dataset, "SeriesInstanceUID"),
        "study": text_of(dataset, "StudyInstanceUID"),
        "person": "",
        "date": "",
        "text": " ".join(text_of(dataset, name) for name in names).lower(),
        "kind": text_of(dataset, "Modality").upper(),
        "number": _count(dataset, "SeriesNumber"),
        "n_images": _count(dataset, "ImagesInAcquisition"),
        "sequence": frozenset(words_of(dataset, "ScanningSequence") + words_of(dataset, "SequenceVariant")),
        "is_3d": text_of(dataset, "MRAcquisitionType").upper() == "3D",
        "tr_ms": number(dataset.get("RepetitionTime")),
        "ti_ms": number(dataset.get("InversionTime")),
        "flip_degrees": number(dataset.get("FlipAngle")),
        "angio": text_of(dataset, "AngioFlag").upper() == "Y",
        "contrast_agent": text_of(dataset, "ContrastBolusAgent").lower() not in ("", "0", "-", "n", "no", "none"),
        "thickness_mm": number(dataset.get("SliceThickness")),
    }
    facts |= enhanced_facts(dataset)
    if people:
        facts |= _person(dataset)
    return Series(**facts)


def _count(dataset: Dataset, name: str) -> int:
    value = number(dataset.get(name))
    return int(value) if value == value else 0


_KEY = secrets.token_bytes(16)  # of this process alone: no table of hashed ids can be made ahead


def _person(dataset: Dataset) -> dict[str, Any]:
    born = _day(text_of(dataset, "PatientBirthDate"))
    scanned = next(
        (day for name in ("StudyDate", "SeriesDate", "AcquisitionDate") if (day := _day(text_of(dataset, name)))), None
    )
    given = text_of(dataset, "PatientID").casefold()
    if given in NO_IDS:
        given = ""
    age, note = _age(text_of(dataset, "PatientAge"), born, scanned)
    return {
        "person": hashlib.sha256(_KEY + given.encode()).hexdigest() if given else "",
        "date": scanned.isoformat() if scanned else "",
        "age": age,
        "age_note": note,
        "sex": parse_sex(text_of(dataset, "PatientSex")),
    }


def _day(text: str) -> date | None:
    digits = text.replace(".", "").replace("-", "")[:8]
    try:
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:8]))
    except ValueError:
        return None


def _age(text: str, born: date | None, scanned: date | None) -> tuple[float, str]:
    """Give the age in years and what was odd; nothing that was written is quoted."""
    note = ""
    try:
        age, _ = parse_age(text)
    except DataError:
        age, note = float("nan"), "its age cannot be read"
    if age == 0 and text[:3] == "000":  # a filler far more often than a birth on the day of the scan
        age, note = float("nan"), "its age is 0, taken as missing"
    computed = (scanned - born).days / UNITS_PER_YEAR["d"] if born and scanned else float("nan")
    if not 0 <= computed <= MAX_AGE_YEARS:
        computed = float("nan")
    if age != age and computed == computed:
        return round(computed, 2), f"{note}; computed from the dates" if note else ""
    if abs(age - computed) > 2:
        note = f"its age ({age:g}) and its dates ({computed:.0f}) disagree; the age is taken"
    return age, note


def dicom_files(folder: Path) -> Iterator[Path]:
    """Give the files below a folder that may be DICOM, folder by folder; hidden ones and DICOMDIR are skipped."""
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and name.upper() != "DICOMDIR":
                yield Path(root) / name
