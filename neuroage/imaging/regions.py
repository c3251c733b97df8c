"""Regions that experts marked, on the grid of prepared images: boxes in pixels or millimetres, and label volumes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from neuroage.errors import DataError

IN_PICTURE = ("x", "y", "width", "height", "image_width", "image_height")
IN_VOLUME = ("x", "y", "z", "width", "depth", "height")


def mask_of_boxes(
    boxes: pd.DataFrame, size: Sequence[int], affine: np.ndarray, native_size: Sequence[int] | None = None
) -> np.ndarray:
    """Give the union of boxes of one scan on its prepared grid.

    Args:
        boxes: Rows of one scan. In a picture x, y (upper left corner), width and height are pixels of an image of
            image_width × image_height; in a volume x, y, z (smallest values), width, depth and height are millimetres
            in the scan's own space along left–right, back–front and bottom–top.
        size: Of the prepared grid.
        affine: Prepared index to millimetres, (4, 4), or to row and column of a picture's file, (3, 3).
        native_size: Rows and columns of a picture's file, where boxes may be of a larger original.

    Returns:
        Boolean, shape `size`: pixels whose middle lies in a box; the nearest one where a box holds none. What lies
        outside of the prepared image is left out.

    Raises:
        DataError: A column is missing.
    """
    needed = IN_PICTURE if len(size) == 2 else IN_VOLUME
    missing = [column for column in needed if column not in boxes.columns]
    if missing:
        raise DataError(f"boxes lack the column {missing[0]!r}", expected="columns " + ", ".join(needed))
    index = np.indices(tuple(size)).reshape(len(size), -1)
    places = affine[:-1, :-1] @ index + affine[:-1, -1:]
    mask = np.zeros(index.shape[1], dtype=bool)
    for box in boxes[list(needed)].astype(float).to_dict("records"):
        low, extent = _in_pixels(box, native_size) if len(size) == 2 else _in_millimetres(box)
        inside = ((places >= low) & (places < low + extent)).all(axis=0)
        if not inside.any():
            middle = np.linalg.solve(affine[:-1, :-1], low + extent / 2 - affine[:-1, -1:])[:, 0]
            nearest = np.round(middle).astype(int)
            if ((nearest >= 0) & (nearest < np.asarray(size))).all():
                inside[np.ravel_multi_index(tuple(nearest), tuple(size))] = True
        mask |= inside
    return mask.reshape(tuple(size))


def _in_pixels(box: Mapping[Any, float], native_size: Sequence[int] | None) -> tuple[np.ndarray, np.ndarray]:
    """Give the first row and column and the extent in the file's pixels, whose middles have whole numbers."""
    rows, columns = native_size or (box["image_height"], box["image_width"])
    finer = np.array([[rows / box["image_height"]], [columns / box["image_width"]]])
    low, extent = np.array([[box["y"]], [box["x"]]]), np.array([[box["height"]], [box["width"]]])
    return low * finer - 0.5, extent * finer


def _in_millimetres(box: Mapping[Any, float]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([[box["x"]], [box["y"]], [box["z"]]]), np.array([[box["width"]], [box["depth"]], [box["height"]]])


def mask_of_volume(path: str | os.PathLike[str], size: Sequence[int], affine: np.ndarray) -> np.ndarray:
    """Bring a label volume in the scan's own space to its prepared grid: a voxel takes the label at its middle.

    Args:
        path: The file, as `read` takes it; above 0 is marked.
        size: Of the prepared grid.
        affine: Voxel index to millimetres of the prepared volume.
    """
    from scipy.ndimage import map_coordinates

    from neuroage.imaging.read import read

    volume = read(path)
    index = np.indices(tuple(size)).reshape(3, -1)
    to_native = np.linalg.solve(volume.affine, affine)
    native = to_native[:3, :3] @ index + to_native[:3, 3:]
    marked = (volume.data[0] > 0).astype(np.float32)
    return np.asarray(map_coordinates(marked, native, order=0, mode="constant").reshape(tuple(size)) > 0)
