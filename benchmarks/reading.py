"""Reading scans beside nibabel, and how long a prepared volume takes to reach a batch.

    python benchmarks/reading.py [FOLDER or FILES …] [--repeats 7] [--json reading.json]

Without files, three are made in a temporary folder: an int16 head, a uint8 label map and a float32 image with a slope,
the middle one stored in another orientation. First the voxels are compared: ours are nibabel's, rounded to float32 and
brought to RAS+. Ours does more than its peers: orientation, checks for NaN and empty images, float32. Peers are called
as nibabel's documentation says: `nib.load(path).get_fdata()`, and `np.asanyarray(nib.load(path).dataobj)`, which keeps
integers as they are where no scaling is stored. Runs alternate, so that whatever else the computer does meets all.

Then prepared volumes of 80×96×80 (2 mm, uint8), made by `Store.put`, are drawn into batches, kept in memory and
streamed from files that the system holds in memory; a batch's time is divided by its scans. `wanted` is 2 ms a scan.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import isal
import nibabel as nib
import numpy as np
import torch

from neuroage.files import write_json
from neuroage.imaging.batches import VolumeSet
from neuroage.imaging.prepare import Prepared
from neuroage.imaging.read import SUFFIXES, read
from neuroage.imaging.store import Store, StoredVolume
from neuroage.runs.recipe import Prepare

WANTED_TIMES, WANTED_MS = 2.0, 2.0
SIZE = (80, 96, 80)
PEERS: dict[str, Callable[[Path], Any]] = {
    "neuroage read": read,
    "nibabel get_fdata": lambda path: nib.load(path).get_fdata(),
    "nibabel asanyarray": lambda path: np.asanyarray(nib.load(path).dataobj),
}


def head(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """A textured ball in the dark: compresses about as a head does."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, size, dtype=np.float32) for size in shape], indexing="ij", sparse=True)
    inside = sum(axis**2 for axis in axes) < 0.6
    return np.where(inside, 300 + 60 * np.sin(9 * axes[0]) + rng.normal(0, 12, shape).astype(np.float32), 0)


def make_files(folder: Path) -> list[Path]:
    """An int16 head, a uint8 label map (mostly 0, LPS) and a float32 image with a slope."""
    small = head((256, 256, 170))
    images = {"head_int16": nib.Nifti1Image(small.astype(np.int16), np.diag([1, 1, 1, 1]))}
    labels = np.zeros((512, 512, 100), np.uint8)
    labels[250:262, 100:400] = 3
    labels[100:400, 240:250, 30:60] = 1
    images["labels_uint8"] = nib.Nifti1Image(labels, np.diag([-0.5, -0.5, 0.8, 1]))
    scaled = nib.Nifti1Image((small / 100).astype(np.float32), np.diag([1, 1, 1, 1]))
    scaled.header.set_slope_inter(2.5, 1.0)
    images["head_float32_slope"] = scaled
    for name, image in images.items():
        nib.save(image, folder / f"{name}.nii.gz")
    return sorted(folder.glob("*.nii.gz"))


def assert_equal_voxels(path: Path) -> None:
    theirs = nib.as_closest_canonical(nib.load(path))
    ours = read(path)
    np.testing.assert_array_equal(ours.data[0], np.squeeze(theirs.get_fdata()).astype(np.float32))
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-4)


def alternate(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every run, one after the other and that several times; once untimed before."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat:
                times[name].append(time.perf_counter() - start)
    return times


def spread(times: list[float]) -> dict[str, float]:
    milliseconds = np.array(times) * 1e3
    low, median, high = np.quantile(milliseconds, [0.25, 0.5, 0.75])
    return {
        "median_ms": float(median),
        "low_ms": float(low),
        "high_ms": float(high),
        "best_ms": float(milliseconds.min()),
    }


def peak_mib(run: Callable[[], Any]) -> float:
    """The most memory that NumPy and Python held at once."""
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def measure_reading(path: Path, repeats: int) -> list[dict[str, Any]]:
    assert_equal_voxels(path)
    image: Any = nib.load(path)
    about = {"file": path.name, "shape": list(image.shape), "type": str(image.get_data_dtype())}
    runs = {name: (lambda peer=peer: peer(path)) for name, peer in PEERS.items()}
    times = alternate(runs, repeats)
    ours = min(times["neuroage read"])
    rows = []
    for name in runs:
        row = {**about, "who": name, **spread(times[name]), "times_ours": min(times[name]) / ours}
        row["peak_mib"] = peak_mib(runs[name])
        rows.append(row)
        print(
            f"{'×'.join(map(str, image.shape)):>13} {about['type']:<8} {name:<20}{row['median_ms']:9.1f} ms "
            f"[{row['low_ms']:.1f}, {row['high_ms']:.1f}] best {row['best_ms']:.1f}  {row['times_ours']:5.2f}×  "
            f"{row['peak_mib']:6.0f} MiB",
            flush=True,
        )
    return rows


def stored_volumes(folder: Path, n_scans: int) -> list[StoredVolume]:
    recipe, store = Prepare(spacing_mm=2.0, size=SIZE), Store(folder / "store")
    volumes = []
    for number in range(n_scans):
        path = folder / f"{number}.nii.gz"
        path.touch()  # the store keys a volume by its file; the voxels are not read
        volumes.append(store.put(path, recipe, Prepared(head(SIZE, number).astype(np.float32)[None], np.eye(4))))
    return volumes


def measure_batches(folder: Path, repeats: int) -> list[dict[str, Any]]:
    volumes = stored_volumes(folder, 64)
    sets = {"resident": VolumeSet(volumes, resident=True), "streamed": VolumeSet(volumes, resident=False)}
    order = np.random.default_rng(0).permutation(len(volumes))

    def by_hand(indices: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.stack([volumes[index].load() for index in indices]))

    def draw(batch: Callable[[np.ndarray], torch.Tensor], plan: list[np.ndarray]) -> None:
        for indices in plan:
            batch(indices)

    assert torch.equal(sets["resident"].batch(order), sets["streamed"].batch(order))
    torch.testing.assert_close(sets["streamed"].batch(order), by_hand(order))
    rows = []
    for size in (1, 8):
        plan = np.array_split(order, len(order) // size)
        runs = {name: partial(draw, chosen.batch, plan) for name, chosen in sets.items()}
        runs["np.load each, as a dataset would"] = partial(draw, by_hand, plan)
        for name, times in alternate(runs, repeats).items():
            row = {
                "what": name,
                "batch": size,
                **spread([value / len(order) for value in times]),
                "wanted_ms": WANTED_MS,
            }
            rows.append(row)
            print(
                f"{'×'.join(map(str, SIZE)):>13} batch {size}  {name:<34}{row['median_ms']:7.3f} ms a scan, "
                f"best {row['best_ms']:.3f}"
            )
    return rows


def find_files(given: list[Path]) -> list[Path]:
    found: list[Path] = []
    for path in given:
        found += sorted(file for file in path.rglob("*") if file.name.endswith(SUFFIXES)) if path.is_dir() else [path]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="*", help="NIfTI files or folders of them; made when none is given")
    parser.add_argument("--repeats", type=int, default=7, help="timed repeats after one untimed")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads, for batches")
    parser.add_argument("--json", metavar="PATH", help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    versions = {"python": platform.python_version(), "numpy": np.__version__, "nibabel": nib.__version__}
    versions |= {"isal": isal.__version__, "torch": torch.__version__}
    setting = {"threads": options.threads, "machine": platform.processor() or platform.machine(), "versions": versions}
    print(json.dumps(setting))
    with tempfile.TemporaryDirectory() as name:
        files = find_files(options.files) or make_files(Path(name))
        reading = [row for path in files for row in measure_reading(path, options.repeats)]
        batches = measure_batches(Path(name), options.repeats)
    faster = [row["times_ours"] for row in reading if row["who"] == "nibabel get_fdata"]
    print(f"get_fdata takes {min(faster):.2f} to {max(faster):.2f} times as long, wanted at least {WANTED_TIMES:g}")
    if options.json:
        write_json(options.json, {**setting, "reading": reading, "batches": batches})


if __name__ == "__main__":
    main()
