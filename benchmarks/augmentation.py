"""Augmentation beside TorchIO and MONAI: equal outputs first, then times.

    python benchmarks/augmentation.py [--quick] [--threads 2] [--scans 1 8] [--json augmentation.json]

Every step is applied (p = 1), on the same threads, to the same volumes; peers are called as their documentation says.
Before anything is timed, outputs for the same parameters are compared: the bias field with TorchIO's to 1e-5, the
affine with TorchIO's to 1e-3 of the range, the whole pipeline without noise with TorchIO's. MONAI draws its bias field
from another basis (Legendre), so there the work is alike and the pictures are not. TorchIO and MONAI have no random
binning: their pipelines do one step less. A batch goes through the peers scan by scan, as their loaders do. Needs
torchio and monai.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from typing import Any

import monai
import monai.transforms as mt
import numpy as np
import torch
import torchio as tio

from neuroage.files import write_json
from neuroage.imaging import torchio_steps
from neuroage.imaging.augment import Pipeline, parse_steps
from neuroage.imaging.augment.affine import affine_matrix
from neuroage.imaging.augment.bias_field import bias_field, multiply_by_field
from neuroage.imaging.augment.resample import resample_affine

SHAPES = [(91, 109, 91), (160, 192, 160)]
COEFFICIENTS = np.random.default_rng(0).uniform(-0.5, 0.5, 20).tolist()
MOVE = {"scales": (1.05, 0.97, 1.02), "degrees": (7.0, -5.0, 9.0), "translation": (2.0, -1.0, 3.0)}
ORDER = ["affine", "flip", "bias_field", "noise", "gamma", "binning"]


def seconds(run: Callable[[], Any], repeats: int) -> list[float]:
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def phantom(shape: tuple[int, ...], n: int) -> torch.Tensor:
    """Smooth heads on a dark background: positive, so that gamma means the same everywhere."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 1, *[max(2, size // 8) for size in shape], generator=generator)
    heads = torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear")
    axes = torch.meshgrid(*[torch.linspace(-1, 1, size) for size in shape], indexing="ij")
    return heads * (sum(axis**2 for axis in axes) < 0.7)


def our_matrix(shape: tuple[int, ...]) -> np.ndarray:
    return affine_matrix(shape, scales=MOVE["scales"], degrees=MOVE["degrees"], translation_mm=MOVE["translation"])


def assert_equal_outputs(shape: tuple[int, ...]) -> None:
    volume = phantom(shape, 1)
    theirs = tio.BiasField.generate_bias_field(volume[0], 3, COEFFICIENTS)
    np.testing.assert_allclose(bias_field(COEFFICIENTS, shape).numpy(), theirs, rtol=1e-5)
    moved = resample_affine(volume, [our_matrix(shape)])[0]
    span = float(volume.max() - volume.min())
    assert float((moved - tio.Affine(**MOVE)(volume[0])).abs().max()) < 1e-3 * span
    inner = (0, *[slice(size // 4, -(size // 4)) for size in shape])
    assert float((moved[inner] - by_dense_grid(volume)[0][inner]).abs().max()) < 1e-3 * span
    record = {
        "affine": {**{name: list(MOVE[name]) for name in ("scales", "degrees")}, "spacing_mm": [1.0] * 3},
        "flip": {"axes": [0]},
        "bias_field": {"coefficients": COEFFICIENTS},
        "gamma": {"gamma": 1.2},
    }
    record["affine"]["translation_mm"] = list(MOVE["translation"])
    ours = our_pipeline().replay(volume, [record])[0]
    steps = [tio.Affine(**MOVE), tio.Flip(0), tio.BiasField(COEFFICIENTS, 3), tio.Gamma(1.2)]
    theirs = tio.Compose(steps)(volume[0])
    assert float((ours - theirs).abs().max()) < 2e-3 * float(theirs.max() - theirs.min())


def our_pipeline(names: list[str] = ORDER) -> Pipeline:
    plain = {"affine": {"sharpness": 0.0}}  # as the peers: linear interpolation and nothing more
    return Pipeline(parse_steps([{"step": name, "p": 1, **plain.get(name, {})} for name in names]))


def by_dense_grid(batch: torch.Tensor) -> torch.Tensor:
    """The same movement by torch's `affine_grid` and `grid_sample`, as its documentation shows."""
    size = np.array(batch.shape[2:])
    to_index = np.diag([*((size - 1) / 2), 1.0])
    to_index[:3, 3] = (size - 1) / 2
    theta = (np.linalg.inv(to_index) @ our_matrix(tuple(size)) @ to_index)[:3]
    theta[:, :3] = theta[::-1, 2::-1]
    theta[:, 3] = theta[::-1, 3].copy()
    thetas = torch.tensor(theta, dtype=torch.float32).expand(len(batch), 3, 4)
    grid = torch.nn.functional.affine_grid(thetas, list(batch.shape), align_corners=True)
    return torch.nn.functional.grid_sample(batch, grid, align_corners=True)


def torchio_pipeline(*, bias: bool) -> tio.Compose:
    fields = [tio.RandomBiasField()] if bias else []
    return tio.Compose([tio.RandomAffine(), tio.RandomFlip(0, 1.0), *fields, tio.RandomNoise(), tio.RandomGamma()])


def monai_affine() -> mt.Transform:
    turn, grow = [np.pi / 18] * 3, [0.1] * 3
    return mt.RandAffine(prob=1, rotate_range=turn, scale_range=grow, padding_mode="border", cache_grid=False)


def monai_pipeline() -> mt.Compose:
    field, noise = mt.RandBiasField(prob=1, coeff_range=(-0.5, 0.5)), mt.RandGaussianNoise(prob=1, std=0.25)
    return mt.Compose(
        [
            monai_affine(),
            mt.RandFlip(prob=1, spatial_axis=0),
            field,
            noise,
            mt.RandAdjustContrast(prob=1, gamma=(0.74, 1.35)),
        ]
    )


def contests(batch: torch.Tensor) -> dict[str, dict[str, Callable[[], Any]]]:
    """What is timed, ours first; a peer's transform takes one scan (C, I, J, K) at a time."""
    shape, keys = tuple(batch.shape[2:]), [(0, index) for index in range(len(batch))]
    out, pipeline, unbiased = (
        torch.empty_like(batch),
        our_pipeline(),
        our_pipeline([n for n in ORDER if n != "bias_field"]),
    )

    # Memory of its own for each scan: TorchIO copies what it is given with all that it is a part of.
    scans = [scan.clone() for scan in batch]

    def each(transform: Callable[[torch.Tensor], Any]) -> Callable[[], Any]:
        return lambda: [transform(scan) for scan in scans]

    fields = [COEFFICIENTS] * len(batch)
    return {
        "bias field, kernel": {
            "neuroage": lambda: multiply_by_field(batch, fields, 3, out),
            "torchio": each(
                lambda scan: scan * torch.from_numpy(tio.BiasField.generate_bias_field(scan, 3, COEFFICIENTS))
            ),
            "monai RandBiasField": each(mt.RandBiasField(prob=1, coeff_range=(-0.5, 0.5))),
        },
        "bias field, TorchIO transform": {
            "neuroage": each(torchio_steps.BiasField(COEFFICIENTS, 3)),
            "torchio": each(tio.BiasField(COEFFICIENTS, 3)),
        },
        "affine, kernel": {
            "neuroage": lambda: resample_affine(batch, [our_matrix(shape)] * len(batch)),
            "torchio Affine": each(tio.Affine(**MOVE)),
            "affine_grid + grid_sample": lambda: by_dense_grid(batch),
            "monai RandAffine": each(monai_affine()),
        },
        "affine, TorchIO transform": {
            "neuroage": each(torchio_steps.Affine(**MOVE)),
            "torchio": each(tio.Affine(**MOVE)),
        },
        "whole pipeline": {
            "neuroage": lambda: pipeline(batch, keys),
            "torchio": each(torchio_pipeline(bias=True)),
            "monai": each(monai_pipeline()),
        },
        "pipeline without bias field": {
            "neuroage": lambda: unbiased(batch, keys),
            "torchio": each(torchio_pipeline(bias=False)),
        },
    }


def measure(shape: tuple[int, ...], n_scans: int, repeats: int) -> list[dict[str, Any]]:
    rows = []
    for contest, runs in contests(phantom(shape, n_scans)).items():
        ours = 0.0
        for name, run in runs.items():
            times = np.array(seconds(run, repeats)) * 1e3
            median = float(np.median(times))
            ours = ours or median
            low, high = np.quantile(times, [0.25, 0.75])
            row = {"what": contest, "who": name, "shape": list(shape), "n_scans": n_scans, "repeats": repeats}
            row |= {"median_ms": median, "quartiles_ms": [float(low), float(high)], "best_ms": float(times.min())}
            rows.append(row | {"times_ours": median / ours})
            print(
                f"{'×'.join(map(str, shape)):>12} {n_scans:>2} scan(s)  {contest:<30} {name:<26}"
                f"{median:10.1f} ms  [{low:.1f}, {high:.1f}]  {median / ours:7.1f}×",
                flush=True,
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="91×109×91, one scan, three repeats")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads")
    parser.add_argument("--scans", type=int, nargs="+", default=[1, 8], help="batch sizes")
    parser.add_argument("--repeats", type=int, default=5, help="timed repeats after one untimed")
    parser.add_argument("--json", metavar="PATH", help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    versions = {"python": platform.python_version(), "torch": torch.__version__, "torchio": tio.__version__}
    versions |= {"monai": monai.__version__, "numpy": np.__version__}
    setting = {"threads": options.threads, "machine": platform.processor() or platform.machine(), "versions": versions}
    print(json.dumps(setting))
    shapes, counts = (SHAPES[:1], [1]) if options.quick else (SHAPES, options.scans)
    for shape in shapes:
        assert_equal_outputs(shape)
    print("equal outputs: bias field 1e-5, affine 1e-3 of the range, pipeline 2e-3 of the range")
    rows = [
        row
        for shape in shapes
        for count in counts
        for row in measure(shape, count, 3 if options.quick else max(3, options.repeats if count == 1 else 3))
    ]
    if options.json:
        write_json(options.json, {**setting, "results": rows})


if __name__ == "__main__":
    main()
