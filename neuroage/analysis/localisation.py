"""Do maps point where experts point? Scores of maps against marked regions, beside maps that know nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neuroage.analysis.bootstrap import LEVEL, MINIMUM_SUBJECTS, N_METRIC_RESAMPLES, Interval, bca_bounds
from neuroage.errors import DataError

Map = NDArray[np.float32]
Mask = NDArray[np.bool_]

TOLERANCE = 0.03  # of the longest side: 15 of about 500 pixels, as Zhang 2016 (arXiv 1608.00507) allows
CUTS = (0.25, 0.5, 0.75)  # of a map's maximum: what is above is the region that it names
MATCHES = (0.1, 0.25, 0.5)  # IoU from which on a region counts as found; the first three of Wang 2017, arXiv 1705.02315
PRIOR_SIGMA = 0.25  # of each side: width of the blob at the centre; two thirds of it lie in the inner half of a side
N_RANDOM = 20  # random blobs an image, averaged
EVERY = "all"  # the row of all labels together


@dataclass(frozen=True)
class Localisation:
    """Scores of maps against marked regions.

    Attributes:
        table: One row a label and measure (and label `all`): label, measure, n_images, value, low, high (95 %
            bootstrap interval over images, or groups of them), centre and random (the same measure for a blob at the
            centre and for blobs anywhere), above_centre, above_centre_low, above_centre_high (difference to the blob
            at the centre, image by image).
        images: One row an image: scan_id, label, group, and each measure for map, centre and random.
        tolerance: Of the pointing game, as a share of the longest side.
        n_empty: Maps without any evidence; they find nothing.
    """

    table: pd.DataFrame
    images: pd.DataFrame
    tolerance: float
    n_empty: int

    def to_dict(self) -> dict[str, Any]:
        """Give the table and how it was made, JSON-ready."""
        return {
            "tolerance": self.tolerance,
            "n_empty": self.n_empty,
            "scores": self.table.to_dict("records"),
        }


def score_maps(
    maps: Mapping[str, Map],
    masks: Mapping[str, Mask],
    *,
    labels: Mapping[str, str] | None = None,
    groups: Mapping[str, str] | None = None,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> Localisation:
    """Score maps of evidence against marked regions, in two or three dimensions.

    Measures: `pointing_game` (the map's maximum lies in the region, or within `tolerance` of it; several equal maxima
    share the hit), `energy` (share of the map's sum that lies in the region), `iou_25`, `iou_50`, `iou_75` (overlap of
    the region with what is above that percentage of the maximum), `found_10`, `found_25`, `found_50` (share of images
    in which iou_50 reaches that percentage).

    Args:
        maps: scan_id → evidence, negative values count as none; shape (*spatial).
        masks: scan_id → the marked region, same shape; scans without a marked pixel are left out.
        labels: scan_id → what the region shows; all alike when None.
        groups: scan_id → unit over which intervals are bootstrapped, such as the patient; each image by itself when
            None.
        tolerance: Share of the longest side.
        seed: Of random blobs and bootstrap.

    Raises:
        DataError: No scan has both a map and a region, or their shapes differ.

    Source: pointing game, Zhang 2016, arXiv 1608.00507; energy, Wang 2020, arXiv 1910.01279.
    """
    shared = [scan_id for scan_id in maps if scan_id in masks and masks[scan_id].any()]
    if not shared:
        raise DataError(
            f"None of {len(maps)} maps has a marked region", expected="regions with the scan_id and label of the maps"
        )
    rows, n_empty = [], 0
    random = np.random.default_rng(seed)
    for scan_id in shared:
        evidence, mask = np.maximum(maps[scan_id], 0), np.asarray(masks[scan_id], dtype=bool)
        if evidence.shape != mask.shape:
            raise DataError(f"{scan_id}: a map of shape {evidence.shape} and a region of shape {mask.shape}")
        near = widened(mask, tolerance * max(mask.shape))
        n_empty += not evidence.max() > 0
        blobs = [blob(mask.shape, random.random(mask.ndim)) for _ in range(N_RANDOM)]
        centre = measures(blob(mask.shape, np.full(mask.ndim, 0.5)), mask, near)
        drawn = pd.DataFrame([measures(each, mask, near) for each in blobs]).mean()
        row = {
            "scan_id": scan_id,
            "label": (labels or {}).get(scan_id, ""),
            "group": (groups or {}).get(scan_id, scan_id),
            **measures(evidence, mask, near),
        }
        row.update({f"{name}_centre": value for name, value in centre.items()})
        row.update({f"{name}_random": float(value) for name, value in drawn.items()})
        rows.append(row)
    images = pd.DataFrame(rows)
    return Localisation(_summary(images, seed), images, tolerance, n_empty)


def measures(evidence: Map, mask: Mask, near: Mask) -> dict[str, float]:
    """Score one map, (*spatial), not negative, against a region and what lies near it."""
    most = float(evidence.max())
    if not most > 0:
        return {name: 0.0 for name in MEASURES}
    found: dict[str, float] = {
        "pointing_game": float(near[evidence >= most].mean()),
        "energy": float(evidence[mask].sum(dtype=np.float64) / evidence.sum(dtype=np.float64)),
    }
    for cut in CUTS:
        named = evidence >= cut * most
        found[f"iou_{100 * cut:.0f}"] = float((named & mask).sum() / (named | mask).sum())
    found.update({f"found_{100 * match:.0f}": float(found["iou_50"] >= match) for match in MATCHES})
    return found


MEASURES = (
    "pointing_game",
    "energy",
    *(f"iou_{100 * cut:.0f}" for cut in CUTS),
    *(f"found_{100 * match:.0f}" for match in MATCHES),
)


def widened(mask: Mask, distance: float) -> Mask:
    """Add to a region what lies at most `distance` pixels from it."""
    from scipy.ndimage import distance_transform_edt

    if distance < 1:
        return mask
    return np.asarray(distance_transform_edt(~mask) <= distance)


def blob(size: Sequence[int], middle: NDArray[np.float64]) -> Map:
    """Draw a Gaussian with a quarter of each side as its width, shape `size`; `middle` is a share of each side."""
    result = np.ones(tuple(size), dtype=np.float32)
    for axis, (n, place) in enumerate(zip(size, middle, strict=True)):
        along = np.exp(-0.5 * (((np.arange(n) + 0.5) / n - place) / PRIOR_SIGMA) ** 2)
        result *= along.reshape([-1 if other == axis else 1 for other in range(len(size))]).astype(np.float32)
    return result


def _summary(images: pd.DataFrame, seed: int) -> pd.DataFrame:
    names = sorted(set(images["label"]))
    rows = []
    for label in [EVERY, *(names if len(names) > 1 else [])]:
        some = images if label == EVERY else images[images["label"] == label]
        grouped = some.drop(columns=["scan_id", "label"]).groupby("group").mean()
        for measure in MEASURES:
            own, centre = grouped[measure], grouped[f"{measure}_centre"]
            value, above = _bounded(own, seed), _bounded(own - centre, seed, least=-1.0)
            rows.append(
                {
                    "label": label,
                    "measure": measure,
                    "n_images": len(some),
                    "value": value.value,
                    "low": value.low,
                    "high": value.high,
                    "centre": float(centre.mean()),
                    "random": float(grouped[f"{measure}_random"].mean()),
                    "above_centre": above.value,
                    "above_centre_low": above.low,
                    "above_centre_high": above.high,
                }
            )
    return pd.DataFrame(rows)


def _bounded(values: pd.Series, seed: int, least: float = 0.0) -> Interval:
    """Bound a mean of values between `least` and 1, by the BCa bootstrap.

    Where all values agree, resampling shows no doubt where there is some. What then is certain is that so many units
    out of as many agree (Clopper and Pearson 1934): the rest of the units may have any value.
    """
    own = values.to_numpy(dtype=float)
    n, mean = len(own), float(own.mean())
    if n < MINIMUM_SUBJECTS:
        return Interval(mean, float("nan"), float("nan"))
    if (own == own[0]).all():
        agree = ((1 - LEVEL) / 2) ** (1 / n)
        return Interval(mean, agree * mean + (1 - agree) * least, agree * mean + (1 - agree))
    random = np.random.default_rng(seed)
    resampled = own[random.integers(0, n, (N_METRIC_RESAMPLES, n))].mean(axis=1)
    low, high = bca_bounds(mean, resampled, (own.sum() - own) / (n - 1), n_subjects=n)
    return Interval(mean, max(low, least), min(high, 1.0))
