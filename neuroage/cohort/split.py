"""A split: one row per subject, which set it belongs to, and why."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroage.cohort.problem import Problem, refuse_all
from neuroage.errors import DataError, UsageError, did_you_mean
from neuroage.files import atomic_path, digest_text, write_json

SETS = ("train", "validation", "test", "left_out")
COLUMNS = ("subject_id", "set", "fold", "reason", "age")


class Split:
    """Who is trained on and who is tested, by subject; two scans of one person can never be on two sides.

    Validation subjects carry fold 0 to K-1. When fold k is trained, fold k is validation, and the train set together
    with the validation subjects of all other folds is trained on. Test subjects are never trained on.

    Args:
        table: Columns `subject_id`, `set` (train, validation, test, left_out), `fold` (-1 where there is none),
            `reason` (why a subject is left out) and `age` (years); the last three may be missing. An optional column
            `group` names what must not be torn apart (a subject, or subjects with like pictures); kept when given.
        meta: How the split was made: method, parameters, seed, report.

    Raises:
        DataError: When a subject is there twice, a set has another name, a fold is missing, or a group is on two sides.
            All rows in one report.
    """

    def __init__(self, table: pd.DataFrame, meta: Mapping[str, Any] | None = None) -> None:
        self.table = _validated(table)
        self.meta: dict[str, Any] = dict(meta or {})

    @property
    def n_folds(self) -> int:
        """The number of folds; 0 when there are no validation subjects."""
        return int(self.table["fold"].max()) + 1 if len(self.table) else 0

    @property
    def digest(self) -> str:
        """The sha256 of who is in which set, fold and (where there are any) group; the same for any order of rows."""
        rows = self.table.sort_values("subject_id")
        parts = [rows["subject_id"].tolist(), rows["set"].tolist(), rows["fold"].astype(str).tolist()]
        if "group" in rows.columns:
            parts.append(rows["group"].tolist())
        return digest_text("\n".join("\x1f".join(row) for row in zip(*parts, strict=True)))

    def subjects(self, set: str, fold: int | None = None) -> list[str]:
        """Give the sorted subject ids of a set.

        Args:
            set: train, validation, test or left_out.
            fold: The fold that is trained: validation is then that fold alone, and train includes all other folds. None
                gives the sets as they stand in the table.

        Raises:
            UsageError: When there is no such set or fold.
        """
        if set not in SETS:
            raise UsageError(f"no set {set!r}", expected=did_you_mean(set, SETS))
        sets = self.table.set_index("subject_id")["set"] if fold is None else self.sets(fold)
        return sorted(sets.index[sets == set])

    def sets(self, fold: int = 0) -> pd.Series:
        """Give the set of every subject when `fold` is trained, as a Series indexed by subject id.

        Raises:
            UsageError: When there is no such fold.
        """
        if fold and not 0 <= fold < self.n_folds:
            raise UsageError(f"no fold {fold}", expected=f"0 to {max(self.n_folds - 1, 0)}")
        sets = self.table.set_index("subject_id")["set"].astype(object)
        other = (self.table["set"] == "validation").to_numpy() & (self.table["fold"] != fold).to_numpy(dtype=bool)
        sets[other] = "train"
        return sets.astype(str)

    def groups(self) -> pd.Series:
        """Give the group of every subject, indexed by subject id; without groups each subject is its own."""
        name = "group" if "group" in self.table.columns else "subject_id"
        return self.table.set_index("subject_id", drop=False)[name].rename("group")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as CSV and, beside it under the same name, how it was made as JSON; both atomically."""
        path = Path(path)
        write_json(_sidecar(path), {**self.meta, "digest": self.digest})
        with atomic_path(path) as temporary:
            self.table.to_csv(temporary, index=False, sep="\t" if path.suffix == ".tsv" else ",")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Split:
        """Read a split that `save` wrote, and say so when its CSV was edited since.

        An edited table is accepted, for it is meant to be readable and writable by hand; `meta["edited"]` then says
        that the report in `meta` no longer describes it. For split files of other tools use `read_split`.

        Raises:
            UsageError: When there is no such file.
            DataError: When it is no split table, or rows are wrong.
        """
        path = Path(path)
        if not path.is_file():
            fix = "Make one: neuroage split COHORT (--uniform-age, or --grouped for labels)"
            raise UsageError(f"no split {path}", fix=fix)
        table = pd.read_csv(
            path,
            sep="\t" if path.suffix == ".tsv" else ",",
            dtype={"subject_id": str, "set": str, "reason": str, "group": str},
            keep_default_na=False,
            na_values={"age": [""], "fold": [""]},
            encoding="utf-8-sig",
        )
        missing = [name for name in ("subject_id", "set") if name not in table.columns]
        if missing:
            raise DataError(
                f"{path} is no split: it has no column {' and '.join(map(repr, missing))}",
                expected=f"the columns {', '.join(COLUMNS)}",
                fix="A split made elsewhere is read by read_split, or neuroage split --from.",
            )
        split = cls(table, _read_meta(path))
        recorded = split.meta.pop("digest", None)
        if recorded is None:
            split.meta["edited"] = f"no {_sidecar(path).name} beside it says how this split was made"
        elif recorded != split.digest:
            split.meta["edited"] = "the table was edited by hand after it was made; the report describes the original"
        return split

    def __repr__(self) -> str:
        counts = self.table["set"].value_counts()
        return f"Split({', '.join(f'{counts.get(name, 0)} {name}' for name in SETS)}, {self.n_folds} folds)"


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".json")


def _read_meta(path: Path) -> dict[str, Any]:
    if not _sidecar(path).is_file():
        return {}
    try:
        meta = json.loads(_sidecar(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{_sidecar(path)} is no JSON: {error}", fix="Restore it, or delete it.") from error
    return meta if isinstance(meta, dict) else {}


def _validated(table: pd.DataFrame) -> pd.DataFrame:
    clean = pd.DataFrame({"subject_id": table["subject_id"].astype(str), "set": table["set"].astype(str)})
    is_validation = clean["set"] == "validation"
    fold = table["fold"] if "fold" in table.columns else pd.Series(np.where(is_validation, 0, -1), index=table.index)
    clean["fold"] = pd.to_numeric(fold, errors="coerce").fillna(-1).astype("Int64")
    clean["reason"] = table["reason"].fillna("").astype(str) if "reason" in table.columns else ""
    age = table["age"] if "age" in table.columns else pd.Series(np.nan, index=table.index)
    clean["age"] = pd.to_numeric(age, errors="coerce").astype(float)
    if "group" in table.columns:
        named = table["group"].notna() & (table["group"].astype(str) != "")
        clean["group"] = table["group"].astype(str).where(named, clean["subject_id"])
    clean = clean.reset_index(drop=True)
    bad = [
        Problem(f"line {row + 2}", f"subject {clean['subject_id'].iloc[row]!r} is there more than once")
        for row in np.flatnonzero(clean["subject_id"].duplicated())
    ]
    bad += [
        Problem(f"line {row + 2}", f"set {clean['set'].iloc[row]!r} is unknown")
        for row in np.flatnonzero(~clean["set"].isin(SETS))
    ]
    folded = (clean["fold"] >= 0).to_numpy(dtype=bool)
    bad += [
        Problem(f"line {row + 2}", f"a {clean['set'].iloc[row]} subject with fold {clean['fold'].iloc[row]}")
        for row in np.flatnonzero(folded != (clean["set"] == "validation").to_numpy())
    ]
    present = set(clean["fold"][folded].tolist())
    absent = sorted(set(range(max(present, default=-1) + 1)) - present)
    bad += [Problem("fold column", f"fold {fold} has no subject") for fold in absent]
    bad += _torn_groups(clean)
    refuse_all(
        bad,
        "the split is not valid",
        expected="every subject once, every group on one side, sets train, validation, test or left_out, "
        "folds 0 to K-1 for validation only",
    )
    return clean


def _torn_groups(clean: pd.DataFrame) -> list[Problem]:
    if "group" not in clean.columns:
        return []
    placed = clean[clean["set"] != "left_out"]
    sides = placed.groupby("group")[["set", "fold"]].nunique()
    torn = sides.index[(sides > 1).any(axis=1)]
    return [Problem(f"group {group!r}", "is on two sides") for group in torn]
