"""`neuroage describe`, `neuroage lr-range` and `neuroage train --init-from` as users type them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from neuroage.cohort import Cohort, Split
from neuroage.imaging.store import Store
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run
from neuroage.training.train import train


@pytest.fixture
def place(tmp_path: Path, cohort: Cohort, split: Split, store: Store, recipe: Recipe) -> list[object]:
    """Cohort, split, store and recipe as files, as options."""
    cohort.to_csv(tmp_path / "cohort.csv")
    split.save(tmp_path / "split.csv")
    recipe.save(tmp_path / "recipe.yaml")
    files = ["--data", tmp_path / "cohort.csv", "--split", tmp_path / "split.csv", "--store", store.folder]
    return [*files, "--config", tmp_path / "recipe.yaml"]


def test_describe_shows_stages_phases_rates_operations_and_memory(type_in: Any) -> None:
    code, out, _ = type_in("describe", "t1_small", "--set", "finetune.unfreeze={0: head, 5: 1.0}", "--epoch", "2")
    assert code == 0
    lines = out.splitlines()
    first = next(line for line in lines if line.startswith("blocks.0"))
    assert "5 epochs" in first and "frozen" in first
    assert "trains" in next(line for line in lines if line.startswith("head"))
    assert "GFLOP forward for one scan of" in out and "train now" in out and "Memory of a training step" in out


def test_describe_knows_a_run(
    type_in: Any, cohort: Cohort, split: Split, store: Store, recipe: Recipe, tmp_path: Path
) -> None:
    run = train(recipe.updated("training.epochs=1"), cohort, split, tmp_path / "run", store=store)
    code, out, _ = type_in("describe", run.folder, "--json")
    said = json.loads(out)
    assert code == 0
    assert said["run"]["status"] == "complete" and said["run"]["epochs_done"] == 1
    assert said["run"]["counts"] == {"train": 36, "validation": 12} and said["n_train_scans"] == 36
    assert said["plan"]["precision"] == "fp32" and said["input_shape"] == [1, 12, 12, 12]
    code, out, _ = type_in("describe", run.folder)
    assert "complete, 1 epochs done" in out and "36 train" in out


def test_describe_refuses_what_is_not_there(type_in: Any, tmp_path: Path) -> None:
    assert type_in("describe", tmp_path)[0] == 2
    assert type_in("describe", "t1_smal")[0] == 2
    code, _, err = type_in("describe", "t1_small", "--set", "finetune.freeze=[stem]")
    assert code == 2 and "blocks.0" in err


def test_lr_range_leaves_a_picture_a_table_and_a_suggestion(type_in: Any, place: list[object], tmp_path: Path) -> None:
    out_folder = tmp_path / "range"
    options = ["--from", "1e-5", "--to", "10", "--steps", "30", "--out", out_folder]
    code, out, err = type_in("lr-range", *place, *options)
    assert code == 0, err
    assert "optim.lr=" in out
    assert (out_folder / "lr_range.png").stat().st_size > 5000
    table = pd.read_csv(out_folder / "lr_range.csv")
    assert list(table) == ["step", "learning_rate", "loss", "untrained_loss", "change"]
    assert sorted(path.name for path in out_folder.iterdir()) == ["lr_range.csv", "lr_range.png"]
    code, out, _ = type_in("lr-range", *place, *options, "--json")
    assert json.loads(out)["steps"] == len(table)


def test_init_from_takes_over_the_backbone_of_a_run(type_in: Any, place: list[object], tmp_path: Path) -> None:
    few = ["--set", "training.epochs=1"]
    parent, child = tmp_path / "the first: run", tmp_path / "child"
    assert type_in("train", *place, *few, "--out", parent)[0] == 0
    code, _, err = type_in("train", *place, *few, "--out", child, "--modality", "tof", "--init-from", parent)
    assert code == 0
    assert Run(child).about["init_from"]["run"] == "the first: run"
    assert "is taken over" in err
