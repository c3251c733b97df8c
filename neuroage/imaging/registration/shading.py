"""Take the smooth shading of a scan's coils out of what a registration looks at.

Mutual information takes one tissue that is bright in front and dark behind for two, and a pose can profit from that.
Once the template is roughly in place, its tissues tell shading from anatomy.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np

from neuroage.imaging.registration.align import Picture, Points, intensity_range, sample_levels
from neuroage.imaging.registration.mutual_information import N_LEVELS

ORDER = 3  # of the polynomial of the field's logarithm: nothing finer, or it would explain anatomy
REACH_MM = 80.0  # half of a head: places beyond take the field at its edge
DARK = 0.05  # of the brightest: what is darker is noise, and its logarithm says nothing
MOST_LOG = 0.7  # beyond a factor of two a place is not shaded but something else
POWERS = [powers for powers in product(range(ORDER + 1), repeat=3) if 1 <= sum(powers) <= ORDER]


def find_shading(points: Points, in_brain: np.ndarray, picture: Picture, matrix: np.ndarray) -> np.ndarray:
    """Fit the logarithm of the field within the brain: the coefficients of `POWERS` in the template's space."""
    low, high = intensity_range(points, picture, matrix)
    values = low + (sample_levels(points, picture, matrix) - 1) / (N_LEVELS - 4) * (high - low)
    seen = in_brain & (values > DARK * high)
    if seen.sum() < 20 * len(POWERS):
        return np.zeros(len(POWERS))
    logs, labels = np.log(values[seen]), points.labels[seen]
    usual = np.bincount(labels, logs, points.n_labels) / np.maximum(np.bincount(labels, minlength=points.n_labels), 1)
    terms = _terms(points.places_mm[seen], points.places_mm.mean(0))
    left = np.clip(logs - usual[labels], -MOST_LOG, MOST_LOG)
    # Normal equations by einsum: BLAS adds in another order on another number of cores.
    products = np.einsum("na,nb->ab", terms, terms) + 1e-6 * len(terms) * np.eye(len(POWERS))
    return np.asarray(np.linalg.solve(products, np.einsum("na,n->a", terms, left)))


def remove_shading(points: Points, coefficients: np.ndarray, picture: Picture, matrix: np.ndarray) -> Picture:
    """Divide a picture by the field."""
    to_template = np.linalg.solve(matrix, picture.affine)
    step = 4  # the field is smooth: it is worked out on every fourth voxel and repeated
    shape = picture.data.shape
    axes = [np.minimum(np.arange(0, n, step) + step / 2, n - 1) for n in shape]
    voxels = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    places = np.einsum("na,ba->nb", voxels, to_template[:3, :3]) + to_template[:3, 3]
    logs = np.einsum("na,a->n", _terms(places, points.places_mm.mean(0)), coefficients)
    field = np.exp(-logs).reshape([len(axis) for axis in axes])
    for axis, n in enumerate(shape):
        field = field.repeat(step, axis).take(np.arange(n), axis)
    return replace(picture, data=picture.data * field.astype(np.float32))


def _terms(places_mm: np.ndarray, centre_mm: np.ndarray) -> np.ndarray:
    x, y, z = np.clip((places_mm - centre_mm) / REACH_MM, -1, 1).T
    return np.stack([x**i * y**j * z**k for i, j, k in POWERS], axis=1)
