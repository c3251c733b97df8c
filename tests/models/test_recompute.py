"""Recomputation changes what is kept in memory, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neuroage.errors import UsageError
from neuroage.models.backbones import backbone_builder, backbones, spatial_dims_of
from neuroage.models.recompute import LEVELS, recompute_levels, set_recompute

# Small options, so that each family builds and runs in a fraction of a second.
SMALL: dict[str, dict[str, Any]] = {
    "cnn": {"features": 4, "convs_per_block": 2},
    "sfcn": {"widths": [4, 8, 8, 8, 8, 4]},
    "resnet": {"width": 0.125},
    "densenet": {"growth_rate": 2},
    "highresnet": {"depth": 6},
}
VOLUME_BACKBONES = [name for name in backbones() if 3 in spatial_dims_of(name)]
IMAGES = torch.randn(2, 1, 12, 16, 8, generator=torch.Generator().manual_seed(0))


def backbone(name: str, level: str = "none", **options: Any) -> Any:
    torch.manual_seed(1)
    network = backbone_builder(name)(spatial_dims=3, in_channels=1, **{**SMALL.get(name, {}), **options})
    set_recompute(network, level)
    return network


def step(network: nn.Module, images: Tensor = IMAGES, dtype: torch.dtype | None = None) -> Tensor:
    """One step without an optimiser; the random draws are the same each time."""
    torch.manual_seed(2)
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        features: Tensor = network(images)
    features.flatten(2).mean(dim=2).double().square().sum().backward()
    return features.detach()


def gradients(network: nn.Module) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None])


def kept_bytes(network: nn.Module, images: Tensor) -> int:
    """Bytes of all tensors that a forward pass keeps for the backward pass, without the network's own."""
    own = {tensor.untyped_storage().data_ptr() for tensor in network.state_dict().values()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = network(images)
    total = sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in own)
    del features
    return total


def peak_bytes(run: Callable[[], Any]) -> int:
    """Most bytes allocated at a time while something runs, beyond what was allocated before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    now = peak = 0
    results: Any = profile.profiler.kineto_results
    for event in sorted(results.events(), key=lambda event: event.start_ns()):
        now += event.nbytes() if event.name() == "[memory]" else 0
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("name", VOLUME_BACKBONES)
def test_every_level_gives_the_same_outputs_gradients_and_running_statistics(name: str) -> None:
    plain = backbone(name)
    expected = step(plain)
    assert recompute_levels(plain)[0] == "none"
    for level in recompute_levels(plain)[1:]:
        network = backbone(name, level)
        assert list(network.state_dict()) == list(plain.state_dict())
        torch.testing.assert_close(step(network), expected, rtol=1e-5, atol=1e-6)
        assert (gradients(network) - gradients(plain)).norm() <= 1e-5 * gradients(plain).norm()
        for key, buffer in network.named_buffers():
            torch.testing.assert_close(buffer, plain.get_buffer(key), rtol=1e-6, atol=0, msg=f"{level}: {key}")


def test_every_family_of_ours_offers_to_recompute() -> None:
    offered = {name: recompute_levels(backbone(name)) for name in VOLUME_BACKBONES}
    assert all("blocks" in levels for levels in offered.values())
    assert all(offered[name] == LEVELS for name in ("cnn", "sfcn", "highresnet"))


def test_a_level_that_is_not_offered_is_refused_naming_those_that_are() -> None:
    with pytest.raises(UsageError, match="none, blocks"):
        set_recompute(backbone("resnet"), "activations")
    with pytest.raises(UsageError, match="one of none"):
        set_recompute(nn.Linear(2, 2), "blocks")
    set_recompute(nn.Linear(2, 2), "none")


@pytest.mark.parametrize("level", LEVELS[1:])
@pytest.mark.parametrize("norm", ["instance", "group", "none"])
@pytest.mark.parametrize("name", ["cnn", "highresnet"])
def test_other_norms_and_double_precision_give_the_same(name: str, norm: str, level: str) -> None:
    plain, network = (backbone(name, which, norm=norm).double() for which in ("none", level))
    torch.testing.assert_close(step(network, IMAGES.double()), step(plain, IMAGES.double()))
    torch.testing.assert_close(gradients(network), gradients(plain))


@pytest.mark.parametrize("level", LEVELS[1:])
def test_mixed_precision_is_as_it_was_in_the_forward_pass(level: str) -> None:
    plain, network = backbone("highresnet"), backbone("highresnet", level)
    assert torch.equal(step(network, dtype=torch.bfloat16), step(plain, dtype=torch.bfloat16))
    torch.testing.assert_close(gradients(network), gradients(plain), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("level", LEVELS[1:])
def test_dropout_draws_the_same_when_computed_again(level: str) -> None:
    plain, network = backbone("cnn", dropout=0.5), backbone("cnn", level, dropout=0.5)
    torch.testing.assert_close(step(network), step(plain))
    torch.testing.assert_close(gradients(network), gradients(plain))
    after = torch.rand(1)
    step(plain)
    assert torch.equal(torch.rand(1), after), "later draws are those of a network that keeps everything"


@pytest.mark.parametrize("level", LEVELS[1:])
def test_a_batch_counts_once_in_running_statistics_even_when_gone_through_twice(level: str) -> None:
    network = backbone("highresnet", level)
    loss = network(IMAGES).square().mean()
    before = {key: buffer.clone() for key, buffer in network.named_buffers()}
    loss.backward(retain_graph=True)
    loss.backward()
    assert all(torch.equal(buffer, before[key]) for key, buffer in network.named_buffers())
    counts = [buffer for key, buffer in network.named_buffers() if key.endswith("num_batches_tracked")]
    assert len(counts) > 10
    assert all(count == 1 for count in counts)
    assert all(module.momentum == 0.1 for module in network.modules() if isinstance(module, nn.BatchNorm3d))


def test_a_copy_recomputes_for_itself() -> None:
    network = backbone("highresnet", "blocks")
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    step(twin)
    assert all(parameter.grad is None for parameter in network.parameters())
    set_recompute(twin, "none")
    assert kept_bytes(twin, IMAGES) > 2 * kept_bytes(network, IMAGES)


def test_a_network_that_recomputes_can_be_compiled() -> None:
    plain, network = backbone("cnn"), backbone("cnn", "blocks")
    compiled: Any = torch.compile(network, backend="eager")
    torch.testing.assert_close(step(compiled), step(plain))
    torch.testing.assert_close(gradients(network), gradients(plain))
    assert kept_bytes(compiled, IMAGES) < 0.9 * kept_bytes(plain, IMAGES)


def test_nothing_is_kept_where_no_gradient_is_wanted() -> None:
    network = backbone("highresnet", "blocks").eval()
    with torch.no_grad():
        assert kept_bytes(network, IMAGES) == 0
        expected = network(IMAGES)
        set_recompute(network, "none")
        assert torch.equal(network(IMAGES), expected)


def test_each_level_of_highresnet_keeps_a_known_share() -> None:
    images = torch.randn(1, 1, 12, 12, 12)
    kept = {level: kept_bytes(backbone("highresnet", level, depth=9), images) for level in LEVELS}
    assert kept["activations"] <= 0.5 * kept["none"]
    assert kept["blocks"] <= 0.29 * kept["none"]  # inputs of nine blocks, and half of the last one


@pytest.mark.parametrize(("name", "share"), [("cnn", 0.6), ("sfcn", 0.6), ("resnet", 0.9), ("densenet", 0.9)])
def test_every_family_keeps_less_at_its_last_level(name: str, share: float) -> None:
    images = torch.randn(2, 1, 32, 32, 32)
    plain = backbone(name)
    network = backbone(name, recompute_levels(plain)[-1])
    assert kept_bytes(network, images) <= share * kept_bytes(plain, images)


def test_a_step_of_highresnet_needs_less_than_half_of_monai_s_memory() -> None:
    from monai.networks.nets import HighResNet

    torch.manual_seed(1)
    plain = HighResNet(spatial_dims=2, in_channels=1, out_channels=1)
    plain.blocks = plain.blocks[:-2]
    network = backbone_builder("highresnet")(spatial_dims=2, in_channels=1)
    network.load_state_dict(dict(zip(network.state_dict(), plain.state_dict().values(), strict=True)))
    images = torch.randn(2, 1, 80, 80)
    torch.testing.assert_close(step(network, images), step(plain, images), rtol=1e-4, atol=1e-4)
    assert (gradients(network) - gradients(plain)).norm() <= 1e-4 * gradients(plain).norm()
    whole = peak_bytes(lambda: step(plain, images))
    peaks = {}
    for level in LEVELS:
        set_recompute(network, level)
        peaks[level] = peak_bytes(lambda: step(network, images))
    assert peaks["none"] <= 1.01 * whole
    assert peaks["activations"] <= 0.7 * whole
    assert peaks["blocks"] <= 0.5 * whole
