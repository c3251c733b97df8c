"""Mutual information between labelled points and a picture, with its slope: compiled, in one order, so always the same.

The density of the picture's intensities is estimated with cubic B-splines (Mattes 2003, doi:10.1109/TMI.2003.809072).
One thread does it all: at the spacings used here an evaluation takes milliseconds, and the sums keep their order
whatever the number of cores.
"""

from __future__ import annotations

import numpy as np
from numba import njit

N_LEVELS = 32
"""Levels of the picture's intensity, of which a cubic B-spline needs two at each end for itself."""
FAST = {"contract", "nsz", "arcp"}  # fused multiply-add; NaN keeps its meaning, it marks what lies outside


@njit(nogil=True, fastmath=FAST, cache=True)
def sample(data, mask, to_voxel, points, low, high, levels, slopes):
    """Read a picture at points, by linear interpolation.

    Args:
        data: Voxels (I, J, K), float32.
        mask: Voxels that count, uint8 of that shape; of size 0 where all count.
        to_voxel: Matrix (3, 4) that takes the points to voxel indices, float64.
        points: Shape (N, 3), float64.
        low: Intensity of the lowest level.
        high: Intensity of the highest level.
        levels: Filled: level of intensity (N,), 1 to N_LEVELS - 3; NaN outside of the picture or its mask.
        slopes: Filled: change of the level with the place, per unit of the points' space, (N, 3).

    Returns:
        Number of points inside.
    """
    n_i, n_j, n_k = data.shape
    scale, n_inside = (N_LEVELS - 4) / (high - low), 0
    for n in range(points.shape[0]):
        x, y, z = points[n, 0], points[n, 1], points[n, 2]
        u = to_voxel[0, 0] * x + to_voxel[0, 1] * y + to_voxel[0, 2] * z + to_voxel[0, 3]
        v = to_voxel[1, 0] * x + to_voxel[1, 1] * y + to_voxel[1, 2] * z + to_voxel[1, 3]
        w = to_voxel[2, 0] * x + to_voxel[2, 1] * y + to_voxel[2, 2] * z + to_voxel[2, 3]
        levels[n] = np.nan
        if not (0 <= u < n_i - 1 and 0 <= v < n_j - 1 and 0 <= w < n_k - 1):
            continue
        i, j, k = int(u), int(v), int(w)
        if mask.size and mask[int(u + 0.5), int(v + 0.5), int(w + 0.5)] == 0:
            continue
        u, v, w = u - i, v - j, w - k
        a, b = data[i, j, k], data[i, j, k + 1]
        c, d = data[i, j + 1, k], data[i, j + 1, k + 1]
        e, f = data[i + 1, j, k], data[i + 1, j, k + 1]
        g, h = data[i + 1, j + 1, k], data[i + 1, j + 1, k + 1]
        near_0, near_1 = a + w * (b - a), c + w * (d - c)
        far_0, far_1 = e + w * (f - e), g + w * (h - g)
        near, far = near_0 + v * (near_1 - near_0), far_0 + v * (far_1 - far_0)
        value = (near + u * (far - near) - low) * scale
        n_inside += 1
        levels[n] = min(max(value, 0.0), N_LEVELS - 4.0) + 1
        if value <= 0 or value >= N_LEVELS - 4:
            slopes[n, 0] = slopes[n, 1] = slopes[n, 2] = 0.0
            continue
        by_u = (far - near) * scale
        by_v = (near_1 - near_0 + u * (far_1 - far_0 - near_1 + near_0)) * scale
        by_w = (1 - u) * ((1 - v) * (b - a) + v * (d - c)) + u * ((1 - v) * (f - e) + v * (h - g))
        by_w *= scale
        for axis in range(3):
            slopes[n, axis] = by_u * to_voxel[0, axis] + by_v * to_voxel[1, axis] + by_w * to_voxel[2, axis]
    return n_inside


@njit(nogil=True, fastmath=FAST, cache=True)
def count(levels, labels, n_labels):
    """Give the joint density of labels and levels, (n_labels, N_LEVELS), sum 1 (0 where no point is inside)."""
    joint = np.zeros((n_labels, N_LEVELS))
    n_inside = 0
    for n in range(levels.size):
        level = levels[n]
        if np.isnan(level):
            continue
        n_inside += 1
        first = int(level)
        t = level - first
        row = joint[labels[n]]
        row[first - 1] += (1 - t) ** 3 / 6
        row[first] += (3 * t**3 - 6 * t**2 + 4) / 6
        row[first + 1] += (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6
        row[first + 2] += t**3 / 6
    return joint / max(n_inside, 1)


def information(joint: np.ndarray) -> float:
    """Give the mutual information of a joint density, in nats."""
    expected = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    filled = joint > 0
    return float((joint[filled] * np.log(joint[filled] / expected[filled])).sum())


@njit(nogil=True, fastmath=FAST, cache=True)
def climb(levels, slopes, labels, log_share, points, centre, radius):
    """Give how mutual information changes with the twelve numbers of a small affine motion of the points.

    Args:
        levels: As `sample` gives them.
        slopes: As `sample` gives them.
        labels: Label of each point.
        log_share: Logarithm of the share of each label within a level, (n_labels, N_LEVELS).
        points: Shape (N, 3).
        centre: The motion turns about this place.
        radius: Divides the places, so that all twelve numbers are lengths.

    Returns:
        The slope (12,), and the sum of products of the levels' own slopes (12, 12), both per point inside. Number
        4·a + b moves along axis a, in proportion to axis b of the place, or to 1 for b = 3.
    """
    slope, products, one = np.zeros(12), np.zeros((12, 12)), np.zeros(12)
    n_inside = 0
    for n in range(levels.size):
        level = levels[n]
        if np.isnan(level):
            continue
        n_inside += 1
        first = int(level)
        t = level - first
        row = log_share[labels[n]]
        force = -((1 - t) ** 2) / 2 * row[first - 1] + (1.5 * t**2 - 2 * t) * row[first]
        force += (-1.5 * t**2 + t + 0.5) * row[first + 1] + t**2 / 2 * row[first + 2]
        for axis in range(3):
            change = slopes[n, axis]
            one[4 * axis] = change * (points[n, 0] - centre[0]) / radius
            one[4 * axis + 1] = change * (points[n, 1] - centre[1]) / radius
            one[4 * axis + 2] = change * (points[n, 2] - centre[2]) / radius
            one[4 * axis + 3] = change
        for a in range(12):
            slope[a] += force * one[a]
            for b in range(a + 1):
                products[a, b] += one[a] * one[b]
    for a in range(12):
        for b in range(a):
            products[b, a] = products[a, b]
    return slope / max(n_inside, 1), products / max(n_inside, 1)
