"""What stands beside the subjects of a data set of derivatives: description, participants, a table of all scans."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import neuroage
from neuroage.cohort import Scan
from neuroage.errors import UsageError
from neuroage.files import write_json, write_text
from neuroage.imaging.derivative_names import ScanName
from neuroage.imaging.derivatives import read_sidecar

BIDS_VERSION = "1.10.0"
DESCRIPTION, PEOPLE = "dataset_description.json", "participants.tsv"
NO_WORDS_FOR = "*_xfm.txt\ngroup_*\n"  # what BIDS has no rules for yet, and its validator would complain of
LINK = "raw"  # the name under which sources are found: bids:raw:sub-01/…


def write_description(folder: Path, bids_folder: Path | None = None) -> None:
    """Say what the data set is and where its sources are, before the first scan is written.

    Args:
        folder: Of the derivatives; made when missing.
        bids_folder: Of the data set that they are made of; None for scans that lie elsewhere.

    Raises:
        UsageError: The folder is that of the sources, holds a data set that is no derivative, or derivatives of other
            sources.
    """
    described = _read_json(folder / DESCRIPTION)
    if bids_folder is not None and folder.resolve() == bids_folder.resolve():
        raise UsageError(
            f"{folder} holds the scans themselves",
            fix=f"Write to a folder of its own, such as {folder}/derivatives/neuroage.",
        )
    if described and described.get("DatasetType") != "derivative":
        raise UsageError(f"{folder} holds a data set that is no derivative", fix="Choose another folder.")
    links = {}
    if bids_folder is not None:
        relative = os.path.relpath(bids_folder.resolve(), folder.resolve())
        links = {LINK: quote(relative.replace(os.sep, "/"))}
    old = str(described.get("DatasetLinks", {}).get(LINK, ""))
    if old and links.get(LINK, "") != old and (folder / old).is_dir():
        raise UsageError(f"{folder} holds derivatives of the scans in {folder / old}", fix="Choose another folder.")
    content = {
        "Name": "Scans prepared by neuroage",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [
            {
                "Name": "neuroage",
                "Version": neuroage.__version__,
                "Description": "prepared scans",
            }
        ],
        **({"SourceDatasets": [{"URL": links[LINK]}], "DatasetLinks": links} if links else {}),
    }
    if content != described:
        write_json(folder / DESCRIPTION, content)
    if not (folder / ".bidsignore").exists():
        write_text(folder / ".bidsignore", NO_WORDS_FOR)


def write_participants(
    folder: Path, scans: Sequence[Scan], names: dict[str, ScanName], bids_folder: Path | None
) -> None:
    """Write `participants.tsv` of all who are done, and copy their files of sessions.

    Rows are those of the source's own table; of scans that lie elsewhere they are made of what the cohort knows.
    Several processes may call this at the same time: each looks again after it has written, so that the last one to
    finish leaves all.

    Args:
        folder: Of the derivatives.
        scans: Of the cohort.
        names: What `name_scans` called them.
        bids_folder: Of the sources.
    """
    known = _people_in(_read_text(bids_folder / PEOPLE)) if bids_folder else _people_of_cohort(scans, names)
    while True:
        done = sorted({path.relative_to(folder).parts[0] for path in find_sidecars(folder)})
        before = _read_text(folder / PEOPLE)
        people = _people_in(before)
        rows = [{"participant_id": name, **people.get(name, {}), **known.get(name, {})} for name in done]
        if not rows or _table(rows) == before:
            break
        write_text(folder / PEOPLE, _table(rows))
    if bids_folder is not None:
        copied = [Path("participants.json"), *(Path(name) / f"{name}_sessions.tsv" for name in done)]
        for path in copied:
            if (bids_folder / path).is_file():
                write_text(folder / path, _read_text(bids_folder / path))


def write_group_tables(folder: Path) -> list[Path]:
    """Write one table of all scans of each kind, `group_T1w.tsv` and so on: what was made, how well, and how long.

    Returns:
        The tables, in order of their names; none where no scan is there.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    for sidecar in find_sidecars(folder):
        about = read_sidecar(sidecar)
        if about is None:
            continue
        stem = sidecar.name.removesuffix(".json")
        parts = dict(part.split("-", 1) for part in stem.split("_")[:-1])
        row = {
            "participant_id": f"sub-{parts['sub']}",
            "session_id": f"ses-{parts['ses']}" if "ses" in parts else "n/a",
            "scan_id": about.get("scan_id", ""),
            "image": sidecar.relative_to(folder).as_posix().removesuffix(".json") + ".nii.gz",
            "problem": about["problem"],
            "seconds": about["seconds"],
            "recipe": about["digest"],
            **_figures(about),
        }
        rows.setdefault(stem.rsplit("_", 1)[1], []).append(row)
    written = []
    for suffix, found in sorted(rows.items()):
        written.append(folder / f"group_{suffix}.tsv")
        write_text(written[-1], _table(found))
    return written


def differing_recipes(table: Path) -> str:
    """Say that the scans of a group table were prepared in more than one way; "" where they were in one.

    Args:
        table: From `write_group_tables`.
    """
    with table.open(encoding="utf-8", newline="") as file:
        counts = Counter(row["recipe"] for row in csv.DictReader(file, delimiter="\t"))
    if len(counts) == 1:
        return ""
    listed = ", ".join(f"{n} scans with {recipe}" for recipe, n in counts.most_common())
    return f"{table.name}: prepared with {len(counts)} recipes: {listed}; prepare all with one, or into other folders"


def find_sidecars(folder: Path) -> Iterator[Path]:
    """Find the JSON files of all scans that are done, in order of their names."""
    for subject in sorted(folder.glob("sub-*")):
        for anat in (subject / "anat", *sorted(subject.glob("ses-*/anat"))):
            yield from sorted(anat.glob("sub-*_desc-preproc_*.json"))


def _figures(about: dict[str, Any]) -> dict[str, Any]:
    """Take every number out of what the steps found, each under a name that says whose it is."""
    found = {}
    for step in about["steps"]:
        whose = "_".join(str(step[key]) for key in ("name", "to") if key in step)
        numbers = {**step, **step.get("quality", {})}
        for key, value in numbers.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and key != "seconds":
                found[f"{whose}_{key}"] = value
    return found


def _people_of_cohort(scans: Sequence[Scan], names: dict[str, ScanName]) -> dict[str, dict[str, str]]:
    people: dict[str, dict[str, str]] = {}
    for scan in scans:
        name = f"sub-{names[scan.scan_id].subject}"
        age = f"{scan.age:g}" if scan.age == scan.age else ""
        given = {"source_id": scan.subject_id, "age": age, "sex": scan.sex, "site": scan.site}
        row = people.setdefault(name, {"participant_id": name})
        row.update({key: value for key, value in given.items() if value and key not in row})
    return people


def _people_in(text: str) -> dict[str, dict[str, str]]:
    people = {}
    for row in csv.DictReader(io.StringIO(text), delimiter="\t"):
        given = str(row.get("participant_id") or "").strip()
        name = given if given.startswith("sub-") else f"sub-{given}"
        people[name] = {key: value for key, value in row.items() if key and value is not None} | {
            "participant_id": name
        }
    return people


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig") if path.is_file() else ""


def _table(rows: Sequence[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="n/a", delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "n/a" if value in ("", None) else value for key, value in row.items()} for row in rows)
    return text.getvalue()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
