"""The phantom's head: T1-weighted anatomy painted from analytic shapes and smooth noise on a 2 mm template grid.

What does not change between subjects (skull, brain outline, folding fields, ventricle course) is computed once per process;
a subject only combines these fields with its own traits. All coordinates are template millimetres: x to the right,
y to the front, z to the top, origin in the middle of the brain.
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
_N_FOLD_FIELDS = 5
_FOLD_SEED = 20  # any number: the folding that all subjects share

INTENSITY = {"white": 0.84, "grey": 0.56, "deep": 0.66, "csf": 0.20, "fat": 1.0, "bone": 0.07, "marrow": 0.34, "muscle": 0.38}
"""T1-weighted signal relative to fat, read off typical MPRAGE contrast."""

# Right lateral ventricle as a tube: x, y, z, radius in mm from the frontal horn to the tip of the temporal horn.
_VENTRICLE = np.array([
    [5, 38, 6, 3.0], [7, 31, 10, 5.5], [8, 18, 15, 5.5], [8.5, 2, 19, 5.5], [10, -14, 20, 5.5], [14, -28, 17, 6.5],
    [20, -38, 10, 8.0], [25, -38, -1, 6.0], [29, -27, -10, 4.0], [30, -13, -16, 3.4], [28, -4, -19, 2.6]])
_OCCIPITAL_HORN = np.array([[20, -38, 10, 7.0], [20, -50, 8, 5.0], [17, -62, 6, 3.0], [15, -70, 5, 1.6]])


@dataclass(frozen=True)
class Head:
    """One subject's head on the template grid.

    Args:
        image: T1-weighted signal, float32 (X, Y, Z), fat near 1.
        parts: Share of every brain voxel (0 to 1, float32, brain crop) that is `ventricles`, `csf`, `grey`, `white`, `lesions`.
    """

    image: np.ndarray
    parts: dict[str, np.ndarray]

    def volume_ml(self, part: str) -> float:
        """Give the volume of a part in millilitres, before the head is scaled."""
        return float(self.parts[part].sum(dtype=np.float64)) * STEP_MM**3 / 1000.0


@dataclass(frozen=True)
class _Template:
    origin_mm: np.ndarray
    shell: np.ndarray  # head without brain: scalp, skull, face, neck
    brain: tuple[slice, slice, slice]  # the crop that the fields below cover
    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    depth: np.ndarray  # mm below the surface of the cerebrum, negative outside
    dura: np.ndarray  # mm inside the skull
    stem: np.ndarray  # mm inside the brainstem
    cerebellum: np.ndarray  # mm inside the cerebellum
    folia: np.ndarray  # mm from the nearest furrow of the cerebellum
    fissure: np.ndarray  # mm from the nearest great fissure, large where there is none
    folds: np.ndarray  # (n, X, Y, Z) independent folding fields
    ventricle: np.ndarray  # distance to the ventricle's course over its radius
    ventricle_mm: np.ndarray  # that radius
    deep: np.ndarray  # share of thalamus, caudate, putamen
    lesion_sites: np.ndarray  # (n, 3) deep white matter positions, voxels of the crop


def head_origin_mm() -> np.ndarray:
    """Give the template coordinates of the first voxel of every head picture."""
    return _LOW_MM.copy()


def draw_head(traits: dict[str, float], rng: np.random.Generator | None, contrast: float = 0.0) -> Head:
    """Paint one subject's T1-weighted head.

    Args:
        traits: `ventricle_scale`, `sulcal_half_width_mm`, `cortical_thickness_mm`, `lesion_load`.
        rng: Source of the subject's own folding and lesion places; None gives the template folding.
        contrast: −1 to 1: less or more difference between grey and white matter.

    Returns:
        The head; what the scanner does to it comes later.
    """
    t = _template()
    sulcus_mm, thickness_mm = traits["sulcal_half_width_mm"], traits["cortical_thickness_mm"]
    own = np.zeros(_N_FOLD_FIELDS) if rng is None else rng.normal(0.0, 0.30, _N_FOLD_FIELDS)
    own[0] = 1.0
    pial = _cortex_depth(t, own.astype(np.float32), sulcus_mm)
    stem = _cut(t.stem + 1.0 - sulcus_mm)
    cerebellum = t.cerebellum - 0.5 * sulcus_mm
    brain = np.maximum(np.maximum(_cut(pial), _cut(cerebellum) * _cut(t.folia - 0.4 * sulcus_mm, 1.5)), stem)
    ventricles = _ventricles(t, traits["ventricle_scale"])
    # Grey matter sits on the cerebral surface, not around the ventricles, and thinly on the cerebellum's folia.
    white = np.maximum(_cut(pial - thickness_mm), _cut(np.minimum(cerebellum - 4.0, t.folia - 1.6), 3.0))
    np.maximum(white, stem, out=white)
    white *= 1.0 - t.deep
    brain *= 1.0 - ventricles
    white *= 1.0 - ventricles
    lesions = _lesions(t, traits["lesion_load"], traits["ventricle_scale"], rng) * white
    grey = brain - white
    csf = _cut(t.dura) - brain - ventricles
    np.clip(csf, 0.0, 1.0, out=csf)
    parts = {"ventricles": ventricles, "csf": csf, "grey": grey, "white": white, "lesions": lesions}
    return Head(_paint(t, parts, contrast), parts)


def _cortex_depth(t: _Template, own: np.ndarray, sulcus_mm: float) -> np.ndarray:
    """Millimetres below the pial surface, which follows the outline of the brain and dives into sulci and fissures."""
    fold = np.tensordot(own, t.folds, axes=1)
    slope = sum(np.square(part) for part in np.gradient(fold, STEP_MM))
    np.sqrt(slope, out=slope)
    # Where the field is flat its zero set is no sheet; the floor keeps such places from becoming lakes.
    np.maximum(slope, np.float32(0.6 * slope.mean()), out=slope)
    sheet_mm = np.abs(fold) / slope
    sulcus = np.maximum(sheet_mm - sulcus_mm, t.depth - (17.0 + 5.0 * t.folds[1]))
    np.minimum(sulcus, t.depth - 0.8 * sulcus_mm, out=sulcus)
    return np.minimum(sulcus, t.fissure - 1.3 * sulcus_mm, out=sulcus)


def _ventricles(t: _Template, scale: float) -> np.ndarray:
    lateral = _cut((scale - t.ventricle) * t.ventricle_mm)
    rim_mm = 10 * (1 - np.sqrt(((t.y + 4) / 15) ** 2 + ((t.z + 0.3 * t.y) / 10) ** 2))
    third = _cut(np.minimum(2.2 * scale - 0.6 - np.abs(t.x), rim_mm))
    fourth = _cut(8.0 - np.sqrt((1.1 * t.x) ** 2 + (2.2 * (t.y + 37)) ** 2 + (0.9 * (t.z + 40)) ** 2))
    return np.maximum(np.maximum(lateral, third), fourth)


def _lesions(t: _Template, load: float, scale: float, rng: np.random.Generator | None) -> np.ndarray:
    """Caps around the ventricles that thicken with the load, and one spot per lesion, the last one only partly grown."""
    cap_mm = 0.14 * load
    lesions = _cut((scale - t.ventricle) * t.ventricle_mm + cap_mm, 3.0)
    sites = t.lesion_sites
    order = np.arange(len(sites)) if rng is None else rng.permutation(len(sites))
    sizes = np.full(len(sites), 3.6) if rng is None else rng.uniform(2.8, 4.4, len(sites))
    for rank, site in enumerate(sites[order[: int(np.ceil(load))]]):
        radius_mm = float(sizes[rank]) * min(load - rank, 1.0) ** (1 / 3)
        window = tuple(slice(max(c - 4, 0), c + 5) for c in site)
        grid = np.ogrid[window]
        distance = np.sqrt(sum((g - c) ** 2 for g, c in zip(grid, site, strict=True))) * STEP_MM
        spot = _cut((radius_mm - distance).astype(np.float32), 2.5)
        lesions[window] = np.maximum(lesions[window], spot[tuple(slice(0, n) for n in lesions[window].shape)])
    return lesions


def _paint(t: _Template, parts: dict[str, np.ndarray], contrast: float) -> np.ndarray:
    level = INTENSITY
    grey, deep = level["grey"] - 0.05 * contrast, level["deep"]
    picture = t.deep * np.float32(deep - grey)
    picture += np.float32(grey)
    picture *= parts["grey"]
    picture += np.float32(level["white"]) * parts["white"]
    picture -= np.float32(level["white"] - 0.46) * parts["lesions"]
    picture += np.float32(level["csf"]) * parts["csf"]
    image = t.shell.copy()
    image[t.brain] += picture
    image[t.brain] += np.float32(level["csf"]) * parts["ventricles"]
    return image


def _cut(distance_mm: np.ndarray, soft_mm: float = STEP_MM) -> np.ndarray:
    """Share of a voxel inside a surface, from the signed distance to it (positive inside)."""
    share = distance_mm * np.float32(1.0 / soft_mm)
    share += np.float32(0.5)
    return np.clip(share, 0.0, 1.0, out=share)


# ---- what all subjects share ---------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _template() -> _Template:
    axes = [np.arange(a, b + 1e-6, STEP_MM, dtype=np.float32) for a, b in zip(_LOW_MM, _HIGH_MM, strict=True)]
    brain = tuple(slice(int((a - o) / STEP_MM), int((b - o) / STEP_MM) + 1)
                  for a, b, o in zip(_BRAIN_LOW_MM, _BRAIN_HIGH_MM, _LOW_MM, strict=True))
    x, y, z = (axis[crop].reshape([-1 if k == n else 1 for k in range(3)])
               for n, (axis, crop) in enumerate(zip(axes, brain, strict=True)))
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
    return _Template(
        _LOW_MM, _shell(axes, dura_whole, rng), brain, x, y, z, depth, dura, stem, cerebellum,
        np.abs(furrows) * np.float32(9.0 / np.pi), _fissures(x, y, z, folds[3]), folds, ventricle, ventricle_mm, deep,
        sites[rng.choice(len(sites), 60, replace=False)])


def _ellipsoid(x: np.ndarray, y: np.ndarray, z: np.ndarray, centre: tuple[float, float, float],
               axes: tuple[float, float, float], power: float = 2.0) -> np.ndarray:
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
    return np.minimum(_blend(sides, vermis, 4.0), 0.3 * (-y - 24) + 0.9 * (-22 - z) + 12)


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


def _fold_fields(x: np.ndarray, y: np.ndarray, z: np.ndarray, depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise read at the surface point above each voxel, so that its zero sheets dive straight in like sulci."""
    radius = np.sqrt(x * x + y * y + z * z) + np.float32(1e-3)
    lift = 1 + np.float32(0.55) * np.clip(depth, 0, 25) / np.maximum(radius, 30)
    bend = [4.0 * _smooth_noise(depth.shape, 4.5, rng) for _ in range(3)]  # sulci are not straight
    points = [((axis * lift + shift) / 3 + 45).astype(np.float32) for axis, shift in zip((x, y, z), bend, strict=True)]
    fields = np.empty((_N_FOLD_FIELDS, *depth.shape), np.float32)
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
    return _cut(np.maximum(np.maximum(thalamus, caudate), np.maximum(putamen, septum)))


def _shell(axes: list[np.ndarray], dura: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scalp, skull with marrow, face and neck: the part of the head that does not age here."""
    x, y, z = np.ix_(*axes)
    bumps, grain = _smooth_noise(dura.shape, 3.0, rng), _smooth_noise(dura.shape, 1.3, rng)
    cranium = _ellipsoid(x, y, z, (0, -3, 2), (80, 99, 84), 2.15)
    face = _ellipsoid(x, y, z, (0, 24, -78), (58, 72, 66), 2.6)
    nose = _ellipsoid(x, y, z, (0, 95, -50), (13, 17, 22))
    neck = np.asarray(55 - np.sqrt((1.05 * x) ** 2 + (y + 14) ** 2) + 0 * z, np.float32)
    head = _blend(_blend(_blend(cranium, face, 8.0), np.minimum(neck, -30 - z), 10.0), nose, 5.0)
    inside = _cut(head - 4.5 - bumps)
    fat = np.float32(INTENSITY["fat"]) * _cut(head) * (1 - inside) * (1 + 0.06 * grain)
    bone_mm = -dura  # outside the dura
    marrow = _cut(1.6 - np.abs(bone_mm - 4.0) + 0.6 * bumps) * INTENSITY["marrow"] + INTENSITY["bone"]
    # Fat between the muscles: sheets where smooth noise crosses zero.
    septa = _cut(1.2 - 6 * np.abs(bumps)) + _cut(2 * grain - 3)
    muscle = INTENSITY["muscle"] * (1 + 0.12 * grain) + 0.4 * septa
    soft = _cut(bone_mm - 8.0)
    tissue = soft * muscle + (1 - soft) * marrow
    side = np.abs(x)
    orbit = _cut(_ellipsoid(side, y, z, (30, 60, -30), (17, 28, 16)))
    tissue = orbit * (0.9 + 0.06 * grain) + (1 - orbit) * tissue
    eye_mm = _ellipsoid(side, y, z, (32, 73, -30), (12, 12, 12))
    eye = _cut(eye_mm + 1)
    tissue = eye * (0.16 + 0.3 * _cut(1.4 - np.abs(eye_mm))) + (1 - eye) * tissue
    nerve = _cut(2.0 - np.sqrt((side - 14 - 0.3 * (y - 24)) ** 2 + (z + 29) ** 2)) * (y > 20) * (y < 63)
    tissue = nerve * 0.5 + (1 - nerve) * tissue
    cavity = np.maximum(_ellipsoid(side, y, z, (8, 62, -52), (6, 30, 16)), _ellipsoid(x, y, z, (0, 16, -80), (9, 7, 34)))
    cavity = np.maximum(cavity, _ellipsoid(side, y, z, (26, 54, -58), (11, 14, 14)))
    cavity = np.maximum(cavity, _ellipsoid(side, y, z, (10, 28, -42), (9, 9, 8)))
    cavity = cavity + 2.0 * bumps
    tissue = tissue * (1 - _cut(cavity)) + 0.35 * _cut(1.2 - np.abs(cavity))
    return np.asarray((fat + inside * tissue) * (1 - _cut(dura)), np.float32)
