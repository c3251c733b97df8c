"""From a job to a trained network: number format, memory plan, loop; smaller parts where memory runs out."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence

import numpy as np
import torch
from lightning_fabric import Fabric

from neuroage.errors import InfeasibleError, RefusedError
from neuroage.imaging.batches import VolumeSet
from neuroage.imaging.store import StoredVolume, steps_version
from neuroage.models.freezing import freeze_for, phases, phases_in_words
from neuroage.models.network import Network, build_network
from neuroage.runs.recipe import Recipe
from neuroage.training.devices import is_out_of_memory, kept_memory, make_fabric
from neuroage.training.features import on_features, whole
from neuroage.training.initial import measure_norms, take_backbone
from neuroage.training.interruption import stop_on_signals
from neuroage.training.job import Job
from neuroage.training.loop import Scans, Trainee, fit
from neuroage.training.plan import Plan, next_step_down, plan_training
from neuroage.training.precision import choose_precision

VOXEL_STD_FLOOR = 0.15  # share of the overall standard deviation; about what noise alone gives


def learn(job: Job) -> tuple[Fabric, Network]:
    """Train a job's network, or continue training it.

    Where memory runs out although the plan said that it would do, the next smaller plan continues from the last state.

    Returns:
        Where it ran, and the network with the weights that were kept.

    Raises:
        Interrupted: A signal asked to stop; the state is saved.
        InfeasibleError: Not even the smallest plan fits, or memory ran out in one of several processes, which cannot
            tell the others in the middle of a step; resuming then takes the smaller plan.
        DataError: The training diverged.
    """
    recipe = job.recipe
    trainee, plan = ready(job)
    _refuse_undefined(trainee)
    fabric, network = trainee.fabric, trainee.network
    with kept_memory(fabric.device, wanted=plan.has_room), stop_on_signals() as should_stop:
        trainee.should_stop = should_stop
        _announce(job, trainee, plan)
        if recipe.finetune.cache_features:
            trainee = on_features(trainee, plan.scans_at_once, job.observer.note)
        while True:
            try:
                return fabric, whole(fit(trainee))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            plan = _smaller(job, plan, network)
            if fabric.world_size > 1:
                raise InfeasibleError(
                    f"Memory ran out in process {fabric.global_rank} of {fabric.world_size}",
                    fix=f"Continue with --resume: from the last saved state, with {plan.words}.",
                )
            network.zero_grad(set_to_none=True)
            gc.collect()  # here the failed step's frames are gone, and its tensors with them
            if fabric.device.type == "cuda":
                torch.cuda.empty_cache()
            job.observer.note(f"Memory ran out: going on from the last saved state with {plan.words}.")
            trainee.recipe = resolved(recipe, plan)


def ready(job: Job) -> tuple[Trainee, Plan]:
    """Make everything that the loop works on, as far as its first step: network, number format, memory plan, scans."""
    job.task.fit(job.rows("train", "inner"))
    known = job.run.about.get("target", job.task.target)
    if known != job.task.target:
        raise RefusedError(
            f"{job.run.folder} was started with other labels, or in another order: {known.get('labels')}",
            fix="Continue with the same cohort table, or train anew in another folder.",
        )
    fabric = make_fabric("fp32")
    is_new = fabric.broadcast(not job.run.checkpoint_path.exists())  # a checkpoint has all weights
    network = _network(job, fabric, is_new=is_new)
    fabric, plan = _settle(job, fabric, network)
    if is_new and job.recipe.finetune.reestimate_norms:
        measure_norms(job, fabric, network, plan.scans_at_once)
    return _trainee(job, fabric, network, plan), plan


def _network(job: Job, fabric: Fabric, *, is_new: bool) -> Network:
    """Build the network, with what it starts from, and freeze what never trains."""
    recipe, parent = job.recipe, job.recipe.finetune.init_from
    network = build_network(
        recipe,
        spatial_dims=len(recipe.prepare.size),
        in_channels=recipe.prepare.n_channels,
        n_outputs=job.task.n_outputs,
        pretrained=is_new and parent is None,
        bin_edges=getattr(job.task, "edges", None),
        say=job.observer.note,
    )
    if is_new and parent is not None:
        taken = take_backbone(network, job)
        if fabric.is_global_zero:
            job.run.update(init_from=taken)
    if recipe.standardise == "voxelwise":
        set_standardisation(network, job.volumes("train"))
    freeze_for(network, recipe)  # so that memory is planned for the most that will ever train
    return network


def resolved(recipe: Recipe, plan: Plan) -> Recipe:
    """Give the recipe with the numbers that a plan put in the place of `auto`."""
    return recipe.updated(
        f"training.batch_size={plan.batch_size}",
        f"training.recompute={plan.recompute}",
        f"optim.accumulate={plan.accumulate}",
    )


def _settle(job: Job, fabric: Fabric, network: Network) -> tuple[Fabric, Plan]:
    """Decide number format and plan, once: a run that is continued keeps the format and the batch size."""
    # The main process asks for all: another may come late and find what it has written since.
    recipe, about = job.recipe, fabric.broadcast(job.run.about)
    precision = about.get("precision") or recipe.training.precision
    if precision == "auto":
        shape = (2, recipe.prepare.n_channels, *recipe.prepare.size)
        precision = fabric.broadcast(choose_precision(network.to(fabric.device), shape, fabric.device))
    plan = Plan(**about["plan"]) if "plan" in about else None
    if plan is None or plan.n_processes != fabric.world_size:
        kept = [f"training.batch_size={plan.batch_size}"] if plan else []
        plan = fabric.broadcast(
            plan_training(
                recipe.updated(*kept),
                network,
                precision=precision,
                device=fabric.device,
                n_train_scans=len(job.rows("train")),
                n_processes=fabric.world_size,
            )
        )
    fabric = make_fabric(precision, in_phases=len(phases(recipe.finetune, recipe.training.epochs)) > 1)
    if fabric.is_global_zero:
        job.run.update(
            precision=precision,
            plan=plan.to_dict(),
            device=fabric.device.type,
            task=job.task.state(),
            target=job.task.target,
            counts=job.table["set"].value_counts().to_dict(),
            steps_version=steps_version(recipe.prepare),
        )
    return fabric, plan


def _refuse_undefined(trainee: Trainee) -> None:
    """Refuse to select, or to stop, by a figure that scans with one answer alone cannot have."""
    task, training = trainee.task, trainee.recipe.training
    watched = training.select if training.select != "last" else "inner" if training.patience else ""
    scans = {"inner": trainee.inner, "validation": trainee.validation}.get(watched)
    if scans is None:
        return
    constant = torch.zeros(len(scans), task.n_outputs, device=scans.targets.device)
    if math.isnan(task.score(constant, scans.targets)):
        raise InfeasibleError(
            f"The {watched} scans have no {task.headline}, by which weights are chosen or training stops: "
            "no label is there both with and without",
            fix="Make another split, or set training.select=last and training.patience=null.",
        )


def _smaller(job: Job, plan: Plan, network: Network) -> Plan:
    smaller = next_step_down(plan, network)
    if smaller is None:
        raise InfeasibleError(
            f"Memory ran out with one scan at a time and recompute: {plan.recompute}",
            fix="Raise prepare.spacing_mm, choose a smaller backbone, or see `neuroage plan`.",
        )
    job.run.update(plan=smaller.to_dict())
    return smaller


def _announce(job: Job, trainee: Trainee, plan: Plan) -> None:
    fabric, recipe = trainee.fabric, job.recipe
    where = f"{plan.precision} on {fabric.device.type}"
    if fabric.world_size > 1:
        where += f", {fabric.world_size} processes"
    job.observer.stage(f"Training {recipe.backbone.name} on {len(trainee.train)} {recipe.modality} scans ({where})")
    for reason in [*job.task.notes, *plan.reasons, *phases_in_words(trainee.network, recipe)]:
        job.observer.note(reason)
    job.observer.training(job.run, len(job.run.history), recipe.training.epochs)


def _trainee(job: Job, fabric: Fabric, network: Network, plan: Plan) -> Trainee:
    inner, training = _scans(job, "inner", fabric), _scans(job, "train", fabric)
    training.weights = job.task.draw_weights(job.rows("train"), job.recipe.training.age_balance)
    return Trainee(
        fabric=fabric,
        recipe=resolved(job.recipe, plan),
        task=job.task,
        network=network,
        run=job.run,
        train=training,
        inner=inner if len(inner) else None,
        validation=_scans(job, "validation", fabric),
        augment=job.augmentation,
        baselines={"mean": job.task.baseline(job.rows("inner") if len(inner) else job.rows("train"))},
        on_epoch=job.observer.epoch,
        on_step=job.observer.step,
    )


def _scans(job: Job, set_name: str, fabric: Fabric) -> Scans:
    rows = job.rows(set_name)
    volumes = VolumeSet(job.volumes(set_name), fabric.device)
    return Scans(volumes, job.task.encode(rows).to(fabric.device))


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
