"""Small made pictures that carry known labels and an age."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

PICTURE_PIXELS = 24
PICTURE_LABELS = ("Rows", "Columns", "Spot")


def striped_picture(rows: bool, columns: bool, spot: bool, age: float, rng: np.random.Generator) -> np.ndarray:
    """A disc that grows with age, under stripes of any phase and a small spot anywhere: uint8 of 24 × 24 pixels.

    No pixel says by itself whether there are stripes, so that a linear model sees the age and nothing else.
    """
    across = np.arange(PICTURE_PIXELS)
    y, x = np.meshgrid(across, across, indexing="ij")
    middle = (PICTURE_PIXELS - 1) / 2
    shades = 85.0 + 50 * (np.hypot(y - middle, x - middle) < 3 + age / 10)
    for there, axis in ((rows, y), (columns, x)):
        shades += there * 30 * np.sin(2 * np.pi * (axis / 4 + rng.random()))
    top, left = rng.integers(2, PICTURE_PIXELS - 5, size=2)
    shades[top : top + 3, left : left + 3] += 100 * spot
    return np.clip(shades + rng.normal(0, 6, shades.shape), 0, 255).astype(np.uint8)


def write_pictures(folder: Path, n_subjects: int, seed: int) -> pd.DataFrame:
    """Two pictures of each subject, with every label (some unknown), a class and an age."""
    rng = np.random.default_rng(seed)
    table = []
    for index in range(2 * n_subjects):
        rows, columns = index // 2 % 2 == 0, index // 4 % 2 == 0
        spot, age = bool(rng.random() < 0.4), round(float(rng.uniform(20, 80)), 1)
        path = folder / f"picture-{index:03d}.png"
        Image.fromarray(striped_picture(rows, columns, spot, age, rng)).save(path)
        known = [1.0 if rng.random() > 0.1 else np.nan for _ in PICTURE_LABELS]
        table.append(
            {
                "scan_id": path.stem,
                "subject_id": f"person-{index // 2:03d}",
                "modality": "",
                "path": str(path),
                "age": age,
                "sex": "FM"[index // 2 % 2],
                "label": {(1, 0): "rows", (0, 1): "columns", (1, 1): "both", (0, 0): "None"}[rows, columns],
                "label_Rows": known[0] * rows,
                "label_Columns": known[1] * columns,
                "label_Spot": known[2] * spot,
                # Of the first persons two have a picture in common, which binds them.
                "duplicate_group": f"pair-{index // 4}" if index < 24 and index % 2 == 0 else "",
            }
        )
    return pd.DataFrame(table)
