"""The entry point: `neuroage VERB`. Errors become one sentence and an exit code; `--debug` shows the traceback."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

import neuroage
from neuroage.cli import (
    bids_app,
    calibrate,
    check,
    contrast,
    cross,
    demo,
    describe,
    explain,
    index,
    learn,
    listing,
    phantom,
    pixels,
    plan,
    qc,
    split,
    tune,
)
from neuroage.errors import NeuroageError, UsageError
from neuroage.files import is_main_process

STOPPED = 130  # the exit code of a training that was asked to stop and saved its state
EPILOG = (
    "Exit codes: 0 done · 1 unexpected error · 2 wrong usage · 3 wrong data · 4 infeasible · "
    "5 refused, would mislead · 130 stopped and saved."
)

app = typer.Typer(
    name="neuroage",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    epilog=EPILOG,
    help="From a table of scans, with ages or labels, to a model one can trust.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"neuroage {neuroage.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Hold the options of every command."""


for verb in (
    index.index,
    split.split,
    pixels.prepare,
    pixels.preview,
    qc.qc,
    plan.plan,
    describe.describe,
    learn.train,
    check.check,
    learn.predict,
    check.selftest,
    learn.evaluate,
    explain.explain,
    calibrate.calibrate,
    contrast.runs,
    contrast.compare,
    cross.cross,
    phantom.phantom,
    tune.tune,
    demo.demo,
):
    app.command()(verb)
app.command(name="list")(listing.list_things)
app.command(name="lr-range")(describe.lr_range)


def main() -> None:
    """Run the command line."""
    arguments = _with_resume_value(sys.argv[1:])
    debug = "--debug" in arguments
    arguments = ["--debug"] * debug + [word for word in arguments if word != "--debug"]
    try:
        app(args=arguments, prog_name="neuroage", standalone_mode=True)
    except NeuroageError as error:
        if debug:
            raise
        _say(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        from neuroage.cli.screen import talk

        talk.print("[yellow]Stopped.[/] What is finished is kept; the same command goes on from there.")
        sys.exit(STOPPED)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        if type(error).__name__ == "Interrupted":
            from neuroage.cli.screen import talk

            talk.print(f"[yellow]Stopped[/] and saved: {error}. Continue with the same command and --resume.")
            sys.exit(STOPPED)
        if debug:
            raise
        if isinstance(error, OSError) and error.filename and error.strerror:
            fix = "Check that the path exists, may be written to and has room."
            _say(UsageError(f"{error.filename}: {error.strerror}", fix=fix))
            sys.exit(UsageError.exit_code)
        from neuroage.cli.screen import talk

        _say_elsewhere(error)
        talk.print(
            f"[red]Unexpected error[/] ({type(error).__name__}): {error}\n"
            "Run again with --debug for the traceback, and please report it.",
            markup=True,
        )
        sys.exit(1)


def _with_resume_value(arguments: list[str]) -> list[str]:
    """Let `--resume` stand alone: it then means `--resume required`. A BIDS App's spelling is brought to ours."""
    spelt: list[str] = []
    arguments = bids_app.spelt_out(arguments)
    for place, word in enumerate(arguments):
        spelt.append(word)
        if word == "--resume" and (
            place + 1 == len(arguments) or arguments[place + 1] not in ("auto", "required", "never")
        ):
            spelt.append("required")
    return spelt


def _say(error: NeuroageError) -> None:
    from rich.markup import escape

    from neuroage.cli.screen import talk

    _say_elsewhere(error)
    talk.print(f"[bold red]Error:[/] {escape(str(error))}")


def _say_elsewhere(error: Exception) -> None:
    """Say an error of one of several processes that the main one, which else does the talking, may not know of."""
    if not is_main_process():
        print(f"Error in process {os.environ['RANK']} ({type(error).__name__}): {error}", file=sys.stderr)
