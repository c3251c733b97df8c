"""The phantom's scanner: everything about a scan that has nothing to do with age.

`draw_settings` draws the nuisance, `acquire` applies it, so that a scan can be repeated from its settings.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

SITES = ("north", "east", "south")
ORIENTATIONS = ("RAS", "LAS", "LPS", "PSR")
_ORIENTATION_SHARE = (0.45, 0.25, 0.15, 0.15)
_FIELD_OF_VIEW_MM = {"t1": (186.0, 224.0, 200.0), "tof": (168.0, 200.0, 96.0)}
_SPACING_MM = {"t1": (2.0, 2.0, 2.0), "tof": (1.35, 1.35, 1.7)}
_CENTRE_MM = {"t1": (0.0, 0.0, -2.0), "tof": (0.0, 0.0, -4.0)}
_UNIT_COUNTS = {"t1": 400.0, "tof": 300.0}  # stored value of the brightest tissue at gain 1
_BIAS_ORDER = 3


@dataclass(frozen=True)
class ScanSettings:
    """How one scan is taken: geometry, contrast and noise.

    Args:
        spacing_mm: Voxel size along left-right, back-front, bottom-top.
        shape: Matrix size along the same axes.
        centre_mm: Position of the middle of the matrix in scanner space.
        rotation: Rotation matrix of the head, (3, 3).
        shift_mm: Shift of the head.
        head_scale: Size of the head relative to the template.
        gain: Factor on all intensities.
        noise_sd: Spread of the noise relative to the brightest tissue.
        bias: Coefficients of the polynomial bias field, (4, 4, 4); zeros for none.
        orientation: Order and sense in which voxels are stored, for example `"LPS"`.
    """

    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]
    centre_mm: tuple[float, float, float]
    rotation: np.ndarray = field(default_factory=lambda: np.eye(3))
    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    head_scale: float = 1.0
    gain: float = 1.0
    noise_sd: float = 0.0
    bias: np.ndarray = field(default_factory=lambda: np.zeros((_BIAS_ORDER + 1,) * 3))
    orientation: str = "RAS"

    def affine(self) -> np.ndarray:
        """Give the map from voxel (before reorientation) to scanner millimetres, (4, 4)."""
        affine = np.diag([*self.spacing_mm, 1.0])
        affine[:3, 3] = np.array(self.centre_mm) - np.array(self.spacing_mm) * (np.array(self.shape) - 1) / 2
        return affine

    def voxel_of_head(self, points_mm: np.ndarray) -> np.ndarray:
        """Map template head coordinates (N, 3) in mm to voxel coordinates (N, 3)."""
        scanner_mm = self.head_scale * points_mm @ self.rotation.T + np.array(self.shift_mm)
        return np.asarray((scanner_mm - self.affine()[:3, 3]) / np.array(self.spacing_mm))


def plain_settings(modality: str) -> ScanSettings:
    """Give the settings without any nuisance: mean geometry, no noise, no bias, RAS."""
    return _with_geometry(modality, np.ones(3), np.ones(3))


def draw_settings(modality: str, site: str, head_scale: float, rng: np.random.Generator) -> ScanSettings:
    """Draw one scan's nuisance; age takes no part in it.

    Args:
        modality: `"t1"` or `"tof"`.
        site: One of `SITES`; shifts gain and noise a little, as scanners do.
        head_scale: Size of this head relative to the template.
        rng: Source of randomness.
    """
    common, single = rng.uniform(0.9, 1.15), rng.uniform(0.97, 1.03, 3)
    plain = _with_geometry(modality, common * single, rng.uniform(0.97, 1.06, 3))
    offset = SITES.index(site) - 1
    bias = rng.uniform(-1, 1, (_BIAS_ORDER + 1,) * 3)
    degree = np.add.outer(np.add.outer(np.arange(4), np.arange(4)), np.arange(4))
    bias = np.where((degree >= 1) & (degree <= _BIAS_ORDER), bias * 0.10, 0.0)
    return ScanSettings(
        spacing_mm=plain.spacing_mm,
        shape=plain.shape,
        centre_mm=plain.centre_mm,
        rotation=_rotation(np.deg2rad(rng.uniform(-8, 8, 3))),
        shift_mm=tuple(rng.uniform(-6, 6, 3)),
        head_scale=head_scale,
        gain=float(np.clip(np.exp(rng.uniform(-np.log(2), np.log(2)) + 0.1 * offset), 0.5, 2.0)),
        noise_sd=float(rng.uniform(0.012, 0.04) * (1 + 0.15 * offset)),
        bias=bias,
        orientation=str(rng.choice(ORIENTATIONS, p=_ORIENTATION_SHARE)),
    )


def resample_head(image: np.ndarray, origin_mm: np.ndarray, step_mm: float, settings: ScanSettings) -> np.ndarray:
    """Sample a template-space picture on the scan's voxels (linear interpolation, zero outside).

    Args:
        image: float32 (X, Y, Z) on a regular grid in template head coordinates.
        origin_mm: Coordinates of its first voxel.
        step_mm: Its grid step.
        settings: The scan.

    Returns:
        float32 of `settings.shape`.
    """
    affine = settings.affine()
    to_head = settings.rotation.T / settings.head_scale
    matrix = to_head @ np.diag(settings.spacing_mm) / step_mm
    offset = (to_head @ (affine[:3, 3] - np.array(settings.shift_mm)) - origin_mm) / step_mm
    return np.asarray(
        ndimage.affine_transform(image, matrix, offset, settings.shape, np.float32, order=1, prefilter=False)
    )


def acquire(
    signal: np.ndarray, modality: str, settings: ScanSettings, rng: np.random.Generator | None
) -> tuple[np.ndarray, np.ndarray]:
    """Turn signal on the scan's voxels into the stored scan: bias field, Rician noise, gain, int16, stored orientation.

    Args:
        signal: float32 of `settings.shape`, brightest tissue near 1; overwritten.
        modality: Decides the stored value of the brightest tissue.
        settings: The scan.
        rng: Source of the noise; None for none.

    Returns:
        data: int16 in the stored orientation.
        affine: (4, 4) for that orientation.
    """
    if settings.bias.any():
        signal *= _bias_field(settings)
    if rng is not None and settings.noise_sd > 0:
        noise = rng.standard_normal((2, *signal.shape), dtype=np.float32)
        noise *= np.float32(settings.noise_sd)
        signal += noise[0]
        signal *= signal
        signal += np.square(noise[1], out=noise[1])
        np.sqrt(signal, out=signal)
    signal *= np.float32(settings.gain * _UNIT_COUNTS[modality])
    np.rint(signal, out=signal)
    np.clip(signal, 0, 32767, out=signal)
    return _reorient(signal.astype(np.int16), settings.affine(), settings.orientation)


def _with_geometry(modality: str, spacing_factor: np.ndarray, view_factor: np.ndarray) -> ScanSettings:
    spacing = np.round(np.array(_SPACING_MM[modality]) * spacing_factor, 3)
    shape = np.rint(np.array(_FIELD_OF_VIEW_MM[modality]) * view_factor / spacing).astype(int)
    return ScanSettings(tuple(spacing.tolist()), tuple(shape.tolist()), _CENTRE_MM[modality])


def _rotation(angles: np.ndarray) -> np.ndarray:
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x)


def _bias_field(settings: ScanSettings) -> np.ndarray:
    powers = np.arange(_BIAS_ORDER + 1)
    x, y, z = (np.linspace(-1, 1, n, dtype=np.float32)[:, None] ** powers for n in settings.shape)
    plane = np.einsum("ia,jb,abc->ijc", x, y, settings.bias.astype(np.float32), optimize=True)
    log_field = plane @ z.T
    return np.asarray(np.exp(log_field, out=log_field))


def _reorient(data: np.ndarray, affine: np.ndarray, orientation: str) -> tuple[np.ndarray, np.ndarray]:
    axes = ["RL", "AP", "SI"]
    order = [next(k for k, pair in enumerate(axes) if letter in pair) for letter in orientation]
    stored = affine[:, [*order, 3]].copy()
    data = data.transpose(order)
    for axis, letter in enumerate(orientation):
        if letter == axes[order[axis]][1]:
            stored[:3, 3] += stored[:3, axis] * (data.shape[axis] - 1)
            stored[:, axis] *= -1
            data = np.flip(data, axis)
    return data, stored
