"""What of a scan is head and what is air: a coarse mask.

Air tells nothing about where the brain lies, but to mutual information the border of head and air looks like that of a
template's brain: a search that counts air fits the brain to the whole head.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numba import njit
from scipy import ndimage

from neuroage.imaging.read import Volume
from neuroage.imaging.registration.align import Picture, coarsen

SPACING_MM = 4.0
BEYOND_MM = 24.0  # more than the ring around a template's brain, so that a brain cut out closely keeps all of it
TOUCHED = 0.05  # share of a face of the scan that a head which ends there may touch
SHARE_OF_RANGE = 0.1  # above the darkest voxels: BET's threshold (Smith 2002, doi:10.1002/hbm.10062)


def find_head(volume: Volume) -> Picture:
    """Find the head at about 4 mm: the largest bright piece, its holes filled.

    Holes are filled slice by slice along each axis, as the skull and the sinuses are open where the scan ends.

    Returns:
        The coarse volume with `mask` True in the head.
    """
    picture = coarsen(volume, None, SPACING_MM)
    data = picture.data
    low, high = np.quantile(data, [0.02, 0.98])
    above = data[data > low]
    if above.size:  # where most of a scan is air, its bright end is sought among what is not the darkest
        high = max(high, float(np.quantile(above, 0.98)))
    mask = ndimage.binary_opening(data > low + SHARE_OF_RANGE * (high - low))
    pieces, n_pieces = ndimage.label(mask)
    if n_pieces > 1:
        mask = pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    mask = ndimage.binary_closing(np.pad(mask, 3), iterations=2)[3:-3, 3:-3, 3:-3]
    for axis in range(3):
        for plane in np.moveaxis(mask, axis, 0):
            plane[...] = ndimage.binary_fill_holes(plane)
    return replace(picture, mask=mask.astype(np.uint8))


def mask_picture(picture: Picture, head: Picture) -> Picture:
    """Leave in a picture only the head."""
    to_head = np.linalg.solve(head.affine, picture.affine)[:3]
    return replace(picture, mask=_read_nearest(head.mask, to_head, picture.data.shape))


@njit(nogil=True, cache=True)
def _read_nearest(mask, to_mask, shape):
    result = np.zeros(shape, np.uint8)
    for i in range(shape[0]):
        for j in range(shape[1]):
            for k in range(shape[2]):
                u = int(np.floor(to_mask[0, 0] * i + to_mask[0, 1] * j + to_mask[0, 2] * k + to_mask[0, 3] + 0.5))
                v = int(np.floor(to_mask[1, 0] * i + to_mask[1, 1] * j + to_mask[1, 2] * k + to_mask[1, 3] + 0.5))
                w = int(np.floor(to_mask[2, 0] * i + to_mask[2, 1] * j + to_mask[2, 2] * k + to_mask[2, 3] + 0.5))
                u, v = min(max(u, 0), mask.shape[0] - 1), min(max(v, 0), mask.shape[1] - 1)
                w = min(max(w, 0), mask.shape[2] - 1)
                result[i, j, k] = mask[u, v, w]
    return result


def air_beyond(picture: Picture) -> Picture:
    """Count every voxel, and let the air go on beyond the faces of the scan that the head hardly touches."""
    spacing = np.linalg.norm(picture.affine[:3, :3], axis=0)
    widths = []
    for axis in range(3):
        width = int(np.ceil(BEYOND_MM / spacing[axis]))
        faces = [picture.mask.take(index, axis) for index in (0, -1)]
        widths.append([width if face.mean() < TOUCHED else 0 for face in faces])
    affine = picture.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ [before for before, _ in widths]
    data = np.pad(picture.data, widths, constant_values=float(np.quantile(picture.data, 0.01)))
    return Picture(data, np.zeros((0, 0, 0), np.uint8), affine)
