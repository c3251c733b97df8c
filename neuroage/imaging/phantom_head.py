"""The phantom's head: T1-weighted anatomy of one subject, from the shared template and the subject's own traits.

The cortex is a ribbon below a pial surface that follows the outline of the brain and dives into sulci: sheets where a
smooth random field crosses zero. Ageing widens the sheets, thins the ribbon, inflates the ventricles and adds lesions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neuroage.imaging.phantom_template import (
    INTENSITY,
    N_FOLD_FIELDS,
    STEP_MM,
    HeadTemplate,
    head_template,
    soft_share,
)


@dataclass(frozen=True)
class Head:
    """One subject's head on the template grid.

    Args:
        image: T1-weighted signal, float32 (X, Y, Z), fat near 1.
        parts: Share of every brain voxel (0 to 1, float32, brain crop) that is `ventricles`, `csf`, `grey`, `white`,
            `lesions` (inside `white`).
    """

    image: np.ndarray
    parts: dict[str, np.ndarray]

    def volume_ml(self, part: str) -> float:
        """Give the volume of a part in millilitres, before the head is scaled."""
        return float(self.parts[part].sum(dtype=np.float64)) * STEP_MM**3 / 1000.0


def draw_head(traits: dict[str, float], rng: np.random.Generator | None, contrast: float = 0.0) -> Head:
    """Paint one subject's T1-weighted head.

    Args:
        traits: `ventricle_scale`, `sulcal_half_width_mm`, `cortical_thickness_mm`, `lesion_load`.
        rng: Source of the subject's own folding and lesion places; None gives the template folding.
        contrast: −1 to 1: less or more difference between grey and white matter.

    Returns:
        The head; what the scanner does to it comes later.
    """
    t = head_template()
    sulcus_mm, thickness_mm = traits["sulcal_half_width_mm"], traits["cortical_thickness_mm"]
    own = np.zeros(N_FOLD_FIELDS) if rng is None else rng.normal(0.0, 0.22, N_FOLD_FIELDS)
    own[0] = 1.0
    pial = _cortex_depth(t, own.astype(np.float32), sulcus_mm)
    stem = soft_share(t.stem + 1.0 - sulcus_mm)
    cerebellum = t.cerebellum - 0.5 * sulcus_mm
    hind = soft_share(cerebellum) * soft_share(t.folia - 0.4 * sulcus_mm, 1.5)
    brain = np.maximum(np.maximum(soft_share(pial), hind), stem)
    ventricles = _ventricles(t, traits["ventricle_scale"])
    # Grey matter sits on the cerebral surface, not around the ventricles, and thinly on the cerebellum's folia.
    white = np.maximum(soft_share(pial - thickness_mm), soft_share(np.minimum(cerebellum - 4.0, t.folia - 1.6), 3.0))
    np.maximum(white, stem, out=white)
    white *= 1.0 - t.deep
    brain *= 1.0 - ventricles
    white *= 1.0 - ventricles
    lesions = _lesions(t, traits["lesion_load"], traits["ventricle_scale"], rng) * white
    grey = brain - white
    csf = soft_share(t.dura) - brain - ventricles
    np.clip(csf, 0.0, 1.0, out=csf)
    parts = {"ventricles": ventricles, "csf": csf, "grey": grey, "white": white, "lesions": lesions}
    # Flesh of face and neck is brighter in some people: what a threshold takes for the head varies without age.
    flesh = 0.0 if rng is None else float(rng.uniform(-0.35, 0.35))
    return Head(_paint(t, parts, contrast, flesh), parts)


def _cortex_depth(t: HeadTemplate, own: np.ndarray, sulcus_mm: float) -> np.ndarray:
    """Millimetres below the pial surface, which follows the outline of the brain and dives into sulci and fissures."""
    fold = np.tensordot(own, t.folds, axes=1)
    along_x, along_y, along_z = np.gradient(fold, STEP_MM)
    slope = along_x**2 + along_y**2 + along_z**2
    np.sqrt(slope, out=slope)
    # Where the field is flat its zero set is no sheet; the floor keeps such places from becoming lakes.
    np.maximum(slope, np.float32(0.6 * slope.mean()), out=slope)
    sheet_mm = np.abs(fold) / slope
    sulcus = np.maximum(sheet_mm - sulcus_mm, t.depth - (17.0 + 5.0 * t.folds[1]))
    np.minimum(sulcus, t.depth - 0.8 * sulcus_mm, out=sulcus)
    return np.asarray(np.minimum(sulcus, t.fissure - 1.3 * sulcus_mm, out=sulcus))


def _ventricles(t: HeadTemplate, scale: float) -> np.ndarray:
    lateral = soft_share((scale - t.ventricle) * t.ventricle_mm)
    rim_mm = 10 * (1 - np.sqrt(((t.y + 4) / 15) ** 2 + ((t.z + 0.3 * t.y) / 10) ** 2))
    third = soft_share(np.minimum(2.2 * scale - 0.6 - np.abs(t.x), rim_mm))
    fourth = soft_share(8.0 - np.sqrt((1.1 * t.x) ** 2 + (2.2 * (t.y + 37)) ** 2 + (0.9 * (t.z + 40)) ** 2))
    return np.asarray(np.maximum(np.maximum(lateral, third), fourth))


def _lesions(t: HeadTemplate, load: float, scale: float, rng: np.random.Generator | None) -> np.ndarray:
    """Caps around the ventricles that thicken with the load, and one spot per lesion, the last only partly grown."""
    cap_mm = 0.14 * load
    lesions = soft_share((scale - t.ventricle) * t.ventricle_mm + cap_mm, 3.0)
    sites = t.lesion_sites
    order = np.arange(len(sites)) if rng is None else rng.permutation(len(sites))
    sizes = np.full(len(sites), 3.6) if rng is None else rng.uniform(2.8, 4.4, len(sites))
    for rank, site in enumerate(sites[order[: int(np.ceil(load))]]):
        radius_mm = float(sizes[rank]) * min(load - rank, 1.0) ** (1 / 3)
        window = tuple(slice(max(c - 4, 0), c + 5) for c in site)
        grid = np.ogrid[window]
        distance = np.sqrt(sum((g - c) ** 2 for g, c in zip(grid, site, strict=True))) * STEP_MM
        spot = soft_share((radius_mm - distance).astype(np.float32), 2.5)
        lesions[window] = np.maximum(lesions[window], spot[tuple(slice(0, n) for n in lesions[window].shape)])
    return lesions


def _paint(t: HeadTemplate, parts: dict[str, np.ndarray], contrast: float, flesh: float) -> np.ndarray:
    level = INTENSITY
    grey, deep = level["grey"] - 0.05 * contrast, level["deep"]
    picture = t.deep * np.float32(deep - grey)
    picture += np.float32(grey)
    picture *= parts["grey"]
    picture += np.float32(level["white"]) * parts["white"]
    picture -= np.float32(level["white"] - 0.46) * parts["lesions"]
    picture += np.float32(level["csf"]) * parts["csf"]
    image = t.shell + np.float32(flesh) * t.soft
    image[t.brain] += picture
    image[t.brain] += np.float32(level["csf"]) * parts["ventricles"]
    return image
