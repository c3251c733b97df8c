"""Check scans against what a run was trained on, before its prediction is believed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from neuroage.cohort import Cohort
from neuroage.errors import DataError
from neuroage.files import atomic_path
from neuroage.imaging.batches import VolumeSet
from neuroage.imaging.preparation import prepare_scans
from neuroage.imaging.store import Store, StoredVolume
from neuroage.imaging.template import Comparison, coarse_cube, compare_with, left_right_symmetry
from neuroage.models.network import Network
from neuroage.runs.concerns import verdict_of
from neuroage.runs.contract import InputContract
from neuroage.runs.departures import Concern
from neuroage.runs.measures import MEASURES
from neuroage.runs.run import Run
from neuroage.training.inference import MEMORY_FORMAT, complete_leaves, load_network
from neuroage.training.observer import Observer
from neuroage.training.plan import Plan

NEIGHBOURS = 5  # training scans to which a scan's distance is measured
MOST_SCANS = 2000  # training scans that are looked at; ranges and distances do not change with more
TEMPLATE_PARTS = 5  # a training scan is compared with the mean of the other parts, as a new scan would be
SMALLER_CONTRACT = "this run was trained before the full contract: only voxel size and prepared intensities are checked"

KEPT_BY_POSES = ("blur_mm", "distinct_values", "middle_level", "bright_tail")  # measures that registration leaves alone


@dataclass(frozen=True)
class Responses:
    """What the network and the template see of scans.

    Attributes:
        cubes: Of `coarse_cube`, shape (n_scans, n, n, n), of pictures (n_scans, n, n).
        features: Pooled features, shape (n_scans, F).
        first_layer: Mean and standard deviation of each channel of the first convolution, shape (n_scans, 2 C).
    """

    cubes: np.ndarray
    features: np.ndarray
    first_layer: np.ndarray


@dataclass(frozen=True)
class Reference:
    """The training scans' own responses, to which those of a scan are compared.

    Attributes:
        mean_cube: Mean of the training scans' cubes, shape (n, n, n) or (n, n).
        features: Standardised, shape (n_scans, F).
        feature_mean, feature_std: By which features are standardised, shape (F,).
        layer_middle, layer_width: Median and robust spread of the first layer's figures, shape (2 C,).
        usual_distance: Median distance of a training scan to its nearest others, in standardised features.
        album: Of training pictures all coarse ones, float16, shape (n_scans, n, n); None for volumes.
    """

    mean_cube: np.ndarray
    features: np.ndarray
    feature_mean: np.ndarray
    feature_std: np.ndarray
    layer_middle: np.ndarray
    layer_width: np.ndarray
    usual_distance: np.ndarray
    album: np.ndarray | None = None

    @classmethod
    def of(cls, training: Responses) -> Reference:
        """Summarise the training scans."""
        mean, std = training.features.mean(axis=0), training.features.std(axis=0)
        std = std + 0.05 * float(std.mean()) + 1e-6  # features that hardly change are not blown up
        middle = np.median(training.first_layer, axis=0)
        width = 1.4826 * np.median(
            np.abs(training.first_layer - middle), axis=0
        )  # of a Gaussian: its standard deviation
        width = width + 0.05 * np.abs(middle) + 1e-6
        features = (training.features - mean) / std
        distance = np.median(nearest_distance(features, features, skip=1)) if len(features) > 1 else 1.0
        arrays = (training.cubes.mean(axis=0), features, mean, std, middle, width, np.array([distance]))
        album = training.cubes.astype(np.float16) if training.cubes.ndim == 3 else None
        return replace(cls(*(np.ascontiguousarray(array, dtype=np.float32) for array in arrays)), album=album)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as safetensors."""
        from safetensors.numpy import save_file

        with atomic_path(path) as temporary:
            save_file({name: array for name, array in vars(self).items() if array is not None}, temporary)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Reference | None:
        """Read what `save` wrote; None where there is none, `DataError` where it is damaged."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        if not Path(path).is_file():
            return None
        try:
            return cls(**load_file(Path(path)))
        except (SafetensorError, TypeError) as error:
            raise DataError(f"{path} is damaged", fix="Copy the whole run folder again, or train it again.") from error

    def measures(self, scans: Responses) -> list[tuple[dict[str, float], str]]:
        """Measure new scans: for each, its measures, and in which other orientation it would fit best, in words."""
        compared = compare_with(self.mean_cube[None] if self.album is None else self.album).compare(scans.cubes)
        distances = nearest_distance((scans.features - self.feature_mean) / self.feature_std, self.features)
        return self._laid_out(scans, compared, distances)

    def training_measures(self, training: Responses) -> list[dict[str, float]]:
        """Measure the training scans as if they were new: each against the others."""
        parts = np.arange(len(training.cubes)) % min(TEMPLATE_PARTS, len(training.cubes))
        compared: dict[int, Comparison] = {}
        for part in range(parts.max() + 1):
            others = training.cubes[parts != part] if (parts != part).any() else training.cubes
            here = np.flatnonzero(parts == part)
            compared |= zip(here.tolist(), compare_with(others).compare(training.cubes[here]), strict=True)
        features = (training.features - self.feature_mean) / self.feature_std
        distances = nearest_distance(features, self.features, skip=1)
        in_order = [compared[index] for index in range(len(parts))]
        return [measures for measures, _ in self._laid_out(training, in_order, distances)]

    def _laid_out(
        self, scans: Responses, compared: Sequence[Comparison], distances: np.ndarray
    ) -> list[tuple[dict[str, float], str]]:
        layer = np.sqrt((((scans.first_layer - self.layer_middle) / self.layer_width) ** 2).mean(axis=1))
        found = []
        for index, comparison in enumerate(compared):
            measures = {
                "likeness": comparison.likeness,
                "turned": comparison.turned,
                **comparison.more,
                "symmetry": left_right_symmetry(scans.cubes[index]),
                "first_layer": float(layer[index]),
                "features": float(distances[index] / max(float(self.usual_distance[0]), 1e-6)),
            }
            found.append((measures, comparison.turn))
        return found


def nearest_distance(points: np.ndarray, others: np.ndarray, *, skip: int = 0) -> np.ndarray:
    """Mean distance to the nearest of other points, root mean square over coordinates.

    Args:
        points: Shape (n, F).
        others: Shape (m, F).
        skip: Nearest ones to leave out: 1 where the points are among the others.

    Returns:
        Shape (n,).
    """
    squares = (points**2).sum(axis=1)[:, None] + (others**2).sum(axis=1)[None] - 2 * points @ others.T
    near = np.sort(np.sqrt(np.maximum(squares, 0) / points.shape[1]), axis=1)[:, skip : skip + NEIGHBOURS]
    return near.mean(axis=1) if near.shape[1] else np.zeros(len(points))


@torch.no_grad()
def look_at(
    fabric: Fabric, network: Network, volumes: Sequence[StoredVolume], spacing_mm: Sequence[float], batch_size: int
) -> Responses:
    """Show prepared scans to a network and keep what the contract needs; one process suffices.

    Args:
        fabric: Device and precision.
        network: On the device.
        volumes: Prepared volumes.
        spacing_mm: Of the prepared grid.
        batch_size: Scans at a time.
    """
    first = next(part for part in network.backbone.modules() if isinstance(part, (nn.Conv2d, nn.Conv3d)))
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        maps = output.float().flatten(2)
        seen.append(torch.cat([maps.mean(dim=2), maps.std(dim=2)], dim=1).cpu())

    was_training = network.training
    network.eval()
    handle = first.register_forward_hook(keep)
    features, cubes = [], []
    data = VolumeSet(volumes, fabric.device)
    try:
        for start in range(0, len(volumes), batch_size):
            images = data.batch(np.arange(start, min(start + batch_size, len(volumes))))
            cubes += [coarse_cube(image, spacing_mm) for image in images.cpu().numpy()]
            with fabric.autocast():
                shown = network.features(images.contiguous(memory_format=MEMORY_FORMAT[images.ndim]))
            features.append(shown.float().cpu())
    finally:
        handle.remove()
        network.train(was_training)
    return Responses(np.stack(cubes), torch.cat(features).numpy(), torch.cat(seen).numpy())


def make_contract(
    run: Run,
    fabric: Fabric,
    network: Network,
    volumes: Sequence[StoredVolume],
    ages: np.ndarray,
    batch_size: int,
) -> None:
    """Write the input contract of a run that was just trained, and the reference beside it.

    Args:
        run: Receives both.
        fabric, network: With the weights that were kept.
        volumes: Of the training scans; of very many, 2,000 are looked at.
        ages: Years, shape (n_scans,).
        batch_size: Scans at a time.
    """
    recipe = run.recipe
    volumes = [volumes[int(i)] for i in np.unique(np.linspace(0, len(volumes) - 1, MOST_SCANS).astype(int))]
    seen = look_at(fabric, network, volumes, recipe.prepare.spacing, batch_size)
    reference = Reference.of(seen)
    records = [volume.record for volume in volumes]
    measures = [
        {**record.get("native", {}), **own}
        for record, own in zip(records, reference.training_measures(seen), strict=True)
    ]
    reference.save(run.reference_path)
    run.save_contract(
        InputContract.of(recipe.modality, recipe.prepare.spacing, recipe.prepare.size, records, ages, measures)
    )


@dataclass(frozen=True)
class Finding:
    """What a check found of one scan.

    Attributes:
        concerns: What differs from the training scans; what makes a prediction meaningless first.
        measures: Its measures, see `neuroage.runs.measures`.
    """

    concerns: list[Concern]
    measures: dict[str, float]

    @property
    def verdict(self) -> str:
        """`ok`, `warn` or `refuse`."""
        return verdict_of(self.concerns)


def find_concerns(
    run: Run, fabric: Fabric, network: Network, volumes: Sequence[StoredVolume], *, raw: bool = False
) -> list[Finding]:
    """Compare prepared scans with what a run was trained on.

    Args:
        run: A single training, not a run of members.
        fabric, network: Its network.
        volumes: Prepared with its recipe.
        raw: The scans were brought to lie and look like the training scans first: of their files, only what a pose and
            a skull do not change is compared.
    """
    contract, reference = run.contract, Reference.load(run.reference_path)
    records = [volume.record for volume in volumes]
    if reference is None and contract.is_full:
        again = "Copy the whole run folder again, or train it again."
        raise DataError(f"{run.folder} has no {run.reference_path.name}", fix=again)
    if reference is None or not contract.is_full or not volumes:
        return [Finding(contract.concerns(record), {}) for record in records]
    n_at_once = Plan(**run.about["plan"]).scans_at_once
    seen = look_at(fabric, network, volumes, run.recipe.prepare.spacing, n_at_once)
    findings = []
    for record, (own, turn) in zip(records, reference.measures(seen), strict=True):
        of_file = record.get("native", {})
        measures = {**of_file, **own}
        if raw:  # the file's pose, size and skull are no concern any more: they count as usual
            usual = {key: MEASURES[key].unscale(contract.ranges[key][1]) for key in contract.ranges if key in of_file}
            measures |= {key: value for key, value in usual.items() if key not in KEPT_BY_POSES}
        findings.append(Finding(contract.concerns(record, measures, turn), measures))
    return findings


def check(
    run: Run, cohort: Cohort, *, store: Store | None = None, observer: Observer | None = None
) -> tuple[pd.DataFrame, dict[str, dict[str, float]]]:
    """Check scans against what a run was trained on; no age is needed, and none is predicted.

    Args:
        run: A complete run; of several members the first one's contract is used.
        cohort: Scans of the run's modality.
        store: Prepared volumes; the user's cache folder when None.
        observer: Receives news.

    Returns:
        One row a scan: scan_id, path, `verdict` (ok, warn, refuse), `concerns` in words with the fix; and the measures
        of each scan that could be prepared.

    Raises:
        UsageError: The run is not complete.
    """
    observer = observer or Observer()
    leaf = complete_leaves(run)[0]
    if not leaf.contract.is_full:
        observer.note(SMALLER_CONTRACT)
    observer.stage(f"Preparing {len(cohort)} scans")
    prepared = prepare_scans(
        cohort.scans(), leaf.recipe.prepare, store or Store(), max_failed_share=2.0, progress=observer.preparing
    )
    fabric, network, _ = load_network(leaf)
    findings = dict(
        zip(prepared.volumes, find_concerns(leaf, fabric, network, list(prepared.volumes.values())), strict=True)
    )
    rows = []
    for scan in cohort.scans():
        if scan.scan_id in findings:
            finding = findings[scan.scan_id]
            verdict, words = finding.verdict, "; ".join(map(str, finding.concerns))
        else:
            verdict, words = "refuse", prepared.failures[scan.scan_id]
        rows.append({"scan_id": scan.scan_id, "path": str(scan.path), "verdict": verdict, "concerns": words})
    return pd.DataFrame(rows), {scan_id: finding.measures for scan_id, finding in findings.items()}
