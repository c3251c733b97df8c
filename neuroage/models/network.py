"""The network: backbone → adaptive pooling → head. Any input size works."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from neuroage.errors import UsageError
from neuroage.models.backbones import GIVEN, backbone_builder, check_family, check_weights
from neuroage.models.norms import FeatureNorm
from neuroage.models.options import check_options
from neuroage.models.pooling import build_pooling
from neuroage.models.weights import Say, silent
from neuroage.runs.recipe import Recipe
from neuroage.runs.recipe_text import Problem


class Network(nn.Module):
    """Images to outputs.

    Args:
        backbone: Images (B, C, *spatial) → features (B, F, *reduced); has `n_features`.
        pool: average, max, average_max (both, concatenated), grid (averages over the cells of `grid`, concatenated) or
            attention (learnt weights of positions).
        grid: Cells along each axis.
        norm: Standardise pooled features over the batch.
        hidden: Widths of hidden layers.
        dropout: Share of features dropped before each linear layer while training.
        n_outputs: Outputs a scan.
        input_size: Channels and voxels along each axis when inputs are standardised voxel by voxel; None: they are not.
    """

    input_mean: Tensor
    input_std: Tensor
    backbone: Any
    frozen: tuple[nn.Module, ...] = ()  # parts that do not learn; see models/freezing.py

    def __init__(
        self,
        backbone: nn.Module,
        *,
        pool: str,
        grid: tuple[int, ...],
        hidden: tuple[int, ...],
        dropout: float,
        n_outputs: int,
        norm: bool = False,
        input_size: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.n_outputs = n_outputs
        self.standardised = input_size is not None
        if input_size is not None:
            self.register_buffer("input_mean", torch.zeros(1, *input_size))
            self.register_buffer("input_std", torch.ones(1, *input_size))
        self.pooling = build_pooling(pool, int(self.backbone.n_features), grid)
        n_features = self.pooling.n_features
        layers: list[nn.Module] = [FeatureNorm(n_features, affine=False)] * norm
        for width in hidden:
            layers += [nn.Dropout(dropout), nn.Linear(n_features, width), nn.ReLU()]
            n_features = width
        self.head = nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(n_features, n_outputs))

    def train(self, mode: bool = True) -> Network:
        """Set training or evaluation mode; frozen parts stay in evaluation mode, so that no statistics of them move."""
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    def features(self, images: Tensor) -> Tensor:
        """Images (B, C, *spatial) → pooled features (B, F); sums over voxels are in float32."""
        if self.standardised:
            images = (images - self.input_mean) / self.input_std
        pooled: Tensor = self.pooling(self.backbone(images))
        return pooled

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, *spatial) → outputs (B, n_outputs)."""
        return self.head(self.features(images))

    @torch.no_grad()
    def take_published_head(self, edges: Tensor | None) -> str:
        """Take over the head that came with the backbone's pretrained weights, where the task has age bins for it.

        Args:
            edges: Edges of the task's age bins in years, shape (n_bins + 1,); None when it has none.

        Returns:
            What was done, or why the head begins at random, in words; empty without a published head.
        """
        if getattr(self.backbone, "published", None) is None:
            return ""
        last, *others = [layer for layer in reversed(self.head) if not isinstance(layer, nn.Dropout)]
        averaged = getattr(self.pooling, "kind", "attention") in ("average", "attention")  # which begins as the average
        if edges is None or others or not averaged:
            return (
                "The published head was not taken over (it needs task soft_label_age, pool average or attention, no "
                "hidden layers and no head.norm): the head begins at random."
            )
        assert isinstance(last, nn.Linear)
        weight, bias, said = self.backbone.published_head(edges.cpu())
        last.weight.copy_(weight)
        last.bias.copy_(bias)
        return str(said)


def check_backbone(recipe: Recipe) -> list[Problem]:
    """Find what is wrong with the recipe's backbone and its options."""
    try:
        build = backbone_builder(recipe.backbone.name)
    except UsageError as error:
        return [Problem("backbone.name", str(error))]
    options, problems = check_options(build, recipe.backbone.options, "backbone", without=GIVEN)
    if problems:
        return problems
    name, images = recipe.backbone.name, (len(recipe.prepare.size), recipe.prepare.n_channels)
    for key, check in (("backbone.name", check_family), ("backbone.weights", check_weights)):
        try:
            check(name, spatial_dims=images[0], in_channels=images[1], options=options)
        except UsageError as error:
            return [Problem(key, str(error))]
    return []


def build_network(
    recipe: Recipe,
    *,
    spatial_dims: int,
    in_channels: int,
    n_outputs: int,
    pretrained: bool = True,
    bin_edges: Tensor | None = None,
    say: Say = silent,
) -> Network:
    """Build the network of a recipe, with initial weights from its seed and, where it names some, published ones.

    Args:
        recipe: Its backbone, pool, head and init.
        spatial_dims: 2 or 3.
        in_channels: Channels of the images.
        n_outputs: What the task asks for.
        pretrained: Take the published weights that the recipe names. False where a run's own are loaded right after, or
            none matter: nothing is then read or fetched.
        bin_edges: Edges of the task's age bins in years, for a published head that has such bins.
        say: Told whose weights are fetched and used.

    Raises:
        UsageError: Options that the backbone does not have, or published weights that cannot be had.
    """
    recipe.complain(check_backbone(recipe))
    build = backbone_builder(recipe.backbone.name)
    options, _ = check_options(build, recipe.backbone.options, "backbone", without=GIVEN)
    given = {"say": say} if "say" in inspect.signature(build).parameters else {}
    pretrained = pretrained and options["weights"] is not None
    if not pretrained:
        options["weights"] = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        backbone = build(spatial_dims=spatial_dims, in_channels=in_channels, **options, **given)
        network = Network(
            backbone,
            pool=recipe.pool,
            grid=recipe.pool_grid,
            norm=recipe.head.norm,
            hidden=recipe.head.hidden,
            dropout=recipe.head.dropout,
            n_outputs=n_outputs,
            input_size=(in_channels, *recipe.prepare.size) if recipe.standardise == "voxelwise" else None,
        )
        initialise(network.head if pretrained else network, recipe.init)
    if pretrained and (said := network.take_published_head(bin_edges)):
        say(said)
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
