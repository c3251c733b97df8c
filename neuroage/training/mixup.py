"""Mixup: train on mixtures of scans."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

MIXUP_SHARE = 0.5  # half of the steps stay unmixed, so that the network also sees real scans


def mix_scans(images: Tensor, targets: Tensor, alpha: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Mix each scan of a batch with another one, and their targets alike, in half of the calls.

    Args:
        images: Shape (B, C, *spatial); left alone.
        targets: Shape (B, …), such that a mixture of two targets is a target.
        alpha: The proportion is drawn from Beta(alpha, alpha), one for the batch.
        rng: Decides whether, how and with whom.

    Returns:
        Images and targets of the same shapes.

    Source: Zhang 2018, arXiv 1710.09412.
    """
    if rng.random() < MIXUP_SHARE:
        return images, targets
    share = float(rng.beta(alpha, alpha))
    partner = torch.as_tensor(rng.permutation(len(images)), device=images.device)
    mixed = torch.lerp(targets[partner].float(), targets.float(), share)
    return torch.lerp(images[partner], images, share), mixed.to(targets.dtype)
