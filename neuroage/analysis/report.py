"""What is handed over: figures as JSON and CSV, pictures as PNG, and one HTML page that tells the story."""

from __future__ import annotations

import os
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from neuroage.analysis import page
from neuroage.analysis.bootstrap import MANY_SUBJECTS
from neuroage.analysis.compare import Comparison
from neuroage.analysis.drawing import save_figure, svg_address
from neuroage.analysis.evaluation import Evaluation
from neuroage.analysis.figures import MOST_POINTS, bland_altman, decade_bars, paired_differences, predicted_vs_age
from neuroage.analysis.metrics import age_metrics, describe_metric
from neuroage.analysis.scores import Scores
from neuroage.analysis.subjects import BASELINE, FUSION, MODEL
from neuroage.analysis.uncertainty_page import intervals_section, raw_and_corrected_section
from neuroage.files import atomic_path, write_json, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN_METRICS = (
    "mae",
    "rmse",
    "pearson_r",
    "r2",
    "gap_mean",
    "gap_slope",
)  # with bounds: as much as a page's width holds
_PICTURES: dict[str, tuple[Callable[[Scores], Figure], str]] = {
    "scatter": (
        predicted_vs_age,
        "Predicted against real age, one dot per subject. The dashed line is a perfect prediction.",
    ),
    "bland_altman": (
        bland_altman,
        "Gap (predicted − real age) against real age. Lines: the mean gap, and ± 1.96 standard deviations around it. A "
        "falling cloud, slope below 0, means that the young are guessed too old and the old too young.",
    ),
    "differences": (
        paired_differences,
        "Paired differences in MAE with 95% intervals. A filled dot: the interval leaves out 0.",
    ),
    "decades": (decade_bars, "Mean absolute error by age decade. Bars are models, lines across are baselines."),
}


def write_comparison(comparison: Comparison, folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Write a comparison: comparison.json, comparison.csv (per subject), metrics.csv, pictures and comparison.html.

    Args:
        comparison: What `compare_models` gave.
        folder: Where to write; made when missing. Files of the same name are replaced, each as a whole.

    Returns:
        What was written: `json`, `csv`, `metrics`, `html`, and one PNG each under `scatter`, `bland_altman`,
        `differences`, `decades`.
    """
    return _write(comparison, Path(folder), "comparison", _comparison_page)


def write_evaluation(evaluation: Evaluation, folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Write an evaluation: evaluation.json, evaluation.csv (per subject), metrics.csv, pictures and evaluation.html.

    Args:
        evaluation: What `evaluate` gave.
        folder: Where to write; made when missing. Files of the same name are replaced, each as a whole.

    Returns:
        What was written: `json`, `csv`, `metrics`, `html`, and one PNG each under `scatter`, `bland_altman`, `decades`,
        and `differences` where there are baselines.
    """
    return _write(evaluation, Path(folder), "evaluation", _evaluation_page)


def _write(scores: Any, folder: Path, stem: str, make_page: Callable[[Any, dict[str, str]], str]) -> dict[str, Path]:
    drawn = {name: draw(scores) for name, (draw, _) in _PICTURES.items() if name != "differences" or scores.pairs}
    written = {name: folder / f"{stem}_{name}.png" for name in drawn}
    for name, figure in drawn.items():
        save_figure(figure, written[name])
    written |= {"json": folder / f"{stem}.json", "csv": folder / f"{stem}.csv", "metrics": folder / "metrics.csv"}
    write_json(written["json"], scores.to_dict())
    _write_csv(written["csv"], scores.subjects)
    _write_csv(written["metrics"], scores.metrics_table())
    written["html"] = folder / f"{stem}.html"
    write_text(written["html"], make_page(scores, {name: svg_address(figure) for name, figure in drawn.items()}))
    return written


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, encoding="utf-8", lineterminator="\n")


def _comparison_page(comparison: Comparison, pictures: dict[str, str]) -> str:
    numbers = page.Numbers(comparison.to_dict())
    names = " or ".join(str(comparison.models[name]["label"]) for name in comparison.names(MODEL))
    title = str(comparison.meta.get("title") or f"Which tells age better, {names}?")
    findings = [numbers.show("findings", index) for index in range(len(comparison.findings))]
    return page.whole_page(
        title,
        f"<h1>{escape(title)}</h1>\n",
        f'<p class="lead">{_who(numbers, comparison)} All models are scored on these same subjects.</p>\n',
        _selection_notice(comparison),
        f'<p class="answer">{numbers.show("verdict")}</p>\n',
        page.bullets(findings) if findings else "",
        page.section("The numbers", _metrics(numbers, comparison), _pairs(numbers, comparison)),
        page.section("The pictures", *_pictures(pictures, comparison)),
        page.section("By age", _decades(numbers, comparison)),
        page.section("Would it come out the same again?", _spread(numbers, comparison)),
        page.section("How it was measured", _given(numbers, comparison), page.bullets(_method(numbers, comparison))),
        page.section("What to keep in mind", page.bullets(_caveats(numbers, comparison))),
        _footer(comparison, "comparison"),
    )


def _evaluation_page(evaluation: Evaluation, pictures: dict[str, str]) -> str:
    numbers = page.Numbers(evaluation.to_dict())
    label = str(evaluation.models[evaluation.name]["label"])
    title = str(evaluation.meta.get("title") or f"How well does {label} tell age?")
    return page.whole_page(
        title,
        f"<h1>{escape(title)}</h1>\n",
        f'<p class="lead">{_who(numbers, evaluation)}</p>\n',
        _selection_notice(evaluation),
        f'<p class="answer">{numbers.show("verdict")}</p>\n',
        page.section("The numbers", _metrics(numbers, evaluation), _pairs(numbers, evaluation)),
        page.section("The pictures", *_pictures(pictures, evaluation)),
        page.section("By age", _decades(numbers, evaluation)),
        raw_and_corrected_section(numbers, evaluation),
        intervals_section(numbers, evaluation),
        page.section("How it was measured", page.bullets(_method(numbers, evaluation))),
        page.section("What to keep in mind", page.bullets(_caveats(numbers, evaluation))),
        _footer(evaluation, "evaluation"),
    )


def _who(numbers: page.Numbers, scores: Scores) -> str:
    sets = escape(" and ".join(scores.sets))
    return (
        f"Measured on {numbers.show('n_subjects')} {sets} subjects aged {numbers.show('ages', 'min')} to "
        f"{numbers.show('ages', 'max')} years."
    )


def _selection_notice(scores: Scores) -> str:
    selected = scores.selected_on
    if not selected:
        return ""
    return (
        '<p class="notice"><strong>Read with care.</strong> '
        f"Something about the model was chosen on the {escape(selected)} set, which is also scored here. "
        "The figures are therefore better than new people would give.</p>\n"
    )


def _metrics(numbers: page.Numbers, scores: Scores) -> str:
    extra = [name for name in age_metrics() if name not in (*_SHOWN_METRICS, "median_ae", "gap_sd")]
    notes = [describe_metric(name) for name in [*_SHOWN_METRICS, *extra]]

    def cell(name: str, metric: str) -> str:
        bounds = numbers.bounded("models", name, metric, low=f"{metric}_low", high=f"{metric}_high")
        return numbers.show("models", name, metric) + (f"<br>{bounds}" if bounds else "")

    rows = [
        (str(figures["kind"]), [_label(scores, name), *(cell(name, note.name) for note in notes)])
        for name, figures in scores.models.items()
    ]
    caption = "Each figure with its 95% interval below it. MAE, RMSE and gap in years; slope in years per year."
    return page.table(caption, ["", *(_heading(note.name, note.title) for note in notes)], rows)


def _heading(metric: str, title: str) -> str:
    return {"mae": "MAE", "rmse": "RMSE", "pearson_r": "r"}.get(metric, title)


def _pairs(numbers: page.Numbers, scores: Scores) -> str:
    rows = [
        (
            "",
            [
                f"{_label(scores, pair['a'])} − {_label(scores, pair['b'])}",
                numbers.show("pairs", index, "difference"),
                numbers.bounded("pairs", index, "", low="difference_low", high="difference_high"),
                numbers.show("pairs", index, "p"),
                numbers.show("pairs", index, "smallest_detectable"),
            ],
        )
        for index, pair in enumerate(scores.pairs)
    ]
    caption = (
        "Paired differences in MAE, years: below 0 the first-named is nearer to the real age. The last column is the "
        "smallest true difference that these subjects would have shown four times out of five."
    )
    head = ["", "Difference", "95% interval", "p", "Could have shown"]
    return page.table(caption, head, rows) if rows else ""


def _decades(numbers: page.Numbers, scores: Scores) -> str:
    names = scores.names()

    def cells(index: int) -> list[str]:
        found = [numbers.show("decades", index, "label"), numbers.show("decades", index, "n")]
        for name in names:
            gap = numbers.show("decades", index, "gap_mean", name)
            found.append(f'{numbers.show("decades", index, "mae", name)} <span class="bounds">({gap})</span>')
        return found

    rows = [("", cells(index)) for index in range(len(scores.decades))]
    caption = "MAE by decade in years, with the mean gap (predicted − real) in brackets."
    return page.table(caption, ["Age", "n", *(_plain_label(scores, name) for name in names)], rows)


def _spread(numbers: page.Numbers, comparison: Comparison) -> str:
    def row(name: str) -> tuple[str, list[str]]:
        parts = ("n_members", "member_sd", "n_folds", "fold_sd")
        return "", [_label(comparison, name), *(numbers.show("spread", name, part) for part in parts)]

    caption = (
        "Standard deviation of the MAE in years: over members (trainings with other seeds, or without other parts of "
        "the training subjects; same subjects) and over folds (other subjects held out). A dash: there was one only."
    )
    head = ["", "Members", "Spread over members", "Folds", "Spread over folds"]
    return page.table(caption, head, [row(name) for name in comparison.spread])


def _given(numbers: page.Numbers, comparison: Comparison) -> str:
    rows = [
        (
            "",
            [
                _label(comparison, name),
                *(numbers.show("given", name, part) for part in ("given", "compared", "dropped")),
            ],
        )
        for name in comparison.given
    ]
    return page.table(
        "Subjects that each had, and those that all of them have.", ["", "Had", "Compared", "Dropped"], rows
    )


def _method(numbers: page.Numbers, scores: Scores) -> list[str]:
    fused = scores.names(FUSION)
    return [
        "Members of an ensemble are averaged per scan, then scans per subject: every subject counts once.",
        "Gap = predicted − real age. "
        + (
            "All figures are raw, but for the row that says corrected."
            if isinstance(scores, Evaluation) and scores.calibration
            else "All figures are raw: nothing was corrected for age bias."
        ),
        *(["Fusion is the mean of the models' predictions; nothing was fitted for it."] if fused else []),
        "Intervals of figures: 95%, bootstrap over subjects: studentised for means and differences, widened BCa for "
        "the others.",
        "p: two-sided paired sign-flip permutation. It is not adjusted for the number of rows in the table.",
        *(
            [
                f"Above {MANY_SUBJECTS:,} subjects the resampling is worked out rather than drawn where its result is "
                "known more exactly than by chance."
            ]
            if scores.n_subjects > MANY_SUBJECTS
            else []
        ),
        "Smallest difference: two-sided 5%, power 80%, from the spread of the paired differences.",
        f"Seed of every resample: {numbers.show('seed')}.",
    ]


def _caveats(numbers: page.Numbers, scores: Scores) -> list[str]:
    said = [
        "MAE depends on the age range, so it does not compare between cohorts (de Lange 2022, PMC9188975). Predicting "
        f"the mean age on a uniform range of {numbers.show('ages', 'range')} years gives a quarter of it, "
        f"{numbers.show('ages', 'uniform_mean_mae')} years; that is the yardstick.",
        f"With {numbers.show('n_subjects')} subjects the standard error of an MAE is about "
        f"{numbers.show('models', scores.names(MODEL)[0], 'mae_se')} years. MAEs on different subjects differ by three "
        "times that by chance alone; paired differences on the same subjects are sharper.",
        "The intervals say how much the figures would move with other subjects of the same kind. They do not contain "
        "another hospital, another scanner, or another training.",
    ]
    if scores.names(BASELINE):
        said.append("A network earns its keep by beating ridge regression on coarse voxels, not by beating the mean.")
    if isinstance(scores, Comparison) and any(entry["n_folds"] > 1 for entry in scores.spread.values()):
        said.append(
            "Subjects of different folds were scored by different trainings that share training subjects; "
            "the intervals treat them as independent."
        )
    return said


def _pictures(pictures: dict[str, str], scores: Scores) -> list[str]:
    sample = (
        f" {MOST_POINTS:,} of the subjects are drawn, evenly chosen by age." if scores.n_subjects > MOST_POINTS else ""
    )
    return [
        page.picture(address, _PICTURES[name][1] + sample * (name in ("scatter", "bland_altman")))
        for name, address in pictures.items()
    ]


def _plain_label(scores: Scores, name: str) -> str:
    figures = scores.models[name]
    return (
        {"mean": "predict the mean"}.get(name, str(figures["label"]))
        if figures["kind"] == BASELINE
        else figures["label"]
    )


def _label(scores: Scores, name: str) -> str:
    return escape(_plain_label(scores, name))


def _footer(scores: Scores, stem: str) -> str:
    return f"<footer>Made by neuroage. The same figures, unrounded: {stem}.json; per subject: {stem}.csv.</footer>\n"
