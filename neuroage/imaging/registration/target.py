"""A template made ready to be looked for in many scans."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from neuroage.imaging.read import Volume
from neuroage.imaging.registration.align import Points, coarsen, draw_points
from neuroage.imaging.registration.mni152 import Template, load_mni152
from neuroage.imaging.registration.start import Classes

SPACINGS_MM = (8, 4, 2)
RING_MM = 8.0  # looked at around the brain: liquor and skull, but not the scalp


@dataclass(frozen=True)
class Target:
    """What a search needs of a template.

    Attributes:
        classes: White matter, grey matter, liquor and the ring around the brain, for the start.
        points: Places within brain and ring, for each spacing in mm.
        in_brain: Which of these lie in the brain, (N,) bool.
        intensities: The template's intensity at them, (N,).
    """

    classes: Classes
    points: dict[int, Points]
    in_brain: dict[int, np.ndarray]
    intensities: dict[int, np.ndarray]


@lru_cache(maxsize=1)
def mni152_target() -> Target:
    """Give the MNI152 template made ready; kept for the life of the process."""
    return make_target(load_mni152(2))


def make_target(template: Template) -> Target:
    """Make a template ready: about half a second, so do it once for many scans."""
    volume, brain, tissue = _at_2_mm(template)
    distance = ndimage.distance_transform_edt(~brain, sampling=volume.spacing_mm)
    near = np.asarray(distance <= RING_MM)
    points = {spacing: draw_points(volume, near, spacing) for spacing in SPACINGS_MM}
    in_brain, intensities = {}, {}
    for spacing, drawn in points.items():
        to_voxel = np.linalg.inv(volume.affine[:3, :3])
        voxels = np.einsum("ab,nb->an", to_voxel, drawn.places_mm - volume.affine[:3, 3])
        in_brain[spacing] = ndimage.map_coordinates(brain.astype(np.float32), voxels, order=1) > 0.5
        smooth = ndimage.gaussian_filter(volume.data[0], spacing / 2 / np.array(volume.spacing_mm) - 0.5)
        intensities[spacing] = ndimage.map_coordinates(smooth, voxels, order=1)
    parts = [*tissue, brain - tissue.sum(0).clip(0, 1), near & ~brain]
    coarse = [coarsen(Volume(np.asarray(part, dtype=np.float32)[None], volume.affine), None, 4) for part in parts]
    shares = np.stack([ndimage.gaussian_filter(part.data, 1) for part in coarse])
    return Target(Classes(shares, coarse[0].affine), points, in_brain, intensities)


def _at_2_mm(template: Template) -> tuple[Volume, np.ndarray, np.ndarray]:
    """Average a finer template; a coarser one stays as it is."""
    volume, maps = template.volume, [template.brain.astype(np.float32), *template.tissue]
    coarse = [coarsen(Volume(np.asarray(part)[None], volume.affine), None, 2) for part in (volume.data[0], *maps)]
    data = [part.data for part in coarse]
    return Volume(data[0][None], coarse[0].affine), data[1] > 0.5, np.stack(data[2:])
