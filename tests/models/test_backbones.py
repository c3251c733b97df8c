"""The contract of every backbone that is found; a new family needs no new test."""

import pytest
import torch
from torch import nn

from neuroage.errors import UsageError
from neuroage.models.backbones import backbone_builder, backbone_summary, backbones, spatial_dims_of
from neuroage.models.network import build_network, initialise
from neuroage.runs.recipe import Recipe

# Small options, so that each family builds and runs in a fraction of a second.
SMALL = {
    "cnn": {"features": 4},
    "sfcn": {"widths": [4, 8, 8, 8, 8, 4]},
    "resnet": {"width": 0.125},
    "densenet": {"growth_rate": 2},
    "highresnet": {"depth": 4},
}
VOLUME_BACKBONES = [name for name in backbones() if 3 in spatial_dims_of(name)]


def network(name: str, spatial_dims: int = 3, n_outputs: int = 2, **changes: object) -> nn.Module:
    recipe = Recipe.from_dict({"backbone": {"name": name, **SMALL.get(name, {})}, **changes})
    return build_network(recipe, spatial_dims=spatial_dims, in_channels=1, n_outputs=n_outputs)


def test_the_families_of_the_field_are_there() -> None:
    assert {"cnn", "sfcn", "resnet", "densenet", "highresnet"} <= set(backbones())
    assert len(backbones()) >= 5
    assert all(backbone_summary(name).endswith(".") for name in backbones())


@pytest.mark.parametrize("name", VOLUME_BACKBONES)
@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 24, 9), (33, 20)])
def test_any_input_size_gives_finite_outputs_of_the_right_shape(name: str, shape: tuple[int, ...]) -> None:
    net = network(name, spatial_dims=len(shape)).eval()
    images = torch.randn(2, 1, *shape)
    with torch.no_grad():
        features = net.backbone(images)
        assert features.shape[:2] == (2, net.backbone.n_features)
        assert features.ndim == images.ndim
        outputs = net(images)
    assert outputs.shape == (2, 2)
    assert torch.isfinite(outputs).all()


@pytest.mark.parametrize("name", VOLUME_BACKBONES)
def test_every_weight_receives_a_gradient(name: str) -> None:
    net = network(name)
    net(torch.randn(4, 1, 16, 16, 16)).square().sum().backward()
    missing = [key for key, parameter in net.named_parameters() if parameter.grad is None]
    assert missing == []


@pytest.mark.parametrize("name", VOLUME_BACKBONES)
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(name: str) -> None:
    first, second, other = (network(name, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", VOLUME_BACKBONES)
def test_pretrained_weights_that_do_not_exist_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        backbone_builder(name)(spatial_dims=3, in_channels=1, weights="imagenet")


def test_sfcn_is_the_published_network() -> None:
    net = build_network(Recipe.from_dict({"backbone": {"name": "sfcn"}}), spatial_dims=3, in_channels=1, n_outputs=40)
    assert sum(parameter.numel() for parameter in net.parameters()) == 2_952_936  # Peng 2021
    with torch.no_grad():
        assert net.eval().backbone(torch.zeros(1, 1, 64, 64, 32)).shape == (1, 64, 2, 2, 1)


def test_highresnet_keeps_full_resolution_unless_its_stem_strides() -> None:
    images = torch.zeros(1, 1, 9, 8, 7)
    with torch.no_grad():
        assert network("highresnet").eval().backbone(images).shape == (1, 32, 9, 8, 7)
        strided = network("highresnet", backbone={"name": "highresnet", "depth": 1, "stem_stride": 2})
        assert strided.eval().backbone(images).shape == (1, 16, 5, 4, 4)
    for wrong in ({"stem_stride": 5}, {"depth": 0}, {"depth": 10}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            network("highresnet", backbone={"name": "highresnet", **wrong})


@pytest.mark.parametrize("init", ["xavier", "he"])
def test_initial_weights_have_the_spread_of_their_rule(init: str) -> None:
    layer = nn.Conv3d(16, 32, 3)
    initialise(layer, init)
    fan_in, fan_out = 16 * 27, 32 * 27
    expected = (2 / (fan_in + fan_out)) ** 0.5 if init == "xavier" else (2 / fan_in) ** 0.5
    assert float(layer.weight.detach().std()) == pytest.approx(expected, rel=0.05)
    assert float(layer.bias.detach().abs().max()) == 0


@pytest.mark.parametrize(
    ("pool", "factor"), [("average", 1), ("max", 1), ("average_max", 2), ("grid", 12), ("attention", 1)]
)
def test_pooling_gives_one_vector_whatever_the_size(pool: str, factor: int) -> None:
    net = network("cnn", pool=pool, pool_grid=[2, 3, 2]).eval()
    with torch.no_grad():
        for size in (16, 40):
            assert net.features(torch.randn(2, 1, size, size, size)).shape == (2, factor * net.backbone.n_features)


def test_hidden_head_layers_have_their_widths_and_dropout() -> None:
    net = network("cnn", head={"hidden": [32, 8], "dropout": 0.25})
    assert [layer.out_features for layer in net.head if isinstance(layer, nn.Linear)] == [32, 8, 2]
    assert [layer.p for layer in net.head if isinstance(layer, nn.Dropout)] == [0.25] * 3


def test_voxelwise_standardisation_is_part_of_the_weights() -> None:
    net = network("cnn", standardise="voxelwise", prepare={"size": [16, 16, 16]})
    images = torch.randn(2, 1, 16, 16, 16)
    before = net.eval()(images)
    net.input_mean += 1
    assert torch.allclose(net(images + 1), before, atol=1e-5)
    assert {"input_mean", "input_std"} <= set(net.state_dict())
