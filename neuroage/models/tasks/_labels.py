"""What every task about labels shares: targets with gaps, imbalance, AUROC."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import BeforeValidator
from torch import Tensor
from torch.nn import functional as F

from neuroage.cohort.labels import LABEL_PREFIX as PREFIX
from neuroage.errors import DataError, InfeasibleError

FOCUS = 2.0  # γ of the focal loss (Lin 2017, doi:10.1109/ICCV.2017.324)


def _one_way(value: Any) -> Any:
    if isinstance(value, str) and any(sign in value for sign in "+,&"):
        value = [part.strip() for part in value.replace("+", ",").replace("&", ",").split(",")]
    if isinstance(value, (list, tuple)):
        raise ValueError(
            f"{' and '.join(map(str, value))} at once would count the rare class twice; choose one way of balancing"
        )
    return "none" if value is None else value


Imbalance = Annotated[
    Literal["none", "pos_weight", "class_weights", "sampler", "undersample", "focal"], BeforeValidator(_one_way)
]


class LabelTask(ABC):
    """A task whose targets are labels, encoded as a matrix (n_scans, n_labels): 1, 0, or NaN where unknown.

    Attributes:
        labels: Names, in the order of the outputs.
        notes: What `fit` found that a person should know.
    """

    headline = "auroc"
    higher_is_better = True
    running = "error_rate"
    tolerance = 0.005  # of a probability: sums in another order
    kind: str

    def __init__(self, imbalance: Imbalance) -> None:
        self.imbalance = imbalance
        self.labels: list[str] = []
        self.shares: list[float] = []  # of known training scans that have each label
        self.notes: list[str] = []

    @property
    def n_outputs(self) -> int:
        """Outputs a scan: one for each label."""
        return len(self.labels)

    @property
    def target(self) -> dict[str, Any]:
        """What is predicted."""
        return {"kind": self.kind, "labels": list(self.labels)}

    @abstractmethod
    def matrix(self, table: pd.DataFrame) -> np.ndarray:
        """Labels of scans, shape (n_scans, n_labels), 1, 0 or NaN; knows only what `fit` has seen."""

    def known(self, table: pd.DataFrame) -> pd.Series:
        """Whether each scan has a label."""
        return pd.Series(np.isfinite(self.matrix(table)).any(axis=1), index=table.index)

    def fit(self, table: pd.DataFrame) -> None:
        """Learn how frequent each label is among the training scans.

        Raises:
            InfeasibleError: A label that no training scan has, or that all have.
        """
        shares = self.shares_of(table)
        idle = [label for label, share in zip(self.labels, shares, strict=True) if not 0 < share < 1]
        if idle:
            raise InfeasibleError(
                f"All {len(table)} training scans are alike in {', '.join(map(repr, idle))}",
                expected="scans with and without each label",
                fix="Check the spelling, leave it out of the task's labels, or make another split.",
            )
        self.shares = shares.tolist()

    def shares_of(self, table: pd.DataFrame) -> np.ndarray:
        """Share of the scans that have each label, among those where it is known, shape (n_labels,)."""
        matrix = self.matrix(table)
        with np.errstate(invalid="ignore"):
            return np.asarray(np.nansum(matrix, axis=0) / np.isfinite(matrix).sum(axis=0))

    def encode(self, table: pd.DataFrame) -> Tensor:
        """Labels (n_scans, n_labels), float32: 1, 0, or NaN where unknown."""
        return torch.from_numpy(self.matrix(table).astype(np.float32))

    def targets(self, table: pd.DataFrame) -> dict[str, Any]:
        """`target_<label>` for each label: 1, 0 or NaN."""
        return {f"target_{label}": column for label, column in zip(self.labels, self.matrix(table).T, strict=True)}

    def strata(self, table: pd.DataFrame) -> pd.DataFrame:
        """`label_<label>` for each label."""
        names = [f"{PREFIX}{label}" for label in self.labels]
        return pd.DataFrame(self.matrix(table), columns=names, index=table.index)

    def draw_weights(self, table: pd.DataFrame, age_balance: float) -> np.ndarray | None:
        """Weigh scans by their rarest label (sampler), or draw scans of frequent ones down to it (undersample)."""
        if self.imbalance not in ("sampler", "undersample"):
            return None
        group = self._groups(self.matrix(table))
        counts = np.bincount(group)
        if self.imbalance == "sampler":
            wanted = 1 / counts[group]
            return np.asarray(wanted * len(group) / wanted.sum())
        return np.asarray(counts[counts > 0].min() / counts[group])

    def _groups(self, matrix: np.ndarray) -> np.ndarray:
        """Number the kinds of scans that are balanced: by the rarest label that each has, else none."""
        rarity = np.argsort(np.argsort(self.shares)) + 1
        has = np.where(matrix == 1, rarity[None], len(rarity) + 1)
        return np.asarray(has.min(axis=1) - 1)

    def errors(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Share of wrong labels among the known ones, at even odds, (B,)."""
        known = targets.isfinite()
        wrong = ((outputs > 0) != (targets > 0.5)) & known
        return wrong.sum(dim=1) / known.sum(dim=1).clamp_min(1)

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """Mean AUROC over the labels that some scans have and others have not; NaN where there is no such label."""
        from sklearn.metrics import roc_auc_score

        if not outputs.isfinite().all():  # a training that diverged in its last step
            return float("nan")
        columns = zip(outputs.float().cpu().numpy().T, targets.float().cpu().numpy().T, strict=True)
        found = []
        for predicted, wanted in columns:
            known = np.isfinite(wanted)
            positive = wanted[known] > 0.5
            if positive.any() and not positive.all():
                found.append(roc_auc_score(positive, predicted[known]))
        return float(np.mean(found)) if found else float("nan")

    def baseline(self, table: pd.DataFrame) -> float:
        """AUROC of any constant prediction: one half."""
        return 0.5

    def decode(self, outputs: Tensor) -> dict[str, Tensor]:
        """Outputs (B, n_labels) → `probability_<label>` for each label, (B,)."""
        probability = self.probabilities(outputs.cpu().double())  # float32 cannot tell sure answers apart
        return {f"probability_{label}": column for label, column in zip(self.labels, probability.T, strict=True)}

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Outputs (B, n_labels) → probabilities of the same shape."""
        return outputs.sigmoid()

    def state(self) -> dict[str, Any]:
        """Names and frequencies of the labels."""
        return {"labels": list(self.labels), "shares": list(self.shares)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self.labels, self.shares = list(state["labels"]), list(state["shares"])

    def masked_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean binary cross-entropy over scans and labels; unknown labels count nothing.

        It is divided by all scans and labels of the batch, known or not, so that a batch in parts gives the same.
        """
        known = targets.isfinite()
        wanted = torch.where(known, targets, torch.zeros_like(targets))
        logits = outputs.float()
        weight = None
        if self.imbalance == "pos_weight":
            shares = torch.tensor(self.shares, device=logits.device)
            weight = (1 - shares) / shares
        losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none", pos_weight=weight)
        if self.imbalance == "focal":
            probability = logits.sigmoid()
            off = wanted * (1 - probability) + (1 - wanted) * probability
            losses = losses * off**FOCUS
        if self.imbalance == "class_weights":
            shares = torch.tensor(self.shares, device=logits.device)
            losses = losses * (wanted / (2 * shares) + (1 - wanted) / (2 * (1 - shares)))
        return (losses * known).sum() / losses.numel()


def numbers_of(table: pd.DataFrame, column: str) -> np.ndarray:
    """Read a column of 1, 0 and blanks, shape (n_scans,), float.

    Raises:
        DataError: Another value.
    """
    values = pd.to_numeric(table[column], errors="coerce")
    filled = table[column].notna() & (table[column].astype(str) != "")
    wrong = filled & ~values.isin([0, 1])
    if wrong.any():
        raise DataError(
            f"column {column!r} holds {table.loc[wrong, column].iloc[0]!r}",
            expected="1, 0, or nothing where it is unknown",
        )
    return values.to_numpy(dtype=float, copy=True)


def label_columns(table: pd.DataFrame, labels: Sequence[str] | None) -> list[str]:
    """Give the labels of a table with one column `label_<name>` each, in the order asked for.

    Raises:
        InfeasibleError: It has none, or lacks one that was asked for.
    """
    there = [str(name).removeprefix(PREFIX) for name in table.columns if str(name).startswith(PREFIX)]
    missing = [name for name in labels or [] if name not in there]
    if missing or not there:
        raise InfeasibleError(
            f"The cohort has no column {PREFIX}{missing[0]}" if missing else f"The cohort has no column {PREFIX}…",
            expected=f"one of {', '.join(there)}" if there else "one column label_<name> for each label: 1, 0 or blank",
        )
    return list(labels or there)
