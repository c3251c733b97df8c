"""Pooling: feature maps of any size become one vector."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

ADAPTIVE_AVERAGE_POOL: dict[int, Any] = {2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
ATTENTION_SHARE = 4  # features for each hidden unit of the attention; Ilse 2018 has 500 for 128
LEAST_UNITS = 8


class Pooling(nn.Module):
    """Pooling without weights: average, max, average_max (both, concatenated) or grid (averages over cells)."""

    def __init__(self, kind: str, n_features: int, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.kind, self.grid = kind, grid
        self.n_features = n_features * {"average_max": 2, "grid": math.prod(grid)}.get(kind, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, F, *spatial) → (B, n_features); sums over voxels are in float32."""
        if self.kind == "grid":
            pooled: Tensor = ADAPTIVE_AVERAGE_POOL[maps.ndim - 2](self.grid)(maps.float())
            return pooled.flatten(1)
        maps = maps.flatten(2).float()
        parts = [maps.mean(dim=2)] * (self.kind != "max") + [maps.amax(dim=2)] * (self.kind != "average")
        return torch.cat(parts, dim=1)


class AttentionPooling(nn.Module):
    """An average in which every position has its own, learnt weight.

    The weight is the softmax over positions of w · tanh(V f) for the features f of a position. As w begins at zero, it
    begins as the plain average.

    Source: Ilse 2018, arXiv 1802.04712, equation 8.
    """

    def __init__(self, n_features: int) -> None:
        super().__init__()
        n_units = max(n_features // ATTENTION_SHARE, LEAST_UNITS)
        self.hidden = nn.Conv1d(n_features, n_units, 1)
        self.score = nn.Conv1d(n_units, 1, 1, bias=False)  # a softmax does not see a bias
        nn.init.zeros_(self.score.weight)
        self.n_features = n_features

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, F, *spatial) → (B, F); all in float32."""
        with torch.autocast(maps.device.type, enabled=False):
            positions = maps.flatten(2).float()
            weights = self.score(torch.tanh(self.hidden(positions))).softmax(dim=2)
            pooled: Tensor = (positions @ weights.transpose(1, 2)).squeeze(2)
            return pooled


def build_pooling(kind: str, n_features: int, grid: tuple[int, ...]) -> Pooling | AttentionPooling:
    """Make the pooling of a recipe.

    Args:
        kind: average, max, average_max, grid or attention.
        n_features: Channels of the feature maps.
        grid: Cells along each axis, for `grid`.
    """
    return AttentionPooling(n_features) if kind == "attention" else Pooling(kind, n_features, grid)
