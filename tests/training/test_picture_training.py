"""The engine asks neither how many dimensions an image has nor what is predicted."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import neuroage as na
from neuroage.errors import RefusedError
from neuroage.imaging.preparation import prepare_scans
from neuroage.imaging.store import Store
from neuroage.models.network import build_network
from neuroage.models.tasks import build_task
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run
from neuroage.training.check import check
from neuroage.training.description import describe_network
from neuroage.training.epoch_time import epoch_seconds
from neuroage.training.plan import plan_training
from neuroage.training.rate_range import find_rate
from neuroage.training.selftest import selftest
from neuroage.training.train import train

TASKS = {
    "binary": "task={name: binary, label: Rows}",
    "multilabel": "task={name: multilabel}",
    "multiclass": "task={name: multiclass}",
}


@pytest.fixture(scope="module")
def ages(
    pictures: na.Cohort, picture_split: na.Split, store: Store, tmp_path_factory: pytest.TempPathFactory
) -> na.AgeRegressor:
    recipe = Recipe.from_dict(
        {
            "modality": "picture",
            "prepare": {"kind": "picture", "size": 24, "intensity": "range"},
            "backbone": {"name": "cnn", "n_blocks": 2, "features": 8},
            "optim": {"lr": 0.03, "ema": 0.8},
            "training": {"epochs": 25, "batch_size": 8, "precision": "fp32"},
        }
    )
    folder = tmp_path_factory.mktemp("ages") / "run"
    return na.AgeRegressor(recipe, store=store.folder).fit(pictures, picture_split, out=folder, folds=2)


def test_ages_of_pictures_are_learnt_with_mean_and_ridge_beside_them(ages: na.AgeRegressor) -> None:
    models = ages.evaluate().to_dict()["models"]
    assert set(models) == {"picture", "mean", "ridge"}
    assert models["picture"]["mae"] < 0.7 * models["mean"]["mae"]
    assert models["ridge"]["mae"] < 0.7 * models["mean"]["mae"]


def test_ages_of_pictures_have_intervals_and_a_contract(
    ages: na.AgeRegressor, pictures: na.Cohort, picture_split: na.Split
) -> None:
    assert ages.run.calibration_path.is_file()  # on the parts left out
    table = ages.calibrate(level=0.8).predict(pictures.select(subject_ids=picture_split.subjects("test")), force=True)
    assert {"predicted_age", "gap", "verdict", "n_training_near", "outside_ages"} <= set(table.columns)
    assert [name for name in table.columns if name.startswith("interval")]
    assert (table["verdict"] != "refuse").mean() > 0.8
    assert ages.run.leaves[0].contract.is_full
    assert [result.passed for result in selftest(ages.run)] == [True, True]
    loaded = na.load(ages.run.folder)
    assert type(loaded) is na.AgeRegressor


VOLUMES = {
    "prepare": {"spacing_mm": 8.0, "size": [12, 12, 12], "centre": "image"},
    "backbone": {"name": "cnn", "n_blocks": 2, "features": 8},
    "optim": {"lr": 0.02, "ema": 0.8},
    "training": {"epochs": 15, "batch_size": 6, "precision": "fp32"},
}


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        ({"name": "binary", "label": "male", "column": "sex", "positive": ["M"]}, ["male"]),
        ({"name": "multiclass", "column": "cdr"}, ["0", "0.5", "1"]),
    ],
)
def test_volumes_are_classified_by_the_same_estimator(
    tmp_path: Path, cohort: na.Cohort, store: Store, task: dict[str, object], labels: list[str]
) -> None:
    """Sex and dementia rating, both told by the size of the dark middle."""
    table = cohort.table.assign(
        sex=np.where(cohort.table["age"] > 50, "M", "F"),
        cdr=np.select([cohort.table["age"] < 40, cohort.table["age"] < 60], [0.0, 0.5], 1.0),
        age=np.nan,
    )
    volumes = na.Cohort(table)
    column = str(task["column"])
    split = na.grouped_split(volumes, validation=0.3, test=0, stratify=column)
    model = na.ImageClassifier(Recipe.from_dict({**VOLUMES, "task": task}), store=store.folder)
    model.fit(volumes, split, out=tmp_path / "run")
    assert model.run.target["labels"] == labels
    found = model.evaluate()
    assert found.models["t1"]["auroc"] > 0.9
    assert found.models["majority"]["auroc"] == 0.5
    loaded = na.load(tmp_path / "run")
    assert type(loaded) is na.ImageClassifier
    predicted = model.predict(volumes.select(modality="t1").scans()[0].path, force=True)
    assert predicted[[f"probability_{label}" for label in labels]].notna().all(axis=None)
    [result] = selftest(model.run)
    assert result.passed


@pytest.mark.slow
def test_small_colour_pictures_of_ten_kinds_are_learnt_to_95_percent(tmp_path: Path) -> None:
    path = Path(__file__).parents[1] / "models" / "test_small_cnn.py"
    spec = importlib.util.spec_from_file_location("small_cnn", path)
    small_cnn = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(small_cnn)
    (tmp_path / "files").mkdir()
    rows = []
    for name, n, seed in (("train", 1600, 0), ("validation", 200, 2), ("test", 400, 1)):
        images, kinds = small_cnn.made_pictures(n, seed)
        shades = (images.numpy().transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)
        for index, (picture, kind) in enumerate(zip(shades, kinds.tolist(), strict=True)):
            path = tmp_path / "files" / f"{name}-{index:04d}.png"
            Image.fromarray(picture).save(path)
            rows.append({"subject_id": path.stem, "path": str(path), "label": small_cnn.KINDS[kind], "set": name})
    table = pd.DataFrame(rows)
    cohort = na.Cohort(table.drop(columns="set").assign(official_set=table["set"]))
    split = na.grouped_split(cohort, "official")
    recipe = Recipe.from_dict(
        {
            "modality": "picture",
            "task": {"name": "multiclass"},
            "prepare": {"kind": "picture", "size": 32, "channels": "rgb", "intensity": "range"},
            "backbone": {"name": "cnn", "n_blocks": 3, "features": 16, "convs_per_block": 2, "dropout": 0.05},
            "head": {"hidden": [64], "dropout": 0.1},
            "optim": {"lr": 0.003, "weight_decay": 0.01, "warmup_epochs": 1},
            "training": {
                "epochs": 6,
                "batch_size": 50,
                "precision": "fp32",
                "select": "validation",
                "train_eval_scans": 0,
            },
        }
    )
    model = na.ImageClassifier(recipe, store=tmp_path / "store").fit(cohort, split, out=tmp_path / "run")
    found = model.evaluate()
    assert found.sets == ("test",)
    assert found.n_scans == 400
    assert found.models["picture"]["accuracy"] >= 0.95
    assert found.models["linear"]["accuracy"] < 0.5


@pytest.fixture(scope="module")
def parent(pictures: na.Cohort, picture_split: na.Split, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Run:
    recipe = Recipe.from_dict(
        {
            "modality": "picture",
            "task": {"name": "multiclass"},
            "prepare": {"kind": "picture", "size": 24},
            "backbone": {"name": "cnn", "n_blocks": 2, "features": 8},
            "optim": {"lr": 0.03},
            "training": {"epochs": 6, "batch_size": 8, "precision": "fp32"},
        }
    )
    return train(recipe, pictures, picture_split, tmp_path_factory.mktemp("parent") / "run", store=store)


def test_a_run_of_pictures_checks_itself_and_others(parent: Run, pictures: na.Cohort, store: Store) -> None:
    [result] = selftest(parent)
    assert result.passed
    assert "probability" in result.words
    table, measures = check(parent, pictures.sample(5), store=store)
    assert table["verdict"].isin(["ok", "warn", "refuse"]).all()
    assert set(measures) == set(table["scan_id"])


def test_the_backbone_of_a_run_serves_another_task(
    tmp_path: Path, parent: Run, pictures: na.Cohort, picture_split: na.Split, store: Store, picture_recipe: Recipe
) -> None:
    frozen = picture_recipe.updated(
        "task={name: binary, label: Rows}",
        f"finetune.init_from={parent.folder}",
        "finetune.freeze=1",
        "training.epochs=6",
        "augment=[]",
    )
    slow = train(frozen, pictures, picture_split, tmp_path / "slow", store=store)
    cached = train(
        frozen.updated("finetune.cache_features=true"), pictures, picture_split, tmp_path / "cached", store=store
    )
    assert slow.about["init_from"]["run"] == "run"
    assert slow.evaluation["models"]["picture"]["auroc"] > 0.9
    both = [run.predictions.set_index("scan_id")["probability_Rows"] for run in (slow, cached)]
    np.testing.assert_allclose(both[0], both[1], atol=1e-4)
    ages = picture_recipe.updated(
        "task={name: age_regression}", f"finetune.init_from={parent.folder}", "training.epochs=1"
    )
    assert train(ages, pictures, picture_split, tmp_path / "ages", store=store).target == {"kind": "age"}


def test_a_backbone_that_has_seen_who_is_held_out_is_refused(
    tmp_path: Path, parent: Run, pictures: na.Cohort, store: Store, picture_recipe: Recipe
) -> None:
    other = na.grouped_split(pictures, validation=0.25, test=0.2, seed=5)
    recipe = picture_recipe.updated("task={name: binary, label: Rows}", f"finetune.init_from={parent.folder}")
    with pytest.raises(RefusedError, match="held out now"):
        train(recipe, pictures, other, tmp_path / "run", store=store)


@pytest.mark.parametrize("name", [*TASKS, "44 classes"])
def test_a_training_about_labels_is_planned_and_described(picture_recipe: Recipe, name: str) -> None:
    many = "task={name: multiclass, classes: [" + ", ".join(f"kind {index}" for index in range(44)) + "]}"
    recipe = picture_recipe.updated(TASKS.get(name, many), "training.mixup=0.4", "task.imbalance=focal")
    task = build_task(recipe)
    task.fit(task.example(200))
    network = build_network(recipe, spatial_dims=2, in_channels=1, n_outputs=task.n_outputs)
    device = next(network.parameters()).device
    plan = plan_training(recipe, network, precision="fp32", device=device, n_train_scans=60, exact=True)
    assert plan.fits
    assert plan.exact
    time = epoch_seconds(recipe, plan, 60, budget_seconds=0.3)
    assert time.training_seconds > 0
    described = describe_network(recipe)
    assert described.input_shape == (1, 24, 24)
    assert described.stages[-1].parameters == 16 * task.n_outputs + task.n_outputs


@pytest.mark.parametrize("name", TASKS)
def test_a_learning_rate_is_found_for_labels(
    pictures: na.Cohort, picture_split: na.Split, store: Store, picture_recipe: Recipe, name: str
) -> None:
    recipe = picture_recipe.updated(TASKS[name], "training.inner_fraction=0.2")
    found = find_rate(recipe, pictures, picture_split, lowest=1e-4, highest=1.0, n_steps=40, store=store)
    assert found.suggested is not None
    assert 1e-4 < found.suggested < 1


BARE = """
import sys
for package in ("pydicom", "nibabel", "SimpleITK", "torchio", "timm", "torchvision"):
    sys.modules[package] = None
from neuroage.cohort import Cohort, Split
from neuroage.imaging.store import Store
from neuroage.runs.recipe import Recipe
from neuroage.training.train import train
folder = sys.argv[1]
run = train(
    Recipe.load(folder + "/recipe.yaml"), Cohort.from_csv(folder + "/cohort.csv"), Split.load(folder + "/split.csv"),
    folder + "/run", store=Store(sys.argv[2]),
)
assert run.complete
"""


def test_training_on_prepared_pictures_needs_nothing_that_reads_pictures(
    tmp_path: Path, pictures: na.Cohort, picture_split: na.Split, store: Store, picture_recipe: Recipe
) -> None:
    prepare_scans(pictures.scans(), picture_recipe.prepare, store)
    picture_recipe.updated("training.epochs=1").save(tmp_path / "recipe.yaml")
    pictures.to_csv(tmp_path / "cohort.csv")
    picture_split.save(tmp_path / "split.csv")
    done = subprocess.run(
        [sys.executable, "-c", BARE, str(tmp_path), str(store.folder)],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
    )
    assert done.returncode == 0, done.stderr
    assert [result.passed for result in selftest(Run(tmp_path / "run"))] == [True]


@pytest.mark.slow
def test_two_processes_train_labels_as_one_does(
    tmp_path: Path, pictures: na.Cohort, picture_split: na.Split, store: Store, picture_recipe: Recipe
) -> None:
    recipe = picture_recipe.updated(
        "task={name: multilabel, imbalance: sampler}",
        "backbone={name: cnn, n_blocks: 2, features: 8, norm: group}",
        "training.mixup=0.4",
        "training.batch_size=7",
        "training.select=validation",
    )
    recipe.save(tmp_path / "recipe.yaml")
    pictures.to_csv(tmp_path / "cohort.csv")
    picture_split.save(tmp_path / "split.csv")
    runs = []
    for n_processes in (1, 2):
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_processes)]
        words = [
            *[sys.executable, *(launch if n_processes > 1 else []), "-m", "neuroage", "train"],
            *["--config", str(tmp_path / "recipe.yaml"), "--data", str(tmp_path / "cohort.csv")],
            *["--split", str(tmp_path / "split.csv"), "--store", str(store.folder)],
            *["--out", str(tmp_path / f"run{n_processes}")],
        ]
        done = subprocess.run(words, capture_output=True, encoding="utf-8", env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
        runs.append(Run(tmp_path / f"run{n_processes}"))
    one, two = runs
    assert two.about["plan"]["n_processes"] == 2
    columns = [name for name in one.predictions if name.startswith("probability_")]
    tables = [run.predictions.set_index("scan_id").sort_index()[columns] for run in runs]
    np.testing.assert_allclose(tables[0], tables[1], atol=1e-3)
    np.testing.assert_allclose(
        one.history.drop(columns="seconds"), two.history.drop(columns="seconds"), rtol=1e-3, atol=1e-3
    )
