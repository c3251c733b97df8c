"""BIDS: `participants.tsv`, sessions files and `sub-*/[ses-*/]anat/` images.

Source: Brain Imaging Data Structure specification, https://bids-specification.readthedocs.io
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from neuroage.cohort.cohort import Cohort
from neuroage.cohort.image_files import image_fault
from neuroage.cohort.layouts import Layout
from neuroage.cohort.plain_table import ageless
from neuroage.cohort.problem import Problem
from neuroage.cohort.standard_table import settle_duplicates, standardise
from neuroage.cohort.table_file import read_table
from neuroage.errors import DataError

_SUFFIXES = {"T1w": "t1", "T2w": "t2", "PDw": "pd", "FLAIR": "flair", "angio": "tof", "MRA": "tof"}
_IMAGE = re.compile(r"(?P<entities>(?:[a-zA-Z]+-[^_]+_)+)(?P<suffix>[A-Za-z0-9]+)\.nii(?:\.gz)?$")
_MONTHS = re.compile(r"months?$|^mo$", re.IGNORECASE)


@dataclass
class _Person:
    """What the tables say of a subject, and of each of its sessions."""

    facts: dict[str, object] = field(default_factory=dict)
    sessions: dict[str, dict[str, object]] = field(default_factory=dict)


def read(source: Path, subjects: Collection[str] | None = None) -> Cohort:
    """Read a BIDS folder, or that of derivatives: prepared scans, told apart by the columns `space`, `res` and `desc`.

    Rules: an age in `sub-01_sessions.tsv` wins over one for that session in `participants.tsv`, and that over the
    participant's. An angiogram, and anything acquired as `acq-tof`, is tof. Several runs are several scans, told apart
    by the column `run`. Pointers without content (git-annex, LFS) and missing files are left out and named. A folder
    without images gives the participants alone. Of derivatives, images of all kinds are taken but masks, segmentations
    and scans whose preparation is known to have failed.

    Args:
        source: The data set's folder.
        subjects: Read the images of these only (`sub-01`); None reads all.
    """
    problems: list[Problem] = []
    people = _read_participants(source, problems)
    if subjects is not None:
        people = {name: person for name, person in people.items() if name in subjects}
    derived = is_derivative(source)
    rows, seen = [], set()
    for folder in sorted(path for path in source.iterdir() if path.name.startswith("sub-") and path.is_dir()):
        if subjects is not None and folder.name not in subjects:
            continue
        seen.add(folder.name)
        person = people.setdefault(folder.name, _Person())
        _read_sessions(folder, person, problems)
        for image in _images(folder):
            row = _scan_row(image, folder.name, person, source, problems, derived)
            if row:
                rows.append(row)
    if not rows and seen and problems:
        raise DataError(f"no usable image below {source}: {len(problems)} problems, first: {problems[0]}")
    if not rows:
        rows = _people_alone(people)
    else:
        imageless = [name for name in people if name not in {row["subject_id"] for row in rows}]
        if imageless:
            what = f"{len(imageless)} participants have no usable anatomical image: {', '.join(imageless[:5])}"
            problems.append(Problem("participants.tsv", what + (", …" if len(imageless) > 5 else ""), "not indexed"))
    table = pd.DataFrame(rows)
    if len(table) == 0:
        raise DataError(f"{source} has neither participants nor images", expected="participants.tsv and sub-*/anat/")
    if "age" not in table.columns:
        table["age"] = float("nan")
    return Cohort(table, problems + ageless(table, str(source)))


def _read_participants(source: Path, problems: list[Problem]) -> dict[str, _Person]:
    path = source / "participants.tsv"
    people: dict[str, _Person] = {}
    if not path.is_file():
        problems.append(Problem(str(source), "no participants.tsv", "ages from sessions files only"))
        return people
    table, notes = standardise(read_table(path), path.name, needs_age=False)
    table, more = settle_duplicates(table, ("subject_id", "session"), path.name)
    problems += notes + more + _months_to_years(table, path.with_suffix(".json"))
    for record in table.drop(columns=["scan_id", "path", "modality"]).to_dict("records"):
        facts = _known({str(key): value for key, value in record.items()})
        name = str(facts.pop("subject_id"))
        person = people.setdefault(name if name.startswith("sub-") else f"sub-{name}", _Person())
        session = _session_name(str(facts.pop("session", "")))
        if session:
            person.sessions[session] = facts
        else:
            person.facts.update(facts)
    return people


def _session_name(text: str) -> str:
    return text if not text or text.startswith("ses-") else f"ses-{text}"


def _months_to_years(table: pd.DataFrame, sidecar: Path) -> list[Problem]:
    try:
        units = str(json.loads(sidecar.read_text(encoding="utf-8")).get("age", {}).get("Units", ""))
    except (OSError, ValueError, AttributeError):
        return []
    if not _MONTHS.search(units.strip()):
        return []
    table["age"] = table["age"] / 12
    return [Problem(sidecar.name, f"ages are in {units}", "divided by 12")]


def _read_sessions(folder: Path, person: _Person, problems: list[Problem]) -> None:
    path = folder / f"{folder.name}_sessions.tsv"
    if not path.is_file():
        return
    raw = read_table(path)
    if len(raw) == 0:
        return
    if "session_id" not in raw.columns:
        problems.append(Problem(path.name, "no column session_id", "file passed over"))
        return
    table, notes = standardise(raw.assign(subject_id=folder.name), path.name, needs_age=False)
    problems += notes
    for record in table.drop(columns=["scan_id", "path", "modality", "subject_id"]).to_dict("records"):
        session = _session_name(str(record.pop("session")))
        facts = _known({str(key): value for key, value in record.items()})
        person.sessions.setdefault(session, {}).update(facts)


def _images(folder: Path) -> list[Path]:
    found = []
    for anat in [folder / "anat", *sorted(folder.glob("ses-*/anat"))]:
        if anat.is_dir():
            found += [anat / name for name in sorted(os.listdir(anat)) if name.startswith(f"{folder.name}_")]
    return found


def _scan_row(
    image: Path, subject: str, person: _Person, source: Path, problems: list[Problem], derived: bool
) -> dict[str, object] | None:
    match = _IMAGE.match(image.name)
    if not match:
        return None
    entities = dict(part.split("-", 1) for part in match["entities"].strip("_").split("_"))
    is_tof = "tof" in entities.get("acq", "").lower()
    modality = "tof" if is_tof else _SUFFIXES.get(match["suffix"])
    if modality is None or ("desc" in entities and not derived) or match["suffix"] in ("mask", "dseg", "probseg"):
        return None
    fault = image_fault(image) or (derived and _failure(image)) or ""
    if fault:
        problems.append(Problem(str(image.relative_to(source)), fault, "scan left out"))
        return None
    session = f"ses-{entities['ses']}" if "ses" in entities else ""
    row: dict[str, object] = {
        "subject_id": subject,
        "session": session,
        "modality": modality,
        "path": os.path.abspath(image),
        "acquisition": entities.get("acq", ""),
        "run": entities.get("run", ""),
        **({key: entities.get(key, "") for key in ("space", "res", "desc")} if derived else {}),
    }
    facts = _facts_of(person, session, image.name, problems)
    row.update({key: value for key, value in facts.items() if key not in row})
    return row


def is_derivative(source: Path) -> bool:
    """Say whether a BIDS folder says that it holds derivatives."""
    return _content(source / "dataset_description.json").get("DatasetType") == "derivative"


def _failure(image: Path) -> str:
    """Say why a prepared scan is to be left out, where the file beside it says so."""
    own = _content(image.with_name(image.name.split(".")[0] + ".json")).get("Preparation")
    return str(own.get("problem", "")) if isinstance(own, dict) and own.get("left_out") else ""


def _content(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _facts_of(person: _Person, session: str, name: str, problems: list[Problem]) -> dict[str, object]:
    """What is known at a session; a session that no table has borrows from the first one that has, and says so."""
    own = _known(person.sessions.get(session, {}))
    lent = next(iter(person.sessions.values()), {})
    facts = {**{key: value for key, value in lent.items() if key != "age"}, **person.facts, **own}
    if "age" not in facts and "age" in lent:
        facts["age"] = lent["age"]
        if session or len(person.sessions) > 1:
            problems.append(Problem(name, "no age at this session", f"age of {next(iter(person.sessions))} taken"))
    return facts


def _known(facts: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in facts.items() if value != "" and value == value}


def _people_alone(people: dict[str, _Person]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for name, person in people.items():
        visits = person.sessions or {"": {}}
        rows += [{"subject_id": name, "session": v, **person.facts, **_known(facts)} for v, facts in visits.items()]
    return rows


def recognises(source: Path) -> bool:
    """A folder with participants.tsv or with sub-* folders that hold anat."""
    if not source.is_dir():
        return False
    return (
        (source / "participants.tsv").is_file()
        or any(source.glob("sub-*/anat"))
        or any(source.glob("sub-*/ses-*/anat"))
    )


LAYOUT = Layout("bids", "participants.tsv and sub-*/[ses-*/]anat/*_T1w.nii.gz", recognises, read)
