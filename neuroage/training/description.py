"""What a recipe's network is made of, what of it learns when and how fast, and what it costs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from neuroage.models.freezing import first_trained, rate_scales, stages_of, trained_stages
from neuroage.models.network import Network, build_network
from neuroage.models.tasks import foresee_task
from neuroage.runs.recipe import Recipe
from neuroage.training.memory import copy_on_cpu


@dataclass(frozen=True)
class StageDescription:
    """One stage of a network.

    Attributes:
        name: As in the recipe.
        depth: 0 at the input, 1 at the head.
        parameters: Number of weights.
        trains_after: Epochs that are done when it begins to train; None: it never does.
        learning_rate: Highest of the schedule, for this stage.
        frozen: Whether it is frozen in the epoch that was asked for.
    """

    name: str
    depth: float
    parameters: int
    trains_after: int | None
    learning_rate: float
    frozen: bool


@dataclass(frozen=True)
class Description:
    """A network as a recipe trains it.

    Attributes:
        epoch: Epochs that are done.
        stages: From the input to the head.
        parameters: Number of weights.
        trained: Those that train in this epoch.
        ever_trained: Those that train in any epoch.
        input_shape: Channels and voxels of one scan.
        forward_flops: Multiplications and additions of convolutions and products, for one scan, without backward pass.
    """

    epoch: int
    stages: list[StageDescription]
    parameters: int
    trained: int
    ever_trained: int
    input_shape: tuple[int, ...]
    forward_flops: int

    def to_dict(self) -> dict[str, Any]:
        """Give all fields, JSON-ready."""
        return asdict(self)


def describe_network(recipe: Recipe, epoch: int = 0) -> Description:
    """Describe the network of a recipe after a number of epochs, without weights: nothing is fetched or computed.

    Args:
        recipe: The whole configuration.
        epoch: Epochs that are done.

    Raises:
        UsageError: The recipe names a backbone, an option or a stage that is not there.
    """
    network, finetune = empty_network(recipe), recipe.finetune
    stages = stages_of(network)
    now = trained_stages(stages, finetune, epoch)
    starts = first_trained(stages, finetune, recipe.training.epochs)
    rates = [recipe.optim.lr * scale for scale in rate_scales(stages, finetune)]
    described = [
        StageDescription(stage.name, stage.depth, stage.n_parameters, start, rate, not trains)
        for stage, start, rate, trains in zip(stages, starts, rates, now, strict=True)
    ]
    return Description(
        epoch=epoch,
        stages=described,
        parameters=sum(stage.parameters for stage in described),
        trained=sum(stage.parameters for stage in described if not stage.frozen),
        ever_trained=sum(stage.parameters for stage in described if stage.trains_after is not None),
        input_shape=(recipe.prepare.n_channels, *recipe.prepare.size),
        forward_flops=forward_flops(recipe),
    )


def empty_network(recipe: Recipe) -> Network:
    """Build the network of a recipe with shapes alone: it takes no memory, and nothing is fetched."""
    with torch.device("meta"):
        return _build(recipe)


@torch.no_grad()
def forward_flops(recipe: Recipe) -> int:
    """Count multiplications and additions of a forward pass of one scan, in convolutions and matrix products."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # late: brings in much of the compiler

    network = empty_network(recipe)  # some networks look at numbers while they are built, which fake tensors have not
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
        copy_on_cpu(network).eval()(torch.empty(1, recipe.prepare.n_channels, *recipe.prepare.size))
    return int(counter.get_total_flops())


def _build(recipe: Recipe) -> Network:
    return build_network(
        recipe,
        spatial_dims=len(recipe.prepare.size),
        in_channels=recipe.prepare.n_channels,
        n_outputs=foresee_task(recipe).n_outputs,
        pretrained=False,
    )
