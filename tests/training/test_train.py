from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from neuroage.cohort import Cohort, Split
from neuroage.errors import DataError, InfeasibleError, NeuroageError, RefusedError, UsageError
from neuroage.imaging.store import Store
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run
from neuroage.training.checkpoint import load_checkpoint
from neuroage.training.loop import Interrupted
from neuroage.training.observer import Observer
from neuroage.training.train import train


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_checkpoint(run.weights_path)[0]["network"]


def assert_same_training(a: Run, b: Run) -> None:
    pd.testing.assert_frame_equal(
        a.history.drop(columns="seconds"), b.history.drop(columns="seconds"), check_exact=True
    )
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    pd.testing.assert_frame_equal(a.predictions, b.predictions, check_exact=True)


@pytest.fixture(scope="module")
def learnt(cohort: Cohort, split: Split, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One training that is long enough to learn."""
    recipe = Recipe.from_dict(
        {
            "prepare": {"spacing_mm": 8.0, "size": [12, 12, 12], "centre": "image"},
            "augment": [{"step": "flip"}, {"step": "noise", "std": 0.05}],
            "backbone": {"name": "cnn", "n_blocks": 2, "features": 8},
            "optim": {"lr": 0.02, "ema": 0.9},
            "training": {"epochs": 25, "batch_size": 6, "precision": "fp32", "inner_fraction": 0.2},
        }
    )
    return train(recipe, cohort, split, tmp_path_factory.mktemp("runs") / "t1", store=store)


def test_a_network_learns_the_age_signal(learnt: Run) -> None:
    models = learnt.evaluation["models"]
    assert models["t1"]["mae"] < 6
    assert models["t1"]["mae"] < 0.4 * models["mean"]["mae"]


def test_mean_and_ridge_stand_beside_the_network(learnt: Run) -> None:
    assert set(learnt.evaluation["models"]) == {"t1", "mean", "ridge"}
    assert learnt.evaluation["models"]["ridge"]["mae"] < 0.5 * learnt.evaluation["models"]["mean"]["mae"]
    assert set(learnt.baselines) == {"mean", "ridge"}


def test_the_run_folder_holds_everything(learnt: Run) -> None:
    names = {path.name for path in learnt.folder.iterdir()}
    assert {
        "recipe.yaml",
        "cohort.csv",
        "split.csv",
        "split.json",
        "environment.json",
        "history.csv",
        "loss_curve.png",
        "checkpoint.safetensors",
        "model.safetensors",
        "predictions.csv",
        "baselines.csv",
        "evaluation.json",
        "evaluation.html",
        "contract.json",
        "run.json",
    } <= names
    assert not [name for name in names if ".tmp" in name]


def test_the_history_shows_errors_with_and_without_augmentation_and_the_baseline(learnt: Run) -> None:
    assert {
        "epoch",
        "learning_rate",
        "train_loss",
        "train_mae",
        "train_mae_eval",
        "inner_mae",
        "baseline_mean_mae",
        "seconds",
    } <= set(learnt.history.columns)
    assert learnt.history["epoch"].tolist() == list(range(1, 26))


def test_validation_subjects_were_never_trained_on(learnt: Run) -> None:
    predicted = set(learnt.predictions["subject_id"])
    assert predicted == set(learnt.split.subjects("validation"))
    assert not predicted & set(learnt.split.subjects("train"))
    assert learnt.about["selected_on"] == "nothing (fixed length)"


def test_the_same_seed_gives_the_same_numbers_and_another_others(
    tmp_path: Path, cohort: Cohort, split: Split, store: Store, recipe: Recipe
) -> None:
    first = train(recipe, cohort, split, tmp_path / "a", store=store)
    again = train(recipe, cohort, split, tmp_path / "b", store=store)
    other = train(recipe.updated("seed=1"), cohort, split, tmp_path / "c", store=store)
    assert_same_training(first, again)
    assert first.predictions["predicted_age"].tolist() != other.predictions["predicted_age"].tolist()


class StopAfter(Observer):
    """Sends this process a signal after a number of steps, as a scheduler would."""

    def __init__(self, n_steps: int, number: int) -> None:
        self.left, self.number = n_steps, number

    def step(self, epoch: int, step: int, n_steps: int) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("n_steps", [2, 6, 9])
def test_a_stopped_training_resumes_with_the_same_numbers(
    tmp_path: Path, cohort: Cohort, split: Split, store: Store, recipe: Recipe, number: int, n_steps: int
) -> None:
    recipe = recipe.updated(
        "head.dropout=0.3", "optim.accumulate=2", "training.inner_fraction=0.2", "training.select=inner"
    )
    whole = train(recipe, cohort, split, tmp_path / "whole", store=store)
    with pytest.raises(Interrupted):
        train(recipe, cohort, split, tmp_path / "stopped", store=store, observer=StopAfter(n_steps, number))
    assert not Run(tmp_path / "stopped").complete
    resumed = train(recipe, cohort, split, tmp_path / "stopped", store=store, resume="required")
    assert_same_training(whole, resumed)


@pytest.mark.slow
def test_a_killed_training_resumes_with_the_same_numbers(
    tmp_path: Path, cohort: Cohort, split: Split, store: Store, recipe: Recipe
) -> None:
    recipe = recipe.updated("training.epochs=12")
    recipe.save(tmp_path / "recipe.yaml")
    cohort.to_csv(tmp_path / "cohort.csv")
    split.save(tmp_path / "split.csv")
    command = [
        sys.executable,
        "-m",
        "neuroage",
        "train",
        "--config",
        str(tmp_path / "recipe.yaml"),
        "--data",
        str(tmp_path / "cohort.csv"),
        "--split",
        str(tmp_path / "split.csv"),
        "--store",
        str(store.folder),
        "--resume",
        "auto",
    ]
    kills = 0
    checkpoint = tmp_path / "killed" / "checkpoint.safetensors"
    for attempt in range(5):
        process = subprocess.Popen(
            [*command, "--out", str(tmp_path / "killed")], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        while process.poll() is None and (not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before):
            time.sleep(0.002)
        time.sleep(0.03 * attempt)  # somewhere in the next epoch, or in the middle of writing
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 4
    subprocess.run([*command, "--out", str(tmp_path / "killed")], check=True, capture_output=True)
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, capture_output=True)
    assert_same_training(Run(tmp_path / "whole"), Run(tmp_path / "killed"))


def test_resuming_needs_the_same_recipe_and_split(
    tmp_path: Path, cohort: Cohort, split: Split, store: Store, recipe: Recipe
) -> None:
    with pytest.raises(UsageError):
        train(recipe, cohort, split, tmp_path / "none", store=store, resume="required")
    train(recipe.updated("training.epochs=1"), cohort, split, tmp_path / "run", store=store)
    with pytest.raises(RefusedError, match="another recipe"):
        train(recipe, cohort, split, tmp_path / "run", store=store, resume="auto")
    with pytest.raises(UsageError, match="--resume"):
        train(recipe, cohort, split, tmp_path / "run", store=store)


def test_a_figure_selected_on_the_validation_set_says_so(
    tmp_path: Path, cohort: Cohort, split: Split, store: Store, recipe: Recipe
) -> None:
    run = train(recipe.updated("training.select=validation"), cohort, split, tmp_path / "run", store=store)
    assert run.about["selected_on"] == "validation"
    assert "Read with care" in (run.folder / "evaluation.html").read_text(encoding="utf-8")
    assert "validation_mae" in run.history


def test_the_inner_best_weights_are_kept(
    tmp_path: Path, cohort: Cohort, split: Split, store: Store, recipe: Recipe
) -> None:
    recipe = recipe.updated(
        "training.select=inner", "training.inner_fraction=0.25", "training.epochs=6", "optim.ema=null", "optim.lr=0.05"
    )
    run = train(recipe, cohort, split, tmp_path / "run", store=store)
    state = load_checkpoint(run.checkpoint_path)
    assert state[1]["best_epoch"] == int(run.history["inner_mae"].to_numpy()[::-1].argmin() * -1 + len(run.history) - 1)
    assert all(torch.equal(state[0]["best"][name], value) for name, value in weights(run).items())


def test_patience_stops_early(tmp_path: Path, cohort: Cohort, split: Split, store: Store, recipe: Recipe) -> None:
    recipe = recipe.updated(
        "training.inner_fraction=0.25", "training.patience=1", "training.epochs=40", "optim.lr=0.2", "optim.ema=null"
    )
    run = train(recipe, cohort, split, tmp_path / "run", store=store)
    assert len(run.history) < 40
    assert run.history["inner_mae"].idxmin() == len(run.history) - 2


def test_a_diverging_training_says_so(
    tmp_path: Path, cohort: Cohort, split: Split, store: Store, recipe: Recipe
) -> None:
    recipe = recipe.updated("optim={name: sgd, lr: 1.0e+30, clip_norm: null, warmup_epochs: 0}", "backbone.norm=none")
    with pytest.raises(DataError, match=r"optim\.lr"):
        train(recipe, cohort, split, tmp_path / "run", store=store)


def test_a_modality_without_scans_or_too_few_subjects_is_said_before_training(
    tmp_path: Path, cohort: Cohort, split: Split, store: Store, recipe: Recipe
) -> None:
    with pytest.raises((UsageError, InfeasibleError)):
        train(recipe.updated("modality=flair"), cohort, split, tmp_path / "a", store=store)
    few = cohort.select(subject_ids=[*split.subjects("train")[:3], *split.subjects("validation")[:3]])
    with pytest.raises(InfeasibleError, match="at least"):
        train(recipe, few, split, tmp_path / "b", store=store)


def test_every_test_scan_is_predicted_too(tmp_path: Path, cohort: Cohort, store: Store, recipe: Recipe) -> None:
    from neuroage.cohort import uniform_age_split

    made = uniform_age_split(cohort, n_validation=8, n_test=6, seed=1)
    run = train(recipe, cohort, made, tmp_path / "run", store=store)
    assert run.predictions["set"].value_counts().to_dict() == {"validation": 8, "test": 6}
    assert np.isfinite(run.predictions["predicted_age"]).all()


@pytest.mark.parametrize("folds", [1, 2])
def test_a_training_that_cannot_start_leaves_its_folder_free(
    folds: int, cohort: Cohort, split: Split, recipe: Recipe, store: Store, tmp_path: Path
) -> None:
    from neuroage.cohort.parts import all_parts
    from neuroage.training.experiment import train_members

    impossible = recipe.updated("prepare.binning={method: threshold, at: 1000000, native: true}")
    with pytest.raises(NeuroageError):
        train_members(impossible, cohort, split, tmp_path / "run", parts=all_parts(folds), store=store)
    assert not (tmp_path / "run").exists()
    run = train_members(
        recipe.updated("training.epochs=1"), cohort, split, tmp_path / "run", parts=all_parts(folds), store=store
    )
    assert run.complete
