"""HighRes3DNet behind a strided stem: another network than the published one, several times smaller and faster."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import nn

from neuroage.models.backbones import refuse_weights
from neuroage.models.backbones.highresnet import HighResNet
from neuroage.models.layers import Norm


def build(
    *,
    spatial_dims: int,
    in_channels: int,
    weights: str | None = None,
    n_stages: Annotated[int, Field(ge=1, le=3)] = 3,
    norm: Norm = "batch",
    stem_stride: Annotated[int, Field(ge=2, le=4)] = 2,
) -> nn.Module:
    """Build HighResNet on features of reduced resolution.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the image.
        weights: None are offered.
        n_stages: Keep the first 1, 2 or 3 stages (16, 32 or 64 features).
        norm: batch, instance, group (8 groups) or none.
        stem_stride: Stride of the first convolution; without one it would be `highresnet`.

    Returns:
        A module with `n_features`.
    """
    refuse_weights("highresnet_strided", weights)
    return HighResNet(spatial_dims, in_channels, n_stages, norm, stem_stride)
