"""Age as one number: the network's output is the age, standardised by the training set."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from neuroage.models.tasks._ages import AgeTask


class AgeRegression(AgeTask):
    """Regress age in years.

    Args:
        loss: l1 (mean absolute error), huber (quadratic below `huber_width`, linear beyond) or mse.
        huber_width: Width of huber's quadratic part, in standardised units (years when not standardised).
        standardise: Outputs are (age − mean) / standard deviation of the training ages; else years.
    """

    n_outputs = 1

    def __init__(
        self,
        loss: Literal["l1", "huber", "mse"] = "l1",
        standardise: bool = True,
        huber_width: Annotated[float, Field(gt=0)] = 0.25,
    ) -> None:
        self.loss_name, self.standardise, self.huber_width = loss, standardise, huber_width
        self.mean, self.std = 0.0, 1.0

    def fit(self, table: pd.DataFrame) -> None:
        """Learn mean, standard deviation and centre of the training ages (years)."""
        ages = table["age"].to_numpy(dtype=float)
        self.centre = float(ages.mean())
        if self.standardise:
            self.mean, self.std = float(ages.mean()), float(ages.std()) or 1.0

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss in standardised units: outputs (B, 1), targets (B,) in years."""
        predicted, wanted = outputs[:, 0].float(), (targets - self.mean) / self.std
        if self.loss_name == "huber":
            return F.smooth_l1_loss(predicted, wanted, beta=self.huber_width)
        return F.mse_loss(predicted, wanted) if self.loss_name == "mse" else F.l1_loss(predicted, wanted)

    def decode(self, outputs: Tensor) -> dict[str, Tensor]:
        """Outputs (B, 1) → `predicted_age` in years, (B,)."""
        return {"predicted_age": outputs[:, 0].float() * self.std + self.mean}

    def state(self) -> dict[str, Any]:
        """Mean, standard deviation and centre of the training ages."""
        return {"mean": self.mean, "std": self.std, "centre": self.centre}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self.mean, self.std, self.centre = state["mean"], state["std"], state["centre"]


TASK = AgeRegression
