"""From outputs to what a person reads: the predictions table, the blend with ridge, figures and page."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from neuroage.analysis import loss_curves, write_evaluation
from neuroage.models.tasks import Task
from neuroage.runs.evaluation import evaluate_held_out
from neuroage.runs.run import Run


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
