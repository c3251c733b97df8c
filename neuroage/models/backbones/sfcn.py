"""SFCN, the simple fully convolutional network of Peng et al. 2021 (doi:10.1016/j.media.2020.101871; code MIT)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from neuroage.models.backbones import refuse_weights
from neuroage.models.layers import CONV, MAX_POOL, HalveWhilePossible, Norm, activation, norm_layer
from neuroage.models.recompute import Blocks, Layers

PUBLISHED_WIDTHS = (32, 64, 128, 256, 256, 64)


class SFCN(nn.Module):
    """Five blocks of 3×3×3 convolution → norm → max pool 2 → ReLU, then 1×1×1 convolution → norm → ReLU.

    The published head (average pool, dropout 0.5, 1×1×1 convolution to 40 age bins) is the network's pooling and head
    with `head.dropout: 0.5` and the task `soft_label_age`.
    """

    def __init__(self, spatial_dims: int, in_channels: int, widths: tuple[int, ...], norm: Norm) -> None:
        super().__init__()
        blocks = []
        n_in = in_channels
        for width in widths[:-1]:
            convolution = CONV[spatial_dims](n_in, width, 3, padding=1)
            halve = HalveWhilePossible(MAX_POOL[spatial_dims](2))
            blocks.append(Layers(convolution, norm_layer(norm, spatial_dims, width), halve, activation(norm)))
            n_in = width
        self.blocks = Blocks(*blocks)
        self.last = Layers(
            CONV[spatial_dims](n_in, widths[-1], 1), norm_layer(norm, spatial_dims, widths[-1]), activation(norm)
        )
        self.n_features = widths[-1]

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, *spatial) → features (B, F, *reduced); an axis of one voxel is not halved further."""
        features: Tensor = self.last(self.blocks(images))
        return features


def build(
    *,
    spatial_dims: int,
    in_channels: int,
    weights: str | None = None,
    widths: tuple[Annotated[int, Field(ge=1)], ...] = PUBLISHED_WIDTHS,
    norm: Norm = "batch",
) -> nn.Module:
    """Build SFCN.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the image.
        weights: None are offered.
        widths: Channels of each block, the last one being the 1×1×1 convolution; the default is the published network.
        norm: batch (as published), instance, group (8 groups) or none.

    Returns:
        A module with `n_features`.
    """
    refuse_weights("sfcn", weights)
    return SFCN(spatial_dims, in_channels, tuple(widths), norm)
