"""Quality control: one page that shows every prepared scan of a cohort, worst first, with a tick to exclude it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from neuroage.cohort import Scan
from neuroage.cohort.image_files import split_volume
from neuroage.errors import DataError, NeuroageError, UsageError
from neuroage.imaging.qc.figures import figures_of
from neuroage.imaging.qc.page import ScanRow, write_page
from neuroage.imaging.qc.pictures import Sheet, encode, trace_mean, trace_template
from neuroage.imaging.steps.companions import companions_of
from neuroage.imaging.store import Store, StoredVolume
from neuroage.runs.recipe import Preparation, Prepare

NOT_PREPARED = "not prepared"
MAX_OVERLAYS = 8  # grids of one preparation differ by parts of a voxel at most; more of them help nobody
FEWEST_FOR_MEAN = 3


@dataclass(frozen=True)
class QcSummary:
    """What a page shows.

    Attributes:
        n_scans: All rows.
        problems: scan_id → why the scan should not be used, or could not be prepared.
        not_prepared: Scans that are not in the store.
        worst: All scan ids, in the page's first order.
    """

    n_scans: int
    problems: dict[str, str] = field(default_factory=dict)
    not_prepared: list[str] = field(default_factory=list)
    worst: list[str] = field(default_factory=list)


def write_qc(
    scans: Sequence[Scan],
    recipe: Preparation,
    store: Store,
    path: str | os.PathLike[str],
    *,
    title: str = "",
    ticked: Mapping[str, str] | None = None,
    failures: Mapping[str, str] | None = None,
    command: str = "neuroage prepare",
    progress: Callable[[int, int], None] | None = None,
) -> QcSummary:
    """Write one HTML page of the prepared volumes of scans: three planes, outlines, figures, ticks to exclude.

    Nothing is prepared for it; scans that are not in the store are listed as such.

    Args:
        scans: Scans of one modality.
        recipe: The `prepare` section they were prepared with.
        store: Where the prepared volumes are.
        path: Of the HTML file; whole or absent.
        title: Of the page.
        ticked: scan_id → reason: scans that are excluded already (`read_exclusions` reads a table of them).
        failures: scan_id → why it could not be prepared, where that is known (`prepare_scans` tells).
        command: What prepares the missing scans.
        progress: Called with (done, all) after each scan.

    Raises:
        UsageError: None of the scans is prepared, and none has failed.

    Example:
        >>> write_qc(cohort.scans(), recipe.prepare, Store(), "qc.html")  # doctest: +SKIP
    """
    sheet = _sheet_of(recipe)
    gathered = _Gathered(recipe, sheet)
    for done, scan in enumerate(scans, start=1):
        gathered.take(scan, store, (failures or {}).get(scan.scan_id, ""))
        if progress:
            progress(done, len(scans))
    missing = [row.scan_id for row in gathered.rows if not row.prepared]
    if len(missing) == len(scans):
        raise UsageError(f"None of the {len(scans)} scans is prepared", fix=f"Prepare them with `{command}`.")
    overlays, notes = gathered.overlays()
    gathered.add_likeness()
    if missing:
        notes.append(f"Not prepared: {len(missing)} of {len(scans)} scans. `{command}` prepares them.")
    worst = write_page(
        gathered.rows,
        sheet,
        path,
        title=title or f"{len(scans)} scans",
        overlays=overlays,
        ticked=ticked,
        notes=notes,
    )
    problems = {row.scan_id: row.problem for row in gathered.rows if row.problem}
    return QcSummary(len(scans), problems, missing, worst)


def _sheet_of(recipe: Preparation) -> Sheet:
    if isinstance(recipe, Prepare):
        return Sheet(recipe.spacing, recipe.size, flipped=recipe.orientation == "LAS")
    return Sheet((1.0, 1.0), tuple(recipe.size))


class _Gathered:
    """The rows of a page while they are gathered, and what the pictures have in common."""

    def __init__(self, recipe: Preparation, sheet: Sheet) -> None:
        self.recipe, self.sheet = recipe, sheet
        self.rows: list[ScanRow] = []
        self.thumbnails: dict[int, np.ndarray] = {}
        self.sum: np.ndarray | None = None
        self.grids: dict[tuple[float, ...], np.ndarray] = {}
        self.grid_of: dict[int, tuple[float, ...]] = {}
        register = getattr(recipe, "registration", None)
        self.registered_to = register.to if register is not None else ""

    def take(self, scan: Scan, store: Store, failure: str) -> None:
        row = ScanRow(scan.scan_id)
        place = len(self.rows)
        self.rows.append(row)
        try:
            stored = self._find(scan, store)
            if stored is None:
                row.problem, row.prepared = failure, bool(failure)
                return
            self._draw(stored, place)
        except (NeuroageError, OSError, ValueError) as error:
            row.problem = str(error)
        finally:
            row.problem = _without_paths(row.problem, scan.path)

    def _find(self, scan: Scan, store: Store) -> StoredVolume | None:
        if scan.path is None:
            raise DataError("the cohort names no file for it")
        if not split_volume(scan.path)[0].exists():
            raise DataError("its file is gone")
        return store.get(scan.path, self.recipe, companions_of(scan, self.recipe))

    def _draw(self, stored: StoredVolume, place: int) -> None:
        row, record = self.rows[place], stored.record
        row.problem = stored.problem or str(record.get("problem") or "")  # the second where it is kept in spite of it
        row.figures = figures_of(record)
        picture = self.sheet.draw(stored.map())
        row.picture = encode(picture)
        self.thumbnails[place] = picture[::2, ::2].copy()  # a view would keep the whole picture
        if not row.problem:
            self.sum = picture.astype(np.float64) if self.sum is None else self.sum + picture
        if self.registered_to == "mni152" or (not self.registered_to and record.get("centred_on") == "template"):
            affine = np.asarray(record["affine"])
            key = tuple(np.round(affine[:3].ravel(), 1).tolist())
            self.grids.setdefault(key, affine)
            self.grid_of[place] = key

    def overlays(self) -> tuple[list[tuple[str, str]], list[str]]:
        """Trace the outlines, of the template where scans lie on it, else of the cohort's mean; and notes on them."""
        found, notes, number = list[tuple[str, str]](), list[str](), dict[tuple[float, ...], int]()
        try:
            for key in list(self.grids)[:MAX_OVERLAYS]:
                number[key] = len(found)
                found.append(("MNI152 template", trace_template(self.sheet, self.grids[key])))
        except UsageError as error:
            number.clear()
            notes.append(f"No outlines of the template: {error}")
        if any(self.grid_of.get(place) not in number for place in self.thumbnails) and (code := self._mean_outline()):
            found.append(("outline of the cohort's mean", code))
        mean = len(found) - 1 if len(found) > len(number) else -1
        for place in self.thumbnails:
            self.rows[place].overlay = number.get(self.grid_of.get(place, ()), mean)
        return found, notes

    def _mean_outline(self) -> str:
        fine = sum(not self.rows[place].problem for place in self.thumbnails)
        return trace_mean(self.sheet, self.sum) if self.sum is not None and fine >= FEWEST_FOR_MEAN else ""

    def add_likeness(self) -> None:
        """Correlate each picture with the mean of those without a problem."""
        if self.sum is None or len(self.thumbnails) < FEWEST_FOR_MEAN:
            return
        mean = self.sum[::2, ::2].ravel()
        mean = (mean - mean.mean()) / (np.linalg.norm(mean - mean.mean()) or 1.0)
        for place, small in self.thumbnails.items():
            values = small.ravel().astype(np.float64)
            values -= values.mean()
            likeness = float(mean @ values / (np.linalg.norm(values) or 1.0))
            self.rows[place].figures = {"likeness": likeness, **self.rows[place].figures}


def _without_paths(text: str, path: Path | None) -> str:
    """Set a reason in one line without the paths in it: folders and files may carry names, and pages travel."""
    for known in (str(path), path.name) if path is not None else ():
        text = text.replace(known, "…")
    return " ".join(re.sub(r"[^\s'\"]*[/\\][^\s'\";:,]+", "…", text).split()).removeprefix("…: ")
