"""What a training tells while it runs. The library prints nothing; whoever wants to see passes an observer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuroage.runs.run import Run


class Observer:
    """Receives news; every method may be left as it is."""

    def stage(self, text: str) -> None:
        """A new stage begins, in words."""

    def note(self, text: str) -> None:
        """Something that the user should know: a scan left out, a choice made."""

    def preparing(self, done: int, n_scans: int) -> None:
        """`done` of `n_scans` scans are prepared."""

    def training(self, run: Run, first_epoch: int, n_epochs: int) -> None:
        """The loop begins at `first_epoch` (from 0)."""

    def step(self, epoch: int, step: int, n_steps: int) -> None:
        """Step `step` (from 1) of `n_steps` is done in epoch `epoch` (from 0)."""

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch is done; `row` is its row of the history."""

    def finished(self, run: Run) -> None:
        """A run is complete."""
