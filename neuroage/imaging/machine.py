"""What this machine offers, cores and memory, and how libraries are kept from taking all of it in every worker."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

# Libraries read these when they are loaded: linear algebra, compiled loops, and ITK's filters.
ITK_THREADS = "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
    ITK_THREADS,
)
BYTES_A_GB = 1e9


@cache
def cap_threads() -> None:
    """Let numerical libraries use one thread each in this process, whether they are loaded already or not."""
    from threadpoolctl import threadpool_limits

    numba, sitk = sys.modules.get("numba"), sys.modules.get("SimpleITK")
    for name in THREAD_VARIABLES:
        if name != "NUMBA_NUM_THREADS" or numba is None:  # which may not change once its threads run
            os.environ[name] = "1"
    threadpool_limits(1)
    if numba is not None:
        numba.set_num_threads(1)
    if sitk is not None:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Let ITK and linear algebra use one thread within, as threads of ours use the cores; afterwards as before."""
    from threadpoolctl import threadpool_limits

    before = os.environ.get(ITK_THREADS)
    os.environ[ITK_THREADS] = "1"  # where a job loads ITK
    n_itk = int(before or usable_cores())
    if sitk := sys.modules.get("SimpleITK"):
        n_itk = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        del os.environ[ITK_THREADS]
        if before is not None:
            os.environ[ITK_THREADS] = before
        if sitk := sys.modules.get("SimpleITK"):
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(n_itk)


def usable_cores() -> int:
    """Give the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory_gb() -> float | None:
    """Give the memory that is free for this process, in GB: the machine's, or that of its job or container where less.

    None where nothing can be read (it can on Linux).
    """
    free = []
    with suppress(OSError, StopIteration), open("/proc/meminfo", encoding="ascii") as lines:
        free.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")))
    with suppress(OSError, StopIteration), open("/proc/self/cgroup", encoding="ascii") as lines:
        group = Path("/sys/fs/cgroup", next(line.strip()[4:] for line in lines if line.startswith("0::/")))
        free += [left for folder in (group, *group.parents) if (left := _group_free(folder)) is not None]
    return min(free) / BYTES_A_GB if free else None


def _group_free(folder: Path) -> int | None:
    """Read what a control group (version 2), by which SLURM and containers bound memory, has left."""
    try:
        most, used = int((folder / "memory.max").read_text()), int((folder / "memory.current").read_text())
        lines = (folder / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):  # no such group, or "max": no bound
        return None
    cached = next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
    return max(most - used + cached, 0)  # files that are only kept in memory give way
