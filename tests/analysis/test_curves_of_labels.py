"""Loss curves of trainings about labels: AUROC is better when higher, validation stands for a missing inner part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neuroage.analysis import loss_curves, overfitting_onset, overlay_curves
from neuroage.analysis.curve_reading import AUROC, MAE, best_epoch_of, explain_curves, metric_of


def history_of(n_epochs: int = 60, turn: int = 30, held: str = "inner", seed: int = 0) -> pd.DataFrame:
    """Held-back AUROC that climbs to about 0.85 in `turn` epochs and then falls, and the loss the other way round."""
    random = np.random.default_rng(seed)
    epoch = np.arange(1, n_epochs + 1)
    after = np.maximum(epoch - turn, 0)
    auroc = 0.85 - 0.35 * np.maximum(1 - epoch / turn, 0) - 0.006 * after + random.normal(0, 0.006, n_epochs)
    return pd.DataFrame(
        {
            "epoch": epoch,
            "train_loss": 0.7 - 0.006 * epoch,
            "train_error_rate": 0.5 - 0.005 * epoch,
            "train_auroc_eval": 0.5 + 0.007 * epoch + random.normal(0, 0.004, n_epochs),
            f"{held}_loss": 0.7 - 0.3 * np.minimum(epoch / turn, 1) + 0.01 * after + random.normal(0, 0.01, n_epochs),
            f"{held}_auroc": auroc,
            "baseline_mean_auroc": 0.5,
            "seconds": 1.0,
        }
    )


def texts_of(figure) -> list[str]:
    import matplotlib.text

    return [text.get_text() for text in figure.findobj(matplotlib.text.Text)]


@pytest.mark.parametrize("held", ["inner", "validation"])
def test_the_best_epoch_is_the_highest_auroc_and_the_baseline_comes_from_the_history(held: str, tmp_path: Path) -> None:
    history = history_of(held=held)
    column = f"{held}_auroc"
    best = int(history.loc[history[column].idxmax(), "epoch"])
    assert metric_of(history) is AUROC and best_epoch_of(history) == best
    said = " ".join(" ".join(texts_of(loss_curves(history, tmp_path / "curve.png"))).split())
    assert f"best: epoch {best}, {history[column].max():.2f}" in said
    assert "knowing nothing: 0.50" in said and "Share wrong" in said and "years" not in said
    assert f"reach an AUROC of {history[column].max():.2f}; knowing nothing gives 0.50" in said
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_falling_auroc_marks_over_fitting_and_rising_auroc_does_not() -> None:
    for seed in range(10):
        onset = overfitting_onset(history_of(seed=seed))
        assert onset is not None and abs(onset - 30) <= 6
        assert overfitting_onset(history_of(turn=80, seed=seed)) is None
    assert "AUROC falls while that of training still rises" in explain_curves(history_of(), 30, 30)


def test_without_an_evaluated_training_part_the_losses_tell_over_fitting() -> None:
    history = history_of(held="validation").drop(columns="train_auroc_eval")
    onset = overfitting_onset(history)
    assert onset is not None and abs(onset - 30) <= 6
    assert "the validation loss rises while the training loss still falls" in explain_curves(history, 30, onset)
    assert overfitting_onset(history.drop(columns="validation_loss")) is None


def test_with_nothing_held_back_the_words_promise_nothing() -> None:
    history = history_of(3)[["epoch", "train_loss", "train_error_rate", "baseline_mean_auroc"]]
    said = " ".join(" ".join(texts_of(loss_curves(history))).split())
    assert "48% of the answers" in said and "say nothing about new scans" in said
    assert "knowing nothing" not in said  # without a curve of the metric there is nothing to hold against it


def test_of_equal_epochs_the_last_is_the_best_as_training_keeps_it() -> None:
    history = pd.DataFrame({"epoch": [1, 2, 3, 4], "validation_auroc": [0.7, 1.0, 1.0, 0.9]})
    assert best_epoch_of(history) == 3


def test_ages_selected_on_validation_are_drawn_in_years() -> None:
    history = pd.DataFrame({"epoch": [1, 2, 3], "train_mae": [9.0, 8.0, 7.0], "validation_mae": [8.0, 6.5, 6.8]})
    assert metric_of(history) is MAE
    assert "best: epoch 2, 6.5 years" in texts_of(loss_curves(history))
    assert "of training" not in explain_curves(history, 2, None) and "validation" in explain_curves(history, 2, None)


def test_overlaid_labels_are_named_with_their_highest_figure() -> None:
    runs = {f"run{seed}": history_of(seed=seed) for seed in range(3)}
    said = texts_of(overlay_curves(runs, column="inner_auroc"))
    for name, history in runs.items():
        assert f"{name}  {history['inner_auroc'].max():.2f}" in said
    assert "Dot and number: the highest of each run." in said and "Inner AUROC" in said
