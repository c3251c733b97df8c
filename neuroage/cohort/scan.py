"""One scan: who, when, which modality, where the file is. No pixels."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Scan:
    """One row of a cohort.

    Args:
        scan_id: Unique within its cohort.
        subject_id: The person. Splits are made of persons, never of scans.
        session: The visit, "" where there is only one.
        modality: Canonical spelling: t1, t2, pd, flair, tof, …; "" when unknown.
        path: The image file or DICOM folder; None for a table without images.
        age: Age at this scan in years; NaN when unknown.
        sex: "F", "M" or "" when unknown.
        site: Scanner site, "" when unknown.
        extra: Every further column of the table.
    """

    scan_id: str
    subject_id: str
    session: str = ""
    modality: str = ""
    path: Path | None = None
    age: float = float("nan")
    sex: str = ""
    site: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
