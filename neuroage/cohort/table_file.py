"""Tables as files: CSV, TSV and Excel into text cells, with the line that each row came from."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from neuroage.errors import DataError, UsageError

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".xls", ".xlsx")


def read_table(path: str | Path, *, header: bool = True) -> pd.DataFrame:
    """Read every cell of a table as text, empty cells as "".

    The separator is the tab for `.tsv`, otherwise the one of comma, semicolon and tab that the first line holds most
    of. Unnamed columns (a saved index) are dropped.

    Args:
        path: A `.csv`, `.tsv`, `.txt`, `.xls` or `.xlsx` file; of a workbook the first sheet is read.
        header: Whether the first line holds column names; otherwise columns are named 0, 1, ….

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
        table = _read_text(path)
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


def _read_text(path: Path) -> pd.DataFrame:
    try:
        text = path.read_bytes().decode("utf-8-sig")
        encoding = "utf-8-sig"
    except UnicodeDecodeError:
        text = path.read_bytes().decode("latin-1")  # every byte is a letter in Latin-1, so this cannot fail
        encoding = "latin-1"
    if "\x00" in text[:4096]:
        raise DataError(f"{path} is not a text table", expected="CSV or TSV", fix="Save it as CSV.")
    first = text.split("\n", 1)[0]
    separator = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
    try:
        table = pd.read_csv(
            path, sep=separator, header=None, dtype=str, na_filter=False, encoding=encoding, skip_blank_lines=False
        )
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
