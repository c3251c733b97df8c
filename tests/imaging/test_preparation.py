import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scale_cases import PREPARE, content, wait_until, write_noise

from neuroage.cohort import Cohort
from neuroage.errors import DataError, SetupError
from neuroage.imaging import preparation
from neuroage.imaging.preparation import prepare_scans
from neuroage.imaging.store import LOCKS, Store, StoredVolume
from neuroage.imaging.workers import WorkerLost, Workers
from neuroage.runs.recipe import Recipe

N_SCANS = 24


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_noise(tmp_path_factory.mktemp("noise"), N_SCANS)


@pytest.fixture(scope="module")
def undisturbed(noise: Cohort, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a store holds when all scans were prepared one after the other, in this process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert prepare_scans(noise.scans(), PREPARE, Store(folder), workers=Workers(n=1)).n_made == N_SCANS
    found = content(folder)
    assert len(found) == 2 * N_SCANS
    return found


def test_processes_leave_the_same_bytes(noise: Cohort, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    seen = []
    done = prepare_scans(
        noise.scans(),
        PREPARE,
        Store(tmp_path),
        workers=Workers(n=2, processes=True),
        progress=lambda *counts: seen.append(counts),
    )
    assert done.n_made == N_SCANS and list(done.volumes) == [scan.scan_id for scan in noise.scans()]
    assert seen == [(number, N_SCANS) for number in range(1, N_SCANS + 1)]
    assert content(tmp_path) == undisturbed


def test_a_cluster_that_loses_a_worker_midway_prepares_all_of_them(
    noise: Cohort, undisturbed: dict[str, bytes], tmp_path: Path, dask_cluster: Any
) -> None:
    killed: list[int] = []

    def kill_once(done: int, n_scans: int) -> None:
        if done == 5 and not killed:
            killed.append(next(iter(dask_cluster.workers.values())).pid)
            os.kill(killed[0], signal.SIGKILL)

    workers = Workers(scheduler=dask_cluster.scheduler_address)
    done = prepare_scans(noise.scans(), PREPARE, Store(tmp_path), workers=workers, progress=kill_once)
    assert killed and not done.failures
    assert content(tmp_path) == undisturbed, "whole files, and nothing else"


def test_two_commands_at_once_write_every_volume_once(
    noise: Cohort, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    noise.table.to_csv(tmp_path / "cohort.csv", index=False)
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from neuroage.cohort import Cohort\n"
        "from neuroage.imaging import prepare\n"
        "from neuroage.imaging.preparation import prepare_scans\n"
        "from neuroage.imaging.store import Store\n"
        "from neuroage.imaging.workers import Workers\n"
        "from scale_cases import PREPARE\n"
        "scans = Cohort.read(Path('cohort.csv')).scans()\n"
        "Path(sys.argv[1]).touch()\n"
        "while not Path('go').exists(): time.sleep(0.001)\n"
        "done = prepare_scans(scans, PREPARE, Store('store'), workers=Workers(n=2))\n"
        "print(len(done.volumes), done.n_made)\n"
    )
    names = ["first", "second"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    commands = [
        subprocess.Popen([sys.executable, "-c", script, name], cwd=tmp_path, stdout=subprocess.PIPE, env=environment)
        for name in names
    ]
    wait_until(lambda: all((tmp_path / name).exists() for name in names))
    (tmp_path / "go").touch()
    said = [command.communicate(timeout=60)[0].split() for command in commands]
    assert [int(n_volumes) for n_volumes, _ in said] == [N_SCANS, N_SCANS]
    assert sum(int(n_made) for _, n_made in said) == N_SCANS
    assert content(tmp_path / "store") == undisturbed


def test_what_a_killed_writer_left_is_swept_and_replaced(
    noise: Cohort, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    store, scans = Store(tmp_path), noise.scans()
    place = store.place(scans[0].path or "", PREPARE)
    place.parent.mkdir(parents=True)
    (place.parent / f".{place.name}.4711.0badcafe.tmp.npy").write_bytes(b"\x93NUMPY")
    (place.parent / f".{place.stem}.json.4711.0badcafe.tmp.json").write_bytes(b"{")
    place.with_suffix(".json").write_text("{}")
    (tmp_path / LOCKS).mkdir()
    (tmp_path / LOCKS / f"{place.stem}.lock").touch()
    (tmp_path / LOCKS / "ofanother.lock").touch()
    assert prepare_scans(scans, PREPARE, store).n_made == N_SCANS
    assert content(tmp_path) == undisturbed


def test_what_failed_is_tried_again_and_the_rest_is_left(noise: Cohort, tmp_path: Path) -> None:
    scans = noise.scans()[:4]
    broken = tmp_path / "broken.nii"
    broken.write_bytes(b"nothing")
    scans[2] = replace(scans[2], path=broken)
    scans[3] = replace(scans[3], path=tmp_path / "gone.nii")
    store = Store(tmp_path / "store")
    first = prepare_scans(scans, PREPARE, store, max_failed_share=0.5)
    assert first.n_made == 2
    assert "broken.nii" in first.failures["sub-02"] and "gone.nii" in first.failures["sub-03"]
    broken.write_bytes((noise.scans()[5].path or broken).read_bytes())
    again = prepare_scans(scans, PREPARE, store, max_failed_share=0.5)
    assert (again.n_made, list(again.failures)) == (1, ["sub-03"])


def test_a_scan_that_ends_its_worker_is_listed_by_its_file(
    noise: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_lost(function: Any, jobs: Any, workers: Workers, **more: Any) -> Any:
        yield from ((place, WorkerLost("killed")) for place, _ in enumerate(jobs))

    monkeypatch.setattr(preparation, "run_jobs", all_lost)
    with pytest.raises(DataError, match=r"sub-00_T1w\.nii: killed"):
        prepare_scans(noise.scans()[:2], PREPARE, Store(tmp_path))


def test_what_every_scan_lacks_is_said_once(noise: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    recipe = Recipe.from_dict({"prepare": {"brain": {"mask": "hd-bet"}}}).prepare
    with pytest.raises(SetupError, match=r"^hd-bet is not installed"):
        prepare_scans(noise.scans()[:3], recipe, Store(tmp_path), workers=Workers(n=1))
    assert not list(tmp_path.rglob("*.npy"))
    recipe = Recipe.from_dict({"prepare": {"registration": {"to": "mni153"}}}).prepare
    with pytest.raises(SetupError, match=r"^mni153: no such template"):
        prepare_scans(noise.scans()[:3], recipe, Store(tmp_path))


@pytest.mark.parametrize("on_failure", ["refuse", "keep"])
def test_a_scan_whose_registration_failed_is_left_out_unless_the_recipe_keeps_it(
    noise: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_failure: str
) -> None:
    def find(store: Store, path: Path, *_: Any) -> StoredVolume:
        return StoredVolume("a.npy", 1.0, 0.0, "upside down" * path.name.startswith("sub-01"))

    monkeypatch.setattr(Store, "get", find)
    recipe = Recipe.from_dict({"prepare": {"registration": {"on_failure": on_failure}}}).prepare
    done = prepare_scans(noise.scans()[:3], recipe, Store(tmp_path), max_failed_share=0.5)
    kept = ["sub-00", "sub-01", "sub-02"] if on_failure == "keep" else ["sub-00", "sub-02"]
    assert list(done.volumes) == kept
    assert (on_failure == "keep") != ("upside down" in done.failures.get("sub-01", ""))


def test_the_memory_of_a_scan_is_estimated_from_the_largest_one(noise: Cohort) -> None:
    estimate = preparation.estimate_memory_gb([str(scan.path) for scan in noise.scans()[:2]], PREPARE)
    assert estimate == pytest.approx(preparation.BASE_GB + preparation.NATIVE_COPIES * 4 * 40**3 / 1e9)
    assert preparation.estimate_memory_gb([], PREPARE) == 0
