from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchio as tio

import neuroage as na
from neuroage.imaging.store import Store
from neuroage.imaging.torchio_pipeline import TorchIOPipeline
from neuroage.runs.recipe import Recipe


def test_fit_evaluate_predict_save_and_load(
    tmp_path: Path, cohort: na.Cohort, split: na.Split, store: Store, recipe: Recipe
) -> None:
    model = na.AgeRegressor(recipe, store=store.folder, epochs=2, lr=0.02)
    assert (model.recipe.training.epochs, model.recipe.optim.lr) == (2, 0.02)
    model.fit(cohort, split, out=tmp_path / "run")
    table = model.evaluate().table
    assert len(table) == 3  # the model, the mean predictor and ridge
    scan = cohort.select(modality="t1").scans()[0]
    first = model.predict(scan.path)["predicted_age"]
    saved = na.load(model.save(tmp_path / "saved"))
    assert saved.predict([scan.path])["predicted_age"].tolist() == first.tolist()
    assert model.evaluate(cohort).n_subjects == 12


def test_any_torchio_compose_is_accepted_as_augmentation(
    tmp_path: Path, cohort: na.Cohort, split: na.Split, store: Store, recipe: Recipe
) -> None:
    compose = tio.Compose([tio.RandomFlip(axes=(0,)), tio.RandomNoise(std=0.5)])
    plain = na.AgeRegressor(recipe, store=store.folder, epochs=1).fit(cohort, split, out=tmp_path / "plain")
    noisy = na.AgeRegressor(recipe, store=store.folder, augmentation=compose, epochs=1)
    noisy.fit(cohort, split, out=tmp_path / "noisy")
    again = na.AgeRegressor(recipe, store=store.folder, augmentation=compose, epochs=1)
    again.fit(cohort, split, out=tmp_path / "again")
    ages = [model.run.predictions["predicted_age"].tolist() for model in (plain, noisy, again)]
    assert ages[0] != ages[1]
    assert ages[1] == ages[2]


def test_torchio_draws_depend_on_epoch_and_scan_and_not_on_the_batch() -> None:
    pipeline = TorchIOPipeline(tio.RandomNoise(std=(1, 2)), seed=3)
    scans = torch.rand(2, 1, 6, 7, 8)
    before = scans.clone()
    both, _ = pipeline(scans, [(0, 4), (0, 9)])
    swapped, _ = pipeline(scans.flip(0), [(0, 9), (0, 4)])
    later, _ = pipeline(scans, [(1, 4), (1, 9)])
    assert torch.equal(both, swapped.flip(0))
    assert not torch.equal(both, later)
    assert torch.equal(scans, before)


def test_augmentation_that_changes_the_size_is_refused() -> None:
    with pytest.raises(na.NeuroageError, match="keeps the size"):
        TorchIOPipeline(tio.Crop(1), seed=0)(torch.rand(1, 1, 6, 7, 8), [(0, 0)])


def test_unknown_arguments_and_unfitted_models_are_usage_errors() -> None:
    with pytest.raises(na.NeuroageError, match="no argument 'epoch'"):
        na.AgeRegressor("t1_small", epoch=3)
    with pytest.raises(na.NeuroageError, match="not fitted"):
        na.AgeRegressor("t1_small").evaluate()
