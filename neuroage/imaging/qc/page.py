"""One HTML file that shows a whole cohort: pictures, figures and ticks; it needs nothing else, and works from a folder.

The pictures stand in the page as lines of text, and only the rows on the screen are drawn, so that 5,000 scans scroll
as smoothly as fifty.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from neuroage.files import digest_text, finite, write_text
from neuroage.imaging.qc.figures import FURTHEST, KNOWN, N_JUDGED, make_columns, oddness
from neuroage.imaging.qc.pictures import Sheet

REASONS = ("blurred", "motion", "artefact", "misregistered", "cut off", "wrong contrast", "pathology", "other")
ROOM = Path(__file__).parent
DIGITS = 4  # significant ones of a figure; the page rounds further
RULE = (
    "Worst first: scans with a problem, then the others by oddness, then those not prepared. A figure's z is its "
    "distance to the cohort's median over 1.4826 times the median absolute deviation, and at most "
    f"{FURTHEST:g}. Oddness is the mean of a scan's {N_JUDGED} largest |z|; of likeness, "
    "coverage and the like only low values count, and how a file was written (voxel size, field of view, units) does "
    "not count. "
    "Shaded figures lie more than 3 from the median. Odd is not wrong: a rare brain is odd, too. Look before you tick."
)


@dataclass
class ScanRow:
    """One scan on the page.

    Attributes:
        scan_id: All that the page says about the person.
        picture: WebP in base64; "" where there is none.
        figures: Numbers and words by name, as `figures_of` gives them.
        problem: Why it should not be used, or could not be prepared; "" where nothing is known.
        prepared: Whether there is a prepared volume, or a problem instead of one.
        overlay: Which of the page's outlines belongs to it; -1 for none.
    """

    scan_id: str
    picture: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    prepared: bool = True
    overlay: int = -1


def write_page(
    rows: Sequence[ScanRow],
    sheet: Sheet,
    path: str | os.PathLike[str],
    *,
    title: str,
    overlays: Sequence[tuple[str, str]] = (),
    ticked: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> list[str]:
    """Write the page, whole or not at all.

    Args:
        rows: One each scan, in any order.
        sheet: Size of all pictures.
        path: Of the HTML file.
        title: What is shown, such as "416 t1 scans".
        overlays: Outlines, as (name, SVG in base64).
        ticked: scan_id → reason of the scans that are excluded already; ids that are not on the page are kept.
        notes: Sentences above the table; text between backticks is shown as a command.

    Returns:
        The scan ids, worst first.
    """
    columns = make_columns([row.figures for row in rows])
    odd = oddness(columns) if columns else np.full(len(rows), np.nan)
    given = [[str(scan_id), str(reason)] for scan_id, reason in (ticked or {}).items()]
    about = {
        "id": digest_text(title + "|" + "|".join(sorted(row.scan_id for row in rows)))[:16],
        "given": given,
        "givenDigest": digest_text(json.dumps(sorted(given)))[:16],
        "reasons": REASONS,
        "width": sheet.width_mm,
        "height": sheet.height_mm,
        "overlays": [name for name, _ in overlays],
        "oddness": KNOWN["oddness"][2],
        "columns": [column.to_dict() for column in columns],
        "scans": [
            {"id": row.scan_id, "problem": row.problem, "prepared": row.prepared, "overlay": row.overlay,
             "odd": _short(odd[place])}
            for place, row in enumerate(rows)
        ],
        "values": [[_short(value) for value in column.values] for column in columns],
        "z": [[_short(value, 2) for value in column.z] for column in columns],
    }  # fmt: skip
    variables = "".join(
        f"--overlay-{number}:url(data:image/svg+xml;base64,{code});" for number, (_, code) in enumerate(overlays)
    )
    parts = {
        "TITLE": escape(title),
        "STYLE": _room("page.css") + f"\n:root {{ {variables} }}",
        "NOTES": "".join(f'<p class="note">{_as_html(note)}</p>' for note in notes),
        "RULE": escape(RULE),
        "MADE": datetime.now().strftime("%Y-%m-%d %H:%M"),
        "FIGURES": json.dumps(finite(about), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
        "PICTURES": "\n".join(row.picture for row in rows),
        "SCRIPT": _room("page.js"),
    }
    write_text(path, re.sub(r"\{\{([A-Z]+)\}\}", lambda found: parts[found[1]], _room("page.html")))
    return [rows[place].scan_id for place in worst_first(rows, odd)]


def worst_first(rows: Sequence[ScanRow], odd: np.ndarray) -> list[int]:
    """Order scans as the page does at first: problems, then by oddness, then those not prepared."""

    def key(place: int) -> tuple[int, float, int]:
        row, value = rows[place], float(odd[place])
        rank = 0 if row.problem else 1 if row.prepared else 2
        return rank, -value if value == value else 0.0, place

    return sorted(range(len(rows)), key=key)


def _room(name: str) -> str:
    return (ROOM / name).read_text(encoding="utf-8")


def _as_html(note: str) -> str:
    parts = note.split("`")
    return "".join(f"<code>{escape(p)}</code>" if place % 2 else escape(p) for place, p in enumerate(parts))


def _short(value: Any, digits: int = DIGITS) -> Any:
    """Round a number to what the page can show; words and what is missing stay."""
    if isinstance(value, str) or value is None:
        return value
    return float(f"{float(value):.{digits}g}")
