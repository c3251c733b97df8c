"""Mixup: train on mixtures of scans."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

MIXUP_SHARE = 0.5  # half of the steps stay unmixed, so that the network also sees real scans


def draw_mixture(alpha: float, n_scans: int, rng: np.random.Generator) -> tuple[float, np.ndarray] | None:
    """Draw whether a batch is mixed, in which proportion, and with whom each scan.

    Args:
        alpha: The proportion is drawn from Beta(alpha, alpha), one for the batch; 0 never mixes.
        n_scans: Scans of the batch.
        rng: Source of randomness.

    Returns:
        The share that a scan keeps, and the place in the batch of each scan's partner; None in half of the calls.

    Source: Zhang 2018, arXiv 1710.09412.
    """
    if not alpha or rng.random() < MIXUP_SHARE:
        return None
    share = float(rng.beta(alpha, alpha))
    return share, rng.permutation(n_scans)


def mix(values: Tensor, own: Tensor, partners: Tensor, share: float) -> Tensor:
    """Mix images or targets: `share` of the rows `own` (ascending), the rest of the rows `partners`; keeps the type."""
    first = values if len(own) == len(values) else values[own]
    if values.is_floating_point():
        return torch.lerp(values[partners], first, share)
    return torch.lerp(values[partners].float(), first.float(), share).to(values.dtype)
