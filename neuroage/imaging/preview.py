"""See what the network sees: original, prepared and augmented volumes in three planes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from neuroage.files import atomic_path
from neuroage.imaging.prepare import prepare
from neuroage.imaging.read import read
from neuroage.runs.recipe import Recipe

PLANES = ("sagittal", "coronal", "axial")
Augment = Callable[[torch.Tensor, Sequence[tuple[int, int]]], tuple[torch.Tensor, Any]]


def preview(
    scans: Sequence[tuple[str, str | os.PathLike[str]]],
    recipe: Recipe,
    augment: Augment | None,
    path: str | os.PathLike[str],
    *,
    n_augmented: int = 3,
) -> None:
    """Draw scans as they are in the file, prepared, and augmented a few times.

    Superior is up, in axial pictures anterior; anterior is to the right of a sagittal picture. Coronal and axial ones
    show the patient's left on the left (neurological view). Sparse volumes (arteries) are shown as maximum projections.

    Args:
        scans: Pairs of a title and a path.
        recipe: Its `prepare` section is applied; augmentation draws use its own seed.
        augment: As the training uses it; None draws no augmented rows.
        path: Where the PNG is written.
        n_augmented: Augmentations a scan.

    Raises:
        UsageError, DataError: As `read` and `prepare` raise them.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n_augmented = n_augmented if augment is not None else 0
    n_rows = 2 + n_augmented
    figure = Figure(figsize=(2.2 * n_rows, 6.6 * len(scans) + 0.2), facecolor="black", layout="constrained")
    panels = figure.subplots(3 * len(scans), n_rows, squeeze=False)
    for index, (title, file) in enumerate(scans):
        volume = read(file, nonfinite=recipe.prepare.nonfinite)
        prepared = prepare(volume, recipe.prepare)
        shown = [
            ("original", volume.data[0], volume.spacing_mm),
            ("prepared", one_channel(prepared.data), recipe.prepare.spacing),
        ]
        if augment is not None:
            batch = torch.from_numpy(prepared.data)[None].expand(n_augmented, -1, -1, -1, -1).contiguous()
            augmented, _ = augment(batch, [(epoch, index) for epoch in range(n_augmented)])
            shown += [
                (f"augmented {number + 1}", one_channel(scan.numpy()), recipe.prepare.spacing)
                for number, scan in enumerate(augmented)
            ]
        windows = [_window(shown[0][1])] + [_window(shown[1][1])] * (len(shown) - 1)  # augmented as prepared
        for column, ((name, data, spacing), window) in enumerate(zip(shown, windows, strict=True)):
            _draw(
                panels[3 * index : 3 * index + 3, column],
                data,
                spacing,
                window,
                f"{title}\n{name}" if column == 0 else f"\n{name}",
            )
    with atomic_path(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)


def one_channel(data: np.ndarray) -> np.ndarray:
    """Show channels (C, I, J, K) as one picture (I, J, K): interval number times share, so that fluid is dark again."""
    if len(data) == 1:
        return data[0]
    return np.einsum("cijk,c->ijk", data, np.arange(1, len(data) + 1) / len(data))


def _window(data: np.ndarray) -> tuple[float, float, bool]:
    """Choose black, white, and whether to project: of arteries, one slice would show next to nothing."""
    inside = data > data.min()
    sparse = bool(inside.mean() < 0.05)
    low, high = np.percentile(data[inside], [1, 99.5]) if inside.any() else (0.0, 1.0)
    black = float(data.min()) if sparse else min(float(low), float(data.min() + 0.05 * (high - data.min())))
    return black, max(float(high), black + 1e-6), sparse


def _draw(
    panels: np.ndarray,
    data: np.ndarray,
    spacing: tuple[float, float, float],
    window: tuple[float, float, bool],
    title: str,
) -> None:
    black, white, sparse = window
    for axis, panel in enumerate(panels):
        picture = data.max(axis=axis) if sparse else np.take(data, data.shape[axis] // 2, axis=axis)
        rows, columns = (spacing[other] for other in (2, 1, 0) if other != axis)
        panel.imshow(
            picture.T,
            origin="lower",
            cmap="gray",
            vmin=black,
            vmax=white,
            aspect=rows / columns,
            interpolation="nearest",
        )
        panel.set_axis_off()
    panels[0].set_title(title, color="white", fontsize=9)
