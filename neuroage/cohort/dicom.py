"""DICOM folders as scanners and archives write them: any names, any nesting, many series; headers alone are read."""

from __future__ import annotations

import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from neuroage.cohort.cohort import Cohort
from neuroage.cohort.dicom_contrast import Guess, guess_contrast
from neuroage.cohort.dicom_geometry import arrange_slices
from neuroage.cohort.dicom_header import Headers, dicom_files, looks_like_dicom, read_headers
from neuroage.cohort.dicom_paths import path_of
from neuroage.cohort.dicom_people import name_visits
from neuroage.cohort.dicom_volumes import DicomVolume, group_volumes
from neuroage.cohort.layouts import Layout
from neuroage.cohort.plain_table import ageless, is_subject_table
from neuroage.cohort.problem import Problem
from neuroage.errors import DataError

LOOKED_AT = 40  # files, to tell whether a folder holds DICOM
FEWEST_SLICES = 5  # fewer cover no head
FILTERED = frozenset({"NORM", "NORMALIZED", "FIL", "FILTERED", "SHARP", "SMOOTH"})  # ImageType of changed intensities


@dataclass
class Candidate:
    """One volume, what it is taken for, and whether it was chosen.

    Attributes:
        aside: Why it was not chosen; "" for the chosen.
        fault: What is wrong with its slices; "" when they are whole.
    """

    volume: DicomVolume
    subject: str
    session: str
    guess: Guess
    path: Path | None
    aside: str = ""
    fault: str = ""

    @property
    def name(self) -> str:
        """What to call it in a report."""
        return f"{self.subject} {self.session} series {self.volume.series.number} ({self.volume.name})"


def read(source: Path) -> Cohort:
    """Read a tree of DICOM files.

    Rules: series are told apart by their uid, and by echo, image type and direction where one holds several volumes.
    The modality is guessed from names and timing. Of several volumes of one visit and modality the original one comes
    before computed ones, then 3-D, then the most slices, then unfiltered intensities, then the shortest echo time,
    then the one taken last. Volumes with missing or repeated slices are left out. Every volume that is not taken is
    among the problems, with the reason.

    The age is `PatientAge`, else the time from birth to the study; no name, id, date or uid is kept.
    """
    source = source.parent if source.is_file() else source
    headers = read_headers(list(dicom_files(source)), people=True)
    volumes = group_volumes(headers)
    if not volumes:
        raise DataError(f"{source} holds no DICOM image{_unreadable(headers)}", expected="DICOM files at any depth")
    visits = name_visits(volumes, source)
    problems = [Problem(str(source), text, "left out") for text in headers.unreadable.get("", [])] + visits.problems
    candidates = _candidates(volumes, visits.of_study, headers)
    choose(candidates)
    rows = [_row(one) for one in candidates if not one.aside and not one.fault]
    rows.sort(key=lambda row: (row["subject_id"], row["session"], row["modality"]))
    problems += _fill_ages(rows, candidates) + _incomplete(candidates, headers)
    problems += [Problem(one.name, one.fault, "left out") for one in candidates if one.fault]
    problems += [Problem(one.name, one.guess.reason, f"left aside: {one.aside}") for one in candidates if one.aside]
    table = pd.DataFrame(rows, columns=None if rows else ["subject_id", "age"])
    return Cohort(table, problems + ageless(table, str(source)))


def _unreadable(headers: Headers) -> str:
    said = [text for texts in headers.unreadable.values() for text in texts]
    return f"; {len(said)} files could not be read, first: {said[0]}" if said else ""


def _incomplete(candidates: Sequence[Candidate], headers: Headers) -> list[Problem]:
    """Name chosen series of which the scanner made more images than are here: slices may be missing at an end."""
    problems = []
    for one in candidates:
        n_here, n_made = len(headers.frames[one.volume.series.uid]), one.volume.series.n_images
        if not one.aside and not one.fault and n_here < n_made:
            what = f"{n_here} images are here, and its header speaks of {n_made}"
            problems.append(Problem(one.name, what, "kept; slices may be missing at an end"))
    return problems


def _candidates(
    volumes: Sequence[DicomVolume], visit_of: dict[str, tuple[str, str]], headers: Headers
) -> list[Candidate]:
    in_folder = Counter(file.parent for file in {frame.path for volume in volumes for frame in volume.frames})
    sharing: dict[Path, list[DicomVolume]] = defaultdict(list)
    for volume in volumes:
        for file in volume.files:
            sharing[file].append(volume)
    found = []
    for volume in volumes:
        first = volume.files[0]
        subject, session = visit_of[volume.series.study or volume.series.uid]
        path = path_of(volume, sharing[first], in_folder[first.parent])
        one = Candidate(volume, subject, session, guess_contrast(volume), path)
        one.aside = one.guess.unfit
        if not one.aside and len(volume.frames) < FEWEST_SLICES:
            one.aside = f"{len(volume.frames)} slices cover no head"
        if not one.aside:
            broken = headers.unreadable.get(volume.series.uid, [])
            one.fault = broken[0] if broken else _fault(one)
        found.append(one)
    return found


def _fault(one: Candidate) -> str:
    if one.path is None:
        n_folders = len({file.parent for file in one.volume.files})
        return f"its slices lie in {n_folders} folders: put the files of one series into one folder"
    try:
        arrange_slices(one.volume.frames)
    except DataError as error:
        return error.what
    return ""


def choose(candidates: Sequence[Candidate]) -> None:
    """Leave one volume for each visit and modality, and set the others aside with the reason."""
    groups: dict[tuple[str, str, str], list[Candidate]] = defaultdict(list)
    for one in candidates:
        if not one.aside and not one.fault:
            groups[one.subject, one.session, one.guess.modality].append(one)
    for group in groups.values():
        best = max(group, key=_merits)
        for one in group:
            if one is not best:
                one.aside = _what_is_less(one, best)


def _merits(one: Candidate) -> tuple[Any, ...]:
    frame, series = one.volume.frames[0], one.volume.series
    types = frame.image_type
    return (
        "DERIVED" not in types[:1],
        series.is_3d,
        len(one.volume.frames),
        not FILTERED & set(types),
        -frame.echo_ms if frame.echo_ms == frame.echo_ms else 0.0,
        series.number,
    )


def _what_is_less(one: Candidate, best: Candidate) -> str:
    chosen = f"series {best.volume.series.number} ({best.volume.name})"
    n, most = len(one.volume.frames), len(best.volume.frames)
    words = (
        "computed, and",
        "2-D, and",
        f"{n} slices, and {most} in",
        "filtered, and",
        "a longer echo time than",
        "earlier than",
    )
    endings = (" is original", " is 3-D", "", " is not", "", ", which was taken last")
    own, other = _merits(one), _merits(best)
    k = next((k for k in range(len(own)) if own[k] != other[k]), None)
    return f"a repeat of {chosen}, the first of which was taken" if k is None else f"{words[k]} {chosen}{endings[k]}"


def _row(one: Candidate) -> dict[str, Any]:
    assert one.path is not None
    return {
        "subject_id": one.subject,
        "session": one.session,
        "modality": one.guess.modality,
        "path": os.path.abspath(one.path),
        "age": one.volume.series.age,
        "sex": one.volume.series.sex,
        "series": one.volume.name,
        "reason": one.guess.reason,
    }


def _fill_ages(rows: list[dict[str, Any]], candidates: Sequence[Candidate]) -> list[Problem]:
    """Take the age of another series of the same visit where a chosen one has none; say what is odd about ages."""
    ages: dict[tuple[str, str], float] = {}
    notes: dict[tuple[str, str], str] = {}
    for one in candidates:
        visit, series = (one.subject, one.session), one.volume.series
        if series.age == series.age:
            ages.setdefault(visit, series.age)
        if series.age_note:
            notes.setdefault(visit, series.age_note)
    for row in rows:
        if row["age"] != row["age"]:
            row["age"] = ages.get((row["subject_id"], row["session"]), row["age"])
    return [Problem(" ".join(visit), note) for visit, note in notes.items()]


def recognises(source: Path) -> bool:
    """A DICOMDIR, or a folder without a table of subjects that holds DICOM files at any depth."""
    if source.is_file():
        return source.name.upper() == "DICOMDIR"
    if any(is_subject_table(path) for path in source.iterdir() if path.is_file()):
        return False
    return any(looks_like_dicom(path) for path in itertools.islice(dicom_files(source), LOOKED_AT))


LAYOUT = Layout(
    "dicom",
    "DICOM files in any folders, several series and people mixed",
    recognises,
    read,
    order=95,
    needs_age=False,
)
