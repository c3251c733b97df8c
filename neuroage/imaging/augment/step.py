"""What every augmentation step is: options that read from YAML, a sampler for one scan, a kernel for a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from neuroage.errors import DataError
from neuroage.imaging.augment.parts import on_device
from neuroage.imaging.augment.resample import move

Parameters = dict[str, Any]
"""What was drawn for one scan by one step: plain JSON-able values that replay it."""


class Step(BaseModel, ABC):
    """One augmentation: how often, in which ranges (the fields), what is drawn, and how a batch is changed.

    Drawing is separate from applying, so that every augmentation can be recorded, replayed and tested exactly. A new
    step is one file in this folder with one subclass; it is found by itself.

    Invariants, checked for every step found: `p: 0` changes nothing; the batch given is left alone; a scan whose
    parameters are None comes back bit for bit; the same parameters give the same output; parameters survive JSON.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: str
    """The step's name, as it stands in a recipe: the name of its file."""

    p: float = Field(ge=0, le=1)
    """Probability that a scan is changed by this step."""

    def sample(self, rng: np.random.Generator, shape: Sequence[int]) -> Parameters | None:
        """Draw for one scan.

        Args:
            rng: Source of randomness; the same state gives the same parameters.
            shape: Spatial shape of the scan, two or three numbers.

        Returns:
            Parameters as plain JSON-able values, or None when the scan is left as it is.
        """
        return self.draw(rng, shape) if rng.random() < self.p else None

    @abstractmethod
    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Parameters:
        """Draw the parameters of a scan that *is* changed; `sample` decides whether."""

    @abstractmethod
    def change(self, source: torch.Tensor, parameters: Sequence[Parameters], out: torch.Tensor) -> None:
        """Write the changed `source` (N, C, *spatial) into `out`, which may be `source` itself; one parameters each."""

    def apply(
        self, batch: torch.Tensor, parameters: Sequence[Parameters | None], *, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Change a batch, each scan by its own parameters, on the device that the batch is on.

        Args:
            batch: Images (B, C, *spatial), floating point. Left alone unless it is also given as `out`.
            parameters: B entries: what `sample` gave for each scan; None leaves that scan bit for bit.
            out: Where to write; `batch` itself saves memory. New memory when None.

        Returns:
            The changed batch, same shape, dtype and device.

        Raises:
            DataError: The batch is not floating point, or there is not one entry for each scan.
        """
        check_batch(batch, parameters)
        if out is None:
            out = torch.empty_like(batch, memory_format=torch.contiguous_format)
        _apply(self, batch, parameters, out)
        return out


class SpatialStep(Step):
    """A step that moves voxels: a matrix, so that neighbouring ones are merged into one interpolation."""

    @abstractmethod
    def matrix(self, parameters: Parameters, shape: Sequence[int]) -> np.ndarray:
        """Give the homogeneous matrix (D + 1, D + 1) from output to input voxel indices."""

    def change(self, source: torch.Tensor, parameters: Sequence[Parameters], out: torch.Tensor) -> None:
        """Move the voxels of each scan by its own matrix."""
        matrices = [self.matrix(drawn, source.shape[2:]) for drawn in parameters]
        out.copy_(move(source, matrices, **interpolation_options([self])))


def interpolation_options(steps: Sequence[Step]) -> dict[str, Any]:
    """Give the options of `move` that these steps set: those of the first that has them."""
    chosen = next((step for step in steps if "pad" in type(step).model_fields), None)
    return {} if chosen is None else chosen.model_dump(include={"pad", "sharpness"})


def _apply(step: Step, batch: torch.Tensor, parameters: Sequence[Parameters | None], out: torch.Tensor) -> None:
    work = (batch if batch.dtype in (torch.float32, torch.float64) else batch.float()).contiguous()
    chosen = [(index, drawn) for index, drawn in enumerate(parameters) if drawn is not None]
    if work is batch and len(chosen) == len(batch) and batch.device.type != "cpu":
        step.change(batch, [drawn for _, drawn in chosen], out)
        return
    if out is not batch:
        touched = {index for index, _ in chosen}
        for index in range(len(batch)):
            if index not in touched:
                out[index].copy_(batch[index])
    if not chosen:
        return
    if batch.device.type == "cpu" and work is batch:
        # One scan at a time: its parts stay in the processor's cache from one operation to the next.
        for index, drawn in chosen:
            step.change(batch[index : index + 1], [drawn], out[index : index + 1])
        return
    rows = on_device(np.array([index for index, _ in chosen]), batch, keep_type=True)
    part = work.index_select(0, rows)
    step.change(part, [drawn for _, drawn in chosen], part)
    out.index_copy_(0, rows, part.to(out.dtype))


def check_batch(batch: torch.Tensor, parameters: Sequence[Any]) -> None:
    """Raise DataError unless `batch` is (B, C, *spatial), floating point, with one of `parameters` for each scan."""
    if not batch.is_floating_point():
        raise DataError(
            f"a batch of {batch.dtype} cannot be augmented",
            expected="floating point numbers",
            fix="Convert it first, for example with batch.float().",
        )
    if batch.ndim not in (4, 5):
        raise DataError(
            f"a batch of shape {tuple(batch.shape)} cannot be augmented",
            expected="(B, C, I, J, K) for volumes or (B, C, H, W) for images",
        )
    if len(parameters) != len(batch):
        raise DataError(
            f"{len(parameters)} sets of parameters for {len(batch)} scans",
            expected="one for each scan, None to leave it",
        )


def per_scan(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """Give one number for each scan a shape that broadcasts against `like` (N, C, *spatial)."""
    return on_device(np.asarray(values, dtype=float), like).reshape(-1, *[1] * (like.ndim - 1))
