"""Measure how well a template was found in a scan, and say what speaks against it.

The figure that decides is sharpness: mutual information at the result, over the most of it at fifteen poses that are
surely wrong. It asks for no contrast and hardly depends on noise, and the best of many wrong poses is little better
than its neighbours.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.spatial.transform import Rotation

from neuroage.imaging.registration.align import Picture, sample_levels
from neuroage.imaging.registration.mutual_information import count, information
from neuroage.imaging.registration.target import Target
from neuroage.imaging.registration.transform import describe

SPACING_MM = 4  # of the places that are looked at: noise is averaged, and it takes a tenth of a second
STRIPPED_BELOW = 0.6  # of the ring in the head; measured: at most 0.35 in brains, 0.98 and more in heads
SHARP = 1.32  # measured: right results reach 1.38 and more, wrong ones 1.28 at most (docs/explanation/registration.md)
LEAST_INFORMATION = 0.06  # nats in the brain; right results have 0.14 and more
LEAST_COVERAGE = 0.7  # of the brain: with less, neither the pose nor what is made of the scan can be relied on
SCALES = (0.55, 1.5)  # of a head against the template: from a new-born's to a third more than the largest adult's
MOST_STRETCH = 1.7  # largest over smallest scale


def is_stripped(target: Target, head: Picture, matrix: np.ndarray) -> bool:
    """Tell whether nothing but air lies around the brain."""
    return share_in_head(target, head, matrix, in_brain=False) < STRIPPED_BELOW


def share_in_head(target: Target, head: Picture, matrix: np.ndarray, *, in_brain: bool) -> float:
    """Give which share of the template's brain, or of the ring around it, lies in the head, as far as the scan goes."""
    voxels, inside = _voxels(target, head, matrix, in_brain)
    return float(head.mask[tuple(voxels[inside].T)].mean()) if inside.any() else 0.0


def coverage(target: Target, head: Picture, matrix: np.ndarray) -> float:
    """Give which share of the template's brain lies within the scan."""
    return float(_voxels(target, head, matrix, True)[1].mean())


def sharpness(target: Target, picture: Picture, matrix: np.ndarray) -> float:
    """Give the information at a pose over the most of it at wrong poses; about 1 where the pose is wrong itself.

    The wrong poses are the given one turned by 20 degrees and shifted by 15 mm, to and fro along each axis, and turned
    upside down, back to front and head over heels.
    """
    here = _information(target, picture, matrix, slice(None))
    wrong = [matrix @ move for move in _wrong_moves(tuple(target.classes.centre_mm))]
    return here / max(1e-6, *(_information(target, picture, pose, slice(None)) for pose in wrong))


def measure(target: Target, head: Picture, picture: Picture, matrix: np.ndarray, *, stripped: bool) -> dict[str, float]:
    """Measure a result.

    Args:
        target: The template.
        head: The scan at 4 mm, with its head mask.
        picture: The scan at 4 mm as it was looked at: the head alone, or, where stripped, all of it.
        matrix: Template millimetres to scan millimetres.
        stripped: Whether the skull is off.

    Returns:
        `sharpness`; `information` (nats, brain and ring) and `information_brain`; `correlation` of the scan with the
        template's T1 within the brain (a T2 has a negative one); `coverage` and `in_head`, shares of the template's
        brain within the scan and on its head; `stripped` (0 or 1) and there `dice` of the scan's own brain with the
        template's; `rotation_deg`, `scale_least`, `scale_most`.
    """
    levels, in_brain = sample_levels(target.points[SPACING_MM], picture, matrix), target.in_brain[SPACING_MM]
    seen = in_brain & ~np.isnan(levels)
    shown, expected = levels[seen], target.intensities[SPACING_MM][seen]
    varies = seen.any() and np.ptp(shown) > 0 and np.ptp(expected) > 0
    parts = describe(matrix)
    scales = parts["scale"]
    assert isinstance(scales, list) and isinstance(parts["rotation_deg"], float)
    quality = {
        "sharpness": sharpness(target, picture, matrix),
        "information": _information(target, picture, matrix, slice(None)),
        "information_brain": _information(target, picture, matrix, in_brain),
        "correlation": float(np.corrcoef(shown, expected)[0, 1]) if varies else 0.0,
        "coverage": coverage(target, head, matrix),
        "in_head": share_in_head(target, head, matrix, in_brain=True),
        "stripped": float(stripped),
        "rotation_deg": parts["rotation_deg"],
        "scale_least": float(scales[-1]),
        "scale_most": float(scales[0]),
    }
    if stripped:
        quality["dice"] = _dice(target, head, matrix)
    return {name: round(value, 4) for name, value in quality.items()}


def find_problem(quality: dict[str, float]) -> str:
    """Say in one sentence why a result is not to be trusted; "" where nothing speaks against it."""
    least, most = quality["scale_least"], quality["scale_most"]
    if quality["sharpness"] < SHARP:
        return (
            f"The template's brain was not found: it fits {quality['sharpness']:.2f} times as well as in wrong poses "
            f"(expected {SHARP} or more)."
        )
    if quality["information_brain"] < LEAST_INFORMATION:
        return (
            "The template's brain was not found: scan and template share "
            f"{quality['information_brain']:.2f} nats of information (expected {LEAST_INFORMATION} or more)."
        )
    if quality["coverage"] < LEAST_COVERAGE:
        return (
            f"Only {quality['coverage']:.0%} of the brain lies within the scan (expected {LEAST_COVERAGE:.0%} or more)."
        )
    if least < SCALES[0] or most > SCALES[1] or most > MOST_STRETCH * least:
        return (
            f"The head would have {least:.2f} to {most:.2f} times the template's size "
            f"(expected {SCALES[0]} to {SCALES[1]}, the largest at most {MOST_STRETCH} times the least)."
        )
    return ""


def _voxels(target: Target, head: Picture, matrix: np.ndarray, in_brain: bool) -> tuple[np.ndarray, np.ndarray]:
    places = target.points[SPACING_MM].places_mm[target.in_brain[SPACING_MM] == in_brain]
    to_voxel = np.linalg.solve(head.affine, matrix)
    voxels = np.rint(places @ to_voxel[:3, :3].T + to_voxel[:3, 3]).astype(int)
    return voxels, ((voxels >= 0) & (voxels < head.data.shape)).all(1)


def _information(target: Target, picture: Picture, matrix: np.ndarray, chosen: np.ndarray | slice) -> float:
    """Give the information of some of the places, times the share of them that lie in the picture."""
    points = target.points[SPACING_MM]
    levels, labels = sample_levels(points, picture, matrix)[chosen], points.labels[chosen]
    return information(count(levels, labels, points.n_labels)) * float((~np.isnan(levels)).mean())


@lru_cache(maxsize=4)
def _wrong_moves(centre_mm: tuple[float, float, float]) -> list[np.ndarray]:
    turns = [sign * 20 * axis for axis in np.eye(3) for sign in (-1, 1)] + [180 * axis for axis in np.eye(3)]
    moves = []
    for turn in turns:
        move = np.eye(4)
        move[:3, :3] = Rotation.from_rotvec(turn, degrees=True).as_matrix()
        move[:3, 3] = centre_mm - move[:3, :3] @ centre_mm
        moves.append(move)
    for shift in [sign * 15 * axis for axis in np.eye(3) for sign in (-1, 1)]:
        move = np.eye(4)
        move[:3, 3] = shift
        moves.append(move)
    return moves


def _dice(target: Target, head: Picture, matrix: np.ndarray) -> float:
    """Give the overlap of the scan's own mask with the template's brain, both as volumes in the template's space."""
    n_brain = float(target.in_brain[SPACING_MM].sum()) * SPACING_MM**3
    voxel = abs(np.linalg.det(head.affine[:3, :3]) / np.linalg.det(matrix[:3, :3]))
    both = coverage(target, head, matrix) * share_in_head(target, head, matrix, in_brain=True) * n_brain
    return float(2 * both / (n_brain + float(head.mask.sum()) * voxel))
