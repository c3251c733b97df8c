"""Registration where the truth is known, and beside ANTsPy.

    python benchmarks/registration.py truth --n 200
    python benchmarks/registration.py truth --real FOLDER_OR_TABLE --n 40
    python benchmarks/registration.py within --n 40 [--far]
    python benchmarks/registration.py speed SCAN... --ants-python PATH [--threads 2]

`truth`: heads in random poses (up to ±45° about every axis, ±40 mm, scale 0.85 to 1.15, any of the 48 storage
orientations), registered to MNI152. A head is sampled once, in its pose. Forms in turn: the whole head, the head
without its skull, and a field of view that cuts off the neck and up to 15 mm of the brain's top. Truth is the pose
after the registration of the same head unmoved, without noise and bias field; as that one may be wrong itself, the
poses of one head are compared with each other too. With --real scans of yours take the place of phantoms; nothing is
added to them.

`within`: angiogram and proton density slabs of 60 mm, registered to the T1 scan of the same phantom in another pose.

`speed`: bias field, registration, brain mask, normalised scan on the template's 1 mm grid, with ANTsPy's defaults in a
Python of its own. Distances are means over the brain in template millimetres; CPU seconds are of all threads.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from posed_heads import FORMS, phantom_head_volume, random_pose, sample, scan_in_pose, slab

from neuroage.files import write_json
from neuroage.imaging.prepare import prepare
from neuroage.imaging.read import Volume, read
from neuroage.imaging.registration.mni152 import load_mni152
from neuroage.imaging.registration.result import Registration
from neuroage.imaging.registration.transform import apply, mean_distance_mm, read_transform
from neuroage.runs.recipe import Recipe
from neuroage.runs.shipped import find_recipe

GOOD_MM = {"truth": 2.0, "within": 1.0}  # what counts as recovered


def brain_points() -> np.ndarray:
    """Places in the brain of MNI152, 8 mm apart, (N, 3)."""
    template = load_mni152(4)
    voxels = np.argwhere(template.brain[::2, ::2, ::2]) * 2
    return apply(template.volume.affine, voxels)


def real_heads(paths: list[Path]) -> Iterator[tuple[str, Volume, np.ndarray]]:
    """Scans of yours, brightest tissue near 1, and where their brain lies (by their own registration)."""
    from neuroage.imaging.registration.register import register_to_template

    template = load_mni152(2)
    for path in paths:
        volume = read(path)
        volume = replace(volume, data=np.clip(volume.data / np.percentile(volume.data, 99.8), 0, 1.2))
        matrix = register_to_template(volume).matrix
        brain = template.brain.astype(np.float32)
        inside = sample(matrix @ template.volume.affine, brain, volume.affine, volume.shape)
        yield path.name, volume, inside > 0.5


def scan_paths(source: Path) -> list[Path]:
    if source.suffix == ".csv":
        from neuroage.cohort import Cohort

        return [Path(path) for path in Cohort.read(source).table["path"]]
    return sorted(path for path in source.rglob("*") if path.name.endswith((".nii", ".nii.gz", ".mgz")))


def truth(options: argparse.Namespace) -> dict[str, Any]:
    """Heads in random poses to MNI152."""
    from neuroage.imaging.registration.register import register_to_template

    points, rows = brain_points(), []
    n_heads = -(-options.n // options.poses)
    if options.real:
        chosen = np.random.default_rng(options.seed).permutation(scan_paths(options.real))[options.first :][:n_heads]
        heads = real_heads([Path(path) for path in chosen])
    else:
        seeds = options.seed * 1000 + options.first + np.arange(n_heads)
        heads = ((f"phantom {seed}", *phantom_head_volume(int(seed))[:2]) for seed in seeds)
    for number, (name, volume, inside) in enumerate(heads):
        unmoved: dict[str, np.ndarray] = {}
        for turn in range(min(options.poses, options.n - number * options.poses)):
            rng = np.random.default_rng([options.seed, options.first + number, turn])
            form = options.forms[(options.first + number + turn) % len(options.forms)]
            if form not in unmoved:
                scan = scan_in_pose(volume, inside, np.eye(4), form, np.random.default_rng(0), clean=True)
                unmoved[form] = register_to_template(scan).matrix
            pose = random_pose(rng, options.degrees, options.shift_mm, (0.85, 1.15))
            scan = scan_in_pose(volume, inside, pose, form, rng, clean=bool(options.real))
            found, cpu_seconds = timed(lambda scan=scan: register_to_template(scan))
            back = np.linalg.inv(found.matrix) @ pose  # head to template
            rows.append(row(f"{name}, pose {turn}", form, back @ unmoved[form], points, found, cpu_seconds, "truth"))
            rows[-1] |= {"head": name, "to_template": back.tolist()}
            print_row(rows[-1])
    pairs = [
        mean_distance_mm(np.array(one["to_template"]) @ np.linalg.inv(other["to_template"]), np.eye(4), points)
        for one, other in itertools.combinations(rows, 2)
        if one["head"] == other["head"]
    ]
    summary = {form: summarise([r for r in rows if r["form"] == form]) for form in options.forms}
    summary |= {"all": summarise(rows)}
    summary["all"]["poses_of_one_head_within"] = float(np.mean(np.array(pairs) < GOOD_MM["truth"])) if pairs else 1.0
    return {"summary": summary, "rows": rows}


def timed(run: Any) -> tuple[Registration, float]:
    start = time.process_time()
    found = run()
    return found, time.process_time() - start


def row(
    name: str, form: str, off: np.ndarray, points: np.ndarray, found: Registration, cpu_seconds: float, goal: str
) -> dict[str, Any]:
    """One registration; `off` is the identity where it is right."""
    distance = mean_distance_mm(off, np.eye(4), points)
    figures = {"distance_mm": distance, "good": distance <= GOOD_MM[goal], "cpu_seconds": cpu_seconds}
    return {"name": name, "form": form, **figures, "problem": found.problem, "quality": found.quality}


def print_row(figures: dict[str, Any]) -> None:
    flag = "" if figures["good"] == (not figures["problem"]) else "  <-- flagged, though good"
    flag = "  <-- MISSED" if not figures["good"] and not figures["problem"] else flag
    what = f"{figures['name']:<36} {figures['form']:<10}"
    times = f"{figures['distance_mm']:8.2f} mm {figures['cpu_seconds']:6.1f} s"
    print(f"{what}{times}  {figures['problem'][:60]}{flag}", flush=True)


def summarise(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Shares, distances and times of one form."""
    distance = np.array([r["distance_mm"] for r in rows])
    good, flagged = np.array([r["good"] for r in rows], bool), np.array([bool(r["problem"]) for r in rows], bool)
    return {
        "n": len(rows),
        "recovered": float(good.mean()) if rows else float("nan"),
        "failures": int((~good).sum()),
        "failures_flagged": int((flagged & ~good).sum()),
        "good_flagged_falsely": int((flagged & good).sum()),
        "median_mm": float(np.median(distance)) if rows else float("nan"),
        "percentile_95_mm": float(np.percentile(distance, 95)) if rows else float("nan"),
        "cpu_seconds": float(np.mean([r["cpu_seconds"] for r in rows])) if rows else float("nan"),
    }


def within(options: argparse.Namespace) -> dict[str, Any]:
    """Slabs of 60 mm to the T1 scan of the same phantom."""
    from neuroage.imaging.registration.within import register_within

    degrees, shift_mm = (30.0, 25.0) if options.far else (15.0, 15.0)
    rows = []
    for number in range(options.n):
        rng = np.random.default_rng([options.seed, number])
        volume, inside, head = phantom_head_volume(options.seed * 1000 + number // 2)
        t1_pose = random_pose(rng, 8, 10, (1, 1))
        t1 = scan_in_pose(volume, inside, t1_pose, "stripped" if number % 5 == 4 else "whole", rng)
        between = random_pose(rng, degrees, shift_mm, (1, 1))  # of the slab's scan to the T1 scan
        contrast = ("tof", "pd")[number % 2]
        moving, points = slab(contrast, volume, inside, head, between @ t1_pose, rng)
        found, cpu_seconds = timed(lambda moving=moving, t1=t1: register_within(moving, t1))
        back = np.linalg.inv(found.matrix) @ between
        rows.append(row(f"pair {number}", contrast, back, apply(t1_pose, points), found, cpu_seconds, "within"))
        print_row(rows[-1])
    summary = {form: summarise([r for r in rows if r["form"] == form]) for form in ("tof", "pd")}
    return {"summary": summary | {"all": summarise(rows)}, "rows": rows}


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """The steps from a raw head to a normalised brain, beside ANTsPy's defaults, one scan after the other."""
    rows = []
    for path in options.scans:
        ours, matrix = our_steps(path)
        print(json.dumps(ours), flush=True)
        figures: dict[str, Any] = {"scan": path.name, "shape": list(read(path).shape), "ours": ours}
        if options.ants_python:
            with tempfile.TemporaryDirectory() as folder:
                figures["ants"] = ants_steps(path, options.ants_python, Path(folder))
                theirs = read_transform(Path(folder) / "affine.mat")
            figures["times_wall"] = figures["ants"]["wall_seconds"]["all"] / ours["wall_seconds"]["all"]
            figures["times_cpu"] = figures["ants"]["cpu_seconds"]["all"] / ours["cpu_seconds"]["all"]
            # Matrices give scan millimetres, so the distance is in the scan's.
            figures["distance_between_both_mm"] = mean_distance_mm(matrix, theirs, brain_points())
        rows.append(figures)
        print(json.dumps(figures, indent=1), flush=True)
    return {"rows": rows, "threads": options.threads}


def our_steps(path: Path) -> tuple[dict[str, Any], np.ndarray]:
    """Seconds of the recipe `raw_t1` at 1 mm, from the scan in memory to the prepared volume; compiled before."""
    recipe = Recipe.load(find_recipe("raw_t1"), ["prepare.spacing_mm=1.0", "prepare.size=[182, 218, 182]"]).prepare
    volume = read(path)
    prepare(volume, recipe)
    wall, cpu = time.perf_counter(), time.process_time()
    made = prepare(volume, recipe)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    steps = {step["name"]: step["seconds"] for step in made.record["steps"] if "seconds" in step}
    seconds = {"wall_seconds": {**steps, "all": wall}, "cpu_seconds": {"all": cpu}}
    return seconds | {"problem": made.problem}, made.transforms["mni152"]


def ants_steps(path: Path, python: str, folder: Path) -> dict[str, Any]:
    import nibabel as nib

    template = load_mni152(1)
    for name, data in (("template", template.volume.data[0]), ("brain", template.brain.astype(np.float32))):
        nib.save(nib.Nifti1Image(data, template.volume.affine), folder / f"{name}.nii")
    child = Path(__file__).with_name("registration_ants.py")
    done = subprocess.run([python, str(child), str(path), str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"ANTsPy failed on {path.name}:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", metavar="PATH", help="also write the figures here")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("truth", "within"):
        commands.add_parser(name).add_argument("--n", type=int, default=40, help="registrations")
    moved = commands.choices["truth"]
    moved.add_argument("--first", type=int, default=0, help="head to begin with; each is the same whatever goes before")
    moved.add_argument("--poses", type=int, default=4, help="of one head")
    moved.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    moved.add_argument("--degrees", type=float, default=45.0)
    moved.add_argument("--shift-mm", type=float, default=40.0)
    moved.add_argument("--real", type=Path, help="a folder of scans, or a table with a column path")
    commands.choices["within"].add_argument("--far", action="store_true", help="±30° and ±25 mm, not ±15° and ±15 mm")
    beside = commands.add_parser("speed")
    beside.add_argument("scans", type=Path, nargs="+")
    beside.add_argument("--ants-python", help="a Python that imports ants")
    options = parser.parse_args()

    for name in ("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "OMP_NUM_THREADS"):
        os.environ[name] = str(options.threads)
    results = {"truth": truth, "within": within, "speed": speed}[options.command](options)
    results["setting"] = {"machine": platform.processor() or platform.machine(), "python": platform.python_version()}
    if "summary" in results:
        print(json.dumps(results["summary"], indent=1))
    if options.json:
        write_json(options.json, results)


if __name__ == "__main__":
    main()
