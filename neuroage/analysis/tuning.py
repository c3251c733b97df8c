"""What a tuning found: the table of its trials, how the best score came down, which values mattered."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from neuroage.analysis.drawing import GREYS, INK, PALETTE, new_figure, rule, save_figure, style, svg_address
from neuroage.analysis.page import bullets, picture, section, whole_page
from neuroage.analysis.page import table as page_table
from neuroage.files import atomic_path, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOOKS = {  # state: (words, colour, size)
    "complete": ("complete", PALETTE[0], 26),
    "pruned": ("ended early, score then", GREYS[2], 18),
}
FEW = 30  # complete trials: with fewer, importances are rough


@dataclass(frozen=True)
class Tuning:
    """The trials of a tuning.

    Attributes:
        table: One row a trial: trial, state (complete, pruned, failed, running), score, steps (epochs), seconds,
            reason, a column for each key, folder.
        keys: The keys of the recipe that were searched.
        metric: Name of the score.
        higher_is_better: Whether a larger score is better.
        importances: Key → share of the variance of the scores that it accounts for.
        n_train, n_held_back: Subjects that were trained on, and whose score it is.
    """

    table: pd.DataFrame
    keys: list[str]
    metric: str
    higher_is_better: bool
    importances: dict[str, float] = field(default_factory=dict)
    n_train: int = 0
    n_held_back: int = 0

    @property
    def n_all(self) -> int:
        """Subjects that took part."""
        return self.n_train + self.n_held_back

    def best(self, n: int = 5) -> pd.DataFrame:
        """Give the best complete trials, best first."""
        complete = self.table[self.table["state"] == "complete"]
        return complete.sort_values("score", ascending=not self.higher_is_better, kind="stable").head(n)


def write_tuning(tuning: Tuning, folder: str | os.PathLike[str]) -> None:
    """Write trials.csv, history.png, importance.png (where there are importances) and tuning.html into a folder."""
    where = Path(folder)
    with atomic_path(where / "trials.csv") as temporary:
        tuning.table.to_csv(temporary, index=False)
    history = draw_scores(tuning, where / "history.png")
    importance = draw_importance(tuning, where / "importance.png") if tuning.importances else None
    write_text(where / "tuning.html", _page(tuning, history, importance))


def draw_scores(tuning: Tuning, path: str | os.PathLike[str] | None = None) -> Figure:
    """Draw the score of every trial, and the best so far.

    Args:
        tuning: With at least one complete trial.
        path: Where to write the figure; not written when None.
    """
    from matplotlib.ticker import MaxNLocator

    table = tuning.table.sort_values("trial")
    complete = table[table["state"] == "complete"]
    so_far = complete["score"].cummax() if tuning.higher_is_better else complete["score"].cummin()
    with style():
        figure = new_figure(6.8, 3.4)
        axes = figure.subplots()
        numbers = np.append(complete["trial"], table["trial"].max())
        low, high = _span(tuning, complete["score"].to_numpy(dtype=float))
        line = np.append(so_far, so_far.iloc[-1]).clip(low, high)
        axes.step(numbers, line, where="post", color=PALETTE[0], label="best so far")
        beyond = table["score"].lt(low) if tuning.higher_is_better else table["score"].gt(high)
        off = "v" if tuning.higher_is_better else "^"
        for state, (label, colour, size) in LOOKS.items():
            for marker, rows in (("o", table[~beyond]), (off, table[beyond])):
                rows = rows[(rows["state"] == state) & rows["score"].notna()]
                name = label if marker == "o" else f"{label}, far off"
                if len(rows):
                    axes.scatter(
                        rows["trial"], rows["score"].clip(low, high), s=size, c=colour, marker=marker, label=name
                    )
        failed = table[table["state"] == "failed"]
        if len(failed):
            edge = low if tuning.higher_is_better else high
            axes.scatter(failed["trial"], np.full(len(failed), edge), s=26, c=PALETTE[1], marker="x", label="failed")
        best = tuning.best(1).iloc[0]
        axes.scatter([best["trial"]], [best["score"]], s=70, facecolors="none", edgecolors=INK, linewidths=1.2)
        axes.annotate(
            f"{best['score']:.4g}",
            (best["trial"], best["score"]),
            xytext=(0, 8 if tuning.higher_is_better else -14),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
        pad = 0.12 * (high - low)
        axes.set_ylim(low - pad, high + pad)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=10, steps=[1, 2, 5, 10], integer=True))
        better = "higher" if tuning.higher_is_better else "lower"
        axes.set(xlabel="Trial", ylabel=f"{_metric(tuning)}, {better} is better", title="Scores of the trials")
        rule(axes)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    if path is not None:
        save_figure(figure, path)
    return figure


def draw_importance(tuning: Tuning, path: str | os.PathLike[str] | None = None) -> Figure:
    """Draw how much each key mattered, beside its values and their scores.

    Args:
        tuning: With importances.
        path: Where to write the figure; not written when None.
    """
    keys = sorted(tuning.importances, key=lambda key: tuning.importances[key])
    shares = [100 * tuning.importances[key] for key in keys]
    with style():
        figure = new_figure(6.8, 1.1 + 0.34 * len(keys))
        axes = figure.subplots()
        axes.barh(range(len(keys)), shares, color=PALETTE[0], height=0.62)
        for place, share in enumerate(shares):
            axes.annotate(f"{share:.0f} %", (share, place), xytext=(4, 0), textcoords="offset points", va="center",
                          fontsize=8)  # fmt: skip
        axes.set_yticks(range(len(keys)), keys)
        axes.set_xlim(0, max(shares) * 1.12 + 1)
        axes.set(xlabel=f"Share of the variance of the {_metric(tuning)}", title="What mattered")
        rule(axes, axis="x")
        axes.tick_params(axis="y", length=0)
    if path is not None:
        save_figure(figure, path)
    return figure


def _span(tuning: Tuning, scores: np.ndarray) -> tuple[float, float]:
    """Give the part of the axis in which good scores can be told apart; worse ones are drawn at its edge."""
    low, high, middle = float(scores.min()), float(scores.max()), float(np.median(scores))
    if tuning.higher_is_better:
        low = max(low, middle - 2 * (high - middle)) if high > middle else low
    else:
        high = min(high, middle + 2 * (middle - low)) if middle > low else high
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _metric(tuning: Tuning) -> str:
    return "MAE in years" if tuning.metric == "mae" else tuning.metric.upper().replace("_", " ")


def _page(tuning: Tuning, history: Figure, importance: Figure | None) -> str:
    counts = tuning.table["state"].value_counts()
    said = ", ".join(
        f"{counts[state]} {state}" for state in ("complete", "pruned", "failed", "running") if state in counts
    )
    best = tuning.best(1).iloc[0]
    head = ["Trial", _metric(tuning), "Epochs", *tuning.keys]
    rows = [
        (
            "model",
            [
                str(row["trial"]),
                shown(row["score"]),
                str(row["steps"]),
                *(escape(shown(row[key])) for key in tuning.keys),
            ],
        )
        for row in tuning.best(10).to_dict("records")
    ]
    failures = tuning.table[tuning.table["state"] == "failed"]
    words = f"Share of the variance of the scores, by fANOVA, over {counts['complete']} complete trials."
    if counts["complete"] < FEW:
        words += " With so few, it is rough."
    return whole_page(
        "Tuning",
        "<h1>Tuning</h1>\n",
        f'<p class="answer">Best of {len(tuning.table)} trials: {_metric(tuning)} {shown(best["score"])} '
        f"(trial {best['trial']}).</p>\n",
        f'<p class="notice">This is the best of many on {tuning.n_held_back} subjects held back from the '
        f"{tuning.n_all} training subjects, so it is better than new subjects will show. It is no test score.</p>\n",
        f'<p class="lead">{said}.</p>\n',
        page_table("The best trials", head, rows),
        picture(
            svg_address(history), "The score of every trial, and the best so far. Scores far off stand at the edge."
        ),
        picture(svg_address(importance), words) if importance else "",
        section(
            "Failed trials",
            bullets(f"{row['trial']}: {escape(str(row['reason']))}" for row in failures.to_dict("records")),
        )
        if len(failures)
        else "",
    )


def shown(value: Any) -> str:
    """Set a score or a value of a recipe as a person reads it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
