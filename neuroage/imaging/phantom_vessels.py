"""The phantom's arteries: a vessel tree, painted into a time-of-flight slab as soft-edged tubes.

Large arteries follow fixed courses (carotid siphons, vertebrals and basilar, circle of Willis, middle, anterior and
posterior cerebral arteries); distal branches fan out over the surface of the brain and fork. Each subject's courses
differ a little.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from neuroage.imaging import phantom_head
from neuroage.imaging.phantom_scanner import ScanSettings, resample_head
from neuroage.imaging.phantom_template import STEP_MM, head_origin_mm

_POINT_STEP_MM = 0.5
_BRAIN_AXES_MM = np.array([62.0, 79.0, 62.0])
_VESSEL_SIGNAL, _TISSUE_SIGNAL = 1.0, 0.30

# Right-sided courses, mm; mirrored for the left. The number is the lumen radius in mm (textbook means).
_PAIRED = {
    "internal carotid": (
        2.3,
        [
            [27, -16, -100],
            [26, -14, -80],
            [25, -12, -62],
            [19, 0, -55],
            [12, 8, -48],
            [11, 20, -40],
            [13, 25, -33],
            [14, 18, -28],
            [14, 12, -24],
            [15, 9, -18],
        ],
    ),
    "middle cerebral": (1.5, [[15, 9, -18], [22, 8, -17], [30, 6, -19], [37, 4, -17], [42, 1, -10]]),
    "upper M2": (1.1, [[42, 1, -10], [43, 4, -2], [42, 0, 8], [45, -8, 14], [54, -12, 13]]),
    "lower M2": (1.1, [[42, 1, -10], [43, -8, -6], [43, -18, 2], [46, -28, 8], [56, -34, 8]]),
    "anterior cerebral 1": (1.2, [[15, 9, -18], [9, 13, -17], [3, 18, -15]]),
    "anterior cerebral 2": (
        1.1,
        [[3, 18, -15], [3, 27, -10], [3, 40, 2], [3, 42, 16], [3, 33, 28], [3, 14, 35], [3, -10, 37], [3, -30, 34]],
    ),
    "posterior cerebral": (
        1.2,
        [[0, -8, -24], [7, -9, -21], [15, -16, -19], [20, -28, -15], [17, -44, -8], [13, -60, -2], [11, -74, 4]],
    ),
    "posterior communicating": (0.65, [[14, 16, -25], [13, 5, -25], [10, -5, -23], [8, -9, -21]]),
    "superior cerebellar": (0.75, [[0, -9, -28], [9, -12, -28], [17, -24, -28], [20, -40, -26], [22, -56, -24]]),
    "vertebral": (1.5, [[14, -38, -98], [12, -36, -80], [9, -26, -70], [5, -17, -60], [0, -13, -52]]),
}
_SINGLE = {
    "basilar": (1.7, [[0, -13, -52], [0, -10, -44], [0, -8, -34], [0, -8, -24]]),
    "anterior communicating": (0.8, [[-3, 18, -15], [0, 18.5, -15], [3, 18, -15]]),
}
# Where distal branches leave and the fan of their headings: start (right side), central heading, spread, number a side.
_DISTAL = (
    ((54, -12, 13), (0.1, 0.3, 1.0), 1.0, 8),
    ((56, -34, 8), (0.0, -0.8, 0.3), 1.0, 7),
    ((42, 1, -10), (0.6, 0.8, 0.5), 0.8, 4),
    ((43, -8, -6), (0.5, -0.3, -0.8), 0.7, 4),
    ((3, 40, 2), (0.2, 0.6, 0.9), 0.7, 3),
    ((3, 14, 35), (0.3, 0.3, 1.0), 0.8, 3),
    ((3, -30, 34), (0.1, -1.0, -0.1), 0.7, 3),
    ((17, -44, -8), (0.8, -0.7, -0.2), 0.7, 4),
    ((11, -74, 4), (0.3, -0.5, 0.7), 0.9, 4),
    ((22, -56, -24), (0.5, -0.8, -0.2), 0.8, 2),
)
_DISTAL_RADIUS_MM = 0.85


@dataclass(frozen=True)
class Vessel:
    """One artery.

    Args:
        points_mm: Course in template coordinates, (N, 3), about every half millimetre.
        radius_mm: Lumen radius along it, (N,).
        distal: Whether it is one of the branches that fade with age.
    """

    points_mm: np.ndarray
    radius_mm: np.ndarray
    distal: bool

    def length_mm(self) -> float:
        """Give the length of the course in millimetres."""
        return float(np.linalg.norm(np.diff(self.points_mm, axis=0), axis=1).sum())


def grow_arteries(traits: dict[str, float], rng: np.random.Generator | None) -> list[Vessel]:
    """Grow one subject's arteries.

    Args:
        traits: `calibre_scale`, `tortuosity_mm`, `branch_share`.
        rng: Source of this subject's own courses; None gives the same mean tree every time.

    Returns:
        Large arteries, then the distal branches that are visible at this age.
    """
    wander_mm = 0.0 if rng is None else 1.0
    rng = np.random.default_rng(0) if rng is None else rng
    calibre, winding_mm = traits["calibre_scale"], traits["tortuosity_mm"]
    vessels = []
    courses = [(r, np.array(p, float) * [side, 1, 1]) for r, p in _PAIRED.values() for side in (1, -1)]
    courses += [(r, np.array(p, float)) for r, p in _SINGLE.values()]
    for radius, points in courses:
        own = points.copy()
        own[1:-1] += wander_mm * rng.normal(0, 1, own[1:-1].shape)
        taper = np.linspace(1.08, 0.9, 2)
        vessels.append(_vessel(own, radius * calibre * taper, winding_mm * min(1.0, 1.2 / radius), rng, distal=False))
    return vessels + _grow_branches(traits, calibre, winding_mm, rng)


def _grow_branches(
    traits: dict[str, float], calibre: float, winding_mm: float, rng: np.random.Generator
) -> list[Vessel]:
    places = [
        (start, heading, side, spread * (2 * (k + 0.5) / number - 1))
        for start, heading, spread, number in _DISTAL
        for side in (1, -1)
        for k in range(number)
    ]
    # Every branch carries a stem and two forks; the order in which they go is each subject's own, forks before stems.
    lasting = rng.uniform(0, 1, (len(places), 3))
    lasting[:, 1:] *= lasting[:, :1]
    order = np.argsort(-lasting.reshape(-1), kind="stable")
    shown = set(order[: round(min(traits["branch_share"], 1.0) * order.size)].tolist())
    branches = []
    for n, (start, heading, side, turn) in enumerate(places):
        origin, direction = np.array(start, float) * [side, 1, 1], np.array(heading, float) * [side, 1, 1]
        fan = _fan(origin, _turn(origin, direction, turn + rng.normal(0, 0.12)), rng)
        for part, (points, radius) in enumerate(fan):
            if 3 * n + part in shown:
                branches.append(_vessel(points, radius * calibre, winding_mm, rng, distal=True))
    return branches


def _fan(origin: np.ndarray, direction: np.ndarray, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Courses and radii (mm) of a branch over the surface of the brain and of the two it forks into."""
    stem = _crawl(origin, direction, rng.uniform(22, 34), rng)
    fan = [(stem, np.array([1.1, 0.9]) * _DISTAL_RADIUS_MM)]
    for turn in (rng.uniform(0.3, 0.7), -rng.uniform(0.3, 0.7)):
        fork = _crawl(stem[-1], _turn(stem[-1], stem[-1] - stem[-2], turn), rng.uniform(14, 30), rng)
        fan.append((fork, np.array([0.9, 0.6]) * _DISTAL_RADIUS_MM))
    return fan


def _crawl(origin: np.ndarray, direction: np.ndarray, length_mm: float, rng: np.random.Generator) -> np.ndarray:
    """Walk from `origin` along `direction`, drawn towards the surface of the brain; a point about every 5 mm."""
    points = [origin]
    for _ in range(max(int(length_mm / 5), 2)):
        step = direction / (np.linalg.norm(direction) + 1e-9) + rng.normal(0, 0.22, 3)
        following = points[-1] + 5 * step / np.linalg.norm(step)
        level = float(np.linalg.norm(following / _BRAIN_AXES_MM))
        following = following * (1 + 0.5 * (1 / max(level, 0.3) - 1)) if level > 0.75 else following
        direction = following - points[-1]
        points.append(following)
    return np.array(points)


def _turn(position: np.ndarray, direction: np.ndarray, angle: float) -> np.ndarray:
    """Rotate a heading about the outward direction at `position`."""
    axis = position / np.linalg.norm(position)
    direction = direction / np.linalg.norm(direction)
    return np.asarray(
        direction * np.cos(angle)
        + _cross(axis, direction) * np.sin(angle)
        + axis * (axis @ direction) * (1 - np.cos(angle))
    )


def _vessel(
    points: np.ndarray, radius: np.ndarray, winding_mm: float, rng: np.random.Generator, *, distal: bool
) -> Vessel:
    """Draw a smooth course through `points` and wind it about itself, both ends fixed."""
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    place = np.linspace(0, along[-1], max(int(along[-1] / _POINT_STEP_MM), 4))
    course = _smooth_course(points, along, place)
    tangent = np.empty_like(course)
    tangent[1:-1], tangent[0], tangent[-1] = course[2:] - course[:-2], course[1] - course[0], course[-1] - course[-2]
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True) + 1e-9
    aside = _cross(tangent, rng.normal(0, 1, 3))
    aside /= np.linalg.norm(aside, axis=1, keepdims=True) + 1e-9
    wave = 2 * np.pi * place / rng.uniform(13, 19) + rng.uniform(0, 2 * np.pi)
    held = np.minimum(1.0, np.minimum(place, along[-1] - place) / 6.0)[:, None] * winding_mm
    across = 0.6 * _cross(tangent, aside)
    course = course + held * (aside * np.sin(wave)[:, None] + across * np.cos(1.3 * wave)[:, None])
    return Vessel(course, np.linspace(radius[0], radius[1], len(place)), distal)


def _smooth_course(points: np.ndarray, along: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Cubic Hermite curve through `points` (Catmull-Rom slopes), read at arc lengths `place`."""
    slope = np.empty_like(points)
    slope[1:-1] = (points[2:] - points[:-2]) / (along[2:] - along[:-2])[:, None]
    slope[0], slope[-1] = (points[1] - points[0]) / along[1], (points[-1] - points[-2]) / (along[-1] - along[-2])
    piece = np.minimum(np.searchsorted(along, place, side="right") - 1, len(points) - 2)
    width = (along[piece + 1] - along[piece])[:, None]
    u = (place - along[piece])[:, None] / width
    end, start = u * u * (3 - 2 * u), u * (1 - u) * width
    return np.asarray(
        (1 - end) * points[piece] + end * points[piece + 1] + start * ((1 - u) * slope[piece] - u * slope[piece + 1])
    )


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cross product over the last axis; several times faster than NumPy's on short arrays."""
    return np.asarray(a[..., [1, 2, 0]] * b[..., [2, 0, 1]] - a[..., [2, 0, 1]] * b[..., [1, 2, 0]])


def paint_slab(vessels: list[Vessel], settings: ScanSettings, contrast: float = 0.0) -> np.ndarray:
    """Give the time-of-flight signal of a slab: dark tissue, bright arteries that fade towards the top.

    Args:
        vessels: Arteries in template coordinates.
        settings: The scan: where its voxels lie.
        contrast: −1 to 1: less or more signal in the arteries.

    Returns:
        float32 of `settings.shape`, arteries near 1.
    """
    slab = resample_head(_tissue(), head_origin_mm(), STEP_MM, settings)
    share = vessel_share(vessels, settings)
    # Blood is saturated on its way up through the slab, so arteries fade.
    inflow = np.linspace(1.0, 0.85, settings.shape[2], dtype=np.float32) * np.float32(_VESSEL_SIGNAL + 0.1 * contrast)
    slab += share * (inflow - slab)
    return slab


def vessel_share(vessels: list[Vessel], settings: ScanSettings) -> np.ndarray:
    """Give the share of every voxel that lies inside an artery, float32 of `settings.shape`, 0 to 1."""
    points = np.concatenate([vessel.points_mm for vessel in vessels])
    radius = np.concatenate([vessel.radius_mm for vessel in vessels]) * settings.head_scale
    share = np.zeros(settings.shape, np.float32)
    voxels = settings.voxel_of_head(points)
    for low, high in ((0.0, 1.0), (1.0, 2.0), (2.0, 9.0)):
        chosen = (radius >= low) & (radius < high)
        if chosen.any():
            _splat(share, voxels[chosen], radius[chosen], np.array(settings.spacing_mm))
    return share


def _splat(share: np.ndarray, voxels: np.ndarray, radius_mm: np.ndarray, spacing_mm: np.ndarray) -> None:
    """Lay a soft-edged ball at every point, in windows just large enough; overlapping balls keep the larger share."""
    soft_mm = float(spacing_mm.mean())
    # A soft edge of width h adds h²/12 to the squared radius; a tube too thin for that is drawn wider and fainter.
    edge = soft_mm**2 / 12
    drawn_mm = np.sqrt(np.maximum(radius_mm**2 - edge, 3 * edge))
    faint = radius_mm**2 / (drawn_mm**2 + edge)
    reach = np.ceil((drawn_mm.max() + 0.5 * soft_mm) / spacing_mm).astype(int)
    window = np.stack(np.meshgrid(*[np.arange(-n, n + 1) for n in reach], indexing="ij"), -1).reshape(-1, 3)
    inside = np.all((voxels > -reach) & (voxels < np.array(share.shape) - 1 + reach), axis=1)
    voxels, drawn_mm, faint = voxels[inside], drawn_mm[inside].astype(np.float32), faint[inside].astype(np.float32)
    centre = np.rint(voxels).astype(int)
    offset_mm = ((window[None] - (voxels - centre)[:, None]) * spacing_mm).astype(np.float32)
    distance = np.sqrt(np.einsum("pwc,pwc->pw", offset_mm, offset_mm))
    value = np.clip((drawn_mm[:, None] - distance) / soft_mm + 0.5, 0, 1) * faint[:, None]
    place = centre[:, None] + window[None]
    keep = (value > 0) & np.all((place >= 0) & (place < share.shape), axis=2)
    flat = np.ravel_multi_index(tuple(place[keep].T), share.shape)
    np.maximum.at(share.reshape(-1), flat, value[keep])


@lru_cache(maxsize=1)
def _tissue() -> np.ndarray:
    """Time-of-flight signal of everything but blood, alike for all subjects so that only arteries tell age."""
    mean = {"ventricle_scale": 1.0, "sulcal_half_width_mm": 0.7, "cortical_thickness_mm": 3.1, "lesion_load": 0.0}
    head = phantom_head.draw_head(mean, None)
    picture = ndimage.gaussian_filter(head.image, 0.7)
    return np.asarray(np.float32(_TISSUE_SIGNAL) * np.tanh(1.6 * picture), np.float32)
