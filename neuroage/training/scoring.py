"""From outputs to what a person reads: the predictions table, with the baselines beside it, figures and page."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from lightning_fabric import Fabric

from neuroage.analysis import loss_curves
from neuroage.errors import InfeasibleError
from neuroage.imaging.batches import VolumeSet
from neuroage.models.network import Network
from neuroage.models.tasks import Task
from neuroage.runs.evaluation import evaluate_held_out, write_pages
from neuroage.runs.run import Run, now
from neuroage.training.baselines import baselines_for, blend
from neuroage.training.check import make_contract
from neuroage.training.checkpoint import save_checkpoint
from neuroage.training.inference import run_network
from neuroage.training.job import SCORED, Job
from neuroage.training.plan import Plan
from neuroage.training.selftest import record_selftest
from neuroage.training.template import TrainingTemplate

SELECTED_ON = {"last": "nothing (fixed length)", "inner": "an inner part of training"}


def score(job: Job, fabric: Fabric, network: Network) -> None:
    """Predict the held-out subjects of a job, with the baselines beside the network, and complete its run.

    Args:
        job: What was trained.
        fabric: Where; of several processes all predict and one writes.
        network: With the weights that were kept.
    """
    recipe, task, run = job.recipe, job.task, job.run
    job.observer.stage("Scoring the held-out subjects, with the baselines beside the network")
    scored, training_rows = job.rows(*SCORED), job.rows("train", "inner")
    volumes = VolumeSet(job.volumes(*SCORED), fabric.device)
    n_at_once = Plan(**run.about["plan"]).scans_at_once
    outputs = run_network(fabric, network, volumes, np.arange(len(scored)), n_at_once, flips=recipe.predict.flips)
    if not fabric.is_global_zero:
        return
    save_checkpoint(
        run.weights_path, {"network": network.state_dict()}, {"recipe": recipe.digest, "task": task.state()}
    )
    table = predictions_table(scored, task, outputs, fold=run.about["fold"], member=run.about["member"])
    training_volumes = job.volumes("train", "inner")
    baselines = baselines_for(task.target).fit(training_volumes, training_rows, recipe, task)
    baselines.save(run)
    beside = baselines.tables(table, job.volumes(*SCORED))
    run.save_baselines(beside)
    run.save_predictions(blend(table, [*beside.values()][-1], recipe.predict.ridge_share))
    ages = training_rows["age"].dropna().to_numpy(dtype=float)
    make_contract(run, fabric, network, training_volumes, ages, n_at_once)
    if recipe.prepare.kind == "volume":
        TrainingTemplate.of(training_volumes, recipe.prepare).save(run.template_path)
    record_selftest(run, fabric, network, task)
    selected_on = SELECTED_ON.get(recipe.training.select, "validation")
    run.update(selected_on=selected_on, status="scored")
    write_run_pages(run)
    run.update(finished=now(), status="complete")  # last: a complete run has everything
    job.observer.finished(run)


def predictions_table(rows: pd.DataFrame, task: Task, outputs: Any, *, fold: int, member: str) -> pd.DataFrame:
    """Make a predictions table.

    Args:
        rows: Scans with scan_id, subject_id, set, and the targets where they are known.
        task: Decodes the outputs.
        outputs: Of the network, (n_scans, n_outputs).
        fold, member: Which training predicted.
    """
    columns = [name for name in ("scan_id", "subject_id", "group", "set") if name in rows.columns]
    decoded = {name: values.cpu().numpy().astype(float) for name, values in task.decode(outputs).items()}
    about = {**_targets(task, rows), "fold": fold, "member": member, **decoded}
    return pd.concat([rows[columns].reset_index(drop=True), pd.DataFrame(about, index=range(len(rows)))], axis=1)


def _targets(task: Task, rows: pd.DataFrame) -> dict[str, Any]:
    try:
        return task.targets(rows)
    except InfeasibleError:  # new scans need no labels
        return {}


def write_run_pages(run: Run) -> None:
    """Write what a person looks at: loss curve, evaluation figures and page."""
    histories = [leaf.history for leaf in run.leaves]
    if len(histories) == 1 and not histories[0].empty:
        loss_curves(histories[0], run.curve_path)
    write_pages(evaluate_held_out(run), run.folder)
