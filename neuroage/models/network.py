"""The network: backbone → adaptive pooling → head. Any input size works."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from neuroage.errors import UsageError
from neuroage.models.backbones import GIVEN, backbone_builder
from neuroage.models.options import check_options
from neuroage.runs.recipe import Recipe
from neuroage.runs.recipe_text import Problem

ADAPTIVE_AVERAGE_POOL = {2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}


class Network(nn.Module):
    """Images to outputs.

    Args:
        backbone: Images (B, C, *spatial) → features (B, F, *reduced); has `n_features`.
        pool: average, max, average_max (both, concatenated) or grid (averages over the cells of `grid`, concatenated).
        grid: Cells along each axis.
        hidden: Widths of hidden layers.
        dropout: Share of features dropped before each linear layer while training.
        n_outputs: Outputs a scan.
        input_size: Channels and voxels along each axis when inputs are standardised voxel by voxel; None: they are not.
    """

    input_mean: Tensor
    input_std: Tensor
    backbone: Any

    def __init__(
        self,
        backbone: nn.Module,
        *,
        pool: str,
        grid: tuple[int, ...],
        hidden: tuple[int, ...],
        dropout: float,
        n_outputs: int,
        input_size: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pool, self.grid, self.n_outputs = pool, grid, n_outputs
        self.standardised = input_size is not None
        if input_size is not None:
            self.register_buffer("input_mean", torch.zeros(1, *input_size))
            self.register_buffer("input_std", torch.ones(1, *input_size))
        n_features = int(self.backbone.n_features) * {"average_max": 2, "grid": math.prod(grid)}.get(pool, 1)
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Dropout(dropout), nn.Linear(n_features, width), nn.ReLU()]
            n_features = width
        self.head = nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(n_features, n_outputs))

    def features(self, images: Tensor) -> Tensor:
        """Images (B, C, *spatial) → pooled features (B, F); sums over voxels are in float32."""
        if self.standardised:
            images = (images - self.input_mean) / self.input_std
        maps = self.backbone(images)
        if self.pool == "grid":
            pool = ADAPTIVE_AVERAGE_POOL[maps.ndim - 2](self.grid)
            return pool(maps.float()).flatten(1)
        maps = maps.flatten(2).float()
        pooled = [maps.mean(dim=2)] * (self.pool != "max") + [maps.amax(dim=2)] * (self.pool != "average")
        return torch.cat(pooled, dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, *spatial) → outputs (B, n_outputs)."""
        return self.head(self.features(images))


def check_backbone(recipe: Recipe) -> list[Problem]:
    """Find what is wrong with the recipe's backbone and its options."""
    try:
        build = backbone_builder(recipe.backbone.name)
    except UsageError as error:
        return [Problem("backbone.name", str(error))]
    return check_options(build, recipe.backbone.options, "backbone", without=GIVEN)[1]


def build_network(recipe: Recipe, *, spatial_dims: int, in_channels: int, n_outputs: int) -> Network:
    """Build the network of a recipe, with initial weights from its seed.

    Args:
        recipe: Its backbone, pool, head and init.
        spatial_dims: 2 or 3.
        in_channels: Channels of the images.
        n_outputs: What the task asks for.

    Raises:
        UsageError: Options that the backbone does not have.
    """
    recipe.complain(check_backbone(recipe))
    build = backbone_builder(recipe.backbone.name)
    options, _ = check_options(build, recipe.backbone.options, "backbone", without=GIVEN)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        backbone = build(spatial_dims=spatial_dims, in_channels=in_channels, **options)
        network = Network(
            backbone,
            pool=recipe.pool,
            grid=recipe.pool_grid,
            hidden=recipe.head.hidden,
            dropout=recipe.head.dropout,
            n_outputs=n_outputs,
            input_size=(in_channels, *recipe.prepare.size) if recipe.standardise == "voxelwise" else None,
        )
        initialise(network, recipe.init)
    return network


def initialise(network: nn.Module, init: str) -> None:
    """Draw weights anew: xavier (Glorot 2010) or he (He 2015); default leaves them as they are."""
    rules: dict[str, Callable[[Tensor], Tensor]] = {"xavier": nn.init.xavier_uniform_, "he": nn.init.kaiming_normal_}
    draw = rules.get(init)
    if draw is None:
        return
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.Linear)):
            draw(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
