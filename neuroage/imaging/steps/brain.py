"""Brain masks: from the template, from a file, by another program, or of what is left after skull stripping."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from neuroage.errors import DataError, UsageError
from neuroage.imaging.read import Volume, read
from neuroage.imaging.registration.result import Registration
from neuroage.imaging.registration.transform import place
from neuroage.imaging.resampling import Grid, resample_to
from neuroage.imaging.steps.brain_surface import find_surface, template_surface
from neuroage.imaging.steps.programs import mask_by_program
from neuroage.runs.recipe_raw import Brain

VOLUME_ML = (700.0, 2600.0)  # brain with its fluid: 1,000 to 1,900 in adults, up to 2,400 once scaled to MNI152
LEAST_OVERLAP = 0.85  # Dice of the refined with the template's mask; 0.9 to 0.97 where registration was right
LEAST_COVERED = 0.9  # share of the template's mask within the scan, below which its volume says nothing
STRIPPED_SHARE = 0.4  # of voxels that are background, at least, where only the brain is left
BORDER_SHARE = 0.02  # of a face of the field of view: what is touched more is cut there


@dataclass(frozen=True)
class BrainMask:
    """Where the brain is.

    Attributes:
        mask: True within the brain, on the scan's own grid, (I, J, K).
        record: How it was made and how far it can be trusted; `problem` is "" where nothing speaks against it.
    """

    mask: np.ndarray
    record: dict[str, Any]


def brain_mask(
    volume: Volume,
    settings: Brain,
    *,
    registration: Registration | None = None,
    mask_file: Path | None = None,
) -> BrainMask:
    """Find the brain of a scan in the way the recipe asks for.

    Args:
        volume: The scan on its own grid, at its own place.
        settings: The recipe's section `prepare.brain`.
        registration: MNI152 millimetres to the scan's; needed by `mask: template`.
        mask_file: The scan's mask; needed by `mask: file`.

    Returns:
        The mask and its record: `volume_ml`, `problem`, `seconds`, and what each way has to say.

    Raises:
        UsageError: What the way needs is missing.
        DataError: A mask file or a program's result is of no use.
    """
    start = time.perf_counter()
    said: dict[str, Any] = {"problem": ""}
    if settings.mask == "template":
        if registration is None:
            raise UsageError("brain.mask: template needs a registration", fix="Set prepare.registration.")
        mask, said = template_mask(place(volume, registration.matrix))
    elif settings.mask == "file":
        if mask_file is None:
            raise UsageError("brain.mask: file needs a mask for every scan", fix="Set prepare.brain.file.")
        mask = mask_from_file(volume, mask_file)
    elif settings.mask == "nonzero":
        mask = nonzero_mask(volume)
    else:
        mask, program = mask_by_program(volume, settings.mask)
        mask = fill_holes(mask)
        said["program"] = program
    mask = grow(mask, volume.spacing_mm, settings.margin_mm)
    volume_ml = float(mask.sum() * abs(np.linalg.det(volume.affine[:3, :3])) / 1000)
    problem = said.pop("problem") or _volume_problem(volume_ml, said.get("covered", 1.0))
    record = {
        "name": "brain",
        "parameters": {"mask": settings.mask, "margin_mm": settings.margin_mm},
        **said,
        "volume_ml": round(volume_ml, 1),
        "problem": problem,
        "seconds": round(time.perf_counter() - start, 3),
    }
    return BrainMask(mask, record)


def _volume_problem(volume_ml: float, covered: float) -> str:
    low, high = VOLUME_ML
    if volume_ml > high or (volume_ml < low and covered >= LEAST_COVERED):
        return f"the brain mask takes {volume_ml:.0f} ml, and {low:g} to {high:g} are usual"
    return ""


def template_mask(placed: Volume) -> tuple[np.ndarray, dict[str, Any]]:
    """Lay the mask of MNI152 over a scan, and move its border to where the scan's brain ends.

    The border moves in scans with the contrast of T1 only; for others the plain mask is given, and `refined` is False.

    Args:
        placed: The scan, its affine leading into the space of MNI152.

    Returns:
        True within the brain, on the scan's grid; and a record: `refined`, `covered` (share of the template's brain
        within the scan), `template_overlap` (Dice of both masks), `moved_mm` (mean and spread), `problem`.
    """
    surface = template_surface()
    distance, moved = find_surface(placed)
    mask = _lay(distance, surface.grid.affine, placed)
    plain, found = surface.distance_mm <= 0, distance <= 0
    overlap = 2 * float((plain & found).sum()) / float(plain.sum() + found.sum())
    record: dict[str, Any] = {
        "refined": moved is not None,
        "covered": round(_covered(placed, plain, surface.grid.affine), 4),
        "template_overlap": round(overlap, 4),
    }
    if moved is not None:
        record["moved_mm"] = [round(float(moved.mean()), 2), round(float(moved.std()), 2)]
    low = overlap < LEAST_OVERLAP
    record["problem"] = f"the brain mask overlaps with the template's by {overlap:.2f} only" if low else ""
    return mask, record


def _lay(distance: np.ndarray, affine: np.ndarray, placed: Volume) -> np.ndarray:
    """Bring what lies within a surface onto the scan's grid; only the box around it is worked on."""
    inside = np.argwhere(distance <= 0)
    low, high = inside.min(axis=0) - 1, inside.max(axis=0) + 1
    corners = np.stack(np.meshgrid(*zip(low, high, strict=True), indexing="ij"), -1).reshape(-1, 3)
    to_scan = np.linalg.solve(placed.affine, affine)
    corners = corners @ to_scan[:3, :3].T + to_scan[:3, 3]
    first = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, placed.shape)
    last = np.clip(np.ceil(corners.max(axis=0)).astype(int) + 1, 0, placed.shape)
    mask = np.zeros(placed.shape, dtype=bool)
    if (last > first).all():
        moved = placed.affine.copy()
        moved[:3, 3] += moved[:3, :3] @ first
        i, j, k = (int(n) for n in last - first)
        box = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
        mask[box] = resample_to(distance, affine, Grid((i, j, k), moved), background=99.0) <= 0
    return mask


def _covered(placed: Volume, brain: np.ndarray, affine: np.ndarray) -> float:
    places = np.argwhere(brain)[::7]  # one in seven is plenty for a share
    to_scan = np.linalg.solve(placed.affine, affine)
    places = places @ to_scan[:3, :3].T + to_scan[:3, 3]
    return float(((places > -0.5) & (places < np.array(placed.shape) - 0.5)).all(axis=1).mean())


def nonzero_mask(volume: Volume) -> np.ndarray:
    """Give what is left of a scan after skull stripping: all but the background, with its holes."""
    return fill_holes(volume.data[0] != background_of(volume))


def background_of(volume: Volume) -> float:
    """Give the commonest value in the corners of the field of view."""
    corners = volume.data[0][:: volume.shape[0] - 1, :: volume.shape[1] - 1, :: volume.shape[2] - 1]
    values, counts = np.unique(corners, return_counts=True)
    return float(values[counts.argmax()])


def is_stripped(volume: Volume) -> bool:
    """Say whether a scan shows a brain without its skull.

    Then the background is exactly one value and takes much of the field of view, the rest has the volume of a brain,
    and it is cut on one side at most: a slab of a head whose air was set to 0 is cut on two.
    """
    rest = volume.data[0] != background_of(volume)
    volume_ml = float(rest.sum() * abs(np.linalg.det(volume.affine[:3, :3])) / 1000)
    if rest.mean() > 1 - STRIPPED_SHARE or not VOLUME_ML[0] <= volume_ml <= VOLUME_ML[1]:
        return False
    faces = [rest.take(end, axis=axis) for axis in range(3) for end in (0, -1)]
    return sum(float(face.mean()) > BORDER_SHARE for face in faces) <= 1


def find_mask_file(scan: Path, pattern: str) -> Path:
    """Give the mask file that belongs to a scan.

    Args:
        scan: The scan's file.
        pattern: Path with {folder} and {stem} of the scan's, such as "{folder}/{stem}_mask.nii.gz".

    Raises:
        UsageError: The pattern holds something else, or there is no such file.
    """
    stem = scan.name.removesuffix(".gz")
    stem = stem[: stem.rfind(".")] if "." in stem and not scan.is_dir() else stem
    try:
        path = Path(pattern.format(folder=scan.parent, stem=stem))
    except (KeyError, IndexError, ValueError) as error:
        raise UsageError(f"brain.file = {pattern!r}", expected="{folder} and {stem} between the braces") from error
    if not path.exists():
        raise UsageError(f"{scan.name} has no mask at {path}", fix="Mend prepare.brain.file, or make the mask.")
    return path


def mask_from_file(volume: Volume, path: Path) -> np.ndarray:
    """Read a brain mask, on the scan's grid or on another one of the same space.

    One value beside 0 marks the brain; of shares between 0 and 1 those above 0.5 do.

    Returns:
        True within the brain, shape (I, J, K) of the scan.

    Raises:
        DataError: The file holds something else than a mask, or the mask lies elsewhere than the scan.
    """
    stored = read(path, nonfinite="zero")
    values = stored.data[0]
    marked = values[values != 0]
    mask = values > 0.5 if marked.max() <= 1 else values != 0
    shares, one_value = marked.min() > 0 and marked.max() <= 1, marked.min() == marked.max()
    if not mask.any() or not (shares or one_value):
        raise DataError(
            f"{path}: not a mask (values {values.min():g} to {values.max():g})",
            expected="0 and one other value, or shares from 0 to 1",
        )
    if stored.shape == volume.shape and np.allclose(stored.affine, volume.affine, atol=0.05):
        return mask
    to_mask = np.linalg.solve(stored.affine, volume.affine)
    carried = ndimage.affine_transform(
        mask.astype(np.uint8), to_mask[:3, :3], to_mask[:3, 3], volume.shape, order=0, prefilter=False
    ).astype(bool)
    voxel_share = abs(np.linalg.det(volume.affine[:3, :3]) / np.linalg.det(stored.affine[:3, :3]))
    kept = float(carried.sum() * voxel_share / mask.sum())
    if kept < LEAST_COVERED:
        raise DataError(
            f"{path}: {max(0.0, 1 - kept):.0%} of the mask lies outside of the scan",
            expected="a mask in the scan's own space",
            fix="Check that it belongs to this scan; where it does, write it on the scan's grid.",
        )
    return carried


def grow(mask: np.ndarray, spacing_mm: tuple[float, float, float], margin_mm: float) -> np.ndarray:
    """Grow a mask by a margin in millimetres, or shrink it where negative."""
    if margin_mm == 0 or not mask.any():
        return mask
    box = _box(mask, np.ceil(abs(margin_mm) / np.array(spacing_mm)).astype(int) + 1)
    part = mask[box]
    if margin_mm > 0:
        changed = ndimage.distance_transform_edt(~part, sampling=spacing_mm) <= margin_mm
    else:
        changed = ndimage.distance_transform_edt(part, sampling=spacing_mm) > -margin_mm
    result = np.zeros_like(mask)
    result[box] = changed
    return result


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Fill what a mask encloses on all sides."""
    if not mask.any():
        return mask
    box = _box(mask, np.ones(3, dtype=int))
    part = np.pad(mask[box], 1)
    labels, n = ndimage.label(~part)
    filled = mask.copy()
    if n > 1:
        filled[box] = (labels != labels[0, 0, 0])[1:-1, 1:-1, 1:-1]
    return filled


def _box(mask: np.ndarray, margin: np.ndarray) -> tuple[slice, ...]:
    """Give the box around a mask, widened by some voxels within the grid."""
    slices = []
    for axis, wide in enumerate(margin):
        there = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        slices.append(slice(max(0, there[0] - wide), there[-1] + wide + 1))
    return tuple(slices)
