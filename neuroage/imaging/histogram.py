"""Histogram standardisation: intensities of different scanners brought to the same percentiles."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from neuroage.errors import DataError, UsageError
from neuroage.imaging.read import Volume, read
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


def learn_landmarks(scans: Iterable[Volume | str | os.PathLike[str]], over: str = "nonzero") -> tuple[float, ...]:
    """Learn landmarks for `prepare.histogram` from one's own training scans.

    The percentiles of each scan are brought to a scale on which the 1st is 0 and the 99th is 100, and averaged. Scans
    are read one after the other; twenty to fifty of one modality are enough. Validation and test scans stay out of it.

    Args:
        scans: Files, or volumes as `read` gives them.
        over: The voxels that give the percentiles: nonzero, above_mean or all. The recipe's `histogram.over` has to be
            the same.

    Returns:
        Thirteen rising numbers, for `PERCENTILES`, from 0 to 100.

    Raises:
        UsageError: There are no scans, or `over` is not known.
        DataError: Scans have too few different intensities, as masks and scans that are mostly air have.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> scans = [Volume(rng.gamma(4, gain, (1, 20, 20, 20)).astype("float32"), np.eye(4)) for gain in (10, 30)]
        >>> [round(number) for number in learn_landmarks(scans)][::4]
        [0, 22, 43, 100]

    Source: Nyúl 2000, doi:10.1109/42.836373, as TorchIO trains it.
    """
    if over not in ("nonzero", "above_mean", "all"):
        raise UsageError(f"over {over!r}", expected="nonzero, above_mean or all")
    found = []
    for number, scan in enumerate(scans):
        data = (scan if isinstance(scan, Volume) else read(scan)).data[0]
        chosen = data[foreground_of(data, over)]
        values = np.percentile(chosen, PERCENTILES) if chosen.size else np.zeros(len(PERCENTILES))
        if values[-1] <= values[0]:
            where = f"scan {number + 1}" if isinstance(scan, Volume) else os.fspath(scan)
            raise DataError(f"{where}: its percentiles do not differ", expected="a scan with many intensities")
        found.append(100 * (values - values[0]) / (values[-1] - values[0]))
    if not found:
        raise UsageError("no scans to learn landmarks from", expected="files or volumes of one modality")
    landmarks = np.mean(found, axis=0)
    if (np.diff(landmarks) <= 0).any():
        raise DataError(
            "the scans' percentiles do not rise",
            expected="scans with many intensities",
            fix="Where most voxels are empty background, learn over nonzero or above_mean.",
        )
    return tuple(float(landmark) for landmark in landmarks)


def standardise_histogram(
    data: np.ndarray, histogram: Histogram, record: dict[str, Any], within: np.ndarray | None = None
) -> np.ndarray:
    """Map the percentiles of a scan onto landmarks, linearly between them and beyond the outer ones.

    Args:
        data: Shape (I, J, K).
        histogram: The landmarks, and the voxels that give the percentiles; every voxel is mapped.
        record: Receives the scan's percentiles.
        within: Voxels that the percentiles are taken over, bool (I, J, K); all when None.

    Returns:
        Same shape, float32, on the scale of the landmarks.

    Raises:
        DataError: The scan has too few different intensities for a histogram, as masks and binary volumes have.

    Source: Nyúl 2000, doi:10.1109/42.836373.
    """
    given = histogram.landmarks
    landmarks = np.asarray(LANDMARKS[given] if isinstance(given, str) else given)[USED]
    chosen = data if within is None else data[within]
    values = np.percentile(chosen[foreground_of(chosen, histogram.over)], PERCENTILES)
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
