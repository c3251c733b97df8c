"""Tables as files: CSV, TSV and Excel into text cells, with the line that each row came from."""

from __future__ import annotations

import codecs
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd

from neuroage.errors import DataError, NeuroageError, UsageError

_HEAD_BYTES = 1 << 16  # holds the first lines of any table, be they as long as a paragraph
TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".xls", ".xlsx")


def read_table(path: str | Path, *, header: bool = True, n_lines: int | None = None) -> pd.DataFrame:
    """Read every cell of a table as text, empty cells as "".

    The separator is the tab for `.tsv`, otherwise the one of comma, semicolon and tab that the first line holds most
    of. Unnamed columns (a saved index) are dropped.

    Args:
        path: A `.csv`, `.tsv`, `.txt`, `.xls` or `.xlsx` file; of a workbook the first sheet is read.
        header: Whether the first line holds column names; otherwise columns are named 0, 1, ….
        n_lines: Read only so many lines, to see what the table is; None reads all.

    Returns:
        Text cells, one row per record; the index is the line in the file, counted from 1.

    Raises:
        UsageError: When there is no such file or its kind is not read.
        DataError: When it is empty or no table.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"no table {path}", fix="Check the path.")
    if path.suffix.lower() == ".xls":
        table = _read_xls(path)
    elif path.suffix.lower() == ".xlsx":
        table = _read_xlsx(path)
    else:
        table = _read_text(path, n_lines)
    if not header:
        return table.set_axis(table.index + 1, axis=0).set_axis([str(k) for k in range(table.shape[1])], axis=1)
    if len(table) == 0:
        raise DataError(f"{path} is empty", expected="a line of column names and one line per scan or subject")
    names = _unique_names([str(cell).strip() for cell in table.iloc[0]])
    rows = table.iloc[1:].set_axis(np.arange(2, len(table) + 1), axis=0).set_axis(names, axis=1)
    rows = rows[[name for name in names if name]]
    return rows[(rows != "").any(axis=1)]


def looks_headless(table: pd.DataFrame) -> bool:
    """Say whether the column names of a table are in truth its first record: two or more of them are numbers."""
    numbers = [name for name in table.columns if re.fullmatch(r"-?\d+([.,]\d+)?(\.\d+)?", str(name))]
    return len(numbers) >= 2


def _unique_names(names: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(f"{name}.{seen[name] - 1}" if name and seen[name] > 1 else name)
    return ["" if name.startswith("Unnamed:") else name for name in unique]


def _read_text(path: Path, n_lines: int | None) -> pd.DataFrame:
    with open(path, "rb") as handle:
        start = handle.read(_HEAD_BYTES if n_lines else -1)
    if b"\x00" in start[:4096]:
        raise DataError(f"{path} is not a text table", expected="CSV or TSV", fix="Save it as CSV.")
    encoding = "utf-8-sig"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        encoding = "latin-1"  # in which every byte is a letter, so that this cannot fail
    first = start.split(b"\n", 1)[0].decode(encoding)
    separator = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
    try:
        table = pd.read_csv(
            path if n_lines is None else io.BytesIO(start), sep=separator, header=None, dtype=str, na_filter=False,
            encoding=encoding, encoding_errors="replace", skip_blank_lines=False, nrows=n_lines,
        )  # fmt: skip
        return table.fillna("")
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except pd.errors.ParserError as error:
        raise DataError(
            f"{path} cannot be read as a table: {error}",
            expected="the same number of cells in every line",
            fix="Mend that line, for example by quoting a cell that holds the separator.",
        ) from error


def _read_xls(path: Path) -> pd.DataFrame:
    import xlrd

    try:
        sheet = xlrd.open_workbook(str(path)).sheet_by_index(0)
    except xlrd.XLRDError as error:
        raise DataError(f"{path} cannot be read as Excel: {error}", fix="Save it as CSV.") from error
    rows = [[_cell_text(cell) for cell in sheet.row_values(k)] for k in range(sheet.nrows)]
    return pd.DataFrame(rows, dtype=str)


def _read_xlsx(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_excel(path, header=None, dtype=object)
    except ImportError as error:
        raise UsageError(
            f"reading {path} needs openpyxl", fix="Save the table as CSV, or pip install openpyxl."
        ) from error
    except (ValueError, OSError, KeyError) as error:
        raise DataError(f"{path} cannot be read as Excel: {error}", fix="Save it as CSV.") from error
    return table.map(_cell_text)


def _cell_text(value: object) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return ""
    # Excel stores whole numbers as floats; an id 2 must not become "2.0".
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def table_head(path: Path) -> pd.DataFrame | None:
    """Give the column names and first records of a file, or None when it is no table that can be read; never raises."""
    if path.suffix.lower() not in TABLE_SUFFIXES or path.name.startswith("."):
        return None
    try:
        return read_table(path, n_lines=3)
    except NeuroageError:
        return None
