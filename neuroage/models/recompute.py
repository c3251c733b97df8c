"""Recomputation: what the backward pass computes again instead of keeping it in memory."""

from __future__ import annotations

from torch import nn

LEVELS = ("none", "activations", "blocks")


def recompute_levels(network: nn.Module) -> tuple[str, ...]:
    """Give the levels that a network offers, the one that recomputes least first."""
    return ("none",)


def set_recompute(network: nn.Module, level: str) -> None:
    """Choose what a network recomputes; its outputs and gradients stay the same."""
