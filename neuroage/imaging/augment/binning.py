"""Random binning: intensities reduced to a few levels, so that a network leans on shape rather than fine contrast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field

from neuroage.imaging.augment.parts import flat_parts, least_and_most, on_device, run_parts
from neuroage.imaging.augment.ranges import Range
from neuroage.imaging.augment.step import Parameters, Step

_QUANTILE_VOXELS = 1 << 16
"""Quantiles are read from about this many evenly spaced voxels: the median to a standard error of 0.2 points."""

_TABLE_SIZE = 1 << 14
"""Entries of the table from intensity to level: cuts are placed to 1/16,384 of the scan's range; it stays in cache."""


def _levels(pair: tuple[int, int]) -> tuple[int, int]:
    if not 2 <= pair[0] <= pair[1] <= 4096:
        raise ValueError(f"levels {list(pair)} cannot be; write [fewest, most] with 2 <= fewest <= most <= 4096")
    return pair


def _fractions(pair: tuple[float, float]) -> tuple[float, float]:
    if not (pair[0] > 0 and pair[1] < 1):
        raise ValueError(f"the fraction {list(pair)} must lie between 0 and 1, ends excluded")
    return pair


class Binning(Step):
    """Reduce each scan to a random number of levels, or to two at a random threshold.

    Levels keep the scan's own scale: each voxel gets the centre of its bin, so a network trained on full intensities
    meets the same range. `equal_width` cuts the range from minimum to maximum evenly; `quantile` gives every level as
    many voxels (its centre is the median of the bin); `threshold` makes two levels, the means below and above a random
    quantile.
    """

    step: Literal["binning"] = "binning"
    p: float = Field(default=0.1, ge=0, le=1)
    methods: list[Literal["equal_width", "quantile", "threshold"]] = Field(
        default=["equal_width", "quantile"], min_length=1
    )
    """One of these is drawn, each as likely."""
    levels: Annotated[tuple[int, int], AfterValidator(_levels)] = (4, 32)
    """Number of levels: uniform whole number in [fewest, most]."""
    threshold: Annotated[Range, AfterValidator(_fractions)] = (0.5, 0.95)
    """Fraction of voxels below the threshold: uniform in [low, high]."""

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Parameters:
        """Draw the method and its number of levels or its threshold."""
        method = self.methods[int(rng.integers(len(self.methods)))]
        levels, fraction = int(rng.integers(self.levels[0], self.levels[1] + 1)), float(rng.uniform(*self.threshold))
        return (
            {"method": method, "threshold": fraction} if method == "threshold" else {"method": method, "levels": levels}
        )

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
    flat, target = image.reshape(-1), out.view(-1)
    low, high = least_and_most(flat)
    if method == "equal_width":
        width = (high - low) / levels
        # A constant image has no width; dividing by it would make NaN.
        per_width = torch.where(width > 0, 1 / width, torch.zeros_like(width))

        def change(part: slice) -> None:
            index = flat[part].sub(low).mul_(per_width).floor_().clamp_(max=levels - 1)
            torch.add(index.add_(0.5).mul_(width), low, out=target[part])

    elif method == "threshold":
        cut, below, above = _two_levels(_ordered_sample(flat), threshold)

        def change(part: slice) -> None:
            upper = torch.ge(flat[part], cut).to(flat.dtype)
            torch.add(upper.mul_(above - below), below, out=target[part])

    else:
        # A fine table from intensity to level instead of a search for each voxel.
        table, per_entry = _level_table(_ordered_sample(flat), levels, low, high)

        def change(part: slice) -> None:
            place = flat[part].sub(low).mul_(per_entry).round_().int()
            torch.index_select(table, 0, place, out=target[part])

    if image.device.type == "cpu":
        run_parts(lambda part, _: change(part), flat_parts(len(flat)))
    else:
        change(slice(None))
    return out


def _two_levels(ordered: torch.Tensor, threshold: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give the intensity at a fraction, and the means below it and from it up."""
    cut = _quantiles(ordered, [threshold])[0]
    upper = ordered >= cut
    count = upper.sum()
    above = (ordered * upper).sum() / count
    below = (ordered * ~upper).sum() / (len(ordered) - count).clamp(min=1)
    return cut, torch.where(count < len(ordered), below, above), above


def _level_table(
    ordered: torch.Tensor, levels: int, low: torch.Tensor, high: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the level of each of many evenly spaced intensities, and how many entries one unit of intensity is."""
    cuts = _quantiles(ordered, [index / levels for index in range(1, levels)])
    centres = _quantiles(ordered, [(index + 0.5) / levels for index in range(levels)])
    step = (high - low) / (_TABLE_SIZE - 1)
    entries = low + step * torch.arange(_TABLE_SIZE, device=ordered.device, dtype=ordered.dtype)
    per_entry = torch.where(step > 0, 1 / step, torch.zeros_like(step))
    return centres[torch.bucketize(entries, cuts, right=True)], per_entry


def _ordered_sample(flat: torch.Tensor) -> torch.Tensor:
    """Give an evenly spaced part of the voxels in ascending order."""
    # An odd stride does not fall in step with the even sizes of volumes.
    part = flat[:: max(1, len(flat) // _QUANTILE_VOXELS) | 1]
    return torch.from_numpy(np.sort(part.numpy())) if part.device.type == "cpu" else part.sort().values


def _quantiles(ordered: torch.Tensor, fractions: Sequence[float]) -> torch.Tensor:
    places = (np.asarray(fractions) * (len(ordered) - 1)).round().astype(np.int64)
    return ordered[on_device(places, ordered, keep_type=True)]
