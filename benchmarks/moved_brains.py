"""Does a prediction change when a brain is moved? Scans of a run's held-out subjects, resampled in poses of their own.

    python benchmarks/moved_brains.py runs/t1 --n 24 --spacing 2 2 2

Each is turned by up to 30 degrees about each axis, scaled by up to 10% and shifted by up to 30 mm, with one cubic
interpolation, and predicted with `--prepare auto`; what changes against the scan in place is printed in years.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.spatial.transform import Rotation

from neuroage.cohort import Cohort
from neuroage.imaging.read import Volume, read
from neuroage.imaging.store import Store
from neuroage.runs.run import Run
from neuroage.training.predict import predict

FIELD_MM = 250.0  # wide enough for a brain in any of these poses


def moved(scan: Volume, spacing_mm: np.ndarray, rng: np.random.Generator) -> nib.Nifti1Image:
    data = scan.data[0]
    pose = np.eye(4)  # scan millimetres to those of the new scanner
    pose[:3, :3] = Rotation.from_euler("xyz", rng.uniform(-30, 30, 3), degrees=True).as_matrix() * rng.uniform(0.9, 1.1)
    pose[:3, 3] = rng.uniform(-30, 30, 3)
    size = np.ceil(FIELD_MM / spacing_mm).astype(int)
    affine = np.diag([-spacing_mm[0], -spacing_mm[1], spacing_mm[2], 1.0])  # stored LPS
    middle = pose @ scan.affine @ [*((np.asarray(data.shape) - 1) / 2), 1]
    affine[:3, 3] = middle[:3] - affine[:3, :3] @ ((size - 1) / 2) + rng.uniform(-15, 15, 3)
    back = np.linalg.inv(scan.affine) @ np.linalg.inv(pose) @ affine
    seen = ndimage.affine_transform(data, back[:3, :3], back[:3, 3], tuple(size), order=3, cval=float(data.min()))
    shown = (data > data.min()).astype(np.float32)
    inside = ndimage.affine_transform(shown, back[:3, :3], back[:3, 3], tuple(size), order=1) > 0.5
    return nib.Nifti1Image(np.where(inside, np.maximum(seen, 0), 0).astype(np.float32), affine)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--n", type=int, default=24)
    parser.add_argument("--spacing", type=float, nargs=3, default=(2.0, 2.0, 2.0), help="mm of the moved scans")
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    run, rng = Run.open(given.run), np.random.default_rng(given.seed)
    held_out = run.split.table.query("set == 'validation'")["subject_id"]
    still = run.cohort.select(subject_ids=held_out).table.head(given.n)
    with tempfile.TemporaryDirectory() as folder:
        store, paths = Store(Path(folder) / "store"), []
        for row in still.to_dict("records"):
            paths.append(f"{folder}/{row['scan_id']}.nii")
            nib.save(moved(read(row["path"]), np.asarray(given.spacing), rng), paths[-1])
        before = predict(run, Cohort(still), store=store, force=True).table["predicted_age"].to_numpy()
        turned = Cohort(pd.DataFrame(still.assign(path=paths)))
        after = predict(run, turned, store=store, prepare="auto", force=True).table["predicted_age"].to_numpy()
    change = after - before
    print(f"{len(change)} scans: mean change {np.abs(change).mean():.2f} years, in one direction {change.mean():+.2f}")


if __name__ == "__main__":
    main()
