"""What augmentation costs, counted rather than timed: memory that is taken, and how often a volume is written."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from neuroage.imaging.augment import Pipeline, parse_steps

SHAPE = (40, 48, 40)
ORDER = ["affine", "flip", "bias_field", "noise", "gamma", "binning"]


def pipeline(*names: str) -> Pipeline:
    return Pipeline(parse_steps([{"step": name, "p": 1} for name in names]))


class Writes(TorchDispatchMode):
    """Counts results of at least `size` voxels, in new memory (`taken`) and in all (`written`)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.taken, self.written = size, 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        result = function(*arguments, **(named or {}))
        changes = function._schema.is_mutable
        views = any(
            given.alias_info is not None and not given.alias_info.is_write for given in function._schema.returns
        )
        if isinstance(result, torch.Tensor) and result.numel() >= self.size and not views:
            self.written += 1
            self.taken += not changes
        return result


def counted(chain: Pipeline, batch: torch.Tensor) -> Writes:
    keys = [(0, index) for index in range(len(batch))]
    chain(batch, keys)  # compiles
    with Writes(batch[0].numel()) as writes:
        chain(batch, keys)
    return writes


def test_on_a_cpu_the_whole_pipeline_takes_the_memory_of_two_volumes() -> None:
    batch = torch.rand(1, 1, *SHAPE)
    # One for the interpolated volume, one for the sharpened; everything after them works in place.
    assert counted(pipeline(*ORDER), batch).taken == 2
    assert counted(pipeline("bias_field", "noise", "gamma", "binning"), batch).taken == 1
    assert counted(pipeline("noise"), batch).taken == 1


@pytest.mark.parametrize("name", ["affine", "bias_field", "gamma"])
def test_compiled_steps_hold_no_field_and_no_grid_of_coordinates(name: str) -> None:
    batch = torch.rand(1, 1, *SHAPE)
    chain = pipeline(name)
    chain(batch, [(0, 0)])
    tracemalloc.start()
    try:
        chain(batch, [(0, 0)])
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 0.5 * batch.nbytes  # numpy's memory: polynomials of lines, parts; a dense grid would be three volumes


def test_off_the_cpu_kernels_a_batch_is_written_a_known_number_of_times() -> None:
    """Double precision takes the road of a GPU: torch operations, here for one scan after the other."""
    batch = torch.rand(2, 1, *SHAPE, dtype=torch.float64)
    most = {"bias_field": 9, "gamma": 7, "affine": 17}
    for name, n_writes in most.items():
        assert counted(pipeline(name), batch).written <= n_writes, name
