"""What all phantom heads share: outline, skull and face, folding fields, courses of ventricles, deep nuclei.

Painted once per process from analytic shapes and smooth noise on a 2 mm grid. All coordinates are template millimetres:
x to the right, y to the front, z to the top, origin in the middle of the brain.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage
from scipy.interpolate import CubicSpline
from scipy.spatial import cKDTree

STEP_MM = 2.0
_LOW_MM, _HIGH_MM = np.array([-88.0, -108.0, -104.0]), np.array([88.0, 112.0, 94.0])
_BRAIN_LOW_MM, _BRAIN_HIGH_MM = np.array([-72.0, -90.0, -104.0]), np.array([72.0, 90.0, 80.0])
N_FOLD_FIELDS = 5
_FOLD_SEED = 20  # any number: the folding that all subjects share

INTENSITY = {
    "white": 0.84,
    "grey": 0.56,
    "deep": 0.66,
    "csf": 0.20,
    "fat": 1.0,
    "bone": 0.07,
    "marrow": 0.34,
    "muscle": 0.38,
}
"""T1-weighted signal relative to fat, read off typical MPRAGE contrast."""

# Right lateral ventricle as a tube: x, y, z, radius in mm from the frontal horn to the tip of the temporal horn.
_VENTRICLE = np.array(
    [
        [5, 38, 6, 3.0],
        [7, 31, 10, 5.5],
        [8, 18, 15, 5.5],
        [8.5, 2, 19, 5.5],
        [10, -14, 20, 5.5],
        [14, -28, 17, 6.5],
        [20, -38, 10, 8.0],
        [25, -38, -1, 6.0],
        [29, -27, -10, 4.0],
        [30, -13, -16, 3.4],
        [28, -4, -19, 2.6],
    ]
)
_OCCIPITAL_HORN = np.array([[20, -38, 10, 7.0], [20, -50, 8, 5.0], [17, -62, 6, 3.0], [15, -70, 5, 1.6]])


@dataclass(frozen=True)
class HeadTemplate:
    """Fields on the template grid; millimetre fields are signed distances, positive inside.

    Args:
        shell: Signal of the head without its brain, whole grid; other fields cover the crop `brain`.
        soft: Signal of muscle and fat of face and neck inside `shell`, whole grid too.
        brain: The crop.
        x: Coordinates of the crop, ready to broadcast; `y` and `z` likewise.
        depth: Below the surface of the cerebrum.
        dura: Inside the skull.
        stem: Inside the brainstem.
        cerebellum: Inside the cerebellum.
        folia: Distance from the nearest furrow of the cerebellum.
        fissure: Distance from the nearest great fissure, 40 mm where there is none.
        folds: Independent folding fields, (n, X, Y, Z); zero along sulci.
        ventricle: Distance from the course of the lateral ventricles over their radius there.
        ventricle_mm: That radius.
        deep: Share of thalamus, caudate, putamen and septum.
        lesion_sites: Deep white matter positions, voxels of the crop, (n, 3).
    """

    shell: np.ndarray
    soft: np.ndarray
    brain: tuple[slice, slice, slice]
    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    depth: np.ndarray
    dura: np.ndarray
    stem: np.ndarray
    cerebellum: np.ndarray
    folia: np.ndarray
    fissure: np.ndarray
    folds: np.ndarray
    ventricle: np.ndarray
    ventricle_mm: np.ndarray
    deep: np.ndarray
    lesion_sites: np.ndarray


def head_origin_mm() -> np.ndarray:
    """Give the template coordinates of the first voxel of every head picture."""
    return _LOW_MM.copy()


def soft_share(distance_mm: np.ndarray, soft_mm: float = STEP_MM) -> np.ndarray:
    """Share of a voxel inside a surface, from the signed distance to it (positive inside)."""
    share = distance_mm * np.float32(1.0 / soft_mm)
    share += np.float32(0.5)
    return np.clip(share, 0.0, 1.0, out=share)


@lru_cache(maxsize=1)
def head_template() -> HeadTemplate:
    """Paint the template; kept for the life of the process (about 40 MB)."""
    axes = [np.arange(a, b + 1e-6, STEP_MM, dtype=np.float32) for a, b in zip(_LOW_MM, _HIGH_MM, strict=True)]
    first, last = ((edge - _LOW_MM) / STEP_MM for edge in (_BRAIN_LOW_MM, _BRAIN_HIGH_MM))
    brain = (
        slice(int(first[0]), int(last[0]) + 1),
        slice(int(first[1]), int(last[1]) + 1),
        slice(int(first[2]), int(last[2]) + 1),
    )
    x, y, z = (
        axis[crop].reshape([-1 if k == n else 1 for k in range(3)])
        for n, (axis, crop) in enumerate(zip(axes, brain, strict=True))
    )
    rng = np.random.default_rng(_FOLD_SEED)
    depth, stem, cerebellum = _cerebrum_depth(x, y, z), _stem_depth(x, y, z), _cerebellum_depth(x, y, z)
    dura = np.maximum(np.maximum(depth, cerebellum + 1.0), stem + 2.0) + 1.8
    dura_whole = np.full([len(axis) for axis in axes], -30.0, np.float32)
    dura_whole[brain] = dura
    ventricle, ventricle_mm = _ventricle_course(x, y, z)
    deep = _deep_nuclei(x, y, z)
    folds = _fold_fields(x, y, z, depth, rng)
    # Furrows of the cerebellum run around its hilum, 9 mm apart.
    around = np.arctan2(z + 36, -(y + 34)) * 34 + 0.25 * np.abs(x)
    furrows = np.sin(around * np.float32(2 * np.pi / 9.0) + 0.8 * folds[2])
    sites = np.argwhere((depth > 13) & (z > 4) & (ventricle > 1.9) & (deep < 0.02) & (np.abs(x) > 12))
    shell, flesh = _shell(axes, dura_whole, rng)
    return HeadTemplate(
        shell,
        flesh,
        brain,
        x,
        y,
        z,
        depth,
        dura,
        stem,
        cerebellum,
        np.abs(furrows) * np.float32(9.0 / np.pi),
        _fissures(x, y, z, folds[3]),
        folds,
        ventricle,
        ventricle_mm,
        deep,
        sites[rng.choice(len(sites), 60, replace=False)],
    )


def _ellipsoid(
    x: np.ndarray,
    y: np.ndarray,
    z: np.ndarray,
    centre: tuple[float, float, float],
    axes: tuple[float, float, float],
    power: float = 2.0,
) -> np.ndarray:
    """Millimetres inside a (super)ellipsoid, measured along the ray to its centre; negative outside."""
    u, v, w = x - np.float32(centre[0]), y - np.float32(centre[1]), z - np.float32(centre[2])
    level = (np.abs(u / axes[0]) ** power + np.abs(v / axes[1]) ** power + np.abs(w / axes[2]) ** power) ** (1 / power)
    level = np.maximum(level, np.float32(0.05))
    return np.asarray(np.sqrt(u * u + v * v + w * w) * (1 / level - 1), np.float32)


def _blend(a: np.ndarray, b: np.ndarray, width_mm: float) -> np.ndarray:
    """Union of two shapes with a rounded seam (polynomial smooth maximum)."""
    h = np.clip(0.5 + (a - b) / (2 * width_mm), 0, 1)
    return np.asarray(b + (a - b) * h + width_mm * h * (1 - h), np.float32)


def _cerebrum_depth(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    narrow = x * (1 + np.float32(0.0011) * np.clip(y, -60, 80))  # the forehead is narrower than the back
    upper = _ellipsoid(narrow, y, z, (0, -2, 2), (66, 84, 68), 2.2)
    lower = _ellipsoid(narrow, y, z, (0, -2, 2), (66, 84, 30), 2.2)
    body = np.where(z > 2, upper, lower)
    temporal = _ellipsoid(np.abs(x), y, z, (41, -8, -20), (22, 46, 24), 2.2)
    return _blend(body, temporal, 5.0)


def _stem_depth(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    radius = 7.5 + 6.5 * np.exp(-(((z + 30) / 12) ** 2)) + 3 * np.exp(-(((z + 8) / 8) ** 2))
    lean = y + 20 - np.float32(0.12) * (z + 40)
    inside = radius - np.sqrt((0.85 * x) ** 2 + lean**2)
    return np.asarray(np.minimum(inside, -2 - z), np.float32)


def _cerebellum_depth(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    sides = _ellipsoid(np.abs(x), y, z, (22, -57, -39), (30, 27, 21))
    vermis = _ellipsoid(x, y, z, (0, -54, -37), (14, 20, 20))
    below_tentorium = 0.3 * (-y - 24) + 0.9 * (-22 - z) + 12
    return np.asarray(np.minimum(_blend(sides, vermis, 4.0), below_tentorium), np.float32)


def _fissures(x: np.ndarray, y: np.ndarray, z: np.ndarray, wave: np.ndarray) -> np.ndarray:
    """Distance to the fissure between the hemispheres and to the Sylvian fissures; 40 mm where there is none."""
    callosum = np.sqrt(((y + 4) / 44) ** 2 + ((z - 5) / 27) ** 2)
    beyond = (1.0 - callosum) * 34
    between = np.maximum(np.abs(x), np.maximum(beyond, np.minimum(-12 - z, 24 - np.abs(y))))
    side = np.abs(x) + 1.2 * wave
    plane = 0.93 * np.abs(z + 7 + np.float32(0.38) * (y - 5) + 3.5 * wave)
    sylvian = np.maximum(plane, np.maximum(33 - side, np.abs(y + 6) - 34))
    rim = np.sqrt(((y - 2) / 22) ** 2 + ((z + 1 + 0.3 * y) / 15) ** 2)
    insula = np.maximum(np.abs(side - 36 + 0.004 * (y - 2) ** 2), (rim - 1) * 15)
    return np.asarray(np.minimum(np.minimum(between, np.minimum(sylvian, insula)), 40), np.float32)


def _fold_fields(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, depth: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Smooth noise read at the surface point above each voxel, so that its zero sheets dive straight in like sulci."""
    radius = np.sqrt(x * x + y * y + z * z) + np.float32(1e-3)
    lift = 1 + np.float32(0.55) * np.clip(depth, 0, 25) / np.maximum(radius, 30)
    bend = [4.0 * _smooth_noise(depth.shape, 4.5, rng) for _ in range(3)]  # sulci are not straight
    points = [((axis * lift + shift) / 3 + 45).astype(np.float32) for axis, shift in zip((x, y, z), bend, strict=True)]
    fields = np.empty((N_FOLD_FIELDS, *depth.shape), np.float32)
    for field in fields:
        # A band of wavelengths about 30 mm: sheets every 15 mm, the width of a gyrus.
        white = rng.standard_normal((90, 90, 90), dtype=np.float32)
        band = ndimage.gaussian_filter(white, 1.45) - ndimage.gaussian_filter(white, 2.3)
        field[...] = ndimage.map_coordinates(band / band.std(), points, order=1, mode="wrap")
    return fields


def _smooth_noise(shape: tuple[int, ...], sigma_voxels: float, rng: np.random.Generator) -> np.ndarray:
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma_voxels, mode="wrap")
    return np.asarray(noise / noise.std(), np.float32)


def _ventricle_course(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    samples = []
    for points in (_VENTRICLE, _OCCIPITAL_HORN):
        course = CubicSpline(np.linspace(0, 1, len(points)), points)(np.linspace(0, 1, 60))
        samples += [course, course * [-1, 1, 1, 1]]
    course = np.concatenate(samples)
    shape = np.broadcast_shapes(x.shape, y.shape, z.shape)
    ratio, radius = np.full(shape, 9.0, np.float32), np.full(shape, 4.0, np.float32)
    near = np.broadcast_to((np.abs(x) < 56) & (np.abs(y + 15) < 78) & (np.abs(z) < 44), shape)
    voxels = np.stack([np.broadcast_to(axis, shape)[near] for axis in (x, y, z)], axis=1)
    # Ventricles are taller than wide: heights count less.
    distance, index = cKDTree(course[:, :3] * [1, 1, 0.8]).query(voxels * [1, 1, 0.8], k=8)
    ratios = distance / course[index, 3]
    best = ratios.argmin(axis=1)[:, None]
    ratio[near] = np.take_along_axis(ratios, best, 1)[:, 0]
    radius[near] = course[np.take_along_axis(index, best, 1)[:, 0], 3]
    septum = np.abs(x) < 1.0
    return np.where(septum, 9.0, ratio).astype(np.float32), ndimage.uniform_filter(radius, 5)


def _deep_nuclei(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    side = np.abs(x)
    thalamus = _ellipsoid(side, y, z, (11, -17, 4), (9, 15, 9))
    caudate = _ellipsoid(side, y, z, (14, 16, 10), (6, 13, 10))
    putamen = _ellipsoid(side + 0.25 * (y - 4), y, z, (25, 4, 0), (6, 18, 11))
    # The thin septum and fornix under the corpus callosum; without them the middle slice shows no callosum.
    callosum = np.sqrt(((y + 4) / 44) ** 2 + ((z - 5) / 27) ** 2)
    septum = np.minimum(1.6 - side, np.minimum((0.74 - callosum) * 30, z + 4 + 0.2 * y))
    return soft_share(np.maximum(np.maximum(thalamus, caudate), np.maximum(putamen, septum)))


def _shell(axes: list[np.ndarray], dura: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Scalp, skull with marrow, face and neck: the part of the head that does not age here; and its flesh alone."""
    x, y, z = np.ix_(*axes)
    bumps, grain = _smooth_noise(dura.shape, 3.0, rng), _smooth_noise(dura.shape, 1.3, rng)
    cranium = _ellipsoid(x, y, z, (0, -3, 2), (80, 99, 84), 2.15)
    face = _ellipsoid(x, y, z, (0, 24, -78), (58, 72, 66), 2.6)
    nose = _ellipsoid(x, y, z, (0, 95, -50), (13, 17, 22))
    neck = np.asarray(55 - np.sqrt((1.05 * x) ** 2 + (y + 14) ** 2) + 0 * z, np.float32)
    head = _blend(_blend(_blend(cranium, face, 8.0), np.minimum(neck, -30 - z), 10.0), nose, 5.0)
    inside = soft_share(head - 4.5 - bumps)
    fat = np.float32(INTENSITY["fat"]) * soft_share(head) * (1 - inside) * (1 + 0.06 * grain)
    bone_mm = -dura  # outside the dura
    marrow = soft_share(1.6 - np.abs(bone_mm - 4.0) + 0.6 * bumps) * INTENSITY["marrow"] + INTENSITY["bone"]
    # Fat between the muscles: sheets where smooth noise crosses zero.
    septa = soft_share(1.2 - 6 * np.abs(bumps)) + soft_share(2 * grain - 3)
    muscle = INTENSITY["muscle"] * (1 + 0.12 * grain) + 0.4 * septa
    soft = soft_share(bone_mm - 8.0)
    tissue = soft * muscle + (1 - soft) * marrow
    side = np.abs(x)
    orbit = soft_share(_ellipsoid(side, y, z, (30, 60, -30), (17, 28, 16)))
    tissue = orbit * (0.9 + 0.06 * grain) + (1 - orbit) * tissue
    eye_mm = _ellipsoid(side, y, z, (32, 73, -30), (12, 12, 12))
    eye = soft_share(eye_mm + 1)
    tissue = eye * (0.16 + 0.3 * soft_share(1.4 - np.abs(eye_mm))) + (1 - eye) * tissue
    nerve = soft_share(2.0 - np.sqrt((side - 14 - 0.3 * (y - 24)) ** 2 + (z + 29) ** 2)) * (y > 20) * (y < 63)
    tissue = nerve * 0.5 + (1 - nerve) * tissue
    cavity = _ellipsoid(side, y, z, (8, 62, -52), (6, 30, 16))
    cavity = np.maximum(cavity, _ellipsoid(x, y, z, (0, 16, -80), (9, 7, 34)))
    cavity = np.maximum(cavity, _ellipsoid(side, y, z, (26, 54, -58), (11, 14, 14)))
    cavity = np.maximum(cavity, _ellipsoid(side, y, z, (10, 28, -42), (9, 9, 8)))
    cavity = cavity + 2.0 * bumps
    tissue = tissue * (1 - soft_share(cavity)) + 0.35 * soft_share(1.2 - np.abs(cavity))
    outside = 1 - soft_share(dura)
    flesh = soft * muscle * (1 - orbit) * (1 - soft_share(cavity)) * inside * outside
    return np.asarray((fat + inside * tissue) * outside, np.float32), np.asarray(flesh, np.float32)
