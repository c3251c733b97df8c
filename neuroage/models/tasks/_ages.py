"""What every task about age shares: targets in years, errors in years, the mean training age as baseline."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor


class AgeTask(ABC):
    """A task whose target is `age`, in years.

    Attributes:
        centre: Mean training age, years: the best constant prediction, near enough.
        notes: None.
    """

    headline = running = "mae"
    higher_is_better = False
    tolerance = 0.05  # years: sums in another order
    centre = 0.0
    notes: Sequence[str] = ()

    @property
    def target(self) -> dict[str, Any]:
        """What is predicted."""
        return {"kind": "age"}

    def known(self, table: pd.DataFrame) -> pd.Series:
        """Whether each scan has an age."""
        return table["age"].notna()

    def encode(self, table: pd.DataFrame) -> Tensor:
        """Ages in years, shape (n_scans,), float32."""
        return torch.tensor(table["age"].to_numpy(dtype=float), dtype=torch.float32)

    def targets(self, table: pd.DataFrame) -> dict[str, Any]:
        """`age` in years."""
        return {"age": table["age"].to_numpy(dtype=float)}

    def strata(self, table: pd.DataFrame) -> pd.DataFrame:
        """`age`."""
        return table[["age"]]

    def draw_weights(self, table: pd.DataFrame, age_balance: float) -> np.ndarray | None:
        """Weigh scans of rare ages up, by the recipe's `age_balance`."""
        return age_weights(table["age"].to_numpy(dtype=float), age_balance) if age_balance else None

    @abstractmethod
    def decode(self, outputs: Tensor) -> dict[str, Tensor]:
        """Outputs (B, n_outputs) → `predicted_age` in years, (B,), and what else the task gives."""

    def errors(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Absolute error in years, (B,)."""
        return (self.decode(outputs)["predicted_age"] - targets).abs()

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """MAE in years."""
        return float(self.errors(outputs, targets).mean())

    def baseline(self, table: pd.DataFrame) -> float:
        """MAE in years of always predicting the mean training age."""
        return float((table["age"] - self.centre).abs().mean())

    def example(self, n_scans: int) -> pd.DataFrame:
        """Ages from 20 to 80 years."""
        return pd.DataFrame({"age": np.linspace(20.0, 80.0, n_scans)})


def age_weights(ages: np.ndarray, balance: float, width_years: float = 4.0) -> np.ndarray:
    """Weigh scans by how rare their age is.

    Args:
        ages: Years, shape (n,).
        balance: 0 (all alike) to 1 (every age equally frequent): weight ∝ density^(−balance).
        width_years: Standard deviation of the Gaussian kernel that estimates the density of ages.

    Returns:
        Weights, shape (n,), mean 1.
    """
    counts, edges = np.histogram(ages, bins=np.arange(np.floor(ages.min()) - 1, np.ceil(ages.max()) + 2))
    middles = (edges[:-1] + edges[1:]) / 2
    kernel = np.exp(-0.5 * ((ages[:, None] - middles[None]) / width_years) ** 2)
    weights = (kernel @ counts) ** -balance
    return np.asarray(weights / weights.mean())
