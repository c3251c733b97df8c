"""Shading is told from anatomy by a template's labels, and taken out."""

from __future__ import annotations

import numpy as np

from neuroage.imaging.registration.align import Picture, Points
from neuroage.imaging.registration.shading import find_shading, remove_shading

SIZE, SPACING_MM = 40, 4.0


def test_a_smooth_field_is_taken_out_and_the_tissues_stay() -> None:
    rng = np.random.default_rng(0)
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    affine[:3, 3] = -(SIZE - 1) / 2 * SPACING_MM
    voxels = np.stack(np.meshgrid(*[np.arange(SIZE)] * 3, indexing="ij"), -1)
    x, y, z = np.moveaxis((voxels - (SIZE - 1) / 2) * SPACING_MM / 80, -1, 0)
    labels = rng.integers(0, 3, (SIZE,) * 3)
    tissue = np.array([40.0, 60.0, 90.0])[labels]
    field = np.exp(0.4 * x - 0.3 * y * z + 0.2 * z**3)
    places = (voxels.reshape(-1, 3) @ affine[:3, :3] + affine[:3, 3])[labels.ravel() >= 0]
    points = Points(places + 0.0, labels.ravel(), 3)
    shaded = Picture((tissue * field).astype(np.float32), np.zeros((0, 0, 0), np.uint8), affine)

    shading = find_shading(points, np.ones(len(places), bool), shaded, np.eye(4))
    even = remove_shading(points, shading, shaded, np.eye(4))

    inner = (slice(4, -4),) * 3
    left = np.log(even.data / tissue)[inner]
    assert left.std() < 0.25 * np.log(field)[inner].std()
    assert (remove_shading(points, np.zeros_like(shading), shaded, np.eye(4)).data == shaded.data).all()
