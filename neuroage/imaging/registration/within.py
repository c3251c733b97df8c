"""Find one person's scan in another of the same session: an angiogram or a proton density slab in the T1 head.

The slab's places are looked for in the head, not the other way round: it covers less, so every place of it may count.
The search starts from the positions in both headers, which mostly agree to within centimetres, from starts around them,
and from the middles on each other for headers that do not agree.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np

from neuroage.imaging.read import Volume
from neuroage.imaging.registration.align import Fit, Picture, Points, coarsen, draw_points, refine
from neuroage.imaging.registration.result import Registration
from neuroage.imaging.registration.transform import apply, describe, mean_distance_mm

SPACINGS_MM = (6, 4, 2)  # at 8 mm a masked slab of 40 mm holds too few points: places that are wrong inform as much
TURN_DEG, SHIFT_MM = 22.0, 20.0  # between starts; the coarsest level reaches half of that and more
N_FOLLOWED = (24, 12)  # starts followed at the first and the second level; with 8 and 3 one in twenty slabs was lost
SAME_MM = 4.0  # two searches that end closer have found the same place

# Chosen on slabs of phantoms and real heads in known poses: those found within 1 mm had at least 0.59 nats, a lead of
# 0.11 and halves 1.3 mm apart; those lost had at most 0.02 nats, or a lead below 0.05, or halves 4 mm apart.
LEAST_INFORMATION, LEAST_LEAD, MOST_APART_MM = 0.02, 0.06, 3.0
LEAST_INSIDE = 0.25  # share of the slab; with less, the rest of it says nothing


def register_within(moving: Volume, fixed: Volume) -> Registration:
    """Find the rigid transform between two scans of one head with different contrasts.

    The same scans give the same numbers on any number of cores.

    Args:
        moving: May cover a part of the head, such as a slab of 40 mm or more; data (1, I, J, K).
        fixed: The scan that it is registered to, mostly a whole T1 head.

    Returns:
        Fixed millimetres to moving millimetres; the positions of the headers stand (identity) where there is a
        problem. Quality: `information` (nats), `inside` (share of the moving scan within the fixed one), `coverage`
        (share of the fixed head within the moving scan), `lead` (how much less the second best place informs, 0 to 1),
        `halves_apart_mm` (front and back half registered alone), `rotation_deg` and `shift_mm` (off the headers).

    Example:
        >>> found = register_within(tof, t1)  # doctest: +SKIP
        >>> in_place = place(tof, found.matrix)  # doctest: +SKIP
    """
    began = time.perf_counter()
    points, picture = _level(moving, fixed, SPACINGS_MM[0])
    head = _head_places(picture)
    starts = [refine(points, picture, start, "rigid", most_steps=0) for start in _starts(points, head)]
    chosen = [starts[0], *sorted(starts[1:], key=lambda fit: -fit.score)[: N_FOLLOWED[0]]]
    found = _distinct([refine(points, picture, fit.matrix, "rigid") for fit in chosen], points)
    points, picture = _level(moving, fixed, SPACINGS_MM[1])
    found = _distinct([refine(points, picture, fit.matrix, "rigid") for fit in found[: N_FOLLOWED[1]]], points)
    points, picture = _level(moving, fixed, SPACINGS_MM[2])
    best = refine(points, picture, found[0].matrix, "rigid")
    quality = {
        "information": best.information,
        "inside": best.inside,
        "coverage": _share_within(moving, apply(np.linalg.inv(best.matrix), head)),
        "lead": 1 - found[1].score / max(found[0].score, 1e-12) if len(found) > 1 else 1.0,
        "halves_apart_mm": _halves_apart_mm(points, picture, best),
        "rotation_deg": float(describe(best.matrix)["rotation_deg"]),  # type: ignore[arg-type]
        "shift_mm": mean_distance_mm(best.matrix, np.eye(4), points.places_mm.mean(0, keepdims=True)),
    }
    problem = _find_problem(quality)
    matrix = np.eye(4) if problem else np.linalg.inv(best.matrix)
    quality = {name: round(value, 4) for name, value in quality.items()}
    return Registration(matrix, quality, problem, time.perf_counter() - began)


def _level(moving: Volume, fixed: Volume, spacing_mm: float) -> tuple[Points, Picture]:
    return draw_points(moving, None, spacing_mm), coarsen(fixed, None, spacing_mm)


def _head_places(picture: Picture) -> np.ndarray:
    """Millimetres of the voxels that are not air, (N, 3)."""
    bright = 0.2 * np.quantile(picture.data, 0.99)  # air, skull and cerebrospinal fluid of a T1 scan lie below
    return apply(picture.affine, np.argwhere(picture.data > bright))


def _starts(points: Points, head_mm: np.ndarray) -> Iterator[np.ndarray]:
    """Give the headers' own positions first, then turns and shifts about them, and about the middles on each other."""
    yield np.eye(4)
    centre = points.places_mm.mean(0)
    shifts = [np.array(shift) * SHIFT_MM for shift in product((-1, 0, 1), repeat=3)]
    to_middle = head_mm.mean(0) - centre if len(head_mm) else np.zeros(3)
    shifts += [to_middle + np.array([0, 0, up * SHIFT_MM]) for up in (-2, -1, 0, 1, 2)]
    for angles in product((-TURN_DEG, 0.0, TURN_DEG), repeat=3):
        for shift in shifts:
            matrix = np.eye(4)
            matrix[:3, :3] = _rotation(np.deg2rad(angles))
            matrix[:3, 3] = centre + shift - matrix[:3, :3] @ centre
            yield matrix


def _rotation(angles: np.ndarray) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    return np.asarray(Rotation.from_rotvec(angles).as_matrix())


def _distinct(fits: list[Fit], points: Points) -> list[Fit]:
    """Sort by score, best first, and keep one of those that ended at the same place."""
    kept: list[Fit] = []
    for fit in sorted(fits, key=lambda fit: -fit.score):
        if all(mean_distance_mm(fit.matrix, other.matrix, points.places_mm) > SAME_MM for other in kept):
            kept.append(fit)
    return kept


def _share_within(volume: Volume, places_mm: np.ndarray) -> float:
    voxels = apply(np.linalg.inv(volume.affine), places_mm)
    within = ((voxels > -0.5) & (voxels < np.array(volume.shape) - 0.5)).all(axis=1)
    return float(within.mean()) if len(voxels) else 0.0


def _halves_apart_mm(points: Points, picture: Picture, best: Fit) -> float:
    """Register the front and the back half of the points alone; where all fits by chance, they part."""
    front = points.places_mm[:, 1] > np.median(points.places_mm[:, 1])
    ends = []
    for part in (front, ~front):
        half = replace(points, places_mm=points.places_mm[part], labels=points.labels[part])
        ends.append(refine(half, picture, best.matrix, "rigid").matrix)
    return mean_distance_mm(ends[0], ends[1], points.places_mm)


def _find_problem(quality: dict[str, float]) -> str:
    if quality["inside"] < LEAST_INSIDE:
        return f"only {quality['inside']:.0%} of the scan lies within the other one"
    if quality["information"] < LEAST_INFORMATION:
        return f"the scans tell too little of each other ({quality['information']:.3f} nats)"
    if quality["halves_apart_mm"] > MOST_APART_MM:
        return f"registered alone, its front and its back half end {quality['halves_apart_mm']:.1f} mm apart"
    if quality["lead"] < LEAST_LEAD:
        return f"another place fits as well (only {quality['lead']:.1%} less)"
    return ""
