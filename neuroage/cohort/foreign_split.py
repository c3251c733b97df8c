"""Splits made elsewhere: tables and JSON files in their usual spellings, checked for subjects on two sides."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from neuroage.cohort.cohort import Cohort
from neuroage.cohort.columns import SPELLINGS, normal_header
from neuroage.cohort.leakage import measure_leakage
from neuroage.cohort.set_spellings import FOLD_COLUMNS, SET_COLUMNS, SET_WORDS, read_set_word, spellings_of_name
from neuroage.cohort.split import Split
from neuroage.cohort.table_file import read_table
from neuroage.errors import DataError, RefusedError, UsageError

_Placement = tuple[str, int]  # set and fold


def read_split(path: str | os.PathLike[str], cohort: Cohort) -> Split:
    """Read a split that another tool or person made, and place the subjects of a cohort by it.

    Accepted are CSV and TSV with a column of subjects, scans or file names and a column of sets (`set`, `split`,
    `subset`, `partition`) or folds (`fold`); JSON of the forms `{"train": […], "val": […]}`, a list of such (one for
    each fold), `{id: set}`, or a list of records. Sets may be spelt train/training, val/valid/validation/dev, test/….

    Args:
        path: The file.
        cohort: Whose subjects are placed; those the file does not name are left out.

    Raises:
        UsageError: When there is no such file.
        DataError: When it cannot be understood, or names nobody of the cohort.
        RefusedError: When a subject is on two sides, which a split made by scans easily does; they are named, and the
            share of test images is given that belong to subjects of the training set.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"no split file {path}", fix="Check the path.")
    entries = _json_entries(path) if path.suffix.lower() == ".json" else _table_entries(path)
    placed, strangers, images = _resolve(entries, cohort)
    if not placed:
        raise DataError(
            f"{path} names no subject or scan of this cohort ({len(strangers)} ids, for example "
            f"{', '.join(strangers[:3]) or 'none'})",
            expected="subject_id, scan_id or file names of the cohort",
        )
    _refuse_leaks(placed, images, cohort, path)
    subjects = cohort.subjects()
    sets = [next(iter(placed.get(subject, {("left_out", -1)}))) for subject in subjects["subject_id"]]
    table = subjects[["subject_id", "age"]].assign(
        set=[name for name, _ in sets],
        fold=[fold for _, fold in sets],
        reason=[
            "" if name != "left_out" else "left out in the split file" if subject in placed else "not in the split file"
            for subject, (name, _) in zip(subjects["subject_id"], sets, strict=True)
        ],
    )
    counts = {str(name): int(n) for name, n in table["set"].value_counts().items()}
    report = {"counts": counts, "not_in_cohort": len(strangers)}
    meta = {
        "method": "foreign",
        "parameters": {"file": path.name},
        "seed": None,
        "report": report,
        "cohort_digest": cohort.digest,
    }
    return Split(table, meta)


def _table_entries(path: Path) -> list[tuple[str, _Placement]]:
    table = read_table(path)
    names = {normal_header(header): header for header in reversed(list(table.columns))}
    who = [names[n] for field in ("scan_id", "path", "subject_id") for n in SPELLINGS[field] if n in names]
    set_column = next((names[n] for n in SET_COLUMNS if n in names), None)
    fold_column = next((names[n] for n in FOLD_COLUMNS if n in names), None)
    if not who or (set_column is None and fold_column is None):
        raise DataError(
            f"{path} is no split: its columns are {', '.join(map(str, table.columns))}",
            expected="a column of subjects, scans or files, and one of 'set', 'split' or 'fold'",
        )
    sets = table[set_column].tolist() if set_column else ["validation"] * len(table)
    folds = table[fold_column].tolist() if fold_column else [""] * len(table)
    return [
        (str(name), _placement(word, fold, f"{path.name} line {line}"))
        for line, name, word, fold in zip(table.index, table[who[0]], sets, folds, strict=True)
    ]


def _placement(word: Any, fold: Any, where: str) -> _Placement:
    text = str(word).strip().lower()
    if re.fullmatch(r"\d+", text):  # a set column of bare numbers counts folds
        return "validation", int(text)
    name = read_set_word(word, where)
    number = re.search(r"\d+", str(fold))
    return name, (int(number.group()) if number else 0) if name == "validation" else -1


def _json_entries(path: Path) -> list[tuple[str, _Placement]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}") from error
    if isinstance(content, dict) and isinstance(content.get("folds"), list):
        content = content["folds"]
    if isinstance(content, list) and content and all(isinstance(fold, dict) and _is_sets(fold) for fold in content):
        return _fold_entries(content)
    if isinstance(content, dict) and _is_sets(content):
        return [entry for word, ids in content.items() for entry in _listed(ids, _placement(word, "", path.name))]
    if isinstance(content, dict) and content and all(isinstance(v, (str, int)) for v in content.values()):
        return [(str(key), _placement(value, "", f"{path.name} {key}")) for key, value in content.items()]
    if isinstance(content, list) and content and all(isinstance(record, dict) for record in content):
        return _record_entries(content, path)
    raise DataError(
        f"{path} holds no split", expected='{"train": […], "val": […]}, a list of such, {id: set}, or records'
    )


def _is_sets(content: dict[str, Any]) -> bool:
    lists = [key for key, value in content.items() if isinstance(value, list) and str(key).lower() in SET_WORDS]
    return bool(lists) and len(lists) == len(content)


def _listed(ids: Iterable[Any], placement: _Placement) -> list[tuple[str, _Placement]]:
    names = [
        item.get("subject_id") or item.get("scan_id") or item.get("image") if isinstance(item, dict) else item
        for item in ids
    ]
    return [(str(name), placement) for name in names]


def _fold_entries(folds: list[dict[str, Any]]) -> list[tuple[str, _Placement]]:
    """Read one dictionary of sets for each fold: whoever is validation in fold k carries k, whoever never is trains."""
    entries: list[tuple[str, _Placement]] = []
    trained: dict[str, None] = {}
    for k, fold in enumerate(folds):
        for word, ids in fold.items():
            name = SET_WORDS[str(word).lower()]
            if name == "train":
                trained.update(dict.fromkeys(name for name, _ in _listed(ids, ("train", -1))))
            else:
                entries += _listed(ids, (name, k if name == "validation" else -1))
    tested = {name for name, _ in entries}
    entries = list(dict.fromkeys(entries))
    return entries + [(name, ("train", -1)) for name in trained if name not in tested]


def _record_entries(records: list[dict[str, Any]], path: Path) -> list[tuple[str, _Placement]]:
    entries = []
    for number, record in enumerate(records):
        by_name = {normal_header(key): value for key, value in record.items()}
        who = next((by_name[n] for f in ("scan_id", "path", "subject_id") for n in SPELLINGS[f] if n in by_name), None)
        word = next((by_name[n] for n in SET_COLUMNS if n in by_name), None)
        fold = next((by_name[n] for n in FOLD_COLUMNS if n in by_name), "")
        if who is None or (word is None and fold == ""):
            raise DataError(
                f"{path.name} record {number} has no subject or no set", expected="keys such as subject_id and set"
            )
        entries.append(
            (str(who), _placement("validation" if word is None else word, fold, f"{path.name} record {number}"))
        )
    return entries


def _resolve(
    entries: list[tuple[str, _Placement]], cohort: Cohort
) -> tuple[dict[str, dict[_Placement, None]], list[str], dict[str, str]]:
    """Find the subject behind every id: a subject, a scan, or a file name with or without its folder and ending.

    Returns:
        The places of each subject; the names that are nobody's; and the set of each name that is a scan or file.
    """
    subject_of: dict[str, str] = {}
    for column in ("path", "scan_id", "subject_id"):  # later names win: a subject id is the surest
        for name, subject in zip(cohort.table[column], cohort.table["subject_id"], strict=True):
            for key in spellings_of_name(name, is_path=column == "path"):
                subject_of[key] = subject
    subjects = {key for name in cohort.table["subject_id"].unique() for key in spellings_of_name(name, is_path=False)}
    placed: dict[str, dict[_Placement, None]] = {}
    strangers: list[str] = []
    images: dict[str, str] = {}
    for name, placement in entries:
        known = next((key for key in spellings_of_name(name, is_path=True) if key in subject_of), None)
        if known is None:
            strangers.append(name)
            continue
        placed.setdefault(subject_of[known], {})[placement] = None
        if known not in subjects:
            images[name] = placement[0]
    return placed, strangers, images


def _refuse_leaks(
    placed: dict[str, dict[_Placement, None]], images: dict[str, str], cohort: Cohort, path: Path
) -> None:
    leaking = sorted(subject for subject, places in placed.items() if len(places) > 1)
    if not leaking:
        return
    named = ", ".join(leaking[:20]) + (f" and {len(leaking) - 20} more" if len(leaking) > 20 else "")
    leakage = measure_leakage(cohort, images) if images else None
    figure = f"{leakage.words} " if leakage and leakage.leaks else ""
    raise RefusedError(
        f"{figure}{path} puts {len(leaking)} of {len(placed)} subjects on two sides: {named}",
        expected="all scans of a subject in one set and fold",
        fix="Move the scans of each of these subjects to one side, or let `neuroage split` make a split of subjects.",
    )
