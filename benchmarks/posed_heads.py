"""Heads in known poses, for `registration.py`: each sampled once, as a scanner would take it, in any orientation."""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from neuroage.imaging import phantom_head, phantom_vessels
from neuroage.imaging.phantom_effects import draw_traits
from neuroage.imaging.phantom_scanner import ScanSettings, _rotation, acquire, draw_settings
from neuroage.imaging.phantom_template import STEP_MM, head_origin_mm, head_template
from neuroage.imaging.read import Volume, read
from neuroage.imaging.registration.transform import apply

ORIENTATIONS = [
    "".join(letters) for axes in itertools.permutations(("RL", "AP", "SI")) for letters in itertools.product(*axes)
]
FORMS = ("whole", "stripped", "cut")


def random_pose(rng: np.random.Generator, degrees: float, shift_mm: float, scale: tuple[float, float]) -> np.ndarray:
    """A pose: head millimetres to scanner millimetres, (4, 4)."""
    pose = np.eye(4)
    pose[:3, :3] = _rotation(np.deg2rad(rng.uniform(-degrees, degrees, 3))) * rng.uniform(*scale)
    pose[:3, 3] = rng.uniform(-shift_mm, shift_mm, 3)
    return pose


def phantom_head_volume(seed: int) -> tuple[Volume, np.ndarray, phantom_head.Head]:
    """A head on the phantom's own grid, what lies inside of its skull (0 to 1), and the parts of its brain."""
    rng = np.random.default_rng([75, seed])
    head = phantom_head.draw_head(draw_traits("t1", rng.uniform(20, 85), rng), rng, rng.uniform(-1, 1))
    affine = np.diag([STEP_MM, STEP_MM, STEP_MM, 1.0])
    affine[:3, 3] = head_origin_mm()
    inside = np.zeros_like(head.image)
    inside[head_template().brain] = sum(head.parts[part] for part in ("ventricles", "csf", "grey", "white"))
    return Volume(head.image[None], affine), inside, head


def scan_in_pose(
    volume: Volume, inside: np.ndarray, pose: np.ndarray, form: str, rng: np.random.Generator, *, clean: bool = False
) -> Volume:
    """Take a scan of a head in a pose: sampled once, with bias field and noise, stored in a random orientation."""
    data = volume.data[0] * (inside > 0.5) if form == "stripped" else volume.data[0]
    box = corners_mm(data > 0.02 * data.max(), volume.affine, pose)
    box += [rng.uniform(-25, -3, 3), rng.uniform(3, 25, 3)]  # the head is not in the middle of its field of view
    if form == "cut":
        brain = corners_mm(inside > 0.5, volume.affine, pose)
        box[:, 2] = brain[0, 2] - rng.uniform(0, 15), brain[1, 2] - rng.uniform(0, 15)
    spacing = np.round(rng.uniform(1.3, 2.1) * rng.uniform(0.9, 1.1, 3), 3)
    shape = np.rint((box[1] - box[0]) / spacing).astype(int)
    plain = draw_settings("t1", "east", 1.0, rng)
    settings = replace(
        plain,
        spacing_mm=tuple(spacing.tolist()),
        shape=tuple(shape.tolist()),
        centre_mm=tuple(box.mean(axis=0).tolist()),
        orientation=str(rng.choice(ORIENTATIONS)),
    )
    if clean:
        settings = replace(settings, bias=np.zeros_like(settings.bias), noise_sd=0.0)
    signal = sample(pose @ volume.affine, volume.data[0], settings.affine(), settings.shape)
    scan = stored(signal, "t1", settings, rng)
    if form == "stripped":  # as the tools leave it: nothing outside, noise within
        brain = sample(pose @ volume.affine, inside.astype(np.float32), scan.affine, scan.shape) > 0.5
        scan = replace(scan, data=scan.data * brain)
    return scan


def slab(
    contrast: str,
    volume: Volume,
    inside: np.ndarray,
    head: phantom_head.Head,
    pose: np.ndarray,
    rng: np.random.Generator,
    thickness_mm: float = 60.0,
) -> tuple[Volume, np.ndarray]:
    """A slab of the head in another contrast, and the places of the brain that it covers, head millimetres (N, 3)."""
    spacing = np.array([0.7, 0.7, 0.8]) if contrast == "tof" else np.array([1.0, 1.0, 4.0])
    size_mm = np.array([176.0, 200.0, thickness_mm])
    # Planned on the person as they lie: over the middle of the brain, give or take.
    centre = apply(pose, np.array([[0.0, -4.0, -2.0]]))[0] + rng.uniform(-12, 12, 3)
    settings = replace(
        draw_settings(contrast if contrast == "tof" else "t1", "east", 1.0, rng),
        spacing_mm=tuple(spacing.tolist()),
        shape=tuple(np.rint(size_mm / spacing).astype(int).tolist()),
        centre_mm=tuple(centre.tolist()),
        rotation=pose[:3, :3],
        shift_mm=tuple(pose[:3, 3].tolist()),
        orientation=str(rng.choice(ORIENTATIONS)),
    )
    if contrast == "tof":
        tissue = 0.30 * np.tanh(1.6 * ndimage.gaussian_filter(volume.data[0], 0.7))
        signal = sample(pose @ volume.affine, tissue, settings.affine(), settings.shape)
        arteries = phantom_vessels.grow_arteries(draw_traits("tof", rng.uniform(20, 85), rng), rng)
        share = phantom_vessels.vessel_share(arteries, settings)
        signal += share * (np.linspace(1.0, 0.85, settings.shape[2], dtype=np.float32) - signal)
    else:
        # Proton density turns the order of the tissues around: fluid brightest, then grey, then white matter.
        density = 0.75 * volume.data[0] * (1 - inside)
        parts = {"csf": 1.0, "ventricles": 1.0, "grey": 0.88, "white": 0.70}
        density[head_template().brain] += sum(level * head.parts[part] for part, level in parts.items())
        signal = sample(pose @ volume.affine, density, settings.affine(), settings.shape)
    voxels = np.argwhere(inside[::4, ::4, ::4] > 0.5) * 4
    points = apply(volume.affine, voxels)
    index = settings.voxel_of_head(points)
    covered = ((index >= 0) & (index <= np.array(settings.shape) - 1)).all(axis=1)
    return stored(signal, "tof" if contrast == "tof" else "t1", settings, rng), points[covered]


def corners_mm(mask: np.ndarray, affine: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """The box around a mask in scanner space: lowest and highest millimetres, (2, 3)."""
    places = apply(pose @ affine, np.argwhere(mask[::2, ::2, ::2]) * 2)
    return np.array([places.min(axis=0), places.max(axis=0)])


def sample(affine: np.ndarray, data: np.ndarray, onto: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Values of a volume at the voxels of another, both by their affine, linear, float32."""
    between = np.linalg.solve(affine, onto)
    return np.asarray(ndimage.affine_transform(data, between[:3, :3], between[:3, 3], shape, np.float32, order=1))


def stored(signal: np.ndarray, modality: str, settings: ScanSettings, rng: np.random.Generator | None) -> Volume:
    """Store a scan as a scanner does and read it back."""
    import nibabel as nib

    voxels, affine = acquire(signal, modality, settings, rng)
    with tempfile.TemporaryDirectory() as folder:
        nib.save(nib.Nifti1Image(voxels, affine), Path(folder) / "scan.nii")
        return read(Path(folder) / "scan.nii")
