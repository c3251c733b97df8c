"""Bring two volumes together from a start that is roughly right: mutual information, from coarse to fine.

It asks nothing of the contrasts and works where the one covers only a part of the other. Neither volume is resampled:
points of the fixed one are read off the moving one wherever the transform takes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numba import njit
from scipy import linalg, ndimage

from neuroage.errors import UsageError
from neuroage.imaging.read import Volume
from neuroage.imaging.registration.mutual_information import N_LEVELS, climb, count, information, sample

KINDS = ("rigid", "similarity", "affine")
N_LABELS = 24  # levels of the fixed volume's intensity
MOST_STEPS = 30
STILL_MM = 0.01  # a step that moves the points by less ends a level; a tenth of what matters to anyone
LONGEST_MM = 25.0  # of one step: two or three voxels of the coarsest level
LEAST_INSIDE = 0.05  # share of the points that must fall into the moving volume


@dataclass(frozen=True)
class Points:
    """What is looked for: places of the fixed volume and what they look like there.

    Attributes:
        places_mm: Shape (N, 3), float64.
        labels: Level of the fixed volume's intensity, (N,), int64.
        n_labels: Number of such levels.
    """

    places_mm: np.ndarray
    labels: np.ndarray
    n_labels: int


@dataclass(frozen=True)
class Picture:
    """Where it is looked for: the moving volume on coarse voxels.

    Attributes:
        data: Voxels (I, J, K), float32, K fastest.
        mask: Voxels that count, uint8; of size 0 where all count.
        affine: Voxel index to millimetres.
    """

    data: np.ndarray
    mask: np.ndarray
    affine: np.ndarray


@dataclass(frozen=True)
class Fit:
    """One transform and how well it fits.

    Attributes:
        matrix: Fixed millimetres to moving millimetres, (4, 4).
        information: Mutual information in nats.
        inside: Share of the points that lie within the moving volume.
        n_steps: Steps taken.
    """

    matrix: np.ndarray
    information: float
    inside: float
    n_steps: int = 0

    @property
    def score(self) -> float:
        """Information times the share of points that it stems from, so that leaving the volume never pays."""
        return self.information * self.inside


def align(
    fixed: Volume,
    moving: Volume,
    *,
    kind: str = "rigid",
    start: np.ndarray | None = None,
    fixed_mask: np.ndarray | None = None,
    moving_mask: np.ndarray | None = None,
    spacings_mm: Sequence[float] = (4, 2),
) -> tuple[np.ndarray, dict[str, Any]]:
    """Find where a moving volume shows what a fixed one shows, near a start.

    The start may be wrong by about 20 degrees and 20 mm where the first spacing is 8 mm, by half of that at 4 mm.
    The same volumes give the same numbers on any number of cores.

    Args:
        fixed: Its places are looked for; of the two take the one that covers less.
        moving: It is looked in.
        kind: "rigid" (6 degrees of freedom), "similarity" (and one scale) or "affine" (12).
        start: Fixed millimetres to moving millimetres, (4, 4); None for the same place in both.
        fixed_mask: Voxels of `fixed` whose places are looked for, bool (I, J, K); None for all.
        moving_mask: Voxels of `moving` that may be looked at; None for all.
        spacings_mm: Of the levels, coarse to fine.

    Returns:
        Matrix (4, 4), fixed millimetres to moving millimetres, and a record: `information` (nats), `inside` (share of
        the fixed places that lie within the moving volume), `n_steps`.

    Raises:
        UsageError: `kind` is unknown.
    """
    if kind not in KINDS:
        raise UsageError(f"kind = {kind!r}", expected=f"one of {', '.join(KINDS)}")
    fit = Fit(np.eye(4) if start is None else np.asarray(start, dtype=np.float64), 0.0, 0.0)
    n_steps = 0
    for spacing in spacings_mm:
        points, picture = draw_points(fixed, fixed_mask, spacing), coarsen(moving, moving_mask, spacing)
        fit = refine(points, picture, fit.matrix, kind)
        n_steps += fit.n_steps
    record = {"information": round(fit.information, 5), "inside": round(fit.inside, 4), "n_steps": n_steps}
    return fit.matrix, record


def coarsen(volume: Volume, mask: np.ndarray | None, spacing_mm: float) -> Picture:
    """Average a volume in blocks to about a spacing; axes that are coarser already stay as they are."""
    factors = np.maximum(1, np.rint(spacing_mm / np.array(volume.spacing_mm))).astype(int)
    factors = np.minimum(factors, volume.shape)
    data = _block_mean(volume.data[0], factors)
    affine = volume.affine @ np.diag([*factors, 1.0])
    affine[:3, 3] = (volume.affine @ [*(factors - 1) / 2, 1.0])[:3]
    coarse = np.zeros((0, 0, 0), np.uint8)
    if mask is not None:
        coarse = (_block_mean(mask, factors) > 0.5).astype(np.uint8)
    return Picture(data, coarse, affine)


def draw_points(volume: Volume, mask: np.ndarray | None, spacing_mm: float) -> Points:
    """Draw places at about a spacing, a little off the grid, and label them by intensity.

    Places on a grid would fall onto voxels of the moving volume all at once, and information would jump there
    (Pluim 2000, doi:10.1006/cviu.2000.0858); the same places are drawn every time.
    """
    picture = coarsen(volume, mask, spacing_mm)
    spacing = np.linalg.norm(picture.affine[:3, :3], axis=0)
    counts = [max(1, round((n - 1) * step / spacing_mm)) for n, step in zip(picture.data.shape, spacing, strict=True)]
    grid = np.stack(np.meshgrid(*[np.arange(n) + 0.5 for n in counts], indexing="ij"), -1).reshape(-1, 3)
    grid += np.random.default_rng(0).uniform(-0.4, 0.4, grid.shape)
    voxels = grid * ((np.array(picture.data.shape) - 1) / counts)
    if picture.mask.size:
        voxels = voxels[picture.mask[tuple(np.rint(voxels).astype(int).T)] > 0]
    values = ndimage.map_coordinates(picture.data, voxels.T, order=1, mode="nearest")
    low, high = np.quantile(values, [0.005, 0.995]) if values.size else (0.0, 1.0)
    share = np.clip((values - low) / max(high - low, 1e-12), 0, 1 - 1e-9)
    n_labels = N_LABELS if len(values) > 20_000 else N_LABELS // 2  # so that every level is seen often
    labels = (share * n_labels).astype(np.int64)
    places = np.einsum("na,ba->nb", voxels, picture.affine[:3, :3])  # BLAS may differ with the number of cores
    return Points(places + picture.affine[:3, 3], labels, n_labels)


def refine(points: Points, picture: Picture, start: np.ndarray, kind: str, *, most_steps: int = MOST_STEPS) -> Fit:
    """Climb to the nearest maximum of mutual information (BFGS).

    The curvature it starts from is that of a Gaussian likelihood, products of the picture's slopes over its variance
    within a label. It knows the proportions of the motions to one another; how steep the hill is shows on the way.
    """
    places = points.places_mm
    centre, radius = places.mean(0), float(np.sqrt(places.var(0).sum()))
    basis = _motions(kind)
    limits = intensity_range(points, picture, start)
    levels, slopes = np.empty(len(places)), np.empty((len(places), 3))
    fit, joint = _measure(points, picture, start, limits, levels, slopes)
    if fit.inside < LEAST_INSIDE:
        return fit
    slope, products = _slope(points, joint, levels, slopes, centre, radius)
    slope, curvature = basis.T @ slope, basis.T @ products @ basis / _variance_within(joint)
    # NumPy, not SciPy, whose inverse differs in its last digit with the number of cores
    inverse = np.linalg.inv(curvature + np.diag(0.001 * np.diag(curvature) + 1e-12))
    for n_steps in range(1, most_steps + 1):
        motion = inverse @ slope
        motion *= min(1.0, LONGEST_MM / max(float(np.linalg.norm(motion)), 1e-12))
        while True:
            matrix = fit.matrix @ _as_matrix(basis @ motion, centre, radius)
            tried, joint = _measure(points, picture, matrix, limits, levels, slopes)
            if tried.score > fit.score or np.linalg.norm(motion) < STILL_MM:
                break
            motion = motion / 3
        if tried.score <= fit.score:
            break
        fit = replace(tried, n_steps=n_steps)
        if np.linalg.norm(motion) < STILL_MM:
            break
        before, slope = slope, basis.T @ _slope(points, joint, levels, slopes, centre, radius)[0]
        inverse = _learn_curvature(inverse, motion, before - slope, first=n_steps == 1)
    return fit


def _slope(
    points: Points, joint: np.ndarray, levels: np.ndarray, slopes: np.ndarray, centre: np.ndarray, radius: float
) -> tuple[np.ndarray, np.ndarray]:
    per_level = np.maximum(joint.sum(0, keepdims=True), 1e-12)
    log_share = np.log(np.maximum(joint, 1e-9) / per_level)
    slope, products = climb(levels, slopes, points.labels, log_share, points.places_mm, centre, radius)
    return slope, products


def _learn_curvature(inverse: np.ndarray, motion: np.ndarray, change: np.ndarray, *, first: bool) -> np.ndarray:
    """Update the inverse curvature from how a motion changed the slope (Nocedal & Wright 2006, equation 6.17)."""
    product = float(motion @ change)
    if product <= 1e-12:  # the hill still steepens: go further next time
        return inverse * 3
    if first:
        inverse = inverse * (product / float(change @ inverse @ change))
    left = np.eye(len(motion)) - np.outer(motion, change) / product
    return np.asarray(left @ inverse @ left.T + np.outer(motion, motion) / product)


def intensity_range(points: Points, picture: Picture, matrix: np.ndarray) -> tuple[float, float]:
    """Give the range of the picture's intensities where the points fall, without its few extremes."""
    low, high = float(picture.data.min()), float(picture.data.max())
    high = high if high > low else low + 1
    levels = _levels(points, picture, matrix, (low, high))
    inside = levels[~np.isnan(levels)]
    if not inside.size:
        return low, high
    first, last = np.quantile(inside, [0.005, 0.995])
    if last - first < 1e-9:
        return low, high
    unit = (high - low) / (N_LEVELS - 4)
    return low + float(first - 1) * unit, low + float(last - 1) * unit


def sample_levels(points: Points, picture: Picture, matrix: np.ndarray) -> np.ndarray:
    """Give the level of the picture's intensity at each point, (N,), 1 to 29; NaN outside."""
    return _levels(points, picture, matrix, intensity_range(points, picture, matrix))


def _levels(points: Points, picture: Picture, matrix: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    levels, slopes = np.empty(len(points.places_mm)), np.empty((len(points.places_mm), 3))
    _measure(points, picture, matrix, limits, levels, slopes)
    return levels


def _measure(
    points: Points,
    picture: Picture,
    matrix: np.ndarray,
    limits: tuple[float, float],
    levels: np.ndarray,
    slopes: np.ndarray,
) -> tuple[Fit, np.ndarray]:
    to_voxel = np.linalg.solve(picture.affine, matrix)[:3]
    n_inside = sample(picture.data, picture.mask, to_voxel, points.places_mm, *limits, levels, slopes)
    joint = count(levels, points.labels, points.n_labels)
    return Fit(matrix, information(joint), n_inside / len(levels)), joint


def _variance_within(joint: np.ndarray) -> float:
    """Give the variance of the level within a label."""
    levels, per_label = np.arange(N_LEVELS), np.maximum(joint.sum(1), 1e-12)
    means = joint @ levels / per_label
    return max(float(joint.sum(0) @ levels**2 - per_label @ means**2), 0.05)


def _motions(kind: str) -> np.ndarray:
    """Give the motions that a kind allows as columns of twelve numbers; see `climb`."""
    if kind == "affine":
        return np.eye(12)
    columns = []
    for a, b in ((2, 1), (0, 2), (1, 0)):  # rotations about x, y, z
        turn = np.zeros((3, 4))
        turn[a, b], turn[b, a] = 1, -1
        columns.append(turn)
    if kind == "similarity":
        columns.append(np.eye(3, 4))
    for axis in range(3):
        shift = np.zeros((3, 4))
        shift[axis, 3] = 1
        columns.append(shift)
    return np.stack([column.ravel() for column in columns], axis=1)


def _as_matrix(numbers: np.ndarray, centre: np.ndarray, radius: float) -> np.ndarray:
    """Give a motion about a centre as a matrix (4, 4); see `climb` for its twelve numbers."""
    numbers = numbers.reshape(3, 4)
    matrix = np.eye(4)
    matrix[:3, :3] = linalg.expm(numbers[:, :3] / radius)
    matrix[:3, 3] = centre + numbers[:, 3] - matrix[:3, :3] @ centre
    return matrix


def _block_mean(data: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Average blocks, reading the voxels in the order in which they lie in memory."""
    if (factors == 1).all():
        return np.ascontiguousarray(data, dtype=np.float32)
    if data.strides[0] < data.strides[2]:
        mean = _mean_of_blocks(data.transpose(2, 1, 0), *(int(n) for n in factors[::-1])).transpose(2, 1, 0)
    else:
        mean = _mean_of_blocks(data, *(int(n) for n in factors))
    return np.ascontiguousarray(mean)


@njit(nogil=True, cache=True)
def _mean_of_blocks(data, f_i, f_j, f_k):
    n_i, n_j, n_k = data.shape[0] // f_i, data.shape[1] // f_j, data.shape[2] // f_k
    mean, share = np.zeros((n_i, n_j, n_k), np.float32), np.float32(1 / (f_i * f_j * f_k))
    for i in range(n_i * f_i):
        for j in range(n_j * f_j):
            line = mean[i // f_i, j // f_j]
            for k in range(n_k):
                total = np.float32(0)
                for step in range(f_k):
                    total += data[i, j, k * f_k + step]
                line[k] += total * share
    return mean
