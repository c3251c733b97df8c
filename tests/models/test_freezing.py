"""Stages, freezing and rates of every backbone that is found; a new family needs no new test."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from neuroage.errors import UsageError
from neuroage.models.backbones import backbones, spatial_dims_of
from neuroage.models.freezing import (
    HEAD,
    MOST_STAGES,
    Stage,
    check_finetune,
    first_trained,
    freeze_for,
    phases,
    phases_in_words,
    rate_scales,
    stages_of,
    trained_stages,
)
from neuroage.models.network import Network, build_network
from neuroage.models.recompute import set_recompute
from neuroage.runs.recipe import Finetune, Recipe

# Small options, so that each family builds and runs in a fraction of a second.
SMALL = {
    "cnn": {"features": 4},
    "sfcn": {"widths": [4, 8, 8, 8, 8, 4]},
    "resnet": {"width": 0.125},
    "densenet": {"growth_rate": 2},
}
VOLUME_BACKBONES = [name for name in backbones() if 3 in spatial_dims_of(name)]


def make(name: str = "cnn", **changes: Any) -> tuple[Network, Recipe]:
    options = {"backbone": {"name": name, **SMALL.get(name, {})}, **changes}
    recipe = Recipe.from_dict(options)
    return build_network(recipe, spatial_dims=3, in_channels=1, n_outputs=2, pretrained=False), recipe


def flags(finetune: dict[str, Any], epoch: int = 0, name: str = "cnn") -> list[bool]:
    return trained_stages(stages_of(make(name)[0]), Finetune(**finetune), epoch)


@pytest.mark.parametrize("pool", ["average", "attention"])
@pytest.mark.parametrize("name", VOLUME_BACKBONES)
def test_every_parameter_is_in_exactly_one_stage(name: str, pool: str) -> None:
    network, _ = make(name, pool=pool)
    stages = stages_of(network)
    counted = [id(parameter) for stage in stages for parameter in stage.parameters]
    assert sorted(counted) == sorted(id(parameter) for parameter in network.parameters())
    assert sum(stage.n_parameters for stage in stages) == sum(p.numel() for p in network.parameters())
    assert all(stage.n_parameters for stage in stages)


@pytest.mark.parametrize("name", VOLUME_BACKBONES)
def test_depth_runs_from_the_input_to_the_head_in_a_few_named_stages(name: str) -> None:
    stages = stages_of(make(name)[0])
    depths = [stage.depth for stage in stages]
    assert depths[0] == 0 and depths[-1] == 1 and depths == sorted(set(depths))
    assert 3 <= len(stages) <= MOST_STAGES + 1
    assert len({stage.name for stage in stages}) == len(stages)
    assert stages[-1].name == HEAD


@pytest.mark.parametrize("name", VOLUME_BACKBONES)
def test_stages_are_passed_in_their_order(name: str) -> None:
    network, _ = make(name)
    passed: list[str] = []
    for stage in stages_of(network):
        for module in stage.modules[:1]:
            module.register_forward_hook(lambda *_, name=stage.name: passed.append(name))
    network.eval()(torch.randn(1, 1, 16, 16, 16))
    assert list(dict.fromkeys(passed)) == [stage.name for stage in stages_of(network)]


@pytest.mark.parametrize("name", VOLUME_BACKBONES)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_frozen_stages_keep_every_number_while_the_others_learn(name: str, share: float) -> None:
    network, recipe = make(name, finetune={"freeze": share})
    freeze_for(network, recipe, 0)
    before = copy.deepcopy(network.state_dict())
    weights = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=0.1, weight_decay=0.5)
    torch.manual_seed(0)
    for _ in range(2):
        network.train()
        optimiser.zero_grad()
        network(torch.randn(4, 1, 16, 16, 16)).square().sum().backward()
        optimiser.step()
    stages = stages_of(network)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    owners = {module: stage for stage in stages for part in stage.modules for module in part.modules()}
    for path, module in network.named_modules():
        own = {
            f"{path}.{key}" for key, _ in (*module.named_parameters(recurse=False), *module.named_buffers("", False))
        }
        if module not in owners or not own:
            continue
        trains = trained_stages(stages, recipe.finetune, 0)[stages.index(owners[module])]
        if not trains:
            assert not own & changed
            assert not module.training
        elif isinstance(module, _BatchNorm):
            assert f"{path}.running_mean" in changed
    assert [stage.trains for stage in stages] == trained_stages(stages, recipe.finetune, 0)
    assert {key for key in changed if key.startswith("head.")}


def test_freeze_counts_a_share_of_the_stages_from_the_input() -> None:
    assert flags({"freeze": 0.0}) == [True] * 5
    assert flags({"freeze": 0.5}) == [False, False, True, True, True]
    assert flags({"freeze": 1.0}) == [False] * 4 + [True]


def test_freeze_takes_names_of_stages_and_of_rows_of_them() -> None:
    assert flags({"freeze": "blocks.1"}) == [True, False, True, True, True]
    assert flags({"freeze": ["blocks.0", "blocks.3"]}) == [False, True, True, False, True]
    assert flags({"freeze": "blocks"}) == [False] * 4 + [True]


def test_unfreezing_counts_from_the_head_and_depends_on_the_epoch_alone() -> None:
    finetune = {"unfreeze": {0: "head", 5: 0.5, 10: "blocks.1", 12: 1.0}}
    head, half = [False] * 4 + [True], [False, False, True, True, True]
    later = [False, True, True, True, True]
    expected = {0: head, 4: head, 5: half, 9: half, 10: later, 11: later, 12: [True] * 5, 99: [True] * 5}
    assert {epoch: flags(finetune, epoch) for epoch in reversed(expected)} == expected
    stages = stages_of(make()[0])
    assert first_trained(stages, Finetune(**finetune), 99) == [12, 10, 5, 5, 0]
    assert first_trained(stages, Finetune(**finetune), 11) == [None, 10, 5, 5, 0]
    assert phases(Finetune(**finetune), 11) == [0, 5, 10]


def test_the_most_that_ever_trains_is_what_memory_is_planned_for() -> None:
    network, recipe = make(finetune={"unfreeze": {0: "head", 3: 0.5}}, training={"epochs": 5})
    freeze_for(network, recipe)
    assert [stage.trains for stage in stages_of(network)] == [False, False, True, True, True]
    freeze_for(network, recipe, 0)
    assert [stage.trains for stage in stages_of(network)] == [False] * 4 + [True]
    freeze_for(network, recipe, 3)
    assert [stage.trains for stage in stages_of(network)] == [False, False, True, True, True]
    assert network.train().backbone.blocks[3].training and not network.backbone.blocks[1].training


def test_a_copy_of_a_frozen_network_is_frozen_too() -> None:
    network, recipe = make(finetune={"freeze": 0.5})
    freeze_for(network, recipe, 0)
    copied = copy.deepcopy(network).train()
    assert not copied.backbone.blocks[0].training and copied.backbone.blocks[3].training
    assert copied.frozen[0] is copied.backbone.blocks[0]


def test_nothing_is_touched_where_nothing_is_frozen() -> None:
    network, recipe = make()
    fixed = next(network.parameters()).requires_grad_(False)
    freeze_for(network, recipe, 0)
    assert not fixed.requires_grad and network.frozen == ()
    assert phases_in_words(network, recipe) == []


def test_phases_are_told_in_words() -> None:
    network, recipe = make(finetune={"unfreeze": {0: "head", 5: 0.25}})
    first, second = phases_in_words(network, recipe)
    assert first == "From the start, 1 of 5 stages train: head."
    assert second == "After 5 epochs, 2 of 5 stages train: blocks.3, head."


def test_unknown_stages_are_refused_with_all_names_and_the_nearest() -> None:
    for finetune in ({"freeze": ["block.1"]}, {"unfreeze": {0: "block.1"}}):
        with pytest.raises(UsageError, match=r"block\.1.*blocks\.0.*did you mean 'blocks\.1'"):
            flags(finetune)
        problems = check_finetune(make(finetune=finetune)[1])
        assert len(problems) == 1 and "blocks.3" in problems[0].message
    with pytest.raises(UsageError, match="No stage 'head'"):
        flags({"freeze": "head"})
    assert check_finetune(make(finetune={"unfreeze": {0: "head", 2: "blocks.1"}})[1]) == []


def test_rates_fall_from_the_head_to_the_input_by_the_same_share() -> None:
    stages = stages_of(make()[0])
    assert rate_scales(stages, Finetune(layer_decay=0.5, head_lr=10)) == [1 / 16, 1 / 8, 1 / 4, 1 / 2, 10]
    assert rate_scales(stages, Finetune()) == [1.0] * 5


def test_a_plain_row_of_layers_is_one_stage_and_norms_belong_to_what_stands_before_them() -> None:
    class Foreign(nn.Module):
        n_features = 8

        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(4))
            self.first_norm = nn.BatchNorm3d(1)
            self.stem = nn.Conv3d(1, 4, 3)
            self.norm = nn.BatchNorm3d(4)
            self.row = nn.Sequential(nn.Conv3d(4, 4, 3), nn.ReLU(), nn.Conv3d(4, 4, 3))
            self.rows = nn.Sequential(nn.Sequential(nn.Conv3d(4, 8, 3), nn.ReLU()), nn.Sequential(nn.Conv3d(8, 8, 3)))

    network = Network(Foreign(), pool="average", grid=(1, 1, 1), norm=False, hidden=(), dropout=0.0, n_outputs=1)
    stages: list[Stage] = stages_of(network)
    assert [stage.name for stage in stages] == ["stem", "row", "rows.0", "rows.1", "head"]
    assert stages[0].loose == (network.backbone.token,)
    assert set(stages[0].modules) == {network.backbone.first_norm, network.backbone.stem, network.backbone.norm}


@pytest.mark.parametrize("name", VOLUME_BACKBONES)
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_recomputation_and_freezing_go_together(name: str, share: float) -> None:
    gradients = []
    for level in ("none", "blocks"):
        network, recipe = make(name, finetune={"freeze": share})
        freeze_for(network, recipe, 0)
        set_recompute(network, level)
        network.train()(torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))).sum().backward()
        gradients.append({key: value.grad for key, value in network.named_parameters() if value.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() == {k for k, p in network.named_parameters() if p.requires_grad}
    for key, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], value)
