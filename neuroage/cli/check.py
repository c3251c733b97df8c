"""Verbs about trust: check scans against a run, and a run against its own numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuroage.cli.learn import RunFolder
from neuroage.cli.options import AsJson, StoreFolder, check_table_path, open_store

COLOURS = {"ok": "green", "warn": "yellow", "refuse": "red"}


def check(
    run: RunFolder,
    inputs: Annotated[list[Path], typer.Argument(help="Scans, folders, or cohort tables.")],
    out_file: Annotated[Path | None, typer.Option("--out", help="Also write the verdicts as CSV.")] = None,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> None:
    """Compare scans with those that a run was trained on: ok, warn or refuse, with reasons and what to do."""
    from rich.markup import escape

    from neuroage.cli.screen import Story, out, print_json, talk
    from neuroage.files import atomic_path
    from neuroage.runs.run import Run
    from neuroage.training.check import check as inspect
    from neuroage.training.inputs import gather_scans

    if out_file:
        check_table_path(out_file, inputs)
    opened = Run.open(run)
    cohort = gather_scans(
        inputs, opened.recipe.modality, kind=opened.recipe.prepare.kind, reference=opened.recipe.reference
    )
    table, measures = inspect(opened, cohort, store=open_store(store), observer=Story(quiet=as_json))
    if out_file:
        with atomic_path(out_file) as temporary:
            table.to_csv(temporary, index=False)
    if as_json:
        print_json({"scans": table.to_dict("records"), "measures": measures})
        return
    for row in table.to_dict("records"):
        verdict = str(row["verdict"])
        out.print(f"[{COLOURS[verdict]}]{verdict:6}[/] {escape(str(row['scan_id']))}")
        for reason in filter(None, str(row["concerns"]).split("; ")):
            out.print(f"         {escape(reason)}")
    counts = table["verdict"].value_counts()
    talk.print(", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in COLOURS))
    if out_file:
        talk.print(f"Wrote {out_file}.")


def selftest(run: RunFolder, as_json: AsJson = False) -> None:
    """Prove that this installation gives a run's own numbers, on a phantom whose prediction is stored in the run."""
    from neuroage.cli.screen import make_table, out, print_json
    from neuroage.errors import RefusedError
    from neuroage.runs.run import Run
    from neuroage.training.selftest import STAGES
    from neuroage.training.selftest import selftest as prove

    results = prove(Run.open(run))
    if as_json:
        print_json({"passed": all(result.passed for result in results), "members": [vars(r) for r in results]})
    else:
        rows = [
            [result.member or "run", *(f"{result.differences[stage]:.3g}" for stage in STAGES), result.words]
            for result in results
        ]
        out.print(make_table("Differences from what was stored", ["", *STAGES, ""], rows))
    failed = [result for result in results if not result.passed]
    if failed:
        raise RefusedError(
            f"{len(failed)} of {len(results)} self-tests failed: {failed[0].words.rstrip('.')}",
            fix="Do not trust predictions made here until it passes.",
        )
