"""Preparing scans: threads beside processes, and what a scan takes of memory.

    python benchmarks/preparing.py [FILES …] [--config raw_t1] [--scans 8] [--workers 2] [--json preparing.json]

Without files, heads of 256×256×180 voxels are made: a textured ball in the dark, which has no brain to register. For
the recipes of raw scans give files of real heads; they are prepared several times over, from copies, until there are as
many scans as asked for. Each way prepares all of them into a store of its own, in a process of its own; it is checked
that all stores hold the same numbers. `cpu` is the time on cores of all of a way's processes, their start included: on
a busy machine it says more than the wall clock.

Memory: the peak of a process that prepares the largest scan, and how many times its voxels as float32 that is, above
what the libraries take. `NATIVE_COPIES` in `imaging.preparation`, by which workers are counted, has to be no less.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from neuroage.cohort import Scan
from neuroage.files import write_json
from neuroage.imaging.machine import cap_threads, usable_cores
from neuroage.imaging.preparation import BASE_GB, NATIVE_COPIES, prepare_scans
from neuroage.imaging.store import Store, StoredVolume, prepare_image
from neuroage.imaging.workers import Workers
from neuroage.runs.recipe import Recipe
from neuroage.runs.shipped import find_recipe

SHAPE = (256, 256, 180)


def write_head(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, size, dtype=np.float32) for size in SHAPE], indexing="ij", sparse=True)
    inside = sum(axis**2 for axis in axes) < 0.6
    head = np.where(inside, 300 + 60 * np.sin(9 * axes[0]) + rng.normal(0, 12, SHAPE).astype(np.float32), 0)
    nib.save(nib.Nifti1Image(head.astype(np.int16), np.eye(4)), path)


def gather_scans(folder: Path, files: list[Path], n_scans: int) -> list[Scan]:
    scans = []
    for number in range(n_scans):
        source = files[number % len(files)] if files else None
        path = folder / (f"{number}-{source.name}" if source else f"{number}.nii.gz")
        if source:
            shutil.copy(source, path)
        else:
            write_head(path, number)
        scans.append(Scan(str(number), str(number), path=path))
    return scans


def seconds_on_cores() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def prepare_all(scans: list[Scan], recipe: Recipe, store: Path, workers: Workers, answer: Any) -> None:
    start, before = time.perf_counter(), seconds_on_cores()
    done = prepare_scans(scans, recipe.prepare, Store(store), workers=workers, max_failed_share=2.0)
    wall = time.perf_counter() - start
    answer.send((wall, seconds_on_cores() - before, done.failures))


def measure_memory(path: Path, recipe: Recipe, answer: Any) -> None:
    cap_threads()
    prepare_image(path, recipe.prepare)
    answer.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9)


def in_its_own_process(function: Any, *arguments: Any) -> Any:
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=function, args=(*arguments, send))
    process.start()
    found = receive.recv()
    process.join()
    return found


def same_numbers(scans: list[Scan], recipe: Recipe, stores: list[Path]) -> bool:
    def values(store: Path, scan: Scan) -> np.ndarray:
        found = Store(store).get(scan.path or "", recipe.prepare)
        assert isinstance(found, StoredVolume)
        return found.load()

    return all(np.array_equal(values(stores[0], scan), values(other, scan)) for scan in scans for other in stores[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--config", default="", help="a recipe; without it scans are resampled to 2 mm")
    parser.add_argument("--scans", type=int, default=8)
    parser.add_argument("--workers", type=int, default=usable_cores())
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    recipe = (
        Recipe.load(find_recipe(given.config)) if given.config else Recipe.from_dict({"prepare": {"spacing_mm": 2.0}})
    )
    ways = {
        "1 thread": Workers(n=1),
        f"{given.workers} threads": Workers(n=given.workers),
        f"{given.workers} processes": Workers(n=given.workers, processes=True),
    }
    found: dict[str, Any] = {"cores": usable_cores(), "scans": given.scans, "recipe": given.config or "plain, 2 mm"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scans = gather_scans(folder, given.files, given.scans)
        for way, workers in ways.items():
            wall, cpu, failures = in_its_own_process(prepare_all, scans, recipe, folder / way, workers)
            found[way] = {"scans_a_second": given.scans / wall, "cpu_seconds_a_scan": cpu / given.scans}
            print(f"{way:14s} {given.scans / wall:6.2f} scans/s, {cpu / given.scans:6.2f} CPU s a scan")
            for reason in failures.values():
                print(f"  failed: {reason}")
        found["same_numbers"] = same_numbers(scans, recipe, [folder / way for way in ways])
        n_voxels, largest = max((float(np.prod(nib.load(scan.path).shape)), scan.path) for scan in scans if scan.path)
        peak, copy_gb = in_its_own_process(measure_memory, largest, recipe), 4 * n_voxels / 1e9
        found["peak_gb"], found["copies"] = peak, (peak - BASE_GB) / copy_gb
    memory = f"peak {peak:.2f} GB: {BASE_GB} + {found['copies']:.1f} copies (bound {NATIVE_COPIES})"
    print(f"same numbers: {found['same_numbers']}; {memory}")
    if given.json:
        write_json(given.json, found)
        print(json.dumps(found))


if __name__ == "__main__":
    main()
