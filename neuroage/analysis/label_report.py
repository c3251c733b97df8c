"""What is handed over about labels: figures as JSON and CSV, pictures as PNG, and one page that tells the story."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from neuroage.analysis.drawing import save_figure, svg_address
from neuroage.analysis.label_evaluation import LabelEvaluation
from neuroage.analysis.label_figures import (
    MOST_CURVES,
    confusion_map,
    label_forest,
    ranking_curves,
    reliability_diagrams,
)
from neuroage.analysis.label_page import label_page
from neuroage.files import atomic_path, write_json, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PICTURES: dict[str, tuple[Callable[[LabelEvaluation], Figure], str]] = {
    "curves": (
        ranking_curves,
        "ROC and precision–recall curves. Knowing nothing gives the dashed diagonal on the left, and on the right the "
        "thin line at the prevalence.",
    ),
    "labels": (
        label_forest,
        "One line per label with its 95% interval, the best on top; no line where fewer than five groups have a "
        "positive. Diamonds are baselines.",
    ),
    "reliability": (
        reliability_diagrams,
        "Do the probabilities mean what they say? Each dot is a bin of scans; on the dashed line, 30% means 30%. The "
        "grey band is where 95% of the dots of a perfectly calibrated model would lie.",
    ),
    "confusion": (
        confusion_map,
        "True class down, predicted class across. Numbers are scans; dark is a large share of the true class.",
    ),
}


def write_label_evaluation(evaluation: LabelEvaluation, folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Write evaluation.json, evaluation.csv (per scan), metrics.csv (per label), pictures and evaluation.html.

    Args:
        evaluation: What `evaluate_labels` gave.
        folder: Where to write; made when missing. Files of the same name are replaced, each as a whole.

    Returns:
        What was written: `json`, `csv`, `metrics`, `html`; `confusion_csv` for classes; and one PNG each under
        `reliability`, `curves` (four labels or fewer) or `labels`, and `confusion` for classes.
    """
    folder = Path(folder)
    drawn = {name: _PICTURES[name][0](evaluation) for name in _pictures_of(evaluation)}
    written = {name: folder / f"evaluation_{name}.png" for name in drawn}
    for name, figure in drawn.items():
        save_figure(figure, written[name])
    written |= {"json": folder / "evaluation.json", "csv": folder / "evaluation.csv", "metrics": folder / "metrics.csv"}
    write_json(written["json"], evaluation.to_dict())
    write_table(written["csv"], evaluation.subjects)
    write_table(written["metrics"], evaluation.labels_table())
    if evaluation.confusion is not None:
        written["confusion_csv"] = folder / "confusion.csv"
        write_table(written["confusion_csv"], evaluation.confusion.reset_index())
    written["html"] = folder / "evaluation.html"
    pictures = {name: (svg_address(figure), _PICTURES[name][1]) for name, figure in drawn.items()}
    write_text(written["html"], label_page(evaluation, pictures))
    return written


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, as a whole."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, encoding="utf-8", lineterminator="\n")


def _pictures_of(evaluation: LabelEvaluation) -> list[str]:
    ranked = "curves" if len(evaluation.label_names) <= MOST_CURVES else "labels"
    return [ranked, *(["confusion"] if evaluation.confusion is not None else []), "reliability"]
