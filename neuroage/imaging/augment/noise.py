"""Random noise: Gaussian, its own stream for each scan, so that one scan's noise does not depend on its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field

from neuroage.imaging.augment.parts import run_parts
from neuroage.imaging.augment.ranges import Range, axis_pairs, draw_uniform
from neuroage.imaging.augment.step import Parameters, Step

_STREAM_VOXELS = 1 << 16
"""Voxels that one stream makes noise for. Part of what a record means: another number replays another noise."""

_STREAM_STEP = 0x9E3779B97F4A7C15
"""Distance between the seeds of neighbouring parts (2⁶⁴ / golden ratio): odd, so that no two parts share a seed."""


def _not_negative(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] < 0:
        raise ValueError(f"a standard deviation of {pair[0]:g} cannot be; write numbers from 0 up")
    return pair


class Noise(Step):
    """Add Gaussian noise whose standard deviation is drawn uniformly; defaults and meaning are TorchIO's `RandomNoise`.

    What is recorded is (mean, std, seed): the noise itself is made on the device from the seed, and replays exactly on
    the same kind of device.
    """

    step: Literal["noise"] = "noise"
    p: float = Field(default=0.5, ge=0, le=1)
    std: Annotated[float, Field(ge=0)] | Annotated[Range, AfterValidator(_not_negative)] = 0.25
    """Standard deviation in intensity units: uniform in [0, this] or in [low, high]."""
    mean: float | Range = 0.0
    """Mean in intensity units: uniform within ±this or in [low, high]."""

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Parameters:
        """Draw mean, standard deviation and the seed of the noise."""
        widths = (0.0, self.std) if isinstance(self.std, (int, float)) else self.std
        mean, std = draw_uniform(rng, [*axis_pairs(self.mean, 1, neutral=0.0), widths])
        return {"mean": mean, "std": std, "seed": int(rng.integers(1 << 48))}

    def change(self, source: torch.Tensor, parameters: Sequence[Parameters], out: torch.Tensor) -> None:
        """Add each scan's own noise."""
        for image, drawn, target in zip(source, parameters, out, strict=True):
            add_noise(image, drawn["std"], drawn["seed"], mean=drawn["mean"], out=target)


def add_noise(
    image: torch.Tensor, std: float, seed: int, *, mean: float = 0.0, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Add seeded Gaussian noise to one image.

    On a CPU each part of the image has its own stream, so that the noise is the same for any number of threads.

    Args:
        image: (C, *spatial), floating point.
        std: Standard deviation, from 0.
        seed: Seed of the noise, 0 to 2⁶⁴ − 1.
        mean: Mean of the noise.
        out: Where to write; may be `image`. New memory when None.

    Returns:
        The noisy image. With std 0 and mean 0 the image unchanged.
    """
    if out is None:
        out = torch.empty_like(image, memory_format=torch.contiguous_format)
    if std == 0 and mean == 0:
        return out if out is image else out.copy_(image)
    if image.device.type != "cpu":
        generator = torch.Generator(device=image.device).manual_seed(seed)
        noise = torch.randn(image.shape, generator=generator, device=image.device)
        torch.add(image, noise, alpha=std, out=out)
        return out.add_(mean) if mean else out
    source, target = image.reshape(-1), out.view(-1)

    def add_part(part: slice, room: Sequence[torch.Tensor]) -> None:
        number = part.start // _STREAM_VOXELS
        generator = torch.Generator().manual_seed((seed + number * _STREAM_STEP) % (1 << 64))
        noise = room[0][: part.stop - part.start].normal_(mean, std, generator=generator)
        torch.add(source[part], noise, out=target[part])

    parts = [slice(start, min(start + _STREAM_VOXELS, len(source))) for start in range(0, len(source), _STREAM_VOXELS)]
    run_parts(add_part, parts, room=[_STREAM_VOXELS])
    return out
