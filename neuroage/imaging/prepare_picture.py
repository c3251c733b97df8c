"""Prepare a picture: what is done to its pixels once, deterministically, before any training.

    read → gray or colours → resample onto one grid (pad, crop or stretch) → clip and scale intensities

Each picture is interpolated once, with a filter that grows as the picture shrinks, so that fine lines do not alias.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np

from neuroage.errors import DataError
from neuroage.imaging.inspect import blur_pixels, measure_picture
from neuroage.imaging.picture import read_picture
from neuroage.imaging.picture_form import Picture, luminance
from neuroage.imaging.prepare import Prepared
from neuroage.runs.recipe import PreparePicture

REDUCING_GAP = 3.0  # pictures far larger than the grid are averaged in blocks down to 3 times its size first
STEPS_VERSION = 1  # Raised whenever a step gives other numbers than before, so that stored pictures are made anew.


class Placement(NamedTuple):
    """Where a picture comes to lie on the prepared grid.

    Attributes:
        box: What is taken of the picture: first row, first column, last row, last column, in pixels of the file.
        rows, columns: Part of the prepared grid that it fills.
    """

    box: tuple[float, float, float, float]
    rows: slice
    columns: slice

    @property
    def affine(self) -> np.ndarray:
        """Index of a prepared pixel (row, column, 1) to that of the file, (3, 3)."""
        top, left, bottom, right = self.box
        down = (bottom - top) / (self.rows.stop - self.rows.start)
        across = (right - left) / (self.columns.stop - self.columns.start)
        row, column = (top + down / 2 - 0.5, left + across / 2 - 0.5)
        return np.array(
            [[down, 0, row - down * self.rows.start], [0, across, column - across * self.columns.start], [0, 0, 1]]
        )


def prepare_picture_file(path: str | os.PathLike[str], recipe: PreparePicture) -> Prepared:
    """Read a picture and prepare it; errors are those of `read_picture` and `prepare_picture`, with the file named."""
    picture = read_picture(path)
    try:
        return prepare_picture(picture, recipe)
    except DataError as error:
        raise DataError(f"{path}: {error.what}", expected=error.expected, fix=error.fix) from None


def prepare_picture(picture: Picture, recipe: PreparePicture) -> Prepared:
    """Bring a picture to the recipe's grid and intensities.

    Args:
        picture: As `read_picture` gives it, data (C, H, W).
        recipe: The `prepare` section, of kind `picture`.

    Returns:
        Data (recipe.n_channels, *recipe.size), the affine from a prepared pixel's index to the file's (rows and
        columns, (3, 3)), and the record; the same input always gives the same numbers.

    Raises:
        DataError: Every pixel has the same value, or the intensities cannot be scaled.
    """
    data = picture.data if recipe.channels == "rgb" else luminance(picture.data)
    if data.min() == data.max():
        raise DataError(f"every pixel is {data.flat[0]:g}", expected="a picture", fix="Export it again.")
    place = place_picture(picture.shape, picture.spacing_mm, recipe)
    resampled = resample_picture(data, place, recipe.size)
    record: dict[str, Any] = {
        "native_spacing_mm": [round(value, 4) for value in picture.spacing_mm],
        "native_size": list(picture.shape),
        "native_orientation": "upright",
        "orientation": "rows down, columns right",
        "stored": picture.stored,
        "notes": list(picture.notes),
        "fit": recipe.fit,
        "filled": [[place.rows.start, place.rows.stop], [place.columns.start, place.columns.stop]],
        "native": measure_picture(picture),
    }
    filled = resampled[:, place.rows, place.columns]
    record["native"]["blur_px"] = blur_pixels(luminance(filled)[0])
    scaled = scale_picture(resampled, filled, picture.full_scale, recipe, record)
    if len(scaled) < recipe.n_channels:
        scaled = np.repeat(scaled, recipe.n_channels, axis=0)
    record["mean"], record["std"] = float(scaled.mean()), float(scaled.std())
    return Prepared(np.ascontiguousarray(scaled, dtype=np.float32), place.affine, record)


def place_picture(shape: tuple[int, int], spacing_mm: tuple[float, float], recipe: PreparePicture) -> Placement:
    """Choose which part of a picture fills which part of the prepared grid, about its middle.

    Args:
        shape: Rows and columns of the file.
        spacing_mm: Their size: pixels that are not square are made so, unless the picture is stretched.
        recipe: Its `fit` and `size`.
    """
    extent = np.asarray(shape) * np.asarray(spacing_mm)
    size = np.asarray(recipe.size)
    whole = Placement((0.0, 0.0, float(shape[0]), float(shape[1])), slice(0, int(size[0])), slice(0, int(size[1])))
    if recipe.fit == "stretch":
        return whole
    scales = size / extent
    if recipe.fit == "pad":
        n_rows, n_columns = np.clip(np.round(extent * scales.min()).astype(int), 1, size).tolist()
        top, left = (size[0] - n_rows) // 2, (size[1] - n_columns) // 2
        return whole._replace(rows=slice(int(top), int(top) + n_rows), columns=slice(int(left), int(left) + n_columns))
    kept = np.minimum(size / scales.max() / np.asarray(spacing_mm), shape)
    start = (np.asarray(shape) - kept) / 2
    return whole._replace(box=(*start.tolist(), *(start + kept).tolist()))


def resample_picture(data: np.ndarray, place: Placement, size: tuple[int, int]) -> np.ndarray:
    """Resample each channel once, linearly; the filter spans all pixels that fall into one of the result.

    Args:
        data: Shape (C, H, W).
        place: Of `place_picture`.
        size: Rows and columns of the result.

    Returns:
        Shape (C, *size), float32. Around the picture lies the darkest value of its border. A picture that has the
        wanted size already is not interpolated.
    """
    from PIL import Image

    result = np.empty((len(data), *size), dtype=np.float32)
    top, left, bottom, right = place.box
    shape = (place.rows.stop - place.rows.start, place.columns.stop - place.columns.start)
    unchanged = (bottom - top, right - left) == shape and float(top).is_integer() and float(left).is_integer()
    for channel, target in zip(data, result, strict=True):
        if shape != tuple(size):
            border = (channel[0].min(), channel[-1].min(), channel[:, 0].min(), channel[:, -1].min())
            target[:] = min(border)
        if unchanged:
            target[place.rows, place.columns] = channel[int(top) : int(bottom), int(left) : int(right)]
            continue
        image = Image.fromarray(np.ascontiguousarray(channel, dtype=np.float32))
        target[place.rows, place.columns] = np.asarray(
            image.resize(
                shape[::-1], Image.Resampling.BILINEAR, box=(left, top, right, bottom), reducing_gap=REDUCING_GAP
            )
        )
    return result


def scale_picture(
    data: np.ndarray, filled: np.ndarray, full_scale: float, recipe: PreparePicture, record: dict[str, Any]
) -> np.ndarray:
    """Clip and scale intensities by the statistics of the foreground, all channels together.

    Args:
        data: Shape (C, H, W), with what was padded.
        filled: The part of it that the picture fills: what was padded has no say.
        full_scale: The largest value that the file's bits can hold.
        recipe: Foreground, percentiles and scale.
        record: Receives the foreground's share, mean and standard deviation before scaling.

    Raises:
        DataError: The foreground is empty, or has one value where two are needed.
    """
    values = filled.ravel() if recipe.foreground == "all" else filled[filled > 0]
    record["foreground_share"] = round(values.size / filled.size, 4)
    if values.size < 8:
        raise DataError("no pixel is above 0", fix="Use prepare.foreground: all.")
    if recipe.clip_percentiles is not None:
        low, high = (float(value) for value in np.percentile(values, recipe.clip_percentiles))
        record["clipped_to"] = [round(low, 4), round(high, 4)]
        # Below the foreground lies the background, which keeps its own level.
        floor = low if recipe.foreground == "all" or recipe.intensity == "percentile" else float(data.min())
        if high > low:
            data, values = np.clip(data, floor, high), np.clip(values, low, high)
    mean, std = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    record["foreground_mean"], record["foreground_std"] = mean, std
    if recipe.intensity == "range":
        return data / np.float32(full_scale)
    if recipe.intensity == "percentile":
        if high == low:
            raise DataError(
                "the clip percentiles are equal", fix="Widen prepare.clip_percentiles, or use intensity: range."
            )
        return np.clip((data - np.float32(low)) / np.float32(high - low), 0, 1)
    if recipe.intensity == "zscore":
        if std == 0:
            raise DataError("every pixel of the foreground has the same intensity", fix="Use prepare.foreground: all.")
        return (data - np.float32(mean)) / np.float32(std)
    return data
