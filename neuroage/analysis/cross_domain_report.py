"""What is handed over about training here and testing there: a table, a heat map, and one page."""

from __future__ import annotations

import os
from html import escape
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroage.analysis import page
from neuroage.analysis.cross_domain import CrossDomain
from neuroage.analysis.cross_domain_cells import MACRO
from neuroage.analysis.drawing import FAINT, GREYS, INK, PAPER, new_figure, save_figure, style, svg_address
from neuroage.analysis.formatting import NOTHING
from neuroage.analysis.label_page import LabelNumbers
from neuroage.analysis.label_report import write_table
from neuroage.analysis.label_verdict import format_label_figure
from neuroage.files import write_json, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CAPTION = (
    "AUROC: trained on (down) and tested on (across), one panel per label; the first is the mean over the labels "
    "defined everywhere. Framed: a model on data like its own. A dash: the label is missing on one side, or has no "
    "positives there. A star: both data sets share subjects or images."
)


def write_cross_domain(result: CrossDomain, folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Write cross_domain.json, cross_domain.csv (train × test × label), a heat map and cross_domain.html.

    Args:
        result: What `cross_domain_table` gave.
        folder: Where to write; made when missing. Files of the same name are replaced, each as a whole.

    Returns:
        What was written: `json`, `csv`, `heat_map`, `html`.
    """
    folder = Path(folder)
    written = {kind: folder / f"cross_domain.{kind}" for kind in ("json", "csv", "html")}
    written["heat_map"] = folder / "cross_domain_heat_map.png"
    figure = cross_domain_map(result)
    save_figure(figure, written["heat_map"])
    write_json(written["json"], result.to_dict())
    write_table(written["csv"], result.table)
    write_text(written["html"], _page(result, svg_address(figure)))
    return written


def cross_domain_map(result: CrossDomain) -> Figure:
    """Draw AUROC as heat maps, training data down and test data across, one panel per label and one for the mean.

    Args:
        result: What `cross_domain_table` gave.

    Returns:
        A Matplotlib figure; nothing is shown or written.
    """
    labels = [MACRO, *result.labels] if len(result.labels) > 1 else list(result.labels)
    n_down, n_across = len(result.trains), len(result.tests)
    cell = 0.38  # inches; a figure with two decimals fits
    columns = max(1, min(len(labels), int(7.6 // (cell * n_across + 0.35))))
    rows = ceil(len(labels) / columns)
    with style():
        width = columns * (cell * n_across + 0.3) + 1.6
        figure = new_figure(width, rows * (cell * n_down + 0.45) + 1.1)
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for spare in grid.ravel()[len(labels) :]:
            spare.set_visible(False)
        drawn: Any = None
        for index, (axes, label) in enumerate(zip(grid.ravel(), labels, strict=False)):
            drawn = _panel(axes, result, label)
            lowest = index + columns >= len(labels)
            axes.tick_params(labelbottom=lowest)
        figure.supxlabel("Tested on", fontsize=9)
        figure.supylabel("Trained on", fontsize=9)
        figure.colorbar(drawn, ax=grid, shrink=min(1.0, 2.2 / (rows * cell * n_down)), aspect=18, label="AUROC")
    return figure


def _panel(axes: Axes, result: CrossDomain, label: str) -> Any:
    from matplotlib.patches import Rectangle

    values = result.matrix(label).to_numpy(dtype=np.float64)
    flags = sum(
        result.matrix(label, f"shared_{what}").fillna(0).to_numpy(dtype=np.float64) for what in ("subjects", "images")
    )
    axes.set_facecolor(PAPER)
    drawn = axes.imshow(np.ma.masked_invalid(values), cmap="Blues", vmin=0.5, vmax=1.0, interpolation="nearest")
    for row, train in enumerate(result.trains):
        for column, test in enumerate(result.tests):
            value = values[row, column]
            blank = np.isnan(value)
            colour = GREYS[0] if blank else PAPER if value > 0.8 else INK
            star = "*" if np.asarray(flags)[row, column] > 0 else ""
            text = NOTHING if blank else f"{format_label_figure('auroc', value, 0)}{star}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=7)
            if train == test:
                axes.add_patch(
                    Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor=INK, linewidth=1.4)
                )
    axes.set_xticks(range(len(result.tests)), list(result.tests), rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(result.trains)), list(result.trains), fontsize=8)
    axes.set_title("Mean" if label == MACRO else label, fontsize=8.5, pad=4)
    axes.tick_params(length=0)
    for edge in axes.spines.values():
        edge.set(visible=True, color=FAINT)
    return drawn


def _page(result: CrossDomain, address: str) -> str:
    numbers = LabelNumbers(result.to_dict())
    title = str(result.meta.get("title") or "Trained here, tested there")
    return page.whole_page(
        title,
        f"<h1>{escape(title)}</h1>\n",
        f'<p class="lead">{escape(", ".join(result.trains))} as training data; {escape(", ".join(result.tests))} as '
        f"test data ({escape(' and '.join(result.sets))} scans).</p>\n",
        f'<p class="answer">{numbers.show("verdict")}</p>\n',
        page.section("The picture", page.picture(address, _CAPTION)),
        page.section("Mean over labels", _table(numbers, result, MACRO) if len(result.labels) > 1 else ""),
        page.section("Label by label", *(_table(numbers, result, label) for label in result.labels)),
        page.section("How it was measured", page.bullets(_method(numbers))),
        "<footer>Made by neuroage. The same figures, unrounded: cross_domain.json and cross_domain.csv.</footer>\n",
    )


def _table(numbers: LabelNumbers, result: CrossDomain, label: str) -> str:
    rows = []
    for row in result.table[result.table["label"] == label].to_dict("records"):
        key = ("cells", row["train"], row["test"], label)
        counts = [numbers.show(*key, "n")]
        if label != MACRO:
            counts = [
                f"{numbers.show(*key, 'n_positive')} of {numbers.show(*key, 'n')}",
                numbers.show(*key, "prevalence"),
            ]
        figures = [numbers.with_bounds(*key, figure) for figure in ("auroc", "drop", "deficit")]
        shared = f"{numbers.show(*key, 'shared_subjects')} / {numbers.show(*key, 'shared_images')}"
        style_of_row = "model" if row["train"] == row["test"] else ""
        where = f"{escape(row['train'])} → {escape(row['test'])}"
        note = f"<br><small>{escape(row['absent'])}</small>" if row["absent"] else ""
        rows.append((style_of_row, [where + note, *counts, *figures, shared]))
    head = ["n"] if label == MACRO else ["Positive", "Prevalence"]
    over = f"Mean over {', '.join(result.common_labels) or 'no label'}" if label == MACRO else label
    return page.table(
        f"{over}. Trained on → tested on. Shared: subjects / images in both data sets.",
        ["", *head, "AUROC", "Drop", "Deficit", "Shared"],
        rows,
    )


def _method(numbers: LabelNumbers) -> list[str]:
    return [
        "Labels are aligned by name. Each label is scored where both sides have it and it has positives and negatives.",
        "Drop: AUROC of the same model on data like its own, minus its AUROC here. The scans differ, and so may how "
        "hard they are; the interval takes both as independent.",
        "Deficit: AUROC of the model that was trained on the test data, minus this one's, paired on the same scans. It "
        "says what training there would have gained.",
        "Intervals: 95%, bootstrap over groups (subjects, where the table names no group), BCa widened for few; of "
        "means spread to the standard error of leaving out groups. None where fewer than five groups have a positive, "
        "or a negative.",
        "Prevalence differs between data sets. AUROC does not depend on it, but who counts as positive may: labels of "
        "the same name can mean different things (Cohen 2020, arXiv 2002.02497).",
        "Subjects or images in two data sets make a test on data from elsewhere a test on training data.",
        f"Seed of every resample: {numbers.show('seed')}.",
    ]
