"""A training from end to end beside the loop that is usually written: scans a second, and where both end.

    python benchmarks/training.py [--quick] [--accuracy] [--data COHORT --modality t1] [--json training.json]

The usual loop: TorchIO's `SubjectsDataset` and `SubjectsLoader` over `.nii.gz` files with RandomAffine, RandomFlip and
RandomBiasField, the same network, AdamW, single precision. Ours: `neuroage train` on prepared volumes. Both read the
very same voxels: the prepared volumes are written out as NIfTI for the usual loop, which so has nothing left to
prepare, and before anything is timed one batch of both is compared. The usual loop is timed without worker processes
and with one for each core, and the better of the two counts.

`feeding` compares our loop with itself when it gets one constant batch: what reading and augmenting cost.
`--accuracy` trains both to the end on a phantom cohort at 4 mm with three seeds and compares the held-out error.
Without --data a phantom cohort is made.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torchio as tio

from neuroage.cohort import Cohort, Split, uniform_age_split
from neuroage.files import write_json
from neuroage.imaging.batches import VolumeSet
from neuroage.imaging.phantom import make_phantom
from neuroage.imaging.preparation import PreparedCohort, prepare_scans
from neuroage.imaging.store import Store
from neuroage.models.network import build_network
from neuroage.models.tasks import build_task
from neuroage.runs.recipe import Recipe
from neuroage.training import learn as learn_module
from neuroage.training.loop import _train_epoch
from neuroage.training.optim import learning_rate, make_optimiser
from neuroage.training.state import Learner, State
from neuroage.training.train import train

AUGMENT = [{"step": "affine", "p": 0.5}, {"step": "flip", "p": 0.5}, {"step": "bias_field", "p": 0.5}]


def make_recipe(spacing_mm: float, size: list[int], epochs: int, batch_size: int, modality: str) -> Recipe:
    return Recipe.from_dict(
        {
            "modality": modality,
            "prepare": {"spacing_mm": spacing_mm, "size": size, "intensity": "mean"},
            "augment": [{**step, **({"sharpness": 0.0} if step["step"] == "affine" else {})} for step in AUGMENT],
            "backbone": {"name": "sfcn"},
            "head": {"dropout": 0.5},
            "optim": {"lr": 2e-3, "ema": None, "warmup_epochs": 2, "clip_norm": None},
            "training": {"epochs": epochs, "batch_size": batch_size, "train_eval_scans": 0},
        }
    )


def usual_transform() -> tio.Compose:
    """The same augmentation by TorchIO's own transforms, with its defaults, which are also ours."""
    affine, flip, field = tio.RandomAffine(p=0.5), tio.RandomFlip(0, flip_probability=0.5), tio.RandomBiasField(p=0.5)
    return tio.Compose([affine, flip, field])


def write_nifti(prepared: PreparedCohort, folder: Path, spacing_mm: float) -> dict[str, Path]:
    """Write the prepared volumes as what the usual loop reads; the same values, in single precision."""
    paths = {}
    for scan_id, volume in prepared.volumes.items():
        paths[scan_id] = folder / f"{len(paths):04d}.nii.gz"
        nib.save(nib.Nifti1Image(volume.load()[0], np.diag([spacing_mm] * 3 + [1.0])), paths[scan_id])
    return paths


class Usual:
    """The loop that is usually written."""

    def __init__(self, recipe: Recipe, rows: Any, paths: dict[str, Path], workers: int, *, augment: bool = True):
        task = build_task(recipe)
        task.fit(rows)
        self.recipe, self.task = recipe, task
        subjects = [
            tio.Subject(scan=tio.ScalarImage(paths[scan_id]), target=target, place=place)
            for place, (scan_id, target) in enumerate(zip(rows.index, task.encode(rows), strict=True))
        ]
        transform = usual_transform() if augment else None
        self.loader = tio.SubjectsLoader(
            tio.SubjectsDataset(subjects, transform=transform),
            batch_size=int(recipe.training.batch_size),
            shuffle=augment,
            num_workers=workers,
        )
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = build_network(recipe, spatial_dims=3, in_channels=1, n_outputs=task.n_outputs).to(self.device)
        self.optimiser = make_optimiser(self.network, recipe.optim)

    def train_epoch(self, epoch: int) -> None:
        self.network.train()
        for step, batch in enumerate(self.loader):
            images, targets = batch["scan"][tio.DATA].float().to(self.device), batch["target"].to(self.device)
            for group in self.optimiser.param_groups:
                group["lr"] = learning_rate(
                    self.recipe.optim, epoch + step / len(self.loader), self.recipe.training.epochs
                )
            self.optimiser.zero_grad()
            loss = self.task.loss(self.network(images), targets)
            loss.backward()
            self.optimiser.step()
            loss.item()  # everybody logs it

    @torch.no_grad()
    def predict(self, paths: list[Path]) -> np.ndarray:
        self.network.eval()
        outputs = [
            self.network(torch.from_numpy(nib.load(path).get_fdata(dtype=np.float32))[None, None].to(self.device))
            for path in paths
        ]
        return self.task.decode(torch.cat(outputs))["predicted_age"].cpu().numpy()


class Constant:
    """Volumes that are always the same batch, ready on the device."""

    def __init__(self, volumes: VolumeSet, n_scans: int) -> None:
        self.spatial_dims, self.images = volumes.spatial_dims, volumes.batch(np.arange(n_scans))

    def __len__(self) -> int:
        return 10**9

    def batches(self, plan: Any) -> Iterator[torch.Tensor]:
        for part in plan:
            yield self.images[: len(part)]


def our_epochs(
    recipe: Recipe, cohort: Cohort, split: Split, store: Store, n_epochs: int, *, keep_memory: bool = True
) -> tuple[list[float], list[float], str]:
    """Seconds of epochs of the real loop, and of the same loop fed with one constant batch, in turns.

    Without `keep_memory`, what a step frees goes back to the system, as it does in the usual loop.
    """
    seconds: dict[str, list[float]] = {"real": [], "constant": []}
    precision = ""

    def timed(trainee: Any) -> Any:
        nonlocal precision
        precision = trainee.run.about["precision"]
        learner = Learner(trainee.fabric, trainee.network, trainee.recipe, 3)
        volumes, augment = trainee.train.volumes, trainee.augment
        constant = Constant(volumes, int(trainee.recipe.training.batch_size))
        for number in range(n_epochs + 1):  # the first one also prepares kernels
            for kind in seconds:
                object.__setattr__(trainee.train, "volumes", volumes if kind == "real" else constant)
                trainee.augment = augment if kind == "real" else None
                state = State()
                _train_epoch(trainee, learner, state)
                if number:
                    seconds[kind].append(state.seconds)
        object.__setattr__(trainee.train, "volumes", volumes)
        raise KeyboardInterrupt  # nothing is to be scored

    fit, learn_module.fit = learn_module.fit, timed
    kept = learn_module.kept_memory
    if not keep_memory:
        learn_module.kept_memory = lambda *_, **__: nullcontext()
    try:
        with tempfile.TemporaryDirectory() as folder:
            train(recipe, cohort, split, Path(folder) / "run", store=store)
    except KeyboardInterrupt:
        pass
    finally:
        learn_module.fit, learn_module.kept_memory = fit, kept
    return seconds["real"], seconds["constant"], precision


def assert_same_input(recipe: Recipe, usual: Usual, prepared: PreparedCohort, rows: Any) -> None:
    batch = next(iter(usual.loader))
    ours = VolumeSet([prepared.volumes[scan_id] for scan_id in rows.index]).batch(batch["place"].numpy())
    torch.testing.assert_close(batch["scan"][tio.DATA].float(), ours)
    torch.testing.assert_close(batch["target"], usual.task.encode(rows)[batch["place"]])
    usual.network.eval()
    again = build_network(recipe, spatial_dims=3, in_channels=1, n_outputs=usual.task.n_outputs).eval()
    torch.testing.assert_close(usual.network.cpu()(ours[:1]), again(ours[:1]))
    usual.network.to(usual.device)


def measure_speed(recipe: Recipe, cohort: Cohort, split: Split, folder: Path, n_epochs: int) -> list[dict[str, Any]]:
    store = Store(folder / "store")
    rows = training_rows(cohort, split)
    prepared = prepare_scans(cohort.select(scan_ids=list(rows.index)).scans(), recipe.prepare, store)
    paths = write_nifti(prepared, folder, recipe.prepare.spacing[0])
    assert_same_input(recipe, Usual(recipe, rows, paths, 0, augment=False), prepared, rows)
    print("equal inputs, targets and initial outputs")
    results = []
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for workers in (0, n_cores):
        usual = Usual(recipe, rows, paths, workers)
        times = []
        for epoch in range(n_epochs):
            started = time.perf_counter()
            usual.train_epoch(epoch)
            times.append(time.perf_counter() - started)
        results.append(_row(f"usual loop, {workers} workers", times, len(rows)))
    real, constant, precision = our_epochs(recipe, cohort, split, store, 3 * n_epochs)
    results.append(_row(f"neuroage, {precision}", real, len(rows)))
    results.append(_row(f"neuroage, {precision}, one constant batch", constant, len(rows)))
    returned, _, _ = our_epochs(recipe, cohort, split, store, n_epochs, keep_memory=False)
    results.append(_row(f"neuroage, {precision}, memory not kept", returned, len(rows)))
    if precision != "fp32":
        in_fp32 = recipe.updated("training.precision=fp32")
        real32, _, _ = our_epochs(in_fp32, cohort, split, store, 1)
        results.append(_row("neuroage, fp32", real32, len(rows)))
    best = max(row["scans_per_s"] for row in results[:2])
    for row in results:
        row["times_usual"] = row["scans_per_s"] / best
        print(f"  {row['who']:<36} {row['scans_per_s']:8.2f} scans/s  {row['times_usual']:6.2f}×  {row['epochs_s']}")
    share = results[2]["scans_per_s"] / results[3]["scans_per_s"]
    print(f"  feeding: {share:.1%} of the throughput with one constant batch")
    return [*results, {"who": "feeding", "share_of_constant_batch": share}]


def _row(who: str, times: list[float], n_scans: int) -> dict[str, Any]:
    return {
        "who": who,
        "scans_per_s": n_scans / float(np.median(times)),
        "epochs_s": [round(seconds, 2) for seconds in times],
    }


def training_rows(cohort: Cohort, split: Split) -> Any:
    table = cohort.table.set_index("scan_id", drop=False)
    return table[table["subject_id"].isin(split.subjects("train"))]


def measure_accuracy(cohort: Cohort, split: Split, folder: Path, epochs: int, seeds: int) -> dict[str, Any]:
    """Train both loops to the end with several seeds; the same held-out subjects for both."""
    held_out = cohort.table[cohort.table["subject_id"].isin(split.subjects("validation"))].set_index("scan_id")
    store, errors = Store(folder / "store4"), {"usual loop": [], "neuroage": []}
    for seed in range(seeds):
        recipe = make_recipe(4.0, [40, 48, 40], epochs, 8, "t1").updated(
            f"seed={seed}", "backbone.widths=[32,64,128,256,64]"
        )
        prepared = prepare_scans(cohort.scans(), recipe.prepare, store)
        (folder / f"nifti{seed}").mkdir()
        paths = write_nifti(prepared, folder / f"nifti{seed}", 4.0)
        torch.manual_seed(seed)
        usual = Usual(recipe, training_rows(cohort, split), paths, 0)
        for epoch in range(epochs):
            usual.train_epoch(epoch)
        ages = usual.predict([paths[scan_id] for scan_id in held_out.index])
        errors["usual loop"].append(float(np.abs(ages - held_out["age"]).mean()))
        run = train(recipe, cohort, split, folder / f"run{seed}", store=store)
        table = run.predictions
        errors["neuroage"].append(float((table["predicted_age"] - table["age"]).abs().mean()))
        print(f"  seed {seed}: MAE " + ", ".join(f"{values[-1]:.2f} y ({who})" for who, values in errors.items()))
    spread = float(np.sqrt(sum(np.var(values, ddof=1) for values in errors.values()) / seeds))
    difference = float(np.mean(errors["neuroage"]) - np.mean(errors["usual loop"]))
    print(f"  difference {difference:+.2f} y ± {2 * spread:.2f} (two standard errors over {seeds} seeds)")
    return {"errors_years": errors, "difference_years": difference, "two_standard_errors": 2 * spread}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer scans, 3 mm, one epoch")
    parser.add_argument("--accuracy", action="store_true", help="also train both to the end, three seeds")
    parser.add_argument("--data", type=Path, help="cohort; a phantom one when left out")
    parser.add_argument("--modality", default="t1")
    parser.add_argument("--scans", type=int, default=32, help="training scans that are timed")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3, help="timed epochs")
    parser.add_argument("--json", metavar="PATH", help="also write the figures here")
    options = parser.parse_args()
    versions = {"python": platform.python_version(), "torch": torch.__version__, "torchio": tio.__version__}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    setting = {"threads": torch.get_num_threads(), "device": device, "versions": versions}
    print(json.dumps(setting))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.data is None:
            n_subjects = 150 if options.accuracy else options.scans + 16
            make_phantom(folder / "phantom", n_subjects=n_subjects, seed=5, processes=os.cpu_count())
        cohort = Cohort.read(options.data or folder / "phantom").select(modality=options.modality)
        split = uniform_age_split(cohort, n_validation=50 if len(cohort) >= 150 else 12, seed=0)
        some = split.subjects("train")[: options.scans]
        few = cohort.select(subject_ids=[*some, *split.subjects("validation")])
        spacing, size = (3.0, [56, 64, 56]) if options.quick else (2.0, [80, 96, 80])
        recipe = make_recipe(spacing, size, 30, options.batch_size, options.modality)
        print(f"SFCN, {len(some)} scans of {'×'.join(map(str, size))}, batches of {options.batch_size}")
        short = Split(split.table[split.table["subject_id"].isin(few.table["subject_id"])], split.meta)
        content = {
            **setting,
            "speed": measure_speed(recipe, few, short, folder, 1 if options.quick else options.epochs),
        }
        if options.accuracy:
            content["accuracy"] = measure_accuracy(cohort, split, folder, 6 if options.quick else 12, 3)
    if options.json:
        write_json(options.json, content)


if __name__ == "__main__":
    main()
