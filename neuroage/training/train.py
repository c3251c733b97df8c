"""Train one recipe on one split: prepare → learn → predict → score. What it leaves is a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from neuroage.cohort import Cohort, Split, stratified_age_split
from neuroage.errors import InfeasibleError, RefusedError, UsageError
from neuroage.imaging.batches import VolumeSet
from neuroage.imaging.store import PreparedCohort, Store, StoredVolume, listed, prepare_scans
from neuroage.models.network import Network, build_network, check_backbone
from neuroage.models.tasks import Task, build_task, check_task
from neuroage.runs.contract import InputContract
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run, now
from neuroage.runs.seeds import child_seed
from neuroage.training.augmentation import Augmentation, build_augmentation, check_augment
from neuroage.training.baselines import baseline_tables, fit_ridge
from neuroage.training.checkpoint import save_checkpoint
from neuroage.training.inference import run_network
from neuroage.training.interruption import stop_on_signals
from neuroage.training.loop import Scans, Trainee, fit
from neuroage.training.observer import Observer
from neuroage.training.precision import choose_precision, make_fabric
from neuroage.training.scoring import blend_with_ridge, predictions_table, write_run_pages

MIN_TRAINING_SCANS = 8
VOXEL_STD_FLOOR = 0.15  # share of the overall standard deviation; about what noise alone gives
SCORED = ("validation", "test")


def check_recipe(recipe: Recipe) -> None:
    """Check everything that a recipe names, before anything is computed.

    Raises:
        UsageError: One report of all problems with backbone, task and augmentation, with lines.
    """
    recipe.complain([*check_backbone(recipe), *check_task(recipe), *check_augment(recipe)])


def train(
    recipe: Recipe,
    cohort: Cohort,
    split: Split,
    out: str | os.PathLike[str],
    *,
    fold: int = 0,
    member: str = "",
    resume: str = "never",
    store: Store | None = None,
    augmentation: Augmentation | None = None,
    max_failed_share: float = 0.1,
    observer: Observer | None = None,
) -> Run:
    """Train a recipe on a split and score it on the held-out subjects.

    The validation set is scored once, at the end, and never used to choose, unless the recipe says `select:
        validation`.

    Args:
        recipe: The whole configuration.
        cohort: Scans; those of the recipe's modality, with a target and in the split, are used.
        split: Who is in which set.
        out: Folder of the run.
        fold: Which fold of the split is the validation set.
        member: Name among the members of an ensemble.
        resume: "never" starts anew and refuses a used folder; "required" continues what is there; "auto" continues or
            starts.
        store: Prepared volumes; the user's cache folder when None.
        augmentation: Used instead of the recipe's, such as a `TorchIOPipeline` around anyone's `tio.Compose`.
        max_failed_share: Share of scans that may fail to be prepared.
        observer: Receives news while it runs.

    Returns:
        The complete run.

    Raises:
        UsageError: Recipe, fold or folder are wrong.
        InfeasibleError: Too few scans to train or to score.
        DataError: Scans cannot be prepared, or the training diverged.
        Interrupted: A signal asked to stop; the state is saved.
    """
    check_recipe(recipe)
    observer = observer or Observer()
    if not 0 <= fold < max(split.n_folds, 1):
        raise UsageError(f"fold {fold}", expected=f"0 to {max(split.n_folds, 1) - 1}, the folds of this split")
    chosen = cohort.select(modality=recipe.modality)
    task = build_task(recipe)
    table = scans_in_sets(chosen, split, fold, task)
    _refuse_too_few(table, recipe)  # before anything is written
    run = _open_or_create(recipe, chosen, split, Path(out), fold, member, resume)
    if run.complete:
        return run
    observer.stage(f"Preparing {len(table)} scans")
    prepared = prepare_scans(
        chosen.select(scan_ids=list(table.index)).scans(),
        recipe.prepare,
        store or Store(),
        max_failed_share=max_failed_share,
        progress=observer.preparing,
    )
    if prepared.failures:
        observer.note(f"{len(prepared.failures)} scans were left out:\n" + listed(prepared.failures.values()))
    table = with_inner_set(table[table.index.isin(prepared.volumes)], recipe)
    _refuse_too_few(table, recipe)
    return _learn_and_score(
        Job(recipe, task, table, prepared, run, augmentation or build_augmentation(recipe), observer)
    )


@dataclass(frozen=True)
class Job:
    """What learning and scoring work on; `table` has one row a scan, indexed by scan_id, with its set."""

    recipe: Recipe
    task: Task
    table: pd.DataFrame
    prepared: PreparedCohort
    run: Run
    augmentation: Augmentation | None
    observer: Observer

    def rows(self, *sets: str) -> pd.DataFrame:
        """Scans of these sets."""
        return self.table[self.table["set"].isin(sets)]


def _open_or_create(
    recipe: Recipe, cohort: Cohort, split: Split, out: Path, fold: int, member: str, resume: str
) -> Run:
    run = Run(out)
    if resume == "never" or (resume == "auto" and not run.exists):
        return Run.create(out, recipe, cohort, split, fold=fold, member=member)
    about = Run.open(out).about
    for name, value in (("recipe", recipe.digest), ("split", split.digest), ("fold", fold)):
        known = about.get("fold") if name == "fold" else about.get(f"{name}_digest")
        if known != value:
            raise RefusedError(
                f"{out} was started with another {name}",
                fix=f"Resume with the same {name}, or train anew with another --out.",
            )
    return run


def scans_in_sets(cohort: Cohort, split: Split, fold: int, task: Task) -> pd.DataFrame:
    """Give the cohort's table, indexed by scan_id, with the set of each scan that has one and a target.

    Raises:
        InfeasibleError: No scan of the cohort is in the split.
    """
    table = cohort.table.set_index("scan_id", drop=False)
    sets = split.sets(fold)
    table = table.assign(set=table["subject_id"].map(sets))
    table = table[table["set"].isin(["train", *SCORED])].dropna(subset=list(task.target_columns))
    if table.empty:
        raise InfeasibleError(
            "No subject of the split has a scan of this modality with a target",
            fix="Make the split from the same cohort.",
        )
    return table


def with_inner_set(table: pd.DataFrame, recipe: Recipe) -> pd.DataFrame:
    """Hold out the recipe's `inner_fraction` of the training subjects, age-stratified, as set `inner`."""
    fraction = recipe.training.inner_fraction
    if not fraction:
        return table
    train = table[table["set"] == "train"].reset_index(drop=True)
    inner = stratified_age_split(train, n_validation=fraction, seed=child_seed(recipe.seed, "inner") % 2**31)
    held_out = set(inner.subjects("validation"))
    return table.assign(set=table["set"].mask((table["set"] == "train") & table["subject_id"].isin(held_out), "inner"))


def _refuse_too_few(table: pd.DataFrame, recipe: Recipe) -> None:
    counts = table["set"].value_counts()
    if counts.get("train", 0) < MIN_TRAINING_SCANS:
        raise InfeasibleError(
            f"Only {counts.get('train', 0)} {recipe.modality} scans to train on",
            expected=f"at least {MIN_TRAINING_SCANS}",
        )
    if counts.get("validation", 0) == 0:
        raise InfeasibleError(
            f"No {recipe.modality} scan in the validation set", fix="Make the split from a cohort with this modality."
        )


def _learn_and_score(job: Job) -> Run:
    recipe, task, run, observer = job.recipe, job.task, job.run, job.observer
    task.fit(job.rows("train", "inner"))
    fabric = make_fabric("fp32")
    in_channels = recipe.prepare.n_channels
    shape = (recipe.training.batch_size, in_channels, *recipe.prepare.size)
    network = build_network(
        recipe, spatial_dims=len(recipe.prepare.size), in_channels=in_channels, n_outputs=task.n_outputs
    )
    if recipe.standardise == "voxelwise":
        rows = job.rows("train")
        set_standardisation(network, [job.prepared.volumes[scan_id] for scan_id in rows.index])
    precision = run.about.get("precision") or recipe.training.precision
    if precision == "auto":
        precision = choose_precision(network.to(fabric.device), shape, fabric.device)
    run.update(
        precision=precision,
        device=fabric.device.type,
        task=task.state(),
        counts=job.table["set"].value_counts().to_dict(),
    )
    fabric = make_fabric(precision)

    sets = {name: _scans(job, name, fabric.device) for name in ("train", "inner", "validation")}
    trainee = Trainee(
        fabric=fabric,
        recipe=recipe,
        task=task,
        network=network,
        run=run,
        train=sets["train"],
        inner=sets["inner"] if len(sets["inner"]) else None,
        validation=sets["validation"],
        augment=job.augmentation,
        baselines={"mean": task.baseline(job.rows("inner") if len(sets["inner"]) else job.rows("train"))},
        on_epoch=observer.epoch,
        on_step=observer.step,
    )
    done = len(run.history)
    observer.stage(
        f"Training {recipe.backbone.name} on {len(sets['train'])} {recipe.modality} scans "
        f"({precision} on {fabric.device.type})"
    )
    observer.training(run, done, recipe.training.epochs)
    with stop_on_signals() as should_stop:
        trainee.should_stop = should_stop
        kept = fit(trainee)
    save_checkpoint(run.weights_path, {"network": kept.state_dict()}, {"recipe": recipe.digest, "task": task.state()})

    observer.stage("Scoring the held-out subjects, with the baselines beside the network")
    scored = job.rows(*SCORED)
    outputs = run_network(
        fabric,
        kept,
        VolumeSet([job.prepared.volumes[s] for s in scored.index], fabric.device),
        np.arange(len(scored)),
        recipe.training.batch_size,
        flips=recipe.predict.flips,
    )
    table = predictions_table(scored, task, outputs, fold=run.about["fold"], member=run.about["member"])
    volumes = job.prepared.volumes
    training_rows = job.rows("train", "inner")
    ages = training_rows["age"].to_numpy(dtype=float)
    ridge = fit_ridge([volumes[scan_id] for scan_id in training_rows.index], ages, recipe.prepare.spacing)
    ridge.save(run.ridge_path)
    ridge_ages = ridge.predict([volumes[scan_id] for scan_id in scored.index])
    run.save_baselines(baseline_tables(table, float(ages.mean()), ridge_ages))
    run.save_predictions(blend_with_ridge(table, ridge_ages, recipe.predict.ridge_share))
    records = [volumes[scan_id].record for scan_id in training_rows.index]
    run.save_contract(InputContract.of(recipe.modality, recipe.prepare.spacing, recipe.prepare.size, records, ages))
    selected_on = {"last": "nothing (fixed length)", "inner": "an inner part of training"}.get(
        recipe.training.select, "validation"
    )
    run.update(selected_on=selected_on, finished=now(), status="complete")
    write_run_pages(run)
    observer.finished(run)
    return run


def set_standardisation(network: Network, volumes: Sequence[StoredVolume]) -> None:
    """Set the voxelwise mean and standard deviation of a network's inputs from training scans and their mirror images.

    A part of the overall standard deviation is added to each voxel's, so that voxels that hardly change are not
    blown up.
    """
    total, squares = np.zeros(network.input_mean.shape[1:]), np.zeros(network.input_mean.shape[1:])
    for volume in volumes:
        data = volume.load()
        total += data
        squares += data.astype(np.float64) ** 2
    total, squares = (values + np.flip(values, axis=1) for values in (total, squares))
    mean = total / (2 * len(volumes))
    variance = np.maximum(squares / (2 * len(volumes)) - mean**2, 0)
    overall = float(np.sqrt(max((squares / (2 * len(volumes))).mean() - mean.mean() ** 2, 1e-12)))
    network.input_mean.copy_(torch.from_numpy(mean)[None])
    network.input_std.copy_(torch.from_numpy(np.sqrt(variance) + VOXEL_STD_FLOOR * overall)[None])


def _scans(job: Job, set_name: str, device: Any) -> Scans:
    rows = job.rows(set_name)
    volumes = VolumeSet([job.prepared.volumes[scan_id] for scan_id in rows.index], device)
    return Scans(volumes, job.task.encode(rows), rows["age"].to_numpy(dtype=float))
