"""Who does many jobs of one kind: threads of this process, processes of this machine, or a Dask cluster.

One seam, `run_jobs`, gives the results as they come. A job's own error is its result, and so is the death of its worker
(out of memory, a crash in a library), which costs the other jobs nothing.
"""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from neuroage.errors import DataError, NeuroageError, UsageError
from neuroage.imaging.machine import BYTES_A_GB, cap_threads, free_memory_gb, one_thread_each, usable_cores

Job = TypeVar("Job")
Result = TypeVar("Result")

FEWEST_FOR_PROCESSES = 4  # jobs; a process takes a second or two to start
SCHEDULER_ANSWERS_S = 10.0  # one that works answers at once, through a busy network in a second or two
SCHEDULERS = "an address such as tcp://host:8786, or the file that `dask scheduler --scheduler-file` wrote"
JOBS_ON_THE_WAY = 1_000  # sent to a cluster ahead of their results; each takes a kilobyte or two


@dataclass(frozen=True)
class Workers:
    """Who prepares scans.

    Attributes:
        n: How many work at once on this machine; as many as there are usable cores when None.
        processes: Processes instead of threads: for long jobs, and so that a crash costs one scan. Less than four jobs
            have threads all the same, unless `n` or `memory_gb` is given. A script that asks for processes needs
            `if __name__ == "__main__":` around its calls.
        scheduler: Address of a Dask scheduler (`tcp://host:8786`), or the file that it wrote (`.json`); its workers
            then do the work, and `n` and `memory_gb` are theirs to set. They need neuroage and the same file system.
        memory_gb: The most that one process may take. No more processes start than fit into the machine's free
            memory, and a scan that wants more fails alone. None: estimated from the scans, and not enforced.

    Raises:
        UsageError: Values that do not go together.
    """

    n: int | None = None
    processes: bool = False
    scheduler: str = ""
    memory_gb: float | None = None

    def __post_init__(self) -> None:
        if self.n is not None and self.n < 1:
            raise UsageError(f"{self.n} workers", expected="1 or more")
        if self.scheduler and (self.n is not None or self.processes or self.memory_gb is not None):
            raise UsageError(
                "Workers and their memory were given together with a scheduler",
                fix="Give them where the cluster is started: `dask worker --nworkers 4 --memory-limit 4GB …`.",
            )
        if self.memory_gb is not None and not (self.processes and self.memory_gb > 0):
            raise UsageError(f"Memory of {self.memory_gb:g} GB for each worker", expected="more than 0, with processes")

    def how_many(self, need_gb: float = 0.0) -> int:
        """Give how many work at once on this machine.

        Args:
            need_gb: What one job is estimated to take; used where `memory_gb` is not given.
        """
        wanted, each, free = self.n or usable_cores(), self.memory_gb or need_gb, free_memory_gb()
        return max(1, min(wanted, int(free / each))) if each and free is not None else wanted


class WorkerLost(DataError):
    """A job ended the process that did it, also when it was tried alone."""


def run_jobs(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: Workers, *, need_gb: float = 0.0
) -> Iterator[tuple[int, Result | NeuroageError]]:
    """Do every job once, several at a time, and give the results as they come.

    Where several work, numerical libraries use one thread in each, so that workers do not fight for cores.

    Args:
        function: Does one job. For processes and clusters it is importable by name, as its jobs and results are small
            and picklable: paths and settings, not pixels.
        jobs: What it is called with.
        workers: Who works.
        need_gb: Memory that one job is estimated to take.

    Yields:
        Place of the job in `jobs`, and what the function returned, or the `NeuroageError` that it raised. Running out
        of memory, ITK's errors and the death of the worker become such errors; all others are raised.

    Raises:
        UsageError: Workers cannot be started or reached.

    Example:
        >>> sorted(run_jobs(abs, [-2, 3], Workers(n=2)))
        [(0, 2), (1, 3)]
    """
    if not jobs:
        return
    if workers.scheduler:
        yield from _on_cluster(function, jobs, workers.scheduler)
        return
    n_workers = min(workers.how_many(need_gb), len(jobs))
    left_open = workers.n is None and workers.memory_gb is None
    if workers.processes and not (left_open and len(jobs) < FEWEST_FOR_PROCESSES):
        yield from _in_processes(function, jobs, n_workers, workers.memory_gb)
    else:
        yield from _in_threads(function, jobs, n_workers)


def _attempt(function: Callable[[Job], Result], job: Job) -> Result | NeuroageError:
    try:
        return function(job)
    except NeuroageError as error:
        return error
    except MemoryError as error:
        return DataError(f"out of memory ({error})", fix="Give each worker more memory.")
    except RuntimeError as error:  # what SimpleITK raises, whatever the cause; the last line says it
        reason = (str(error).strip().splitlines() or ["RuntimeError"])[-1]
        return DataError(reason[:300], fix="Look at the scan; where ITK failed to allocate, give more memory.")


def _in_threads(
    function: Callable[[Job], Result], jobs: Sequence[Job], n_threads: int
) -> Iterator[tuple[int, Result | NeuroageError]]:
    if n_threads == 1:
        yield from ((place, _attempt(function, job)) for place, job in enumerate(jobs))
        return
    pool = ThreadPoolExecutor(n_threads)
    try:
        with one_thread_each():
            for place, future in _keep_busy(lambda job: pool.submit(_attempt, function, job), jobs, 2 * n_threads):
                yield place, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _keep_busy(
    submit: Callable[[Job], Future[Result]], jobs: Sequence[Job], n_at_once: int
) -> Iterator[tuple[int, Future[Result]]]:
    """Submit jobs a few at a time, and give the finished ones."""
    running: dict[Future[Result], int] = {}
    coming = iter(enumerate(jobs))
    while True:
        while len(running) < n_at_once and (following := next(coming, None)):
            running[submit(following[1])] = following[0]
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            yield running.pop(future), future


def _in_processes(
    function: Callable[[Job], Result], jobs: Sequence[Job], n_processes: int, memory_gb: float | None
) -> Iterator[tuple[int, Result | NeuroageError]]:
    """Work in processes; when one dies, those that were working are suspects, and each is tried again alone."""
    waiting, suspects = deque(range(len(jobs))), deque[int]()
    while waiting or suspects:
        alone = bool(suspects)
        coming, n_at_once = (suspects, 1) if alone else (waiting, n_processes)
        with _pool(n_at_once, memory_gb) as pool:
            running: dict[Future[Any], int] = {}
            dead: list[int] = []
            broken = False
            while not broken and (coming or running):
                while coming and len(running) < n_at_once:  # none ahead, so that all on the way are at work
                    try:
                        running[pool.submit(_attempt, function, jobs[coming[0]])] = coming[0]
                    except BrokenProcessPool:  # it died since the last job was done; this one did not begin
                        broken = True
                        break
                    coming.popleft()
                for future in wait(running, return_when=ALL_COMPLETED if broken else FIRST_COMPLETED).done:
                    place = running.pop(future)
                    if isinstance(future.exception(), BrokenProcessPool):
                        broken = True
                        dead.append(place)
                    else:
                        yield place, future.result()
            dead += running.values()
        if alone:
            yield from ((place, _lost()) for place in dead)
        else:
            suspects.extend(dead)


def _lost() -> WorkerLost:
    return WorkerLost(
        "the process that prepared it was killed or crashed, and again when it was tried alone",
        fix="Most often memory ran out: use a machine with more, or look at the scan.",
    )


@contextmanager
def _pool(n_processes: int, memory_gb: float | None) -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("spawn")  # a fork would inherit threads of libraries, and may hang
    pool = ProcessPoolExecutor(n_processes, context, _begin_process, (memory_gb,))
    try:
        try:
            pool.submit(os.getpid).result()
        except BrokenProcessPool as error:
            raise UsageError(
                "Worker processes cannot be started",
                fix='In a script, put the calls under `if __name__ == "__main__":`; or give them more memory.',
            ) from error
        yield pool
        pool.shutdown()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _begin_process(memory_gb: float | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends workers at once and without a traceback of theirs
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cap_threads()
    if memory_gb is not None and sys.platform == "linux":
        import resource

        # Private memory, and not address space, of which libraries reserve far more than they use.
        resource.setrlimit(resource.RLIMIT_DATA, (int(memory_gb * BYTES_A_GB),) * 2)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)  # a parent that was killed cannot say so, and the worker would wait for jobs for ever


def _on_cluster(
    function: Callable[[Job], Result], jobs: Sequence[Job], scheduler: str
) -> Iterator[tuple[int, Result | NeuroageError]]:
    """Work on a Dask cluster, which gives the jobs of a dead worker to others."""
    try:
        import distributed
    except ImportError as error:
        raise UsageError("A Dask scheduler needs dask", fix='Run `pip install "neuroage[cluster]"`.') from error
    try:
        client = distributed.Client(_address_of(scheduler), set_as_default=False, timeout=SCHEDULER_ANSWERS_S)
    except (OSError, ValueError) as error:  # a time-out is an OSError
        raise UsageError(f"No Dask scheduler answers at {scheduler}", expected=SCHEDULERS) from error
    with client:
        running: dict[Any, int] = {}
        coming = iter(enumerate(jobs))

        def submit(place: int, job: Job) -> Any:
            future = client.submit(_attempt_on_cluster, function, job, pure=False)
            running[future] = place
            return future

        first = [submit(*following) for following in islice(coming, JOBS_ON_THE_WAY)]
        finished = distributed.as_completed(first, loop=client.loop)
        try:
            for future in finished:
                place, failure = running.pop(future), future.exception()
                if failure is None:
                    yield place, future.result()
                elif isinstance(failure, distributed.scheduler.KilledWorker):
                    yield place, _lost()
                else:
                    raise failure
                if following := next(coming, None):
                    finished.add(submit(*following))
        finally:
            client.cancel(list(running))


def _address_of(scheduler: str) -> str:
    """Give the address, out of the scheduler's file where that is given; Dask itself would wait for a file for ever."""
    if scheduler.endswith(".json"):
        try:
            address = json.loads(Path(scheduler).read_text(encoding="utf-8"))["address"]
        except FileNotFoundError as error:
            raise UsageError(f"No scheduler file {scheduler}", fix="Start the scheduler first.") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{scheduler} is no file of a Dask scheduler", expected=SCHEDULERS) from error
        return str(address)
    if not re.fullmatch(r"(\w+://)?.+:\d+", scheduler):
        raise UsageError(f"--scheduler {scheduler}", expected=SCHEDULERS)
    return scheduler


def _attempt_on_cluster(function: Callable[[Job], Result], job: Job) -> Result | NeuroageError:
    cap_threads()
    return _attempt(function, job)
