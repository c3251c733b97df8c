"""Mistakes that people make with scans, made on purpose: what the input contract is measured with.

Each mistake takes voxels in RAS+ order and their affine, and gives both back as a wrong export, header or pipeline
would.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy import ndimage

from neuroage.imaging import phantom_head
from neuroage.imaging.phantom import phantom_subject
from neuroage.imaging.phantom_effects import draw_traits
from neuroage.imaging.phantom_scanner import SITES, acquire, draw_settings, resample_head
from neuroage.imaging.phantom_template import STEP_MM, head_origin_mm, head_template

Scan = tuple[np.ndarray, np.ndarray]
FWHM_TO_SIGMA = 1 / np.sqrt(8 * np.log(2))  # of a Gaussian
BLUR_MM = 4.0  # full width at half maximum
N_LABELS = 4


def phantom_scan(index: int, seed: int = 0, *, stripped: bool = True) -> tuple[np.ndarray, np.ndarray, float]:
    """Draw a T1 phantom, with or without its skull.

    Args:
        index: Number of the subject.
        seed: Of the cohort.
        stripped: Only what lies inside the skull is left; the rest is 0.

    Returns:
        int16 voxels in RAS order, affine, and the age in years; the same subject stripped or not.
    """
    rng = np.random.default_rng([seed, index])
    age = float(rng.uniform(20, 80))
    site, scale, contrast = str(rng.choice(SITES)), 1 + float(rng.uniform(-0.08, 0.08)), float(rng.uniform(-1, 1))
    settings = replace(draw_settings("t1", site, scale, rng), orientation="RAS")
    head = phantom_head.draw_head(draw_traits("t1", age, rng), rng, contrast)
    signal = resample_head(head.image, head_origin_mm(), STEP_MM, settings)
    data, affine = acquire(signal, "t1", settings, rng)
    if stripped:
        template = head_template()
        inside = np.zeros(head.image.shape, dtype=np.float32)
        inside[template.brain] = template.dura > 0
        data = data * (resample_head(inside, head_origin_mm(), STEP_MM, settings) > 0.5)
    return data, affine, age


def phantom_tof(index: int, seed: int = 0) -> Scan:
    """Draw a TOF phantom: the wrong modality for a run on T1."""
    scan = phantom_subject(seed=seed, index=index, modalities=("tof",)).scans["tof"]
    return scan.data, scan.affine


def _about_the_middle(data: np.ndarray, affine: np.ndarray, wrong: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Give an affine with other axes whose grid has the same middle."""
    middle = affine[:3, :3] @ ((np.array(data.shape) - 1) / 2) + affine[:3, 3]
    result = np.eye(4)
    result[:3, :3] = wrong
    result[:3, 3] = middle - wrong @ ((np.array(shape) - 1) / 2)
    return result


def exchange_axes(data: np.ndarray, affine: np.ndarray) -> Scan:
    """Exchange front–back and up–down, as a header of another orientation does."""
    turned = data.transpose(0, 2, 1)
    return turned, _about_the_middle(data, affine, affine[:3, :3][:, [0, 1, 2]], turned.shape)


def enlarge(data: np.ndarray, affine: np.ndarray, factor: float) -> Scan:
    """Multiply the voxel size in the header."""
    return data, _about_the_middle(data, affine, affine[:3, :3] * factor, data.shape)


def cut_in_half(data: np.ndarray, affine: np.ndarray) -> Scan:
    """Keep the upper half of the field of view."""
    start = data.shape[2] // 2
    moved = affine.copy()
    moved[:3, 3] += affine[:3, 2] * start
    return data[:, :, start:], moved


def blur(data: np.ndarray, affine: np.ndarray) -> Scan:
    """Smooth with a Gaussian of 4 mm full width at half maximum."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return ndimage.gaussian_filter(data.astype(np.float32), BLUR_MM * FWHM_TO_SIGMA / spacing), affine


def invert(data: np.ndarray, affine: np.ndarray) -> Scan:
    """Turn bright into dark."""
    return float(data.max()) - data.astype(np.float32), affine


def make_labels(data: np.ndarray, affine: np.ndarray) -> Scan:
    """Give tissue classes in the place of intensities."""
    lowest = data.min()
    edges = np.quantile(data[data > lowest], np.arange(1, N_LABELS) / N_LABELS)
    return np.where(data > lowest, np.digitize(data, edges) + 1, 0).astype(np.int16), affine


MISTAKES: dict[str, Callable[[np.ndarray, np.ndarray], Scan]] = {
    "flipped front–back": lambda data, affine: (data[:, ::-1], affine),
    "flipped up–down": lambda data, affine: (data[:, :, ::-1], affine),
    "axes exchanged": exchange_axes,
    "centimetres as millimetres": lambda data, affine: enlarge(data, affine, 10),
    "voxels doubled": lambda data, affine: enlarge(data, affine, 2),
    "intensities × 1000": lambda data, affine: (data.astype(np.float32) * 1000, affine),
    "intensities inverted": invert,
    "half the field of view": cut_in_half,
    "blurred by 4 mm": blur,
    "label map": make_labels,
}
"""Mistakes that can be made of any scan; another modality and a skull left on need other scans."""
