"""What `neuroage plan` foretells, beside what a training then takes.

    python benchmarks/planning.py [--quick] [--threads 2] [--json planning.json]

Memory: predicted peak of a step against the largest running sum of allocations that torch's profiler sees in an epoch
of the real loop (batches from stored values, augmentation, network, optimiser, moving average). Time: predicted seconds
of an epoch against the wall time between the ends of two epochs of the real loop. Volumes are made up.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.profiler import ProfilerActivity, profile

from neuroage.files import write_json
from neuroage.models.network import Network, build_network
from neuroage.models.tasks import build_task
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run
from neuroage.training.augmentation import build_augmentation
from neuroage.training.devices import kept_memory, make_fabric
from neuroage.training.epoch_time import epoch_seconds
from neuroage.training.loop import Scans, Trainee, fit
from neuroage.training.plan import Plan, plan_training

AUGMENT = "augment=[{step: flip, p: 0.5}, {step: affine, p: 1}, {step: bias_field, p: 0.5}, {step: noise, p: 0.5}]"


@dataclass(frozen=True)
class Configuration:
    name: str
    overrides: tuple[str, ...]
    size: tuple[int, int, int]
    batch_size: int = 8
    precision: str = "fp32"
    recompute: str = "none"
    accumulate: int = 1
    n_scans: int = 24

    @property
    def recipe(self) -> Recipe:
        return Recipe().updated(
            *self.overrides,
            AUGMENT,
            f"prepare.size={list(self.size)}",
            f"training.batch_size={self.batch_size}",
            f"training.precision={self.precision}",
            f"training.recompute={self.recompute}",
            f"optim.accumulate={self.accumulate}",
        )


CONFIGURATIONS = [
    Configuration("cnn", ("backbone.name=cnn",), (40, 48, 40)),
    Configuration("cnn, 5 fractions, voxelwise, mixup", (
        "backbone.name=cnn", "prepare.fractions=[-2.2, -1.1, -0.15, 0.7]", "standardise=voxelwise", "pool=grid",
        "training.mixup=0.5"), (40, 48, 40)),
    Configuration("sfcn", ("backbone.name=sfcn",), (48, 56, 48), 4, n_scans=12),
    Configuration("sfcn, blocks", ("backbone.name=sfcn",), (48, 56, 48), 4, recompute="blocks", n_scans=12),
    Configuration("sfcn, bf16", ("backbone.name=sfcn",), (48, 56, 48), 4, precision="bf16", n_scans=12),
    Configuration("resnet", ("backbone.name=resnet",), (48, 56, 48), 4, n_scans=12),
    Configuration("resnet, 2 parts", ("backbone.name=resnet",), (48, 56, 48), 4, accumulate=2, n_scans=12),
    Configuration("densenet", ("backbone.name=densenet",), (48, 56, 48), 4, n_scans=12),
    Configuration("densenet, blocks", ("backbone.name=densenet",), (48, 56, 48), 4, recompute="blocks", n_scans=12),
    Configuration("highresnet", ("backbone.name=highresnet",), (32, 40, 32), 2, n_scans=6),
    Configuration("highresnet, activations", ("backbone.name=highresnet",), (32, 40, 32), 2, recompute="activations",
        n_scans=6),
    Configuration("highresnet, blocks, bf16", ("backbone.name=highresnet",), (32, 40, 32), 2, precision="bf16",
        recompute="blocks", n_scans=6),
]  # fmt: skip
QUICK = ("cnn", "sfcn", "sfcn, blocks", "resnet, 2 parts", "densenet", "highresnet, activations")


class MadeUpVolumes:
    """Random stored volumes, given out as the real ones are."""

    def __init__(self, n: int, channels: int, size: tuple[int, ...]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.stored = torch.randint(0, 256, (n, channels, *size), dtype=torch.uint8, generator=generator)
        self.spatial_dims = len(size)

    def __len__(self) -> int:
        return len(self.stored)

    def batches(self, plan: Iterable[Any]) -> Iterator[torch.Tensor]:
        for indices in plan:
            yield self.stored[torch.as_tensor(np.asarray(indices))].float().mul_(3 / 255)


def build(recipe: Recipe) -> tuple[Any, Network]:
    task = build_task(recipe)
    task.fit(pd.DataFrame({"age": np.linspace(20.0, 80.0, 24)}))
    size, channels = recipe.prepare.size, recipe.prepare.n_channels
    return task, build_network(recipe, spatial_dims=len(size), in_channels=channels, n_outputs=task.n_outputs)


def run_loop(
    recipe: Recipe,
    n_scans: int,
    precision: str,
    n_epochs: int,
    clock: Callable[[], float] = time.perf_counter,
    *,
    keeps_memory: bool = False,
) -> list[float]:
    """Train some epochs with the real loop; gives the time when each was finished."""
    task, network = build(recipe)
    ages = np.linspace(20.0, 80.0, n_scans)
    volumes: Any = MadeUpVolumes(n_scans, recipe.prepare.n_channels, recipe.prepare.size)
    scans = Scans(volumes, task.encode(pd.DataFrame({"age": ages})), ages)
    finished = [clock()]
    with tempfile.TemporaryDirectory() as folder, kept_memory(torch.device("cpu"), wanted=keeps_memory):
        trainee = Trainee(
            fabric=make_fabric(precision),
            recipe=recipe.updated(f"training.epochs={n_epochs}"),
            task=task,
            network=network,
            run=Run(Path(folder)),
            train=scans,
            inner=None,
            validation=None,
            augment=build_augmentation(recipe),
            baselines={},
            on_epoch=lambda row: finished.append(clock()),
        )
        fit(trainee)
    return finished


def measured_peak(recipe: Recipe, n_scans: int, precision: str) -> int:
    """Largest running sum of what an epoch of the real loop allocates, stored volumes left out."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run_loop(recipe, n_scans, precision, 1)
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    sums = np.cumsum([event.nbytes() for event in events])
    volumes = n_scans * recipe.prepare.n_channels * int(np.prod(recipe.prepare.size))
    return int(sums.max()) - volumes


def measure(configuration: Configuration, repeats: int, clock: Callable[[], float]) -> dict[str, Any]:
    recipe, precision, n_scans = configuration.recipe, configuration.precision, configuration.n_scans
    _, network = build(recipe)
    plan: Plan = plan_training(
        recipe, network, precision=precision, device=torch.device("cpu"), n_train_scans=n_scans, exact=True
    )
    predictions, epochs, probe_seconds = [], [], 0.0
    for _ in range(repeats):  # in turn, so that whatever else the machine does meets both
        start = time.perf_counter()
        predictions.append(epoch_seconds(recipe, plan, n_scans, clock=clock))
        probe_seconds = max(probe_seconds, time.perf_counter() - start)
        finished = run_loop(recipe, n_scans, precision, 3, clock, keeps_memory=plan.has_room)
        epochs += np.diff(finished)[1:].tolist()  # the first also makes kernels
    predicted, measured = plan.parts["peak"], measured_peak(recipe, n_scans, precision)
    foretold = sorted(prediction.epoch_seconds for prediction in predictions)
    predicted_seconds, seconds = float(np.median(foretold)), float(np.median(epochs))
    row = {
        "configuration": configuration.name,
        "size": list(configuration.size),
        "batch_size": configuration.batch_size,
        "predicted_peak_bytes": predicted,
        "measured_peak_bytes": measured,
        "memory_error": predicted / measured - 1,
        "predicted_epoch_seconds": predicted_seconds,
        "measured_epoch_seconds": seconds,
        "predicted_spread": [foretold[0], foretold[-1]],
        "measured_spread": [min(epochs), max(epochs)],
        "time_error": predicted_seconds / seconds - 1,
        "probe_seconds": probe_seconds,
        "probed_share": predictions[0].probed_share,
    }
    print(
        f"{configuration.name:<36}{predicted / 2**20:9.0f} MiB {measured / 2**20:9.0f} MiB {row['memory_error']:+7.1%}"
        f"   {predicted_seconds:8.2f} s {seconds:8.2f} s {row['time_error']:+7.1%}"
        f"   probe {probe_seconds:4.1f} s",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="six configurations, one probe and two timed epochs each")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads")
    parser.add_argument("--cpu-time", action="store_true", help="count this process's own time: others use the machine")
    parser.add_argument("--json", metavar="PATH", help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    setting = {
        "clock": clock.__name__,
        "threads": options.threads,
        "machine": platform.processor() or platform.machine(),
        "versions": versions,
    }
    print(json.dumps(setting))
    print(f"{'':<36}{'predicted':>13} {'measured':>13} {'error':>7}   {'predicted':>10} {'measured':>10} {'error':>7}")
    chosen = [item for item in CONFIGURATIONS if not options.quick or item.name in QUICK]
    rows = [measure(configuration, 1 if options.quick else 3, clock) for configuration in chosen]
    worst = {name: max(abs(row[f"{name}_error"]) for row in rows) for name in ("memory", "time")}
    print(f"{len(rows)} configurations; largest error: memory {worst['memory']:.1%}, time {worst['time']:.1%}")
    if options.json:
        write_json(options.json, {**setting, "largest_error": worst, "results": rows})


if __name__ == "__main__":
    main()
