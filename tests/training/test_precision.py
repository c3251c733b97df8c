from __future__ import annotations

from typing import Any

import pytest
import torch

from neuroage.models.network import Network, build_network
from neuroage.runs.recipe import Recipe
from neuroage.training import precision
from neuroage.training.precision import choose_precision

SHAPE, CPU = (4, 1, 24, 24, 24), torch.device("cpu")


@pytest.fixture
def network() -> Network:
    recipe = Recipe.from_dict({"backbone": {"name": "cnn", "n_blocks": 2, "features": 4}})
    return build_network(recipe, spatial_dims=3, in_channels=1, n_outputs=1)


def answers(monkeypatch: pytest.MonkeyPatch, reduced: Any) -> list[tuple[int, ...]]:
    """Let a step in fp32 take a second and give the gradient 1, and one in bf16 what is told."""
    shapes = []

    def probe(network: Network, images: torch.Tensor, dtype: Any, give_up_after: float = 0.0) -> Any:
        shapes.append(tuple(images.shape[2:]))
        if dtype is None:
            return 1.0, torch.ones(8)
        if isinstance(reduced, Exception):
            raise reduced
        return reduced

    monkeypatch.setattr(precision, "_probe", probe)
    return shapes


def test_a_faster_format_with_the_same_gradients_is_chosen(network: Network, monkeypatch: Any) -> None:
    answers(monkeypatch, (0.5, torch.ones(8) * 1.1))
    assert choose_precision(network, SHAPE, CPU) == "bf16"


@pytest.mark.parametrize(
    "reduced",
    [
        (0.95, torch.ones(8)),  # not worth it
        (0.5, -torch.ones(8)),  # another direction
        (0.5, torch.full((8,), float("nan"))),
        RuntimeError("could not create a primitive descriptor"),
    ],
)
def test_slow_wrong_and_missing_formats_are_not(reduced: Any, network: Network, monkeypatch: Any) -> None:
    answers(monkeypatch, reduced)
    assert choose_precision(network, SHAPE, CPU) == "fp32"


def test_the_probe_leaves_the_network_as_it_was(network: Network) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.eval()
    assert choose_precision(network, SHAPE, CPU) in ("fp32", "bf16")
    assert not network.training
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_where_memory_runs_out_smaller_volumes_are_asked(network: Network, monkeypatch: Any) -> None:
    shapes = answers(monkeypatch, (0.5, torch.ones(8)))
    probe = precision._probe

    def small_memory(network: Network, images: torch.Tensor, *rest: Any, **named: Any) -> Any:
        if images[0].numel() > 40**3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return probe(network, images, *rest, **named)

    monkeypatch.setattr(precision, "_probe", small_memory)
    monkeypatch.setattr(precision, "_affordable_size", lambda *_: [96, 96, 96])
    assert choose_precision(network, (4, 1, 96, 96, 96), CPU) == "bf16"
    assert shapes[0] == (32, 32, 32)
