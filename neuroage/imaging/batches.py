"""Batches of prepared volumes: kept on the device where they fit, streamed from the store where they do not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from neuroage.imaging.store import StoredVolume

RESIDENT_SHARE = 0.3  # of the device's free memory that volumes may take; the network needs the rest

T = TypeVar("T")
R = TypeVar("R")


class VolumeSet:
    """The prepared volumes of some scans, by position.

    Stored values stay in their compact type until they are in a batch on the device.

    Args:
        volumes: All of one size.
        device: Where batches are wanted.
        resident: Keep everything on the device; decided by free memory when None.
    """

    def __init__(
        self, volumes: Sequence[StoredVolume], device: torch.device | str = "cpu", *, resident: bool | None = None
    ) -> None:
        self.volumes = list(volumes)
        self.device = torch.device(device)
        self._scale = torch.tensor([volume.scale for volume in volumes], dtype=torch.float32, device=self.device)
        self._offset = torch.tensor([volume.offset for volume in volumes], dtype=torch.float32, device=self.device)
        if resident is None:
            n_bytes = sum(volume.map().nbytes for volume in self.volumes[:1]) * len(self.volumes)
            resident = n_bytes < RESIDENT_SHARE * free_memory(self.device)
        self._stored: Tensor | None = None
        if resident and self.volumes:
            first = self.volumes[0].map()
            self._stored = torch.empty(
                (len(self.volumes), *first.shape),
                dtype=torch.from_numpy(np.array(first[:, :1])).dtype,
                device=self.device,
            )
            for index, volume in enumerate(self.volumes):
                self._stored[index] = torch.from_numpy(np.array(volume.map())).to(self.device)

    def __len__(self) -> int:
        return len(self.volumes)

    @property
    def resident(self) -> bool:
        """Whether the volumes are kept on the device."""
        return self._stored is not None

    @property
    def spatial_dims(self) -> int:
        """Number of spatial axes: 3 for volumes, 2 for images."""
        return self.volumes[0].map().ndim - 1

    def batch(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Give prepared intensities of some scans, shape (B, 1, *spatial), float32, on the device."""
        positions = torch.as_tensor(np.asarray(indices), device=self.device)
        if self._stored is not None:
            stored = self._stored[positions]
        else:
            stored = torch.from_numpy(np.stack([self.volumes[index].map() for index in indices]))
            if self.device.type == "cuda":
                stored = stored.pin_memory().to(self.device, non_blocking=True)
        shape = (-1,) + (1,) * (stored.ndim - 1)
        return torch.addcmul(self._offset[positions].view(shape), stored.float(), self._scale[positions].view(shape))

    def batches(self, plan: Iterable[Sequence[int] | np.ndarray]) -> Iterator[Tensor]:
        """Give one batch after the other; a streamed one is read while the last is being used."""
        return map(self.batch, plan) if self.resident else read_ahead(self.batch, plan)


def read_ahead(read: Callable[[T], R], plan: Iterable[T]) -> Iterator[R]:
    """Call `read` on each item of `plan` in a second thread, one item ahead."""
    with ThreadPoolExecutor(1) as pool:
        pending: Future[R] | None = None
        for item in plan:
            following = pool.submit(read, item)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()


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
        weights: How often each scan is wanted, shape (n_scans,), mean 1. A scan of weight w is drawn ⌊w⌋ or ⌈w⌉
            times, w on average (systematic resampling); None: every scan once.

    Returns:
        Positions of the scans of each batch.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(n_scans)
    if weights is not None:
        upto = np.cumsum(weights[order]) * (n_scans / weights.sum())
        drawn = np.searchsorted(upto, np.arange(n_scans) + rng.random())
        order = rng.permutation(order[np.minimum(drawn, n_scans - 1)])
    return np.array_split(order, -(-n_scans // batch_size))


def age_weights(ages: np.ndarray, balance: float, width_years: float = 4.0) -> np.ndarray:
    """Weigh scans by how rare their age is.

    Args:
        ages: Years, shape (n,).
        balance: 0 (all alike) to 1 (every age equally frequent): weight ∝ density^(−balance).
        width_years: Standard deviation of the Gaussian kernel that estimates the density of ages.

    Returns:
        Weights, shape (n,), mean 1.
    """
    counts, edges = np.histogram(ages, bins=np.arange(np.floor(ages.min()) - 1, np.ceil(ages.max()) + 2))
    middles = (edges[:-1] + edges[1:]) / 2
    kernel = np.exp(-0.5 * ((ages[:, None] - middles[None]) / width_years) ** 2)
    weights = (kernel @ counts) ** -balance
    return np.asarray(weights / weights.mean())
