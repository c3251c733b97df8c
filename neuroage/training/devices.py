"""Where a training runs: one process on one device, or several that were started together."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy, Strategy

FABRIC_NAMES = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
LONGEST_WAIT = timedelta(days=2)  # one process may prepare scans for hours while the others wait
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of mallopt(3), glibc
DEFAULT_TRIM_THRESHOLD, DEFAULT_MMAP_MAX = 128 * 1024, 65536  # mallopt(3)
CPU_WORDS = ("DefaultCPUAllocator", "not enough memory")  # how torch says it on a CPU (c10/core/impl/alloc_cpu.cpp)


def make_fabric(precision: str, *, in_phases: bool = False) -> Fabric:
    """Make the Fabric that places a training: a GPU where there is one, and as many processes as were started.

    `torchrun --nproc-per-node N -m neuroage train …` starts N of them; they are found by the variables it sets.

    Args:
        precision: fp32, bf16 or fp16.
        in_phases: Parts of the network learn in some epochs only: processes then look, at every step, which gradients
            there will be, instead of waiting for all.
    """
    n_here, n_processes = (int(os.environ.get(name, 1)) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    strategy: str | Strategy = "auto"
    if n_processes > 1:
        strategy = DDPStrategy(timeout=LONGEST_WAIT, find_unused_parameters=in_phases)
    with _hushed("lightning.fabric", "lightning_fabric"):
        fabric = Fabric(
            accelerator="auto",
            devices=n_here,
            num_nodes=max(1, n_processes // n_here),
            strategy=strategy,
            precision=FABRIC_NAMES[precision],  # type: ignore[arg-type]
        )
        fabric.launch()
    return fabric


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device, or the computer, has no memory left."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in CPU_WORDS)


def to_device(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """Send a small array to a device without waiting for what the device is doing."""
    return torch.from_numpy(values).to(device, non_blocking=True)


@contextmanager
def kept_memory(device: torch.device, *, wanted: bool) -> Iterator[None]:
    """Let memory that is freed be taken again by what follows, instead of going back to the system and coming anew.

    A step frees and takes volumes of some hundred megabytes by the dozen. By default each goes back to the system,
    which hands it out again page by page, cleared: nearly half of the time of a step of SFCN on two cores. What is kept
    has gaps, up to 0.8 of the peak there (both measured), so it is wanted only where twice the peak fits. Nothing is
    done on GPUs, whose allocator keeps memory anyway, and where the C library is not glibc.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc" or not wanted:
        yield
        return
    library = ctypes.CDLL(None)
    library.mallopt(M_MMAP_MAX, 0)
    library.mallopt(M_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        library.mallopt(M_MMAP_MAX, DEFAULT_MMAP_MAX)
        library.mallopt(M_TRIM_THRESHOLD, DEFAULT_TRIM_THRESHOLD)
        library.malloc_trim(0)


def sum_over_processes(fabric: Fabric, values: torch.Tensor) -> torch.Tensor:
    """Add up a tensor over all processes; gives the same one everywhere."""
    if fabric.world_size == 1:
        return values
    summed: Any = fabric.all_reduce(values.clone(), reduce_op="sum")
    return summed


@contextmanager
def _hushed(*loggers: str) -> Iterator[None]:
    """Keep Fabric from announcing its settings: what a user should know is told by the observer."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
