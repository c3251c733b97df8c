"""What a score of classes is made of, in words, in a picture and in files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroage.analysis.drawing import FAINT, GREYS, INK, PALETTE, PAPER, new_figure, rule, save_figure, style
from neuroage.analysis.formatting import number
from neuroage.files import atomic_path, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from neuroage.analysis.label_factors import FactorView

CLASS = "class"  # the question about both factors
MODEL, CONSTANT = "model", "most frequent"
_HEADS = {"accuracy": "Accuracy", "f1": "Macro F1"}


def factor_verdict(
    names: tuple[str, str],
    figures: Sequence[Mapping[str, Any]],
    pairs: Sequence[Mapping[str, Any]],
    outcomes: Sequence[Mapping[str, Any]],
    counts: tuple[int, int, int],
    frequencies: str,
) -> str:
    """Say what share of a score of classes is telling one factor apart.

    Args:
        names: The factors.
        figures: As in `FactorView`.
        pairs: As in `FactorView`; accuracy and F1 are read.
        outcomes: As in `FactorView`.
        counts: Scans, subjects and groups.
        frequencies: Whose frequencies guesses follow.
    """
    entries = {(entry["question"], entry["answer"]): entry for entry in figures}
    first, second = names
    n_scans, n_subjects, n_groups = counts
    groups = f" in {n_groups:,} groups" * (n_groups != n_subjects)

    def share(question: str, answer: str) -> str:
        entry = entries[question, answer]
        low, high = entry["accuracy_low"], entry["accuracy_high"]
        bounds = "" if isnan(low) else f" ({_percent(low)} to {_percent(high)})"
        return _percent(entry["accuracy"]) + bounds * (answer == MODEL)

    said = [
        f"On {n_scans:,} scans of {n_subjects:,} subjects{groups}, the class is right in {share(CLASS, MODEL)}, "
        f"where always naming the most frequent gives {share(CLASS, CONSTANT)}.",
        f"{first.capitalize()} alone is right in {share(first, MODEL)}, {second} alone in {share(second, MODEL)}; "
        f"told the {second}, the {first} in {share(first, f'model, told {second}')}, and told the {first}, "
        f"the {second} in {share(second, f'model, told {first}')}.",
    ]
    compared = {(pair["b"], pair["metric"]): _compared(pair) for pair in pairs}
    own = number(entries[CLASS, MODEL]["f1"], 2)
    for known, guessed in (names, names[::-1]):
        other = f"knows only {known}"
        said.append(
            f"Knowing the {known} perfectly, and guessing the {guessed} by its frequency among the {frequencies}, "
            f"gives {share(CLASS, other)} (macro F1 {number(entries[CLASS, other]['f1'], 2)}): the model is "
            f"{compared[other, 'accuracy']} in accuracy, and {compared[other, 'f1']} in macro F1 ({own})."
        )
    n_wrong = sum(int(entry["n"]) for entry in outcomes[1:])
    if n_wrong:
        parts = [f"{_percent(entry['share_of_errors'])} have {_spoken(entry['outcome'])}" for entry in outcomes[1:]]
        said.append(f"Of the {n_wrong:,} wrong answers {', '.join(parts[:-1])} and {parts[-1]}.")
    return " ".join(said)


def _compared(pair: Mapping[str, Any]) -> str:
    low, high = pair["difference_low"], pair["difference_high"]
    return "above" if low > 0 else "below" if high < 0 else "not shown to differ"


def factor_bars(view: FactorView) -> Figure:
    """Draw accuracy and macro F1 of each question as bars, the model's in colour, and how its errors divide.

    Args:
        view: What `factor_view` gave.

    Returns:
        A Matplotlib figure; nothing is shown or written.
    """
    rows, heads, at = [], [], 0.0
    for index, entry in enumerate(view.figures):
        new = index == 0 or entry["question"] != view.figures[index - 1]["question"]
        if new:
            at += 1.3
            heads.append((at - 1.0, f"Telling the {entry['question']} apart ({entry['n_values']})"))
        rows.append((at, entry))
        at += 1.0
    with style():
        figure = new_figure(8.2, 0.235 * at + 1.7)
        grid = figure.add_gridspec(2, 2, height_ratios=[at, 2.2])
        left = figure.add_subplot(grid[0, 0])
        right = figure.add_subplot(grid[0, 1], sharey=left)
        for axes, metric in ((left, "accuracy"), (right, "f1")):
            _bar_panel(axes, rows, metric)
            for height, text in heads:
                axes.text(0.0, height, text if axes is left else "", fontsize=8.5, va="center", weight="bold")
        left.set_ylim(at - 0.3, -0.2)
        left.set_yticks([height for height, _ in rows], [str(entry["answer"]) for _, entry in rows], fontsize=8)
        right.tick_params(axis="y", labelleft=False)
        _outcome_bar(figure.add_subplot(grid[1, :]), view)
    return figure


def _bar_panel(axes: Axes, rows: Sequence[tuple[float, Mapping[str, Any]]], metric: str) -> None:
    for height, entry in rows:
        value, low, high = (float(entry[f"{metric}{end}"]) for end in ("", "_low", "_high"))
        own = str(entry["answer"]).startswith(MODEL)
        colour = PALETTE[0] if entry["answer"] == MODEL else PALETTE[4] if own else GREYS[2]
        axes.barh(height, value, height=0.76, color=colour)
        if not isnan(low):
            axes.hlines(height, low, high, color=INK, linewidth=1.1)
        text = f"{100 * value:.0f}%" if metric == "accuracy" else f"{value:.2f}"
        axes.text(max(value, high if not isnan(high) else 0) + 0.015, height, text, va="center", fontsize=7.5)
    axes.set_title(_HEADS[metric])
    axes.set_xlim(0, 1.12)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    rule(axes, axis="x")


def _outcome_bar(axes: Axes, view: FactorView) -> None:
    start = 0.0
    for entry, colour in zip(view.outcomes, (PALETTE[0], PALETTE[4], PALETTE[5], FAINT), strict=True):
        axes.barh(0, entry["share"], left=start, color=colour, label=f"{entry['outcome']}: {_percent(entry['share'])}")
        start += entry["share"]
    axes.set_title("Answers to the class")
    axes.set(xlim=(0, 1), yticks=[], xticks=[], facecolor=PAPER)
    for edge in axes.spines.values():
        edge.set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.02), ncols=4, columnspacing=1.2, handlelength=1.0, fontsize=8)


def write_factor_view(view: FactorView, folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Write factors.json, factors.csv and factors.png.

    Args:
        view: What `factor_view` gave.
        folder: Where to write; made when missing. Files of the same name are replaced, each as a whole.

    Returns:
        What was written: `json`, `csv`, `png`.
    """
    written = {kind: Path(folder) / f"factors.{kind}" for kind in ("json", "csv", "png")}
    write_json(written["json"], view.to_dict())
    with atomic_path(written["csv"]) as temporary:
        view.table.to_csv(temporary, index=False, encoding="utf-8", lineterminator="\n")
    save_figure(factor_bars(view), written["png"])
    return written


def _percent(value: float) -> str:
    return f"{100 * value:.0f}%"


def _spoken(outcome: str) -> str:
    return outcome if outcome == "both wrong" else "the " + outcome.replace(", ", " and the ")
