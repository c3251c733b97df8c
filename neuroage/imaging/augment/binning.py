"""Random binning: intensities reduced to a few levels, so that a network leans on shape rather than on fine contrast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field

from neuroage.imaging.augment.ranges import Range
from neuroage.imaging.augment.step import Parameters, Step, blocks

_QUANTILE_VOXELS = 1 << 16
"""Quantiles are read from about this many evenly spaced voxels: a standard error of 0.2 percentile points at the median."""

_TABLE_SIZE = 1 << 14
"""Entries of the table from intensity to level: cuts are placed to 1/16,384 of the scan's range; the table stays in cache."""


def _levels(pair: tuple[int, int]) -> tuple[int, int]:
    if not 2 <= pair[0] <= pair[1] <= 4096:
        raise ValueError(f"levels {list(pair)} cannot be; write [fewest, most] with 2 <= fewest <= most <= 4096")
    return pair


def _fractions(pair: tuple[float, float]) -> tuple[float, float]:
    if not (0 < pair[0] and pair[1] < 1):
        raise ValueError(f"the fraction {list(pair)} must lie between 0 and 1, ends excluded")
    return pair


class Binning(Step):
    """Reduce each scan to a random number of levels, or to two at a random threshold.

    Levels keep the scan's own scale: each voxel gets the centre of its bin, so a network trained on full intensities meets
    the same range. `equal_width` cuts the range from minimum to maximum evenly; `quantile` gives every level as many voxels
    (its centre is the median of the bin); `threshold` makes two levels, the means below and above a random quantile.
    """

    step: Literal["binning"] = "binning"
    p: float = Field(default=0.1, ge=0, le=1)
    methods: list[Literal["equal_width", "quantile", "threshold"]] = Field(default=["equal_width", "quantile"], min_length=1)
    """One of these is drawn, each as likely."""
    levels: Annotated[tuple[int, int], AfterValidator(_levels)] = (4, 32)
    """Number of levels: uniform whole number in [fewest, most]."""
    threshold: Annotated[Range, AfterValidator(_fractions)] = (0.5, 0.95)
    """Fraction of voxels below the threshold: uniform in [low, high]."""

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Parameters:
        """Draw the method and its number of levels or its threshold."""
        method = self.methods[int(rng.integers(len(self.methods)))]
        levels, fraction = int(rng.integers(self.levels[0], self.levels[1] + 1)), float(rng.uniform(*self.threshold))
        return {"method": method, "threshold": fraction} if method == "threshold" else {"method": method, "levels": levels}

    def change(self, source: torch.Tensor, parameters: Sequence[Parameters], out: torch.Tensor) -> None:
        """Bin each scan by its own parameters; channels are binned on their own."""
        for image, drawn, target in zip(source, parameters, out, strict=True):
            for channel, binned in zip(image, target, strict=True):
                bin_intensities(channel, **drawn, out=binned)


def bin_intensities(
    image: torch.Tensor,
    method: Literal["equal_width", "quantile", "threshold"] = "equal_width",
    levels: int = 2,
    threshold: float = 0.5,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Replace each intensity of one image by the level of its bin.

    Args:
        image: Any shape, finite.
        method: How bins are cut; see `Binning`.
        levels: Number of bins, from 2; not used by `threshold`.
        threshold: Fraction of voxels below the threshold, 0 to 1; used by `threshold` only.
        out: Where to write; may be `image`. New memory when None.

    Returns:
        Image of the same shape with at most `levels` different values (two for `threshold`). A constant image stays.
    """
    if out is None:
        out = torch.empty_like(image, memory_format=torch.contiguous_format)
    if method == "equal_width":
        low, high = torch.aminmax(image)
        width = (high - low) / levels
        # The reciprocal of a zero width would make NaN of a constant image.
        per_width = torch.where(width > 0, 1 / width, torch.zeros_like(width))
        for part in blocks(len(image), image[:1].numel()) if image.device.type == "cpu" else [slice(None)]:
            index = image[part].sub(low).mul_(per_width).floor_().clamp_(max=levels - 1)
            torch.addcmul(low, index.add_(0.5), width, out=out[part])
        return out
    ordered = _ordered_sample(image)
    if method == "threshold":
        cut = _quantiles(ordered, [threshold])
        upper = ordered >= cut
        count = upper.sum()
        above = (ordered * upper).sum() / count.clamp(min=1)
        below = torch.where(count < len(ordered), (ordered * ~upper).sum() / (len(ordered) - count).clamp(min=1), above)
        mask = torch.ge(image, cut).to(image.dtype)
        return torch.add(mask.mul_(above - below), below, out=out)
    cuts = _quantiles(ordered, [index / levels for index in range(1, levels)])
    centres = _quantiles(ordered, [(index + 0.5) / levels for index in range(levels)])
    return _look_up(image, cuts, centres, out)


def _look_up(image: torch.Tensor, cuts: torch.Tensor, centres: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Give each voxel the centre of the bin that it falls into, through a fine table of the range: no search for each voxel."""
    low, high = torch.aminmax(image)
    step = (high - low) / (_TABLE_SIZE - 1)
    per_step = torch.where(step > 0, 1 / step, torch.zeros_like(step))
    entries = low + step * torch.arange(_TABLE_SIZE, device=image.device, dtype=image.dtype)
    table = centres[torch.bucketize(entries, cuts, right=True)]
    flat, target = image.reshape(-1), out.view(-1)
    for part in blocks(len(flat), 1) if image.device.type == "cpu" else [slice(0, len(flat))]:
        place = flat[part].sub(low).mul_(per_step).round_().int()
        torch.index_select(table, 0, place, out=target[part])
    return out


def _ordered_sample(image: torch.Tensor) -> torch.Tensor:
    """Give an evenly spaced part of the voxels in ascending order."""
    flat = image.reshape(-1)
    # An odd stride does not fall in step with the even sizes of volumes.
    part = flat[:: max(1, len(flat) // _QUANTILE_VOXELS) | 1]
    return torch.from_numpy(np.sort(part.numpy())) if part.device.type == "cpu" else part.sort().values


def _quantiles(ordered: torch.Tensor, fractions: Sequence[float]) -> torch.Tensor:
    places = torch.tensor(fractions, dtype=torch.float64) * (len(ordered) - 1)
    return ordered[places.round().long().to(ordered.device)]
