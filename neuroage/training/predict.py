"""Ask a run: predict the ages of scans that it has not seen, with the baselines beside it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from neuroage.analysis import Evaluation, evaluate
from neuroage.cohort import Cohort
from neuroage.errors import InfeasibleError, RefusedError, UsageError
from neuroage.imaging.batches import VolumeSet
from neuroage.imaging.read import SUFFIXES
from neuroage.imaging.store import PreparedCohort, Store, prepare_scans
from neuroage.models.network import build_network
from neuroage.models.tasks import build_task
from neuroage.runs.predictions import average_members
from neuroage.runs.run import Run
from neuroage.training.baselines import Ridge, baseline_tables
from neuroage.training.checkpoint import load_checkpoint
from neuroage.training.devices import make_fabric
from neuroage.training.inference import MEMORY_FORMAT, run_network
from neuroage.training.observer import Observer
from neuroage.training.plan import Plan
from neuroage.training.scoring import blend_with_ridge, predictions_table

TABLE_SUFFIXES = (".csv", ".tsv", ".xls", ".xlsx")


@dataclass
class Answer:
    """Predictions of a run.

    Attributes:
        table: One row a scan: scan_id, subject_id, age (NaN where unknown), predicted_age, gap, `concerns` in words.
        baselines: The same scans predicted by the mean training age and by ridge: name → table.
        failures: scan_id → why it could not be read.
    """

    table: pd.DataFrame
    baselines: dict[str, pd.DataFrame] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def gather_scans(inputs: Sequence[str | os.PathLike[str]], modality: str) -> Cohort:
    """Make a cohort of what a user names: image files, DICOM folders, folders of a known layout, tables.

    Args:
        inputs: Paths, mixed as they come.
        modality: Of files that stand alone; cohorts keep only their scans of it.

    Raises:
        UsageError: A path does not exist, or holds no scan.
    """
    parts: list[pd.DataFrame] = []
    alone: list[Path] = []
    for given in map(Path, inputs):
        if not given.exists():
            raise UsageError(f"No such file or folder: {given}", expected="scans, folders or cohort tables")
        name = given.name.lower()
        if name.endswith(TABLE_SUFFIXES):
            parts.append(Cohort.read(given).select(modality=modality).table)
        elif given.is_dir() and not _is_dicom_folder(given):
            images = sorted(
                path for path in given.iterdir() if path.name.lower().endswith(SUFFIXES) and path.suffix != ".img"
            )
            has_table = any(path.name.lower().endswith(TABLE_SUFFIXES) for path in given.iterdir())
            if has_table or not images:
                parts.append(Cohort.read(given).select(modality=modality).table)
            else:
                alone.extend(images)
        else:
            alone.append(given)
    if alone:
        parts.append(_table_of_files(alone, modality))
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    if table.empty:
        raise UsageError(f"No {modality} scan among {', '.join(map(str, inputs))}")
    return Cohort(table)


def _is_dicom_folder(folder: Path) -> bool:
    files = [path for path in folder.iterdir() if path.is_file()]
    if not files:
        return False
    with open(files[0], "rb") as handle:
        return handle.read(132)[128:] == b"DICM"


def _table_of_files(files: Sequence[Path], modality: str) -> pd.DataFrame:
    stems = [_stem(path) for path in files]
    names = [stem if stems.count(stem) == 1 else f"{stem}_{index}" for index, stem in enumerate(stems)]
    return pd.DataFrame(
        {
            "scan_id": names,
            "subject_id": names,
            "session": "",
            "modality": modality,
            "path": [str(path.resolve()) for path in files],
            "age": np.nan,
            "sex": "",
            "site": "",
        }
    )


def _stem(path: Path) -> str:
    name = path.name
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
            break
    return re.sub(r"[^\w.-]", "_", name)


def predict(
    run: Run,
    cohort: Cohort,
    *,
    store: Store | None = None,
    max_failed_share: float = 0.1,
    observer: Observer | None = None,
) -> Answer:
    """Predict every scan of a cohort; members of an ensemble are averaged.

    Args:
        run: A complete run.
        cohort: Scans of the run's modality; ages may be missing.
        store: Prepared volumes; the user's cache folder when None.
        max_failed_share: Share of scans that may fail to be read.
        observer: Receives news.

    Raises:
        UsageError: The run is not complete.
        DataError: Too many scans cannot be read.
    """
    observer = observer or Observer()
    leaves = [leaf for leaf in run.leaves if leaf.complete]
    if not leaves:
        raise UsageError(f"{run.folder} is not complete", fix="Finish it with `neuroage train … --resume`.")
    recipe = leaves[0].recipe
    observer.stage(f"Preparing {len(cohort)} scans")
    prepared = prepare_scans(
        cohort.scans(), recipe.prepare, store or Store(), max_failed_share=max_failed_share, progress=observer.preparing
    )
    rows = cohort.table.set_index("scan_id", drop=False).loc[list(prepared.volumes)]
    rows = rows.assign(set="new")
    observer.stage(f"Predicting with {len(leaves)} network{'s' * (len(leaves) > 1)}")
    tables = []
    baselines: dict[str, list[pd.DataFrame]] = {"mean": [], "ridge": []}
    for leaf in leaves:
        table = _predict_leaf(leaf, rows, prepared)
        ridge_ages = Ridge.load(leaf.ridge_path).predict(list(prepared.volumes.values()))
        for name, baseline in baseline_tables(table, leaf.contract.age_years[1], ridge_ages).items():
            baselines[name].append(baseline)
        tables.append(blend_with_ridge(table, ridge_ages, leaf.recipe.predict.ridge_share))
    table = average_members(tables)
    table["gap"] = table["predicted_age"] - table["age"]
    contract = leaves[0].contract
    table["concerns"] = ["; ".join(contract.concerns(prepared.volumes[scan_id].record)) for scan_id in table["scan_id"]]
    youngest, _, oldest = contract.age_years
    outside = ~table["predicted_age"].between(youngest, oldest)
    said = f"predicted age outside the training ages ({youngest:.0f} to {oldest:.0f} years)"
    table.loc[outside, "concerns"] = [
        f"{before}; {said}" if before else said for before in table.loc[outside, "concerns"]
    ]
    return Answer(table, {name: average_members(parts) for name, parts in baselines.items()}, prepared.failures)


def _predict_leaf(run: Run, rows: pd.DataFrame, prepared: PreparedCohort) -> pd.DataFrame:
    recipe, about = run.recipe, run.about
    groups, kept = load_checkpoint(run.weights_path)
    task = build_task(recipe)
    task.restore(kept["task"])
    network = build_network(
        recipe, spatial_dims=len(recipe.prepare.size), in_channels=recipe.prepare.n_channels, n_outputs=task.n_outputs
    )
    network.load_state_dict(groups["network"])
    fabric = make_fabric(about["precision"] if about["device"] == make_fabric("fp32").device.type else "fp32")
    network = network.to(fabric.device).to(memory_format=MEMORY_FORMAT[len(recipe.prepare.size) + 2])
    volumes = VolumeSet([prepared.volumes[scan_id] for scan_id in rows.index], fabric.device)
    outputs = run_network(
        fabric, network, volumes, np.arange(len(rows)), Plan(**about["plan"]).scans_at_once, flips=recipe.predict.flips
    )
    return predictions_table(rows, task, outputs, fold=about["fold"], member=about["member"])


def evaluate_on(
    run: Run, cohort: Cohort, *, store: Store | None = None, observer: Observer | None = None
) -> tuple[Evaluation, Answer]:
    """Score a run on a cohort with ages, leaving out every subject that it was trained on.

    Args:
        run: A complete run.
        cohort: Scans of the run's modality; those without age are left out.
        store, observer: As in `predict`.

    Returns:
        The evaluation, with mean and ridge beside the network, and the predictions behind it.

    Raises:
        RefusedError: The run was trained on every subject of the cohort.
        InfeasibleError: No scan has an age.
    """
    observer = observer or Observer()
    trained_on = subjects_trained_on(run)
    table = cohort.table.dropna(subset=["age"])
    if table.empty:
        raise InfeasibleError("No scan of this cohort has an age", fix="`neuroage predict` needs none.")
    seen = table["subject_id"].isin(trained_on)
    if seen.all():
        raise RefusedError(
            f"{run.folder} was trained on all {table['subject_id'].nunique()} subjects of this cohort",
            fix="Evaluate on subjects that it has not seen.",
        )
    if seen.any():
        observer.note(f"{table.loc[seen, 'subject_id'].nunique()} subjects were left out: the run was trained on them.")
    answer = predict(run, cohort.select(scan_ids=table.loc[~seen, "scan_id"].tolist()), store=store, observer=observer)
    about = run.about
    evaluation = evaluate(
        answer.table,
        answer.baselines,
        sets=("new",),
        name=run.recipe.modality,
        meta={"selected_on": about.get("selected_on")},
    )
    return evaluation, answer


def subjects_trained_on(run: Run) -> set[str]:
    """Give every subject on whom any member of the run was trained."""
    subjects: set[str] = set()
    for leaf in run.leaves:
        about = leaf.about
        sets = leaf.split.sets(about["fold"])
        subjects |= set(sets[sets == "train"].index) & set(leaf.cohort.table["subject_id"])
    return subjects
