"""The cohort: a validated table of scans that opens as a CSV anyone can edit."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from neuroage.cohort.cohort_table import read_cohort_table, validate_table
from neuroage.cohort.labels import LABEL_PREFIX, Uncertain, is_named_label
from neuroage.cohort.modalities import canonical_modality
from neuroage.cohort.paths import REFERENCE_COLUMN, paths_in, relative_paths
from neuroage.cohort.problem import Problem
from neuroage.cohort.scan import Scan
from neuroage.cohort.standard_table import FIELDS
from neuroage.errors import UsageError, did_you_mean
from neuroage.files import atomic_path, digest_text

_SAMPLE_STREAM = 0x5A3B  # names this use of the seed, so that other uses of the same seed stay independent


class Cohort:
    """A table of scans, one row each, with unique scan ids.

    Args:
        table: Columns `scan_id, subject_id, session, modality, path, age, sex, site` and any further ones; missing
            columns other than `subject_id` are added empty, missing scan ids are made from subject, session and
            modality. Ages in years, NaN when unknown; paths absolute, "" for none. Labels are the column `label` (one
            class per row, as text) and columns `label_<Name>` (1, 0, NaN when unknown).
        problems: What a reader found and how it was resolved.

    Raises:
        DataError: When there is no subject column, a subject is unnamed, a scan id is there twice, an age is outside 0
            to 120 years, or a label is not 1, 0 or missing. All such rows are listed together.

    Example:
        >>> cohort = Cohort(pd.DataFrame({"subject_id": ["a", "b"], "age": [31.5, 60.0]}))
        >>> len(cohort), cohort.table.scan_id.tolist()
        (2, ['a', 'b'])
    """

    def __init__(self, table: pd.DataFrame, problems: Iterable[Problem] = ()) -> None:
        self.table = validate_table(table)
        self.problems = list(problems)

    @classmethod
    def from_csv(
        cls,
        path: str | os.PathLike[str],
        *,
        label: str | None = None,
        labels: Sequence[str] | None = None,
        uncertain: Uncertain = "missing",
    ) -> Cohort:
        """Read our own table, or any table of labels, strictly: every bad row is refused, in one report.

        Use it for a table that `to_csv` wrote or that has the same column names, and for a table of labels, whose
        columns may have any usual name (Patient ID, Image Index, filename, …) and which needs no age. Use
        `Cohort.read` for tables and folders as found.

        Args:
            path: CSV or TSV. Relative image paths in it are relative to its folder. Files are not opened.
            label: The column with one class per row; it becomes the column `label`.
            labels: The columns with one label each (1, 0, blank, −1, true, false, yes, no); they become `label_<Name>`.
                None takes every column that is called so already.
            uncertain: What a label of −1 means: missing, positive or negative.

        Raises:
            UsageError: When there is no such file, or no such column for a label.
            DataError: When a column is missing, or rows are wrong: all of them, with their lines.

        Example:
            >>> cohort = Cohort.from_csv("reports.csv", labels=["Edema", "Fracture"])  # doctest: +SKIP
        """
        return cls(*read_cohort_table(Path(path), label, labels, uncertain))

    @classmethod
    def from_folders(cls, folder: str | os.PathLike[str], pattern: str | None = None) -> Cohort:
        r"""Read class folders, `folder/<class>/**/<picture>`: the column `label` is the name of the class folder.

        Args:
            folder: Holds one folder for each class.
            pattern: A regular expression with named groups, matched from the start of each picture's path below
                `folder` (forward slashes). Each group becomes a column; groups called subject_id, session, modality,
                age, sex, site or label set those columns.

        Returns:
            The cohort. Without a group subject_id every picture counts as a subject of its own; where several pictures
            belong to one person, say so by such a group, or a split cannot keep them together.

        Raises:
            UsageError: When there is no such folder, or the pattern is no regular expression with named groups.
            DataError: When there are no pictures in class folders, or paths do not match the pattern.

        Example:
            >>> Cohort.from_folders("tumours", r"(?P<tumour>.+) (?P<sequence>T1C\+|T1|T2)/")  # doctest: +SKIP
        """
        from neuroage.cohort.class_folders import read_class_folders

        return read_class_folders(Path(folder), pattern)

    @classmethod
    def from_nih(cls, folder: str | os.PathLike[str], images: Literal["present", "all"] = "present") -> Cohort:
        """Read NIH ChestX-ray14: `Data_Entry_2017*.csv`, the official lists beside it, and the images below.

        Args:
            folder: The folder that holds the table, or the table itself.
            images: "present" keeps the rows whose image is here (all rows when none is here); "all" keeps every row.

        Returns:
            The cohort, with the 14 labels as `label_<Name>`, and the columns `view`, `followup` and, where the
            official lists are there, `official_set` (train or test).

        Raises:
            UsageError: When there is no such folder.
            DataError: When there is no such table in it, or its findings are not the 14 of Wang 2017.
        """
        from neuroage.cohort.nih import read_nih

        return read_nih(Path(folder), images)

    @classmethod
    def read(cls, source: str | os.PathLike[str], layout: str = "auto") -> Cohort:
        """Read a data set as found: a folder or a table.

        Args:
            source: A folder (BIDS, IXI, OASIS-1, class folders, a table beside its images, …) or a table.
            layout: "auto", or one of `layouts()`.

        Returns:
            The cohort; `problems` holds what was odd and the rule that resolved it. Scans without an age are kept, and
            a split by age leaves their subjects out.

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
        for name in paths_in(table):
            table[name] = relative_paths(table[name], path.parent)
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
    def labels(self) -> list[str]:
        """The names of the labels, in the order of their columns `label_<Name>`, without that prefix."""
        return [str(name).removeprefix(LABEL_PREFIX) for name in self.table.columns if is_named_label(str(name))]

    @property
    def digest(self) -> str:
        """The sha256 of the content: the same for any order of rows or columns, and wherever the images lie.

        Of a path only the file name counts, so a data set that moved to another disk keeps its digest.
        """
        table = self.table.sort_values("scan_id")
        table = table[sorted(table.columns)].assign(**{name: table[name].map(_file_name) for name in paths_in(table)})
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
            modality: A modality in any usual spelling. Ignored when no scan of the cohort names a modality.
            subject_ids: Keep only scans of these subjects; ids that are not here are ignored.
            scan_ids: Keep only these scans; ids that are not here are ignored.

        Raises:
            UsageError: When the cohort has no scan of that modality.
        """
        keep = np.ones(len(self), dtype=bool)
        if modality is not None and self.modalities:
            wanted = canonical_modality(modality)
            if wanted not in self.modalities:
                raise UsageError(f"no scan of modality {modality!r}", expected=did_you_mean(wanted, self.modalities))
            keep &= (self.table["modality"] == wanted).to_numpy()
        if subject_ids is not None:
            keep &= self.table["subject_id"].isin(list(subject_ids)).to_numpy()
        if scan_ids is not None:
            keep &= self.table["scan_id"].isin(list(scan_ids)).to_numpy()
        return Cohort(self.table[keep], self.problems)

    def exclude(self, path: str | os.PathLike[str]) -> Cohort:
        """Give the cohort without the scans that a table names, such as the one that the page of `neuroage qc` saves.

        Args:
            path: Table with the column `scan_id` and, if there is one, `reason`.

        Returns:
            The other scans; `problems` ends with what was excluded, and with ids that are not in the cohort.

        Raises:
            UsageError: When there is no such table.
            DataError: When it has no column `scan_id`, or would leave no scan.
        """
        from neuroage.cohort.exclusions import exclude

        return exclude(self, path)

    def with_references(self, modality: str) -> Cohort:
        """Give every scan the file of another modality's scan of the same session, in the column `reference_path`.

        Where the session has several, the first by scan_id is taken; where it has none, the cell is empty. Cells that
        a table has filled in are kept.

        Args:
            modality: Of the reference scans, in any usual spelling.
        """
        wanted = canonical_modality(modality)
        having = self.table[(self.table["modality"] == wanted) & (self.table["path"] != "")].sort_values("scan_id")
        first = having.drop_duplicates(["subject_id", "session"]).set_index(["subject_id", "session"])["path"]
        keys = zip(self.table["subject_id"], self.table["session"], strict=True)
        found = [str(first.get(key, "")) for key in keys]
        given = self.table[REFERENCE_COLUMN] if REFERENCE_COLUMN in self.table.columns else [""] * len(self)
        paths = [mine if isinstance(mine, str) and mine else other for mine, other in zip(given, found, strict=True)]
        return Cohort(self.table.assign(**{REFERENCE_COLUMN: paths}), self.problems)

    def sample(self, n: int, seed: int = 0) -> Cohort:
        """Draw scans at random, without putting back, and give them in the order of this table.

        Args:
            n: Number of scans, 1 to `len(self)`.
            seed: Same seed, same scans.

        Raises:
            UsageError: When the cohort has fewer scans.
        """
        if not 1 <= n <= len(self):
            raise UsageError(f"a sample of {n} of {len(self)} scans", expected=f"1 to {len(self)}")
        drawn = np.random.default_rng([seed, _SAMPLE_STREAM]).choice(len(self), size=n, replace=False)
        return Cohort(self.table.iloc[np.sort(drawn)], self.problems)

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


def _file_name(cell: object) -> str:
    return os.path.basename(cell) if isinstance(cell, str) else ""


def _canonical_cells(column: pd.Series) -> list[str]:
    if pd.api.types.is_numeric_dtype(column):
        return [f"{value:.12g}" if value == value else "" for value in column.astype(float).tolist()]
    return [str(value) for value in column.tolist()]
