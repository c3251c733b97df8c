"""Who is who in DICOM studies, without a name or an id: people, their visits in order, and their ages."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from neuroage.cohort.ages import UNITS_PER_YEAR
from neuroage.cohort.dicom_header import Series
from neuroage.cohort.dicom_volumes import DicomVolume
from neuroage.cohort.problem import Problem

NAME_DIGITS = 8
AGES_APART_YEARS = 2.0  # ages are whole years, and birthdays lie between visits


@dataclass
class Visits:
    """Which person and which visit every study is.

    Attributes:
        of_study: Study uid to subject id and session.
        problems: What was odd about people.
    """

    of_study: dict[str, tuple[str, str]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def name_visits(volumes: Sequence[DicomVolume], source: Path) -> Visits:
    """Give every person and visit a name that leads back to nobody.

    People are told apart by patient id. Their names are `sub-` and eight digits of a hash of their first study's uid:
    a random number of the scanner, so that no list of patient ids leads to them, and the same whenever other people
    are added. Visits are `ses-1`, `ses-2`, … in the order of their dates; studies of one day are one visit.

    Where the id is missing, studies in one folder at the top of the data set count as one person; where there is no
    such folder, each study does.

    Args:
        volumes: All volumes of the data set.
        source: The folder of the data set.
    """
    visits = Visits()
    studies = {volume.series.study or volume.series.uid: volume for volume in reversed(volumes)}
    tops = {study: _top_folder(volume.files[0], source) for study, volume in studies.items()}
    several_tops = len(set(tops.values())) > 1
    people: dict[str, list[str]] = defaultdict(list)
    nameless = 0
    for study, volume in studies.items():
        nameless += not volume.series.person
        stand_in = f"folder {tops[study]}" if several_tops and tops[study] else f"study {study}"
        people[volume.series.person or stand_in].append(study)
    if nameless:
        unit = "each folder at the top" if several_tops else "each study"
        what = f"{nameless} of {len(studies)} studies have no patient id"
        visits.problems.append(Problem(str(source), what, f"{unit} counts as a person"))
    for own in people.values():
        own.sort(key=lambda study: (studies[study].series.date or "9999", study))
    names = _names([own[0] for own in people.values()])
    for own in people.values():
        subject = names[own[0]]
        days = list(dict.fromkeys(studies[study].series.date or study for study in own))
        for study in own:
            session = f"ses-{days.index(studies[study].series.date or study) + 1}"
            visits.of_study[study] = subject, session
        visits.problems += _doubts(subject, [studies[study].series for study in own])
    return visits


def _top_folder(file: Path, source: Path) -> str:
    parts = file.relative_to(source).parts
    return parts[0] if len(parts) > 1 else ""


def _names(studies: Sequence[str]) -> dict[str, str]:
    hashes = {study: hashlib.sha256(study.encode()).hexdigest() for study in studies}
    digits = NAME_DIGITS
    while len({text[:digits] for text in hashes.values()}) < len(hashes):
        digits += 1
    return {study: f"sub-{text[:digits]}" for study, text in hashes.items()}


def _doubts(subject: str, series: Sequence[Series]) -> list[Problem]:
    """Say what speaks against one person behind one id."""
    sexes = {one.sex for one in series} - {""}
    birth_years = [
        date.fromisoformat(one.date).toordinal() / UNITS_PER_YEAR["d"] - one.age
        for one in series
        if one.date and one.age == one.age
    ]
    doubts = ["both sexes"] if len(sexes) > 1 else []
    if birth_years and max(birth_years) - min(birth_years) > AGES_APART_YEARS:
        doubts.append("ages that do not fit its dates")
    if not doubts:
        return []
    what = f"{len(series)} studies of one patient id have {' and '.join(doubts)}"
    return [Problem(subject, what, "counted as one person; make sure it is one")]
