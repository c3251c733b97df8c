"""How well the template's brain mask fits, plain and refined, where the brain is known.

    python benchmarks/brain_mask.py [STRIPPED SCANS …] [--phantoms 20] [--json brain_mask.json]

Phantom heads have a skull, and what lies inside it is known. Of a scan whose skull was stripped already, what is left
is taken for the brain; as it has no skull, that shows only how well the border is found where the dark begins. Dice
coefficients, and processor seconds of registration and mask.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from neuroage.files import write_json
from neuroage.imaging.phantom_mistakes import phantom_scan
from neuroage.imaging.read import Volume, read
from neuroage.imaging.registration.register import register_to_template
from neuroage.imaging.registration.transform import place
from neuroage.imaging.resampling import Grid, carry_mask
from neuroage.imaging.steps.brain import fill_holes, nonzero_mask, template_mask
from neuroage.imaging.steps.brain_surface import template_surface


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Overlap of two masks: 1 where they are the same."""
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())


def measure(name: str, volume: Volume, truth: np.ndarray) -> dict[str, float | str]:
    """Register one scan, make its masks and compare them with the truth."""
    start = time.process_time()
    registration = register_to_template(volume)
    registered = time.process_time()
    placed = place(volume, registration.matrix)
    mask, record = template_mask(placed)
    done = time.process_time()
    surface = template_surface()
    plain = carry_mask(surface.distance_mm <= 0, surface.grid.affine, Grid(volume.shape, placed.affine))
    return {
        "scan": name,
        "problem": registration.problem or record["problem"],
        "plain": round(dice(plain, truth), 4),
        "refined": round(dice(mask, truth), 4),
        "volume_ratio": round(float(mask.sum() / truth.sum()), 3),
        "registration_s": round(registered - start, 2),
        "mask_s": round(done - registered, 2),
    }


def main() -> None:
    """Measure phantoms and files, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scans", nargs="*", type=Path)
    parser.add_argument("--phantoms", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    template_surface()  # once in a process; not part of a scan's time
    groups: dict[str, list[dict[str, float | str]]] = {"phantoms": [], "files": []}
    for index in range(options.phantoms):
        data, affine, _ = phantom_scan(index, 7, stripped=False)
        truth = fill_holes(phantom_scan(index, 7)[0] > 0)
        groups["phantoms"].append(measure(f"phantom {index}", Volume(data[None].astype(np.float32), affine), truth))
    for path in options.scans:
        volume = read(path, nonfinite="zero")
        groups["files"].append(measure(path.name, volume, nonzero_mask(volume)))
    for group, rows in groups.items():
        for row in rows:
            print("  ".join(f"{key} {value}" for key, value in row.items()))
        sound = [row for row in rows if not row["problem"]]
        if sound:
            figures = {key: [float(row[key]) for row in sound] for key in ("plain", "refined", "mask_s")}
            said = ", ".join(f"{key} {np.mean(value):.4f} (worst {min(value):.4f})" for key, value in figures.items())
            better = sum(row["refined"] > row["plain"] for row in sound)
            print(f"{group}: {len(sound)} of {len(rows)} without a problem: {said}; refined better in {better}\n")
    if options.json:
        write_json(options.json, groups)


if __name__ == "__main__":
    main()
