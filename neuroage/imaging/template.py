"""Templates: how much a prepared image looks like the training images, and whether it would more when turned.

Heads lie alike, so a volume is compared with their mean. Pictures of one data set may show the same thing from several
sides, so a picture is compared with the training pictures that are nearest to it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import fft

TEMPLATE_MM = {3: 8.0, 2: 4.0}  # ventricles, face, cerebellum are still told apart; a 32nd of a picture's longer side
SHIFT_MM = {3: 24.0, 2: 0.0}  # heads of a cohort lie at most about this far from each other; see `Album` for pictures
LEFT_RIGHT = {3: 0, 2: 1}  # the axis that runs from side to side
AXES = ("left–right", "front–back", "up–down")
NEAREST = 5  # training pictures with which a picture is compared
TWINS = 0.02  # in likeness: orientations that are each other's mirror image and differ by less are one


def coarse_cube(data: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Bring a prepared image to a small cube, or square, that can be compared in any orientation.

    Args:
        data: Shape (C, *spatial); the channels of a volume are levels of rising intensity, or one.
        spacing_mm: Voxel size of the prepared image.

    Returns:
        Shape (n, n, n) or (n, n), float32, mean 0 and norm 1 over the image, 0 around it; voxels of about 8 mm for
        volumes, pixels of about a 32nd of the longer side for pictures.
    """
    from neuroage.imaging.resampling import block_mean

    n_axes = data.ndim - 1
    weights = np.arange(1, len(data) + 1) if n_axes == 3 else np.ones(len(data))
    image = np.tensordot(weights.astype(np.float32), data.astype(np.float32), axes=1)
    wanted_mm = TEMPLATE_MM[n_axes]
    factor = [max(1, min(round(wanted_mm / mm), n // 6)) for mm, n in zip(spacing_mm, image.shape, strict=True)]
    image = block_mean(image, factor)
    image = image - image.mean()
    image /= max(float(np.linalg.norm(image)), 1e-12)
    side = fft.next_fast_len(max(image.shape) + _reach(spacing_mm, factor))
    cube = np.zeros((side,) * n_axes, dtype=np.float32)
    start = [(side - n) // 2 for n in image.shape]
    cube[tuple(slice(s, s + n) for s, n in zip(start, image.shape, strict=True))] = image
    return cube


def _reach(spacing_mm: Sequence[float], factor: Sequence[int]) -> int:
    shift_mm = SHIFT_MM[len(factor)]
    voxel_mm = max(mm * f for mm, f in zip(spacing_mm, factor, strict=True))
    return max(1, round(shift_mm / voxel_mm)) if shift_mm else 0


@dataclass(frozen=True)
class Comparison:
    """How an image compares with the training images.

    Attributes:
        likeness: Correlation as it is.
        turned: By how much the best other orientation correlates better; negative: worse.
        turn: What that orientation would mean, in words.
        more: For pictures `mirrored` and `inverted`: by how much it correlates better with left and right exchanged,
            and with dark and bright exchanged.
    """

    likeness: float
    turned: float
    turn: str
    more: dict[str, float] = field(default_factory=dict)


def compare_with(cubes: np.ndarray) -> Template | Album:
    """Give what compares images with those of `coarse_cube`, shape (n_images, n, n, n) or (n_images, n, n)."""
    return Template(cubes) if cubes.ndim == 4 else Album(cubes)


class Template:
    """The mean training scan, to which others are compared in 24 orientations.

    A head is nearly its own mirror image from left to right, so orientations that differ only by that are one: whether
    left and right are exchanged cannot be told.

    Args:
        cubes: Of `coarse_cube`, shape (n_scans, n, n, n).
        reach: How many voxels of the cube a scan may be shifted.
    """

    def __init__(self, cubes: np.ndarray, reach: int = 3) -> None:
        mean = np.asarray(cubes, dtype=np.float32).mean(axis=0)
        self.mean, self.reach = mean / max(float(np.linalg.norm(mean)), 1e-12), reach
        self.orientations = [
            (order, tuple(axis for axis, flipped in zip((1, 2), flips, strict=True) if flipped))
            for order in itertools.permutations(range(3))
            for flips in itertools.product((False, True), repeat=2)
        ]
        # ⟨flip(transpose(scan)), mean⟩ = ⟨scan, transpose⁻¹(flip(mean))⟩: the template is turned, once.
        turned = [np.flip(self.mean, axes).transpose(np.argsort(order)) for order, axes in self.orientations]
        self._spectra = np.conj(fft.rfftn(np.stack(turned), axes=(1, 2, 3)))

    def compare(self, cubes: np.ndarray) -> list[Comparison]:
        """Compare scans with the mean training scan, each at its best shift.

        Args:
            cubes: Of `coarse_cube`, shape (n_scans, n, n, n).
        """
        return [self._compare_one(cube) for cube in cubes]

    def _compare_one(self, cube: np.ndarray) -> Comparison:
        n, reach = len(cube), self.reach
        maps = fft.irfftn(fft.rfftn(cube)[None] * self._spectra, s=(n, n, n), axes=(1, 2, 3))
        near = np.r_[0 : reach + 1, -reach:0]
        best = maps[np.ix_(np.arange(len(maps)), near, near, near)].max(axis=(1, 2, 3))
        other = 1 + int(np.argmax(best[1:]))
        return Comparison(float(best[0]), float(best[other] - best[0]), describe_turn(*self.orientations[other]))


def describe_turn(order: tuple[int, ...], flipped: tuple[int, ...]) -> str:
    """Say what is wrong with a scan that fits once its axes are put in `order` and `flipped`.

    Example:
        >>> describe_turn((0, 1, 2), (1,))
        'flipped front–back'
    """
    parts = []
    if order != (0, 1, 2):
        swapped = [AXES[axis] for axis in range(3) if order[axis] != axis]
        parts.append(f"stored with its axes exchanged ({' and '.join(swapped) if len(swapped) == 2 else 'all three'})")
    if flipped == (1, 2):
        parts.append("upside down and back to front")
    elif flipped:
        parts.append({1: "flipped front–back", 2: "flipped up–down"}[flipped[0]])
    return ", ".join(parts)


# What a picture is that lies right after rows and columns were exchanged (or not) and these axes then mirrored. Each
# rotation is followed by its twin, which differs by the mirror only.
TURNS = {
    "": (False, ()),
    "mirrored left–right": (False, (1,)),
    "upside down": (False, (0, 1)),
    "mirrored and upside down": (False, (0,)),
    "turned by 90° clockwise": (True, (0,)),
    "mirrored and turned by 90° clockwise": (True, (0, 1)),
    "turned by 90° anticlockwise": (True, (1,)),
    "mirrored and turned by 90° anticlockwise": (True, ()),
}


def turned_right(pictures: np.ndarray, turn: str) -> np.ndarray:
    """Turn pictures, shape (n_pictures, n, n), that are wrong as `turn` of `TURNS` says."""
    exchanged, flipped = TURNS[turn]
    pictures = pictures.transpose(0, 2, 1) if exchanged else pictures
    return np.flip(pictures, tuple(axis + 1 for axis in flipped))


class Album:
    """The training pictures, with whose nearest others are compared in 8 orientations and inverted.

    Args:
        pictures: Of `coarse_cube`, shape (n_pictures, n, n).
    """

    def __init__(self, pictures: np.ndarray) -> None:
        self.pictures = np.asarray(pictures, dtype=np.float32).reshape(len(pictures), -1)

    def compare(self, pictures: np.ndarray) -> list[Comparison]:
        """Compare pictures with the five that are nearest to each: the mean of their correlations.

        Args:
            pictures: Of `coarse_cube`, shape (n_pictures, n, n).
        """
        likeness = np.stack([self._likeness(turned_right(pictures, turn)) for turn in TURNS])
        inverted = self._likeness(-pictures)
        return [self._laid_out(column, float(other)) for column, other in zip(likeness.T, inverted, strict=True)]

    def _likeness(self, pictures: np.ndarray) -> np.ndarray:
        correlation = pictures.reshape(len(pictures), -1) @ self.pictures.T
        return np.asarray(np.sort(correlation, axis=1)[:, -NEAREST:].mean(axis=1))

    @staticmethod
    def _laid_out(likeness: np.ndarray, inverted: float) -> Comparison:
        upright = float(likeness[0])
        other = 2 + int(np.argmax(likeness[2:]))
        plain = other - other % 2  # the rotation of which it is, or has, the mirrored twin
        turn = list(TURNS)[plain if likeness[other] - likeness[plain] < TWINS else other]
        more = {"mirrored": float(likeness[1]) - upright, "inverted": inverted - upright}
        return Comparison(upright, float(likeness[other]) - upright, turn, more)


def left_right_symmetry(cube: np.ndarray, reach: int = 3) -> float:
    """Correlate an image with its own left–right mirror image, best over shifts; 1 for perfect symmetry."""
    axis = LEFT_RIGHT[cube.ndim]
    spectrum = fft.rfftn(cube)
    mirrored = fft.rfftn(np.flip(cube, axis))
    correlation = fft.irfftn(spectrum * np.conj(mirrored), s=cube.shape)
    far = np.r_[0 : 2 * reach + 1, -2 * reach : 0]
    near = [far if other == axis else far[:1] for other in range(cube.ndim)]
    return float(correlation[np.ix_(*near)].max())
