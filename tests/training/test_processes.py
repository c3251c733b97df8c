"""Several processes, started as a user starts them, on a CPU (gloo)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from neuroage.cohort import Cohort, Split
from neuroage.imaging.store import Store
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run

CHANGES = (
    "backbone={name: cnn, n_blocks: 2, features: 8, norm: group}",
    "augment=[{step: flip}, {step: noise, std: 0.2}, {step: bias_field}]",
    "training.mixup=0.4",
    "training.epochs=4",
    "training.inner_fraction=0.2",
    "training.select=inner",
)


def command(folder: Path, out: str, n_processes: int, store: Store) -> list[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_processes)]
    return [
        sys.executable,
        *(launch if n_processes > 1 else []),
        *["-m", "neuroage", "train", "--config", str(folder / "recipe.yaml")],
        *["--data", str(folder / "cohort.csv"), "--split", str(folder / "split.csv")],
        *["--store", str(store.folder), "--out", str(folder / out), "--resume", "auto"],
    ]


@pytest.fixture(scope="module")
def folder(cohort: Cohort, split: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("processes")
    recipe = Recipe.from_dict(
        {
            "prepare": {"spacing_mm": 8.0, "size": [12, 12, 12], "centre": "image"},
            "optim": {"lr": 0.01, "ema": 0.9},
            "training": {"batch_size": 7, "precision": "fp32"},
        }
    ).updated(*CHANGES)
    recipe.save(where / "recipe.yaml")
    cohort.to_csv(where / "cohort.csv")
    split.save(where / "split.csv")
    return where


@pytest.fixture(scope="module")
def alone(folder: Path, store: Store) -> Run:
    run(command(folder, "one", 1, store))
    return Run(folder / "one")


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(  # a locale may be ASCII; the words are UTF-8
        words, capture_output=True, encoding="utf-8", env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    return done


def assert_same_predictions(one: Run, other: Run) -> None:
    ages = [each.predictions.set_index("scan_id")["predicted_age"].sort_index() for each in (one, other)]
    assert ages[0].index.equals(ages[1].index)
    np.testing.assert_allclose(ages[0], ages[1], rtol=0, atol=1e-4 * ages[0].std())
    np.testing.assert_allclose(
        one.history.drop(columns="seconds"), other.history.drop(columns="seconds"), rtol=1e-3, atol=1e-4
    )


def kill_all(word: str) -> None:
    """Kill every process with a word in its command line: the children have sessions of their own."""
    listed = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,args="], capture_output=True, encoding="utf-8", check=True)
    found = [int(line.split()[0]) for line in listed.stdout.splitlines() if word in line.split()]
    assert len(found) >= 3
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_same_global_batch(folder: Path, alone: Run, store: Store) -> None:
    done = run(command(folder, "two", 2, store))
    two = Run(folder / "two")
    assert two.complete
    assert two.about["plan"]["n_processes"] == 2
    assert_same_predictions(alone, two)
    assert done.stdout.count("Page:") == 1  # one process talks


@pytest.mark.slow
def test_a_training_of_two_processes_resumes_as_one(folder: Path, alone: Run, store: Store) -> None:
    process = subprocess.Popen(
        command(folder, "resumed", 2, store),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    checkpoint = folder / "resumed" / "checkpoint.safetensors"
    while process.poll() is None and not checkpoint.exists():
        time.sleep(0.002)
    assert process.poll() is None, "it ended before it could be interrupted"
    kill_all(str(folder / "resumed"))
    process.wait()
    assert not Run(folder / "resumed").complete
    run(command(folder, "resumed", 1, store))
    assert_same_predictions(alone, Run(folder / "resumed"))


@pytest.mark.slow
def test_two_processes_thaw_a_network_in_phases_as_one_does(folder: Path, store: Store) -> None:
    thawing = ["--set", "finetune.unfreeze={0: head, 1: 0.5, 2: 1.0}", "--set", "optim.accumulate=2"]
    thawing += ["--set", "optim.name=sgd"]  # AdamW's first steps of a stage have one size, whatever the gradient
    for name, n_processes in (("thaw-one", 1), ("thaw-two", 2)):
        run([*command(folder, name, n_processes, store), *thawing])
    assert_same_predictions(Run(folder / "thaw-one"), Run(folder / "thaw-two"))
