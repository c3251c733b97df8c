"""Draw maps over the images that they are about: pictures beside their original, volumes in three planes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from neuroage.files import atomic_path
from neuroage.imaging.intensities import one_channel

SHOWN = 99.8  # percentile of a map's strength that gets the full colour: a single pixel shall not pale the rest
FAINTEST, FULL, STRONGEST = 0.08, 0.7, 0.8  # strength at which colour begins and is full; how much it then covers
TWO_SIDED, ONE_SIDED = "RdBu_r", "inferno"  # both told apart by the colour-blind; red pushes up, blue pushes down
PLANES = (("sagittal", 0), ("coronal", 1), ("axial", 2))
HEIGHT = 3.4  # of a panel, inches


def draw_map(
    image: np.ndarray,
    map_: np.ndarray,
    path: str | os.PathLike[str],
    *,
    title: str,
    unit: str,
    two_sided: bool,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    first_axis_right: bool = True,
) -> None:
    """Write a PNG of an image, and beside or below it the same image under its map.

    A volume is cut in three planes through the strongest place of the map that is not background, with the patient's
    left on the left (neurological view) and superior or anterior up.

    Args:
        image: Prepared, shape (C, H, W) or (C, I, J, K).
        map_: Shape (H, W) or (I, J, K).
        path: Of the PNG; whole or absent.
        title: Above the picture.
        unit: What the colours mean, beside the bar.
        two_sided: Show what pushes down as well; else only what pushes up.
        spacing: Of a volume's voxels, millimetres.
        first_axis_right: A volume's first axis runs to the patient's right (RAS+), not to the left (LAS+).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    colours = Colours.of(map_, two_sided)
    if map_.ndim == 2:
        panels = [("", _gray(image), map_, 1.0)]
    else:
        panels = _planes(one_channel(image), map_, spacing, first_axis_right, two_sided)
    widths = [each[1].shape[1] / each[1].shape[0] / each[3] for each in panels]
    n_rows = 1 if map_.ndim == 2 else 2
    columns = len(panels) * (3 - n_rows)
    figure = Figure(
        figsize=(HEIGHT * sum(widths) * (3 - n_rows) + 1.1, HEIGHT * n_rows + 0.5),
        facecolor="white",
        layout="constrained",
    )
    axes = figure.subplots(n_rows, columns, squeeze=False, width_ratios=widths * (3 - n_rows))
    low, high = window(image if map_.ndim == 2 else one_channel(image))
    for number, (name, picture, over, aspect) in enumerate(panels):
        both = (axes[0, 0], axes[0, 1]) if n_rows == 1 else (axes[0, number], axes[1, number])
        for panel, covered in zip(both, (False, True), strict=True):
            panel.imshow(picture, cmap="gray", vmin=low, vmax=high, aspect=aspect, interpolation="nearest")
            if covered:
                panel.imshow(colours.paint(over), aspect=aspect, interpolation="nearest")
            panel.set_axis_off()
        both[0].set_title(name, fontsize=9)
    figure.suptitle(title, fontsize=10, parse_math=False)
    bar = figure.colorbar(
        ScalarMappable(colours.norm, colours.scale), ax=axes.ravel().tolist(), fraction=0.03, pad=0.01
    )
    bar.set_label(unit, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    with atomic_path(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)


class Colours:
    """How a map's strengths become colours.

    Attributes:
        norm, scale: Of matplotlib, for the bar.
    """

    def __init__(self, limit: float, two_sided: bool) -> None:
        from matplotlib import colormaps
        from matplotlib.colors import Normalize

        self.limit = limit
        self.norm = Normalize(-limit if two_sided else 0.0, limit)
        self.scale = colormaps[TWO_SIDED if two_sided else ONE_SIDED]
        self.two_sided = two_sided

    @classmethod
    def of(cls, map_: np.ndarray, two_sided: bool) -> Colours:
        """Choose the limits for a map; one without any evidence is left without colour."""
        strength = strength_of(map_, two_sided)
        return cls(float(np.percentile(strength, SHOWN)) or float(strength.max()) or 1.0, two_sided)

    def paint(self, map_: np.ndarray) -> np.ndarray:
        """Give the colours of a map (H, W) as (H, W, 4): the stronger, the less of the image shows through."""
        painted: Any = self.scale(self.norm(map_))
        share = np.clip(strength_of(map_, self.two_sided) / self.limit, 0, 1)
        painted[..., 3] = STRONGEST * np.clip((share - FAINTEST) / (FULL - FAINTEST), 0, 1)
        return np.asarray(painted)


def strength_of(map_: np.ndarray, two_sided: bool) -> np.ndarray:
    """Give the evidence in a map: what pushes up or, where both sides count, either way."""
    return np.abs(map_) if two_sided else np.maximum(map_, 0)


def strongest_place(map_: np.ndarray, two_sided: bool) -> tuple[int, ...]:
    """Give the index of the most evidence in a map; the middle where there is none."""
    strength = strength_of(map_, two_sided)
    if not strength.max() > 0:
        return tuple(n // 2 for n in map_.shape)
    return tuple(int(index) for index in np.unravel_index(strength.argmax(), map_.shape))


def background(volume: np.ndarray) -> float:
    """Give the value around what a volume shows: the median of its outermost voxels."""
    sides = [np.take(volume, side, axis=axis).ravel() for axis in range(volume.ndim) for side in (0, -1)]
    return float(np.median(np.concatenate(sides)))


def window(picture: np.ndarray) -> tuple[float, float]:
    """Choose what is black and what is white."""
    low, high = float(picture.min()), float(np.percentile(picture, 99.5))
    return low, max(high, low + 1e-6)


def _gray(image: np.ndarray) -> np.ndarray:
    return np.asarray(image.mean(axis=0))


def _planes(
    volume: np.ndarray, map_: np.ndarray, spacing: Sequence[float], first_axis_right: bool, two_sided: bool
) -> list[tuple[str, np.ndarray, np.ndarray, float]]:
    """Cut three planes through the strongest place: name, image, map (rows from the top) and aspect."""
    place = list(strongest_place(map_ * (volume != background(volume)), two_sided))
    if not first_axis_right:
        volume, map_ = volume[::-1], map_[::-1]
        place[0] = map_.shape[0] - 1 - place[0]
    cut = []
    for name, axis in PLANES:
        across, up = (spacing[other] for other in range(3) if other != axis)
        image, over = (np.take(each, place[axis], axis=axis).T[::-1] for each in (volume, map_))
        cut.append((name, image, over, up / across))
    return cut
