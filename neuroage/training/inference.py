"""Run a network on scans without learning; open the network of a run."""

from __future__ import annotations

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from neuroage.errors import UsageError
from neuroage.imaging.batches import VolumeSet
from neuroage.models.network import Network, build_network
from neuroage.models.tasks import Task, build_task
from neuroage.runs.run import Run
from neuroage.training.checkpoint import load_checkpoint
from neuroage.training.devices import make_fabric, sum_over_processes

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
    parts = [outputs_of(fabric, network, images, flips) for images in volumes.batches(plan)]
    network.train(was_training)
    if fabric.world_size == 1:
        return torch.cat(parts)
    outputs = torch.zeros(len(positions), network.n_outputs, device=fabric.device)
    for start, part in zip(range(0, len(mine), batch_size), parts, strict=True):
        outputs[torch.from_numpy(mine[start : start + batch_size]).to(outputs.device)] = part
    return sum_over_processes(fabric, outputs)


def outputs_of(fabric: Fabric, network: nn.Module, images: Tensor, flips: bool) -> Tensor:
    """Give the outputs of one batch, (B, n_outputs), float32; with `flips` averaged with its left–right mirror."""
    images = images.contiguous(memory_format=MEMORY_FORMAT[images.ndim])
    with fabric.autocast():
        output = network(images).float()
        if flips:
            output = (output + network(images.flip(LEFT_RIGHT_AXIS[images.ndim])).float()) / 2
    return output


def complete_leaves(run: Run) -> list[Run]:
    """Give the trainings of a run that came to their end.

    Raises:
        UsageError: There is none.
    """
    leaves = [leaf for leaf in run.leaves if leaf.complete]
    if not leaves:
        raise UsageError(f"{run.folder} is not complete", fix="Finish it with `neuroage train … --resume`.")
    return leaves


def load_network(run: Run) -> tuple[Fabric, Network, Task]:
    """Open the network of a single training, on the device that is there, with the weights that were kept.

    Raises:
        DataError: The weights are missing or not whole.
    """
    recipe, about = run.recipe, run.about
    groups, kept = load_checkpoint(run.weights_path)
    task = build_task(recipe)
    task.restore(kept["task"])
    network = build_network(
        recipe,
        spatial_dims=len(recipe.prepare.size),
        in_channels=recipe.prepare.n_channels,
        n_outputs=task.n_outputs,
        pretrained=False,
    )
    network.load_state_dict(groups["network"])
    fabric = make_fabric(about["precision"] if about["device"] == make_fabric("fp32").device.type else "fp32")
    return fabric, network.to(fabric.device).to(memory_format=MEMORY_FORMAT[len(recipe.prepare.size) + 2]), task
