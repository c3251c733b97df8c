"""Explain a run: for each scan, where its networks looked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from neuroage.cohort import Cohort
from neuroage.errors import UsageError, did_you_mean
from neuroage.imaging.batches import VolumeSet
from neuroage.imaging.maps import Maps, ScanMap
from neuroage.imaging.preparation import prepare_scans
from neuroage.imaging.store import Store
from neuroage.models.network import Network
from neuroage.models.tasks import Task
from neuroage.runs.run import Run
from neuroage.training.attribution import Ask, attribute, check_method, find_layer
from neuroage.training.inference import complete_leaves, load_network
from neuroage.training.observer import Observer
from neuroage.training.plan import Plan

AGE = "age"


def explain(
    run: Run,
    cohort: Cohort,
    *,
    method: str = "gradcam",
    target: str | None = None,
    layer: str | None = None,
    store: Store | None = None,
    observer: Observer | None = None,
) -> Maps:
    """Map what a run's answers rest on, scan by scan; the maps of members are averaged.

    Explained is what the network gives: the age before ridge is mixed in and before calibration, or a label's logit;
    not the average over the mirrored scan. Computed in fp32, deterministically, without any change to the run.

    Args:
        run: A complete run.
        cohort: Scans of the run's modality; neither ages nor labels are needed.
        method: gradcam, gradcam++, integrated_gradients or occlusion.
        target: Name of a label; None explains the most probable one of each scan. Ages have one target.
        layer: Grad-CAM's layer: a stage of the backbone, as `neuroage describe` lists them; None: its feature map.
        store: Prepared images; the user's cache folder when None.
        observer: Receives news.

    Returns:
        One map a scan, with `table`, `save(folder)` and `score(regions)`.

    Raises:
        UsageError: The run is not complete, or there is no such method, label or layer.
        InfeasibleError: Grad-CAM's feature map has a single position.
        DataError: Too many scans cannot be read.

    Example:
        >>> explain(Run.open("runs/t1"), cohort, method="occlusion").save("maps")  # doctest: +SKIP
    """
    check_method(method, layer)
    observer = observer or Observer()
    leaves = complete_leaves(run)
    recipe = leaves[0].recipe
    members = [Member(*load_network(leaf)) for leaf in leaves]
    for member in members:
        member.network.eval()
    if layer is not None:
        find_layer(members[0].network, layer)
    check_target(members[0].task, target)
    observer.stage(f"Preparing {len(cohort)} scans")
    prepared = prepare_scans(cohort.scans(), recipe.prepare, store or Store(), progress=observer.preparing)
    volumes = prepared.volumes
    images = VolumeSet(list(volumes.values()), members[0].fabric.device, resident=False)
    n_at_once = max(1, Plan(**leaves[0].about["plan"]).scans_at_once // 2)  # fp32 takes twice the room of bf16
    observer.stage(f"Mapping {len(volumes)} scans by {method} in {len(members)} network{'s' * (len(members) > 1)}")
    groups = cohort.table.set_index(cohort.table["scan_id"].astype(str))["subject_id"]
    scans = []
    for index, (scan_id, volume) in enumerate(volumes.items()):
        image = images.batch([index])
        name, probability = choose_target(members, image, target)
        parts = [_ask_member(member, image, name, method, layer, n_at_once) for member in members]
        record = volume.record
        scans.append(
            ScanMap(
                scan_id=scan_id,
                target=name,
                output=float(np.mean([value for value, _ in parts])),
                map=np.stack([map_ for _, map_ in parts]).mean(axis=0),
                image=volume.load(),
                affine=np.asarray(record["affine"]),
                record=record,
                probability=probability,
                group=str(groups[scan_id]),
            )
        )
        observer.preparing(index + 1, len(volumes))
    two_sided = members[0].task.target["kind"] == AGE
    return Maps(scans, method, layer, two_sided, tuple(recipe.prepare.spacing), prepared.failures)


class Member(NamedTuple):
    """A network of a run, on its device, and what its outputs mean."""

    fabric: Fabric
    network: Network
    task: Task


def _ask_member(
    member: Member, image: Tensor, name: str, method: str, layer: str | None, n_at_once: int
) -> tuple[float, np.ndarray]:
    """Give the number that is explained and its map, (*spatial), for one scan and one network."""
    ask = ask_for(member.task, name)
    map_ = attribute(member.network, image, ask, method, layer=layer, two_sided=name == AGE, n_at_once=n_at_once)
    return float(ask(outputs_for(member.network, image))[0]), map_[0].cpu().numpy()


@torch.no_grad()
def outputs_for(network: Network, image: Tensor) -> Tensor:
    """Outputs of an image (1, C, *spatial) in fp32 and evaluation mode, (1, n_outputs); networks come in that mode."""
    return network(image).float()


def ask_for(task: Task, name: str) -> Ask:
    """Make the question about one target: outputs (B, n_outputs) → predicted age in years or the label's logit, (B,).

    Raises:
        UsageError: The task does not know the label.
    """
    if task.target["kind"] == AGE:
        return lambda outputs: task.decode(outputs)["predicted_age"]
    check_target(task, name)
    place = task.target["labels"].index(name)
    return lambda outputs: outputs[:, place].float()


def check_target(task: Task, target: str | None) -> None:
    """Raise where a run has no such target; as `explain` does."""
    names = task.target.get("labels", [AGE])
    if target is not None and target not in names:
        raise UsageError(f"No target {target!r}", expected=did_you_mean(target, names))


def choose_target(members: Sequence[Member], image: Tensor, target: str | None) -> tuple[str, float]:
    """Give what is explained of one scan, the label most probable to all members unless one is named, and how probable.

    The probability of an age is NaN.
    """
    if members[0].task.target["kind"] == AGE:
        return AGE, float("nan")
    labels = members[0].task.target["labels"]
    decoded = [member.task.decode(outputs_for(member.network, image)) for member in members]
    absent = torch.zeros(1)  # a member may never have seen a label
    mean = {
        name: float(np.mean([float(each.get(f"probability_{name}", absent)[0]) for each in decoded])) for name in labels
    }
    name = target or max(mean, key=lambda label: mean[label])
    return name, mean[name]
