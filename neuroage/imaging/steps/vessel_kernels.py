"""Compiled kernels of vessel enhancement: Gaussian smoothing, and the eigenvalues of every voxel's Hessian.

float32 throughout, one pass over a volume each, outside of Python's lock. The first call compiles (some seconds); later
processes find it compiled.
"""

from __future__ import annotations

import numpy as np
from numba import njit

f32 = np.float32
THIRD_OF_TURN = f32(2 * np.pi / 3)


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
def keep_strongest(smooth, region, steps_mm, factor, least, mode, out):
    """Write the response of one scale wherever it is stronger than what other scales gave.

    Args:
        smooth: Intensities smoothed at this scale, (I, J, K), float32.
        region: Voxels to do, (I, J, K), bool.
        steps_mm: Voxel size.
        factor: Brings a second derivative to the contrast of a tube of this scale's radius.
        least: Contrasts below it count as it, so that noise gives no response.
        out: Receives the response 0 to 1, (I, J, K), float32.
    """
    n_i, n_j, n_k = smooth.shape
    h_i, h_j, h_k = steps_mm
    ii, jj, kk = f32(factor / h_i**2), f32(factor / h_j**2), f32(factor / h_k**2)
    ij, ik, jk = f32(factor / (4 * h_i * h_j)), f32(factor / (4 * h_i * h_k)), f32(factor / (4 * h_j * h_k))
    for i in range(1, n_i - 1):
        for j in range(1, n_j - 1):
            a, b, c = smooth[i - 1, j], smooth[i, j], smooth[i + 1, j]
            d, e = smooth[i, j - 1], smooth[i, j + 1]
            aa, ab, ba, bb = smooth[i - 1, j - 1], smooth[i - 1, j + 1], smooth[i + 1, j - 1], smooth[i + 1, j + 1]
            for k in range(1, n_k - 1):
                if not region[i, j, k]:
                    continue
                twice = b[k] + b[k]
                xx, yy, zz = ii * (a[k] + c[k] - twice), jj * (d[k] + e[k] - twice), kk * (b[k - 1] + b[k + 1] - twice)
                mean = (xx + yy + zz) / f32(3)
                if mean >= 0:
                    continue
                xy = ij * (aa[k] + bb[k] - ab[k] - ba[k])
                xz = ik * (a[k - 1] + c[k + 1] - a[k + 1] - c[k - 1])
                yz = jk * (d[k - 1] + e[k + 1] - d[k + 1] - e[k - 1])
                x, y, z = xx - mean, yy - mean, zz - mean
                p = np.sqrt((x * x + y * y + z * z + f32(2) * (xy * xy + xz * xz + yz * yz)) / f32(6))
                if p == 0:
                    continue
                det = x * (y * z - yz * yz) - xy * (xy * z - yz * xz) + xz * (xy * yz - y * xz)
                turn = np.arccos(min(max(det / (f32(2) * p * p * p), f32(-1)), f32(1))) / f32(3)
                high = mean + f32(2) * p * np.cos(turn)
                low = mean + f32(2) * p * np.cos(turn + THIRD_OF_TURN)
                second = high + low - f32(3) * mean
                third = -low
                if second <= 0:
                    continue
                if mode == 0:
                    strong = max(third, least)
                    value = f32(1)
                    if second < strong * f32(0.5):
                        value = second * second * (strong - second) * f32(27) / (second + strong) ** 3
                elif mode == 1:
                    ra = second / third
                    rb2 = high * high / (second * third)
                    s2 = high * high + second * second + third * third
                    value = (f32(1) - np.exp(-ra * ra * f32(2))) * np.exp(-rb2 * f32(2)) * (
                        f32(1) - np.exp(-s2 / (f32(2) * least * least))
                    )
                elif mode == 2:  # 2nd eigenvalue as contrast
                    value = second/(second+least)
                else: # Sato-like geometric
                    if high>0: v = second-high*f32(0.25)
                    else: v = second
                    v=max(v,f32(0))
                    value = v/(v+least)
                out[i, j, k] = max(out[i, j, k], value)
