"""Intensities: standardised, clipped, scaled, reduced to a few levels."""

from __future__ import annotations

from typing import Any

import numpy as np

from neuroage.errors import DataError
from neuroage.imaging.histogram import foreground_of, standardise_histogram
from neuroage.runs.recipe import Binning, Prepare


def scale_intensities(
    data: np.ndarray, recipe: Prepare, record: dict[str, Any], within: np.ndarray | None = None
) -> np.ndarray:
    """Standardise the histogram, clip and scale intensities by the statistics of the foreground.

    Args:
        data: Shape (I, J, K).
        recipe: Which landmarks, foreground, percentiles and scale.
        record: Receives foreground share, mean and standard deviation before scaling.
        within: Voxels that the statistics are taken over, bool (I, J, K); all when None.

    Raises:
        DataError: The foreground is empty or constant, or there is no histogram to standardise.
    """
    if recipe.histogram is not None:
        data = standardise_histogram(data, recipe.histogram, record, within)
    chosen = data if within is None else data[within]
    mask = foreground_of(chosen, recipe.foreground)
    values = chosen[mask]
    record["foreground_share"] = round(float(mask.mean()), 4)
    if values.size < 8 or (
        recipe.intensity != "none" and not recipe.labels and values.min() == values.max() == data.min()
    ):
        raise DataError("the foreground is empty after cropping", fix="Look at the scan with `neuroage preview`.")
    low, high = (
        np.percentile(values, recipe.clip_percentiles) if recipe.clip_percentiles else (values.min(), values.max())
    )
    low, high = float(low), float(high)
    if recipe.clip_percentiles and high > low:
        # Below the foreground lies the background, which keeps its own level; only the foreground's extremes are
        # outliers.
        floor = low if recipe.foreground == "all" else float(data.min())
        data, values = np.clip(data, floor, high), np.clip(values, low, high)
    mean, std = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    record["foreground_mean"], record["foreground_std"] = mean, std
    if recipe.intensity == "zscore":
        if std == 0:
            raise DataError(
                "every foreground voxel has the same intensity",
                fix="For label maps set prepare.labels and intensity: none.",
            )
        return (data - mean) / std
    if recipe.intensity == "mean":
        return data / mean
    if recipe.intensity == "percentile":
        if high == low:
            raise DataError(
                "the clip percentiles are equal", fix="Widen prepare.clip_percentiles, or use intensity: none."
            )
        return np.clip((data - low) / (high - low), 0, 1) if recipe.foreground == "all" else np.clip(data / high, 0, 1)
    return data


def bin_levels(data: np.ndarray, recipe: Binning) -> np.ndarray:
    """Reduce intensities to a few levels, numbered evenly from 0 to 1.

    Args:
        data: Any shape.
        recipe: The method, the number of levels or where to split.

    Returns:
        Same shape, float32 values in {0, 1/(n−1), …, 1}.
    """
    if recipe.method in ("threshold", "percentile", "otsu"):
        threshold = {
            "threshold": lambda: recipe.at,
            "percentile": lambda: np.percentile(data, float(recipe.at or 0)),
            "otsu": lambda: otsu_threshold(data),
        }[recipe.method]()
        return (data > float(threshold)).astype(np.float32)  # type: ignore[arg-type]
    n = recipe.levels
    if recipe.method == "quantile":
        edges = np.unique(np.quantile(data, np.arange(1, n) / n))
        levels = np.searchsorted(edges, data, side="left").astype(np.float32)
    else:
        low, high = float(data.min()), float(data.max())
        levels = np.minimum(np.floor((data - low) * (n / max(high - low, 1e-12))), n - 1).astype(np.float32)
    return levels / np.float32(n - 1)


def otsu_threshold(data: np.ndarray) -> float:
    """Give the threshold that best parts two classes of intensity (Otsu 1979, doi:10.1109/TSMC.1979.4310076)."""
    counts, edges = np.histogram(data, bins=256)
    middles = (edges[:-1] + edges[1:]) / 2
    weight = np.cumsum(counts).astype(np.float64)
    total = np.cumsum(counts * middles)
    below, above = weight[:-1], weight[-1] - weight[:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (total[:-1] / below - (total[-1] - total[:-1]) / above) ** 2
    best = np.nan_to_num(between)
    plateau = np.flatnonzero(
        best == best.max()
    )  # empty bins between the classes are all equally good: take their middle
    return float(edges[1:-1][plateau].mean())


def one_channel(data: np.ndarray) -> np.ndarray:
    """Show channels (C, I, J, K) as one volume (I, J, K): interval number times share, so that fluid is dark again."""
    if len(data) == 1:
        return data[0]
    return np.einsum("cijk,c->ijk", data, np.arange(1, len(data) + 1) / len(data))
