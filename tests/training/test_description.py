"""What describe says of a network is what a training does with it."""

from __future__ import annotations

import pytest
import torch

from neuroage.models.backbones import backbones, spatial_dims_of
from neuroage.models.network import build_network
from neuroage.runs.recipe import Recipe
from neuroage.training.description import describe_network, empty_network, forward_flops

VOLUME_BACKBONES = [name for name in backbones() if 3 in spatial_dims_of(name)]


def recipe(name: str = "cnn", **changes: object) -> Recipe:
    small = {"cnn": {"n_blocks": 2, "features": 4}, "densenet": {"growth_rate": 4}, "resnet": {"width": 0.25}}
    options = {"backbone": {"name": name, **small.get(name, {})}, "prepare": {"size": [16, 16, 16]}}
    return Recipe.from_dict({**options, **changes})


@pytest.mark.parametrize("name", VOLUME_BACKBONES)
def test_every_backbone_is_described_without_making_it(name: str) -> None:
    made = recipe(name)
    described = describe_network(made)
    network = build_network(made, spatial_dims=3, in_channels=1, n_outputs=1, pretrained=False)
    assert described.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert described.parameters == described.trained == described.ever_trained
    assert described.forward_flops > described.parameters  # every weight is used at least once
    assert all(parameter.is_meta for parameter in empty_network(made).parameters())


def test_operations_are_those_of_the_layers() -> None:
    convolutions = 2 * 27 * 16**3 * 1 * 4 + 2 * 27 * 8**3 * 4 * 8  # multiply and add; kernel 27, halved in between
    assert forward_flops(recipe()) == convolutions + 2 * 8 * 1


def test_stages_say_when_they_train_how_fast_and_what_is_frozen_now() -> None:
    finetune = {"unfreeze": {0: "head", 4: 0.5, 90: 1.0}, "layer_decay": 0.5, "head_lr": 10}
    made = recipe(finetune=finetune, optim={"lr": 0.01})
    described = describe_network(made, epoch=4)
    assert [stage.name for stage in described.stages] == ["blocks.0", "blocks.1", "head"]
    assert [stage.trains_after for stage in described.stages] == [None, 4, 0]  # 60 epochs never come to the 90th
    assert [stage.learning_rate for stage in described.stages] == pytest.approx([0.0025, 0.005, 0.1])
    assert [stage.frozen for stage in described.stages] == [True, False, False]
    assert [stage.frozen for stage in describe_network(made).stages] == [True, True, False]
    assert described.trained == described.ever_trained == sum(stage.parameters for stage in described.stages[1:])


def test_nothing_drawn_at_random_moves() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    describe_network(recipe())
    assert torch.rand(1) == expected
