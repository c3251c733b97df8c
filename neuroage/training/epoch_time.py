"""How long an epoch will take, from a few real steps on made-up volumes."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuroage.imaging.batches import plan_epoch
from neuroage.models.network import build_network
from neuroage.models.tasks import build_task
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run
from neuroage.training.augmentation import build_augmentation
from neuroage.training.devices import kept_memory, make_fabric
from neuroage.training.inference import MEMORY_FORMAT
from neuroage.training.loop import learn_from
from neuroage.training.mixup import draw_mixture, mix
from neuroage.training.plan import Plan
from neuroage.training.state import Learner, State

CROPS = (32**3, 64**3)  # voxels of a scan in the first, cheap probes that say what a whole step will take
FEW_SCANS = 2  # of these probes; batch norm needs more than one value
MOST_STEPS = 12  # more say nothing new
SCORING_SECONDS = 1.0  # for passes without learning, which take a third of a step each


@dataclass(frozen=True)
class EpochTime:
    """How long a training will take on this machine.

    Attributes:
        step_seconds: One step: augmentation, network, optimiser.
        scoring_seconds: What is scored after each epoch: training scans without augmentation, and the inner part.
        saving_seconds: The checkpoint after each epoch.
        n_steps: Steps of an epoch.
        epoch_seconds: Steps, scoring and saving.
        training_seconds: All epochs.
        probed_share: Voxels of the probed steps, as a share of a whole step's; below 1 the time is scaled up.
        note: Where the probe is not the whole step, in words.
    """

    step_seconds: float
    scoring_seconds: float
    saving_seconds: float
    n_steps: int
    epoch_seconds: float
    training_seconds: float
    probed_share: float
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Give all fields, JSON-ready."""
        return asdict(self)


def epoch_seconds(
    recipe: Recipe,
    plan: Plan,
    n_scans: int,
    *,
    budget_seconds: float = 10.0,
    clock: Callable[[], float] = time.perf_counter,
) -> EpochTime:
    """Time real steps for a few seconds, and extrapolate to an epoch and to the training.

    Augmentation, network, loss, optimiser and moving average are those of the recipe; volumes are random. Where a whole
    step would take too long, fewer scans or smaller volumes are timed and scaled by their voxels.

    Args:
        recipe: The whole configuration.
        plan: As made for it.
        n_scans: Training scans, those of the inner part included.
        budget_seconds: What the probe may take.
        clock: Gives seconds; `time.process_time` counts what this process computes, on a machine that others use too.
    """
    with kept_memory(make_fabric(plan.precision).device, wanted=plan.has_room):
        return _probed(recipe, plan, n_scans, budget_seconds, clock)


def _probed(recipe: Recipe, plan: Plan, n_scans: int, budget_seconds: float, clock: Callable[[], float]) -> EpochTime:
    began = clock()
    size = recipe.prepare.size
    sides = [round(crop ** (1 / len(size))) for crop in CROPS]
    rungs = [(FEW_SCANS, tuple(min(side, crop) for side in size)) for crop in sides]
    rungs = list(dict.fromkeys([*rungs, (min(FEW_SCANS, plan.share), size), (plan.share, size)]))
    whole = plan.share * math.prod(size)
    probe, per_voxel = None, 0.0
    for n, crop in rungs:
        voxels = n * math.prod(crop)
        left = budget_seconds - (clock() - began)
        if probe is not None and 3 * per_voxel * voxels > left:  # a first step that prepares kernels, and two timed
            break
        try:
            candidate = Probe(recipe, plan, n, crop)
            candidate.step()
            start = clock()
            candidate.step()
        except ValueError:  # too few values for batch norm
            continue
        probe, per_voxel = candidate, (clock() - start) / voxels
    if probe is None:
        raise ValueError("no part of a step can be timed")
    times = [per_voxel * probe.voxels]
    while len(times) < MOST_STEPS and clock() - began + 2 * times[-1] < budget_seconds:
        start = clock()
        probe.step()
        times.append(clock() - start)
    share = probe.voxels / whole
    step = statistics.median(times) / share
    n_inner = round(recipe.training.inner_fraction * n_scans)
    n_train = n_scans - n_inner
    n_steps = len(plan_epoch(n_train, plan.batch_size, 0))
    n_scored = -(-(min(n_train, recipe.training.train_eval_scans) + n_inner) // plan.n_processes)
    # Steps share the scans evenly, so that most have fewer than the batch size.
    step *= n_train / (n_steps * plan.batch_size)
    scoring = probe.scoring_seconds(clock) / share / plan.share * n_scored if n_scored else 0.0
    saving = probe.saving_seconds(clock)
    epoch = n_steps * step + scoring + saving
    return EpochTime(
        step_seconds=step,
        scoring_seconds=scoring,
        saving_seconds=saving,
        n_steps=n_steps,
        epoch_seconds=epoch,
        training_seconds=recipe.training.epochs * epoch,
        probed_share=share,
        note="" if share == 1 else f"Timed {probe.words}, scaled by their voxels to {plan.share} whole scans.",
    )


class Probe:
    """A training on made-up volumes, of which single steps can be made.

    Args:
        recipe: The whole configuration.
        plan: Number format, recomputation and the size of parts.
        n_scans: Scans of a step.
        size: Voxels along each axis.
    """

    def __init__(self, recipe: Recipe, plan: Plan, n_scans: int, size: tuple[int, ...]) -> None:
        self.n_parts = -(-n_scans // plan.scans_at_once)
        self.recipe = recipe.updated(
            f"prepare.size={list(size)}",
            f"training.recompute={plan.recompute}",
            f"optim.accumulate={self.n_parts}",
        )
        self.task = build_task(recipe)
        example = self.task.example(max(n_scans, 2))
        self.task.fit(example)
        self.fabric = make_fabric(plan.precision)
        channels = recipe.prepare.n_channels
        network = build_network(
            self.recipe,
            spatial_dims=len(size),
            in_channels=channels,
            n_outputs=self.task.n_outputs,
            pretrained=False,
        )
        self.learner = Learner(self.fabric, network, self.recipe, len(size))
        self.augment = build_augmentation(self.recipe)
        self.targets = self.task.encode(example.head(n_scans)).to(self.fabric.device)
        generator = torch.Generator().manual_seed(0)
        stored = torch.randint(0, 256, (n_scans, channels, *size), dtype=torch.uint8, generator=generator)
        self.stored = stored.to(self.fabric.device)
        self.n_steps = 0

    @property
    def voxels(self) -> int:
        """Voxels of a step."""
        return math.prod(self.stored.shape) // self.stored.shape[1]

    @property
    def words(self) -> str:
        """What a step is made of."""
        return f"steps of {len(self.stored)} scans of {'×'.join(map(str, self.stored.shape[2:]))} voxels"

    def step(self) -> None:
        """Do what the loop does with a batch, and wait until it is done."""
        images = self._images()
        if self.augment is not None:
            images, _ = self.augment(images, [(self.n_steps, index) for index in range(len(images))])
        targets = self.targets
        mixture = draw_mixture(self.recipe.training.mixup, len(images), np.random.default_rng(self.n_steps))
        if mixture:
            own = torch.arange(len(images), device=images.device)
            partners = torch.from_numpy(mixture[1]).to(images.device)
            images, targets = (mix(values, own, partners, mixture[0]) for values in (images, targets))
        self.learner.network.train()
        learn_from(self.learner, self.recipe, self.task, images, targets, n_all=len(images))
        self.n_steps += 1
        self.learner.follow(self.n_steps)
        self._wait()

    def scoring_seconds(self, clock: Callable[[], float] = time.perf_counter) -> float:
        """Time the network on a step's scans without learning."""
        network = self.learner.scored.eval()
        times: list[float] = []
        while len(times) < 3 and sum(times) < SCORING_SECONDS:
            start = clock()
            images = self._images().contiguous(memory_format=MEMORY_FORMAT[self.stored.ndim])
            with torch.no_grad(), self.fabric.autocast():
                for part in images.tensor_split(self.n_parts):
                    network(part)
            self._wait()
            times.append(clock() - start)
        return min(times)

    def saving_seconds(self, clock: Callable[[], float] = time.perf_counter) -> float:
        """Time the writing of a checkpoint, to the folder for temporary files."""
        with tempfile.TemporaryDirectory() as folder:
            start = clock()
            self.learner.save(Run(Path(folder)), State(step=1))  # within an epoch: no history to write
            return clock() - start

    def _images(self) -> Tensor:
        return self.stored.float().mul_(3 / 255)

    def _wait(self) -> None:
        if self.fabric.device.type == "cuda":
            torch.cuda.synchronize(self.fabric.device)
