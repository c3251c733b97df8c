"""Trainings about labels, from the recipe to the tables that they leave."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from neuroage.cohort import Cohort, Split
from neuroage.cohort.parts import all_parts
from neuroage.errors import DataError, InfeasibleError
from neuroage.imaging.store import Store
from neuroage.runs.evaluation import evaluate_held_out
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run
from neuroage.training.checkpoint import load_checkpoint
from neuroage.training.experiment import train_members
from neuroage.training.loop import Interrupted
from neuroage.training.observer import Observer
from neuroage.training.predict import evaluate_on, predict
from neuroage.training.train import train

TASKS = {
    "binary": "task={name: binary, label: Rows}",
    "multilabel": "task={name: multilabel}",
    "multiclass": "task={name: multiclass}",
}
LABELS = {
    "binary": ["Rows"],
    "multilabel": ["Rows", "Columns", "Spot"],
    "multiclass": ["None", "both", "columns", "rows"],
}
KEYS = ["scan_id", "subject_id", "set", "fold", "member", "group"]


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
def runs(
    pictures: Cohort, picture_split: Split, store: Store, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Run]:
    """One training of each task that is long enough to learn."""
    recipe = Recipe.from_dict(
        {
            "modality": "picture",
            "prepare": {"kind": "picture", "size": 24},
            "augment": [{"step": "flip", "p": 0.5}],
            "backbone": {"name": "cnn", "n_blocks": 2, "features": 8},
            "pool": "average_max",
            "optim": {"lr": 0.03, "ema": 0.8},
            "training": {"epochs": 12, "batch_size": 8, "precision": "fp32", "train_eval_scans": 16},
        }
    )
    folder = tmp_path_factory.mktemp("runs")
    return {
        name: train(recipe.updated(task), pictures, picture_split, folder / name, store=store)
        for name, task in TASKS.items()
    }


@pytest.mark.parametrize("name", TASKS)
def test_a_signal_that_no_pixel_tells_by_itself_is_learnt(runs: dict[str, Run], name: str) -> None:
    models = runs[name].evaluation["models"]
    assert models["picture"]["auroc"] > 0.9
    assert models["picture"]["auroc"] > models["linear"]["auroc"] + 0.1
    assert models["majority"]["auroc"] == 0.5
    assert models["picture"]["accuracy"] > models["majority"]["accuracy"] + 0.2


@pytest.mark.parametrize("name", TASKS)
def test_a_run_about_labels_leaves_everything(runs: dict[str, Run], name: str) -> None:
    run = runs[name]
    names = {path.name for path in run.folder.iterdir()}
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
        "linear.safetensors",
        "predictions.csv",
        "baselines.csv",
        "evaluation.json",
        "evaluation.html",
        "contract.json",
        "contract.safetensors",
        "selftest.json",
        "run.json",
    } <= names
    assert not [name for name in names if ".tmp" in name]
    assert run.complete
    assert run.target == {"kind": name, "labels": LABELS[name]}
    page = (run.folder / "evaluation.html").read_text(encoding="utf-8")
    assert "AUROC" in page
    assert all(label in page for label in LABELS[name])
    assert "age" not in {word.strip(".,:;()").lower() for word in run.evaluation["verdict"].split()}


@pytest.mark.parametrize("name", TASKS)
def test_the_predictions_table_has_targets_and_probabilities_by_label(
    runs: dict[str, Run], pictures: Cohort, picture_split: Split, name: str
) -> None:
    table = runs[name].predictions
    labels = LABELS[name]
    targets = ["target_label"] if name == "multiclass" else [f"target_{label}" for label in labels]
    assert set(table.columns) == {*KEYS, *targets, *(f"probability_{label}" for label in labels)}
    held_out = pictures.table[
        pictures.table["subject_id"].isin([*picture_split.subjects("validation"), *picture_split.subjects("test")])
    ].set_index("scan_id")
    if name == "binary":
        held_out = held_out[held_out["label_Rows"].notna()]
    assert set(table["scan_id"]) == set(held_out.index)
    in_cohort = held_out.loc[table["scan_id"]]
    for target in targets:
        column = target.replace("target_label", "label").replace("target_", "label_")
        expected = in_cohort[column].to_numpy()
        np.testing.assert_array_equal(table[target].to_numpy(), expected)  # NaN where unknown, "None" a class
    probabilities = table[[f"probability_{label}" for label in labels]].to_numpy()
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    if name == "multiclass":
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    group_of = picture_split.table.set_index("subject_id")["group"]
    assert table["group"].tolist() == group_of.loc[table["subject_id"]].tolist()
    assert table["group"].nunique() < table["subject_id"].nunique()
    for baseline in runs[name].baselines.values():
        assert set(baseline.columns) == set(table.columns)
        assert baseline["scan_id"].tolist() == table["scan_id"].tolist()


def test_a_class_called_none_is_a_class(runs: dict[str, Run], pictures: Cohort) -> None:
    run = runs["multiclass"]
    assert (run.predictions["target_label"] == "None").any()
    assert run.evaluation["n_scans"] == int((run.predictions["set"] == "validation").sum())
    assert run.evaluation["labels"]["picture"]["None"]["n_positive"] > 0
    assert (run.cohort.table["label"] == "None").sum() == (pictures.table["label"] == "None").sum()


def test_figures_are_those_of_scikit_learn(runs: dict[str, Run]) -> None:
    table = runs["binary"].predictions.query("set == 'validation'")
    expected = roc_auc_score(table["target_Rows"], table["probability_Rows"])
    assert runs["binary"].evaluation["models"]["picture"]["auroc"] == pytest.approx(expected)
    assert runs["binary"].evaluation["n_groups"] == table["group"].nunique()


def test_the_history_follows_auroc_and_the_share_of_errors(runs: dict[str, Run]) -> None:
    history = runs["multilabel"].history
    assert {"train_loss", "train_error_rate", "train_auroc_eval", "baseline_mean_auroc"} <= set(history.columns)
    assert history["train_loss"].iloc[-1] < history["train_loss"].iloc[0]
    assert np.isfinite(history.to_numpy(dtype=float)).all()


@pytest.mark.parametrize("name", TASKS)
def test_the_same_seed_gives_the_same_numbers_whether_or_not_it_was_interrupted(
    tmp_path: Path, pictures: Cohort, picture_split: Split, store: Store, picture_recipe: Recipe, name: str
) -> None:
    recipe = picture_recipe.updated(
        TASKS[name],
        "training.mixup=0.4",
        "training.select=validation",
        "task.imbalance=sampler",
        "head.dropout=0.3",
        "training.epochs=2",
    )

    class Stop(Observer):
        def step(self, epoch: int, step: int, n_steps: int) -> None:
            if (epoch, step) == (1, 3):
                os.kill(os.getpid(), signal.SIGTERM)

    whole = train(recipe, pictures, picture_split, tmp_path / "whole", store=store)
    with pytest.raises(Interrupted):
        train(recipe, pictures, picture_split, tmp_path / "stopped", store=store, observer=Stop())
    resumed = train(recipe, pictures, picture_split, tmp_path / "stopped", store=store, resume="required")
    assert_same_training(whole, resumed)


def test_the_weights_of_the_best_validation_auroc_are_kept_and_patience_stops(
    tmp_path: Path, pictures: Cohort, picture_split: Split, store: Store, picture_recipe: Recipe
) -> None:
    recipe = picture_recipe.updated(
        "task={name: multilabel, labels: [Spot]}",
        "training.select=validation",
        "training.patience=2",
        "training.epochs=40",
        "optim.ema=null",
        "optim.lr=0.1",
    )
    run = train(recipe, pictures, picture_split, tmp_path / "run", store=store)
    scores = run.history["validation_auroc"]
    assert len(scores) < 40
    assert scores.idxmax() == len(scores) - 3
    state = load_checkpoint(run.checkpoint_path)
    assert scores[state[1]["best_epoch"]] == scores.max()
    assert scores.max() > scores.min()
    assert all(torch.equal(state[0]["best"][name], value) for name, value in weights(run).items())
    assert run.about["selected_on"] == "validation"
    assert run.evaluation["sets"] == ["test"]  # the validation set has had its say
    validation = run.predictions.query("set == 'validation' and target_Spot.notna()")
    kept = roc_auc_score(validation["target_Spot"], validation["probability_Spot"])
    assert kept == pytest.approx(scores.max(), abs=1e-6)


@pytest.mark.parametrize("imbalance", ["sampler", "undersample"])
def test_every_class_is_shown_equally_often(
    tmp_path: Path,
    pictures: Cohort,
    picture_split: Split,
    store: Store,
    picture_recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
    imbalance: str,
) -> None:
    from neuroage.training import loop

    seen: list[torch.Tensor] = []
    made = loop.ready_batch

    def watched(trainee, *rest):  # type: ignore[no-untyped-def]
        images, targets = made(trainee, *rest)
        seen.append(targets)
        return images, targets

    monkeypatch.setattr(loop, "ready_batch", watched)
    trained = picture_split.subjects("train")
    rows = pictures.table[pictures.table["subject_id"].isin(trained)]
    rare = rows.index[rows["label"] == "both"][4:]  # four are left
    fewer = Cohort(pictures.table.drop(index=rare))
    n_train = int(fewer.table["subject_id"].isin(trained).sum())
    n_epochs = 20
    recipe = picture_recipe.updated(f"task.imbalance={imbalance}", f"training.epochs={n_epochs}", "augment=[]")
    train(recipe, fewer, picture_split, tmp_path / "run", store=store)
    shown = torch.cat(seen).sum(dim=0) / n_epochs
    n_epoch = n_train if imbalance == "sampler" else 4 * 4
    assert float(shown.sum()) == pytest.approx(n_epoch)
    np.testing.assert_allclose(shown, n_epoch / 4, rtol=0.2)
    assert float(shown[1]) == pytest.approx(n_epoch / 4, abs=1)  # of the rare class none is left out


def test_unknown_labels_count_nowhere(
    tmp_path: Path, pictures: Cohort, picture_split: Split, store: Store, picture_recipe: Recipe
) -> None:
    recipe = picture_recipe.updated("task={name: multilabel, labels: [Rows, Spot]}", "training.epochs=1")
    table = pictures.table.copy()
    held_out = table.index[table["subject_id"].isin(picture_split.subjects("validation"))]
    table.loc[held_out[:5], "label_Spot"] = np.nan
    run = train(recipe, Cohort(table), picture_split, tmp_path / "run", store=store)
    figures = run.evaluation["labels"]["picture"]
    validation = run.predictions.query("set == 'validation'")
    assert figures["Spot"]["n"] == validation["target_Spot"].notna().sum() < len(validation)
    in_train = table[table["subject_id"].isin(picture_split.subjects("train"))]
    assert in_train["label_Spot"].isna().any()
    assert run.about["task"]["shares"] == pytest.approx([in_train["label_Rows"].mean(), in_train["label_Spot"].mean()])
    assert np.isfinite(run.history["train_loss"]).all()


def test_scans_without_any_label_are_not_trained_on(
    tmp_path: Path, pictures: Cohort, picture_split: Split, store: Store, picture_recipe: Recipe
) -> None:
    table = pictures.table.copy()
    table.loc[::3, "label"] = ""
    run = train(
        picture_recipe.updated("training.epochs=1"), Cohort(table), picture_split, tmp_path / "run", store=store
    )
    assert sum(run.about["counts"].values()) == (table["label"] != "").sum()


def test_a_class_that_only_held_out_scans_have_is_said(
    tmp_path: Path, pictures: Cohort, picture_split: Split, store: Store, picture_recipe: Recipe
) -> None:
    table = pictures.table.copy()
    table.loc[table["subject_id"] == picture_split.subjects("validation")[0], "label"] = "swirl"
    with pytest.raises(InfeasibleError, match="No training scan has the class 'swirl'"):
        train(picture_recipe, Cohort(table), picture_split, tmp_path / "run", store=store)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def in_parts(pictures: Cohort, picture_split: Split, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Run:
    recipe = Recipe.from_dict(
        {
            "modality": "picture",
            "task": {"name": "binary", "label": "Rows"},
            "prepare": {"kind": "picture", "size": 24},
            "backbone": {"name": "cnn", "n_blocks": 2, "features": 8},
            "optim": {"lr": 0.03},
            "training": {"epochs": 6, "batch_size": 8, "precision": "fp32"},
        }
    )
    folder = tmp_path_factory.mktemp("parts") / "run"
    return train_members(recipe, pictures, picture_split, folder, parts=all_parts(3), store=store)


def test_parts_predict_every_training_subject_out_of_fold(in_parts: Run, picture_split: Split) -> None:
    assert in_parts.complete
    assert len(in_parts.members) == 3
    table = in_parts.predictions
    out_of_fold = table[table["set"] == "out_of_fold"]
    assert set(out_of_fold["subject_id"]) == set(picture_split.subjects("train"))
    assert out_of_fold["scan_id"].is_unique
    assert table[table["set"] == "validation"].groupby("scan_id").size().eq(3).all()
    assert not in_parts.calibration_path.exists()  # ages' intervals are none of a label's business
    assert evaluate_held_out(in_parts, "out_of_fold").models["picture"]["auroc"] > 0.8


def test_who_shares_a_picture_is_in_one_part(in_parts: Run) -> None:
    out_of_fold = in_parts.predictions.query("set == 'out_of_fold'")
    assert out_of_fold.groupby("group")["member"].nunique().eq(1).all()
    assert out_of_fold["group"].nunique() < out_of_fold["subject_id"].nunique()


def test_members_predict_together(in_parts: Run, pictures: Cohort, picture_split: Split, store: Store) -> None:
    chosen = pictures.select(subject_ids=picture_split.subjects("test"))
    together = predict(in_parts, chosen, store=store, force=True).table.set_index("scan_id")["probability_Rows"]
    single = [
        predict(member, chosen, store=store, force=True).table.set_index("scan_id")["probability_Rows"]
        for member in in_parts.members
    ]
    np.testing.assert_allclose(together, np.mean(single, axis=0), atol=1e-6)
    assert np.std(single, axis=0).max() > 0


def test_folds_of_a_grouped_split_become_members(
    tmp_path: Path, pictures: Cohort, store: Store, picture_recipe: Recipe
) -> None:
    from neuroage.cohort.grouped import grouped_split

    split = grouped_split(pictures, validation=0.25, test=0.25, folds=2, seed=1)
    run = train_members(
        picture_recipe.updated("training.epochs=2"), pictures, split, tmp_path / "run", folds=range(2), store=store
    )
    table = run.predictions
    assert sorted(member.about["fold"] for member in run.members) == [0, 1]
    held_out = {subject for fold in range(2) for subject in split.subjects("validation", fold)}
    assert set(table.loc[table["set"] == "validation", "subject_id"]) == held_out
    assert table[table["set"] == "test"].groupby("scan_id").size().eq(2).all()
    assert "group" in table
    assert run.evaluation["n_scans"] == table.loc[table["set"] == "validation", "scan_id"].nunique()


def test_inner_scans_are_held_out_by_label_and_group(
    tmp_path: Path, pictures: Cohort, picture_split: Split, store: Store, picture_recipe: Recipe
) -> None:
    recipe = picture_recipe.updated("training.inner_fraction=0.3", "training.select=inner", "training.epochs=2")
    run = train(recipe, pictures, picture_split, tmp_path / "run", store=store)
    assert "inner_auroc" in run.history
    assert run.about["counts"]["inner"] >= 8
    assert run.about["selected_on"] == "an inner part of training"
    assert run.evaluation["sets"] == ["validation"]


def test_classes_that_are_numbers_are_the_same_in_memory_and_in_a_file(
    tmp_path: Path, pictures: Cohort, picture_split: Split, store: Store, picture_recipe: Recipe
) -> None:
    cohort = Cohort(pictures.table.assign(grade=[0, 1, 2, 1] * (len(pictures) // 4)))
    cohort.to_csv(tmp_path / "cohort.csv")
    recipe = picture_recipe.updated("task={name: multiclass, column: grade}", "training.epochs=1")
    run = train(recipe, cohort, picture_split, tmp_path / "run", store=store)
    assert run.target["labels"] == ["0", "1", "2"]
    found, _ = evaluate_on(run, Cohort.read(tmp_path / "cohort.csv"), store=store)
    assert found.n_scans == (run.predictions["set"].isin(["validation", "test"])).sum()


def test_a_diverging_training_says_so(
    tmp_path: Path, pictures: Cohort, picture_split: Split, store: Store, picture_recipe: Recipe
) -> None:
    recipe = picture_recipe.updated(
        "optim={name: sgd, lr: 1.0e+30, clip_norm: null, warmup_epochs: 0}",
        "backbone.norm=none",
        "training.select=validation",
    )
    with pytest.raises(DataError, match=r"optim\.lr"):
        train(recipe, pictures, picture_split, tmp_path / "run", store=store)


def test_nothing_is_selected_by_an_auroc_that_is_not_defined(
    tmp_path: Path, pictures: Cohort, picture_split: Split, store: Store, picture_recipe: Recipe
) -> None:
    table = pictures.table.copy()
    held_out = table["subject_id"].isin(picture_split.subjects("validation"))
    table.loc[held_out, "label_Rows"] = 1.0
    recipe = picture_recipe.updated("task={name: binary, label: Rows}", "training.epochs=1")
    with pytest.raises(InfeasibleError, match="The validation scans have no auroc"):
        train(recipe.updated("training.select=validation"), Cohort(table), picture_split, tmp_path / "run", store=store)
    run = train(recipe, Cohort(table), picture_split, tmp_path / "run", store=store)  # the folder is free
    assert run.complete
    assert [entry["label"] for entry in run.evaluation["undefined"]] == ["Rows"]
