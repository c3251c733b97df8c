"""Pictures of a training: its loss curves with an explanation in words, and the curves of several runs in one."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from neuroage.analysis.curve_reading import (
    AUROC,
    MAE,
    METRICS,
    CurveMetric,
    best_epoch_of,
    best_row,
    explain_curves,
    has_curve,
    held_back_set,
    metric_of,
    overfitting_onset,
    value_at,
)
from neuroage.analysis.drawing import DASHES, GREYS, INK, PALETTE, PAPER, new_figure, rule, save_figure, style
from neuroage.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["explain_curves", "loss_curves", "overfitting_onset", "overlay_curves"]

_Line = tuple[str, str, float, str]  # label, colour, width, dash
_AS_TRAINED: _Line = ("train, as trained (augmented)", GREYS[0], 1.2, "-")
_HELD_BACK = {
    "inner": "inner: scans held back from training",
    "validation": "validation: scans that no step learns from",
}


class _Panel(NamedTuple):
    """One of the axes under each other: what is drawn, and how high it is in inches."""

    title: str
    lines: dict[str, _Line]  # history column: line
    height: float


def _panels(history: pd.DataFrame) -> list[_Panel]:
    """Give the panels that a history can fill: the metric, what is logged of labels while training, the loss."""
    metric, held = metric_of(history), held_back_set(history)
    lines: dict[str, _Line] = {f"train_{metric.name}": _AS_TRAINED} if metric is MAE else {}
    lines[f"train_{metric.name}_eval"] = ("train, without augmentation", PALETTE[4], 1.5, "-")
    lines[f"{held}_{metric.name}"] = (_HELD_BACK[held], PALETTE[0], 2.0, "-")
    panels = [_Panel(f"{metric.title} ({metric.unit})" if metric.unit else metric.title, lines, 2.5)]
    if metric is not MAE:
        panels.append(_Panel("Share wrong", {f"train_{metric.running}": _AS_TRAINED}, 1.3))
    losses = {"train_loss": ("train (augmented)", GREYS[0], 1.2, "-"), f"{held}_loss": (held, PALETTE[0], 1.6, "-")}
    panels.append(_Panel("Loss", losses, 1.3))
    return [panel for panel in panels if any(has_curve(history, column) for column in panel.lines)]


def loss_curves(
    history: pd.DataFrame,
    path: str | os.PathLike[str] | None = None,
    *,
    baseline_mae: float | None = None,
    patience: int = 10,
    best_epoch: int | None = None,
    title: str = "",
) -> Figure:
    """Draw a training's history, and say in words what the curves mean.

    Args:
        history: One row per epoch. Column epoch; of ages any of train_mae (with augmentation), train_mae_eval (without,
            eval mode), inner_mae (years); of labels train_error_rate, train_auroc_eval, inner_auroc; train_loss,
            inner_loss. Without an inner part, validation_… stands for it. A value may be missing.
        path: Where to write the figure; not written when None.
        baseline_mae: MAE of predicting the mean age, in years, drawn as a line; the history's own baseline when None.
        patience: Epochs over which the held-back metric has to turn before over-fitting is marked.
        best_epoch: The epoch that was kept; the best of the held-back metric when None.
        title: Heading of the figure.

    Returns:
        A Matplotlib figure.

    Raises:
        DataError: When there is no epoch, or nothing to draw.
    """
    table = _checked(history)
    metric, panels = metric_of(table), _panels(table)
    if not panels:
        named = ("train_mae", "train_mae_eval", "inner_mae", "train_auroc_eval", "inner_auroc", "train_loss")
        raise DataError("a history without any curve", expected="one of " + ", ".join(named))
    best = best_epoch if best_epoch is not None else best_epoch_of(table)
    onset = overfitting_onset(table, patience)
    baseline = baseline_mae if baseline_mae is not None else value_at(table, f"baseline_mean_{metric.name}", None)
    with style():
        words = textwrap.fill(explain_curves(table, best, onset), 112)
        figure = new_figure(7.2, 1.0 + sum(panel.height + 0.2 * (panel.height < 2) for panel in panels))
        heights = [panel.height for panel in panels]
        drawn = figure.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
        for panel, axes in zip(panels, drawn, strict=True):
            of_metric = panel.title.startswith(metric.title)
            if of_metric:
                _draw_baseline(axes, baseline, metric)
            _draw_lines(axes, table, panel)
            axes.set_ylabel(panel.title)
            _mark(axes, table, best, onset, named=axes is drawn[0], metric=metric if of_metric else None)
            rule(axes)
            axes.legend(
                loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, fontsize=8, handlelength=1.6, borderpad=0.2
            )
        if title:
            drawn[0].set_title(title, pad=22)
        drawn[-1].set_xlabel("Epoch")
        _whole_epochs(drawn[-1])
        figure.supxlabel(words, x=0.02, ha="left", fontsize=8.2, color="#4A4F57", linespacing=1.4)
    if path is not None:
        save_figure(figure, path)
    return figure


def overlay_curves(
    histories: Mapping[str, pd.DataFrame],
    path: str | os.PathLike[str] | None = None,
    *,
    column: str = "inner_mae",
    baseline_mae: float | None = None,
    title: str = "",
) -> Figure:
    """Draw one curve of each of several runs into one picture, each named at its end.

    Args:
        histories: Run name to history, as for `loss_curves`.
        path: Where to write the figure; not written when None.
        column: The history column to draw, such as inner_mae or validation_auroc. Runs without it are left out.
        baseline_mae: MAE of predicting the mean age, in years, drawn as a line.
        title: Heading of the figure.

    Returns:
        A Matplotlib figure.

    Raises:
        DataError: When no run has the column.
    """
    drawn = {name: table for name, table in histories.items() if len(table) and has_curve(table, column)}
    if not drawn:
        raise DataError(f"no run has the curve {column!r}", expected="at least one history with this column")
    metric = next((metric for metric in METRICS if f"_{metric.name}" in column), None)
    best_is = "highest" if metric and metric.higher_is_better else "lowest"
    with style():
        figure = new_figure(7.2, max(3.2, 0.9 + 0.2 * len(drawn)))
        axes = figure.subplots()
        _draw_baseline(axes, baseline_mae, MAE)
        ends = {}
        for index, (name, table) in enumerate(drawn.items()):
            values = table[["epoch", column]].dropna()
            colour, dash = PALETTE[index % len(PALETTE)], DASHES[index // len(PALETTE) % len(DASHES)]
            axes.plot(values["epoch"], values[column], color=colour, linestyle=dash, linewidth=1.5)
            best = values.iloc[best_row(values[column], column)]
            axes.plot(best["epoch"], best[column], "o", color=colour, markersize=4)
            text = f"{name}  {(metric or AUROC).plain(best[column])}"
            ends[text] = (float(values["epoch"].iloc[-1]), float(values[column].iloc[-1]), colour)
        axes.set(xlabel="Epoch", ylabel=_axis_label(column), title=title)
        _whole_epochs(axes)
        rule(axes)
        _name_ends(axes, ends)
        figure.supxlabel(f"Dot and number: the {best_is} of each run.", x=0.02, ha="left", fontsize=8, color="#4A4F57")
    if path is not None:
        save_figure(figure, path)
    return figure


def _checked(history: pd.DataFrame) -> pd.DataFrame:
    if "epoch" not in history.columns or not len(history):
        raise DataError("a history without epochs", expected="one row per epoch with a column 'epoch'")
    return history.sort_values("epoch", ignore_index=True)


def _draw_lines(axes: Axes, table: pd.DataFrame, panel: _Panel) -> None:
    few = len(table) < 4
    for column, (label, colour, width, dash) in panel.lines.items():
        if has_curve(table, column):
            values = table[["epoch", column]].dropna()
            marker = "o" if few else ""
            axes.plot(values["epoch"], values[column], dash, color=colour, linewidth=width, label=label, marker=marker)
    low, high = axes.get_ylim()
    if panel.title.startswith(MAE.title):
        axes.set_ylim(0, high * 1.04)
    elif panel.title == AUROC.title:
        axes.set_ylim(min(low, 0.44), 1.01)  # what knowing nothing gives is always in sight
    elif panel.title == "Share wrong":
        axes.set_ylim(0, min(1.0, high * 1.04))


def _draw_baseline(axes: Axes, baseline: float | None, metric: CurveMetric) -> None:
    if baseline is not None and np.isfinite(baseline):
        axes.axhline(baseline, color=INK, linewidth=1.0, linestyle=DASHES[1])
        said = "predict the mean" if metric is MAE else "knowing nothing"
        text = f"{said}: {metric.shown(baseline)}"
        below = metric.higher_is_better  # curves come from there on the other side
        axes.annotate(text, (0.01, baseline), xycoords=("axes fraction", "data"), xytext=(0, -10 if below else 3),
                      textcoords="offset points", fontsize=8)  # fmt: skip


def _mark(
    axes: Axes, table: pd.DataFrame, best: int | None, onset: int | None, *, named: bool, metric: CurveMetric | None
) -> None:
    """Shade over-fitting and mark the best epoch; in words where `named`, with its value on the panel of a metric."""
    if onset is not None:
        axes.axvspan(onset, float(table["epoch"].max()), color=PALETTE[1], alpha=0.08, linewidth=0)
        if named:
            height = 0.92 if metric and metric.higher_is_better else 0.02
            axes.annotate("over-fitting", (onset, height), xycoords=("data", "axes fraction"), xytext=(4, 2),
                          textcoords="offset points", fontsize=8, color=PALETTE[1])  # fmt: skip
    if best is None:
        return
    axes.axvline(best, color=PALETTE[0], linewidth=0.9, linestyle=DASHES[2])
    if metric is None:
        return
    value = value_at(table[table["epoch"] == best], f"{held_back_set(table)}_{metric.name}", best)
    if value is not None and np.isfinite(value):
        axes.plot(best, value, "o", color=PALETTE[0], markersize=6, markeredgecolor=PAPER)
        early = best < float(table["epoch"].mean())
        axes.annotate(f"best: epoch {best}, {metric.shown(value)}", (best, value),
                      xytext=(6 if early else -6, 6 if metric.higher_is_better else -12),
                      ha="left" if early else "right", textcoords="offset points", fontsize=8,
                      color=PALETTE[0])  # fmt: skip


def _name_ends(axes: Axes, ends: Mapping[str, tuple[float, float, str]]) -> None:
    """Write each run's name right of the axes, pushed apart where curves end close together."""
    low, high = axes.get_ylim()
    gap = (high - low) * 0.055 if len(ends) < 14 else (high - low) / (len(ends) + 1)
    reached = -np.inf
    for text, (_, y, colour) in sorted(ends.items(), key=lambda end: end[1][1]):
        reached = max(y, reached + gap)
        axes.annotate(text, (1.01, reached), xycoords=("axes fraction", "data"), color=colour, fontsize=8, va="center",
                      annotation_clip=False)  # fmt: skip


def _whole_epochs(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, steps=[1, 2, 5, 10], integer=True))


def _axis_label(column: str) -> str:
    names = {"train_mae": "Training MAE, augmented (years)", "train_error_rate": "Training, augmented: share wrong"}
    sets = {"train": "Training", "inner": "Inner", "validation": "Validation"}
    for set_name, said in sets.items():
        names |= {f"{set_name}_loss": f"{said} loss", f"{set_name}_auroc": f"{said} AUROC"}
        names |= {f"{set_name}_mae": f"{said} MAE (years)"} if set_name != "train" else {}
    names |= {"train_mae_eval": "Training MAE (years)", "train_auroc_eval": "Training AUROC"}
    return names.get(column, column)
