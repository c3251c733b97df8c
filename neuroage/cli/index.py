"""The verb that finds scans and what is known of them: index."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuroage.cli.options import COHORT, AsJson, Overwrite, next_split
from neuroage.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from neuroage.cohort import Cohort


class Uncertain(str, Enum):
    """What a label of −1 means."""

    missing = "missing"
    positive = "positive"
    negative = "negative"


MOST_CLASSES = 20  # shown on the terminal; --json gives all
MOST_PROBLEMS = 20
MOST_CHOSEN = 20
CHOICE = ("scan_id", "modality", "path", "series", "reason")  # where a layout chose one series of several


def index(
    source: Annotated[Path, typer.Argument(help="Folder of scans, or a table.")],
    out_file: Annotated[Path, typer.Option("--out", help="Where the cohort table is written.")] = COHORT,
    layout: Annotated[
        str, typer.Option(help="How the data lie (`neuroage list layouts`); auto recognises it.")
    ] = "auto",
    pattern: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX",
            help="Class folders: named groups take further columns out of each path below the folder, such as "
            "(?P<subject_id>…).",
        ),
    ] = None,
    label: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Table: the column with one class per row.")
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(metavar="A,B,…", help="Table: the columns with one label each (1, 0, blank). May be repeated."),
    ] = None,
    uncertain: Annotated[
        Uncertain | None, typer.Option(help="Table: how a label of −1 is read.  (default: missing)")
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Find scans, and ages or labels, and write them as one table: who, when, which modality, where, what."""
    from neuroage.cli.screen import print_json, talk

    if not source.exists():
        raise UsageError(f"No such folder or table: {source}")
    named = [name.strip() for part in labels or [] for name in part.split(",") if name.strip()]
    cohort = _read(source, layout, pattern, label, named, uncertain)
    if out_file.exists() and not overwrite and not _holds(out_file, cohort):
        raise UsageError(
            f"{out_file} exists and holds other scans",
            fix="Choose another name with --out, or replace it with --overwrite.",
        )
    cohort.to_csv(out_file)
    subjects, found = cohort.subjects(), labels_of(cohort)
    ages, kinds = subjects["age"].dropna(), _modalities(cohort.table)
    if as_json:
        print_json(
            {
                "cohort": out_file,
                "n_scans": len(cohort),
                "n_subjects": len(subjects),
                "n_subjects_with_age": len(ages),
                "modalities": kinds,
                "age_years": {"min": ages.min(), "mean": ages.mean(), "max": ages.max()},
                "labels": found,
                "chosen": _chosen(cohort.table),
                "digest": cohort.digest,
                "problems": [str(problem) for problem in cohort.problems],
            }
        )
        return
    _tell(subjects, len(cohort), kinds, found)
    _tell_chosen(_chosen(cohort.table))
    for problem in cohort.problems[:MOST_PROBLEMS]:
        talk.print(f"• {problem}", markup=False)
    if len(cohort.problems) > MOST_PROBLEMS:
        talk.print(f"  … and {len(cohort.problems) - MOST_PROBLEMS} more (--json lists all)")
    for names in _alike([row["label"] for row in found]):
        talk.print(
            f"• {', '.join(map(repr, names))} differ in case or blanks only, and count as {len(names)}", markup=False
        )
    if found and (cohort.table["subject_id"] == cohort.table["scan_id"]).all():
        talk.print(
            "[yellow]•[/] every image counts as a person of its own; where people have several, say whose they are "
            "(subject_id), or a test flatters"
        )
    talk.print(f"Wrote {out_file}. Next: `{next_split(cohort, out_file)}`.")


def _read(
    source: Path, layout: str, pattern: str | None, label: str | None, labels: list[str], uncertain: Uncertain | None
) -> Cohort:
    from neuroage.cohort import Cohort

    of_table = {"--label": label, "--labels": labels, "--uncertain": uncertain}
    given = next((name for name, value in of_table.items() if value), None)
    if pattern is not None:
        if given or source.is_file() or layout not in ("auto", "class_folders"):
            other = given or (f"{source}, a table" if source.is_file() else f"--layout {layout}")
            raise UsageError(f"--pattern reads class folders, which {other} is not about", fix="Drop one of the two.")
        return Cohort.from_folders(source, pattern)
    if given is None:
        return Cohort.read(source, layout=layout)
    if source.is_dir() or layout not in ("auto", "plain_table"):
        what = f"{source} is a folder" if source.is_dir() else f"--layout {layout} has columns of its own"
        raise UsageError(f"{given} is about a table, and {what}", fix="Name the table itself.")
    return Cohort.from_csv(source, label=label, labels=labels or None, uncertain=(uncertain or Uncertain.missing).value)


def _holds(path: Path, cohort: Cohort) -> bool:
    from neuroage.cohort import Cohort
    from neuroage.errors import NeuroageError

    try:
        return Cohort.from_csv(path).digest == cohort.digest
    except NeuroageError:
        return False


def _modalities(table: pd.DataFrame) -> dict[str, int]:
    """Count scans by modality; those that name none by whether there is an image at all."""
    unnamed = table["path"].map(lambda path: "of no named modality" if path else "without an image")
    named = table["modality"].where(table["modality"] != "", unnamed)
    return {str(name): int(n) for name, n in named.value_counts().items()}


def labels_of(cohort: Cohort) -> list[dict[str, Any]]:
    """Count what is known of labels.

    Returns:
        One row for each class of `label`, the most frequent first, and for each column `label_<Name>`: `label`, `kind`
        ("class" or "label"), `positive` scans that have it, and `known` scans of which it is known.
    """
    table = cohort.table
    rows: list[dict[str, Any]] = []
    if "label" in table.columns:
        counts = table["label"][table["label"] != ""].value_counts()
        known = int(counts.sum())
        rows += [
            {"label": str(name), "kind": "class", "positive": int(n), "known": known} for name, n in counts.items()
        ]
    for name in cohort.labels:
        column = table[f"label_{name}"]
        positive, known = int((column == 1).sum()), int(column.notna().sum())
        rows.append({"label": name, "kind": "label", "positive": positive, "known": known})
    return rows


def _chosen(table: pd.DataFrame) -> list[dict[str, str]]:
    """Give which series was chosen for each scan, and why; nothing where a data set leaves no choice."""
    if not set(CHOICE) <= set(table.columns):
        return []
    return [dict(zip(CHOICE, map(str, row), strict=True)) for row in table[list(CHOICE)].itertuples(index=False)]


def _tell_chosen(chosen: list[dict[str, str]]) -> None:
    from rich.markup import escape

    from neuroage.cli.screen import make_table, out

    if chosen:
        cells = [[escape(row[name]) for name in ("scan_id", "series", "reason")] for row in chosen[:MOST_CHOSEN]]
        out.print(make_table("Chosen", ["scan", "series", "because"], cells, numbers_from=3))
    if len(chosen) > MOST_CHOSEN:
        out.print(f"… and {len(chosen) - MOST_CHOSEN} more (the column reason of the table has all)")


def _alike(labels: list[str]) -> list[list[str]]:
    """Group names of labels that a typing error may have made out of one."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(labels):
        groups.setdefault("".join(name.casefold().split()), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _tell(subjects: pd.DataFrame, n_scans: int, kinds: dict[str, int], found: list[dict[str, Any]]) -> None:
    from neuroage.cli.screen import age_histogram, out

    ages = subjects["age"].dropna()
    said = ", ".join(f"{n} {name}" for name, n in kinds.items())
    out.print(f"[bold]{len(subjects)} subjects, {n_scans} scans[/] ({said})")
    if len(ages):
        out.print(
            f"Ages {ages.min():.1f} to {ages.max():.1f} years, mean {ages.mean():.1f}; "
            f"{len(subjects) - len(ages)} subjects without age"
        )
        out.print(age_histogram(ages.tolist()))
    classes = [row for row in found if row["kind"] == "class"]
    named = [row for row in found if row["kind"] == "label"]
    if classes:
        _tell_labels(f"{len(classes)} classes", classes, n_scans)
    if named:
        _tell_labels(f"{len(named)} labels", named, n_scans)


def _tell_labels(title: str, rows: list[dict[str, Any]], n_scans: int) -> None:
    from rich.markup import escape

    from neuroage.cli.screen import bar, make_table, out

    most = max(row["positive"] for row in rows)
    cells = [
        [escape(row["label"]), f"{row['positive']:,}", f"{row['known']:,}", bar(row["positive"], most, 20)]
        for row in rows[:MOST_CLASSES]
    ]
    unknown = n_scans - rows[0]["known"]
    said = f"{title}; {unknown:,} scans without one" if unknown and rows[0]["kind"] == "class" else title
    out.print(make_table(said, ["", "scans", "known", ""], cells))
    if len(rows) > MOST_CLASSES:
        rest = rows[MOST_CLASSES:]
        fewest = min(rest, key=lambda row: int(row["positive"]))
        out.print(
            f"… and {len(rest)} more; the rarest is {escape(fewest['label'])} with {fewest['positive']:,} "
            "(--json lists all)"
        )
