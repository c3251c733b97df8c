"""Histogram standardisation: intensities of different scanners brought to the same percentiles."""

from __future__ import annotations

from typing import Any

import numpy as np

from neuroage.errors import DataError
from neuroage.runs.recipe import Histogram

# Percentiles of the landmarks (Nyúl 2000, doi:10.1109/42.836373, with the quartiles that NiftyNet keeps beside them).
PERCENTILES = (1, 10, 20, 25, 30, 40, 50, 60, 70, 75, 80, 90, 99)
USED = [0, 1, 2, 4, 5, 6, 7, 8, 10, 11, 12]  # the quartiles are stored and not used, in NiftyNet as in TorchIO
LANDMARKS = {
    # NiftyNet model zoo, highres3dnet_brain_parcellation (CC-BY 4.0): T1 heads of ADNI
    "li2017": (
        4.4408920985e-16, 8.06305571158, 15.5085721044, 18.7007018006, 21.5032879029, 26.1413278906, 29.9862059045,
        33.8384058795, 38.1891334787, 40.7217966068, 44.0109152758, 58.3906435207, 100.0,
    ),
}  # fmt: skip
LEAST_RISES = 4  # of the ten stretches between landmarks; a binary or nearly binary scan has fewer


def foreground_of(data: np.ndarray, foreground: str) -> np.ndarray:
    """Give the mask of the voxels that intensity statistics are taken from.

    Args:
        data: Any shape.
        foreground: above_mean (of the volume), nonzero or all.
    """
    if foreground == "above_mean":
        return data > data.mean()
    return data != 0 if foreground == "nonzero" else np.ones_like(data, dtype=bool)


def standardise_histogram(data: np.ndarray, histogram: Histogram, record: dict[str, Any]) -> np.ndarray:
    """Map the percentiles of a scan onto landmarks, linearly between them and beyond the outer ones.

    Args:
        data: Shape (I, J, K).
        histogram: The landmarks, and the voxels that give the percentiles; every voxel is mapped.
        record: Receives the scan's percentiles.

    Returns:
        Same shape, float32, on the scale of the landmarks.

    Raises:
        DataError: The scan has too few different intensities for a histogram, as masks and binary volumes have.

    Source: Nyúl 2000, doi:10.1109/42.836373.
    """
    given = histogram.landmarks
    landmarks = np.asarray(LANDMARKS[given] if isinstance(given, str) else given)[USED]
    values = np.percentile(data[foreground_of(data, histogram.over)], PERCENTILES)
    record["histogram_percentiles"] = values.round(4).tolist()
    values = values[USED]
    width = np.diff(values)
    flat = width <= 1e-6 * max(values[-1] - values[0], 1e-30)  # the empty background of a whole grid, mostly
    if (~flat).sum() < LEAST_RISES:
        raise DataError(
            f"only {int((~flat).sum()) + 1} of {len(values)} percentiles differ: no histogram to standardise",
            expected="a scan with many intensities",
            fix="Binary volumes and masks take prepare.histogram: null; brain-extracted scans histogram.over: nonzero.",
        )
    slope = np.diff(landmarks) / np.where(flat, np.inf, width)
    stretch = np.digitize(data, values[1:-1])
    mapped = landmarks[:-1][stretch] + slope[stretch] * (data - values[:-1][stretch])
    return mapped.astype(np.float32)
