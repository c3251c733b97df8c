"""The template's brain surface, moved to where a T1 scan's brain ends.

The scan lies in MNI152 already. Along each normal of the template's surface the place is looked for where grey matter
ends and something dark begins; neighbours vote together, so that sulci, vessels and bridges to the scalp cannot pull
the surface away. This is the idea of the deformable surface (Smith 2002, doi:10.1002/hbm.10062) near a known shape.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree

from neuroage.imaging.read import Volume
from neuroage.imaging.registration.mni152 import load_mni152
from neuroage.imaging.resampling import Grid, resample_to

GRID_MM = 2  # the surface moves smoothly: finer grids do not change it
REACH_MM = 12  # further the surface does not go; an affine leaves about 5 mm
ALONG_MM = np.arange(-15.0, 16.0)  # along the normal, outward positive
EDGE_MM = 4  # thickness of what is compared inside and outside of an edge: grey matter's
PRIOR_MM = 8.0  # distance from the template's surface that costs as much as half of a full edge
DARK_COST = 0.15  # for each dark millimetre passed on the way out: skull lies between brain and scalp
BRIGHTEST = 1.25  # times white matter: fat and vessels are brighter
NEIGHBOURS, VOTE_MM = 40, 5.0  # points that vote together, and how far that reaches: sulci are narrower
SHARPNESS = 8.0  # of the choice between places along one normal
FLUID_MM = 3.0  # from grey matter to the mask's border: 2.5 to 4 in phantoms and in masks of three programs
LEAST_CONTRAST = 1.1, 1.3  # white over grey matter, and grey matter over fluid: less is no T1 scan


class Surface(NamedTuple):
    """The template's surface on a grid of 2 mm.

    Attributes:
        grid: That grid.
        distance_mm: From the template's brain surface, negative inside, shape of the grid.
        points: Voxel places on the surface, (N, 3).
        normals: Outward directions there, (N, 3).
        votes: Weight of each neighbour, (N, N) sparse, rows sum to 1.
        band: Voxels that the surface may reach.
        nearest: The point nearest to each voxel of the band.
        grey, white: Voxels that are grey or white matter in most people.
    """

    grid: Grid
    distance_mm: np.ndarray
    points: np.ndarray
    normals: np.ndarray
    votes: csr_matrix
    band: np.ndarray
    nearest: np.ndarray
    grey: np.ndarray
    white: np.ndarray


@lru_cache(maxsize=1)
def template_surface() -> Surface:
    """Work out the surface of MNI152; once in a process."""
    template = load_mni152(GRID_MM)
    ball = np.linalg.norm(np.indices((5, 5, 5)) - 2, axis=0) <= 2
    brain = ndimage.binary_opening(ndimage.binary_fill_holes(template.brain), ball)  # a thin spur reaches into the nose
    brain = _largest_part(brain)
    outside, inside = (ndimage.distance_transform_edt(part, sampling=GRID_MM) for part in (~brain, brain))
    distance = np.where(brain, GRID_MM / 2 - inside, outside - GRID_MM / 2).astype(np.float32)
    points = np.argwhere(np.abs(distance) <= GRID_MM / 2)[::2].astype(float)  # both sides of it; half of them do
    slope = np.stack(np.gradient(ndimage.gaussian_filter(distance, 1.5)), axis=-1)
    normals = slope[tuple(points.astype(int).T)]
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    tree = cKDTree(points * GRID_MM)
    far, who = tree.query(points * GRID_MM, k=NEIGHBOURS)
    weight = np.exp(-0.5 * (far / VOTE_MM) ** 2) * np.maximum((normals[who] * normals[:, None]).sum(-1), 0)
    weight /= weight.sum(axis=1, keepdims=True)
    starts = np.arange(len(points) + 1) * NEIGHBOURS
    band = np.abs(distance) <= REACH_MM + 4
    return Surface(
        Grid(template.volume.shape, template.volume.affine),
        distance,
        points,
        normals,
        csr_matrix((weight.ravel(), who.ravel(), starts), shape=(len(points), len(points))),
        band,
        tree.query(np.argwhere(band) * float(GRID_MM))[1],
        (template.tissue[0] > 0.7) & (distance < -4),
        template.tissue[1] > 0.9,
    )


def find_surface(placed: Volume) -> tuple[np.ndarray, np.ndarray | None]:
    """Find where the brain ends.

    Args:
        placed: The scan in the space of MNI152.

    Returns:
        Distance from the found surface in millimetres, negative inside, on the surface's grid; and how far each point
        moved outward, or None where the scan has not the contrast of T1 and the surface stays the template's.
    """
    surface = template_surface()
    image = resample_to(placed.data[0], placed.affine, surface.grid)
    levels = _tissue_levels(image, surface)
    if levels is None:
        return surface.distance_mm, None
    moved_mm = _vote(_edges(_brightness(image, *levels), surface), surface)
    shift = np.zeros(image.shape, dtype=np.float32)
    shift[surface.band] = moved_mm[surface.nearest]
    within = ndimage.gaussian_filter(surface.band.astype(np.float32), 1.0)
    shift = ndimage.gaussian_filter(shift, 1.0) / np.maximum(within, 1e-3)  # nearest points leave steps
    distance = np.where(surface.band, surface.distance_mm - shift, surface.distance_mm)
    distance[(distance <= 0) & ~_largest_part(distance <= 0)] = GRID_MM
    return distance, moved_mm


def _largest_part(mask: np.ndarray) -> np.ndarray:
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())


def _tissue_levels(image: np.ndarray, surface: Surface) -> tuple[float, float, float] | None:
    """Give intensities of fluid, grey and white matter, or None where they are not in the order of T1."""
    core = image[surface.distance_mm < -8]
    fluid, grey, white = np.percentile(core, 1), np.median(image[surface.grey]), np.median(image[surface.white])
    over_grey, over_fluid = LEAST_CONTRAST
    if not (grey > 0 and white > over_grey * grey and grey > over_fluid * fluid):
        return None
    return float(fluid), float(grey), float(white)


def _brightness(image: np.ndarray, fluid: float, grey: float, white: float) -> np.ndarray:
    """Bring intensities to −1 for fluid, bone and fat, and 1 for brain."""
    bright = np.clip(2 * (image - fluid) / (grey - fluid) - 1, -1, 1)
    fat = np.clip(1 - (image / white - BRIGHTEST) / 0.15, -1, 1)  # within 0.3 of white matter from brain to fat
    return np.minimum(bright, fat).astype(np.float32)


def _edges(brightness: np.ndarray, surface: Surface) -> np.ndarray:
    """Say for each point and each place along its normal how much the brain seems to end there."""
    places = surface.points[:, :, None] + surface.normals[:, :, None] * (ALONG_MM / GRID_MM)
    along = ndimage.map_coordinates(brightness, places.transpose(1, 0, 2), order=1, mode="nearest")
    total = np.pad(np.cumsum(along, axis=1), ((0, 0), (1, 0)))
    n = len(ALONG_MM)
    end = np.arange(1, n + 1)
    low, high = np.maximum(end - EDGE_MM, 0), np.minimum(end + EDGE_MM, n)
    inside = (total[:, end] - total[:, low]) / (end - low)
    outside = (total[:, high] - total[:, end]) / np.maximum(high - end, 1)
    passed = np.cumsum(np.maximum(-along, 0), axis=1)
    return np.asarray(inside - outside - DARK_COST * passed - (ALONG_MM / PRIOR_MM) ** 2)


def _vote(edges: np.ndarray, surface: Surface) -> np.ndarray:
    """Choose for each point how far it moves outward, in millimetres, fluid included."""
    edges = surface.votes @ (surface.votes @ edges)
    usable = np.abs(ALONG_MM) <= REACH_MM
    edges = edges[:, usable]
    weight = np.exp(SHARPNESS * (edges - edges.max(axis=1, keepdims=True)))
    moved = (weight * ALONG_MM[usable]).sum(axis=1) / weight.sum(axis=1)
    return np.asarray(surface.votes @ moved + FLUID_MM)
