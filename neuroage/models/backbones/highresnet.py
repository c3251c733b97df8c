"""HighRes3DNet: full resolution, blocks of growing dilation (Li 2017, doi:10.1007/978-3-319-59050-9_28)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from neuroage.models.backbones import refuse_weights
from neuroage.models.layers import CONV, Norm, norm_layer

WIDTHS, DILATIONS, RESIDUAL_BLOCKS = (16, 32, 64), (1, 2, 4), 3  # Li 2017, figure 1


class ResidualBlock(nn.Module):
    """Twice (norm, ReLU, dilated convolution), added to the input, which is widened by zero channels on both sides."""

    def __init__(self, spatial_dims: int, n_in: int, n_out: int, dilation: int, norm: Norm) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (n_in, n_out):
            layers += [
                norm_layer(norm, spatial_dims, channels),
                nn.ReLU(),
                CONV[spatial_dims](channels, n_out, 3, padding=dilation, dilation=dilation, bias=False),
            ]
        self.layers = nn.Sequential(*layers)
        self.missing = n_out - n_in

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, n_in, *spatial) → (B, n_out, *spatial)."""
        result = self.layers(features)
        if self.missing:
            before = self.missing // 2
            pads = [
                torch.zeros_like(features[:, :1]).expand(-1, n, *features.shape[2:])
                for n in (before, self.missing - before)
            ]
            features = torch.cat([pads[0], features, pads[1]], dim=1)
        return result + features


class HighResNet(nn.Module):
    """A stem convolution and stages of three residual blocks, dilated by 1, 2, 4; only the stem may have a stride."""

    def __init__(self, spatial_dims: int, in_channels: int, n_stages: int, norm: Norm, stem_stride: int) -> None:
        super().__init__()
        width = WIDTHS[0]
        self.stem = nn.Sequential(
            CONV[spatial_dims](in_channels, width, 3, stride=stem_stride, padding=1, bias=False),
            norm_layer(norm, spatial_dims, width),
            nn.ReLU(),
        )
        self.stages = nn.ModuleList()
        for n_out, dilation in list(zip(WIDTHS, DILATIONS, strict=True))[:n_stages]:
            blocks = []
            for _ in range(RESIDUAL_BLOCKS):
                blocks.append(ResidualBlock(spatial_dims, width, n_out, dilation, norm))
                width = n_out
            self.stages.append(nn.Sequential(*blocks))
        self.n_features = width

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, *spatial) → features (B, F, *spatial / stem_stride)."""
        features = self.stem(images)
        for stage in self.stages:
            features = stage(features)
        return features


def build(
    *,
    spatial_dims: int,
    in_channels: int,
    weights: str | None = None,
    n_stages: Annotated[int, Field(ge=1, le=3)] = 3,
    norm: Norm = "batch",
    stem_stride: Annotated[int, Field(ge=1, le=4)] = 1,
) -> nn.Module:
    """Build HighResNet up to its last dilated block (64 features).

    It keeps full resolution: 160×192×160 voxels need about 29 GB of activations a scan in single precision. A
        `stem_stride`
    above 1 makes it another network, several times smaller.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the image.
        weights: None are offered.
        n_stages: Keep the first 1, 2 or 3 stages (16, 32 or 64 features).
        norm: batch (as published), instance, group (8 groups) or none.
        stem_stride: Stride of the first convolution; 1 is the published network.

    Returns:
        A module with `n_features`.
    """
    refuse_weights("highresnet", weights)
    return HighResNet(spatial_dims, in_channels, n_stages, norm, stem_stride)
