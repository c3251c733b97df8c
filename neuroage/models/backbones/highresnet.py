"""HighRes3DNet: full resolution, blocks of growing dilation (Li 2017, doi:10.1007/978-3-319-59050-9_28)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from neuroage.models.backbones import refuse_weights
from neuroage.models.layers import CONV, Norm, activation, norm_layer
from neuroage.models.recompute import Blocks, Layers

WIDTHS, DILATIONS, RESIDUAL_BLOCKS = (16, 32, 64), (1, 2, 4), 3  # Li 2017, figure 1


class ResidualBlock(nn.Module):
    """Twice (norm, ReLU, dilated convolution), added to the input, which is widened by zero channels on both sides."""

    def __init__(self, spatial_dims: int, n_in: int, n_out: int, dilation: int, norm: Norm) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (n_in, n_out):
            layers += [
                norm_layer(norm, spatial_dims, channels),
                activation(norm),
                CONV[spatial_dims](channels, n_out, 3, padding=dilation, dilation=dilation, bias=False),
            ]
        self.layers = Layers(*layers)
        self.n_in, self.before = n_in, (n_out - n_in) // 2

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, n_in, *spatial) → (B, n_out, *spatial)."""
        result: Tensor = self.layers(features)
        if result.shape[1] == self.n_in:
            return result.add_(features)
        # Widening without a tensor of zeros: the input is added to the middle of what the convolutions gave.
        result.narrow(1, self.before, self.n_in).add_(features)
        return result


class HighResNet(nn.Module):
    """A stem convolution and stages of three residual blocks, dilated by 1, 2, 4; only the stem may have a stride."""

    def __init__(self, spatial_dims: int, in_channels: int, n_stages: int, norm: Norm, stem_stride: int = 1) -> None:
        super().__init__()
        width = WIDTHS[0]
        self.stem = Layers(
            CONV[spatial_dims](in_channels, width, 3, stride=stem_stride, padding=1, bias=False),
            norm_layer(norm, spatial_dims, width),
            activation(norm),
            whole=True,
        )
        self.stages = nn.ModuleList()
        for n_out, dilation in list(zip(WIDTHS, DILATIONS, strict=True))[:n_stages]:
            blocks = []
            for _ in range(RESIDUAL_BLOCKS):
                blocks.append(ResidualBlock(spatial_dims, width, n_out, dilation, norm))
                width = n_out
            self.stages.append(Blocks(*blocks))
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
) -> nn.Module:
    """Build HighResNet up to its last dilated block (64 features).

    It keeps full resolution, and with it much memory: see `training.recompute`, or `highresnet_strided`, another
    network.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the image.
        weights: None are offered.
        n_stages: Keep the first 1, 2 or 3 stages (16, 32 or 64 features).
        norm: batch (as published), instance, group (8 groups) or none.

    Returns:
        A module with `n_features`.
    """
    refuse_weights("highresnet", weights)
    return HighResNet(spatial_dims, in_channels, n_stages, norm)
