"""The training loop, from top to bottom as a story.

Everything drawn at random is keyed by (seed, epoch, step or scan), never by what was drawn before, so a training that
is interrupted anywhere and resumed ends with the same numbers as one that never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from neuroage.errors import DataError
from neuroage.imaging.augment import Pipeline
from neuroage.imaging.batches import VolumeSet, scans_an_epoch
from neuroage.models.network import Network
from neuroage.models.tasks import Task
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run
from neuroage.runs.seeds import child_seed
from neuroage.training.devices import sum_over_processes, to_device
from neuroage.training.inference import MEMORY_FORMAT, run_network
from neuroage.training.mixup import mix
from neuroage.training.optim import learning_rate
from neuroage.training.state import Learner, State
from neuroage.training.steps import Step, plan_steps

CHECKPOINT_SECONDS = 600.0  # long epochs are also saved in their middle
SAVE, STOP = 1, 2  # what may be asked for between two steps
AGREE_EVERY = 10  # steps after which several processes ask each other; every time costs a wait for the device


class Interrupted(Exception):
    """The training was asked to stop; it can be resumed from `run`."""

    def __init__(self, run: Run, epoch: int, n_epochs: int) -> None:
        super().__init__(f"stopped in epoch {epoch} of {n_epochs}; saved in {run.folder}")
        self.run, self.epoch, self.n_epochs = run, epoch, n_epochs


@dataclass
class Scans:
    """Scans with their targets.

    Attributes:
        volumes: Prepared volumes, by position.
        targets: Encoded targets, shape (n_scans, …), on the device.
        weights: How often each is wanted an epoch, shape (n_scans,); None: once.
    """

    volumes: VolumeSet
    targets: Tensor
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.volumes)


@dataclass
class Trainee:
    """Everything the loop works on."""

    fabric: Fabric
    recipe: Recipe
    task: Task
    network: Network
    run: Run
    train: Scans
    inner: Scans | None
    validation: Scans | None
    augment: Pipeline | Callable[..., Any] | None
    baselines: dict[str, float]
    on_epoch: Callable[[dict[str, Any]], None] = lambda row: None
    on_step: Callable[[int, int, int], None] = lambda epoch, step, n_steps: None
    should_stop: Callable[[], bool] = lambda: False


def fit(trainee: Trainee) -> Network:
    """Train to the end of the recipe and give the network with the weights that were kept.

    Continues from the run's checkpoint where there is one.

    Raises:
        Interrupted: `should_stop` said so; the state is saved.
    """
    recipe, training = trainee.recipe, trainee.recipe.training
    learner = Learner(trainee.fabric, trainee.network, recipe, trainee.train.volumes.spatial_dims)
    state = learner.restore(trainee.run)
    if not trainee.run.checkpoint_path.exists():
        learner.save(trainee.run, state)  # there is a state to go on from, whatever happens

    while state.epoch < training.epochs and not _out_of_patience(state, trainee):
        _train_epoch(trainee, learner, state)
        if not math.isfinite(state.loss_sum):
            raise DataError(
                f"The training loss became NaN or infinite in epoch {state.epoch + 1}",
                fix="Lower optim.lr, set optim.clip_norm, or set training.precision to fp32.",
            )
        row = _score(trainee, learner.scored, state)
        state.history.append(row)
        if _is_best(state.history, trainee):
            state.best_epoch = state.epoch
            learner.keep_best()
        state.epoch, state.step, state.loss_sum, state.error_sum, state.seconds = state.epoch + 1, 0, 0.0, 0.0, 0.0
        learner.save(trainee.run, state)
        trainee.on_epoch(row)
        if _asked(trainee, save=False) == STOP and state.epoch < training.epochs:
            raise Interrupted(trainee.run, state.epoch, training.epochs)

    kept = learner.scored
    if learner.best:
        kept.load_state_dict(learner.best)
    return kept.eval()


def _train_epoch(trainee: Trainee, learner: Learner, state: State) -> None:
    recipe, fabric = trainee.recipe, trainee.fabric
    started, saved = time.monotonic() - state.seconds, time.monotonic()
    train = trainee.train
    steps = plan_steps(
        recipe,
        len(train),
        state.epoch,
        weights=train.weights,
        rank=fabric.global_rank,
        n_processes=fabric.world_size,
    )
    n_steps = len(steps)
    steps = steps[state.step :]
    # Sums stay on the device until the epoch ends: reading one would make every step wait for it.
    sums = torch.tensor([state.loss_sum, state.error_sum], dtype=torch.float64, device=fabric.device)
    sums *= fabric.global_rank == 0
    learner.begin_epoch(state.epoch)
    for step, images in zip(steps, trainee.train.volumes.batches([step.scans for step in steps]), strict=True):
        scores = _plateau_scores(trainee, state)
        learner.set_rate(
            learning_rate(recipe.optim, state.epoch + state.step / n_steps, recipe.training.epochs, scores)
        )
        images, targets = ready_batch(trainee, step, images, state.epoch, state.step)
        sums += learn_from(learner, recipe, trainee.task, images, targets, n_all=step.n_all)
        state.step, state.n_steps = state.step + 1, state.n_steps + 1
        learner.follow(state.n_steps)
        trainee.on_step(state.epoch, state.step, n_steps)
        if state.step < n_steps and (asked := _asked(trainee, time.monotonic() - saved > CHECKPOINT_SECONDS, state)):
            state.loss_sum, state.error_sum = sum_over_processes(fabric, sums).tolist()
            state.seconds = time.monotonic() - started
            learner.save(trainee.run, state)
            saved = time.monotonic()
            if asked == STOP:
                raise Interrupted(trainee.run, state.epoch + 1, recipe.training.epochs)
    state.loss_sum, state.error_sum = sum_over_processes(fabric, sums).tolist()
    state.seconds = time.monotonic() - started


def ready_batch(trainee: Trainee, step: Step, images: Tensor, epoch: int, number: int) -> tuple[Tensor, Tensor]:
    """Augment and mix the images of a step, and set the seed of its dropout.

    Args:
        trainee: Augmentation and targets.
        step: Whose scans the images are.
        images: Of `step.scans`, as prepared.
        epoch, number: Which step of which epoch, both from 0.

    Returns:
        Images and targets that are learnt from.
    """
    rank = trainee.fabric.global_rank
    place = (epoch, number, rank) if rank else (epoch, number)
    torch.manual_seed(child_seed(trainee.recipe.seed, "dropout", *place))
    if trainee.augment is not None:
        images, _ = trainee.augment(images, [(epoch, int(position)) for position in step.scans])
    targets = trainee.train.targets
    targets = targets[to_device(step.scans, targets.device)]
    if step.partners is None:
        return images, targets
    own, partners = (to_device(places, images.device) for places in (step.own, step.partners))
    return mix(images, own, partners, step.share), mix(targets, own, partners, step.share)


def _asked(trainee: Trainee, save: bool, state: State | None = None) -> int:
    """Whether to save (SAVE) or to save and stop (STOP) now; every process gets the same answer."""
    fabric, asked = trainee.fabric, STOP if trainee.should_stop() else SAVE if save else 0
    if fabric.world_size == 1:
        return asked
    if state is not None and state.step % AGREE_EVERY:
        return 0
    votes = torch.tensor([asked == SAVE, asked == STOP], dtype=torch.float32, device=fabric.device)
    n_save, n_stop = sum_over_processes(fabric, votes).tolist()
    return STOP if n_stop else SAVE if n_save else 0


def _plateau_scores(trainee: Trainee, state: State) -> list[float]:
    """Give what the plateau schedule watches: the inner error where there is an inner part, else the training loss."""
    if trainee.inner is None:
        return [row["train_loss"] for row in state.history]
    return [_to_minimise(trainee.task, row, "inner") for row in state.history]


def _to_minimise(task: Task, row: dict[str, Any], set_name: str) -> float:
    """Give the headline metric of a set so that smaller is better; what is not defined is worse than all."""
    value = float(row[f"{set_name}_{task.headline}"])
    if math.isnan(value):
        return math.inf
    return -value if task.higher_is_better else value


def learn_from(learner: Learner, recipe: Recipe, task: Task, images: Tensor, targets: Tensor, *, n_all: int) -> Tensor:
    """Do one step of the optimiser; gives the sums of losses and errors, (2,), still on the device.

    Args:
        learner: Network and optimiser.
        recipe: Its parts of a batch and clipping.
        task: Loss and errors.
        images, targets: This process's scans of the batch, on the device.
        n_all: Scans of the batch over all processes.
    """
    optim, fabric = recipe.optim, learner.fabric
    images = images.contiguous(memory_format=MEMORY_FORMAT[images.ndim])
    sums = torch.zeros(2, dtype=torch.float64, device=fabric.device)
    learner.optimiser.zero_grad(set_to_none=True)
    n_parts, shared = min(optim.accumulate, len(images)), fabric.world_size > 1
    for number, (part, part_targets) in enumerate(
        zip(images.tensor_split(n_parts), targets.tensor_split(n_parts), strict=True)
    ):
        with fabric.no_backward_sync(learner.network, enabled=shared and number < n_parts - 1):
            outputs = learner.network(part)
            loss = task.loss(outputs, part_targets)
            # Gradients are averaged over processes, whose parts may differ by a scan.
            fabric.backward(loss * (len(part) * fabric.world_size / n_all))
        sums[0] += loss.detach() * len(part)
        sums[1] += task.errors(outputs.detach(), part_targets).sum()
    if optim.clip_norm:
        fabric.clip_gradients(learner.network, learner.optimiser, max_norm=optim.clip_norm, error_if_nonfinite=False)
    learner.optimiser.step()
    return sums


def _score(trainee: Trainee, network: Network, state: State) -> dict[str, Any]:
    """Make the history row of the epoch just trained."""
    task, recipe, n = trainee.task, trainee.recipe, len(trainee.train)
    n_drawn = scans_an_epoch(n, trainee.train.weights)
    row: dict[str, Any] = {
        "epoch": state.epoch + 1,
        "learning_rate": learning_rate(
            recipe.optim, state.epoch + 1.0, recipe.training.epochs, _plateau_scores(trainee, state)
        ),
        "train_loss": state.loss_sum / n_drawn,
        f"train_{task.running}": state.error_sum / n_drawn,
    }
    n_eval = min(n, recipe.training.train_eval_scans)
    if n_eval:
        some = np.random.default_rng(child_seed(recipe.seed, "train_eval")).permutation(n)[:n_eval]
        outputs = run_network(trainee.fabric, network, trainee.train.volumes, np.sort(some), _part_size(recipe))
        targets = trainee.train.targets[to_device(np.sort(some), outputs.device)]
        row[f"train_{task.headline}_eval"] = task.score(outputs, targets)
    scored = {
        "inner": trainee.inner,
        "validation": trainee.validation if recipe.training.select == "validation" else None,
    }
    for name, scans in scored.items():
        if scans is not None:
            outputs = run_network(trainee.fabric, network, scans.volumes, np.arange(len(scans)), _part_size(recipe))
            row[f"{name}_loss"] = float(task.loss(outputs, scans.targets))
            row[f"{name}_{task.headline}"] = task.score(outputs, scans.targets)
    for name, value in trainee.baselines.items():
        row[f"baseline_{name}_{task.headline}"] = value
    row["seconds"] = round(state.seconds, 3)
    return row


def _part_size(recipe: Recipe) -> int:
    """Scans that go through the network at once."""
    return -(-int(recipe.training.batch_size) // recipe.optim.accumulate)


def _is_best(history: list[dict[str, Any]], trainee: Trainee) -> bool:
    select = trainee.recipe.training.select
    if select == "last":
        return False
    scores = [_to_minimise(trainee.task, row, select) for row in history]
    return scores[-1] <= min(scores)


def _out_of_patience(state: State, trainee: Trainee) -> bool:
    training = trainee.recipe.training
    if not training.patience or not state.history:
        return False
    watched = "validation" if training.select == "validation" else "inner"
    scores = [_to_minimise(trainee.task, row, watched) for row in state.history]
    return len(scores) - 1 - int(np.argmin(scores)) >= training.patience
