"""Which number format a training computes in: decided by a short probe, stored in the run."""

from __future__ import annotations

import time

import torch

from neuroage.models.network import Network

WORTH_IT = 0.9  # a reduced format must take at most this share of the fp32 time to be chosen
MOST_DIFFERENCE = 0.05  # and must give gradients within this relative distance of fp32's
PROBE_VOXELS = 48  # along each axis: a full-resolution network answers in seconds, not minutes
PROBE_SECONDS = 3.0  # for each format, once its kernels are ready


def choose_precision(network: Network, shape: tuple[int, ...], device: torch.device) -> str:
    """Time a step of the network in fp32 and in the reduced format of this device, and compare their gradients.

    Some processors compute bf16 up to 90 times slower than fp32, others several times faster; only a probe tells.

    Args:
        network: The network to be trained; left as it was.
        shape: Shape of a batch; at most two scans and `PROBE_VOXELS` along each axis are used, the latter where the
            network takes any size.
        device: Where it will be trained.

    Returns:
        "fp32", "bf16" or "fp16".
    """
    reduced = {"bf16": torch.bfloat16}
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        reduced = {"fp16": torch.float16}
    state = {name: value.clone() for name, value in network.state_dict().items()}
    training = network.training
    network.train()
    generator = torch.Generator().manual_seed(0)
    size = shape[2:] if network.standardised else [min(n, PROBE_VOXELS) for n in shape[2:]]
    images = torch.randn((min(shape[0], 2), shape[1], *size), generator=generator).to(device)
    try:
        seconds, gradient = _probe(network, images, None)
        for name, dtype in reduced.items():
            try:
                reduced_seconds, reduced_gradient = _probe(network, images, dtype, give_up_after=3 * seconds)
            except RuntimeError:  # no kernel for this format on this device
                continue
            difference = float((reduced_gradient - gradient).norm() / gradient.norm().clamp_min(1e-12))
            if reduced_seconds < WORTH_IT * seconds and difference < MOST_DIFFERENCE:
                return name
        return "fp32"
    finally:
        network.load_state_dict(state)
        network.train(training)
        network.zero_grad(set_to_none=True)


def _probe(
    network: Network, images: torch.Tensor, dtype: torch.dtype | None, give_up_after: float = 60.0
) -> tuple[float, torch.Tensor]:
    """Give the shortest time of a few steps (seconds), and the gradient of the last linear layer."""
    device = images.device
    best, gradient, began = float("inf"), torch.zeros(1), time.perf_counter()
    for _ in range(4):  # the first one also prepares kernels
        network.zero_grad(set_to_none=True)
        torch.manual_seed(0)
        start = time.perf_counter()
        with torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            loss = network(images).float().square().mean()
        loss.backward()
        last = next(parameter for parameter in reversed(list(network.parameters())) if parameter.ndim > 1)
        gradient = torch.zeros(1) if last.grad is None else last.grad.float().cpu()
        elapsed = time.perf_counter() - start
        best = min(best, elapsed)
        if elapsed > give_up_after or time.perf_counter() - began > PROBE_SECONDS:
            break
    return best, gradient
