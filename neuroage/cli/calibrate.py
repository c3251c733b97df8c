"""The verb that turns out-of-fold predictions into intervals and a correction for age bias: calibrate."""

from __future__ import annotations

from math import inf
from typing import Annotated, Any

import typer

from neuroage.cli.learn import RunFolder
from neuroage.cli.options import AsJson


def calibrate(
    run: RunFolder,
    level: Annotated[
        float, typer.Option(min=0.01, max=0.999, help="Share of real ages that shall lie inside the intervals.")
    ] = 0.9,
    ages: Annotated[
        str,
        typer.Option(
            metavar="[uniform|training|LOW-HIGH|TABLE]",
            help="Whose ages the intervals are for: every age of the training subjects equally often, ages as in "
            "training, every age of a range, or the ages of a table.",
        ),
    ] = "uniform",
    bins: Annotated[
        int, typer.Option(min=1, help="Slices of age, each with its own width; joined where subjects are few.")
    ] = 3,
    as_json: AsJson = False,
) -> None:
    """Fit intervals and age bias on a run's out-of-fold predictions; `train --folds` has done it with the defaults."""
    from neuroage.analysis import write_evaluation
    from neuroage.cli.screen import make_table, out, print_json, shown
    from neuroage.runs import calibration
    from neuroage.runs.evaluation import evaluate_held_out
    from neuroage.runs.run import Run

    opened = Run.open(run)
    population = calibration.read_population(ages, calibration.out_of_fold_subjects(opened)["age"])
    found = calibration.calibrate(opened, level=level, population=population, n_bins=bins)
    evaluation = evaluate_held_out(opened)
    write_evaluation(evaluation, opened.folder)
    if as_json:
        print_json({"run": opened.folder, **found.to_dict(), "checked": evaluation.calibration})
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
    tell_calibration(evaluation.to_dict())
    out.print(f"Page: {opened.folder / 'evaluation.html'}")


def _bound(years: float) -> str:
    return "" if abs(years) == inf else f"{years:.0f}"


def tell_calibration(evaluation: dict[str, Any]) -> None:
    """Print how intervals and correction did on the scored subjects; nothing without a calibration."""
    from neuroage.cli.screen import out, shown

    found = evaluation.get("calibration")
    if not found:
        return
    inside, raw, corrected = found["intervals"], evaluation["models"][evaluation["name"]], found["corrected"]
    out.print(
        f"{inside['n_inside']} of {inside['n']} real ages lie inside the {found['level']:.0%} intervals "
        f"(95 % bounds {shown(inside['coverage_low'])} – {shown(inside['coverage_high'])}, mean width "
        f"{shown(inside['mean_width'], 1)} years), which are for {found['population']}. {found['checked']}"
    )
    out.print(
        f"Gap slope raw {shown(raw['gap_slope'])}, corrected for age {shown(corrected['gap_slope'])} years per year. "
        "Report the raw MAE: the correction uses the real age."
    )
