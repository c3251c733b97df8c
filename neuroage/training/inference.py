"""Run a network on scans without learning."""

from __future__ import annotations

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from neuroage.imaging.batches import VolumeSet
from neuroage.models.network import Network
from neuroage.training.devices import sum_over_processes

LEFT_RIGHT_AXIS = {4: 3, 5: 2}  # of a batch: columns of an image (B, C, H, W), the first axis of a RAS+ volume
MEMORY_FORMAT = {4: torch.channels_last, 5: torch.channels_last_3d}


@torch.no_grad()
def run_network(
    fabric: Fabric,
    network: Network,
    volumes: VolumeSet,
    positions: np.ndarray,
    batch_size: int,
    *,
    flips: bool = False,
) -> Tensor:
    """Give the outputs of a network in evaluation mode, without augmentation.

    Several processes share the scans; each gets all outputs.

    Args:
        fabric: Device and precision.
        network: On the device.
        volumes: Prepared volumes.
        positions: Which of them.
        batch_size: Scans at a time.
        flips: Average the outputs over the scan and its left–right mirror.

    Returns:
        Outputs (len(positions), n_outputs), float32, on the device.
    """
    was_training = network.training
    network.eval()
    mine = np.arange(fabric.global_rank, len(positions), fabric.world_size)
    plan = [positions[mine[start : start + batch_size]] for start in range(0, len(mine), batch_size)]
    parts = [_outputs(fabric, network, images, flips) for images in volumes.batches(plan)]
    network.train(was_training)
    if fabric.world_size == 1:
        return torch.cat(parts)
    outputs = torch.zeros(len(positions), network.n_outputs, device=fabric.device)
    for start, part in zip(range(0, len(mine), batch_size), parts, strict=True):
        outputs[torch.from_numpy(mine[start : start + batch_size]).to(outputs.device)] = part
    return sum_over_processes(fabric, outputs)


def _outputs(fabric: Fabric, network: nn.Module, images: Tensor, flips: bool) -> Tensor:
    images = images.contiguous(memory_format=MEMORY_FORMAT[images.ndim])
    with fabric.autocast():
        output = network(images).float()
        if flips:
            output = (output + network(images.flip(LEFT_RIGHT_AXIS[images.ndim])).float()) / 2
    return output
