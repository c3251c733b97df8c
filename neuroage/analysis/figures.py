"""Pictures of predictions: predicted against real age, gap against age, error by decade, paired differences."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroage.analysis.drawing import DASHES, FAINT, GREYS, INK, PALETTE, PAPER, new_figure, rule, style
from neuroage.analysis.formatting import MINUS, format_figure, format_p, number
from neuroage.analysis.scores import Scores
from neuroage.analysis.subjects import BASELINE, FUSION, MODEL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 3
_MANY = 2_000  # subjects beyond which points are drawn as pixels, to keep pages small
MOST_POINTS = 10_000  # more only hide one another, and take seconds to draw


def predicted_vs_age(scores: Scores) -> Figure:
    """Draw predicted against real age with the line of equality, one square panel per model.

    Args:
        scores: An `Evaluation` or `Comparison`.

    Returns:
        A Matplotlib figure; nothing is shown or written.
    """
    names = _panels(scores)
    age = scores.subjects["age"].to_numpy()
    low, high = _limits(np.concatenate([age, *(scores.predicted(name) for name in names)]))
    with style():
        figure, panels = _grid(names, height=2.75)
        for name, axes in zip(names, panels, strict=True):
            axes.plot([low, high], [low, high], color=GREYS[0], linewidth=0.9, linestyle=DASHES[1])
            _points(axes, age, scores.predicted(name), colour_of(scores, name))
            axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
            axes.xaxis.set_major_locator(_whole_decades(low, high))
            axes.yaxis.set_major_locator(_whole_decades(low, high))
            axes.set_title(str(scores.models[name]["label"]))
            _note(axes, _mae_note(scores, name), "upper left")
        _label_outer(panels, "Age (years)", "Predicted age (years)")
    return figure


def bland_altman(scores: Scores) -> Figure:
    """Draw the gap (predicted − real age) against age, with its mean and mean ± 1.96 standard deviations.

    Args:
        scores: An `Evaluation` or `Comparison`.

    Returns:
        A Matplotlib figure.

    Source: Bland & Altman 1986, doi:10.1016/S0140-6736(86)90837-8; here against the real age.
    """
    names = _panels(scores)
    age = scores.subjects["age"].to_numpy()
    gaps = {name: scores.predicted(name) - age for name in names}
    reach = max(float(np.abs(np.concatenate(list(gaps.values()))).max()) * 1.12, 1.0)
    reach = max(reach, *(abs(gap.mean()) + 2.1 * (gap.std(ddof=1) if len(gap) > 1 else 0) for gap in gaps.values()))
    with style():
        figure, panels = _grid(names, height=2.6)
        for name, axes in zip(names, panels, strict=True):
            gap, figures = gaps[name], scores.models[name]
            axes.axhline(0, color=GREYS[0], linewidth=0.8)
            _points(axes, age, gap, colour_of(scores, name))
            left, right = _limits(age)
            axes.set(xlim=(left, right + 0.2 * (right - left)), ylim=(-reach, reach))  # room for the lines' values
            axes.xaxis.set_major_locator(_whole_decades(left, right))
            axes.set_title(str(figures["label"]))
            _agreement_lines(axes, figures["gap_mean"], figures["gap_sd"])
            slope = format_figure("gap_slope", figures["gap_slope"], scores.n_subjects)
            _note(axes, f"slope {slope} years per year", "lower left")
        _label_outer(panels, "Age (years)", f"Predicted {MINUS} real age (years)")
    return figure


def decade_bars(scores: Scores) -> Figure:
    """Draw the mean absolute error by age decade: bars for models, lines across for baselines.

    Args:
        scores: An `Evaluation` or `Comparison`.

    Returns:
        A Matplotlib figure.
    """
    bars, lines = scores.names(MODEL, FUSION), scores.names(BASELINE)
    with style():
        figure = new_figure(max(5.6, 1.5 + 0.75 * len(scores.decades)), 3.1)
        axes = figure.subplots()
        at = np.arange(len(scores.decades))
        width = 0.76 / len(bars)
        for index, name in enumerate(bars):
            heights = [row["mae"][name] for row in scores.decades]
            left = at - 0.38 + width * (index + 0.5)
            colour = colour_of(scores, name)
            axes.bar(left, heights, width * 0.9, color=colour, label=scores.models[name]["label"])
        for index, name in enumerate(lines):
            heights = [row["mae"][name] for row in scores.decades]
            grey, dash = GREYS[index % 3], DASHES[index % 4]
            axes.hlines(heights, at - 0.44, at + 0.44, color=PAPER, linewidth=2.8)
            axes.hlines(heights, at - 0.44, at + 0.44, color=grey, linewidth=1.5, linestyle=dash, label=_baseline(name))
        axes.set_xticks(at, [f"{row['label']}\nn = {row['n']}" for row in scores.decades])
        axes.tick_params(axis="x", length=0)
        axes.set(ylabel="MAE (years)", xlabel="Age decade", xlim=(-0.6, len(at) - 0.4))
        rule(axes)
        handles, labels = axes.get_legend_handles_labels()
        bars_first = sorted(zip(labels, handles, strict=True), key=lambda entry: entry[0] in map(_baseline, lines))
        labels, handles = [label for label, _ in bars_first], [handle for _, handle in bars_first]
        figure.legend(
            handles,
            labels,
            loc="outside upper left",
            ncols=min(5, len(bars) + len(lines)),
            handlelength=1.6,
            columnspacing=1.6,
        )
    return figure


def paired_differences(scores: Scores) -> Figure:
    """Draw paired differences in MAE with their 95% intervals; left of 0 the first-named is nearer to the real age.

    Differences from predicting the mean are left to the table: they dwarf all others.

    Args:
        scores: An `Evaluation` or `Comparison`.

    Returns:
        A Matplotlib figure.
    """
    pairs = [pair for pair in scores.pairs if pair["b"] != "mean"] or scores.pairs
    with style():
        figure = new_figure(7.4, 1.05 + 0.34 * len(pairs))
        axes = figure.subplots()
        axes.axvline(0, color=INK, linewidth=0.8)
        for row, pair in enumerate(pairs):
            shown = pair["difference_high"] < 0 or pair["difference_low"] > 0
            colour = colour_of(scores, pair["a"])
            axes.plot([pair["difference_low"], pair["difference_high"]], [row, row], color=colour, linewidth=1.8)
            face = colour if shown else PAPER
            axes.plot(
                pair["difference"], row, "o", color=colour, markersize=6, markerfacecolor=face, markeredgewidth=1.5
            )
            axes.text(
                1.02, row, _difference_note(pair), transform=axes.get_yaxis_transform(), va="center", fontsize=8.5
            )
        labels = [f"{scores.models[pair['a']]['label']} {MINUS} {scores.models[pair['b']]['label']}" for pair in pairs]
        axes.set_yticks(range(len(pairs)), labels)
        axes.set(ylim=(len(pairs) - 0.5, -0.5), xlabel="Difference in MAE (years): left of 0 the first is nearer")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        rule(axes, axis="x")
    return figure


def colour_of(scores: Scores, name: str) -> str:
    """Give the colour that a model has in every figure: models and fusion from the palette, baselines grey."""
    coloured, grey = scores.names(MODEL, FUSION), scores.names(BASELINE)
    return PALETTE[coloured.index(name) % len(PALETTE)] if name in coloured else GREYS[grey.index(name) % len(GREYS)]


def _panels(scores: Scores) -> list[str]:
    """Models and fusion; beside a single model also the baselines that look at the scan."""
    names = scores.names(MODEL, FUSION)
    return names if len(names) > 1 else names + [name for name in scores.names(BASELINE) if name != "mean"]


def _grid(names: list[str], height: float) -> tuple[Figure, list[Axes]]:
    columns = 2 if len(names) == 4 else min(_COLUMNS, len(names))
    rows = ceil(len(names) / columns)
    figure = new_figure(max(2.65 * columns, 3.4), height * rows + 0.15)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    panels = list(grid.ravel())
    for spare in panels[len(names) :]:
        spare.set_visible(False)
    return figure, panels[: len(names)]


def _points(axes: Axes, x: np.ndarray, y: np.ndarray, colour: str) -> None:
    many = len(x) > _MANY
    if len(x) > MOST_POINTS:
        shown = np.linspace(0, len(x) - 1, MOST_POINTS).round().astype(int)  # subjects are in the order of their ages
        x, y = x[shown], y[shown]
    size, strength = (6, 0.35) if many else (20, 0.72)
    axes.scatter(x, y, s=size, color=colour, alpha=strength, edgecolors=PAPER, linewidths=0.4, rasterized=many)


def _agreement_lines(axes: Axes, mean: float, sd: float) -> None:
    from matplotlib.transforms import blended_transform_factory

    beside = blended_transform_factory(axes.transAxes, axes.transData)
    ends = [] if np.isnan(sd) else [(mean - 1.96 * sd, DASHES[1]), (mean + 1.96 * sd, DASHES[1])]
    for value, dash in [(mean, "-"), *ends]:
        axes.axhline(value, color=INK, linewidth=0.9, linestyle=dash)
        text = number(value, 1, signed=True)
        axes.annotate(
            text, (0.995, value), xycoords=beside, xytext=(0, 1.5), textcoords="offset points", ha="right", fontsize=8
        )


def _note(axes: Axes, text: str, corner: str) -> None:
    y, va = (0.98, "top") if corner.startswith("upper") else (0.02, "bottom")
    box = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.0, "alpha": 0.8}
    axes.text(0.03, y, text, transform=axes.transAxes, va=va, fontsize=8, bbox=box, linespacing=1.35)


def _mae_note(scores: Scores, name: str) -> str:
    figures, n = scores.models[name], scores.n_subjects
    return (
        f"MAE {format_figure('mae', figures['mae'], n)} years\nr {format_figure('pearson_r', figures['pearson_r'], n)}"
    )


def _difference_note(pair: Mapping[str, Any]) -> str:
    n = pair["n_subjects"]
    low, value, high = (
        format_figure("difference", pair[key], n) for key in ("difference_low", "difference", "difference_high")
    )
    return f"{value} ({low} to {high})   p {'' if pair['p'] < 0.001 else '= '}{format_p(pair['p'])}"


def _label_outer(panels: list[Axes], x: str, y: str) -> None:
    for axes in panels:
        axes.set_xlabel(x)
        if axes.get_subplotspec() is None or axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            axes.set_ylabel(y)
        axes.grid(color=FAINT, linewidth=0.5)


def _limits(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = max(0.05 * (high - low), 2.0)
    return low - margin, high + margin


def _whole_decades(low: float, high: float) -> Any:
    """Tick ages every 10 or 20 years; wider than a lifetime (a model gone astray), wherever five ticks fit."""
    from matplotlib.ticker import MaxNLocator, MultipleLocator

    width = high - low
    return MultipleLocator(10 if width <= 50 else 20) if width <= 160 else MaxNLocator(nbins=5)


def _baseline(name: str) -> str:
    return {"mean": "predict the mean"}.get(name, name)
