"""Run a network on scans without learning."""

from __future__ import annotations

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from neuroage.imaging.batches import VolumeSet

LEFT_RIGHT_AXIS = {4: 3, 5: 2}  # of a batch: columns of an image (B, C, H, W), the first axis of a RAS+ volume
MEMORY_FORMAT = {4: torch.channels_last, 5: torch.channels_last_3d}


@torch.no_grad()
def run_network(
    fabric: Fabric,
    network: nn.Module,
    volumes: VolumeSet,
    positions: np.ndarray,
    batch_size: int,
    *,
    flips: bool = False,
) -> Tensor:
    """Give the outputs of a network in evaluation mode, without augmentation.

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
    outputs = []
    plan = [positions[start : start + batch_size] for start in range(0, len(positions), batch_size)]
    for images in volumes.batches(plan):
        images = images.contiguous(memory_format=MEMORY_FORMAT[images.ndim])
        with fabric.autocast():
            output = network(images).float()
            if flips:
                output = (output + network(images.flip(LEFT_RIGHT_AXIS[images.ndim])).float()) / 2
        outputs.append(output)
    network.train(was_training)
    return torch.cat(outputs)
