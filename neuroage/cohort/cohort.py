"""The cohort: a validated table of scans that opens as a CSV anyone can edit."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from neuroage.cohort.ages import read_ages
from neuroage.cohort.modalities import canonical_modality, modality_of_filename
from neuroage.cohort.problem import Problem, refuse_all
from neuroage.cohort.scan import Scan
from neuroage.cohort.standard_table import FIELDS, as_numbers_where_plain, map_distinct, name_scans, standardise
from neuroage.cohort.table_file import read_table
from neuroage.errors import DataError, UsageError, did_you_mean
from neuroage.files import atomic_path, digest_text


class Cohort:
    """A table of scans, one row each, with unique scan ids.

    Args:
        table: Columns `scan_id, subject_id, session, modality, path, age, sex, site` and any further ones; missing
            columns other than `subject_id` are added empty, missing scan ids are made from subject, session and
            modality. Ages in years, NaN when unknown; paths absolute, "" for none.
        problems: What a reader found and how it was resolved.

    Raises:
        DataError: When there is no subject column, a subject is unnamed, a scan id is there twice, or an age is
            outside 0 to 120 years. All such rows are listed together.

    Example:
        >>> cohort = Cohort(pd.DataFrame({"subject_id": ["a", "b"], "age": [31.5, 60.0]}))
        >>> len(cohort), cohort.table.scan_id.tolist()
        (2, ['a', 'b'])
    """

    def __init__(self, table: pd.DataFrame, problems: Iterable[Problem] = ()) -> None:
        self.table = _validated(table)
        self.problems = list(problems)

    @classmethod
    def from_csv(cls, path: str | os.PathLike[str]) -> Cohort:
        """Read our own table strictly: every bad row is refused, in one report.

        Use it for a table that `to_csv` wrote or that has the same column names. Use `Cohort.read` for tables and
        folders as found.

        Args:
            path: CSV or TSV. Relative image paths in it are relative to its folder. Files are not opened.

        Raises:
            UsageError: When there is no such file.
            DataError: When a column is missing, or rows are wrong: all of them, with their lines.
        """
        path = Path(path)
        raw = read_table(path)
        missing = [name for name in ("subject_id", "age") if name not in raw.columns]
        if missing:
            raise DataError(
                f"{path} is no cohort table: it has no column {' and '.join(map(repr, missing))}",
                expected=f"the columns {', '.join(FIELDS)}",
                fix=f"For a table as found, run: neuroage index {path} --out cohort.csv",
            )
        table, problems = standardise(raw, path.name)
        refuse_all(
            [Problem(p.where, p.what) for p in problems if p.action == "row left out"],
            f"{path} has rows that cannot be used",
            fix="Correct these rows; for a missing age write n/a.",
        )
        _refuse_repeats(table, f"{path.name} line")
        guessed = map_distinct(table["path"], modality_of_filename)
        table["modality"] = table["modality"].where(table["modality"] != "", guessed)
        table["path"] = absolute_paths(table["path"], path.parent)
        return cls(table, problems)

    @classmethod
    def read(cls, source: str | os.PathLike[str], layout: str = "auto") -> Cohort:
        """Read a data set as found: a folder or a table.

        Args:
            source: A folder (BIDS, IXI, OASIS-1, a table beside its images) or a table.
            layout: "auto", or one of `layouts()`.

        Returns:
            The cohort; `problems` holds what was odd and the rule that resolved it. Scans without an age are kept, and
            a split leaves their subjects out.

        Raises:
            UsageError: When the source does not exist or the layout has another name.
            DataError: When nothing usable is left; the message says why and how many.
        """
        from neuroage.cohort.layouts import read_source

        return read_source(Path(source), layout)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the table atomically (TSV when the name ends in `.tsv`); image paths become relative to its folder."""
        path = Path(path)
        table = self.table.copy()
        table["path"] = relative_paths(table["path"], path.parent)
        with atomic_path(path) as temporary:
            table.to_csv(temporary, index=False, sep="\t" if path.suffix == ".tsv" else ",")

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        n_subjects = self.table["subject_id"].nunique()
        return f"Cohort({len(self)} scans of {n_subjects} subjects, modalities {', '.join(self.modalities) or 'none'})"

    @property
    def modalities(self) -> list[str]:
        """Every modality in the table, sorted."""
        return sorted(set(self.table["modality"]) - {""})

    @property
    def digest(self) -> str:
        """The sha256 of the content: the same for any order of rows or columns, and wherever the images lie.

        Of a path only the file name counts, so a data set that moved to another disk keeps its digest.
        """
        table = self.table.sort_values("scan_id")
        table = table[sorted(table.columns)].assign(path=table["path"].map(os.path.basename))
        columns = [f"{name}\x1f" + "\x1e".join(_canonical_cells(table[name])) for name in table.columns]
        return digest_text("\x1d".join(columns))

    def scans(self) -> list[Scan]:
        """Give every row as a `Scan`, in the order of the table."""
        extras = [name for name in self.table.columns if name not in FIELDS]
        rows = self.table[list(FIELDS)].itertuples(index=False, name=None)
        further = self.table[extras].to_dict("records") if extras else [{} for _ in range(len(self))]
        return [
            Scan(
                scan_id,
                subject,
                session,
                modality,
                Path(path) if path else None,
                float(age),
                sex,
                site,
                {str(key): value for key, value in extra.items()},
            )
            for (scan_id, subject, session, modality, path, age, sex, site), extra in zip(rows, further, strict=True)
        ]

    def select(
        self,
        modality: str | None = None,
        subject_ids: Iterable[str] | None = None,
        scan_ids: Iterable[str] | None = None,
    ) -> Cohort:
        """Give the cohort of the scans that meet every condition, in the order of this table.

        Args:
            modality: A modality in any usual spelling.
            subject_ids: Keep only scans of these subjects; ids that are not here are ignored.
            scan_ids: Keep only these scans; ids that are not here are ignored.

        Raises:
            UsageError: When the cohort has no scan of that modality.
        """
        keep = np.ones(len(self), dtype=bool)
        if modality is not None:
            wanted = canonical_modality(modality)
            if wanted not in self.modalities:
                raise UsageError(f"no scan of modality {modality!r}", expected=did_you_mean(wanted, self.modalities))
            keep &= (self.table["modality"] == wanted).to_numpy()
        if subject_ids is not None:
            keep &= self.table["subject_id"].isin(list(subject_ids)).to_numpy()
        if scan_ids is not None:
            keep &= self.table["scan_id"].isin(list(scan_ids)).to_numpy()
        return Cohort(self.table[keep], self.problems)

    def subjects(self) -> pd.DataFrame:
        """Give one row per subject, sorted by id.

        Returns:
            `subject_id`, `age` (years, at the first session that has one; sessions in natural order), `sex`, `site`
            (both of that scan), `n_scans`, and every further column that is constant within each subject.
        """
        rank = {name: place for place, name in enumerate(sorted(self.table["session"].unique(), key=_natural))}
        ordered = self.table.assign(_rank=self.table["session"].map(rank), _ageless=self.table["age"].isna())
        ordered = ordered.sort_values(["subject_id", "_ageless", "_rank", "age", "scan_id"], kind="stable")
        subject = ordered["subject_id"].to_numpy(dtype=object)
        starts = np.flatnonzero(np.r_[True, subject[1:] != subject[:-1]][: len(subject)])
        counts = np.diff(np.r_[starts, len(subject)])
        first = ordered.iloc[starts].reset_index(drop=True)
        owner = np.repeat(np.arange(len(starts)), counts)
        result = first[["subject_id", "age", "sex", "site"]].copy()
        result["n_scans"] = counts
        for name in (column for column in self.table.columns if column not in FIELDS):
            if len(starts) == len(subject) or _constant(ordered[name], first[name], owner):
                result[name] = first[name]
        return result


def _constant(column: pd.Series, first: pd.Series, owner: np.ndarray) -> bool:
    cells, firsts = column.to_numpy(dtype=object), first.to_numpy(dtype=object)[owner]
    return bool(((cells == firsts) | ((cells != cells) & (firsts != firsts))).all())


def _natural(text: str) -> tuple[tuple[int, int | str], ...]:
    parts = re.split(r"(\d+)", text)
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in parts if part)


def _validated(table: pd.DataFrame) -> pd.DataFrame:
    if "subject_id" not in table.columns:
        raise DataError("a cohort needs a column subject_id", fix="Name one, or use Cohort.read for a table as found.")
    table = table.reset_index(drop=True)
    bad: list[Problem] = []
    clean = pd.DataFrame(index=table.index)
    for name in FIELDS:
        cells = table[name] if name in table.columns else pd.Series("", index=table.index, dtype=object)
        if name == "age":
            rows = pd.Series([f"row {row}" for row in table.index], dtype=object)
            clean[name], _, notes = read_ages(cells, rows)
            bad += [note for note in notes if note.action == "row left out"]
        else:
            clean[name] = cells.astype(object).where(cells.notna(), "").astype(str)
    further = {str(name): as_numbers_where_plain(table[name]) for name in table.columns if name not in FIELDS}
    clean = pd.concat([clean, pd.DataFrame(further, index=table.index)], axis=1) if further else clean
    if (clean["scan_id"] == "").any():
        clean["scan_id"] = clean["scan_id"].where(clean["scan_id"] != "", name_scans(clean))
    bad += [Problem(f"row {row}", "no subject id") for row in np.flatnonzero(clean["subject_id"] == "")]
    refuse_all([Problem(problem.where, problem.what) for problem in bad], "the cohort has rows that cannot be used")
    _refuse_repeats(clean, "row")
    return clean


def _refuse_repeats(table: pd.DataFrame, row_name: str) -> None:
    named = table[table["scan_id"] != ""]
    repeated = named["scan_id"][named["scan_id"].duplicated(keep=False)]
    refuse_all(
        [Problem(f"{row_name} {row}", f"scan_id {scan!r} is there more than once") for row, scan in repeated.items()],
        "scans are named twice",
        expected="a scan_id of its own for every row",
    )


def absolute_paths(column: pd.Series, folder: Path) -> pd.Series:
    """Make the paths of a table absolute; they are relative to the folder the table lies in."""
    root = os.path.abspath(folder)

    def absolute(text: str) -> str:
        return os.path.normpath(os.path.join(root, text)) if text else ""

    return map_distinct(column, absolute)


def relative_paths(column: pd.Series, folder: Path) -> pd.Series:
    """Make absolute paths relative to the folder of a table, with forward slashes, which every system reads."""
    root = os.path.abspath(folder)
    folders: dict[str, str] = {}

    def relative(text: str) -> str:
        if not text:
            return ""
        parent, name = os.path.split(text)
        if parent not in folders:
            folders[parent] = (
                os.path.relpath(parent, root)
                if os.path.splitdrive(parent)[0] == os.path.splitdrive(root)[0]  # no way leads from C: to D:
                else parent
            )
        return name if folders[parent] == "." else f"{folders[parent]}/{name}".replace(os.sep, "/")

    return map_distinct(column, relative)


def _canonical_cells(column: pd.Series) -> list[str]:
    if pd.api.types.is_numeric_dtype(column):
        return [f"{value:.12g}" if value == value else "" for value in column.astype(float).tolist()]
    return [str(value) for value in column.tolist()]
