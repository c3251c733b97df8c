"""Foretold memory against what torch's profiler sees of the real loop."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from neuroage.models.freezing import freeze_for
from neuroage.models.network import Network, build_network
from neuroage.models.tasks import build_task
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run
from neuroage.training.augmentation import build_augmentation
from neuroage.training.devices import make_fabric
from neuroage.training.loop import Scans, Trainee, fit
from neuroage.training.memory import LiveBytes, fixed_parts, memory_bound, peak_memory, resident_bytes

N_SCANS, BATCH = 8, 4  # two steps: the first has no moments yet
CONFIGURATIONS = {
    "cnn": ((24, 28, 24), "fp32", ()),
    "cnn without what is alive by default": ((24, 28, 24), "fp32", ("optim.ema=null", "optim.name=sgd")),
    "cnn in two parts, mixed": ((24, 28, 24), "fp32", ("optim.accumulate=2", "training.mixup=0.5")),
    "cnn of five channels, voxelwise": (
        (24, 28, 24),
        "fp32",
        ("prepare.fractions=[-2, -1, 0, 1]", "standardise=voxelwise", "pool=grid"),
    ),
    "cnn with an attention pool": ((24, 28, 24), "fp32", ("pool=attention",)),
    "sfcn": ((32, 32, 32), "fp32", ("backbone.name=sfcn", "training.select=inner", "training.inner_fraction=0.2")),
    "sfcn, blocks": ((32, 32, 32), "fp32", ("backbone.name=sfcn", "training.recompute=blocks")),
    "cnn, bf16": ((24, 28, 24), "bf16", ()),
    "highresnet": ((12, 12, 12), "fp32", ("backbone.name=highresnet",)),
    "highresnet, activations": ((12, 12, 12), "fp32", ("backbone.name=highresnet", "training.recompute=activations")),
    "highresnet, blocks": ((12, 12, 12), "fp32", ("backbone.name=highresnet", "training.recompute=blocks")),
    "image, resnet": ((64, 64), "fp32", ("backbone.name=resnet",)),
}


class Volumes:
    """Random images, given out batch by batch."""

    def __init__(self, channels: int, size: tuple[int, ...]) -> None:
        self.stored = torch.randint(0, 256, (N_SCANS, channels, *size), dtype=torch.uint8)
        self.spatial_dims = len(size)

    def __len__(self) -> int:
        return N_SCANS

    def batches(self, plan: Iterable[Any]) -> Iterator[torch.Tensor]:
        for indices in plan:
            yield self.stored[torch.as_tensor(np.asarray(indices))].float().mul_(3 / 255)


def recipe_of(size: tuple[int, ...], overrides: tuple[str, ...]) -> Recipe:
    volume = [*size, 16][:3]
    augment = "augment=[{step: flip, p: 1}, {step: noise, p: 1}]"
    fixed = (f"training.batch_size={BATCH}", "training.epochs=1", "training.recompute=none", augment)
    return Recipe().updated(*fixed, f"prepare.size={volume}", *overrides)


def network_of(recipe: Recipe, size: tuple[int, ...]) -> Network:
    return build_network(recipe, spatial_dims=len(size), in_channels=recipe.prepare.n_channels, n_outputs=1)


def real_peak(recipe: Recipe, size: tuple[int, ...], precision: str, folder: Path) -> int:
    """Largest running sum of allocations, from the building of the network to the end of an epoch."""
    task, ages = build_task(recipe), pd.DataFrame({"age": np.linspace(20.0, 80.0, N_SCANS)})
    task.fit(ages)
    volumes: Any = Volumes(recipe.prepare.n_channels, size)
    scans = Scans(volumes, task.encode(ages), ages["age"].to_numpy())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        trainee = Trainee(
            fabric=make_fabric(precision),
            recipe=recipe,
            task=task,
            network=network_of(recipe, size),
            run=Run(folder),
            train=scans,
            inner=scans if recipe.training.select == "inner" else None,
            validation=None,
            augment=build_augmentation(recipe),
            baselines={},
        )
        fit(trainee)
    assert seen.profiler is not None
    events: list[Any] = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    assert len(events) > 100
    return int(np.cumsum([event.nbytes() for event in events]).max())


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="what passes inside operations is oneDNN's")
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_foretold_peak_is_within_a_tenth_of_the_real_one(name: str, tmp_path: Path) -> None:
    size, precision, overrides = CONFIGURATIONS[name]
    if precision == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("no bf16 kernels on this processor")
    recipe = recipe_of(size, overrides)
    network = network_of(recipe, size)
    estimate = peak_memory(
        network,
        (BATCH, recipe.prepare.n_channels, *size),
        recipe,
        precision=precision,
        accumulate=recipe.optim.accumulate,
        recompute=recipe.training.recompute,
    )
    measured = real_peak(recipe, size, precision, tmp_path)
    assert estimate.peak == pytest.approx(measured, rel=0.1)
    assert estimate.total == estimate.peak and estimate.traced


def test_a_trace_leaves_the_network_as_it_was() -> None:
    recipe = recipe_of((16, 16, 16), ("backbone.name=highresnet",))
    network = network_of(recipe, (16, 16, 16)).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    peak_memory(network, (2, 1, 16, 16, 16), recipe, recompute="blocks")
    assert not network.training and all(parameter.grad is None for parameter in network.parameters())
    assert all(bool((value == before[name]).all()) for name, value in network.state_dict().items())
    assert {getattr(module, "recompute", "none") for module in network.modules()} == {"none"}


def test_a_network_on_another_device_is_foretold_alike() -> None:
    recipe = recipe_of((16, 16, 16), ("backbone.name=highresnet",))
    network, shape = network_of(recipe, (16, 16, 16)), (2, 1, 16, 16, 16)
    assert peak_memory(copy.deepcopy(network).to("meta"), shape, recipe) == peak_memory(network, shape, recipe)


def test_more_recomputation_keeps_less() -> None:
    recipe = recipe_of((16, 16, 16), ("backbone.name=highresnet",))
    network = network_of(recipe, (16, 16, 16))
    kept = [
        peak_memory(network, (4, 1, 16, 16, 16), recipe, recompute=level).activations
        for level in ("none", "activations", "blocks")
    ]
    assert kept[0] > 1.8 * kept[1] > 1.8 * kept[2]


def test_parts_are_what_the_recipe_asks_for() -> None:
    recipe = recipe_of((16, 16, 16), ())
    network = network_of(recipe, (16, 16, 16))
    n_learning = sum(parameter.numel() for parameter in network.parameters())
    parts = fixed_parts(network, recipe)
    assert parts["gradients"] == 4 * n_learning and parts["optimiser"] == 8 * n_learning
    assert parts["moving_average"] == parts["weights"] > parts["gradients"] and parts["best"] == 0
    plain = recipe.updated("optim.name=sgd", "optim.momentum=0", "optim.ema=null", "training.select=validation")
    parts = fixed_parts(network, plain)
    assert (parts["optimiser"], parts["moving_average"], parts["best"]) == (0, 0, parts["weights"])


@pytest.mark.parametrize("backbone", ["cnn", "sfcn", "resnet", "highresnet"])
def test_the_bound_is_above_the_trace(backbone: str) -> None:
    recipe = recipe_of((24, 24, 24), (f"backbone.name={backbone}",))
    network = network_of(recipe, (24, 24, 24))
    shape = (4, 1, 24, 24, 24)
    bound = memory_bound(network, shape, recipe)
    assert not bound.traced
    assert bound.peak > peak_memory(network, shape, recipe).peak


def test_a_part_too_small_for_batch_norm_is_refused() -> None:
    recipe = recipe_of((24, 24, 24), ("backbone.name=sfcn",))
    with pytest.raises(ValueError, match="more than 1 value"):
        peak_memory(network_of(recipe, (24, 24, 24)), (2, 1, 24, 24, 24), recipe, accumulate=2)


def test_a_gpu_needs_room_for_its_context() -> None:
    recipe = recipe_of((16, 16, 16), ())
    estimate = peak_memory(network_of(recipe, (16, 16, 16)), (2, 1, 16, 16, 16), recipe, device_type="cuda")
    assert estimate.total == estimate.peak + (1 << 30)


def test_live_bytes_count_what_is_alive_and_nothing_twice() -> None:
    with LiveBytes("none") as live:
        first = torch.ones(1000)
        view = first[10:]
        second = first + 1
        assert live.now == 8000
        del second
        assert live.now == 4000
        del first
        assert live.now == 4000 and len(view) == 990
        del view
        assert live.now == 0
    assert live.peak == 8000


def test_volumes_stay_on_the_device_where_they_fit() -> None:
    prepare = Recipe().updated("prepare.size=[100, 100, 100]").prepare
    assert resident_bytes(prepare, 100, 1 << 30, "cuda") == 10**8
    assert resident_bytes(prepare, 1000, 1 << 30, "cuda") == 0
    assert resident_bytes(prepare, 1000, 1 << 40, "cuda") == 10**9
    assert resident_bytes(prepare, 1000, 1 << 40, "cpu") == 0


def test_a_frozen_backbone_needs_no_gradients_and_keeps_nothing_for_the_backward_pass() -> None:
    shape = (4, 1, 24, 24, 24)
    backbone = {"name": "cnn", "n_blocks": 3, "features": 8}
    parts = {}
    for freeze in (0.0, 0.4, 1.0):
        recipe = Recipe.from_dict({"backbone": backbone, "finetune": {"freeze": freeze}})
        network = build_network(recipe, spatial_dims=3, in_channels=1, n_outputs=1)
        freeze_for(network, recipe)
        for level in ("none", "blocks"):
            parts[freeze, level] = peak_memory(network, shape, recipe, recompute=level)
    free, half, frozen = (parts[freeze, "none"] for freeze in (0.0, 0.4, 1.0))
    assert free.activations > half.activations > frozen.activations
    assert frozen.activations < 0.02 * free.activations
    assert frozen.gradients == 33 * 4  # the head's 32 weights and one bias
    assert frozen.peak < half.peak < free.peak
    assert parts[1.0, "blocks"].activations < 0.02 * free.activations
