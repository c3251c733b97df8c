"""The layouts of public data sets: each is one module of this folder that defines `LAYOUT`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from neuroage.cohort.labels import has_labels
from neuroage.errors import DataError, UsageError, did_you_mean

if TYPE_CHECKING:
    from neuroage.cohort.cohort import Cohort


@dataclass(frozen=True)
class Layout:
    """How one kind of data set lies on disk.

    Args:
        name: What `--layout` calls it.
        summary: One line for the list of layouts.
        recognises: Whether a path holds this layout; cheap, reads names and at most a header, never raises.
        read: Path to cohort.
        order: Layouts of low order are asked first; the plain table, which recognises any table, comes last.
        needs_age: Whether a data set in which nobody has an age or a label is refused.
    """

    name: str
    summary: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path], Cohort]
    order: int = 10
    needs_age: bool = True


@cache
def layouts() -> dict[str, Layout]:
    """Give every layout by name, in the order in which they are asked.

    A new one needs no registration: put `LAYOUT = Layout(...)` into a new module of this folder.
    """
    import neuroage.cohort as package

    found: list[Layout] = []
    for module in pkgutil.iter_modules(package.__path__):
        layout = getattr(importlib.import_module(f"{package.__name__}.{module.name}"), "LAYOUT", None)
        if isinstance(layout, Layout):
            found.append(layout)
    return {layout.name: layout for layout in sorted(found, key=lambda layout: (layout.order, layout.name))}


def read_source(source: Path, name: str = "auto") -> Cohort:
    """Read a folder or table by the named layout, or by the first that recognises it.

    Raises:
        UsageError: When the source does not exist or the layout has another name.
        DataError: When no layout recognises the source, or nothing usable is left.
    """
    if name != "auto" and name not in layouts():
        raise UsageError(f"no layout {name!r}", expected=did_you_mean(name, ["auto", *layouts()]))
    if not source.exists():
        raise UsageError(f"{source} does not exist", expected="a folder of scans or a table", fix="Check the path.")
    layout = layouts()[name] if name != "auto" else _recognised(source)
    cohort = layout.read(source)
    useless = layout.needs_age and cohort.table["age"].isna().all() and not has_labels(cohort.table)
    if len(cohort) == 0 or useless:
        raise DataError(_why_nothing(source, cohort))
    return cohort


def _recognised(source: Path) -> Layout:
    for layout in layouts().values():
        if layout.recognises(source):
            return layout
    raise DataError(
        f"{source} is no data set that can be read",
        expected="a table with subjects and ages or labels, a folder with one beside its images, or one of: "
        + "; ".join(f"{layout.name} ({layout.summary})" for layout in layouts().values()),
        fix="Write a CSV with the columns subject_id, path, modality, and age or label.",
    )


def _why_nothing(source: Path, cohort: Cohort) -> str:
    if len(cohort) == 0:
        reasons = "; ".join(str(problem) for problem in cohort.problems[:3])
        return f"nothing usable is left of {source} ({len(cohort.problems)} problems, first: {reasons or 'none'})"
    return f"none of the {len(cohort)} rows of {source} has an age or a label"
