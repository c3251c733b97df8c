"""What a training starts from: new weights, published ones, or the backbone of another run."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from neuroage.cohort.parts import Part
from neuroage.errors import RefusedError, UsageError
from neuroage.files import digest_file
from neuroage.imaging.batches import VolumeSet
from neuroage.models.backbones import GIVEN, backbone_builder
from neuroage.models.network import Network
from neuroage.models.norms import reestimate_norms
from neuroage.models.options import check_options
from neuroage.runs.recipe import Recipe, recipe_differences
from neuroage.runs.run import Run
from neuroage.training.checkpoint import load_checkpoint
from neuroage.training.inference import MEMORY_FORMAT
from neuroage.training.job import Job

ANCESTORS = "trained_on"  # in `init_from` of run.json: everyone whom the backbone has learnt from elsewhere


def find_parent(recipe: Recipe, fold: int, part: Part | None = None) -> Run:
    """Find the training whose backbone is taken over: of a run with members the one that left out the same subjects.

    Args:
        recipe: With `finetune.init_from`.
        fold, part: Of the new training; a member with both is taken, else one with the same fold, else the first.

    Raises:
        UsageError: There is no such run, it is not complete, or its backbone is another one.
    """
    run = Run.open(str(recipe.finetune.init_from))
    leaves = [leaf for leaf in run.leaves if leaf.complete]
    if not leaves:
        raise UsageError(f"{run.folder} is not complete", fix="Finish it with `neuroage train … --resume`.")
    leaf = min(leaves, key=lambda leaf: (leaf.about["fold"] != fold, leaf.part != part))  # the first of equals
    _refuse_another_backbone(recipe, leaf.recipe, run.folder)
    return leaf


def check_parent(recipe: Recipe, held_out: Collection[str], fold: int, part: Part | None = None) -> None:
    """Check, before anything is computed, that a recipe's `init_from` can be taken over without a leak.

    Args:
        recipe: With `finetune.init_from`, or without: then nothing is checked.
        held_out: Subjects that the new training does not train on.
        fold, part: As in `find_parent`.

    Raises:
        UsageError: As in `find_parent`.
        RefusedError: The other run has learnt from a subject that is held out now.
    """
    if recipe.finetune.init_from is None:
        return
    parent = find_parent(recipe, fold, part)
    leaked = subjects_learnt_from(parent) & set(held_out)
    if leaked:
        raise RefusedError(
            f"{parent.folder} was trained on {len(leaked)} of the {len(set(held_out))} subjects that are held out now, "
            "so their errors would look too small",
            fix="Train it on a split that holds them out as well, such as the same split and --folds. People of "
            "different studies need different subject ids.",
        )


def subjects_learnt_from(leaf: Run) -> set[str]:
    """Give everyone on whom a training was trained, or the trainings that its backbone comes from."""
    about = leaf.about
    sets = leaf.split.sets(about["fold"])
    own = set(sets[sets == "train"].index) & set(leaf.cohort.table["subject_id"])
    if leaf.part is not None:
        own -= set(leaf.predictions.query("set == 'out_of_fold'")["subject_id"])
    return own | set(about.get("init_from", {}).get(ANCESTORS, ()))


def take_backbone(network: Network, job: Job) -> dict[str, Any]:
    """Take over the backbone of the run that a job's recipe names: its weights and norm statistics; the head stays new.

    Returns:
        What the run records of it: folder, member, digests of recipe and weights, subjects learnt from.

    Raises:
        UsageError: As in `find_parent`.
    """
    parent = find_parent(job.recipe, job.run.about["fold"], job.run.part)
    weights = load_checkpoint(parent.weights_path)[0]["network"]
    prefix = "backbone."
    backbone = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    network.backbone.load_state_dict(backbone)
    about = parent.about
    source = Run.open(str(job.recipe.finetune.init_from))
    which = f", member {parent.name} (fold {about['fold']})" if source.is_parent else ""
    job.observer.note(f"The backbone of {source.folder}{which} is taken over; the head is new.")
    _tell_other_preparation(job, parent.recipe)
    return {
        "run": source.name,
        "member": parent.name if source.is_parent else "",
        "recipe_digest": about["recipe_digest"],
        "weights_sha256": digest_file(parent.weights_path),
        ANCESTORS: sorted(subjects_learnt_from(parent)),
    }


def measure_norms(job: Job, fabric: Fabric, network: Network, n_at_once: int) -> None:
    """Measure the statistics of batch norms anew, in one pass over the training scans without augmentation."""
    volumes = VolumeSet(job.volumes("train"), fabric.device)
    memory_format = MEMORY_FORMAT[volumes.spatial_dims + 2]
    network.to(fabric.device).to(memory_format=memory_format)
    n_batches = -(-len(volumes) // n_at_once)
    plan = np.array_split(np.arange(len(volumes)), n_batches)
    batches = (images.contiguous(memory_format=memory_format) for images in volumes.batches(plan))
    with torch.no_grad(), fabric.autocast():
        reestimate_norms(network, batches)
    job.observer.note(f"Norm statistics are measured anew on {len(volumes)} training scans.")


def _tell_other_preparation(job: Job, parent: Recipe) -> None:
    differences = recipe_differences({"there": parent, "here": job.recipe})
    said = [
        f"{key} {differences['there'][key]} there, {value} here"
        for key, value in differences["here"].items()
        if key.startswith(("prepare.", "standardise"))
    ]
    if said:
        job.observer.note(f"Its scans were prepared in another way: {'; '.join(said)}.")


def _refuse_another_backbone(recipe: Recipe, parent: Recipe, folder: Path) -> None:
    ours, theirs = _architecture(recipe), _architecture(parent)
    differing = [key for key in {**theirs, **ours} if ours.get(key) != theirs.get(key)]
    if not differing:
        return
    said = ", ".join(f"{key} {theirs.get(key, 'none')} there, {ours.get(key, 'none')} here" for key in differing)
    fixes = []
    if any(not key.startswith("input") for key in differing):
        options = {key: value for key, value in parent.backbone.options.items() if key != "weights"}
        backbone = json.dumps({"name": parent.backbone.name, **options})
        fixes.append(f"Take its backbone: --set 'backbone={backbone}'.")
    if any(key.startswith("input") for key in differing):
        fixes.append("Prepare scans as it does (prepare.size, prepare.fractions).")
    raise UsageError(f"finetune.init_from: the backbone of {folder} is another one ({said})", fix=" ".join(fixes))


def _architecture(recipe: Recipe) -> dict[str, Any]:
    """Give what decides the shapes of a backbone's weights."""
    build = backbone_builder(recipe.backbone.name)
    options, _ = check_options(build, recipe.backbone.options, "backbone", without=GIVEN)
    options.pop("weights", None)
    return {
        "name": recipe.backbone.name,
        **options,
        "input channels": recipe.prepare.n_channels,
        "input dimensions": len(recipe.prepare.size),
    }
