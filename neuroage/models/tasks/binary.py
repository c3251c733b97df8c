"""One question with two answers, such as tumour or none: one logit a scan."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
from torch import Tensor

from neuroage.errors import InfeasibleError, did_you_mean
from neuroage.models.tasks._labels import PREFIX, Imbalance, LabelTask, label_columns, numbers_of

Value = str | float | bool


class Binary(LabelTask):
    """Tell scans with a label from scans without it.

    Args:
        label: The label: the name of a column `label_<name>` (1, 0, blank), or a value of the column `label`. With
            `column` it is the name under which the answer is reported.
        column: Another column of the cohort, such as sex; what it holds is said by `positive` or `negative`.
        positive: Values that have the label; empty: `label` itself or, with `negative`, every other value.
        negative: Values that have not; empty: every other value. Where both are given, scans with a third value are
            left out.
        against: For a column `label_<name>`: the scans without the label are `all` others, or only those that have
            `no_label` at all.
        imbalance: How unequal classes are weighed, in one way only: none; pos_weight (negative / positive training
            scans, on the positive ones' loss); class_weights (n / 2n_c on both); sampler (both classes equally often an
            epoch); undersample (on average as many of the frequent class as there are of the rare one, drawn anew every
            epoch); focal (γ = 2: easy scans count less).
    """

    kind = "binary"

    def __init__(
        self,
        label: str = "positive",
        column: str | None = None,
        positive: tuple[Value, ...] = (),
        negative: tuple[Value, ...] = (),
        against: Literal["all", "no_label"] = "all",
        imbalance: Imbalance = "none",
    ) -> None:
        super().__init__(imbalance)
        self.labels = [label]
        self.column, self.against = column, against
        self.positive, self.negative = _as_text(positive), _as_text(negative)

    def matrix(self, table: pd.DataFrame) -> np.ndarray:
        """Whether scans have the label, shape (n_scans, 1): 1, 0 or NaN."""
        own = f"{PREFIX}{self.labels[0]}"
        if self.column is None and own in table.columns:
            answers = numbers_of(table, own)
            if self.against == "no_label":
                every = [numbers_of(table, f"{PREFIX}{name}") for name in label_columns(table, None)]
                answers[(answers == 0) & (np.nanmax(every, axis=0) > 0)] = np.nan
            return answers[:, None]
        column = self.column or "label"
        if column not in table.columns:
            raise InfeasibleError(
                f"The cohort has neither a column {own!r} nor {column!r}",
                expected=did_you_mean(own if self.column is None else column, [str(name) for name in table.columns]),
                fix="Name a label with task.label, or another column with task.column.",
            )
        cells = table[column]
        texts = np.array([_text(cell) for cell in cells], dtype=object)
        positive = self.positive or (() if self.negative else {_text(self.labels[0])})
        answers = np.full(len(table), np.nan)
        filled = np.array([bool(text) for text in texts], dtype=bool)  # of no scans, too
        if positive:
            answers[np.isin(texts, list(positive))] = 1
        else:
            answers[filled & ~np.isin(texts, list(self.negative))] = 1
        if self.negative:
            answers[np.isin(texts, list(self.negative))] = 0
        else:
            answers[filled & np.isnan(answers)] = 0
        return answers[:, None]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean binary cross-entropy: outputs (B, 1), targets (B, 1)."""
        return self.masked_loss(outputs, targets)

    def example(self, n_scans: int) -> pd.DataFrame:
        """Every second scan has the label."""
        return (
            pd.DataFrame({f"{PREFIX}{self.labels[0]}": np.arange(n_scans) % 2})
            if self.column is None
            else (pd.DataFrame({self.column: [_example(self, index) for index in range(n_scans)]}))
        )


def _example(task: Binary, index: int) -> str:
    if index % 2:
        return next(iter(task.positive or {"yes" if task.negative else _text(task.labels[0])}))
    return next(iter(task.negative or {"no"}))


def _text(cell: Any) -> str:
    """Give a cell as text in which 1, 1.0 and True, and blanks of every kind, are the same."""
    if cell is None or cell != cell:
        return ""
    if isinstance(cell, (bool, np.bool_)):
        return str(int(cell))
    try:
        return f"{float(cell):g}"
    except (TypeError, ValueError):
        return str(cell).strip()


def _as_text(values: tuple[Value, ...]) -> set[str]:
    return {_text(value) for value in values}


TASK = Binary
