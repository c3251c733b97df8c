"""Register a head to a template, whatever its orientation, pose, field of view and contrast."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from neuroage.errors import UsageError
from neuroage.imaging.read import Volume
from neuroage.imaging.registration.align import Fit, Picture, coarsen, refine
from neuroage.imaging.registration.head import air_beyond, find_head, mask_picture
from neuroage.imaging.registration.mni152 import Template
from neuroage.imaging.registration.quality import find_problem, is_stripped, measure, sharpness
from neuroage.imaging.registration.result import Registration
from neuroage.imaging.registration.shading import find_shading, remove_shading
from neuroage.imaging.registration.start import find_starts
from neuroage.imaging.registration.target import SPACINGS_MM, Target, make_target, mni152_target
from neuroage.imaging.registration.transform import mean_distance_mm

KINDS = ("affine", "rigid")
N_REFINED = (24, 4)  # starts taken on at 8 mm, and of these at 4 mm
MOST_SHADINGS = 6  # each is fitted in a pose that the last one's rest has pulled at; most heads need two
STILL_MM = 0.5  # a pose that moves less has found its shading
SURE = 1.7  # sharpness that only right poses reach; below, the rotations far from the header's are tried as well
LEAST_HEAD_LITRES = 0.3  # a third of the smallest adult brain


def register_to_template(
    volume: Volume, template: Template | Target | None = None, *, kind: str = "affine"
) -> Registration:
    """Find where a template's places lie in a scan of a head, with or without its skull.

    All poses within 90 degrees of the one that the header claims are tried, and all others where none of these fits
    well. A failure does not raise: `problem` says so. Which side is left cannot be seen in a head, so a scan whose
    header exchanges left and right registers as well as any other.

    Args:
        volume: Any orientation, contrast and field of view that holds most of the brain.
        template: To register to; None for MNI152. `make_target` prepares another one once for many scans.
        kind: "affine" (12 degrees of freedom), or "rigid": the turn and the shift of the affine one without its scales.

    Returns:
        Template millimetres to scan millimetres, figures of quality, and what speaks against the result.

    Raises:
        UsageError: `kind` is unknown, or nilearn, which brings MNI152, is not installed.

    Example:
        >>> import numpy as np
        >>> from neuroage.imaging.read import Volume
        >>> empty = Volume(np.ones((1, 40, 40, 40), np.float32), np.diag([4.0, 4, 4, 1]))
        >>> register_to_template(empty).problem
        'No head was found in the scan.'
    """
    if kind not in KINDS:
        raise UsageError(f"kind = {kind!r}", expected=f"one of {', '.join(KINDS)}")
    began = time.perf_counter()
    target = template if isinstance(template, Target) else make_target(template) if template else mni152_target()
    head = find_head(volume)
    if head.mask.sum() * abs(np.linalg.det(head.affine)) < LEAST_HEAD_LITRES * 1e6:
        return Registration(np.eye(4), {}, "No head was found in the scan.", time.perf_counter() - began)
    heads = {spacing: mask_picture(coarsen(volume, None, spacing), head) for spacing in SPACINGS_MM}
    brains = {spacing: air_beyond(picture) for spacing, picture in heads.items()}
    fit, stripped = _search(target, heads, brains, head)
    pictures = brains if stripped else heads
    fit, even = _refine_unshaded(target, pictures, fit)
    quality = measure(target, heads[4], even, fit.matrix, stripped=stripped)
    matrix = fit.matrix if kind == "affine" else _without_scale(fit.matrix, target.classes.centre_mm)
    return Registration(matrix, quality, find_problem(quality), time.perf_counter() - began)


def _search(target: Target, heads: dict[int, Picture], brains: dict[int, Picture], head: Picture) -> tuple[Fit, bool]:
    """Find the best pose at 4 mm, and whether the skull is off.

    At first air does not count; see `find_head`. Where that shows that nothing but air lies around the brain, the
    border of the brain is what fixes its size, and air counts. A pose far from the header's has to tell more of the
    scan than the best near it, too: in a shaded, cut head a wrong pose can be a little sharper.
    """
    best: tuple[float, Fit, bool] | None = None
    for near_header in (True, False):
        starts = [start.matrix for start in find_starts(head, target.classes, near_header=near_header)]
        for fit, stripped in _best_fits(target, heads, brains, starts):
            picture = (brains if stripped else heads)[4]
            fit = refine(target.points[4], picture, fit.matrix, "affine")
            sharp = sharpness(target, picture, fit.matrix)
            tells_more = best is None or stripped != best[2] or fit.score > best[1].score
            if best is None or (sharp > best[0] and tells_more):
                best = sharp, fit, stripped
            if best[0] >= SURE:
                return best[1:]
    assert best is not None
    return best[1:]


def _best_fits(
    target: Target, heads: dict[int, Picture], brains: dict[int, Picture], starts: Sequence[np.ndarray]
) -> Iterator[tuple[Fit, bool]]:
    """Give the best pose where air does not count, then the one where it does, with whether the skull is off.

    The first is left out where the skull is off, the second where it is on. A bare brain with vast ventricles may be
    found by the second only.
    """
    fit = _refine_all(target, heads, starts)
    stripped = is_stripped(target, heads[4], fit.matrix)
    if not stripped:
        yield fit, False
    fit = _refine_all(target, brains, [fit.matrix, *starts] if stripped else starts)
    if stripped or is_stripped(target, heads[4], fit.matrix):
        yield fit, True


def _refine_unshaded(target: Target, pictures: dict[int, Picture], fit: Fit) -> tuple[Fit, Picture]:
    """Refine at 4 mm and at 2 mm with the coils' shading taken out; give the fit and the picture at 4 mm without it."""
    points, even = target.points[4], pictures[4]
    brain = points.places_mm[target.in_brain[4]]
    for _ in range(MOST_SHADINGS):
        before, shading = fit, find_shading(points, target.in_brain[4], pictures[4], fit.matrix)
        even = remove_shading(points, shading, pictures[4], fit.matrix)
        fit = refine(points, even, fit.matrix, "affine")
        if mean_distance_mm(before.matrix, fit.matrix, brain) < STILL_MM:
            break
    fine = remove_shading(points, shading, pictures[2], fit.matrix)
    return refine(target.points[2], fine, fit.matrix, "affine"), even


def _refine_all(target: Target, pictures: dict[int, Picture], starts: Sequence[np.ndarray]) -> Fit:
    coarse = [refine(target.points[8], pictures[8], matrix, "similarity") for matrix in starts[: N_REFINED[0]]]
    coarse.sort(key=lambda fit: -fit.score)
    fine = [refine(target.points[4], pictures[4], fit.matrix, "similarity") for fit in coarse[: N_REFINED[1]]]
    return max(fine, key=lambda fit: fit.score)


def _without_scale(matrix: np.ndarray, centre_mm: np.ndarray) -> np.ndarray:
    """Keep an affine transform's rotation (polar decomposition) and where it takes the middle of the brain."""
    left, _, right = np.linalg.svd(matrix[:3, :3])
    rigid = np.eye(4)
    rigid[:3, :3] = left @ right
    rigid[:3, 3] = matrix[:3, :3] @ centre_mm + matrix[:3, 3] - rigid[:3, :3] @ centre_mm
    return rigid
