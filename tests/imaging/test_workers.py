import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from scale_cases import wait_until
from worker_cases import work

from neuroage.errors import DataError, NeuroageError, UsageError
from neuroage.imaging import machine, workers
from neuroage.imaging.locks import hold
from neuroage.imaging.machine import ITK_THREADS, THREAD_VARIABLES, free_memory_gb, one_thread_each
from neuroage.imaging.workers import WorkerLost, Workers, run_jobs


def outcomes(jobs: list[str], workers: Workers) -> list[Any]:
    """Give what came of every job, in the jobs' order; each must come once."""
    found = list(run_jobs(work, jobs, workers))
    assert sorted(place for place, _ in found) == list(range(len(jobs)))
    return [outcome for _, outcome in sorted(found, key=lambda pair: pair[0])]


@pytest.mark.parametrize("workers", [Workers(n=1), Workers(n=3)])
def test_an_error_is_the_result_of_its_job_alone(workers: Workers) -> None:
    a, bad, b, itk = outcomes(["a", "bad", "b", "itk"], workers)
    assert (a, b) == ("A", "B")
    assert isinstance(bad, DataError) and bad.what == "a bad scan"
    assert isinstance(itk, DataError) and "Failed to allocate memory" in itk.what and "hxx" not in itk.what


def test_a_job_that_ends_its_process_is_named_and_costs_the_others_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in THREAD_VARIABLES:
        monkeypatch.setenv(variable, "2")
    words = ["a", "b", "killer", "c", "bad", "threads", "d"]
    done = outcomes(words, Workers(n=2, processes=True))
    assert isinstance(done[2], WorkerLost)
    assert isinstance(done[4], DataError) and not isinstance(done[4], WorkerLost)
    assert done[5] == {"itk": 1, "blas": 1, "numba": "1"}
    assert [done[place] for place in (0, 1, 3, 6)] == ["A", "B", "C", "D"]


@pytest.mark.parametrize("n_running", [0, 1])
def test_a_pool_found_dead_when_a_job_is_handed_to_it_costs_no_job_and_doubles_none(
    n_running: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class DyingPool:
        """Finishes its first job, and is dead when the next but `n_running` is handed to it."""

        def __init__(self) -> None:
            self.submitted: list[Future[Any]] = []

        def submit(self, function: Any, *args: Any) -> Future[Any]:
            if len(self.submitted) > n_running:
                for future in self.submitted[1:]:
                    future.set_exception(BrokenProcessPool())
                raise BrokenProcessPool
            self.submitted.append(Future())
            if len(self.submitted) == 1:
                self.submitted[0].set_result(function(*args))
            return self.submitted[-1]

    @contextmanager
    def pool(n_processes: int, memory_gb: float | None) -> Iterator[Any]:
        pools.append(n_processes)
        if len(pools) == 1:
            yield DyingPool()
        else:
            with ThreadPoolExecutor(n_processes) as sound:
                yield sound

    pools: list[int] = []
    monkeypatch.setattr(workers, "_pool", pool)
    assert outcomes(["a", "b", "c"], Workers(n=1 + n_running, processes=True)) == ["A", "B", "C"]
    assert pools == ([2, 1, 2] if n_running else [1, 1]), "what was at work is tried alone, the rest is not"


@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded on Linux")
def test_a_job_that_wants_more_than_its_memory_fails_alone() -> None:
    greedy, a = outcomes(["greedy", "a"], Workers(n=1, processes=True, memory_gb=1.0))
    assert isinstance(greedy, DataError) and "memory" in str(greedy)
    assert a == "A"


def test_an_unexpected_error_stops_everything() -> None:
    with pytest.raises(TypeError):
        list(run_jobs(len, ["ab", 3, "c"], Workers(n=2)))  # type: ignore[arg-type]


def test_no_more_work_at_once_than_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuroage.imaging.workers.free_memory_gb", lambda: 10.0)
    assert Workers(n=8).how_many() == 8
    assert Workers(n=8).how_many(need_gb=3.0) == 3
    assert Workers(n=8, processes=True, memory_gb=2.5).how_many(need_gb=3.0) == 4
    assert Workers(n=8).how_many(need_gb=30.0) == 1, "one has to try"


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_the_free_memory_is_that_of_the_job_where_it_is_less(tmp_path: Path) -> None:
    free = free_memory_gb()
    assert free is not None and 0 < free < 1e5
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.current").write_text("2500\n")
    (tmp_path / "memory.stat").write_text("anon 1000\ninactive_file 700\n")
    assert machine._group_free(tmp_path) == 1200, "files kept in memory give way"
    (tmp_path / "memory.max").write_text("max\n")
    assert machine._group_free(tmp_path) is None


def test_threads_of_libraries_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import SimpleITK as sitk

    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(3)
    monkeypatch.setenv(ITK_THREADS, "3")
    with one_thread_each():
        assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == 1
        assert os.environ[ITK_THREADS] == "1"
    assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == 3
    assert os.environ[ITK_THREADS] == "3"
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"n": 0}, "1 or more"),
        ({"scheduler": "tcp://a:1", "n": 2}, "dask worker"),
        ({"memory_gb": 2.0}, "processes"),
        ({"processes": True, "memory_gb": -1.0}, "more than 0"),
    ],
)
def test_workers_that_make_no_sense_are_refused(values: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        Workers(**values)


def test_processes_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(
        "import os, time\n"
        "from pathlib import Path\n"
        "from neuroage.imaging.workers import Workers, run_jobs\n"
        "def job(name):\n"
        f"    Path({str(tmp_path)!r}, 'pid').write_text(str(os.getpid()))\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    list(run_jobs(job, ['a'], Workers(n=1, processes=True)))\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)])
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    child = int((tmp_path / "pid").read_text())
    parent.kill()
    parent.wait()
    wait_until(lambda: not is_alive(child))


def is_alive(pid: int) -> bool:
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" if sys.platform == "linux" else not os.kill(pid, 0)
        )
    except (OSError, ProcessLookupError):
        return False


def test_a_lock_is_held_by_one_and_leaves_no_file(tmp_path: Path) -> None:
    lock, order = tmp_path / "locks" / "a.lock", []

    def second() -> None:
        with hold(lock, wait=False) as mine:
            order.append(mine)
        with hold(lock) as mine:
            order.append("second" if mine else "none")

    with hold(lock) as mine:
        assert mine
        other = threading.Thread(target=second)
        other.start()
        wait_until(lambda: order == [False])
        order.append("first")
    other.join()
    assert order == [False, "first", "second"]
    assert not list(lock.parent.iterdir())


def test_a_cluster_gives_the_same_as_this_process(dask_cluster: Any) -> None:
    words = ["a", "bad", "b", "threads"]
    a, bad, b, threads = outcomes(words, Workers(scheduler=dask_cluster.scheduler_address))
    assert (a, b) == ("A", "B")
    assert isinstance(bad, NeuroageError) and bad.what == "a bad scan"
    assert threads["itk"] == 1


def test_a_job_that_ends_its_worker_is_named_on_a_cluster_too(
    dask_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_cluster.scheduler, "allowed_failures", 0)  # three by default, each with a new worker
    (killer,) = outcomes(["killer"], Workers(scheduler=dask_cluster.scheduler_address))
    assert isinstance(killer, WorkerLost)


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        ("tcp://127.0.0.1:1", "No Dask scheduler answers"),
        ("127.0.0.1", "expected an address such as tcp://host:8786"),
        ("gone.json", "No scheduler file"),
        ("other.json", "is no file of a Dask scheduler"),
    ],
)
def test_a_scheduler_that_does_not_answer_is_said_at_once(
    scheduler: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(workers, "SCHEDULER_ANSWERS_S", 0.3)
    monkeypatch.chdir(tmp_path)
    Path("other.json").write_text("[]")
    with pytest.raises(UsageError, match=said):
        list(run_jobs(work, ["a"], Workers(scheduler=scheduler)))
