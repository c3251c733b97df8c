"""Age as a distribution over bins, as SFCN does (Peng 2021, doi:10.1016/j.media.2020.101871)."""

from __future__ import annotations

import math
from typing import Annotated, Any

import pandas as pd
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from neuroage.models.tasks._ages import AgeTask

MARGIN_BINS = 2  # bins beyond the oldest and youngest training age: room for half of a label's width


class SoftLabelAge(AgeTask):
    """Classify age into bins with Gaussian soft labels; the prediction is the expected age.

    Args:
        bin_years: Width of a bin in years.
        sigma_years: Standard deviation of the label around the true age.
        age_range: First and last edge of the bins in years; from the training ages, two bins beyond each end, when
            null.
    """

    def __init__(
        self,
        bin_years: Annotated[float, Field(gt=0, le=20)] = 1.0,
        sigma_years: Annotated[float, Field(gt=0, le=20)] = 1.0,
        age_range: tuple[float, float] | None = None,
    ) -> None:
        self.bin_years, self.sigma_years, self.age_range = bin_years, sigma_years, age_range
        self._set_edges(*(age_range or (0.0, 100.0)))

    def _set_edges(self, low: float, high: float) -> None:
        self.n_outputs = max(2, math.ceil(round((high - low) / self.bin_years, 6)))
        self.edges = low + self.bin_years * torch.arange(self.n_outputs + 1, dtype=torch.float32)

    def fit(self, table: pd.DataFrame) -> None:
        """Place the bins over the training ages."""
        ages = table["age"].to_numpy(dtype=float)
        self.centre = float(ages.mean())
        if self.age_range is None:
            margin = MARGIN_BINS * self.bin_years
            self._set_edges(math.floor(ages.min()) - margin, math.ceil(ages.max()) + margin)

    def labels(self, ages: Tensor) -> Tensor:
        """Ages (B,) → probability of each bin (B, n_bins): differences of the normal distribution function."""
        edges = self.edges.to(ages.device)
        below = torch.special.ndtr((edges[None] - ages[:, None]) / self.sigma_years)
        mass = below.diff(dim=1)
        return mass / mass.sum(dim=1, keepdim=True).clamp_min(1e-12)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean Kullback–Leibler divergence from the label: outputs (B, n_bins), targets (B,) in years."""
        return F.kl_div(F.log_softmax(outputs.float(), dim=1), self.labels(targets), reduction="batchmean")

    def decode(self, outputs: Tensor) -> dict[str, Tensor]:
        """Outputs (B, n_bins) → expected `predicted_age` and spread `predicted_age_std`, years, (B,)."""
        probability = outputs.float().softmax(dim=1)
        edges = self.edges.to(outputs.device)
        centres = (edges[:-1] + edges[1:]) / 2
        expected = probability @ centres
        variance = (probability * (centres[None] - expected[:, None]) ** 2).sum(dim=1)
        return {"predicted_age": expected, "predicted_age_std": variance.sqrt()}

    def state(self) -> dict[str, Any]:
        """Edges of the bins and the mean training age."""
        return {"low": float(self.edges[0]), "high": float(self.edges[-1]), "centre": self.centre}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self._set_edges(state["low"], state["high"])
        self.centre = state["centre"]


TASK = SoftLabelAge
