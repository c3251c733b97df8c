"""See what the network sees: original, prepared and augmented images; volumes in three planes, pictures as they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from neuroage.files import atomic_path
from neuroage.imaging.intensities import one_channel
from neuroage.imaging.prepare import Prepared
from neuroage.runs.recipe import Recipe

Augment = Callable[[torch.Tensor, Sequence[tuple[int, int]]], tuple[torch.Tensor, Any]]
Spacing = tuple[float, ...]


class Drawing(NamedTuple):
    """How images of one kind are shown.

    Attributes:
        n_panels: Panels that one image takes, one below the other.
        open: Reads and prepares a file: what the file holds (C, *spatial), the size of its voxels, and as prepared.
        draw: Draws (C, *spatial) with its spacing into `n_panels` panels, within a window of `choose_window`.
        choose_window: Darkest and brightest shown, and whatever else `draw` wants to be alike in one row.
    """

    n_panels: int
    open: Callable[[str | os.PathLike[str], Any], tuple[np.ndarray, Spacing, Prepared]]
    draw: Callable[[Sequence[Any], np.ndarray, Spacing, Any], None]
    choose_window: Callable[[np.ndarray], Any]


def preview(
    scans: Sequence[tuple[str, str | os.PathLike[str]]],
    recipe: Recipe,
    augment: Augment | None,
    path: str | os.PathLike[str],
    *,
    n_augmented: int = 3,
) -> None:
    """Draw images as they are in the file, prepared, and augmented a few times.

    Of volumes, superior is up, in axial pictures anterior; anterior is to the right of a sagittal picture. Coronal and
    axial ones show the patient's left on the left (neurological view). Sparse volumes (arteries) are shown as maximum
    projections. Pictures are shown as they are stored.

    Args:
        scans: Pairs of a title and a path.
        recipe: Its `prepare` section is applied; augmentation draws use its own seed.
        augment: As the training uses it; None draws no augmented ones.
        path: Where the PNG is written.
        n_augmented: Augmentations an image.

    Raises:
        UsageError, DataError: As reading and preparing raise them.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n_augmented = n_augmented if augment is not None else 0
    drawing = DRAWINGS[recipe.prepare.kind]
    n_columns, n_rows = 2 + n_augmented, drawing.n_panels * len(scans)
    figure = Figure(figsize=(2.2 * n_columns, 2.2 * n_rows + 0.2), facecolor="black", layout="constrained")
    panels = figure.subplots(n_rows, n_columns, squeeze=False)
    for index, (title, file) in enumerate(scans):
        original, spacing, prepared = drawing.open(file, recipe.prepare)
        shown = [("original", original, spacing), ("prepared", prepared.data, recipe.prepare.spacing)]
        if augment is not None:
            batch = torch.from_numpy(np.repeat(prepared.data[None], n_augmented, axis=0))
            augmented, _ = augment(batch, [(epoch, index) for epoch in range(n_augmented)])
            shown += [
                (f"augmented {number + 1}", scan.numpy(), recipe.prepare.spacing)
                for number, scan in enumerate(augmented)
            ]
        windows = [drawing.choose_window(image) for _, image, _ in shown[:2]]
        windows += windows[1:] * n_augmented  # augmented as prepared
        rows = panels[drawing.n_panels * index : drawing.n_panels * (index + 1)]
        for column, ((name, image, size), window) in enumerate(zip(shown, windows, strict=True)):
            drawing.draw(list(rows[:, column]), image, size, window)
            words = f"{title}\n{name}" if column == 0 else f"\n{name}"
            rows[0, column].set_title(words, color="white", fontsize=9)
    with atomic_path(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)


def _open_volume(file: str | os.PathLike[str], recipe: Any) -> tuple[np.ndarray, Spacing, Prepared]:
    from neuroage.imaging.prepare import prepare
    from neuroage.imaging.read import read

    volume = read(file, nonfinite=recipe.nonfinite)
    return volume.data, volume.spacing_mm, prepare(volume, recipe)


def _open_picture(file: str | os.PathLike[str], recipe: Any) -> tuple[np.ndarray, Spacing, Prepared]:
    from neuroage.errors import DataError
    from neuroage.imaging.picture import read_picture
    from neuroage.imaging.prepare_picture import prepare_picture

    picture = read_picture(file)
    try:
        prepared = prepare_picture(picture, recipe)
    except DataError as error:
        raise DataError(f"{file}: {error.what}", expected=error.expected, fix=error.fix) from None
    return picture.data / picture.full_scale, picture.spacing_mm, prepared


def _window_of_volume(channels: np.ndarray) -> tuple[float, float, bool]:
    """Choose black, white, and whether to project: of arteries, one slice would show next to nothing."""
    data = one_channel(channels)
    inside = data > data.min()
    sparse = bool(inside.mean() < 0.05)
    low, high = np.percentile(data[inside], [1, 99.5]) if inside.any() else (0.0, 1.0)
    black = float(data.min()) if sparse else min(float(low), float(data.min() + 0.05 * (high - data.min())))
    return black, max(float(high), black + 1e-6), sparse


def _draw_volume(
    panels: Sequence[Any], channels: np.ndarray, spacing: Spacing, window: tuple[float, float, bool]
) -> None:
    black, white, sparse = window
    data = one_channel(channels)
    for axis, panel in enumerate(panels):
        plane = data.max(axis=axis) if sparse else np.take(data, data.shape[axis] // 2, axis=axis)
        rows, columns = (spacing[other] for other in (2, 1, 0) if other != axis)
        panel.imshow(
            plane.T,
            origin="lower",
            cmap="gray",
            vmin=black,
            vmax=white,
            aspect=rows / columns,
            interpolation="nearest",
        )
        panel.set_axis_off()


def _window_of_picture(channels: np.ndarray) -> tuple[float, float]:
    low, high = float(channels.min()), float(channels.max())
    return low, max(high, low + 1e-6)


def _draw_picture(panels: Sequence[Any], channels: np.ndarray, spacing: Spacing, window: tuple[float, float]) -> None:
    black, white = window
    aspect = spacing[0] / spacing[1]
    shown = (
        channels[0] if len(channels) == 1 else np.clip((channels - black) / (white - black), 0, 1).transpose(1, 2, 0)
    )
    panels[0].imshow(shown, cmap="gray", vmin=black, vmax=white, aspect=aspect, interpolation="nearest")
    panels[0].set_axis_off()


DRAWINGS = {
    "volume": Drawing(3, _open_volume, _draw_volume, _window_of_volume),
    "picture": Drawing(1, _open_picture, _draw_picture, _window_of_picture),
}
