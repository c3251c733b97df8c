"""What tests of preparing at scale share: a cohort of noise, and the content of a store."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from neuroage.cohort import Cohort
from neuroage.runs.recipe import Recipe

PREPARE = Recipe.from_dict({"prepare": {"spacing_mm": 8.0, "size": [12, 12, 12]}}).prepare


def write_noise(folder: Path, n_scans: int, size: int = 40) -> Cohort:
    """Write scans of noise of 4 mm, and give their cohort."""
    rng = np.random.default_rng(7)
    rows = []
    for index in range(n_scans):
        path = folder / f"sub-{index:02d}_T1w.nii"
        data = rng.integers(0, 900, (size, size, size)).astype(np.int16)
        nib.save(nib.Nifti1Image(data, np.diag([4.0, 4.0, 4.0, 1.0])), path)
        rows.append(
            {
                "scan_id": f"sub-{index:02d}",
                "subject_id": f"sub-{index:02d}",
                "modality": "t1",
                "path": str(path),
                "age": 50,
            }
        )
    return Cohort(pd.DataFrame(rows))


def content(folder: Path) -> dict[str, bytes]:
    """Give every file of a store: name → bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait for something to happen, and fail when it does not."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)
