"""The input contract: how many of twelve mistakes it flags, and how often it warns of clean scans.

    python benchmarks/contract.py
    python benchmarks/contract.py --run runs/t1 --heads HEADS

Without a run, phantom brains are drawn and a small network is trained on them, which takes a few minutes. With --run,
the run's own held-out scans are used; for the skull left on, --heads gives a folder of whole heads.
Targets: at least 95 % of the mistakes flagged (warn or refuse), at most 5 % of clean held-out scans.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from neuroage.cohort import Cohort, Split, uniform_age_split
from neuroage.files import write_json
from neuroage.imaging.phantom_mistakes import MISTAKES, phantom_scan, phantom_tof
from neuroage.imaging.read import SUFFIXES, read
from neuroage.imaging.store import Store
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run
from neuroage.training.check import check
from neuroage.training.inputs import gather_scans
from neuroage.training.train import train

RECIPE = {
    "modality": "t1",
    "prepare": {"spacing_mm": 4.0, "size": [44, 52, 44]},
    "backbone": {"name": "cnn", "n_blocks": 3, "features": 8},
    "augment": [{"step": "flip"}, {"step": "affine", "degrees": 5}],
    "optim": {"lr": 0.01},
    "training": {"epochs": 6, "batch_size": 8},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="a complete run; without it phantoms are drawn and trained on")
    parser.add_argument("--heads", type=Path, help="with --run: a folder of scans with the skull on")
    parser.add_argument("--subjects", type=int, default=100, help="phantoms, of which --held-out are held out")
    parser.add_argument("--held-out", type=int, default=30, help="so many held-out scans are made wrong")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--out", type=Path, default=Path("contract.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        run = Run.open(options.run) if options.run else train_on_phantoms(place, options)
        rows = measure(run, place, options)
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    mistakes = table[table["scans"] != "clean, held out"]
    summary = {
        "flagged": round(float(mistakes["flagged"].mean()), 3),
        "false_alarms": float(table.loc[table["scans"] == "clean, held out", "flagged"].iloc[0]),
        "n_mistakes": len(mistakes),
    }
    print(f"flagged {summary['flagged']:.1%} of {len(mistakes)} mistakes, {summary['false_alarms']:.1%} false alarms")
    write_json(options.out, {**summary, "rows": rows})


def train_on_phantoms(folder: Path, options: argparse.Namespace) -> Run:
    """Draw brains, and train a small network on them."""
    rows = []
    for index in range(options.subjects):
        data, affine, age = phantom_scan(index, options.seed)
        path = folder / f"sub-{index:03d}.nii.gz"
        nib.save(nib.Nifti1Image(data, affine), path)
        rows.append({"scan_id": path.name[:7], "subject_id": path.name[:7], "path": str(path), "age": age})
    cohort = Cohort(pd.DataFrame(rows).assign(session="", modality="t1", sex="", site="phantom"))
    split: Split = uniform_age_split(cohort, n_validation=options.held_out, seed=options.seed)
    return train(Recipe.from_dict(RECIPE), cohort, split, folder / "run", store=Store(folder / "store"))


def held_out_scans(run: Run, most: int = 10_000) -> list[Path]:
    """Paths of scans that the run was not trained on, evenly chosen."""
    leaf = run.leaves[0]
    sets = leaf.split.sets(leaf.about["fold"])
    table = leaf.cohort.table
    paths = [Path(path) for path in table.loc[table["subject_id"].map(sets).isin(["validation", "test"]), "path"]]
    return [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, min(most, len(paths))).astype(int))]


def measure(run: Run, folder: Path, options: argparse.Namespace) -> list[dict[str, object]]:
    """Check clean scans and each mistake; one row each."""
    store = Store(options.store or folder / "checked")
    rows = [share(run, "clean, held out", held_out_scans(run), store)]
    clean = held_out_scans(run, options.held_out)
    for name, files in wrong_scans(clean, folder, options):
        rows.append(share(run, name, files, store))
    return rows


def wrong_scans(clean: list[Path], folder: Path, options: argparse.Namespace) -> Iterator[tuple[str, list[Path]]]:
    """Make the files of each mistake."""
    for number, (name, mistake) in enumerate(MISTAKES.items()):
        files = []
        for path in clean:
            volume = read(path)
            data, affine = mistake(volume.data[0], volume.affine)
            files.append(_save(folder / f"mistake{number}" / f"{path.name.split('.')[0]}.nii", data, affine))
        yield name, files
    yield (
        "another modality",
        [_save(folder / "tof" / f"tof-{i}.nii", *phantom_tof(i, options.seed)) for i in range(len(clean))],
    )
    if options.heads:
        yield "skull still on", [p for p in sorted(options.heads.iterdir()) if p.name.lower().endswith(SUFFIXES)]
    elif not options.run:
        numbers = [int(path.name.split(".")[0].split("-")[1]) for path in clean]
        heads = [(i, phantom_scan(i, options.seed, stripped=False)) for i in numbers]
        yield "skull still on", [_save(folder / "heads" / f"head-{i}.nii", scan[0], scan[1]) for i, scan in heads]


def _save(path: Path, data: np.ndarray, affine: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.ascontiguousarray(data), affine), path)
    return path


def share(run: Run, name: str, files: list[Path], store: Store) -> dict[str, object]:
    """Check files and count verdicts."""
    started = time.monotonic()
    table, _ = check(run, gather_scans(files, run.recipe.modality), store=store)
    flagged = table[table["verdict"] != "ok"]
    return {
        "scans": name,
        "n": len(table),
        "flagged": round(len(flagged) / len(table), 3),
        "refused": round(float((table["verdict"] == "refuse").mean()), 3),
        "s_a_scan": round((time.monotonic() - started) / len(table), 2),
        "said": str(flagged["concerns"].iloc[0])[:150] if len(flagged) else "",
    }


if __name__ == "__main__":
    main()
