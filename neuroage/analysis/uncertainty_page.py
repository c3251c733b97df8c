"""The sections of an evaluation's page that stand on its calibration: raw beside corrected, and the intervals."""

from __future__ import annotations

from html import escape

from neuroage.analysis import page
from neuroage.analysis.evaluation import Evaluation
from neuroage.analysis.metrics import describe_metric

_COMPARED = {"mae": "MAE", "r2": "R²", "gap_mean": "", "gap_sd": "", "gap_slope": ""}  # "": the metric's own title


def raw_and_corrected_section(numbers: page.Numbers, evaluation: Evaluation) -> str:
    """Write the gap's figures raw and corrected for age, side by side; empty without a calibration."""
    if not evaluation.calibration:
        return ""

    def row(style: str, heading: str, *key: str) -> tuple[str, list[str]]:
        cells = []
        for name in _COMPARED:
            bounds = numbers.bounded(*key, name, low=f"{name}_low", high=f"{name}_high")
            cells.append(numbers.show(*key, name) + (f"<br>{bounds}" if bounds else ""))
        return style, [heading, *cells]

    label = escape(str(evaluation.models[evaluation.name]["label"]))
    slope = numbers.show("calibration", "age_bias", "slope")
    bounds = numbers.bounded("calibration", "age_bias", "slope", low="slope_low", high="slope_high")
    rows = [
        row("model", f"{label}, raw", "models", evaluation.name),
        row("", "corrected for age", "calibration", "corrected"),
    ]
    return page.section(
        "Raw and corrected for age",
        page.table(
            "Figures with their 95% intervals. MAE and gaps in years; slope in years per year.",
            ["", *(title or describe_metric(name).title for name, title in _COMPARED.items())],
            rows,
        ),
        f"<p>Out-of-fold gaps change by {slope} years per year of age ({bounds}). The correction takes that line off "
        "the gap, so that gaps of people of different age can be compared. It uses the real age: the corrected MAE and "
        "R² are flattered by construction and tell nothing about how well the model tells age (Butler 2021, "
        "PMC8357007). The figure to report is the raw one.</p>\n",
    )


def intervals_section(numbers: page.Numbers, evaluation: Evaluation) -> str:
    """Write how often the real age lay inside its interval; empty where the model has no intervals."""
    found, parts = evaluation.calibration, []
    if found:
        parts.append(f"<p>{numbers.show('calibration', 'words')}. {numbers.show('calibration', 'checked')}</p>\n")
    rows = []
    if found:
        rows.append(_row(numbers, "intervals, all ages", "calibration", "intervals", style="model"))
    if evaluation.own_spread:
        rows.append(_row(numbers, "the model's own spread, ± 1.645 sd (for 90%)", "own_spread"))
    for index, entry in enumerate(found.get("decades", [])):
        rows.append(
            _row(numbers, f"intervals, {entry['decade']}–{entry['decade'] + 9}", "calibration", "decades", index)
        )
    if not rows:
        return ""
    target = f"promised: {(found or evaluation.own_spread)['level']:.0%}"
    caption = (
        f"How often the real age lay inside ({target}), with the 95% bounds of a share counted on so many subjects, "
        "and the mean width in years from end to end."
    )
    head = ["", "Subjects", "Inside", "Share", "95% bounds", "Mean width"]
    parts.append(page.table(caption, head, rows))
    if found:
        parts.append(
            "<p>The promise is for all people of the stated ages together. Where the subjects here are of other ages, "
            "their share may be another; a decade has few subjects, and those at the ends of the age range may lie "
            "outside more often than the rest.</p>\n"
            "<p>Out-of-fold errors are those of single members (one a seed), which left the subject out. The mean of "
            "all members, which predicts other people, errs a little less: its intervals are rather too wide than too "
            "narrow.</p>\n"
        )
    return page.section("Intervals", *parts)


def _row(numbers: page.Numbers, heading: str, *key: str | int, style: str = "") -> tuple[str, list[str]]:
    cells = [numbers.show(*key, name) for name in ("n", "n_inside", "coverage")]
    bounds = numbers.bounded(*key, "coverage", low="coverage_low", high="coverage_high")
    return style, [heading, *cells, bounds, numbers.show(*key, "mean_width")]
