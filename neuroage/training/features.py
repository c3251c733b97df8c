"""Training on features that are computed once: for a backbone that is frozen from the first epoch to the last."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from neuroage.imaging.batches import VolumeSet
from neuroage.models.network import Network
from neuroage.runs.recipe import Recipe
from neuroage.runs.recipe_text import Problem
from neuroage.training.checkpoint import load_checkpoint
from neuroage.training.inference import MEMORY_FORMAT
from neuroage.training.loop import Scans, Trainee

FIXED_POOLS = ("average", "max", "average_max", "grid")  # others learn, so what they give is not fixed


class FeatureSet(VolumeSet):
    """The pooled features of some scans, in the place of their volumes: as images of one voxel.

    Args:
        features: Shape (n_scans, F, 1, …), one axis of one voxel for each axis of the volumes.
    """

    def __init__(self, features: Tensor) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    @property
    def spatial_dims(self) -> int:
        """Number of spatial axes of the volumes."""
        return self.features.ndim - 2

    def batch(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Give the features of some scans, shape (B, F, 1, …), on the device."""
        return self.features[torch.as_tensor(np.asarray(indices), device=self.features.device)]

    def batches(self, plan: Iterable[Sequence[int] | np.ndarray]) -> Iterator[Tensor]:
        """Give one batch after the other."""
        return map(self.batch, plan)


class FromFeatures(Network):
    """A network that is given pooled features instead of images. It has all weights, those of the backbone too."""

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, F, 1, …) → outputs (B, n_outputs)."""
        outputs: Tensor = self.head(images.flatten(1))
        return outputs


def check_features(recipe: Recipe) -> list[Problem]:
    """Find what stands against computing features once."""
    if not recipe.finetune.cache_features:
        return []
    key, problems = "finetune.cache_features", []
    if recipe.augment:
        problems.append(Problem("augment", f"{key} computes the features of every scan once: it must be []"))
    if recipe.training.mixup:
        problems.append(Problem("training.mixup", f"{key} mixes no scans: it must be 0"))
    if recipe.pool not in FIXED_POOLS:
        problems.append(Problem("pool", f"{key} needs a pool that does not learn: one of {', '.join(FIXED_POOLS)}"))
    return problems


def on_features(trainee: Trainee, n_at_once: int, note: Callable[[str], None]) -> Trainee:
    """Compute the features of all scans that a training looks at, and let it learn from them.

    The result is as without, but for rounding; the network that is trained has all weights, and so has its checkpoint.

    Args:
        trainee: With a backbone that is frozen.
        n_at_once: Scans that go through the backbone together.
        note: Told how long it took.
    """
    started = time.monotonic()
    network, fabric = trainee.network, trainee.fabric
    if trainee.run.checkpoint_path.exists():  # continued: its backbone may come from what is no longer there
        network.load_state_dict(load_checkpoint(trainee.run.checkpoint_path)[0]["network"])
    network.to(fabric.device).to(memory_format=MEMORY_FORMAT[trainee.train.volumes.spatial_dims + 2]).eval()
    view = copy.copy(network)  # the same weights
    view.__class__ = FromFeatures

    def cached(scans: Scans | None) -> Scans | None:
        return scans and replace(scans, volumes=_features(trainee, scans, n_at_once))

    selects = trainee.recipe.training.select == "validation"
    train = replace(trainee.train, volumes=_features(trainee, trainee.train, n_at_once))
    changed = replace(
        trainee,
        network=view,
        train=train,
        inner=cached(trainee.inner),
        validation=cached(trainee.validation) if selects else None,
    )
    note(f"The features of {len(train)} training scans took {time.monotonic() - started:.1f} s, once.")
    return changed


def whole(network: Network) -> Network:
    """Give a network that was trained on features back as one that takes images."""
    if isinstance(network, FromFeatures):
        network.__class__ = Network  # type: ignore[assignment]
    return network


@torch.no_grad()
def _features(trainee: Trainee, scans: Scans, n_at_once: int) -> FeatureSet:
    parts = []
    n_batches = -(-len(scans) // n_at_once)
    memory_format = MEMORY_FORMAT[scans.volumes.spatial_dims + 2]
    for images in scans.volumes.batches(np.array_split(np.arange(len(scans)), n_batches)):
        with trainee.fabric.autocast():
            features = trainee.network.features(images.contiguous(memory_format=memory_format)).float()
        parts.append(features.reshape(*features.shape, *[1] * scans.volumes.spatial_dims))
    return FeatureSet(torch.cat(parts))
