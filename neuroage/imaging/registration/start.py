"""Find poses from which a template may be found in a head: many rotations, and for each all translations at once.

At 16 mm a head is a few thousand voxels. The template's tissue classes and the ring around its brain are turned, and
for every place at once it is asked how much they would explain of the scan's intensities there: the correlation ratio
(Roche 1998, doi:10.1007/BFb0056301), whose sums are correlations and so products of Fourier transforms. It needs no
contrast, no centre of mass and no whole head.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import fft, ndimage

from neuroage.imaging.registration.align import Picture

GRID_MM = 16.0
N_ROTATIONS = 600  # no pose is farther than 26 degrees from one of them, most are within 15
NEAR_DEG = 90.0  # of the header's pose: three turns of 45 degrees about three axes make at most 86
USUAL_SCALE = 0.93  # MNI152 is larger than most brains (Lancaster 2007, doi:10.1002/hbm.20345)
LEAST_INSIDE = 0.4  # share of the template's brain that must fall on the head


@dataclass(frozen=True)
class Classes:
    """The template as shares of a few classes.

    Attributes:
        shares: Shape (C, I, J, K), float32.
        affine: Voxel index to millimetres.
    """

    shares: np.ndarray
    affine: np.ndarray

    @property
    def centre_mm(self) -> np.ndarray:
        """Middle of all classes together."""
        weights = self.shares.sum(0)
        voxel = np.array(ndimage.center_of_mass(weights))
        return np.asarray(self.affine[:3, :3] @ voxel + self.affine[:3, 3])


@dataclass(frozen=True)
class Start:
    """One pose and its score at 16 mm: nats, times the share of the template on the head."""

    matrix: np.ndarray
    score: float


def find_starts(head: Picture, classes: Classes, *, near_header: bool = True) -> list[Start]:
    """Score rotations and translations of a template in a head.

    Args:
        head: At about 4 mm, with its mask.
        classes: The template.
        near_header: Only rotations within 90 degrees of the pose that the header claims; otherwise only the others.

    Returns:
        The best translation for each rotation, best first.
    """
    axes, _, right = np.linalg.svd(head.affine[:3, :3])
    axes = axes @ right
    values, weights, origin = _sample_head(head, axes)
    reach = int(np.ceil(_radius_mm(classes) / GRID_MM))
    n_template = 2 * reach + 1
    size = [fft.next_fast_len(n + n_template - 1, real=True) for n in values.shape]
    spectra = [fft.rfftn(part, size) for part in (weights, weights * values, weights * values**2)]
    starts = []
    for turn in rotations():
        angle = np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))
        if (angle <= NEAR_DEG) != near_header:
            continue
        shares = _turn_template(classes, axes.T @ turn * USUAL_SCALE, reach)
        score, where = _best_translation(spectra, shares, size)
        where = np.where(where < values.shape, where, where - size)  # the end of a cycle stands for shifts below 0
        centre = origin + axes @ (GRID_MM * (where + reach))
        matrix = np.eye(4)
        matrix[:3, :3] = turn * USUAL_SCALE
        matrix[:3, 3] = centre - matrix[:3, :3] @ classes.centre_mm
        starts.append(Start(matrix, score))
    return sorted(starts, key=lambda start: -start.score)


@lru_cache(maxsize=2)
def rotations(n: int = N_ROTATIONS) -> tuple[np.ndarray, ...]:
    """Give rotations spread evenly over all there are, none first (Alexa 2022, doi:10.1109/CVPR52688.2022.00811)."""
    steps = (np.arange(n) + 0.5) / n
    alpha, beta = 2 * np.pi * n * steps / np.sqrt(2), 2 * np.pi * n * steps / 1.533751168755204288118041
    inner, outer = np.sqrt(steps), np.sqrt(1 - steps)
    x, y, z, w = inner * np.sin(alpha), inner * np.cos(alpha), outer * np.sin(beta), outer * np.cos(beta)
    matrices = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    return (np.eye(3), *np.moveaxis(matrices, -1, 0))


def _sample_head(head: Picture, axes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give values (mean 0, spread 1 in the head), weights 0 to 1 and the first voxel's place, on the 16 mm grid."""
    spacing = np.linalg.norm(head.affine[:3, :3], axis=0)
    sigma = np.sqrt(np.maximum((GRID_MM / 2) ** 2 - (spacing / 2) ** 2, 0)) / spacing
    mask = head.mask.astype(np.float32)
    low, high = np.quantile(head.data[head.mask > 0], [0.01, 0.98])
    data = np.clip(head.data, low, max(high, low + 1e-6))
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in head.data.shape], indexing="ij"), -1).reshape(-1, 3)
    along = (corners @ head.affine[:3, :3].T + head.affine[:3, 3]) @ axes
    first, n = along.min(0), np.maximum(np.ceil((along.max(0) - along.min(0)) / GRID_MM).astype(int), 1)
    grid = np.stack(np.meshgrid(*[np.arange(m) + 0.5 for m in n], indexing="ij"), -1).reshape(-1, 3) * GRID_MM + first
    grid = np.einsum("na,ba->nb", grid, axes) - head.affine[:3, 3]  # BLAS may differ with the number of cores
    voxels = np.einsum("ab,nb->an", np.linalg.inv(head.affine[:3, :3]), grid)
    smooth = [ndimage.gaussian_filter(part, sigma, mode="constant") for part in (mask, mask * data)]
    weights, sums = (ndimage.map_coordinates(part, voxels, order=1).reshape(n) for part in smooth)
    values = sums / np.maximum(weights, 1e-3)
    mean = (weights * values).sum() / weights.sum()
    spread = np.sqrt((weights * (values - mean) ** 2).sum() / weights.sum())
    return ((values - mean) / max(float(spread), 1e-6)).astype(np.float32), weights, axes @ (first + GRID_MM / 2)


def _radius_mm(classes: Classes) -> float:
    filled = np.argwhere(classes.shares.sum(0) > 0.5) @ classes.affine[:3, :3].T + classes.affine[:3, 3]
    return float(np.linalg.norm(filled - classes.centre_mm, axis=1).max()) * USUAL_SCALE


def _turn_template(classes: Classes, turn: np.ndarray, reach: int) -> np.ndarray:
    """Give the classes on the grid of the head, (C, n, n, n), turned about their middle."""
    steps = (np.arange(2 * reach + 1) - reach) * GRID_MM
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij")).reshape(3, -1)
    to_voxel = np.linalg.inv(classes.affine[:3, :3])
    voxels = np.einsum("ab,bn->an", to_voxel @ np.linalg.inv(turn), grid)
    voxels += (to_voxel @ (classes.centre_mm - classes.affine[:3, 3]))[:, None]
    shape = (2 * reach + 1,) * 3
    return np.stack([ndimage.map_coordinates(part, voxels, order=1).reshape(shape) for part in classes.shares])


def _best_translation(spectra: list[np.ndarray], shares: np.ndarray, size: list[int]) -> tuple[float, np.ndarray]:
    """Score all translations by the information that the classes have on the intensities; give the best."""
    turned = np.conj(fft.rfftn(shares, size, axes=(1, 2, 3)))
    counts = fft.irfftn(turned * spectra[0], size, axes=(1, 2, 3))
    sums = fft.irfftn(turned * spectra[1], size, axes=(1, 2, 3))
    squares = fft.irfftn(turned.sum(0) * spectra[2], size)
    counts = np.maximum(counts, 1e-3)
    count = counts.sum(0)
    mean_square = sums.sum(0) ** 2 / count
    total = squares - mean_square
    explained = (sums**2 / counts).sum(0) - mean_square
    ratio = np.clip(explained / np.maximum(total, 1e-3), 0, 0.999)
    inside = count / shares.sum()
    score = np.where(inside > LEAST_INSIDE, -0.5 * inside * np.log1p(-ratio), -1)
    where = np.unravel_index(int(np.argmax(score)), score.shape)
    return float(score[where]), np.array(where)
