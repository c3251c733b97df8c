"""Work on a CPU in parts that fit the cache, over a few threads, without a barrier after every operation.

torch splits each operation over its threads and waits for all of them before the next. A kernel of twenty small
operations waits twenty times a block, and when other work shares the cores each wait can last a time slice: measured
on two busy cores, 5,400 ms for a resampling that takes 60 ms alone. Here a thread takes a whole part through all its
operations; parts are small enough that torch does not split them again.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Part = TypeVar("Part")

PART_VOXELS = 1 << 15
"""Voxels of a part: torch splits an operation over threads only above 32,768 elements (its internal grain size)."""

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def run_parts(
    work: Callable[[Part, Sequence[torch.Tensor]], None], parts: Iterable[Part], room: Sequence[int] = ()
) -> None:
    """Run `work(part, room)` for every part, on as many threads as torch would use.

    Args:
        work: Writes its own part of a result; parts must not overlap. What it writes must not depend on the other
        parts.
        parts: What to work on.
        room: Sizes of float32 memory that each thread gets for its own use.
    """
    todo = list(parts)
    n_threads = min(torch.get_num_threads(), len(todo))
    queue = iter(todo)
    inference = torch.is_inference_mode_enabled()

    def work_through() -> None:
        own = [torch.empty(size) for size in room]
        with torch.inference_mode(inference), torch.set_grad_enabled(False):
            for part in queue:
                work(part, own)

    if n_threads <= 1:
        work_through()
        return
    helpers = [_pool(n_threads - 1).submit(work_through) for _ in range(n_threads - 1)]
    try:
        work_through()
    finally:
        for helper in helpers:
            helper.result()


def _pool(size: int) -> ThreadPoolExecutor:
    # Threads do not survive a fork: a worker process makes its own.
    key = (os.getpid(), size)
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(size, thread_name_prefix="augment")
    return _pools[key]


def flat_parts(n_voxels: int) -> list[slice]:
    """Cut `n_voxels` in a row into parts."""
    return [slice(start, min(start + PART_VOXELS, n_voxels)) for start in range(0, n_voxels, PART_VOXELS)]


def box_parts(sizes: Sequence[int], shape: Sequence[int]) -> list[tuple[slice, ...]]:
    """Cut a volume of `shape` into boxes of `sizes` (smaller at the far ends)."""
    axes = [
        [slice(start, min(start + step, size)) for start in range(0, size, step)]
        for size, step in zip(shape, sizes, strict=True)
    ]
    return list(itertools.product(*axes))


def part_sizes(shape: Sequence[int]) -> list[int]:
    """Choose the largest box of at most a part's voxels that keeps the last axes whole."""
    sizes, left = [1] * len(shape), PART_VOXELS
    for axis in range(len(shape) - 1, -1, -1):
        sizes[axis] = max(1, min(shape[axis], left))
        left //= sizes[axis]
    return sizes
