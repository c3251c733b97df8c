"""Paths in tables: absolute in memory, relative to the table in a file."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from neuroage.cohort.standard_table import map_distinct

REFERENCE_COLUMN, MASK_COLUMN = "reference_path", "mask_path"  # files that a scan is prepared with


def paths_in(table: pd.DataFrame) -> list[str]:
    """Name the columns of a table that hold paths of images."""
    return [name for name in ("path", REFERENCE_COLUMN, MASK_COLUMN) if name in table.columns]


def absolute_paths(column: pd.Series, folder: Path) -> pd.Series:
    """Make the paths of a table absolute; they are relative to the folder the table lies in."""
    root = os.path.abspath(folder)

    def absolute(text: str) -> str:
        return os.path.normpath(os.path.join(root, text)) if isinstance(text, str) and text else ""

    return map_distinct(column, absolute)


def relative_paths(column: pd.Series, folder: Path) -> pd.Series:
    """Make absolute paths relative to the folder of a table, with forward slashes, which every system reads."""
    root = os.path.abspath(folder)
    folders: dict[str, str] = {}

    def relative(text: str) -> str:
        if not isinstance(text, str) or not text:
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
