"""Random noise: Gaussian, its own stream for each scan, so that one scan's noise does not depend on its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field

from neuroage.imaging.augment.ranges import Range, axis_pairs, draw_uniform
from neuroage.imaging.augment.step import Parameters, Step, blocks


def _not_negative(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] < 0:
        raise ValueError(f"a standard deviation of {pair[0]:g} cannot be; write numbers from 0 up")
    return pair


class Noise(Step):
    """Add Gaussian noise whose standard deviation is drawn uniformly; defaults and meaning are TorchIO's `RandomNoise`.

    What is recorded is (mean, std, seed): the noise itself is made on the device from the seed, and replays exactly on the
    same kind of device.
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

    On a CPU the noise is made block by block, in the order of the whole, so the numbers are those of one call of
    `torch.randn` for the whole image (and of TorchIO's `Noise` with the same seed), but never lie in memory as a whole.

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
    generator = torch.Generator(device=image.device).manual_seed(seed)
    source, target = image.reshape(-1), out.view(-1)
    # Multiples of 16 and a last block of at least 16: torch draws normal numbers in groups of 16.
    parts = blocks(len(source), 1) if image.device.type == "cpu" else [slice(0, len(source))]
    if len(parts) > 1 and parts[-1].stop - parts[-1].start < 16:
        parts[-2:] = [slice(parts[-2].start, parts[-1].stop)]
    room = torch.empty(max(part.stop - part.start for part in parts), device=image.device)
    for part in parts:
        noise = room[: part.stop - part.start].normal_(generator=generator)
        if mean:
            noise.mul_(std).add_(mean)
        torch.add(source[part], noise, alpha=1.0 if mean else std, out=target[part])
    return out
