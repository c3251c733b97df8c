"""Options of `prepare` that say who does the work, which share of it, and where failures are listed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neuroage.cli.options import check_table_path

if TYPE_CHECKING:
    from neuroage.cohort import Scan
    from neuroage.imaging.workers import Workers
    from neuroage.runs.recipe import Preparation

LONG_STEPS = ("registration", "bias_field", "brain", "vessels")  # each takes seconds a scan

Processes = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="Processes that prepare scans at once.  (default: one for each core, or as many as memory allows; threads "
        "where scans are only resampled)",
    ),
]
Scheduler = Annotated[
    str,
    typer.Option(
        metavar="ADDRESS",
        help="Let a Dask cluster do the work: tcp://host:8786, or the .json file that its scheduler wrote.",
    ),
]
MemoryGb = Annotated[
    float | None,
    typer.Option("--memory-gb", help="Most memory of one process, in GB; a scan that wants more fails alone."),
]
ShardText = Annotated[
    str, typer.Option("--shard", metavar="I/N", help="Prepare the I-th of N shares only; `auto` in a SLURM array.")
]
FailureTable = Annotated[
    Path | None, typer.Option("--failures", help="Write a table of the scans that failed, with reasons, to this .csv.")
]


def choose_workers(recipe: Preparation, processes: int | None, scheduler: str, memory_gb: float | None) -> Workers:
    """Decide who prepares: what was asked for, else processes for the long steps of raw scans, else threads."""
    from neuroage.imaging.workers import Workers

    is_long = any(getattr(recipe, name, None) is not None for name in LONG_STEPS)
    asked = processes is not None or memory_gb is not None
    return Workers(processes, asked or (is_long and not scheduler), scheduler, memory_gb)


def check_failures(failures: Path | None, data: Path) -> None:
    """Make sure, before any work is done, that the table of failures takes the place of no input.

    Raises:
        UsageError: It would, or is no CSV file.
    """
    if failures is not None:
        check_table_path(failures, [data], "--failures")


def take_shard(scans: Sequence[Scan], shard: str) -> list[Scan]:
    """Give the share of the scans that `--shard` names; all without it."""
    from neuroage.imaging.shards import parse_shard

    return parse_shard(shard).of(scans) if shard else list(scans)


def write_failures(path: Path | None, scans: Sequence[Scan], failures: Mapping[str, str]) -> None:
    """Write the failed scans with their reasons; an empty table says that none failed."""
    import pandas as pd

    from neuroage.files import atomic_path

    if path is None:
        return
    rows = [(scan.scan_id, str(scan.path or ""), failures[scan.scan_id]) for scan in scans if scan.scan_id in failures]
    with atomic_path(path) as temporary:
        pd.DataFrame(rows, columns=["scan_id", "path", "reason"]).to_csv(temporary, index=False)
