"""Compiled kernels of the augmentation for a CPU: float32, one pass over a volume, no memory of their own.

Each works on some lines (rows along the last axis) and runs outside of Python's lock, so that a few threads share a
volume (`parts.run_lines`). Written for the compiler to vectorise: intensities next to each other, unsigned indices (a
signed one costs a test for negative numbers), and no call within a line.

The first call of each kernel compiles it (about a second); later processes find it compiled.
"""

from __future__ import annotations

import numpy as np
from numba import njit

WIDTH = 32
"""Voxels that a compiled loop takes at once; what is left at its end is done one by one, so lines are padded to it."""
FAST = {"contract", "nsz", "arcp"}  # fused multiply-add and no signed zeros; NaN and order of sums keep their meaning

f32, i32, index = np.float32, np.int32, np.uintp

# 2**x for |x| <= 1/2, relative error 1e-7 at most, exact at 0: minimax polynomial of degree 5, fitted for this module
E1, E2, E3 = f32(0.69314697760), f32(0.24022242083), f32(0.055507337448)
E4, E5 = f32(0.0096715128126), f32(0.0013264727214)
SMALLEST, LARGEST = f32(-126), f32(127.49)  # where powers of 2 leave float32's normal numbers
ROUNDER = f32(1.5 * 2**23)
"""Added to a float32, it leaves the nearest whole number in its last bits (IEEE 754)."""
ROUNDER_BITS = i32(0x4B400000)
# log(1 + x) − x + x²/2, over x³, for sqrt(1/2) <= 1 + x <= sqrt(2) to 1e-7 (Cephes, logf.c)
L0, L1, L2 = f32(7.0376836292e-2), f32(-1.1514610310e-1), f32(1.1676998740e-1)
L3, L4, L5 = f32(-1.2420140846e-1), f32(1.4249322787e-1), f32(-1.6668057665e-1)
L6, L7, L8 = f32(2.0000714765e-1), f32(-2.4999993993e-1), f32(3.3333331174e-1)
LOG2_E, ROOT_HALF, TINIEST = f32(1.4426950408889634), f32(0.70710678), f32(1.17549435e-38)
MANTISSA, EXPONENT_OF_HALF = i32(0x007FFFFF), i32(0x3F000000)
HALF, ONE, ZERO, BIAS, MANTISSA_BITS = f32(0.5), f32(1), f32(0), i32(127), i32(23)


@njit(nogil=True, fastmath=FAST, cache=True)
def _power_of_two(power):
    power = min(max(power, SMALLEST), LARGEST)
    rounded = power + ROUNDER
    part = power - (rounded - ROUNDER)
    value = ((((E5 * part + E4) * part + E3) * part + E2) * part + E1) * part + ONE
    return value * i32((f32(rounded).view(i32) - ROUNDER_BITS + BIAS) << MANTISSA_BITS).view(f32)


@njit(nogil=True, fastmath=FAST, cache=True)
def multiply_lines(source, polynomials, places, floor, out):
    """Multiply lines by 2 to the power of a polynomial of the place within the line.

    Args:
        source: Intensities (n_lines, n_voxels), float32.
        polynomials: Coefficients (n_lines, order + 1), float32, lowest first.
        places: Coordinate of each voxel of a line, float32, at least n_voxels of them; see `WIDTH`.
        floor: Intensity that is left alone: what is multiplied is the height above it.
        out: As `source`, not overlapping it: reading and writing the same memory would be done number by number.
    """
    order, field = polynomials.shape[1] - 1, np.empty(places.size, f32)
    for line in range(source.shape[0]):
        if order == 3:  # its coefficients stay in registers
            c0, c1, c2, c3 = polynomials[line, 0], polynomials[line, 1], polynomials[line, 2], polynomials[line, 3]
            for k in range(places.size):
                place = places[k]
                field[k] = _power_of_two(((c3 * place + c2) * place + c1) * place + c0)
        else:
            field[:] = polynomials[line, order]
            for degree in range(order - 1, -1, -1):
                coefficient = polynomials[line, degree]
                for k in range(places.size):
                    field[k] = field[k] * places[k] + coefficient
            for k in range(places.size):
                field[k] = _power_of_two(field[k])
        if floor == 0:
            for k in range(source.shape[1]):
                out[line, k] = source[line, k] * field[k]
        else:
            for k in range(source.shape[1]):
                out[line, k] = (source[line, k] - floor) * field[k] + floor


@njit(nogil=True, fastmath=FAST, cache=True)
def _log2(value):
    bits = f32(value).view(i32)
    whole = f32(i32(bits >> MANTISSA_BITS) - i32(126))
    part = i32((bits & MANTISSA) | EXPONENT_OF_HALF).view(f32)  # 1/2 to 1
    low = part < ROOT_HALF
    x = part + part - ONE if low else part - ONE
    whole = whole - ONE if low else whole
    y = (((((((L0 * x + L1) * x + L2) * x + L3) * x + L4) * x + L5) * x + L6) * x + L7) * x + L8
    return whole + (x - HALF * x * x + x * x * x * y) * LOG2_E


@njit(nogil=True, fastmath=FAST, cache=True)
def raise_all(source, gamma, out):
    """Write sign(x) |x|^gamma for intensities in a row.

    Args:
        source: (n_voxels,), float32; what is smaller than float32's normal numbers counts as 0.
        gamma: Exponent above 0, float32.
        out: As `source`, not overlapping it.
    """
    for k in range(source.size):
        value = source[k]
        size = abs(value)
        raised = _power_of_two(gamma * _log2(max(size, TINIEST)))
        raised = raised if size >= TINIEST else ZERO
        out[k] = raised if value >= ZERO else -raised


@njit(nogil=True, cache=True)
def _enter_and_leave(enter, leave, start, slope, low, high, closed):
    """Narrow [enter, leave): the voxels k of a line with low <= start + slope·k < high (<= high when `closed`)."""
    if slope == 0:
        inside = low <= start and (start < high or (closed and start == high))
        return (enter, leave) if inside else (enter, enter)
    ends = (low - start) / slope, (high - start) / slope
    begin, end = (np.ceil(ends[0]), ends[1]) if slope > 0 else (np.ceil(ends[1]), ends[0])
    if slope < 0 and not closed and begin == ends[1]:
        begin += 1  # the far bound itself is outside
    stop = np.ceil(end) if slope > 0 and not closed else np.floor(end) + 1
    begin, stop = max(begin, float(enter)), min(stop, float(leave))
    return (int(begin), int(stop)) if stop > begin else (enter, enter)


@njit(nogil=True, fastmath=FAST, cache=True)
def _between_eight(voxels, at, row, plane, part_i, part_j, part_k):
    """Interpolate between the eight voxels from `at` on; `row` and `plane` are the distances to the next ones."""
    one, beyond = index(1), row + plane
    v00 = voxels[at] + part_k * (voxels[at + one] - voxels[at])
    v01 = voxels[at + row] + part_k * (voxels[at + row + one] - voxels[at + row])
    v10 = voxels[at + plane] + part_k * (voxels[at + plane + one] - voxels[at + plane])
    v11 = voxels[at + beyond] + part_k * (voxels[at + beyond + one] - voxels[at + beyond])
    v0, v1 = v00 + part_j * (v01 - v00), v10 + part_j * (v11 - v10)
    return v0 + part_i * (v1 - v0)


@njit(nogil=True, fastmath=FAST, cache=True)
def resample_lines(source, matrix, outside, has_outside, out, first, last):
    """Read lines of the output from where a matrix says in the input, by linear interpolation.

    Args:
        source: One channel (I, J, K), float32, contiguous, at least two voxels along each axis.
        matrix: From output to input voxel indices, (4, 4), float64.
        outside: Intensity of what lies outside of the input.
        has_outside: Whether it is used; else the nearest voxel stands outside.
        out: (I', J', K'), float32, contiguous.
        first, last: Lines of `out` to do, counted over I' and J'.
    """
    n_i, n_j, n_k = source.shape
    n_rows, n_columns = out.shape[1], out.shape[2]
    voxels, results = source.reshape(-1), out.reshape(-1)
    plane, row = index(n_j * n_k), index(n_k)
    slope_i, slope_j, slope_k = f32(matrix[0, 2]), f32(matrix[1, 2]), f32(matrix[2, 2])
    top_i, top_j, top_k = f32(n_i - 1), f32(n_j - 1), f32(n_k - 1)
    for line in range(first, last):
        i, j = line // n_rows, line % n_rows
        start0 = matrix[0, 0] * i + matrix[0, 1] * j + matrix[0, 3]
        start1 = matrix[1, 0] * i + matrix[1, 1] * j + matrix[1, 3]
        start2 = matrix[2, 0] * i + matrix[2, 1] * j + matrix[2, 3]
        seen, until = 0, n_columns  # within the grid, its outermost half voxels included
        core, end = 0, n_columns  # with all eight neighbours in the grid, away from its faces by rounding
        for axis, start, size in ((0, start0, n_i), (1, start1, n_j), (2, start2, n_k)):
            slope = matrix[axis, 2]
            if has_outside:
                seen, until = _enter_and_leave(seen, until, start, slope, -0.5, size - 0.5, False)
            core, end = _enter_and_leave(core, end, start, slope, 1e-3, size - 1 - 1e-3, True)
        if end <= core:
            core, end = until, until
        core, end = min(max(core, seen), until), min(max(end, seen), until)
        base = index(line * n_columns)
        x0, y0, z0 = f32(start0), f32(start1), f32(start2)
        for k in range(core, end):
            step = f32(k)
            x, y, z = x0 + slope_i * step, y0 + slope_j * step, z0 + slope_k * step
            at_i, at_j, at_k = i32(x), i32(y), i32(z)
            part_i, part_j, part_k = x - f32(at_i), y - f32(at_j), z - f32(at_k)
            at = index(at_i) * plane + index(at_j) * row + index(at_k)
            results[base + index(k)] = _between_eight(voxels, at, row, plane, part_i, part_j, part_k)
        for low, high in ((seen, core), (end, until)):  # on the faces: the nearest voxels again
            for k in range(low, high):
                x = min(max(f32(start0 + matrix[0, 2] * k), ZERO), top_i)
                y = min(max(f32(start1 + matrix[1, 2] * k), ZERO), top_j)
                z = min(max(f32(start2 + matrix[2, 2] * k), ZERO), top_k)
                at_i, at_j, at_k = min(i32(x), i32(n_i - 2)), min(i32(y), i32(n_j - 2)), min(i32(z), i32(n_k - 2))
                part_i, part_j, part_k = x - f32(at_i), y - f32(at_j), z - f32(at_k)
                at = index(at_i) * plane + index(at_j) * row + index(at_k)
                results[base + index(k)] = _between_eight(voxels, at, row, plane, part_i, part_j, part_k)
        for low, high in ((0, seen), (until, n_columns)):
            for k in range(low, high):
                results[base + index(k)] = outside


@njit(nogil=True, fastmath=FAST, cache=True)
def sharpen_lines(source, strength, out, first, last):
    """Write x + strength · Σ_axes (2 x − x₋ − x₊) for lines of a volume; edges repeat their outermost voxels.

    Args:
        source: (I, J, K), float32, contiguous; an axis of one voxel adds nothing.
        strength: From 0.
        out: As `source`, not overlapping it.
        first, last: Lines to do, counted over I and J.
    """
    n_i, n_j, n_k = source.shape
    centre, beside = f32(1 + 6 * strength), f32(strength)
    for line in range(first, last):
        i, j = line // n_j, line % n_j
        here, target = source[i, j], out[i, j]
        above, below = source[max(i - 1, 0), j], source[min(i + 1, n_i - 1), j]
        left, right = source[i, max(j - 1, 0)], source[i, min(j + 1, n_j - 1)]
        for k in range(1, n_k - 1):
            around = above[k] + below[k] + left[k] + right[k] + here[k - 1] + here[k + 1]
            target[k] = centre * here[k] - beside * around
        for k in (0, n_k - 1):
            ends = here[max(k - 1, 0)] + here[min(k + 1, n_k - 1)]
            target[k] = centre * here[k] - beside * (above[k] + below[k] + left[k] + right[k] + ends)
