"""The verb tune: search for the values of a recipe."""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neuroage.cli.options import (
    COHORT,
    SPLIT,
    AsJson,
    Data,
    Exclude,
    Set,
    SplitFile,
    StoreFolder,
    load_cohort,
    load_recipe,
    load_split,
    modality_of,
    open_store,
)
from neuroage.errors import UsageError

if TYPE_CHECKING:
    from neuroage.runs.recipe_tune import Space
    from neuroage.training.tune import Tuned

STOPPED = 130  # the exit code of everything that was asked to stop and saved its state
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def tune(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="Recipe: a YAML file or a shipped name (`neuroage list configs`).")
    ],
    data: Data = COHORT,
    split: SplitFile = SPLIT,
    trials: Annotated[int, typer.Option("--trials", min=1, help="Trials, over all calls and processes.")] = 30,
    search: Annotated[
        list[str] | None,
        typer.Option(
            "--search",
            metavar="KEY=RANGE",
            help="What is searched: KEY=LOW:HIGH, KEY=LOW:HIGH:log, KEY=LOW:HIGH:STEP or KEY=A,B,C. May be repeated. "
            "(default: the recipe's section `tune`, else rate, weight decay, dropout)",
        ),
    ] = None,
    space: Annotated[
        Path | None, typer.Option("--space", help="YAML file with the search space, instead of a section `tune`.")
    ] = None,
    set_: Set = None,
    exclude: Exclude = None,
    modality: Annotated[str | None, typer.Option(help="Which scans: t1, tof, … (default: the recipe's)")] = None,
    fold: Annotated[
        int | None,
        typer.Option(min=0, help="Use the training subjects of one fold. (default: those in no validation set)"),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Database of the trials. (default: sqlite:///OUT/tune.db)"),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the study in the storage. (default: the name of OUT)")
    ] = None,
    timeout: Annotated[
        str | None, typer.Option(metavar="TIME", help="Begin no trial after this time, such as 90m or 8h.")
    ] = None,
    no_pruning: Annotated[
        bool, typer.Option("--no-pruning", help="Train every trial to its end, however bad it looks.")
    ] = False,
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="Folder of the results. (default: tuning/RECIPE)")
    ] = None,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> None:
    """Search for better values of a recipe on its training subjects; the same command goes on where it stopped."""
    from neuroage.cli.screen import Story, print_json, talk

    recipe = load_recipe(config, modality or modality_of(config), set_)
    space_to_search = _space(config, space, search)
    limit = None if timeout is None else parse_time(timeout)
    cohort = load_cohort(data, exclude)
    made = load_split(split, cohort)
    from neuroage.training.loop import Interrupted
    from neuroage.training.tune import tune as run

    where = out_folder or Path("tuning") / Path(config).stem
    try:
        tuned = run(
            recipe,
            cohort,
            made,
            where,
            space=space_to_search or None,
            n_trials=trials,
            storage=storage,
            name=name,
            fold=fold,
            pruning=not no_pruning,
            timeout_s=limit,
            store=open_store(store),
            observer=Story(quiet=as_json),
        )
    except (Interrupted, KeyboardInterrupt):
        talk.print("[yellow]Stopped[/] and saved. The same command goes on, with the trial that was stopped.")
        raise typer.Exit(STOPPED) from None
    command = _next_command(tuned, data, split, store, modality)
    if as_json:
        print_json(_summary(tuned, command))
        return
    _tell(tuned, command)


def parse_time(text: str) -> float:
    """Read a time: 90m, 8h, 1.5h, 2d, or seconds.

    Raises:
        UsageError: It is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", text.lower())
    if not found or float(found[1]) == 0:
        raise UsageError(f"--timeout {text}", expected="a time such as 90m, 8h or 2d")
    return float(found[1]) * SECONDS[found[2]]


def _space(config: str, path: Path | None, searches: list[str] | None) -> Space:
    from neuroage.runs.recipe_tune import load_space
    from neuroage.runs.shipped import find_recipe

    return load_space(str(path or find_recipe(config)), searches or ())


def _next_command(tuned: Tuned, data: Path, split: Path, store: Path | None, modality: str | None) -> str:
    words: list[object] = ["neuroage", "train", "--config", tuned.folder / "best.yaml"]
    words += ["--modality", modality] if modality else []
    words += ["--data", data] if data != COHORT else []
    words += ["--split", split] if split != SPLIT else []
    words += ["--store", store] if store else []
    return shlex.join(map(str, [*words, "--out", tuned.folder / "run"]))


def _summary(tuned: Tuned, command: str) -> dict[str, object]:
    tuning = tuned.tuning
    return {
        "folder": tuned.folder,
        "metric": tuning.metric,
        "higher_is_better": tuning.higher_is_better,
        "best": {
            "trial": tuned.best_trial,
            "score": tuned.best_score,
            "values": {key: tuning.best(1).iloc[0][key] for key in tuning.keys},
        },
        "start_score": tuned.start_score,
        "n_train": tuning.n_train,
        "n_held_back": tuning.n_held_back,
        "trials": tuning.table["state"].value_counts().to_dict(),
        "importances": tuning.importances,
        "next": command,
    }


def _tell(tuned: Tuned, command: str) -> None:
    from neuroage.analysis.tuning import shown
    from neuroage.cli.screen import make_table, out

    tuning = tuned.tuning
    counts = tuning.table["state"].value_counts().to_dict()
    rows = [
        [str(row["trial"]), shown(row["score"]), *(shown(row[key]) for key in tuning.keys)]
        for row in tuning.best(5).to_dict("records")
    ]
    out.print(make_table("Best trials", ["trial", tuning.metric, *tuning.keys], rows))
    out.print(", ".join(f"{n} {state}" for state, n in counts.items()) + " trials.")
    if math.isfinite(tuned.start_score):
        out.print(f"The recipe as it was: {shown(tuned.start_score)}.")
    if tuning.importances:
        told = sorted(tuning.importances.items(), key=lambda item: -item[1])
        out.print("What mattered: " + ", ".join(f"{key} {100 * share:.0f} %" for key, share in told) + ".")
    out.print(
        f"The scores are of {tuning.n_held_back} subjects held back from the {tuning.n_all} training subjects; "
        "the best of many is better than new subjects will show. For a figure:"
    )
    out.print(f"  {command}")
    out.print(f"Page: {tuned.folder / 'tuning.html'}")
