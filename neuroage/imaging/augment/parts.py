"""Work on a CPU in parts that fit the cache, over a few threads, without a barrier after every operation.

torch splits each operation over its threads and waits for all of them before the next. A kernel of twenty small
operations waits twenty times a part, and when other work shares the cores each wait can last a time slice: measured on
two busy cores, 5,400 ms for a resampling that takes 60 ms alone. Here a thread takes a part through all its operations.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch

Part = TypeVar("Part")

_SMALLEST_PART, _LARGEST_PART = 1 << 15, 1 << 17
"""Voxels of a part. Up to the smallest, torch itself does not use threads; at the largest, the five arrays of a kernel
(2.5 MiB) about fit the second-level cache. Resampling 160×192×160 on one core: 80, 66, 59, 61 ms at 2¹⁵ to 2¹⁸."""
_N_PARTS = 8
"""Parts of a small volume, enough for several threads. Not their number: results must not depend on it."""

_PARTS_A_THREAD = 2
"""For compiled kernels: evens out threads of different speed."""

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def run_parts(
    work: Callable[[Part, Sequence[torch.Tensor]], None],
    parts: Iterable[Part],
    room: Sequence[int] = (),
    *,
    joins: bool = False,
) -> None:
    """Run `work(part, room)` for every part, on as many threads as torch would use.

    Args:
        work: Writes its own part of a result; parts must not overlap, nor depend on each other.
        parts: What to work on.
        room: Sizes of float32 memory that each thread gets for its own use.
        joins: This thread takes parts as well. Not for torch's operations, which here would use all threads.
    """
    todo = list(parts)
    queue = iter(todo)
    inference = torch.is_inference_mode_enabled()

    def work_through() -> None:
        own = [torch.empty(size) for size in room]
        with torch.inference_mode(inference), torch.set_grad_enabled(False):
            for part in queue:
                work(part, own)

    n_threads = torch.get_num_threads()
    if n_threads == 1 or len(todo) == 1:
        work_through()
        return
    helpers = [_pool(n_threads).submit(work_through) for _ in range(min(n_threads, len(todo)) - joins)]
    if joins:
        work_through()
    for helper in helpers:
        helper.result()


def _pool(size: int) -> ThreadPoolExecutor:
    # Threads do not survive a fork: a worker process makes its own.
    key = (os.getpid(), size)
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(size, thread_name_prefix="augment", initializer=_work_alone)
    return _pools[key]


def _work_alone() -> None:
    """Keep torch from starting threads of its own within this thread; other threads are not touched."""
    from threadpoolctl import threadpool_limits

    torch.get_num_threads()  # torch sets its number when a thread first asks, and would undo the limit later
    threadpool_limits(1, user_api="openmp")


def part_voxels(n_voxels: int) -> int:
    """Choose how many of `n_voxels` make a part."""
    return min(max(n_voxels // _N_PARTS, _SMALLEST_PART), _LARGEST_PART)


def flat_parts(n_voxels: int) -> list[slice]:
    """Cut `n_voxels` in a row into parts."""
    step = part_voxels(n_voxels)
    return [slice(start, min(start + step, n_voxels)) for start in range(0, n_voxels, step)]


def run_lines(work: Callable[[slice], None], shape: Sequence[int]) -> None:
    """Run `work(lines)` for all lines of a volume of `shape`, counted over every axis but the last.

    For compiled kernels, which take a line through everything at once: few parts, since each costs a call.
    """
    n_lines = math.prod(shape[:-1])
    n_parts = _PARTS_A_THREAD * torch.get_num_threads()
    step = max(-(-n_lines // n_parts), _SMALLEST_PART // max(shape[-1], 1), 1)
    parts = [slice(start, min(start + step, n_lines)) for start in range(0, n_lines, step)]
    run_parts(lambda part, room: work(part), parts, joins=True)


def run_here(work: Callable[[slice], None], shape: Sequence[int]) -> None:
    """Do what `run_lines` does in this thread alone, in parts that fit the cache."""
    n_lines, step = math.prod(shape[:-1]), max(1, _LARGEST_PART // max(shape[-1], 1))
    for start in range(0, n_lines, step):
        work(slice(start, min(start + step, n_lines)))


def apart(values: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Give `values`, copied when it shares memory with `other`: kernels are fast on memory of their own only."""
    return values.copy() if np.may_share_memory(values, other) else values


def least_and_most(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the smallest and the largest intensity of an image, each without axes.

    On a CPU by numpy, in this thread: after an operation of torch its other threads keep spinning for some
    milliseconds, and the compiled kernels that follow would wait for their core (5.5 instead of 3.2 ms, measured).
    """
    if image.device.type != "cpu":
        least, most = torch.aminmax(image)
        return least, most
    values = image.detach().numpy()
    return torch.from_numpy(np.asarray(values.min())), torch.from_numpy(np.asarray(values.max()))


def on_device(values: np.ndarray, like: torch.Tensor, *, keep_type: bool = False) -> torch.Tensor:
    """Send a small array to where `like` is, in its type, without waiting for what the device is doing."""
    dtype = None if keep_type else like.dtype
    return torch.from_numpy(values).to(like.device, dtype, non_blocking=True)
