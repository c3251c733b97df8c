from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchio as tio

import neuroage as na
from neuroage.errors import UsageError
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


def test_fit_says_what_it_takes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a Cohort and a Split, not str and str.*Cohort\.read"):
        na.AgeRegressor("smoke").fit("cohort.csv", "split.csv", out=tmp_path / "run")  # type: ignore[arg-type]


def test_folds_give_out_of_fold_figures_and_a_note_on_those_trained_on(
    cohort: na.Cohort, split: na.Split, recipe: Recipe, store: Store, tmp_path: Path
) -> None:
    model = na.AgeRegressor(recipe, epochs=1, store=store.folder).fit(cohort, split, out=tmp_path / "run", folds=2)
    assert len(model.run.members) == 2
    assert len(model.evaluate(subjects="out_of_fold").table) > 0
    seen = split.subjects("train")[0]
    table = model.predict(cohort.select(modality="t1", subject_ids=[seen, split.subjects("validation")[0]]), force=True)
    assert table.set_index("subject_id")["trained_on"].to_dict() == {seen: True, split.subjects("validation")[0]: False}


def test_torchio_sees_the_columns_of_a_picture_as_its_first_axis() -> None:
    pictures = torch.rand(2, 3, 6, 9)
    flipped, _ = TorchIOPipeline(tio.RandomFlip(axes=(0,), flip_probability=1), 0, (2.0, 1.0))(
        pictures, [(0, 0), (0, 1)]
    )
    assert torch.equal(flipped, pictures.flip(3))
    moved, _ = TorchIOPipeline(tio.RandomAffine(translation=(3, 3, 0, 0, 0, 0), scales=0, degrees=0), 0, (1.0, 1.0))(
        pictures, [(0, 0), (0, 1)]
    )
    assert moved.shape == pictures.shape and not torch.equal(moved, pictures)
