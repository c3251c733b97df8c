"""Pictures of a training: its loss curves with an explanation in words, and the curves of several runs in one."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neuroage.analysis.drawing import DASHES, GREYS, INK, PALETTE, PAPER, new_figure, rule, save_figure, style
from neuroage.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAE_LINES = {  # history column: (label, colour, width, dash)
    "train_mae": ("train, as trained (augmented)", GREYS[0], 1.2, "-"),
    "train_mae_eval": ("train, without augmentation", PALETTE[4], 1.5, "-"),
    "inner_mae": ("inner: scans held back from training", PALETTE[0], 2.0, "-"),
}
_MAE_NAMES = ("train_mae", "inner_mae", "train_mae_eval")
_LOSS_LINES = {"train_loss": ("train (augmented)", GREYS[0], 1.2, "-"), "inner_loss": ("inner", PALETTE[0], 1.6, "-")}


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
        history: One row per epoch. Column epoch; any of train_mae (with augmentation), train_mae_eval (without, eval
            mode), inner_mae (years), train_loss, inner_loss. A value may be missing.
        path: Where to write the figure; not written when None.
        baseline_mae: MAE of predicting the mean age, in years, drawn as a line.
        patience: Epochs over which the inner MAE has to rise before over-fitting is marked.
        best_epoch: The epoch that was kept; the lowest inner MAE when None.
        title: Heading of the figure.

    Returns:
        A Matplotlib figure.

    Raises:
        DataError: When there is no epoch, or nothing to draw.
    """
    table = _checked(history)
    best = best_epoch if best_epoch is not None else _best(table)
    onset = overfitting_onset(table, patience)
    drawn = [lines for lines in (_MAE_LINES, _LOSS_LINES) if any(_has(table, column) for column in lines)]
    if not drawn:
        raise DataError("a history without any curve", expected="one of " + ", ".join([*_MAE_LINES, *_LOSS_LINES]))
    with style():
        words = textwrap.fill(explain_curves(table, best, onset), 112)
        figure = new_figure(7.2, 1.0 + 2.5 * (drawn[0] is _MAE_LINES) + 1.5 * (_LOSS_LINES in drawn))
        heights = [2.5 if lines is _MAE_LINES else 1.3 for lines in drawn]
        panels = figure.subplots(len(drawn), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
        for lines, axes in zip(drawn, panels, strict=True):
            if lines is _MAE_LINES:
                _draw_baseline(axes, baseline_mae)
            _draw_lines(axes, table, lines)
            axes.set_ylabel("MAE (years)" if lines is _MAE_LINES else "Loss")
            _mark(axes, table, best, onset, named=axes is panels[0])
            rule(axes)
            axes.legend(
                loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, fontsize=8, handlelength=1.6, borderpad=0.2
            )
        if title:
            panels[0].set_title(title, pad=22)
        panels[-1].set_xlabel("Epoch")
        _whole_epochs(panels[-1])
        figure.supxlabel(words, x=0.02, ha="left", fontsize=8.2, color="#4A4F57", linespacing=1.4)
    if path is not None:
        save_figure(figure, path)
    return figure


def explain_curves(history: pd.DataFrame, best_epoch: int | None, onset: int | None) -> str:
    """Say in words what a history shows: the gap between the curves, the best epoch, over-fitting.

    Args:
        history: As for `loss_curves`.
        best_epoch: The epoch that was kept, if any.
        onset: The epoch where over-fitting starts, if any.

    Returns:
        One paragraph; empty when there is nothing to say.
    """
    said = []
    train, inner, plain = (_value_at(history, column, best_epoch) for column in _MAE_NAMES)
    when = "At the end" if best_epoch is None else f"At the best epoch, {best_epoch},"
    if train is not None and inner is not None and train > inner:
        said.append(
            f"{when} training ({train:.1f} years) lies above the inner curve ({inner:.1f}). That is normal: "
            "only training scans are augmented, and dropout acts only in training; both make the task harder."
        )
    elif train is not None and inner is not None:
        said.append(f"{when} training is {train:.1f} years off, the scans held back from it {inner:.1f}.")
    elif inner is not None:
        said.append(f"{when} the scans held back from training are {inner:.1f} years off.")
    if plain is not None and inner is not None and inner >= plain:
        said.append(
            f"The fair comparison is training without augmentation ({plain:.1f}) with inner: "
            f"the {inner - plain:.1f} years between them do not carry over to new people."
        )
    elif plain is not None and inner is not None:
        said.append(
            f"Training without augmentation ({plain:.1f}) is no better than inner: nothing learnt by heart yet."
        )
    if onset is not None:
        said.append(f"It over-fits from epoch {onset} on: the inner error rises while the training error still falls.")
    elif _has(history, "inner_mae") and _has(history, "train_mae_eval"):
        said.append("No over-fitting to be seen.")
    return " ".join(said)


def overfitting_onset(history: pd.DataFrame, patience: int = 10) -> int | None:
    """Find the epoch from which the inner MAE rises, for `patience` epochs or more, while the training MAE still falls.

    Both trends have to stand out of the epoch-to-epoch noise (|slope| above 2 standard errors), so that a flat, noisy
    curve gets no mark.

    Args:
        history: One row per epoch: epoch, inner_mae and train_mae_eval (years).
        patience: Epochs that the rise has to last, at least 3.

    Returns:
        The epoch of the lowest smoothed inner MAE before the rise, or None.
    """
    if not (_has(history, "inner_mae") and _has(history, "train_mae_eval")):
        return None
    table = history[["epoch", "inner_mae", "train_mae_eval"]].dropna()
    patience = max(patience, 3)
    smooth = table["inner_mae"].rolling(3, center=True, min_periods=1).mean().to_numpy()
    if len(table) <= patience:
        return None
    lowest = int(np.argmin(smooth))
    after = table.iloc[lowest:]
    if len(after) <= patience or _trend(after["inner_mae"]) <= 2 or _trend(after["train_mae_eval"]) >= -2:
        return None
    return int(table["epoch"].iloc[lowest])


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
        column: The history column to draw. Runs without it are left out.
        baseline_mae: MAE of predicting the mean age, in years, drawn as a line.
        title: Heading of the figure.

    Returns:
        A Matplotlib figure.

    Raises:
        DataError: When no run has the column.
    """
    drawn = {name: table for name, table in histories.items() if len(table) and _has(table, column)}
    if not drawn:
        raise DataError(f"no run has the curve {column!r}", expected="at least one history with this column")
    with style():
        figure = new_figure(7.2, max(3.2, 0.9 + 0.2 * len(drawn)))
        axes = figure.subplots()
        _draw_baseline(axes, baseline_mae)
        ends = {}
        for index, (name, table) in enumerate(drawn.items()):
            values = table[["epoch", column]].dropna()
            colour, dash = PALETTE[index % len(PALETTE)], DASHES[index // len(PALETTE) % len(DASHES)]
            axes.plot(values["epoch"], values[column], color=colour, linestyle=dash, linewidth=1.5)
            lowest = values.iloc[int(values[column].to_numpy().argmin())]
            axes.plot(lowest["epoch"], lowest[column], "o", color=colour, markersize=4)
            text = f"{name}  {lowest[column]:.1f}"
            ends[text] = (float(values["epoch"].iloc[-1]), float(values[column].iloc[-1]), colour)
        axes.set(xlabel="Epoch", ylabel=_axis_label(column), title=title)
        _whole_epochs(axes)
        rule(axes)
        _name_ends(axes, ends)
        figure.supxlabel("Dot and number: the lowest of each run.", x=0.02, ha="left", fontsize=8, color="#4A4F57")
    if path is not None:
        save_figure(figure, path)
    return figure


def _checked(history: pd.DataFrame) -> pd.DataFrame:
    if "epoch" not in history.columns or not len(history):
        raise DataError("a history without epochs", expected="one row per epoch with a column 'epoch'")
    return history.sort_values("epoch", ignore_index=True)


def _has(history: pd.DataFrame, column: str) -> bool:
    return column in history.columns and bool(history[column].notna().any())


def _value_at(history: pd.DataFrame, column: str, epoch: int | None) -> float | None:
    """Give a curve's value at an epoch, or at the last one before it that has a value; the last of all for None."""
    if not _has(history, column):
        return None
    values = history[["epoch", column]].dropna()
    before = values if epoch is None else values[values["epoch"] <= epoch]
    return float((before if len(before) else values)[column].iloc[-1])


def _best(history: pd.DataFrame) -> int | None:
    if not _has(history, "inner_mae"):
        return None
    return int(history["epoch"].iloc[int(np.nanargmin(history["inner_mae"].to_numpy(dtype=np.float64)))])


def _trend(values: pd.Series) -> float:
    """Slope over its standard error; infinite for a straight line without noise."""
    y = values.to_numpy(dtype=np.float64)
    x = np.arange(len(y)) - (len(y) - 1) / 2
    slope = float(x @ y / (x @ x))
    residual = y - y.mean() - slope * x
    error = float(np.sqrt(residual @ residual / max(len(y) - 2, 1) / (x @ x)))
    return slope / error if error > 1e-12 else float(np.sign(slope)) * float("inf") if slope else 0.0


def _draw_lines(axes: Axes, table: pd.DataFrame, lines: Mapping[str, tuple[str, str, float, Any]]) -> None:
    few = len(table) < 4
    for column, (label, colour, width, dash) in lines.items():
        if _has(table, column):
            values = table[["epoch", column]].dropna()
            marker = "o" if few else ""
            axes.plot(values["epoch"], values[column], dash, color=colour, linewidth=width, label=label, marker=marker)
    if lines is _MAE_LINES:
        axes.set_ylim(0, axes.get_ylim()[1] * 1.04)


def _draw_baseline(axes: Axes, baseline_mae: float | None) -> None:
    if baseline_mae is not None and np.isfinite(baseline_mae):
        axes.axhline(baseline_mae, color=INK, linewidth=1.0, linestyle=DASHES[1])
        text = f"predict the mean: {baseline_mae:.1f} years"
        axes.annotate(text, (0.01, baseline_mae), xycoords=("axes fraction", "data"), xytext=(0, 3),
                      textcoords="offset points", fontsize=8)  # fmt: skip


def _mark(axes: Axes, table: pd.DataFrame, best: int | None, onset: int | None, *, named: bool) -> None:
    if onset is not None:
        axes.axvspan(onset, float(table["epoch"].max()), color=PALETTE[1], alpha=0.08, linewidth=0)
        if named:
            axes.annotate("over-fitting", (onset, 0.02), xycoords=("data", "axes fraction"), xytext=(4, 2),
                          textcoords="offset points", fontsize=8, color=PALETTE[1])  # fmt: skip
    if best is not None:
        axes.axvline(best, color=PALETTE[0], linewidth=0.9, linestyle=DASHES[2])
        found = table.loc[table["epoch"] == best, "inner_mae"] if _has(table, "inner_mae") else pd.Series(dtype=float)
        if named and len(found) and np.isfinite(found.iloc[0]):
            value = float(found.iloc[0])
            axes.plot(best, value, "o", color=PALETTE[0], markersize=6, markeredgecolor=PAPER)
            early = best < float(table["epoch"].mean())
            axes.annotate(f"best: epoch {best}, {value:.1f} years", (best, value), xytext=(6 if early else -6, -12),
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
    names = {"inner_mae": "Inner MAE (years)", "train_mae": "Training MAE, augmented (years)"}
    names |= {"train_mae_eval": "Training MAE (years)", "train_loss": "Training loss", "inner_loss": "Inner loss"}
    return names.get(column, column)
