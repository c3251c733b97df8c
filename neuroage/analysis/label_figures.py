"""Pictures of labels: curves, one line per label with its interval, reliability, confusion."""

from __future__ import annotations

from math import ceil, isnan
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroage.analysis.drawing import DASHES, FAINT, GREYS, INK, PALETTE, PAPER, new_figure, rule, style
from neuroage.analysis.label_evaluation import LabelEvaluation
from neuroage.analysis.label_metrics import reliability
from neuroage.analysis.label_table import BINARY, MULTICLASS, Array
from neuroage.analysis.label_verdict import format_label_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_CURVES = 4  # labels beyond which curves cover one another, and one line per label reads better
_MOST_PANELS = 16  # reliability diagrams that a page holds; the most frequent labels are shown
_MOST_CELLS_WRITTEN = 60  # classes beyond which counts no longer fit into cells
_HEADS = {"auroc": "AUROC", "auprc": "Average precision", "f1": "F1"}


def ranking_curves(evaluation: LabelEvaluation) -> Figure:
    """Draw ROC and precision–recall curves: of the model per label, of the baselines where there is one label.

    Args:
        evaluation: What `evaluate_labels` gave.

    Returns:
        A Matplotlib figure; nothing is shown or written.
    """
    scans = evaluation.scans
    with style():
        figure = new_figure(7.6, 3.9)
        left, right = figure.subplots(1, 2)
        left.plot([0, 1], [0, 1], color=GREYS[2], linewidth=0.9, linestyle=DASHES[1])
        for colour, dash, name, label, words in _curves(evaluation):
            at = evaluation.label_names.index(label)
            found = curve_points(scans.truth[:, at], scans.probabilities[name][:, at])
            if found is None:
                continue
            false_share, recall, precision = found
            look: dict[str, Any] = {"color": colour, "linestyle": dash, "linewidth": 1.8 if dash == "-" else 1.2}
            left.plot(np.append(0, false_share), np.append(0, recall), **look, label=words)
            right.step(np.append(0, recall), np.append(precision[0], precision), where="pre", **look)
            rate = evaluation.labels[name][label]["prevalence"]
            right.axhline(rate, color=colour if len(evaluation.label_names) > 1 else GREYS[2], linewidth=0.7, alpha=0.7)
        left.set(title="ROC", xlabel="1 − specificity", ylabel="Sensitivity", aspect="equal")
        right.set(title="Precision–recall", xlabel="Sensitivity (recall)", ylabel="Precision", aspect="equal")
        for axes in (left, right):
            axes.set(xlim=(-0.015, 1.015), ylim=(-0.015, 1.015))
            axes.grid(color=FAINT, linewidth=0.5)
        if left.get_legend_handles_labels()[0]:
            figure.legend(loc="outside lower left", ncols=2, handlelength=1.6)
    return figure


def curve_points(truth: Array, probability: Array) -> tuple[Array, Array, Array] | None:
    """Give 1 − specificity, sensitivity and precision at every distinct probability, falling; None where undefined."""
    known = ~np.isnan(truth)
    real, chance = truth[known], probability[known]
    order = np.argsort(-chance, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(chance[order]) != 0, True)) if len(order) else order
    hits = np.cumsum(real[order])[ends]
    if not len(real) or hits[-1] in (0, len(real)):
        return None
    false = ends + 1 - hits
    return false / false[-1], hits / hits[-1], hits / (ends + 1)


def _curves(evaluation: LabelEvaluation) -> list[tuple[str, Any, str, str, str]]:
    """Colour, dash, model, label and words of each curve; words carry the AUROC."""

    def words(name: str, label: str, called: str) -> str:
        return f"{called}: AUROC {_figure(evaluation, evaluation.labels[name][label]['auroc'])}"

    name = evaluation.name
    found: list[tuple[str, Any, str, str, str]] = []
    if len(evaluation.label_names) == 1:
        label = evaluation.label_names[0]
        found = [
            (GREYS[index % 3], DASHES[1 + index % 3], other, label, words(other, label, figures["label"]))
            for index, (other, figures) in enumerate(evaluation.models.items())
            if other != name
        ]
        return [(PALETTE[0], "-", name, label, words(name, label, evaluation.models[name]["label"])), *found]
    return [
        (PALETTE[index % len(PALETTE)], "-", name, label, words(name, label, label))
        for index, label in enumerate(evaluation.label_names)
    ]


def label_forest(evaluation: LabelEvaluation) -> Figure:
    """Draw one line per label, the best on top: AUROC, and beside it average precision (of classes F1), with intervals.

    Args:
        evaluation: What `evaluate_labels` gave.

    Returns:
        A Matplotlib figure.
    """
    entries = evaluation.labels[evaluation.name]
    labels = sorted(entries, key=lambda label: -np.nan_to_num(entries[label][evaluation.headline], nan=-1.0))
    metrics = ("auroc", "f1" if evaluation.kind == MULTICLASS else "auprc")
    row_height = 0.25 if len(labels) <= 20 else 0.185
    with style():
        figure = new_figure(7.8, 1.1 + row_height * len(labels))
        for axes, metric in zip(figure.subplots(1, 2, sharey=True), metrics, strict=True):
            _forest_panel(axes, evaluation, labels, metric)
        first, second = figure.axes[:2]
        first.set_yticks(range(len(labels)), labels, fontsize=8.5 if len(labels) <= 20 else 7)
        first.set_ylim(len(labels) - 0.4, -0.6)
        first.axvline(0.5, color=GREYS[0], linewidth=0.8, linestyle=DASHES[1])
        for row, label in enumerate(labels):
            counts = f"{entries[label]['n_positive']:,} of {entries[label]['n']:,}"
            second.text(1.02, row, counts, transform=second.get_yaxis_transform(), va="center", fontsize=7)
        second.text(
            1.02, -1, "positive", transform=second.get_yaxis_transform(), va="center", fontsize=7, color=GREYS[1]
        )
        handles, words = first.get_legend_handles_labels()
        extra, extra_words = second.get_legend_handles_labels()
        told = dict(zip(words + extra_words, handles + extra, strict=True))
        figure.legend(told.values(), told.keys(), loc="outside lower left", ncols=4, columnspacing=1.4)
    return figure


def _forest_panel(axes: Axes, evaluation: LabelEvaluation, labels: list[str], metric: str) -> None:
    shown = [evaluation.name, *(name for name in evaluation.models if name not in (evaluation.name, "majority"))]
    rows = np.arange(len(labels))
    for index, name in enumerate(shown):
        entries = [evaluation.labels[name][label] for label in labels]
        value, low, high = (
            np.array([entry[f"{metric}{end}"] for entry in entries], dtype=np.float64) for end in ("", "_low", "_high")
        )
        called = str(evaluation.models[name]["label"])
        if index == 0:
            axes.hlines(rows, low, high, color=PALETTE[0], linewidth=1.5, zorder=3)
            words = f"{called}, 95% interval"
            axes.plot(value, rows, "o", color=PALETTE[0], markersize=4.5, zorder=4, label=words)
        else:
            grey = GREYS[(index - 1) % 3]
            axes.plot(value, rows, "D", color=grey, markersize=3.5, markerfacecolor=PAPER, label=called)
    if metric == "auprc":
        rates = [evaluation.labels[evaluation.name][label]["prevalence"] for label in labels]
        axes.plot(rates, rows, "|", color=INK, markersize=6, label="prevalence (knowing nothing)")
    for row, label in enumerate(labels):
        if isnan(evaluation.labels[evaluation.name][label][metric]):
            axes.text(0.5, row, "undefined", transform=axes.get_yaxis_transform(), ha="center", va="center", fontsize=7)
    axes.set_title(_HEADS[metric])
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    rule(axes, axis="x")
    axes.grid(axis="y", color=FAINT, linewidth=0.3)
    left, right = (float(end) for end in axes.get_xlim())
    axes.set_xlim(max(left, -0.02), min(right, 1.02))


def reliability_diagrams(evaluation: LabelEvaluation) -> Figure:
    """Draw observed rates against probabilities: a panel per label; of classes, how often the most probable is right.

    Args:
        evaluation: What `evaluate_labels` gave.

    Returns:
        A Matplotlib figure. Beyond 16 labels, the 16 most frequent.
    """
    panels = _reliability_panels(evaluation)
    columns = min(4, len(panels))
    size = 3.4 if len(panels) == 1 else 1.95
    with style():
        figure = new_figure(size * columns + 0.4, size * ceil(len(panels) / columns) + 0.4)
        grid = figure.subplots(ceil(len(panels) / columns), columns, squeeze=False)
        for spare in grid.ravel()[len(panels) :]:
            spare.set_visible(False)
        for axes, (title, truth, chance) in zip(grid.ravel(), panels, strict=False):
            _reliability_panel(axes, truth, chance)
            axes.set_title(title, fontsize=10 if len(panels) == 1 else 8.5)
            if len(panels) > 1:
                axes.tick_params(labelsize=7)
        figure.supxlabel("Probability of the most probable class" if evaluation.kind == MULTICLASS else "Probability")
        figure.supylabel("Share that is right" if evaluation.kind == MULTICLASS else "Share that is positive")
    return figure


def _reliability_panels(evaluation: LabelEvaluation) -> list[tuple[str, Array, Array]]:
    truth, chance = evaluation.scans.truth, evaluation.scans.probabilities[evaluation.name]
    figures = evaluation.models[evaluation.name]
    if evaluation.kind == MULTICLASS:
        known = ~np.isnan(truth).any(axis=1)
        right = (chance[known].argmax(axis=1) == truth[known].argmax(axis=1)).astype(np.float64)
        return [(f"ECE {_figure(evaluation, figures['confidence_ece'], 'ece')}", right, chance[known].max(axis=1))]
    entries = evaluation.labels[evaluation.name]
    often = sorted(evaluation.label_names, key=lambda label: -entries[label]["n_positive"])[:_MOST_PANELS]
    return [
        (label if evaluation.kind != BINARY else f"{label}: ECE {_figure(evaluation, entries[label]['ece'], 'ece')}",
         truth[:, at], chance[:, at])
        for at, label in enumerate(evaluation.label_names)
        if label in often
    ]  # fmt: skip


def _reliability_panel(axes: Axes, truth: Array, chance: Array) -> None:
    bins = reliability(truth, chance)
    n, probability, rate = (np.array([entry[key] for entry in bins]) for key in ("n", "probability", "rate"))
    reach = min(1.03, 1.12 * max(float(probability.max(initial=0)), float(rate.max(initial=0)), 0.01))
    axes.plot([0, 1], [0, 1], color=GREYS[0], linewidth=0.9, linestyle=DASHES[1])
    if len(bins):
        stray = 1.96 * np.sqrt(probability * (1 - probability) / n)  # of a perfectly calibrated model
        axes.fill_between(probability, probability - stray, probability + stray, color=FAINT, linewidth=0, alpha=0.8)
        axes.plot(probability, rate, "o-", color=PALETTE[0], markersize=4, linewidth=1.0)
    axes.set(xlim=(-0.02 * reach, reach), ylim=(-0.02 * reach, reach), aspect="equal")
    axes.locator_params(nbins=4)
    axes.grid(color=FAINT, linewidth=0.5)


def confusion_map(evaluation: LabelEvaluation) -> Figure:
    """Draw the confusion matrix: colour is the share of a true class, numbers are scans.

    Args:
        evaluation: What `evaluate_labels` gave, of classes.

    Returns:
        A Matplotlib figure.
    """
    assert evaluation.confusion is not None
    counts = evaluation.confusion.to_numpy(dtype=np.float64)
    share = np.divide(counts, counts.sum(axis=1, keepdims=True), out=np.zeros_like(counts), where=counts > 0)
    n = len(counts)
    cell = float(np.clip(7.4 / n, 0.165, 0.8))  # inches; 44 classes then fill a page's width
    font = float(np.clip(cell * 33, 4.8, 9))
    names = list(evaluation.label_names)
    with style():
        figure = new_figure(cell * n + 1.9, cell * n + 1.6)
        axes = figure.subplots()
        drawn = axes.imshow(share, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axes.set_xticks(range(n), names, rotation=90, fontsize=min(9, font + 1.4))
        axes.set_yticks(range(n), names, fontsize=min(9, font + 1.4))
        axes.set(xlabel="Predicted", ylabel="True")
        axes.tick_params(length=0)
        for edge in axes.spines.values():
            edge.set_visible(True)
        axes.set_xticks(np.arange(n + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(n + 1) - 0.5, minor=True)
        axes.grid(which="minor", color=FAINT, linewidth=0.4)
        axes.tick_params(which="minor", length=0)
        for row, column in np.argwhere(counts > 0) if n <= _MOST_CELLS_WRITTEN else []:
            colour = PAPER if share[row, column] > 0.55 else INK
            text = f"{int(counts[row, column])}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=font)
        figure.colorbar(drawn, ax=axes, shrink=0.4, aspect=24, pad=0.015, label="Share of the true class")
    return figure


def _figure(evaluation: LabelEvaluation, value: float, name: str = "auroc") -> str:
    return format_label_figure(name, value, evaluation.scans.n_groups)
