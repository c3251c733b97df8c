"""Layers by name and number of dimensions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Norm = Literal["batch", "instance", "group", "none"]

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
MAX_POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVERAGE_POOL = {2: nn.AvgPool2d, 3: nn.AvgPool3d}
DROPOUT = {2: nn.Dropout2d, 3: nn.Dropout3d}
GROUPS = 8  # of group norm; halved until it divides the number of features


def norm_layer(norm: Norm, spatial_dims: int, n_features: int) -> nn.Module:
    """Make a normalisation layer for (B, n_features, *spatial); "none" gives the identity."""
    if norm == "batch":
        return BATCH_NORM[spatial_dims](n_features)
    if norm == "instance":
        return INSTANCE_NORM[spatial_dims](n_features, affine=True)
    if norm == "group":
        groups = GROUPS
        while n_features % groups:
            groups //= 2
        return nn.GroupNorm(groups, n_features)
    return nn.Identity()


def activation(norm: Norm) -> nn.Module:
    """Make the ReLU that follows a norm: in place, unless it would overwrite what is needed elsewhere."""
    return nn.ReLU(inplace=norm != "none")


class HalveWhilePossible(nn.Module):
    """A pooling layer that leaves features alone once an axis has a single voxel, so that any input size works.

    It pools in the type that comes in. Autocast would turn bf16 to float32 and back on a CPU, for the same maximum: an
    eighth of a step of SFCN (measured).
    """

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, F, *spatial) → (B, F, *reduced)."""
        if min(features.shape[2:]) < 2:
            return features
        with torch.autocast(features.device.type, enabled=False):
            pooled: Tensor = self.pool(features)
            return pooled
