"""The command line of a BIDS App: `neuroage prepare BIDS OUT participant --participant-label 01 02`.

Source: Gorgolewski 2017, doi:10.1371/journal.pcbi.1005209
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import neuroage
from neuroage.cli.options import leave_out, load_recipe
from neuroage.errors import DataError, UsageError, did_you_mean

if TYPE_CHECKING:
    from neuroage.cohort import Cohort, Scan
    from neuroage.runs.recipe import Recipe

LABELS = ("--participant-label", "--session-label")
OTHER_SPELLINGS = {name: "--workers" for name in ("--n-procs", "--nprocs", "--n-cpus", "--ncpus", "--nthreads")}
MOST_SHOWN = 20


class Level(str, Enum):
    """What is done: each participant alone, or what needs all of them."""

    participant = "participant"
    group = "group"


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"neuroage {neuroage.__version__}")
        raise typer.Exit


BidsFolder = Annotated[Path | None, typer.Argument(metavar="BIDS", help="BIDS App: folder of the data set.")]
DerivativesFolder = Annotated[Path | None, typer.Argument(metavar="OUT", help="BIDS App: folder of the derivatives.")]
LevelOfBids = Annotated[
    Level | None, typer.Argument(help="BIDS App: prepare participants, or sum up what is there for the group.")
]
OutDerivatives = Annotated[
    Path | None, typer.Option("--out", help="Write prepared scans, masks and transforms as BIDS derivatives too.")
]
ParticipantLabels = Annotated[
    list[str] | None,
    typer.Option("--participant-label", metavar="LABEL…", help="BIDS App: these only."),
]
SessionLabels = Annotated[
    list[str] | None,
    typer.Option("--session-label", metavar="LABEL…", help="BIDS App: these only."),
]
WorkFolder = Annotated[
    Path | None,
    typer.Option("--work-dir", "-w", help="Keep prepared volumes and found transforms here, in `prepared`."),
]
SkipValidation = Annotated[
    bool, typer.Option("--skip-bids-validation", help="BIDS App: accepted; only what is needed is ever read.")
]
ShowVersion = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop.")
]


@dataclass(frozen=True)
class Work:
    """Who works, on which share of the scans, and where failures are listed, as `prepare` was told.

    Attributes:
        processes, scheduler, memory_gb: What `choose_workers` decides by.
        shard: Which share, `I/N`; "" is all.
        failures: Table of the scans that failed; None writes none.
    """

    processes: int | None = None
    scheduler: str = ""
    memory_gb: float | None = None
    shard: str = ""
    failures: Path | None = None


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        bids: Folder of the data set.
        out: Folder of the derivatives.
        level: Participant or group.
        participants, sessions: Labels, with or without `sub-` and `ses-`; none means all.
        modality: Which scans.
        config: Recipe; None takes the one for raw scans of the modality.
        overrides: Of the recipe.
        store: Folder that keeps prepared volumes and transforms that were found; None keeps neither.
        max_failed_share: The command fails when more than this share of scans has failed.
        as_json: Print JSON.
        exclude: Table of scans to leave out.
        work: Who works, on which share of the scans, and where failures are listed.
    """

    bids: Path | None = None
    out: Path | None = None
    level: Level | None = None
    participants: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    modality: str = "t1"
    config: str | None = None
    overrides: list[str] | None = None
    store: Path | None = None
    max_failed_share: float = 0.1
    as_json: bool = False
    exclude: Path | None = None
    work: Work = Work()


def spelt_out(arguments: Sequence[str]) -> list[str]:
    """Bring the words after `neuroage prepare` from the spelling of BIDS Apps to that of this command line.

    Several labels may follow one option; options may be spelt with underscores.

    Example:
        >>> spelt_out(["prepare", "in", "out", "participant", "--participant_label", "01", "02"])[4:]
        ['--participant-label', '01', '--participant-label', '02']
    """
    if next((word for word in arguments if not word.startswith("-")), "") != "prepare":
        return list(arguments)
    spelt: list[str] = []
    labels, n_labels = "", 0
    for word in arguments:
        if word.startswith("-"):
            name, equals, value = word.partition("=")
            name = name.replace("_", "-") if name.startswith("--") else name
            name = OTHER_SPELLINGS.get(name, name)
            spelt.append(name + equals + value)
            labels, n_labels = (name if name in LABELS and not equals else ""), 0
            continue
        if labels and n_labels:
            spelt.append(labels)
        n_labels += 1
        spelt.append(word)
    return spelt


def answer_bids_app(request: Request) -> bool:
    """Do what was asked for in the way of a BIDS App; False where it was not, and a cohort is meant.

    Raises:
        UsageError: Folders, level or labels are missing or wrong.
        DataError: No scan is found, or too many failed.
    """
    if request.bids is None:
        if request.participants or request.sessions:
            raise UsageError("Labels belong to `neuroage prepare BIDS OUT participant --participant-label …`")
        return False
    if request.out is None or request.level is None:
        raise UsageError(
            f"`neuroage prepare {request.bids}` lacks the folder to write to or the level",
            expected="neuroage prepare BIDS OUT participant|group, or neuroage prepare --data COHORT",
        )
    if request.level is Level.group:
        _sum_up_group(request.bids, request.out, as_json=request.as_json)
    else:
        recipe = load_recipe(request.config or _recipe_for(request.modality), request.modality, request.overrides)
        scans = _read(request, request.bids, recipe).scans()
        write_out(
            scans,
            recipe,
            request.out,
            request.store,
            request.max_failed_share,
            request.work,
            bids_folder=request.bids,
            as_json=request.as_json,
        )
    return True


def write_out(
    scans: Sequence[Scan],
    recipe: Recipe,
    folder: Path,
    store_folder: Path | None,
    max_failed_share: float,
    work: Work,
    *,
    bids_folder: Path | None = None,
    as_json: bool = False,
) -> None:
    """Prepare scans, write their derivatives and say how it went.

    Raises:
        DataError: More than this share of scans failed.
    """
    from neuroage.cli.scale import choose_workers, take_shard, write_failures
    from neuroage.cli.screen import Story, out, print_json, talk
    from neuroage.imaging.derivative_cohort import write_cohort
    from neuroage.imaging.derivative_names import name_scans
    from neuroage.imaging.preparation import refuse_too_many_failures

    names = name_scans(scans, recipe.modality)
    scans = take_shard(scans, work.shard)
    workers = choose_workers(recipe.prepare, work.processes, work.scheduler, work.memory_gb)
    story = Story(quiet=as_json)
    story.stage(f"Writing {len(scans)} {recipe.modality} scans of {len({scan.subject_id for scan in scans})} subjects")
    done = write_cohort(
        scans,
        recipe.prepare,
        folder,
        names=names,
        store_folder=store_folder,
        bids_folder=bids_folder,
        workers=workers,
        progress=story.preparing,
    )
    write_failures(work.failures, scans, done.failures)
    refuse_too_many_failures(done.failures, len(scans), max_failed_share)
    if as_json:
        sidecars = [one.sidecar for one in done.written.values()]
        counts = {"n_prepared": len(done.written), "n_made": done.n_made}
        print_json({"folder": folder, **counts, "sidecars": sidecars, "failures": done.failures})
        return
    for reason in done.failures.values():
        talk.print(f"• {reason}", markup=False)
    failed = f"; {len(done.failures)} of {len(scans)} scans failed" if done.failures else ""
    out.print(f"{len(done.written)} scans in {folder} ({done.n_made} prepared now){failed}.", markup=False)


def _sum_up_group(bids_folder: Path, folder: Path, *, as_json: bool) -> None:
    """Write what needs all participants: a table of all scans of each kind, and the page that shows them."""
    from neuroage.cli.screen import Story, out, print_json, talk
    from neuroage.imaging.derivative_page import write_group_pages
    from neuroage.imaging.derivative_tables import differing_recipes, write_group_tables

    tables = write_group_tables(folder)
    if not tables:
        fix = f"Prepare them: `neuroage prepare {bids_folder} {folder} participant`."
        raise DataError(f"{folder} holds no prepared scans", fix=fix)
    story = Story(quiet=as_json)
    story.stage(f"Drawing the scans of {folder}")
    pages = write_group_pages(folder, story.preparing)
    notes = [note for table in tables if (note := differing_recipes(table))]
    if as_json:
        print_json({"folder": folder, "tables": tables, "pages": pages, "notes": notes})
        return
    for note in notes:
        talk.print(f"• {note}", markup=False)
    for path in (*tables, *pages):
        out.print(str(path), markup=False)


def _recipe_for(modality: str) -> str:
    from neuroage.cohort.modalities import canonical_modality
    from neuroage.runs.shipped import shipped_recipes

    name = f"raw_{canonical_modality(modality)}"
    if name not in shipped_recipes():
        raise UsageError(f"There is no recipe for raw {modality} scans", fix="Name one with --config.")
    return name


def _read(request: Request, folder: Path, recipe: Recipe) -> Cohort:
    """Read the scans asked for; an age is not needed."""
    from neuroage.cli.screen import talk
    from neuroage.cohort import Cohort, bids

    if not folder.is_dir():
        raise UsageError(f"No BIDS folder {folder}")
    there = sorted(path.name for path in folder.glob("sub-*") if path.is_dir())
    if not there:
        raise UsageError(f"{folder} is no BIDS folder", expected="folders sub-* in it")
    wanted = _known(request.participants, there, "sub-", "participant") or there
    cohort = bids.read(folder, wanted)
    left_out = [problem for problem in cohort.problems if problem.action == "scan left out"]
    for problem in left_out[:MOST_SHOWN] if not request.as_json else ():
        talk.print(f"• {problem}", markup=False)
    cohort = recipe.select(Cohort(cohort.table[cohort.table["path"] != ""], cohort.problems))
    if request.sessions:
        visits = sorted(set(cohort.table["session"]) - {""})
        kept = _known(request.sessions, visits, "ses-", "session")
        cohort = Cohort(cohort.table[cohort.table["session"].isin(kept)], cohort.problems)
    if request.exclude is not None:
        cohort = leave_out(cohort, request.exclude)
    if len(cohort) == 0:
        raise DataError(f"No {recipe.modality} scan of the participants asked for in {folder}")
    without = sorted(set(wanted) - set(cohort.table["subject_id"]))
    if without and not request.as_json:
        talk.print(f"• no {recipe.modality} scan to prepare of {_listed(without)}", markup=False)
    return cohort


def _known(labels: Sequence[str], there: Sequence[str], prefix: str, what: str) -> list[str]:
    """Give labels with their prefix; all must be there."""
    wanted = [label if label.startswith(prefix) else prefix + label for label in labels]
    unknown = [label for label in wanted if label not in there]
    if unknown:
        expected = f"one of {_listed(there)}" if len(there) > MOST_SHOWN else did_you_mean(unknown[0], there)
        raise UsageError(f"No {what} {_listed(unknown)}", expected=expected if there else f"none: there are no {what}s")
    return wanted


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
    return ", ".join(names[:MOST_SHOWN]) + more
