import numpy as np
import pytest
import torch
from torch import nn

from neuroage.models.freezing import freeze_for
from neuroage.models.network import build_network
from neuroage.runs.recipe import Finetune, Optim, Recipe
from neuroage.training.optim import MovingAverage, learning_rate, make_optimiser, set_rate

SCHEDULES = ["constant", "cosine", "one_cycle", "exponential", "plateau"]


def rates(**options: object) -> np.ndarray:
    recipe = Optim.model_validate({"lr": 1.0, "warmup_epochs": 2, **options})
    return np.array([learning_rate(recipe, progress, 20) for progress in np.linspace(0, 20, 201)])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_rate_warms_up_to_the_recipes_and_never_exceeds_it(schedule: str) -> None:
    curve = rates(schedule=schedule)
    assert curve[0] < 0.1
    assert curve.max() == pytest.approx(1.0, abs=1e-3)
    assert (curve > 0).all()


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle", "exponential"])
def test_falling_schedules_end_at_the_final_rate(schedule: str) -> None:
    assert rates(schedule=schedule, final_lr=0.05)[-1] == pytest.approx(0.05, rel=1e-3)


def test_one_cycle_peaks_at_a_third_and_cosine_after_its_warm_up() -> None:
    assert rates(schedule="one_cycle").argmax() == 60
    assert rates(schedule="cosine").argmax() == 20


def test_a_plateau_lowers_the_rate_after_its_patience() -> None:
    recipe = Optim(lr=1.0, schedule="plateau", plateau_epochs=3, warmup_epochs=0)
    assert learning_rate(recipe, 5, 20, [9, 8, 7, 7, 7]) == 1.0
    assert learning_rate(recipe, 6, 20, [9, 8, 7, 7, 7, 7]) == pytest.approx(0.3)
    assert learning_rate(recipe, 9, 20, [9, 8, 7, 7, 7, 7, 7, 7, 7]) == pytest.approx(0.09)


def test_norms_and_biases_are_spared_from_weight_decay() -> None:
    network = nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2), nn.Flatten(), nn.Linear(2, 1))
    decayed, spared = make_optimiser(network, Optim(weight_decay=0.5)).param_groups
    assert [p.ndim for p in decayed["params"]] == [5, 2]
    assert {p.ndim for p in spared["params"]} == {1}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.5, 0.0)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_both_optimisers_descend(name: str) -> None:
    layer = nn.Linear(3, 1)
    optimiser = make_optimiser(layer, Optim(name=name, lr=0.05, momentum=0.8, weight_decay=0))
    x, y = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)), torch.ones(64, 1)
    first = float((layer(x) - y).detach().square().mean())
    for _ in range(100):
        optimiser.zero_grad()
        (layer(x) - y).square().mean().backward()
        optimiser.step()
    assert float((layer(x) - y).detach().square().mean()) < 0.2 * first


def test_the_moving_average_follows_weights_and_norm_statistics() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = MovingAverage(network, decay=0.5)
    start = average.network.state_dict()["0.weight"].clone()
    with torch.no_grad():
        network[0].weight.add_(1.0)
        network[1].running_mean.fill_(4.0)
        network[1].num_batches_tracked.fill_(7)
    average.update(network, n_steps=1000)
    state = average.network.state_dict()
    assert torch.allclose(state["0.weight"], start + 0.5)
    assert torch.allclose(state["1.running_mean"], torch.full((2,), 2.0))
    assert int(state["1.num_batches_tracked"]) == 7


def test_a_young_average_forgets_its_random_start() -> None:
    network = nn.Linear(1, 1)
    average = MovingAverage(network, decay=0.999)
    with torch.no_grad():
        network.weight.fill_(3.0)
    for step in range(1, 60):
        average.update(network, step)
    assert float(average.network.weight.detach()) == pytest.approx(3.0, abs=0.01)


def test_stages_have_groups_and_rates_of_their_own_only_where_they_learn_at_different_rates() -> None:
    recipe = Recipe.from_dict({"backbone": {"name": "cnn", "n_blocks": 2, "features": 4}})
    network = build_network(recipe, spatial_dims=3, in_channels=1, n_outputs=1)
    plain = make_optimiser(network, recipe.optim, Finetune())
    assert [len(group["params"]) for group in plain.param_groups] == [3, 5]
    assert not any("lr_scale" in group for group in plain.param_groups)
    scaled = make_optimiser(network, recipe.optim, Finetune(layer_decay=0.5, head_lr=10))
    set_rate(scaled, 0.1)
    assert [group["lr"] for group in scaled.param_groups] == pytest.approx([0.025, 0.025, 0.05, 0.05, 1.0, 1.0])
    assert [group["weight_decay"] for group in scaled.param_groups] == [0.01, 0.0] * 3
    given = {id(parameter) for group in scaled.param_groups for parameter in group["params"]}
    assert given == {id(parameter) for parameter in network.parameters()}


def test_what_never_trains_is_not_given_to_the_optimiser() -> None:
    recipe = Recipe.from_dict({"backbone": {"name": "cnn", "n_blocks": 2, "features": 4}, "finetune": {"freeze": 1}})
    network = build_network(recipe, spatial_dims=3, in_channels=1, n_outputs=1)
    freeze_for(network, recipe)
    for finetune in (recipe.finetune, Finetune(freeze=1, layer_decay=0.5)):
        groups = make_optimiser(network, recipe.optim, finetune).param_groups
        assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in network.head.parameters()}
