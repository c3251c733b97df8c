"""Which number format a training computes in: decided by a short probe, stored in the run."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from neuroage.models.network import Network
from neuroage.training.devices import is_out_of_memory
from neuroage.training.inference import MEMORY_FORMAT

WORTH_IT = 0.9  # a reduced format must take at most this share of the fp32 time to be chosen
MOST_DIFFERENCE = 0.3  # relative distance from fp32's gradients; rounding gives 0.03 to 0.2, a broken kernel 1 or more
STEP_SECONDS = 1.5  # of a step of the probe: a network of full resolution is asked with smaller volumes
PROBE_SECONDS = 3.0  # for each format
N_SCANS = 4  # of the probe; batch norm needs some
SMALL = 32  # voxels along each axis of a first step that tells what larger ones take


def choose_precision(network: Network, shape: tuple[int, ...], device: torch.device) -> str:
    """Time a step of the network in fp32 and in the reduced format of this device, and compare their gradients.

    Some processors compute bf16 up to 90 times slower than fp32, others several times faster; only a probe tells.

    Args:
        network: The network to be trained; left as it was.
        shape: Shape of a batch; some scans of it are used, cropped where the network would take minutes.
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
    network.to(memory_format=MEMORY_FORMAT[len(shape)])  # as trained: reduced formats are fast in this one only
    try:
        images, seconds, gradient = _in_fp32(network, shape, device)
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


def _in_fp32(
    network: Network, shape: tuple[int, ...], device: torch.device
) -> tuple[torch.Tensor, float, torch.Tensor]:
    """Probe in fp32 on volumes as large as time and memory allow; gives them, the seconds, and the gradient."""
    size = list(shape[2:]) if network.standardised else _affordable_size(network, shape, device)
    while True:
        try:
            images = _blobs(shape, size).to(device, memory_format=MEMORY_FORMAT[len(shape)])
            return images, *_probe(network, images, None)
        except RuntimeError as error:
            if not is_out_of_memory(error) or network.standardised or max(size) <= SMALL:
                raise
        size = [max(n // 2, min(n, SMALL)) for n in size]


def _affordable_size(network: Network, shape: tuple[int, ...], device: torch.device) -> list[int]:
    small = [min(n, SMALL) for n in shape[2:]]
    images = _blobs(shape, small).to(device, memory_format=MEMORY_FORMAT[len(shape)])
    seconds, _ = _probe(network, images, None, give_up_after=STEP_SECONDS)
    growth = max(1.0, STEP_SECONDS / seconds) ** (1 / len(small))
    return [min(n, int(SMALL * growth) // 8 * 8) for n in shape[2:]]


def _blobs(shape: tuple[int, ...], size: Sequence[int]) -> torch.Tensor:
    """Make images that differ from each other at large scale, as heads do.

    In plain noise they would differ by their rounding alone once pooled, and batch norm would blow that up.
    """
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn((min(shape[0], N_SCANS), shape[1], *[max(2, n // 8) for n in size]), generator=generator)
    return torch.nn.functional.interpolate(coarse, list(size), mode="trilinear" if len(size) == 3 else "bilinear")


def _probe(
    network: Network, images: torch.Tensor, dtype: torch.dtype | None, give_up_after: float = 60.0
) -> tuple[float, torch.Tensor]:
    """Give the shortest time of a few steps (seconds), and the gradient of the last linear layer."""
    device = images.device
    best, gradient, began = float("inf"), torch.zeros(1), time.perf_counter()
    for number in range(5):
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
        if elapsed > give_up_after or (number and time.perf_counter() - began > PROBE_SECONDS):
            break  # at least two: the first one also prepares kernels
    return best, gradient
