"""The verb that makes predictions mean what they say, by scans that were not learnt from: calibrate."""

from __future__ import annotations

from itertools import zip_longest
from math import inf, isnan
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuroage.cli.learn import RunFolder
from neuroage.cli.options import AsJson
from neuroage.errors import UsageError

if TYPE_CHECKING:
    from neuroage.runs.run import Run

LEVEL, AGES, BINS = 0.9, "uniform", 3
MOST_NOTES = 3


def calibrate(
    run: RunFolder,
    level: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=0.999,
            help=f"Ages: share of real ages that shall lie inside the intervals.  (default: {LEVEL})",
        ),
    ] = None,
    ages: Annotated[
        str | None,
        typer.Option(
            metavar="[uniform|training|LOW-HIGH|TABLE]",
            help="Whose ages the intervals are for: every age of the training subjects equally often, ages as in "
            f"training, every age of a range, or the ages of a table.  (default: {AGES})",
        ),
    ] = None,
    bins: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Ages: slices of age, each with its own width; joined where subjects are few.  (default: {BINS})",
        ),
    ] = None,
    threshold: Annotated[
        str | None,
        typer.Option(
            metavar="RULE",
            help="Labels: from which probability on a label is predicted: sensitivity>=X (the highest specificity "
            "with it), specificity>=X, f1 or youden.  (default: 0.5, or the rule chosen before)",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fit intervals and age bias of ages, or calibration and thresholds of labels, on scans not learnt from.

    Ages: on out-of-fold predictions, which `train --folds` has done with the defaults. Labels: on the validation set.
    """
    from neuroage.runs.run import Run

    opened = Run.open(run)
    if opened.target["kind"] == "age":
        if threshold is not None:
            raise UsageError(f"--threshold is about labels, and {run} predicts ages", fix="Leave it out.")
        _calibrate_ages(
            opened,
            LEVEL if level is None else level,
            AGES if ages is None else ages,
            BINS if bins is None else bins,
            as_json,
        )
        return
    for name, value in (("--level", level), ("--ages", ages), ("--bins", bins)):
        if value is not None:
            raise UsageError(
                f"{name} is about ages, and {run} predicts labels", fix="Leave it out, or use --threshold."
            )
    _calibrate_labels(opened, threshold, as_json)


def _calibrate_ages(run: Run, level: float, ages: str, n_bins: int, as_json: bool) -> None:
    from neuroage.cli.results import tell_intervals
    from neuroage.cli.screen import make_table, out, print_json, shown
    from neuroage.runs import calibration
    from neuroage.runs.evaluation import evaluate_held_out, write_pages

    population = calibration.read_population(ages, calibration.out_of_fold_subjects(run)["age"])
    found = calibration.calibrate(run, level=level, population=population, n_bins=n_bins)
    evaluation = evaluate_held_out(run)
    write_pages(evaluation, run.folder)
    if as_json:
        print_json({"run": run.folder, **found.to_dict(), "checked": evaluation.calibration})
        return
    out.print(f"[bold]{found.words}.[/]")
    rows = [
        [
            f"{_bound(each.low)} – {_bound(each.high)}",
            str(each.n_subjects),
            f"−{shown(each.years_below, 1)} to +{shown(each.years_above, 1)}",
        ]
        for each in found.intervals.bins
    ]
    out.print(make_table("", ["predicted age", "subjects", "real age lies (years)"], rows))
    tell_intervals(evaluation.to_dict())
    out.print(f"Page: {run.folder / 'evaluation.html'}")


def _bound(years: float) -> str:
    return "" if abs(years) == inf else f"{years:.0f}"


def _calibrate_labels(run: Run, rule: str | None, as_json: bool) -> None:
    from rich.markup import escape

    from neuroage.analysis.label_thresholds import read_rule
    from neuroage.cli.results import tell_evaluation
    from neuroage.cli.screen import make_table, out, print_json, shown, talk
    from neuroage.runs.evaluation import evaluate_held_out, write_pages
    from neuroage.runs.label_calibration import calibrate_labels, choose_run_thresholds

    if rule is not None:  # before anything is written
        read_rule(rule)
        if run.target["kind"] == "multiclass":
            raise UsageError(
                f"--threshold: {run.folder} predicts one of several classes, of which the most probable is taken",
                fix="Leave it out.",
            )
    found = calibrate_labels(run)
    if rule is not None:
        found = choose_run_thresholds(run, rule)
    evaluation = evaluate_held_out(run)
    write_pages(evaluation, run.folder)
    if as_json:
        print_json({"run": run.folder, **found.to_dict(), "notes": found.notes, "checked": evaluation.to_dict()})
        return
    by_label = found.kind != "multiclass"
    rows = [
        [
            escape(str(entry["label"])),
            str(entry["n"]) if entry["n_positive"] is None else f"{entry['n_positive']} of {entry['n']}",
            shown(temperature),
            *([shown(offset)] if by_label else []),
            _before_after(entry, "ece"),
            _before_after(entry, "brier"),
            *([_threshold(found.thresholds, str(entry["label"]))] if by_label else []),
        ]
        for entry, temperature, offset in zip_longest(found.fitted, found.temperatures, found.offsets)
    ]
    title = f"Fitted on {found.n_scans:,} {found.fitted_on} scans, on which error and Brier score are given too"
    columns = ["", "scans" if not by_label else "positive", "temperature", "calibration error", "Brier"]
    if by_label:
        columns.insert(3, "offset")
        columns.append(f"threshold ({found.rule})" if found.rule else "threshold")
    out.print(make_table(title, columns, rows))
    for note in found.notes[:MOST_NOTES]:
        talk.print(f"• {note}", markup=False)
    if len(found.notes) > MOST_NOTES:
        talk.print(f"  … and {len(found.notes) - MOST_NOTES} more (--json lists all)")
    where = evaluation.sets[0]
    said = "" if where != found.fitted_on else ", on which this was fitted: there is no test set"
    talk.print(f"Figures of the {where} set{said}:")
    tell_evaluation(evaluation.to_dict())
    out.print(f"Page: {run.folder / 'evaluation.html'}")


def _before_after(entry: dict[str, Any], figure: str) -> str:
    from neuroage.cli.screen import shown

    return f"{shown(entry[f'{figure}_before'], 3)} → {shown(entry[f'{figure}_after'], 3)}"


def _threshold(thresholds: dict[str, float], label: str) -> str:
    at = thresholds.get(label, 0.5)
    return "none" if isnan(at) else f"{at:.3f}"
