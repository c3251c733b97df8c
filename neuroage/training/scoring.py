"""From outputs to what a person reads: the predictions table, the blend with ridge, figures and page."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from lightning_fabric import Fabric

from neuroage.analysis import loss_curves, write_evaluation
from neuroage.imaging.batches import VolumeSet
from neuroage.models.network import Network
from neuroage.models.tasks import Task
from neuroage.runs.evaluation import evaluate_held_out
from neuroage.runs.run import Run, now
from neuroage.training.baselines import baseline_tables, fit_ridge
from neuroage.training.check import make_contract
from neuroage.training.checkpoint import save_checkpoint
from neuroage.training.inference import run_network
from neuroage.training.job import SCORED, Job
from neuroage.training.plan import Plan
from neuroage.training.selftest import record_selftest

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
    ages = training_rows["age"].to_numpy(dtype=float)
    training_volumes = job.volumes("train", "inner")
    ridge = fit_ridge(training_volumes, ages, recipe.prepare.spacing, subjects=training_rows["subject_id"].tolist())
    ridge.save(run.ridge_path)
    ridge_ages = ridge.predict(job.volumes(*SCORED))
    run.save_baselines(baseline_tables(table, float(ages.mean()), ridge_ages))
    run.save_predictions(blend_with_ridge(table, ridge_ages, recipe.predict.ridge_share))
    make_contract(run, fabric, network, training_volumes, ages, n_at_once)
    record_selftest(run, fabric, network, task)
    selected_on = SELECTED_ON.get(recipe.training.select, "validation")
    run.update(selected_on=selected_on, status="scored")
    write_run_pages(run)
    run.update(finished=now(), status="complete")  # last: a complete run has everything
    job.observer.finished(run)


def predictions_table(rows: pd.DataFrame, task: Task, outputs: Any, *, fold: int, member: str) -> pd.DataFrame:
    """Make a predictions table.

    Args:
        rows: Scans with scan_id, subject_id, set and the task's target columns.
        task: Decodes the outputs.
        outputs: Of the network, (n_scans, n_outputs).
        fold, member: Which training predicted.
    """
    columns = ["scan_id", "subject_id", "set", *task.target_columns]
    decoded = {name: values.cpu().numpy().astype(float) for name, values in task.decode(outputs).items()}
    return rows[columns].reset_index(drop=True).assign(fold=fold, member=member, **decoded)


def blend_with_ridge(table: pd.DataFrame, ridge_ages: np.ndarray, share: float) -> pd.DataFrame:
    """Average the network with ridge regression: two models of different kind err on different people.

    Args:
        table: Predictions of the network.
        ridge_ages: What ridge predicts for the same scans, years, shape (n_scans,).
        share: Weight of ridge, 0 to 1; the recipe's, fixed before training.

    Returns:
        The table with the blend as `predicted_age` and the network's own as `predicted_age_network`; unchanged for 0.
    """
    if share == 0:
        return table
    own = table["predicted_age"]
    return table.assign(predicted_age=(1 - share) * own + share * ridge_ages, predicted_age_network=own)


def write_run_pages(run: Run) -> None:
    """Write what a person looks at: loss curve, evaluation figures and page."""
    histories = [leaf.history for leaf in run.leaves]
    if len(histories) == 1 and not histories[0].empty:
        baseline = next(
            (float(histories[0][key].iloc[-1]) for key in histories[0] if str(key).startswith("baseline_mean_")), None
        )
        loss_curves(histories[0], run.curve_path, baseline_mae=baseline)
    write_evaluation(evaluate_held_out(run), run.folder)
