"""What the terminal shows: results on stdout, talk on stderr, a story while it runs."""

from __future__ import annotations

import json
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from neuroage.files import finite, is_main_process
from neuroage.training.observer import Observer

out = Console(highlight=False, soft_wrap=True, quiet=not is_main_process())
talk = Console(stderr=True, highlight=False, soft_wrap=True, quiet=not is_main_process())

BARS = "▏▎▍▌▋▊▉█"


def print_json(content: Any) -> None:
    """Print JSON to stdout; NaN becomes null."""
    if is_main_process():
        print(json.dumps(finite(content), indent=2, ensure_ascii=False))


def make_table(title: str, columns: list[str], rows: list[list[str]], *, numbers_from: int = 1) -> Table:
    """Make a table; columns from `numbers_from` on are aligned to the right, but for those without a name (bars)."""
    table = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if column and index >= numbers_from else "left", no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    return table


def metric_row(figures: dict[str, Any]) -> list[str]:
    """Set the figures of a model as cells: label, MAE, interval, RMSE, r, R², gap slope."""
    return [
        str(figures["label"]),
        shown(figures["mae"]),
        f"{shown(figures['mae_low'])} – {shown(figures['mae_high'])}",
        shown(figures["rmse"]),
        shown(figures["pearson_r"]),
        shown(figures["r2"]),
        shown(figures["gap_slope"]),
    ]


def shown(value: float | None, digits: int = 2) -> str:
    """Set a number, or a dash where there is none."""
    return "–" if value is None or value != value else f"{value:.{digits}f}"


def bar(value: float, most: float, width: int = 30) -> str:
    """Draw a bar of eighths of a character."""
    eighths = round(8 * width * value / most) if most else 0
    whole, part = divmod(eighths, 8)
    return BARS[-1] * whole + (BARS[part - 1] if part else "")


def age_histogram(ages: list[float], width: int = 40) -> str:
    """Draw the number of subjects per five years of age, one line each."""
    if not ages:
        return "no ages"
    first, last = int(min(ages) // 5 * 5), int(max(ages) // 5 * 5)
    counts = {start: sum(start <= age < start + 5 for age in ages) for start in range(first, last + 5, 5)}
    most = max(counts.values())
    return "\n".join(f"  {start:>3}–{start + 4:<3} {bar(n, most, width)} {n}" for start, n in counts.items())


class Story(Observer):
    """An observer that tells a training: one live line on a terminal, a line now and then elsewhere."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.progress: Progress | None = None
        self.task: Any = None
        self.n_epochs, self.last_line = 0, 0.0

    def stage(self, text: str) -> None:
        """A new stage begins."""
        self._close()
        if not self.quiet:
            talk.print(f"[bold cyan]▸[/] {text}")

    def note(self, text: str) -> None:
        """Something that the user should know."""
        if not self.quiet:
            talk.print(f"  [yellow]•[/] {text}", markup=True)

    def preparing(self, done: int, n_scans: int) -> None:
        """Show how many scans are prepared."""
        self._bar("scans", done, n_scans, "")

    def training(self, run: Any, first_epoch: int, n_epochs: int) -> None:
        """The loop begins."""
        self._close()
        self.n_epochs = n_epochs
        if first_epoch and not self.quiet:
            talk.print(f"  continuing after epoch {first_epoch} of {n_epochs}")

    def step(self, epoch: int, step: int, n_steps: int) -> None:
        """Move the bar within an epoch."""
        if talk.is_terminal:
            self._bar("epochs", epoch + step / n_steps, self.n_epochs, None)

    def epoch(self, row: dict[str, Any]) -> None:
        """Tell an epoch: training and inner error against the baseline."""
        said = _epoch_line(row)
        if talk.is_terminal:
            self._bar("epochs", row["epoch"], self.n_epochs, said)
        elif not self.quiet and (time.monotonic() - self.last_line > 10 or row["epoch"] in (1, self.n_epochs)):
            left = row["seconds"] * (self.n_epochs - row["epoch"])
            talk.print(
                f"  epoch {row['epoch']}/{self.n_epochs}  {said}  "
                f"{row['seconds']:.1f} s an epoch, {left / 60:.1f} min left"
            )
            self.last_line = time.monotonic()

    def finished(self, run: Any) -> None:
        """A run is complete."""
        self._close()
        if not self.quiet:
            talk.print(f"  [green]✓[/] {run.folder}")

    def _bar(self, unit: str, done: float, total: float, said: str | None) -> None:
        if self.quiet or not talk.is_terminal:
            return
        if self.progress is None:
            columns = (
                TextColumn("  {task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[said]}"),
            )
            self.progress = Progress(*columns, console=talk, transient=True)
            self.progress.start()
            self.task = self.progress.add_task(unit, total=total, said=said or "")
        if said is None:
            self.progress.update(self.task, completed=done)
        else:
            self.progress.update(self.task, completed=done, said=said)
        if done >= total:
            self._close()

    def _close(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


def _epoch_line(row: dict[str, Any]) -> str:
    metric = next((key.removeprefix("baseline_mean_") for key in row if key.startswith("baseline_mean_")), "mae")
    digits, unit, nothing = (1, " y", "mean predictor") if metric == "mae" else (2, "", "knowing nothing")
    parts = []
    if f"train_{metric}_eval" in row or f"train_{metric}" in row:
        value = row.get(f"train_{metric}_eval", row.get(f"train_{metric}"))
        parts.append(f"{metric.upper()} train {shown(value, digits)}{unit}")
    else:
        parts.append(f"train loss {row['train_loss']:.3f}")
        parts += [f"{row['train_error_rate']:.0%} wrong"] if "train_error_rate" in row else []
    held = [
        f"{name} {shown(row[f'{name}_{metric}'], digits)}{unit}"
        for name in ("inner", "validation")
        if f"{name}_{metric}" in row
    ]
    if held and not parts[0].startswith(metric.upper()):
        held[0] = f"{metric.upper()} {held[0]}"
    if f"baseline_mean_{metric}" in row and (metric == "mae" or held):
        held.append(f"{nothing} {shown(row[f'baseline_mean_{metric}'], digits)}{unit}")
    return ", ".join([*parts, *held])
