"""Small convolutional network for some hundred scans: blocks of convolution, norm, ReLU and halving."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from neuroage.models.backbones import refuse_weights
from neuroage.models.layers import (
    AVERAGE_POOL,
    CONV,
    DROPOUT,
    MAX_POOL,
    HalveWhilePossible,
    Norm,
    activation,
    norm_layer,
)
from neuroage.models.recompute import Blocks, Layers


class CNN(nn.Module):
    """Blocks of (convolution, norm, ReLU) × `convs_per_block`, each block halving every axis before its last ReLU.

    Halving stops where an axis would fall below one voxel, so any input size works.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        widths: list[int],
        convs_per_block: int,
        norm: Norm,
        pool: str,
        dropout: float,
    ) -> None:
        super().__init__()
        halve = HalveWhilePossible((MAX_POOL if pool == "max" else AVERAGE_POOL)[spatial_dims](2))
        blocks = []
        n_in = in_channels
        for width in widths:
            layers: list[nn.Module] = []
            for index in range(convs_per_block):
                # A norm right after the convolution has its own offset, which makes the convolution's bias idle.
                layers += [activation(norm)] * (index > 0)
                layers += [
                    CONV[spatial_dims](n_in, width, 3, padding=1, bias=norm == "none"),
                    norm_layer(norm, spatial_dims, width),
                ]
                n_in = width
            # Halving first leaves the ReLU an eighth of the work; after a maximum it gives the same.
            blocks.append(Layers(*layers, halve, activation(norm), DROPOUT[spatial_dims](dropout)))
        self.blocks = Blocks(*blocks)
        self.n_features = widths[-1]

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, *spatial) → features (B, F, *reduced)."""
        features: Tensor = self.blocks(images)
        return features


def build(
    *,
    spatial_dims: int,
    in_channels: int,
    weights: str | None = None,
    n_blocks: Annotated[int, Field(ge=1, le=8)] = 4,
    features: Annotated[int, Field(ge=1)] = 16,
    max_features: Annotated[int, Field(ge=1)] = 128,
    convs_per_block: Annotated[int, Field(ge=1, le=4)] = 1,
    norm: Norm = "batch",
    pool: Literal["max", "average"] = "max",
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
) -> nn.Module:
    """Build the small CNN.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the image.
        weights: There are none for this family.
        n_blocks: Number of blocks; every axis is halved in each.
        features: Channels of the first block; each further block has twice as many …
        max_features: … up to this many.
        convs_per_block: Convolutions in a block.
        norm: batch, instance, group (8 groups) or none.
        pool: How a block halves: max or average.
        dropout: Share of whole channels dropped after each block while training.

    Returns:
        A module with `n_features`.
    """
    refuse_weights("cnn", weights)
    widths = [min(features * 2**index, max_features) for index in range(n_blocks)]
    return CNN(spatial_dims, in_channels, widths, convs_per_block, norm, pool, dropout)
