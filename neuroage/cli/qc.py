"""The verb that shows a cohort: qc."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from neuroage.cli.options import (
    COHORT,
    AsJson,
    Config,
    Data,
    RegisterTo,
    Set,
    StoreFolder,
    load_cohort,
    load_recipe,
    open_store,
    registering,
)
from neuroage.errors import UsageError

N_NAMED = 5  # scans named on the terminal


def qc(
    data: Data = COHORT,
    modality: Annotated[str, typer.Option(help="Which scans.")] = "t1",
    config: Config = None,
    set_: Set = None,
    register_to: RegisterTo = None,
    store: StoreFolder = None,
    exclude: Annotated[
        Path | None,
        typer.Option("--exclude", metavar="TABLE", help="Tick the scans of this table, such as one saved before."),
    ] = None,
    failures: Annotated[
        Path | None,
        typer.Option(
            metavar="TABLE", help="Why scans could not be prepared: what `neuroage prepare --failures` wrote."
        ),
    ] = None,
    out_file: Annotated[Path, typer.Option("--out", help="Where the page is written.")] = Path("qc.html"),
    as_json: AsJson = False,
) -> None:
    """Show every prepared scan on one page: three planes, outlines, figures, worst first, a tick to exclude."""
    from neuroage.cli.screen import Story, out, print_json, talk
    from neuroage.cohort.exclusions import read_exclusions
    from neuroage.imaging.qc import write_qc

    if out_file.suffix.lower() not in (".html", ".htm") or out_file.is_dir():
        raise UsageError(f"--out {out_file}", expected="a file name that ends in .html")
    ticked = {} if exclude is None else read_exclusions(exclude)
    recipe = load_recipe(config, modality, registering(set_, register_to))
    cohort = recipe.select(load_cohort(data))
    story = Story(quiet=as_json)
    story.stage(f"Drawing {len(cohort)} {recipe.modality} scans")
    made = write_qc(
        cohort.scans(),
        recipe.prepare,
        open_store(store),
        out_file,
        title=f"{len(cohort):,} {recipe.modality} scans",
        ticked=ticked,
        failures={} if failures is None else read_exclusions(failures),  # of the same form
        command=prepare_command(data, modality, config, set_, store, register_to),
        progress=story.preparing,
    )
    if as_json:
        print_json(
            {
                "page": out_file,
                "n_scans": made.n_scans,
                "problems": made.problems,
                "not_prepared": made.not_prepared,
                "worst_first": made.worst,
            }
        )
        return
    if made.not_prepared:
        again = prepare_command(data, modality, config, set_, store, register_to)
        talk.print(f"• {len(made.not_prepared)} scans are not prepared: `{again}`", markup=False)
    out.print(
        f"Page: {out_file} ({out_file.stat().st_size / 1e6:.1f} MB): {made.n_scans} scans, "
        f"{len(made.problems)} with a problem; first to look at: {', '.join(made.worst[:N_NAMED])}."
    )
    talk.print("Open it, tick what to leave out, save, and give the table to any command as --exclude exclude.csv.")


def prepare_command(
    data: Path,
    modality: str,
    config: str | None,
    set_: list[str] | None,
    store: Path | None,
    register_to: str | None = None,
) -> str:
    """Give the command that prepares what a page of the same options shows."""
    words = ["neuroage", "prepare", *(["--data", str(data)] if data != COHORT else [])]
    words += ["--modality", modality] if modality != "t1" else []
    words += ["--config", config] if config else []
    words += [word for value in set_ or [] for word in ("--set", value)]
    words += ["--register-to", register_to] if register_to else []
    words += ["--store", str(store)] if store else []
    return shlex.join(words)
