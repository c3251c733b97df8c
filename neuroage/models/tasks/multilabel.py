"""Several labels a scan, each there, not there or unknown, such as the findings of a chest X-ray."""

from __future__ import annotations

import numpy as np
import pandas as pd
from torch import Tensor

from neuroage.errors import UsageError
from neuroage.models.tasks._labels import PREFIX, Imbalance, LabelTask, label_columns, numbers_of


class MultiLabel(LabelTask):
    """Tell for each of several labels whether a scan has it; unknown ones count neither in loss nor in figures.

    Args:
        labels: Names of the labels, columns `label_<name>` of the cohort; null: every such column that some training
            scans have and others have not.
        imbalance: How rare labels are weighed, in one way only: none; pos_weight (for each label: scans without / scans
            with it); sampler (scans drawn by their rarest label); undersample (scans of frequent labels, or of none,
            drawn down to the rarest); focal (γ = 2: easy scans count less).
    """

    kind = "multilabel"

    def __init__(self, labels: tuple[str, ...] | None = None, imbalance: Imbalance = "none") -> None:
        if imbalance == "class_weights":
            raise UsageError(
                "task multilabel has no class_weights: every label is a question with two answers of its own",
                fix="Use imbalance: pos_weight.",
            )
        super().__init__(imbalance)
        self.chosen = labels
        self.labels = list(labels or ())

    def known(self, table: pd.DataFrame) -> pd.Series:
        """Whether at least one label of each scan is known."""
        if self.shares:  # fitted: another hospital's table may lack some of the labels
            return super().known(table)
        columns = [numbers_of(table, f"{PREFIX}{name}") for name in label_columns(table, self.chosen)]
        return pd.Series(np.isfinite(columns).any(axis=0), index=table.index)

    def fit(self, table: pd.DataFrame) -> None:
        """Learn which labels there are, and how frequent each is among the training scans."""
        self.labels = label_columns(table, self.chosen)
        if self.chosen is None:
            shares = self.shares_of(table)
            idle = [name for name, share in zip(self.labels, shares, strict=True) if not 0 < share < 1]
            self.labels = [name for name in self.labels if name not in idle] or self.labels
            self.notes = [f"Not learnt, since all training scans are alike in it: {', '.join(idle)}."] if idle else []
        super().fit(table)

    def matrix(self, table: pd.DataFrame) -> np.ndarray:
        """Labels of scans, shape (n_scans, n_labels): 1, 0 or NaN; a label that the table lacks is unknown."""
        unknown = np.full(len(table), np.nan)
        columns = [f"{PREFIX}{name}" for name in self.labels]
        return np.stack([numbers_of(table, name) if name in table else unknown for name in columns], axis=1)

    def strata(self, table: pd.DataFrame) -> pd.DataFrame:
        """`label_<label>` for each label; before `fit`, of each that may be learnt."""
        names = [f"{PREFIX}{name}" for name in self.labels or label_columns(table, self.chosen)]
        return pd.DataFrame({name: numbers_of(table, name) for name in names}, index=table.index)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean binary cross-entropy over scans and labels, (B, n_labels) each; NaN targets count nothing."""
        return self.masked_loss(outputs, targets)

    def example(self, n_scans: int) -> pd.DataFrame:
        """Every second scan has each label."""
        return pd.DataFrame({f"{PREFIX}{name}": np.arange(n_scans) % 2 for name in self.chosen or ("a", "b")})


TASK = MultiLabel
