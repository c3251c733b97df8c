"""One of several classes a scan, such as the kind of a tumour."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from neuroage.errors import InfeasibleError, UsageError, did_you_mean
from neuroage.models.tasks._labels import FOCUS, Imbalance, LabelTask


class MultiClass(LabelTask):
    """Tell to which of several classes a scan belongs.

    Args:
        column: Column of the cohort that holds the class, as text.
        classes: Which classes, in the order of the outputs; scans of others are left out. null: every class of the
            training scans, sorted.
        smoothing: Share of each target that is spread over all classes (label smoothing, Szegedy 2016,
            doi:10.1109/CVPR.2016.308).
        imbalance: How unequal classes are weighed, in one way only: none; class_weights (n / Kn_c on the loss); sampler
            (every class equally often an epoch); undersample (on average as many of each class as of the rarest, drawn
            anew every epoch); focal (γ = 2: easy scans count less).
    """

    kind = "multiclass"

    def __init__(
        self,
        column: str = "label",
        classes: tuple[str, ...] | None = None,
        smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        imbalance: Imbalance = "none",
    ) -> None:
        if imbalance == "pos_weight":
            raise UsageError(
                "task multiclass has no pos_weight: no class is the negative one", fix="Use imbalance: class_weights."
            )
        super().__init__(imbalance)
        self.column, self.classes, self.smoothing = column, classes, smoothing
        self.labels = list(classes or ())

    def _names(self, table: pd.DataFrame) -> pd.Series:
        if self.column not in table.columns:
            raise InfeasibleError(
                f"The cohort has no column {self.column!r}",
                expected=did_you_mean(self.column, [str(name) for name in table.columns]),
                fix="Name the column of the class with task.column; for columns label_… use task.name=multilabel.",
            )
        names = table[self.column]
        return names.astype(object).where(names.notna(), "").map(_name)

    def known(self, table: pd.DataFrame) -> pd.Series:
        """Whether each scan has a class, one of the chosen ones where some were."""
        names = self._names(table)
        return names.isin(self.classes) if self.classes else names != ""

    def fit(self, table: pd.DataFrame) -> None:
        """Learn which classes there are, and how frequent each is among the training scans."""
        names = self._names(table)
        self.labels = list(self.classes or sorted(set(names) - {""}))
        super().fit(table)

    def matrix(self, table: pd.DataFrame) -> np.ndarray:
        """One column a class, 1 in that of the scan; NaN for scans of no known class."""
        place = {name: index for index, name in enumerate(self.labels)}
        rows = self._names(table).map(place)
        matrix = np.zeros((len(table), len(self.labels)))
        matrix[rows.isna()] = np.nan
        matrix[np.flatnonzero(rows.notna()), rows.dropna().astype(int)] = 1
        return matrix

    def encode(self, table: pd.DataFrame) -> Tensor:
        """One column a class, float32.

        Raises:
            InfeasibleError: A scan has a class that no training scan has.
        """
        names = self._names(table)
        strange = sorted(set(names) - set(self.labels) - {""})
        if strange:
            raise InfeasibleError(
                f"No training scan has the class {', '.join(map(repr, strange[:5]))}, which held-out scans have",
                fix="Make a split in which every class is trained on, or name the wanted ones with task.classes.",
            )
        return super().encode(table)

    def targets(self, table: pd.DataFrame) -> dict[str, Any]:
        """`target_label`: the class, as text."""
        return {"target_label": self._names(table).to_numpy()}

    def strata(self, table: pd.DataFrame) -> pd.DataFrame:
        """`label`: the class."""
        return pd.DataFrame({"label": self._names(table)})

    def _groups(self, matrix: np.ndarray) -> np.ndarray:
        return np.asarray(np.nan_to_num(matrix).argmax(axis=1))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy: outputs (B, K), targets (B, K), which may be mixtures."""
        logarithms = F.log_softmax(outputs.float(), dim=1)
        wanted = (1 - self.smoothing) * targets + self.smoothing / targets.shape[1]
        if self.imbalance == "class_weights":
            wanted = wanted / (len(self.shares) * torch.tensor(self.shares, device=outputs.device))
        if self.imbalance == "focal":
            wanted = wanted * (1 - logarithms.exp()) ** FOCUS
        return -(wanted * logarithms).sum(dim=1).mean()

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Outputs (B, K) → probabilities that sum to 1."""
        return outputs.softmax(dim=1)

    def errors(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Whether the most probable class is the wrong one, (B,)."""
        return (outputs.argmax(dim=1) != targets.argmax(dim=1)).float()

    def example(self, n_scans: int) -> pd.DataFrame:
        """Classes in turn, each at least once."""
        names = self.classes or ("a", "b", "c")
        n_rows = max(n_scans, len(names))
        return pd.DataFrame({self.column: [names[index % len(names)] for index in range(n_rows)]})


def _name(cell: Any) -> str:
    """Give a class as text: a table in memory holds 1 where the same one from a file holds 1.0."""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


TASK = MultiClass
