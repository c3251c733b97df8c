"""The table of OASIS-2 longitudinal, which is often passed around without its header.

Source: Marcus et al., J Cogn Neurosci 22 (2010) 2677, https://doi.org/10.1162/jocn.2009.21407
"""

from __future__ import annotations

import re
from pathlib import Path

from neuroage.cohort.cohort import Cohort
from neuroage.cohort.layouts import Layout
from neuroage.cohort.problem import Problem
from neuroage.cohort.standard_table import settle_duplicates, standardise
from neuroage.cohort.table_file import read_table, table_head

HEADER = ("Subject ID", "MRI ID", "Group", "Visit", "MR Delay", "M/F", "Hand", "Age", "EDUC", "SES", "MMSE", "CDR",
          "eTIV", "nWBV", "ASF")  # fmt: skip


def read(source: Path) -> Cohort:
    """Read the table; the session is the MR1, MR2, … of the MRI ID, and each visit has its own age."""
    raw = read_table(source)
    problems = []
    if _is_record([str(name) for name in raw.columns]):
        raw = read_table(source, header=False).set_axis(list(HEADER), axis=1)
        problems.append(Problem(source.name, "no header, but the records are those of OASIS-2", "its columns taken"))
    table, notes = standardise(raw.rename(columns={"MRI ID": "session", "Visit": "visit_number"}), source.name)
    table["session"] = table["session"].str.extract(r"_(MR\d+)$")[0].fillna(table["session"])
    table, more = settle_duplicates(table, ("subject_id", "session"), source.name)
    return Cohort(table, problems + notes + more)


def _is_record(cells: list[str]) -> bool:
    return (
        len(cells) == len(HEADER)
        and bool(re.fullmatch(r"OAS2_\d{4}", cells[0]))
        and bool(re.fullmatch(cells[0] + r"_MR\d+", cells[1]))
        and bool(re.fullmatch(r"[MF](\.\d+)?", cells[5]))  # a repeated cell is numbered when it is taken for a header
    )


def recognises(source: Path) -> bool:
    """A table with the header of OASIS-2, or whose first line is one of its records."""
    head = table_head(source) if source.is_file() else None
    if head is None:
        return False
    names = [str(name) for name in head.columns]
    return _is_record(names) or {"Subject ID", "MRI ID", "Age"} <= set(names)


LAYOUT = Layout("oasis2", "the longitudinal table of OASIS-2, with or without its header", recognises, read)
