"""Register a head to a template, whatever its orientation, pose, field of view and contrast."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from neuroage.errors import UsageError
from neuroage.imaging.read import Volume
from neuroage.imaging.registration.align import Fit, Picture, Points, coarsen, draw_points, refine
from neuroage.imaging.registration.head import find_head, mask_picture
from neuroage.imaging.registration.mni152 import Template, load_mni152
from neuroage.imaging.registration.result import Registration
from neuroage.imaging.registration.start import Classes, find_starts

SPACINGS_MM = (8, 4, 2)
RING_MM = 8.0  # looked at around the brain: liquor and skull, before the scalp
N_STARTS = (24, 4)  # refined at 8 mm, then at 4 mm


class Target(NamedTuple):
    """A template made ready to be looked for: classes for the start, points for each level, where its brain is."""

    classes: Classes
    points: dict[int, Points]
    inner: dict[int, np.ndarray]


def register_to_template(volume: Volume, template: Template | None = None, *, kind: str = "affine") -> Registration:
    """Find where a template's places lie in a scan."""
    if kind not in ("affine", "rigid"):
        raise UsageError(f"kind = {kind!r}", expected="affine or rigid")
    began = time.perf_counter()
    target = _mni152() if template is None else make_target(template)
    head = find_head(volume)
    whole = {spacing: coarsen(volume, None, spacing) for spacing in SPACINGS_MM}
    pictures = {spacing: mask_picture(picture, head) for spacing, picture in whole.items()}
    whole = {spacing: _pad(picture) for spacing, picture in pictures.items()}
    fit, stripped = _search(target, whole, pictures, head, near_header=True)
    final = whole if stripped else pictures
    for spacing in (4, 2):
        fit = refine(target.points[spacing], final[spacing], fit.matrix, "affine")
    return Registration(fit.matrix, {"information": fit.information, "inside": fit.inside, "score": fit.score, "stripped": float(stripped), "ring": _ring_share(target, pictures[8], fit.matrix)}, "", time.perf_counter() - began)


def _search(target, whole, pictures, head, *, near_header: bool) -> tuple[Fit, bool]:
    starts = find_starts(head, target.classes, near_header=near_header)
    best = _refine_starts(target, pictures, [start.matrix for start in starts])
    stripped = _ring_share(target, pictures[8], best.matrix) < 0.7
    if stripped:
        best = _refine_starts(target, whole, [best.matrix] + [start.matrix for start in starts])
    return best, stripped


def _refine_starts(target, pictures, matrices) -> Fit:
    coarse = [refine(target.points[8], pictures[8], matrix, "similarity") for matrix in matrices[: N_STARTS[0]]]
    coarse.sort(key=lambda fit: -fit.score)
    fine = [refine(target.points[4], pictures[4], fit.matrix, "similarity") for fit in coarse[: N_STARTS[1]]]
    return max(fine, key=lambda fit: fit.score)


def _ring_share(target, picture, matrix):
    ring = ~target.inner[8]
    voxels = np.linalg.solve(picture.affine, matrix)[:3]
    places = np.rint(target.points[8].places_mm[ring] @ voxels[:, :3].T + voxels[:, 3]).astype(int)
    inside = ((places >= 0) & (places < picture.data.shape)).all(1)
    return float(picture.mask[tuple(places[inside].T)].mean()) if inside.any() else 0.0


@lru_cache(maxsize=1)
def _mni152() -> Target:
    return make_target(load_mni152(2))


def make_target(template: Template) -> Target:
    """Make a template ready."""
    volume, brain = template.volume, template.brain
    distance = ndimage.distance_transform_edt(~brain, sampling=volume.spacing_mm)
    near = distance <= RING_MM
    points = {spacing: draw_points(volume, near, spacing) for spacing in SPACINGS_MM}
    inner = {}
    for spacing, part in points.items():
        voxels = np.linalg.solve(volume.affine[:3, :3], (part.places_mm - volume.affine[:3, 3]).T)
        inner[spacing] = ndimage.map_coordinates(brain.astype(np.float32), voxels, order=1) > 0.5
    parts = [*template.tissue, brain - template.tissue.sum(0).clip(0, 1), near & ~brain]
    smooth = [ndimage.gaussian_filter(np.asarray(part, dtype=np.float32), 2)[::2, ::2, ::2] for part in parts]
    return Target(Classes(np.stack(smooth), volume.affine @ np.diag([2, 2, 2, 1.0])), points, inner)


PAD_MM = 24.0
FREE = 0.05  # share of a face of the volume that the head may touch for air to be taken to go on beyond it


def _pad(picture: Picture) -> Picture:
    """Let the air go on beyond the faces that the head does not touch, and count all voxels."""
    spacing = np.linalg.norm(picture.affine[:3, :3], axis=0)
    widths = []
    for axis in range(3):
        n = int(np.ceil(PAD_MM / spacing[axis]))
        faces = [picture.mask.take(index, axis) for index in (0, -1)]
        widths.append([n if face.mean() < FREE else 0 for face in faces])
    affine = picture.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ [before for before, _ in widths]
    return Picture(np.pad(picture.data, widths, constant_values=picture.data.min()), np.zeros((0, 0, 0), np.uint8), affine)
