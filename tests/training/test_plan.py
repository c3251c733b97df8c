"""The rules of the plan, on made-up estimates, and the time that a probe foretells."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from neuroage.errors import UsageError
from neuroage.models.network import Network, build_network
from neuroage.runs.recipe import Recipe
from neuroage.training import epoch_time
from neuroage.training import plan as planning
from neuroage.training.epoch_time import Probe, epoch_seconds
from neuroage.training.memory import MemoryEstimate
from neuroage.training.plan import Plan, automatic_batch_size, next_step_down, plan_training

MIB = 1 << 20
LEVEL_SHARE = {"none": 1.0, "activations": 0.5, "blocks": 0.25}


def recipe_of(*overrides: str) -> Recipe:
    return Recipe().updated("prepare.size=[16, 16, 16]", "training.batch_size=auto", *overrides)


def network_of(recipe: Recipe) -> Network:
    return build_network(recipe, spatial_dims=3, in_channels=1, n_outputs=1)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str, str]]:
    """Each scan of a part takes 100 MiB, less with recomputation and reduced formats; gives what was asked."""
    asked: list[tuple[int, str, str]] = []

    def estimate(network: Any, shape: Any, recipe: Any, **given: Any) -> MemoryEstimate:
        asked.append((given["accumulate"], given["recompute"], given["precision"]))
        scans = -(-shape[0] // given["accumulate"])
        share = LEVEL_SHARE[given["recompute"]] * (1.0 if given["precision"] == "fp32" else 0.5)
        peak = int(scans * 100 * MIB * share)
        return MemoryEstimate(0, 0, 0, 0, 0, 0, peak, peak)

    monkeypatch.setattr(planning, "peak_memory", estimate)
    return asked


def plan_with(free_mib: float, *overrides: str, n_train_scans: int = 100, **given: Any) -> Plan:
    recipe = recipe_of("backbone.name=highresnet", *overrides)
    return plan_training(
        recipe,
        network_of(recipe),
        precision="fp32",
        device=torch.device("cpu"),
        n_train_scans=n_train_scans,
        device_memory=int(free_mib * MIB / 0.9) + MIB,
        **{"exact": True, **given},
    )


def test_the_automatic_batch_is_eight_scans_or_a_quarter_of_a_small_cohort() -> None:
    assert [automatic_batch_size(n) for n in (8, 16, 31, 32, 240)] == [2, 4, 7, 8, 8]
    assert automatic_batch_size(240, n_processes=4) == 32
    assert automatic_batch_size(16, n_processes=4) == 8


@pytest.mark.parametrize(
    ("free_mib", "accumulate", "recompute"),
    [(810, 1, "none"), (790, 1, "activations"), (390, 1, "blocks"), (190, 2, "blocks"), (90, 4, "blocks")],
)
def test_recomputation_is_tried_before_smaller_parts(
    traced: list[Any], free_mib: float, accumulate: int, recompute: str
) -> None:
    plan = plan_with(free_mib)
    assert plan.fits and plan.peak_bytes is not None and plan.peak_bytes <= plan.budget_bytes
    assert (plan.batch_size, plan.accumulate, plan.recompute) == (8, accumulate, recompute)
    order = [(1, "none"), (1, "activations"), (1, "blocks"), (2, "blocks"), (4, "blocks"), (8, "blocks")]
    assert [(parts, level) for parts, level, _ in traced] == order[: len(traced)]


def test_where_nothing_fits_the_plan_says_what_would(traced: list[Any]) -> None:
    plan = plan_with(20)
    assert not plan.fits and plan.accumulate == 8
    assert "training.precision=bf16" in plan.reasons[-1]
    plan = plan_with(5)
    assert not plan.fits and "spacing" in plan.reasons[-1]


def test_numbers_of_the_recipe_are_respected(traced: list[Any]) -> None:
    plan = plan_with(390, "training.batch_size=8", "optim.accumulate=1", "training.recompute=none")
    assert not plan.fits and (plan.batch_size, plan.accumulate, plan.recompute) == (8, 1, "none")
    assert "training.recompute=blocks" in plan.reasons[-1]
    plan = plan_with(190, "training.batch_size=8")
    assert not plan.fits and plan.accumulate == 1
    assert "optim.accumulate=2" in plan.reasons[-1]


def test_a_plan_is_quiet_where_nothing_was_decided(traced: list[Any]) -> None:
    assert plan_with(810, "training.batch_size=8").reasons == []
    assert plan_with(810).reasons == ["batch_size: auto is 8 scans a step."]
    assert len(plan_with(190).reasons) == 3


def test_plenty_of_memory_needs_no_trace(traced: list[Any]) -> None:
    plan = plan_with(100_000, exact=False)
    assert plan.fits and not plan.exact and plan.recompute == "none" and traced == []
    assert plan_with(810, exact=False).exact and traced


def test_parts_of_one_scan_are_not_proposed_where_batch_norm_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of("backbone.name=sfcn")
    plan = plan_training(
        recipe,
        network_of(recipe),
        precision="fp32",
        device=torch.device("cpu"),
        n_train_scans=100,
        device_memory=1 << 20,
    )
    assert not plan.fits and plan.accumulate == 4 and plan.scans_at_once == 2


def test_a_network_that_cannot_be_traced_is_planned_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> MemoryEstimate:
        raise RuntimeError("no such operation for fake tensors")

    monkeypatch.setattr(planning, "peak_memory", fail)
    plan = plan_with(10)
    assert plan.fits and plan.peak_bytes is None and (plan.accumulate, plan.recompute) == (1, "none")
    assert "cannot be foretold" in plan.reasons[-1]


def test_a_level_that_the_network_lacks_is_refused() -> None:
    network = nn.Sequential(nn.Conv3d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 14**3, 1))
    with pytest.raises(UsageError, match="recompute"):
        plan_training(
            recipe_of("training.recompute=activations"),
            network,
            precision="fp32",
            device=torch.device("cpu"),
            n_train_scans=100,
            exact=True,
        )


def test_processes_share_a_batch_and_the_memory_of_a_cpu(traced: list[Any]) -> None:
    plan = plan_with(810, n_processes=2)
    assert (plan.batch_size, plan.share, plan.accumulate) == (16, 8, 1) and plan.fits


def test_stepping_down_ends_at_single_scans(traced: list[Any]) -> None:
    network = network_of(recipe_of("backbone.name=highresnet"))
    plan: Plan | None = plan_with(810)
    seen = []
    while plan is not None:
        seen.append((plan.recompute, plan.accumulate))
        plan = next_step_down(plan, network)
    assert seen == [("none", 1), ("activations", 1), ("blocks", 1), ("blocks", 2), ("blocks", 4), ("blocks", 8)]


def test_a_plan_goes_through_json(traced: list[Any]) -> None:
    plan = plan_with(190)
    assert Plan(**json.loads(json.dumps(plan.to_dict()))) == plan
    assert plan.words == "8 scans a step in 2 parts, recompute: blocks"
    assert Recipe().updated(*plan.overrides).optim.accumulate == 2


@pytest.mark.parametrize("overrides", [(), ("training.mixup=1", "optim.accumulate=2", "training.inner_fraction=0.25")])
def test_an_epoch_is_its_steps_and_what_is_scored(
    overrides: tuple[str, ...], traced: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epoch_time, "MOST_STEPS", 2)
    recipe = recipe_of("training.epochs=3", "augment=[{step: flip}, {step: noise}]", *overrides)
    plan = plan_with(810, *overrides)
    found = epoch_seconds(recipe, plan, 40, budget_seconds=100)
    n_train = 40 - round(40 * recipe.training.inner_fraction)
    assert found.n_steps == -(-n_train // 8)
    after = found.scoring_seconds + found.saving_seconds
    assert found.epoch_seconds == pytest.approx(found.n_steps * found.step_seconds + after)
    assert found.training_seconds == pytest.approx(3 * found.epoch_seconds)
    assert min(found.step_seconds, found.scoring_seconds, found.saving_seconds) > 0
    assert found.probed_share == 1 and found.note == ""


def test_a_slow_step_is_probed_in_part(traced: list[Any]) -> None:
    recipe = recipe_of("prepare.size=[80, 80, 80]")
    found = epoch_seconds(recipe, plan_with(810), 40, budget_seconds=0.01)
    assert found.probed_share == pytest.approx(2 * 32**3 / (8 * 80**3))
    assert "2 scans of 32×32×32" in found.note


def test_a_probe_moves_its_own_weights_only(traced: list[Any]) -> None:
    probe = Probe(recipe_of("standardise=voxelwise"), plan_with(810), 2, (12, 12, 12))
    before = {name: value.clone() for name, value in probe.learner.bare.state_dict().items()}
    probe.step()
    assert probe.n_steps == 1 and probe.voxels == 2 * 12**3
    assert any(bool((value != before[name]).any()) for name, value in probe.learner.bare.state_dict().items())
