"""Densely connected networks (Huang 2017, doi:10.1109/CVPR.2017.243) in two or three dimensions, from MONAI."""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn

from neuroage.models.backbones import refuse_weights
from neuroage.models.layers import HalveWhilePossible
from neuroage.models.recompute import Blocks

BLOCKS = {121: (6, 12, 24, 16), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32)}  # Huang 2017, table 1


def build(
    *,
    spatial_dims: int,
    in_channels: int,
    weights: str | None = None,
    depth: Literal[121, 169, 201] = 121,
    growth_rate: Annotated[int, Field(ge=1)] = 32,
    norm: Literal["batch", "instance", "group"] = "batch",
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
) -> nn.Module:
    """Build a DenseNet.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the image.
        weights: None are offered.
        depth: 121, 169 or 201 layers.
        growth_rate: Channels that each layer adds.
        norm: batch, instance or group (8 groups).
        dropout: Share dropped after each dense layer while training.

    Returns:
        A module with `n_features`.
    """
    from monai.networks.nets.densenet import DenseNet

    refuse_weights("densenet", weights)
    norms: dict[str, Any] = {
        "batch": "batch",
        "instance": ("instance", {"affine": True}),
        "group": ("group", {"num_groups": 8}),
    }
    network: Any = DenseNet(
        spatial_dims,
        in_channels,
        1,
        init_features=2 * growth_rate,
        growth_rate=growth_rate,
        block_config=BLOCKS[depth],
        norm=norms[norm],
        dropout_prob=dropout,
    )
    for name, layer in network.features.named_children():
        if name.startswith("denseblock"):
            setattr(network.features, name, Blocks(OrderedDict(layer.named_children())))
        if name.startswith("transition"):
            layer.pool = HalveWhilePossible(layer.pool)
    features = nn.Sequential(network.features, nn.ReLU())
    features.n_features = network.class_layers.out.in_features
    return features
