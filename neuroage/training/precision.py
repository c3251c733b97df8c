"""Which number format a training computes in: decided by a short probe, stored in the run."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning_fabric import Fabric
from torch import nn

FABRIC_NAMES = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
WORTH_IT = 0.9  # a reduced format must take at most this share of the fp32 time to be chosen
MOST_DIFFERENCE = 0.05  # and must give gradients within this relative distance of fp32's


def make_fabric(precision: str) -> Fabric:
    """Make the Fabric that places the training on devices; one device, a GPU where there is one."""
    with _hushed("lightning.fabric", "lightning_fabric"):
        fabric = Fabric(accelerator="auto", devices=1, precision=FABRIC_NAMES[precision])  # type: ignore[arg-type]
        fabric.launch()
    return fabric


@contextmanager
def _hushed(*loggers: str) -> Iterator[None]:
    """Keep Fabric from announcing its settings: what a user should know is told by the observer."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def choose_precision(network: nn.Module, shape: tuple[int, ...], device: torch.device) -> str:
    """Time a step of the network in fp32 and in the reduced format of this device, and compare their gradients.

    Some processors compute bf16 up to 90 times slower than fp32, others several times faster; only a probe tells.

    Args:
        network: The network to be trained; left as it was.
        shape: Shape of a batch; one or two scans of it are used.
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
    images = torch.randn((min(shape[0], 2), *shape[1:]), generator=generator).to(device)
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
    network: nn.Module, images: torch.Tensor, dtype: torch.dtype | None, give_up_after: float = 60.0
) -> tuple[float, torch.Tensor]:
    """Give the shortest time of a few steps (seconds), and the gradient of the last linear layer."""
    device = images.device
    best, gradient = float("inf"), torch.zeros(1)
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
        if elapsed > give_up_after:
            break
    return best, gradient
