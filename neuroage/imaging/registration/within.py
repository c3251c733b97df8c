"""Find one person's scan in another of the same session: an angiogram or a proton density slab in the T1 head.

The slab's places are looked for in the head, not the other way round: it is what covers less, so every place of it may
count. The scanner's own positions are where the search starts, as they mostly agree to within centimetres; starts
around them and with the middles on each other follow for headers that do not.
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

LEVELS_MM = (6.0, 4.0, 2.0)
N_FOLLOWED = 24  # best starts that are followed at the coarsest level; more found nothing new on moved phantoms
TURN_DEG, SHIFT_MM = 22.0, 20.0  # between starts; what the coarsest level reaches


def register_within(moving: Volume, fixed: Volume) -> Registration:
    """Find the rigid transform between two scans of one head with different contrasts.

    Args:
        moving: May cover a part of the head, such as a slab of 40 mm or more; data (1, I, J, K).
        fixed: The scan that it is registered to, mostly a whole T1 head.

    Returns:
        Fixed millimetres to moving millimetres.

    Example:
        >>> found = register_within(tof, t1)  # doctest: +SKIP
        >>> in_place = place(tof, found.matrix)  # doctest: +SKIP
    """
    began = time.perf_counter()
    points, picture = _level(moving, fixed, LEVELS_MM[0])
    header = refine(points, picture, np.eye(4), "rigid", most_steps=0)
    starts = [refine(points, picture, start, "rigid", most_steps=0) for start in _starts(points, picture)]
    starts = sorted(starts, key=lambda fit: -fit.score)[:N_FOLLOWED]
    found = _distinct([refine(points, picture, fit.matrix, "rigid") for fit in [header, *starts]], points)
    points, picture = _level(moving, fixed, LEVELS_MM[1])
    found = _distinct([refine(points, picture, fit.matrix, "rigid") for fit in found[:12]], points)
    points, picture = _level(moving, fixed, LEVELS_MM[2])
    best = refine(points, picture, found[0].matrix, "rigid")
    quality = {
        "information": best.information,
        "inside": best.inside,
        "lead": 1 - found[1].score / found[0].score if len(found) > 1 else 1.0,
        "halves": _halves_apart_mm(points, picture, best),
        "rotation_deg": describe(best.matrix)["rotation_deg"],
        "shift_mm": mean_distance_mm(best.matrix, np.eye(4), points.places_mm.mean(0, keepdims=True)),
    }
    return Registration(np.linalg.inv(best.matrix), quality, "", time.perf_counter() - began)


def _level(moving: Volume, fixed: Volume, spacing_mm: float) -> tuple[Points, Picture]:
    return draw_points(moving, None, spacing_mm), coarsen(fixed, None, spacing_mm)


def _starts(points: Points, picture: Picture) -> Iterator[np.ndarray]:
    centre = points.places_mm.mean(0)
    head = np.argwhere(picture.data > 0.2 * np.quantile(picture.data, 0.99))
    middle = apply(picture.affine, head).mean(0)
    shifts = [np.array(shift) * SHIFT_MM for shift in product((-1, 0, 1), (-1, 0, 1), (-2, -1, 0, 1, 2))]
    shifts += [middle - centre + [0, 0, up * SHIFT_MM] for up in (-2, -1, 0, 1, 2)]
    for turn in product((-1, 0, 1), repeat=3):
        rotation = _rotation(np.deg2rad(TURN_DEG) * np.array(turn))
        for shift in shifts:
            matrix = np.eye(4)
            matrix[:3, :3] = rotation
            matrix[:3, 3] = centre + shift - rotation @ centre
            yield matrix


def _rotation(angles: np.ndarray) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    return Rotation.from_rotvec(angles).as_matrix()


def _distinct(fits: list[Fit], points: Points) -> list[Fit]:
    """Sort by score and keep one of those that ended at the same place."""
    kept: list[Fit] = []
    for fit in sorted(fits, key=lambda fit: -fit.score):
        if all(mean_distance_mm(fit.matrix, other.matrix, points.places_mm) > 4 for other in kept):
            kept.append(fit)
    return kept


def _halves_apart_mm(points: Points, picture: Picture, best: Fit) -> float:
    """Register the front and the back half of the points alone: how far apart do they end?"""
    front = points.places_mm[:, 1] > np.median(points.places_mm[:, 1])
    ends = []
    for part in (front, ~front):
        half = replace(points, places_mm=points.places_mm[part], labels=points.labels[part])
        ends.append(refine(half, picture, best.matrix, "rigid").matrix)
    return mean_distance_mm(ends[0], ends[1], points.places_mm)
