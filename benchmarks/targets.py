"""Every benchmark that needs no data, one after the other, and a table of what was wanted and what was measured.

    python benchmarks/targets.py [--quick] [--only augmentation reading] [--out bench]

Each script runs in a process of its own and leaves its figures as JSON in the output folder; the table is made of these
and written there as `targets.json`. Nothing else should run on the machine meanwhile. About 40 minutes on two cores, 8
with --quick (which leaves the largest volumes and the training to the end out, and so some rows).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from neuroage.files import write_json

HERE = Path(__file__).parent
SCRIPTS: dict[str, tuple[list[str], list[str]]] = {  # name → arguments, arguments of the quick form
    "augmentation": ([], ["--quick"]),
    "reading": ([], []),
    "training": (["--accuracy"], ["--quick", "--scans", "16"]),
    "memory": ([], ["--quick"]),
    "planning": (["--quick"], ["--quick"]),
    "scale": ([], ["--scans", "1000", "10000"]),
}
Row = tuple[str, str, float, float, str]  # stage, what, wanted, measured, at_least or at_most


def augmentation(content: dict[str, Any]) -> Iterator[Row]:
    wanted = {
        ("bias field, kernel", "torchio"): 300,
        ("bias field, kernel", "monai RandBiasField"): 20,
        ("bias field, TorchIO transform", "torchio"): 100,
        ("affine, kernel", "torchio Affine"): 2,
        ("affine, kernel", "affine_grid + grid_sample"): 2,
        ("whole pipeline", "torchio"): 15,
        ("whole pipeline", "monai"): 4,
        ("pipeline without bias field", "torchio"): 2,
    }
    for row in content["results"]:
        key = (row["what"], row["who"])
        if key not in wanted:
            continue
        batch_of_grids = row["who"].startswith("affine_grid") and row["n_scans"] > 1
        what = f"{row['what']}: times as fast as {row['who']}, {_size(row['shape'])}, {row['n_scans']} scans"
        yield "augmentation", what, 1 if batch_of_grids else wanted[key], row["times_ours"], "at least"


def reading(content: dict[str, Any]) -> Iterator[Row]:
    for row in content["reading"]:
        if row["who"] == "nibabel get_fdata":
            what = f"read .nii.gz: times as fast as get_fdata, {row['type']} {_size(row['shape'])}"
            yield "input", what, 2, row["times_ours"], "at least"
    for row in content["batches"]:
        if row["what"] in ("resident", "streamed"):
            what = f"prepared volume to batch, 2 mm, {row['what']}, batch {row['batch']}: ms"
            yield "input", what, row["wanted_ms"], row["median_ms"], "at most"


def training(content: dict[str, Any]) -> Iterator[Row]:
    ours = content["speed"][2]
    wanted = 8 if content["device"] != "cpu" else 3
    yield (
        "step",
        f"SFCN, end to end: times as fast as the usual loop ({ours['who']})",
        wanted,
        ours["times_usual"],
        "at least",
    )
    share = content["speed"][-1]["share_of_constant_batch"]
    yield "step", "share of the throughput with one constant batch", 0.95, share, "at least"
    if accuracy := content.get("accuracy"):
        difference, noise = abs(accuracy["difference_years"]), accuracy["two_standard_errors"]
        yield (
            "step",
            "final MAE: years from the usual loop's (wanted: two standard errors)",
            noise,
            difference,
            "at most",
        )


def memory(content: dict[str, Any]) -> Iterator[Row]:
    for row in content["results"]:
        if row["who"] != "blocks":
            continue
        where = f"HighResNet, recompute: blocks, {row['precision']}, {_size(row['shape'])}"
        most = 0.5 if row["precision"] == "fp32" else 0.25
        yield "memory", f"{where}: peak, of MONAI's in fp32", most, row["peak_to_monai_fp32"], "at most"
        yield "memory", f"{where}: step time, of MONAI's", 1.4, row["time_to_plain"], "at most"


def planning(content: dict[str, Any]) -> Iterator[Row]:
    n = len(content["results"])
    yield (
        "plan",
        f"peak memory: largest error of {n} configurations",
        0.10,
        content["largest_error"]["memory"],
        "at most",
    )
    yield (
        "plan",
        f"time of an epoch: largest error of {n} configurations",
        0.25,
        content["largest_error"]["time"],
        "at most",
    )
    probe = max(row["probe_seconds"] for row in content["results"])
    yield "plan", "longest probe: s", 10, probe, "at most"


def scale(content: dict[str, Any]) -> Iterator[Row]:
    largest = content["results"][-1]
    where = f"tables of {largest['n_scans']:,} scans"
    yield (
        "growth",
        f"{where}, everything together: s",
        content["limits"]["seconds"],
        largest["total_seconds"],
        "at most",
    )
    yield "growth", f"{where}: GiB", content["limits"]["peak_gib"], largest["peak_gib"], "at most"
    for name, row in content["commands"].items():
        yield "growth", f"{name}: s", row["wanted"], row["median_seconds"], "at most"


READERS: dict[str, Callable[[dict[str, Any]], Iterator[Row]]] = {
    "augmentation": augmentation,
    "reading": reading,
    "training": training,
    "memory": memory,
    "planning": planning,
    "scale": scale,
}


def _size(shape: list[int]) -> str:
    return "×".join(map(str, shape))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the quick form of every script")
    parser.add_argument("--only", nargs="+", choices=list(SCRIPTS), default=list(SCRIPTS), help="these scripts alone")
    parser.add_argument("--out", type=Path, default=Path("bench"), help="folder of the figures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        arguments = SCRIPTS[name][options.quick]
        print(f"== {name} {' '.join(arguments)}", flush=True)
        started = time.monotonic()
        figures = options.out / f"{name}.json"
        figures.unlink(missing_ok=True)
        subprocess.run([sys.executable, HERE / f"{name}.py", *arguments, "--json", figures], check=True)
        print(f"   {time.monotonic() - started:.0f} s", flush=True)
    table = Table("", "", "wanted", "measured", "", box=None, pad_edge=False)
    rows = []
    for name in SCRIPTS:
        figures = options.out / f"{name}.json"
        if not figures.exists():
            continue
        for stage, what, wanted, measured, bound in READERS[name](json.loads(figures.read_text(encoding="utf-8"))):
            met = measured >= wanted if bound == "at least" else measured <= wanted
            rows.append(
                {"stage": stage, "what": what, "wanted": wanted, "bound": bound, "measured": measured, "met": met}
            )
            mark = "[green]met[/]" if met else "[red]missed[/]"
            table.add_row(stage, what, f"{'≥' if bound == 'at least' else '≤'} {wanted:.3g}", f"{measured:.3g}", mark)
    Console(width=150).print(table)
    write_json(options.out / "targets.json", rows)


if __name__ == "__main__":
    main()
