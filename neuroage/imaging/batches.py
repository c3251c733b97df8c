"""Batches of prepared volumes: kept on the device where they fit, streamed from the store where they do not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from neuroage.imaging.store import StoredVolume, read_layout, read_values

RESIDENT_SHARE = 0.3  # of the device's free memory that volumes may take; the network needs the rest
# On a CPU streaming costs next to nothing (the system keeps read files in memory that it takes back when needed), so
# only small sets are kept: 850 scans of 80×96×80 in uint8.
RESIDENT_CPU_BYTES = 512 << 20
LOADED_AT_ONCE_BYTES = 64 << 20  # on the way to a device: large enough to hide the way's start, small beside a batch

T = TypeVar("T")
R = TypeVar("R")


class VolumeSet:
    """The prepared volumes of some scans, by position.

    Stored values stay in their compact type until they are in a batch on the device. What does not stay on the device
    is read batch by batch, so that memory does not grow with the number of scans.

    Args:
        volumes: All of one preparation.
        device: Where batches are wanted.
        resident: Keep everything on the device. None: where it takes less than 0.3 of the free memory, on a CPU also
            less than 512 MiB.

    Raises:
        DataError: A stored volume is gone, cut short or of another size; also from `batch` and `batches`.
    """

    def __init__(
        self, volumes: Sequence[StoredVolume], device: torch.device | str = "cpu", *, resident: bool | None = None
    ) -> None:
        self.volumes = list(volumes)
        self.device = torch.device(device)
        self._scale = torch.tensor([volume.scale for volume in volumes], dtype=torch.float32, device=self.device)
        self._offset = torch.tensor([volume.offset for volume in volumes], dtype=torch.float32, device=self.device)
        self._stored: Tensor | None = None
        if self.volumes:
            self._layout = read_layout(self.volumes[0].file)
            self._dtype = torch.from_numpy(np.empty(0, self._layout.dtype)).dtype
            if self._fits() if resident is None else resident:
                self._stored = self._load_all()

    def __len__(self) -> int:
        return len(self.volumes)

    @property
    def resident(self) -> bool:
        """Whether the volumes are kept on the device."""
        return self._stored is not None

    @property
    def spatial_dims(self) -> int:
        """Number of spatial axes: 3 for volumes, 2 for images."""
        return len(self._layout.shape) - 1

    def batch(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Give prepared intensities of some scans, shape (B, C, *spatial), float32, on the device."""
        positions = self._positions(indices)
        stored = self._read(indices) if self._stored is None else self._stored.index_select(0, positions)
        return self._scaled(stored, positions)

    def batches(self, plan: Iterable[Sequence[int] | np.ndarray]) -> Iterator[Tensor]:
        """Give one batch after the other; a streamed one is read while the last is being used."""
        if self.resident:
            yield from map(self.batch, plan)
        else:
            for indices, stored in read_ahead(lambda indices: (indices, self._read(indices)), plan):
                yield self._scaled(stored, self._positions(indices))

    def _fits(self) -> bool:
        limit = RESIDENT_SHARE * free_memory(self.device)
        if self.device.type == "cpu":
            limit = min(limit, RESIDENT_CPU_BYTES)
        return len(self) * self._layout.n_bytes < limit

    def _load_all(self) -> Tensor:
        if self.device.type == "cpu":
            return self._read(range(len(self)))
        stored = torch.empty((len(self), *self._layout.shape), dtype=self._dtype, device=self.device)
        step = max(1, LOADED_AT_ONCE_BYTES // self._layout.n_bytes)
        for start in range(0, len(self), step):
            some = range(start, min(start + step, len(self)))
            stored[start : some.stop].copy_(self._read(some), non_blocking=True)
        return stored

    def _read(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Read stored values; for a GPU into pinned memory, which torch keeps and gives to a later batch."""
        shape = (len(indices), *self._layout.shape)
        stored = torch.empty(shape, dtype=self._dtype, pin_memory=self.device.type == "cuda")
        for index, target in zip(indices, stored.numpy(), strict=True):
            read_values(self.volumes[index].file, self._layout, target)
        return stored

    def _positions(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(indices)).to(self.device, non_blocking=True)

    def _scaled(self, stored: Tensor, positions: Tensor) -> Tensor:
        shape = (-1,) + (1,) * (stored.ndim - 1)
        values = stored.to(self.device, non_blocking=True).float()
        return values.mul_(self._scale[positions].view(shape)).add_(self._offset[positions].view(shape))


def read_ahead(read: Callable[[T], R], plan: Iterable[T]) -> Iterator[R]:
    """Call `read` on each item of `plan` in a second thread, one item ahead.

    An error of `read` is raised where its result would have come. Who stops early waits for one reading at most.
    """
    pool = ThreadPoolExecutor(1)
    pending: Future[R] | None = None
    try:
        for item in plan:
            following = pool.submit(read, item)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()
    finally:
        pool.shutdown(cancel_futures=True)


def free_memory(device: torch.device) -> int:
    """Give the free memory of a device in bytes; of the computer for a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            available = next(line for line in lines if line.startswith("MemAvailable"))
        return int(available.split()[1]) * 1024
    except (OSError, StopIteration):
        return 4 << 30  # unknown: assume a small laptop


def plan_epoch(n_scans: int, batch_size: int, seed: int, weights: np.ndarray | None = None) -> list[np.ndarray]:
    """Draw the batches of one epoch.

    Scans are dealt evenly over the steps, so that no step is left with a scan or two (batch norm would suffer).

    Args:
        n_scans: Number of training scans.
        batch_size: At most this many a batch.
        seed: Of this epoch.
        weights: How often each scan is wanted, shape (n_scans,). A scan of weight w is drawn ⌊w⌋ or ⌈w⌉ times, w on
            average (systematic resampling), so that the epoch has as many scans as they sum to; None: every scan once.

    Returns:
        Positions of the scans of each batch.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(n_scans)
    if weights is not None:
        n_drawn = scans_an_epoch(n_scans, weights)
        upto = np.cumsum(weights[order]) * (n_drawn / weights.sum())
        drawn = np.searchsorted(upto, np.arange(n_drawn) + rng.random())
        order = rng.permutation(order[np.minimum(drawn, n_scans - 1)])
    return np.array_split(order, -(-len(order) // batch_size))


def scans_an_epoch(n_scans: int, weights: np.ndarray | None) -> int:
    """Give how many scans an epoch has where each is drawn by its weight."""
    return n_scans if weights is None else max(1, round(float(weights.sum())))
