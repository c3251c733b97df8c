"""The verb that tests what was trained here on data from there: cross."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuroage.cli.options import AsJson, StoreFolder, load_cohort, open_store
from neuroage.errors import UsageError


def cross(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]RUN…", help="Folders of runs about labels; named by their data, else as they are."
        ),
    ],
    data: Annotated[
        list[str],
        typer.Option(
            "--data", metavar="[NAME=]COHORT", help="Cohort of each name: a table or a folder. May be repeated."
        ),
    ],
    out_folder: Annotated[Path, typer.Option("--out", help="Folder of page, heat map and tables.")] = Path("cross"),
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> None:
    """Trained here, tested there: every run on every cohort, label by label; a run is at home where names are equal."""
    from neuroage.cli.screen import Story, make_table, out, print_json, shown, talk
    from neuroage.runs.run import Run

    # A shell writes `--data a=a.csv b=b.csv`, too: a run is a folder, so a file among the runs is a cohort.
    tables = [text for text in models if _read(text)[1].is_file()]
    runs = {name: Run.open(path) for name, path in _named([m for m in models if m not in tables], "RUN").items()}
    cohorts = {name: load_cohort(path) for name, path in _named([*data, *tables], "COHORT").items()}
    if out_folder.is_file():
        raise UsageError(f"--out {out_folder} is a file", expected="a folder")
    homeless = [name for name in runs if name not in cohorts]
    if homeless and not as_json:
        talk.print(
            f"[yellow]•[/] no --data is called {', '.join(homeless)}: without a figure at home no drop can be given."
        )
    from neuroage.training.across import cross_domain

    found = cross_domain(runs, cohorts, out=out_folder, store=open_store(store), observer=Story(quiet=as_json))
    if as_json:
        print_json({"folder": out_folder, **found.to_dict()})
        return
    out.print(f"[bold]{found.verdict}[/]")
    matrix = found.matrix().to_numpy(dtype=float)
    rows = [[name, *map(shown, row)] for name, row in zip(found.trains, matrix.tolist(), strict=True)]
    out.print(make_table("Mean AUROC, trained on (down) and tested on (across)", ["", *found.tests], rows))
    for pair, n in found.meta.get("refused_by_contract", {}).items():
        talk.print(f"[yellow]•[/] {pair}: the run's input contract would have refused {n} scans.")
    out.print(f"Page: {out_folder / 'cross_domain.html'}")


def _named(given: list[str], what: str) -> dict[str, Path]:
    """Read `NAME=PATH`, or paths that are named by their own last part.

    Raises:
        UsageError: There is none, or two have one name.
    """
    if not given:
        raise UsageError(f"No {what} is named", expected=f"[NAME=]{what} once or more")
    found: dict[str, Path] = {}
    for text in given:
        name, path = _read(text)
        key = name or (path.resolve().stem if what == "COHORT" else path.resolve().name)
        if key in found:
            raise UsageError(f"Two are called {key!r}: {found[key]} and {path}", fix=f"Name them: NAME={what}.")
        found[key] = path
    return found


def _read(text: str) -> tuple[str, Path]:
    """Give name ("" for none) and path."""
    name, sign, rest = text.partition("=")
    named = bool(sign and name and rest) and "/" not in name and not Path(text).exists()
    return (name, Path(rest)) if named else ("", Path(text))
