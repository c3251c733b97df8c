"""Compiled kernels of vessel enhancement: Gaussian smoothing, and the eigenvalues of every voxel's Hessian.

float32 throughout, one pass over a volume each, outside of Python's lock. The first call compiles (some seconds); later
processes find it compiled.
"""

from __future__ import annotations

import numpy as np
from numba import njit

f32 = np.float32
THIRD_OF_TURN = f32(2 * np.pi / 3)
TINIEST = f32(1e-12)  # its cube is still one of float32's normal numbers


@njit(nogil=True, fastmath=True, cache=True)
def smooth_middle(source, weights, out):
    """Convolve along the middle axis with a symmetric kernel; the ends repeat their outermost voxels.

    Args:
        source: (A, B, C), float32, contiguous.
        weights: The kernel from its middle outwards, float32.
        out: As `source`, not overlapping it.
    """
    n_outer, n, _ = source.shape
    for a in range(n_outer):
        for b in range(n):
            target = out[a, b]
            middle = source[a, b]
            weight = weights[0]
            for c in range(target.size):
                target[c] = weight * middle[c]
            for t in range(1, weights.size):
                weight, before, after = weights[t], source[a, max(b - t, 0)], source[a, min(b + t, n - 1)]
                for c in range(target.size):
                    target[c] += weight * (before[c] + after[c])


@njit(nogil=True, fastmath=True, cache=True)
def smooth_last(source, weights, out):
    """Convolve along the last axis, as `smooth_middle`.

    Args:
        source: (A, C), float32, contiguous.
        weights: The kernel from its middle outwards, float32.
        out: As `source`, not overlapping it.
    """
    n_outer, n = source.shape
    reach = weights.size - 1
    row = np.empty(n + 2 * reach, f32)
    for a in range(n_outer):
        row[:reach], row[reach : reach + n], row[reach + n :] = source[a, 0], source[a], source[a, n - 1]
        target = out[a]
        for c in range(n):
            target[c] = weights[0] * row[reach + c]
        for t in range(1, weights.size):
            weight = weights[t]
            for c in range(n):
                target[c] += weight * (row[reach + c - t] + row[reach + c + t])


@njit(nogil=True, fastmath=True, cache=True)
def keep_strongest(smooth, region, factors, out):
    """Write the second eigenvalue of the negative Hessian wherever it is larger than what `out` holds.

    The eigenvalues of a symmetric 3×3 matrix are the roots of a cubic, written by an arc cosine (Smith 1961,
    doi:10.1145/355578.366316).

    Args:
        smooth: Smoothed intensities, (I, J, K), float32.
        region: Voxels to do, (I, J, K), bool; the outermost ones are left out.
        factors: What the differences ∂², ∂∂ of neighbouring voxels are multiplied by: ii, jj, kk, ij, ik, jk, float32.
        out: (I, J, K), float32.
    """
    n_i, n_j, n_k = smooth.shape
    ii, jj, kk, ij, ik, jk = factors
    for i in range(1, n_i - 1):
        for j in range(1, n_j - 1):
            here, left, right = smooth[i, j], smooth[i - 1, j], smooth[i + 1, j]
            back, front = smooth[i, j - 1], smooth[i, j + 1]
            left_back, left_front = smooth[i - 1, j - 1], smooth[i - 1, j + 1]
            right_back, right_front = smooth[i + 1, j - 1], smooth[i + 1, j + 1]
            for k in range(1, n_k - 1):
                if not region[i, j, k]:
                    continue
                twice = here[k] + here[k]
                x = ii * (left[k] + right[k] - twice)
                y = jj * (back[k] + front[k] - twice)
                z = kk * (here[k - 1] + here[k + 1] - twice)
                mean = (x + y + z) / f32(3)
                if mean >= 0:  # darker than what is around
                    continue
                xy = ij * (left_back[k] + right_front[k] - left_front[k] - right_back[k])
                xz = ik * (left[k - 1] + right[k + 1] - left[k + 1] - right[k - 1])
                yz = jk * (back[k - 1] + front[k + 1] - back[k + 1] - front[k - 1])
                x, y, z = x - mean, y - mean, z - mean
                size = np.sqrt((x * x + y * y + z * z + f32(2) * (xy * xy + xz * xz + yz * yz)) / f32(6))
                if size < TINIEST:
                    continue
                determinant = x * (y * z - yz * yz) - xy * (xy * z - yz * xz) + xz * (xy * yz - y * xz)
                cosine = min(max(determinant / (f32(2) * size * size * size), f32(-1)), f32(1))
                turn = np.arccos(cosine) / f32(3)
                first = mean + f32(2) * size * np.cos(turn)
                third = mean + f32(2) * size * np.cos(turn + THIRD_OF_TURN)
                out[i, j, k] = max(out[i, j, k], first + third - f32(3) * mean)
