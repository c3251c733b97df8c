"""Every key of the recipe, when changed, changes something that can be observed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from neuroage.cohort import Cohort, Split
from neuroage.imaging.store import Store
from neuroage.runs.recipe import Binning, Histogram, Prepare, Recipe, Section
from neuroage.runs.recipe_raw import BiasField, Brain, Vessels
from neuroage.runs.run import Run
from neuroage.training import scoring
from neuroage.training.train import train

# A training whose inner error goes up and down, so that it matters which epoch is kept.
UNSTEADY = [
    "training.inner_fraction=0.3",
    "training.epochs=8",
    "optim={lr: 0.3, schedule: constant, warmup_epochs: 0, ema: null}",
]

# Key → overrides; the last one changes the key, the ones before set the scene for both trainings.
CHANGES: dict[str, list[str]] = {
    "modality": ["modality=tof"],
    "seed": ["seed=5"],
    "task": ["task={name: soft_label_age}"],
    "prepare.kind": [],  # pictures: tests/imaging/test_prepare_picture.py and test_picture_training.py
    "prepare.preset": [],  # fills the keys below: tests/imaging/test_prepare.py
    "prepare.spacing_mm": ["prepare.spacing_mm=7.0"],
    "prepare.size": ["prepare.size=[12, 12, 10]"],
    "prepare.centre": ["prepare.centre=head"],
    "prepare.labels": ["prepare.intensity=none", "prepare.labels=true"],
    "prepare.nonfinite": [],  # observed in test_read: it decides whether scans with NaN are read
    "prepare.intensity": ["prepare.intensity=mean"],
    "prepare.foreground": ["prepare.foreground=all"],
    "prepare.statistics": ["prepare.intensity=mean", "prepare.statistics=grid"],
    "prepare.histogram": ["prepare.histogram={over: nonzero}"],
    "prepare.histogram.landmarks": [
        "prepare.histogram={over: nonzero}",
        "prepare.histogram.landmarks=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 50, 100]",
    ],
    "prepare.histogram.over": ["prepare.histogram={over: nonzero}", "prepare.histogram.over=above_mean"],
    "prepare.clip_percentiles": ["prepare.clip_percentiles=[5, 80]"],
    "prepare.binning": ["prepare.binning={levels: 3}"],
    "prepare.binning.method": ["prepare.binning={method: equal_width, levels: 3}", "prepare.binning.method=quantile"],
    "prepare.binning.levels": ["prepare.binning={levels: 3}", "prepare.binning.levels=5"],
    "prepare.binning.at": ["prepare.binning={method: threshold, at: 0.0}", "prepare.binning.at=0.5"],
    "prepare.binning.native": ["prepare.binning={levels: 3}", "prepare.binning.native=true"],
    "prepare.registration": [],  # balls cannot be registered to a brain; its keys: tests/imaging/test_raw.py
    "prepare.bias_field": ["prepare.bias_field={iterations: [5]}"],
    "prepare.bias_field.shrink": [],  # 4 mm are coarse enough already: tests/imaging/steps/test_bias.py
    "prepare.bias_field.iterations": ["prepare.bias_field={iterations: [5]}", "prepare.bias_field.iterations=[5, 5]"],
    "prepare.bias_field.knots_mm": ["prepare.bias_field={iterations: [5]}", "prepare.bias_field.knots_mm=50"],
    "prepare.brain": ["prepare.brain={mask: nonzero, margin_mm: -8}"],
    "prepare.brain.mask": [],  # the other masks need a template, files or programs: tests/imaging/test_raw.py
    "prepare.brain.file": [],
    "prepare.brain.margin_mm": ["prepare.brain={mask: nonzero}", "prepare.brain.margin_mm=-8"],
    "prepare.vessels": ["prepare.vessels={radii_mm: [8], output: vesselness}"],
    "prepare.vessels.radii_mm": [
        "prepare.vessels={radii_mm: [8], output: vesselness}",
        "prepare.vessels.radii_mm=[12]",
    ],
    "prepare.vessels.output": [
        "prepare.vessels={radii_mm: [8], output: vesselness}",
        "prepare.vessels.output=enhanced",
    ],
    "prepare.vessels.share": ["prepare.vessels={radii_mm: [8], share: 0.1}", "prepare.vessels.share=0.2"],
    "prepare.fractions": ["prepare.fractions=[-0.5, 0.5]"],
    "prepare.orientation": ["augment=[]", "prepare.orientation=LAS"],
    "prepare.store_as": ["prepare.store_as=float32"],
    "augment": ["augment=[]"],
    "backbone": ["backbone={name: cnn, n_blocks: 2, features: 5}"],
    "standardise": ["standardise=voxelwise"],
    "pool": ["pool=max"],
    "pool_grid": ["pool=grid", "pool_grid=[1, 2, 1]"],
    "head.norm": ["head.norm=true"],
    "head.hidden": ["head.hidden=[4]"],
    "head.dropout": ["head.dropout=0.4"],
    "init": ["init=he"],
    "finetune.init_from": [],  # observed in test_finetune.py: it needs another run
    "finetune.freeze": ["finetune.freeze=0.5"],
    "finetune.unfreeze": ["finetune.unfreeze={0: head, 1: 1.0}"],
    "finetune.layer_decay": ["finetune.layer_decay=0.5"],
    "finetune.head_lr": ["finetune.head_lr=3"],
    "finetune.reestimate_norms": ["finetune.freeze=1", "finetune.reestimate_norms=true"],
    "finetune.cache_features": [],  # changes speed, not numbers: test_finetune.py
    "optim.name": ["optim.name=sgd"],
    "optim.lr": ["optim.lr=0.02"],
    "optim.weight_decay": ["optim.weight_decay=0.9"],
    "optim.momentum": ["optim.momentum=0.5"],
    "optim.schedule": ["optim.schedule=one_cycle"],
    "optim.warmup_epochs": ["optim.warmup_epochs=0"],
    "optim.final_lr": ["optim.warmup_epochs=0", "optim.final_lr=0.9"],
    "optim.plateau_epochs": [
        "training.epochs=4",
        "optim={schedule: plateau, plateau_epochs: 1, lr: 1.0e-9, warmup_epochs: 0}",
        "optim.plateau_epochs=5",
    ],
    "optim.ema": ["optim.ema=null"],
    "optim.clip_norm": ["optim.clip_norm=0.0001"],
    "optim.accumulate": ["optim.accumulate=2"],
    "training.epochs": ["training.epochs=1"],
    "training.batch_size": ["training.batch_size=9"],
    "training.recompute": [],  # changes memory, not numbers: tests/models/test_recompute.py
    "training.precision": ["training.precision=bf16"],
    "training.compile": [],  # changes speed, not numbers: test_devices.py
    "training.select": [*UNSTEADY, "training.select=inner"],
    "training.inner_fraction": ["training.inner_fraction=0.3"],
    "training.patience": [*UNSTEADY, "training.patience=1"],
    "training.age_balance": ["training.age_balance=1.0"],
    "training.mixup": ["training.mixup=0.5"],
    "training.train_eval_scans": ["training.train_eval_scans=0"],
    "predict.ridge_share": ["predict.ridge_share=0.5"],
    "predict.flips": ["predict.flips=true"],
}


def leaf_keys(model: type[Section], prefix: str = "") -> set[str]:
    keys = set()
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            keys |= leaf_keys(kind, f"{prefix}{name}.")
        else:
            keys.add(f"{prefix}{name}")
    return keys


def test_no_key_of_the_recipe_is_left_out_here() -> None:
    expected = leaf_keys(Recipe) - {"prepare"} | {f"prepare.{name}" for name in Prepare.model_fields}
    expected |= {f"prepare.binning.{name}" for name in Binning.model_fields}
    expected |= {f"prepare.histogram.{name}" for name in Histogram.model_fields}
    expected |= {f"prepare.bias_field.{name}" for name in BiasField.model_fields}
    expected |= {f"prepare.brain.{name}" for name in Brain.model_fields}
    expected |= {f"prepare.vessels.{name}" for name in Vessels.model_fields}
    assert expected == set(CHANGES)
    assert len(CHANGES) > 40


@pytest.fixture(scope="module")
def observe(cohort: Cohort, split: Split, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Train a recipe for two epochs and give everything that can be seen of it; equal recipes are trained once."""
    folder = tmp_path_factory.mktemp("keys")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(scoring, "write_run_pages", lambda run: None)  # pictures tell nothing more and take a second
    seen: dict[str, Any] = {}

    def look(recipe: Recipe) -> Any:
        if recipe.digest not in seen:
            run: Run = train(recipe, cohort, split, folder / str(len(seen)), store=store)
            history = run.history.drop(columns="seconds")
            seen[recipe.digest] = (history.to_csv(), run.predictions["predicted_age"].tolist())
        return seen[recipe.digest]

    yield look
    monkeypatch.undo()


@pytest.mark.parametrize("key", [key for key, change in CHANGES.items() if change])
def test_changing_a_key_changes_the_training(key: str, observe: Any) -> None:
    recipe = Recipe.from_dict(
        {
            "prepare": {"spacing_mm": 8.0, "size": [12, 12, 12], "centre": "image"},
            "augment": [{"step": "flip"}],
            "backbone": {"name": "cnn", "n_blocks": 2, "features": 4},
            "optim": {"lr": 0.01, "ema": 0.9, "warmup_epochs": 1},
            "training": {"epochs": 2, "batch_size": 6, "precision": "fp32", "train_eval_scans": 4},
        }
    )
    *scene, change = CHANGES[key]
    before = recipe.updated(*scene)
    assert observe(before) != observe(before.updated(change))


def test_nothing_changes_when_nothing_is_changed(
    observe: Any, cohort: Cohort, split: Split, store: Store, tmp_path: Path
) -> None:
    recipe = Recipe.from_dict(
        {
            "prepare": {"spacing_mm": 8.0, "size": [12, 12, 12]},
            "backbone": {"name": "cnn", "n_blocks": 2, "features": 4},
            "training": {"epochs": 1, "batch_size": 6, "precision": "fp32"},
        }
    )
    run = train(recipe, cohort, split, tmp_path / "again", store=store)
    assert observe(recipe) == (run.history.drop(columns="seconds").to_csv(), run.predictions["predicted_age"].tolist())
