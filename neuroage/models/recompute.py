"""Recomputation: what the backward pass computes again instead of keeping it in memory.

A backbone builds its rows of layers and of blocks from the two classes here; nothing else knows about recomputation.
Weights have the same names at every level.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.checkpoint import checkpoint

from neuroage.errors import UsageError

LEVELS = ("none", "activations", "blocks")
CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)


class Layers(nn.Sequential):
    """Layers in a row that can keep what convolutions give, and compute norms and activations again.

    From the level "activations" on, the backward pass computes again what stands between two convolutions. The
    convolution itself is not: its result is needed by what follows, not by its own gradient.

    Args:
        layers: Applied in this order.
        whole: Compute the convolutions again as well: right for a first one, which has one channel to read.
    """

    recompute = "none"

    def __init__(self, *layers: nn.Module, whole: bool = False) -> None:
        super().__init__(*layers)
        self.whole = whole

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, F, *spatial) → (B, G, *reduced)."""
        for part in self._parts():
            again = self.recompute != "none" and len(part) > 1
            features = compute_again(part, features) if again else in_a_row(part, features)
        return features

    def _parts(self) -> Iterator[list[nn.Module]]:
        """Cut the row after each convolution, unless it is to stay whole."""
        part: list[nn.Module] = []
        for layer in self:
            part.append(layer)
            if isinstance(layer, CONVOLUTIONS) and not self.whole:
                yield part
                part = []
        if part:
            yield part


class Blocks(nn.Sequential):
    """Blocks in a row that can keep their inputs alone, at the level "blocks".

    Attributes:
        is_end: These are the last blocks of the network. Their last one is not computed again: its inner results would
            be wanted back at the very moment when they could first be let go.
    """

    recompute = "none"
    is_end = False

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, F, *spatial) → (B, G, *reduced)."""
        n_again = (len(self) - self.is_end) * (self.recompute == "blocks")
        for index, block in enumerate(self):
            features = compute_again([block], features) if index < n_again else block(features)
        return features


def recompute_levels(network: nn.Module) -> tuple[str, ...]:
    """Give the levels that a network offers, the one that recomputes least first."""
    kinds = {type(module) for module in network.modules()}
    return ("none", *["activations"] * (Layers in kinds), *["blocks"] * (Blocks in kinds))


def set_recompute(network: nn.Module, level: str) -> None:
    """Choose what a network recomputes; its outputs and gradients stay the same.

    Args:
        network: Changed in place; may be wrapped.
        level: none; activations: norms and activations are computed again (little time); blocks: whatever lies inside a
            block is (up to the time of another forward pass).

    Raises:
        UsageError: The network does not offer this level; those that it does are listed.
    """
    offered = recompute_levels(network)
    if level not in offered:
        raise UsageError(
            f"recompute {level!r}: not offered by this network",
            expected=f"one of {', '.join(offered)}",
            fix="Choose one of them, or `auto`.",
        )
    blocks = [module for module in network.modules() if isinstance(module, Blocks)]
    for module in network.modules():
        if isinstance(module, (Layers, Blocks)):
            module.recompute = level
        if isinstance(module, Blocks):
            module.is_end = module is blocks[-1]


def in_a_row(layers: Sequence[nn.Module], features: Tensor) -> Tensor:
    """Apply one layer after the other."""
    for layer in layers:
        features = layer(features)
    return features


def compute_again(layers: Sequence[nn.Module], features: Tensor) -> Tensor:
    """Apply one layer after the other, keeping only the input; the backward pass computes what lies between again.

    Dropout draws the same again, autocast is as it was, and batch norm counts a batch once. Where no gradient is
    recorded, this costs nothing.

    Source: Chen 2016 (arXiv 1604.06174), by torch.utils.checkpoint.
    """
    if not torch.is_grad_enabled():
        return in_a_row(layers, features)
    result: Tensor = _keep_input_alone(layers, features)
    return result


@torch.compiler.disable
def _keep_input_alone(layers: Sequence[nn.Module], features: Tensor) -> Tensor:
    """Run outside of torch.compile, which cannot take the contexts of a second computation."""
    modules = [module for layer in layers for module in layer.modules()]
    result: Tensor = checkpoint(
        in_a_row,
        layers,
        features,
        use_reentrant=False,
        preserve_rng_state=any(isinstance(module, _DropoutNd) or hasattr(module, "drop_prob") for module in modules),
        context_fn=lambda: (nullcontext(), _StatisticsStay(modules)),
    )
    return result


class _StatisticsStay:
    """Context in which batch norms in training leave their running statistics alone; may be entered again and again.

    They go on reading them (autograd wants the same tensors again), with a momentum of 0 and a counter to throw away.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.norms = [module for module in modules if isinstance(module, _BatchNorm) and module.track_running_stats]

    def __enter__(self) -> None:
        self.kept = [(norm.momentum, norm.num_batches_tracked) for norm in self.norms]
        for norm in self.norms:
            norm.momentum, norm.num_batches_tracked = 0.0, torch.zeros(())

    def __exit__(self, *_: object) -> None:
        for norm, (momentum, n_batches) in zip(self.norms, self.kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, n_batches
