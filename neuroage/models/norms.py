"""Batch norm of pooled features, and batch-norm statistics measured anew for scans unlike those learnt from."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from neuroage.errors import UsageError


class FeatureNorm(nn.BatchNorm1d):
    """Batch norm of pooled features (B, F), which takes the running statistics for a batch of one, that has none."""

    def forward(self, input: Tensor) -> Tensor:
        """Features (B, F) → (B, F), in float32."""
        with torch.autocast(input.device.type, enabled=False):
            if len(input) > 1 or not self.training:
                return super().forward(input.float())
            return nn.functional.batch_norm(input.float(), self.running_mean, self.running_var, eps=self.eps)


@torch.no_grad()
def reestimate_norms(network: nn.Module, batches: Iterable[Tensor]) -> int:
    """Replace the running statistics of every batch norm by the average over the given batches, in one pass.

    Everything else is as in evaluation, no weight changes, and afterwards every module is in the mode in which it was.
    Means are those of all positions of all scans where batches are of equal size; variances leave out how much the
    means of batches differ, which batches of many scans make small.

    Args:
        network: Changed in place; without batch norms nothing is done.
        batches: Images (B, C, *spatial) on the network's device.

    Returns:
        How many batch norms were measured.

    Raises:
        UsageError: There is no batch; the statistics are then as before.

    Source: Li 2017, arXiv 1603.04779 (adaptive batch normalisation).
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return 0
    modes = {module: module.training for module in network.modules()}
    momenta = [norm.momentum for norm in norms]
    before = {key: value.clone() for norm in norms for key, value in norm.state_dict(prefix=f"{id(norm)}.").items()}
    n_batches = 0
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum, norm.training = None, True  # None: the plain average of all batches
    try:
        for images in batches:
            network(images)
            n_batches += 1
        if not n_batches:
            raise UsageError("No batch to measure the statistics of batch norms on", fix="Give at least one.")
    except BaseException:
        for norm in norms:
            norm.load_state_dict({key: before[f"{id(norm)}.{key}"] for key in norm.state_dict()})
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    return len(norms)
