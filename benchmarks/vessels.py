"""Vessels cut out of phantom angiograms whose arteries are known, beside thresholds and SimpleITK's vesselness.

    python benchmarks/vessels.py [FILES …] [--scans 4] [--size 512 512 100] [--json vessels.json]

Dice overlap with the voxels that are more than half artery, on the phantom as its scanner gives it, on the same heads
in small voxels (0.6×0.6×0.8 mm), and on both made harder: bright fat below the skin and at the base of the skull,
textured tissue, bands of slabs, a stronger coil field. `best threshold` and `SimpleITK, best threshold` choose theirs
by looking at the truth, which only the truth allows; ours and the top percentiles do not.

Then the time for one volume of --size: ours from head to mask, and SimpleITK's ObjectnessMeasureImageFilter on its own
multi-scale Gaussian at the same radii (as ITK's documentation composes it), in seconds of the processor on one thread,
with the most memory that the process held. FILES are drawn as maximum projections beside their vessels, to look at.
"""

from __future__ import annotations

import argparse
import platform
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from neuroage.files import write_json
from neuroage.imaging import phantom_vessels
from neuroage.imaging.phantom_effects import draw_traits
from neuroage.imaging.phantom_scanner import SITES, acquire, draw_settings
from neuroage.imaging.read import Volume, read
from neuroage.imaging.steps.vessels import RADII_MM, SIGMA_OF_RADIUS, binarise_vessels, enhance_vessels

FINE_MM = (0.6, 0.6, 0.8)
PERCENTILES = (98.0, 99.0, 99.5)


def draw(seed: int, fine: bool) -> tuple[Volume, np.ndarray]:
    """An angiogram, and the share of every voxel that is artery."""
    rng = np.random.default_rng(seed)
    settings = draw_settings("tof", SITES[seed % len(SITES)], 1 + rng.uniform(-0.06, 0.06), rng)
    settings = replace(settings, orientation="RAS")
    if fine:
        size_mm = np.multiply(settings.shape, settings.spacing_mm)
        settings = replace(settings, spacing_mm=FINE_MM, shape=tuple(np.rint(size_mm / FINE_MM).astype(int).tolist()))
    arteries = phantom_vessels.grow_arteries(draw_traits("tof", rng.uniform(20, 80), rng), rng)
    data, affine = acquire(phantom_vessels.paint_slab(arteries, settings), "tof", settings, rng)
    return Volume(data[None].astype(np.float32), affine), phantom_vessels.vessel_share(arteries, settings)


def harden(volume: Volume, seed: int) -> Volume:
    """Add what a real head has beside arteries: fat, texture, bands, a field."""
    rng, data, steps = np.random.default_rng(seed), volume.data[0].copy(), np.asarray(volume.spacing_mm)
    tissue = np.median(data[data > 0.4 * np.percentile(data, 75)])
    head = ndimage.binary_fill_holes(ndimage.gaussian_filter(data, 2 / steps) > 0.4 * tissue)
    depth_mm = ndimage.distance_transform_edt(np.pad(head, 1, mode="edge"), sampling=steps)[1:-1, 1:-1, 1:-1]

    def texture(size_mm: float) -> np.ndarray:
        noise = ndimage.gaussian_filter(rng.standard_normal(data.shape, dtype=np.float32), size_mm / steps)
        return noise / noise.std()

    data += 2 * tissue * np.exp(-(((depth_mm - 3.5) / 1.8) ** 2)) * head
    data *= 1 + 0.12 * texture(4)
    base = np.arange(data.shape[2]) * steps[2] < 25
    data += np.clip(texture(2.5) - 2.4, 0, 1) * tissue * 1.5 * base
    data *= 1 + 0.12 * np.sin(np.arange(data.shape[2]) * steps[2] * 2 * np.pi / 25 + rng.uniform(0, 6))
    for axis, slope in enumerate(rng.uniform(-0.3, 0.3, 3)):
        data *= np.exp(slope * np.linspace(-1, 1, data.shape[axis])).reshape([-1 if n == axis else 1 for n in range(3)])
    return replace(volume, data=data[None].astype(np.float32))


def objectness(volume: Volume) -> np.ndarray:
    """SimpleITK's vesselness (Frangi's, generalised by Antiga), largest over the scales."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.data[0].T))
    image.SetSpacing(volume.spacing_mm)
    best: np.ndarray | None = None
    for radius in RADII_MM:
        smooth = sitk.SmoothingRecursiveGaussian(image, radius * SIGMA_OF_RADIUS)
        found = sitk.ObjectnessMeasure(smooth, 0.5, 0.5, 5.0, True, 1, True)
        found = sitk.GetArrayFromImage(found).T * np.float32(radius**2)  # scale-normalised second derivatives
        best = found if best is None else np.maximum(best, found)
    assert best is not None
    return best


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    return float(2 * (found & truth).sum() / max(found.sum() + truth.sum(), 1))


def best_dice(values: np.ndarray, truth: np.ndarray) -> float:
    levels = np.percentile(values, np.concatenate([np.arange(90, 99, 0.5), np.arange(99, 99.98, 0.04)]))
    return max(dice(values > level, truth) for level in levels)


def score(volume: Volume, share: np.ndarray) -> dict[str, float]:
    truth, data = share > 0.5, volume.data[0]
    vesselness, peer = enhance_vessels(volume)[0].data[0], objectness(volume)
    inside = truth | (vesselness > 0)
    return {
        "ours": dice(binarise_vessels(volume)[0].data[0] > 0, truth),
        "best threshold": best_dice(data, truth),
        **{f"top {100 - at:g} %": dice(data > np.percentile(data, at), truth) for at in PERCENTILES},
        "our vesselness, best threshold": best_dice(vesselness, truth),
        "SimpleITK, best threshold": best_dice(peer, truth),
        "rank correlation with SimpleITK": rank_correlation(vesselness[inside], peer[inside]),
    }


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    chosen = np.linspace(0, a.size - 1, min(a.size, 50_000)).astype(int)
    return float(np.corrcoef(a[chosen].argsort().argsort(), b[chosen].argsort().argsort())[0, 1])


def timed(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def measure_time(size: tuple[int, int, int]) -> dict[str, float]:
    small, _ = draw(0, fine=False)
    data = ndimage.zoom(small.data[0], np.divide(size, small.shape), order=1, output=np.float32)
    spacing = np.divide(np.multiply(small.shape, small.spacing_mm), data.shape)
    volume = Volume(data[None], np.diag([*spacing, 1.0]))
    binarise_vessels(small)  # compiled by now
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ours = timed(lambda: binarise_vessels(volume))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    theirs = timed(lambda: objectness(volume))
    return {
        "ours_cpu_s": ours,
        "simpleitk_cpu_s": theirs,
        "times_faster": theirs / ours,
        "most_memory_mib": memory / 1024,
        "most_memory_before_mib": held / 1024,
    }


def draw_projections(path: Path, folder: Path) -> None:
    import matplotlib.pyplot as plt

    volume = read(path)
    rows = (volume, enhance_vessels(volume)[0], binarise_vessels(volume)[0])
    figure, axes = plt.subplots(3, 3, figsize=(12, 12))
    for row, shown in zip(axes, rows, strict=True):
        for axis, panel in enumerate(row):
            panel.imshow(shown.data[0].max(axis).T, origin="lower", cmap="gray")
            panel.axis("off")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{path.name}.png", dpi=80)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--scans", type=int, default=4, help="phantoms of each kind")
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--size", type=int, nargs=3, default=(512, 512, 100))
    parser.add_argument("--projections", type=Path, default=Path("vessels"), help="folder for the pictures of FILES")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    results: dict[str, object] = {"machine": platform.processor() or platform.machine()}
    results["time"] = measure_time(tuple(options.size))
    print({name: round(value, 2) for name, value in results["time"].items()})
    for kind, fine, hard in (
        ("as scanned", False, False),
        ("harder", False, True),
        ("fine", True, False),
        ("fine, harder", True, True),
    ):
        rows = []
        for seed in range(options.first_seed, options.first_seed + options.scans):
            volume, share = draw(seed, fine)
            rows.append(score(harden(volume, seed) if hard else volume, share))
        results[kind] = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        print(f"\n{kind}, {len(rows)} scans\n" + "\n".join(f"  {v:.3f}  {name}" for name, v in results[kind].items()))
    for path in options.files:
        draw_projections(path, options.projections)
    if options.json:
        write_json(options.json, results)


if __name__ == "__main__":
    main()
