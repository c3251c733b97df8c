"""The pipeline: steps one after the other over a batch, each scan with its own recorded draw, voxels moved once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from neuroage.errors import DataError
from neuroage.imaging.augment.resample import move
from neuroage.imaging.augment.step import Parameters, SpatialStep, Step, check_batch, interpolation_options

Record = list[dict[str, Parameters]]
"""For each scan of a batch: what was drawn, by step; steps that left the scan alone are not in it. JSON-able."""

_STREAM = 0x6E6575726F616765
"""Second word of the generator's key ("neuroage" in ASCII): keeps these draws apart from other uses of the seed."""


class Pipeline:
    """Augment whole batches, on the device that they are on.

    What is drawn for a scan depends on (seed, epoch, scan index, step) alone: not on its place in the batch, the other
    scans, the number of devices, or whether other steps are in the recipe. Neighbouring steps that move voxels (flip,
    affine) are merged into one interpolation.

    Args:
        steps: The steps in their order.
        seed: Seed of the augmentation, 0 to 2⁶⁴ − 1.
        spacing_mm: Size of a prepared voxel in mm, for steps that shift in mm; what each step says itself when None.

    Example:
        >>> import torch
        >>> from neuroage.imaging.augment import parse_steps
        >>> pipeline = Pipeline(parse_steps([{"step": "flip"}, {"step": "noise", "std": 0.1}]), seed=1)
        >>> scans = torch.rand(2, 1, 8, 9, 10)
        >>> augmented, record = pipeline(scans, keys=[(0, 17), (0, 4)])
        >>> bool((pipeline.replay(scans, record) == augmented).all())
        True
    """

    def __init__(
        self, steps: Sequence[Step], seed: int = 0, *, spacing_mm: float | Sequence[float] | None = None
    ) -> None:
        self.steps = [_with_spacing(step, spacing_mm) for step in steps]
        self.seed = int(seed)
        self.names = _unique_names(self.steps)

    def __call__(self, batch: torch.Tensor, keys: Sequence[tuple[int, int]]) -> tuple[torch.Tensor, Record]:
        """Draw for each scan and augment.

        Args:
            batch: Images (B, C, *spatial), floating point; left alone.
            keys: B pairs (epoch, scan index); the index is the scan's own in the whole training set.

        Returns:
            Augmented images, same shape, dtype and device, and the record that replays them.
        """
        record = self.draw(keys, batch.shape[2:])
        return self.replay(batch, record), record

    def draw(self, keys: Sequence[tuple[int, int]], shape: Sequence[int]) -> Record:
        """Draw for each scan without touching a pixel.

        Args:
            keys: B pairs (epoch, scan index), each number from 0.
            shape: Spatial shape of the scans.

        Returns:
            The record of B scans.
        """
        record: Record = []
        for epoch, scan_index in keys:
            drawn = {}
            for name, step in zip(self.names, self.steps, strict=True):
                parameters = step.sample(stream(self.seed, int(epoch), int(scan_index), name), shape)
                if parameters is not None:
                    drawn[name] = parameters
            record.append(drawn)
        return record

    def replay(self, batch: torch.Tensor, record: Record) -> torch.Tensor:
        """Apply what a record says, exactly.

        Args:
            batch: Images (B, C, *spatial), floating point; left alone.
            record: As given by a call or by `draw`; may have been through JSON.

        Returns:
            Augmented images, new memory, same shape, dtype and device.

        Raises:
            DataError: The record names a step that this pipeline does not have, or does not fit the batch.
        """
        check_batch(batch, record)
        if unknown := {name for drawn in record for name in drawn} - set(self.names):
            raise DataError(
                f"the record has steps that this pipeline lacks: {sorted(unknown)}", expected=str(self.names)
            )
        current, owned = batch, False
        for first, last in self._groups():
            names, steps = self.names[first:last], self.steps[first:last]
            if isinstance(steps[0], SpatialStep):
                matrices = [_merged(steps, names, drawn, batch.shape[2:]) for drawn in record]
                if all(matrix is None for matrix in matrices):
                    continue
                current, owned = move(current, matrices, **interpolation_options(steps)), True
                continue
            parameters = [drawn.get(names[0]) for drawn in record]
            if any(drawn is not None for drawn in parameters):
                current, owned = steps[0].apply(current, parameters, out=current if owned else None), True
        return current if owned else batch.clone()

    def _groups(self) -> list[tuple[int, int]]:
        """Bounds of the groups: neighbouring steps that move voxels together, every other step alone."""
        groups: list[tuple[int, int]] = []
        for index, step in enumerate(self.steps):
            if isinstance(step, SpatialStep) and groups and isinstance(self.steps[index - 1], SpatialStep):
                groups[-1] = (groups[-1][0], index + 1)
            else:
                groups.append((index, index + 1))
        return groups


def stream(seed: int, epoch: int, scan_index: int, name: str) -> np.random.Generator:
    """Give the random numbers of one step for one scan in one epoch.

    A counter-based generator (Philox 4×64): key and counter *are* the identity, so no draw depends on any other.

    Source: Salmon et al. 2011, doi:10.1145/2063384.2063405.
    """
    step = int.from_bytes(name.encode()[:8].ljust(8, b"\0"), "little") ^ len(name)
    return np.random.Generator(np.random.Philox(key=[seed % (1 << 64), _STREAM], counter=[0, step, epoch, scan_index]))


def _unique_names(steps: Sequence[Step]) -> list[str]:
    names: list[str] = []
    for step in steps:
        count = sum(other.step == step.step for other in steps[: len(names)])
        names.append(step.step if count == 0 else f"{count + 1}_{step.step}")
    return names


def _with_spacing(step: Step, spacing_mm: float | Sequence[float] | None) -> Step:
    if spacing_mm is None or "spacing_mm" not in type(step).model_fields:
        return step
    value: Any = float(spacing_mm) if isinstance(spacing_mm, (int, float)) else [float(size) for size in spacing_mm]
    return step.model_copy(update={"spacing_mm": value})


def _merged(
    steps: Sequence[Any], names: Sequence[str], drawn: dict[str, Parameters], shape: Sequence[int]
) -> np.ndarray | None:
    """Multiply the matrices of the steps that this scan got; None when it got none."""
    matrices = [step.matrix(drawn[name], shape) for step, name in zip(steps, names, strict=True) if name in drawn]
    return None if not matrices else np.linalg.multi_dot(matrices) if len(matrices) > 1 else matrices[0]
