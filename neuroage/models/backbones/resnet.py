"""Residual networks (He 2016, doi:10.1109/CVPR.2016.90) in two or three dimensions, from MONAI."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from neuroage.models.backbones import refuse_weights
from neuroage.models.recompute import Blocks


class ResNetFeatures(nn.Module):
    """MONAI's ResNet up to its last stage."""

    def __init__(self, network: Any, n_features: int) -> None:
        super().__init__()
        for name in ("layer1", "layer2", "layer3", "layer4"):
            setattr(network, name, Blocks(*getattr(network, name)))
        self.network = network
        self.n_features = n_features

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, *spatial) → features (B, F, *reduced)."""
        net = self.network
        features = net.act(net.bn1(net.conv1(images)))
        if not net.no_max_pool:
            features = net.maxpool(features)
        return net.layer4(net.layer3(net.layer2(net.layer1(features))))


def build(
    *,
    spatial_dims: int,
    in_channels: int,
    weights: str | None = None,
    depth: Literal[10, 18, 34, 50, 101, 152] = 10,
    width: Annotated[float, Field(gt=0, le=4)] = 1.0,
    norm: Literal["batch", "instance", "group"] = "batch",
    stem_stride: Literal[1, 2] = 2,
) -> nn.Module:
    """Build a ResNet.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the image.
        weights: None are offered.
        depth: Number of layers: 10, 18, 34, 50, 101 or 152.
        width: Factor on every number of channels.
        norm: batch, instance or group (8 groups).
        stem_stride: Stride of the first convolution; 1 keeps the details of coarse volumes.

    Returns:
        A module with `n_features`.
    """
    from monai.networks.nets import resnet

    refuse_weights("resnet", weights)
    norms = {"batch": "batch", "instance": ("instance", {"affine": True}), "group": ("group", {"num_groups": 8})}
    make = getattr(resnet, f"resnet{depth}")
    network = make(
        pretrained=False,
        spatial_dims=spatial_dims,
        n_input_channels=in_channels,
        widen_factor=width,
        norm=norms[norm],
        conv1_t_stride=stem_stride,
        feed_forward=False,
    )
    expansion = 4 if depth >= 50 else 1
    return ResNetFeatures(network, int(512 * width) * expansion)
