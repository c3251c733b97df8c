"""Tuning: real trainings on the training subjects alone, and a recipe that trains at the end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from neuroage.analysis.tuning import Tuning, draw_importance, draw_scores, write_tuning
from neuroage.cohort import Cohort, Split, uniform_age_split
from neuroage.errors import InfeasibleError, RefusedError, UsageError
from neuroage.imaging.store import Store
from neuroage.runs.recipe import Recipe
from neuroage.runs.recipe_tune import Choices, Range, Space
from neuroage.runs.run import Run
from neuroage.training.loop import Interrupted
from neuroage.training.observer import Observer
from neuroage.training.train import train

pytest.importorskip("optuna")
from neuroage.training.tune import tune
from neuroage.training.tuning_split import tuning_split

SPACE: Space = {"optim.lr": Range(low=0.002, high=0.05, log=True), "backbone.features": Choices(values=(4, 6))}


@pytest.fixture
def short(recipe: Recipe) -> Recipe:
    return recipe.updated("training.epochs=2", "pool=grid", "pool_grid=[2, 2, 2]", "training.train_eval_scans=0")


def test_only_training_subjects_are_divided_and_all_others_left_out(
    cohort: Cohort, split: Split, recipe: Recipe
) -> None:
    inner = tuning_split(split, cohort, recipe)
    trained = set(split.subjects("train"))
    held_back = set(inner.subjects("validation"))
    assert held_back | set(inner.subjects("train")) == trained
    assert len(held_back) == pytest.approx(0.2 * len(trained), abs=1)
    assert set(inner.subjects("left_out")) == set(split.table["subject_id"]) - trained
    ages = cohort.subjects().set_index("subject_id")["age"]
    assert ages[list(held_back)].min() < 40 and ages[list(held_back)].max() > 60
    assert tuning_split(split, cohort, recipe).digest == inner.digest
    assert tuning_split(split, cohort, recipe.updated("seed=1")).digest != inner.digest


def test_no_validation_subject_of_any_fold_takes_part_unless_one_fold_is_named(cohort: Cohort, recipe: Recipe) -> None:
    folded = uniform_age_split(cohort, n_validation=12, folds=2, seed=0)
    inner = tuning_split(folded, cohort, recipe)
    used = {*inner.subjects("train"), *inner.subjects("validation")}
    assert used == set(folded.subjects("train")) and used
    of_fold = tuning_split(folded, cohort, recipe, fold=1)
    used = {*of_fold.subjects("train"), *of_fold.subjects("validation")}
    assert used == set(folded.subjects("train", fold=1)) > set(folded.subjects("train"))
    everyone = Split(folded.table[folded.table["set"] == "validation"])
    with pytest.raises(InfeasibleError, match="--fold"):
        tuning_split(everyone, cohort, recipe)


@pytest.mark.parametrize("how", ["column", "parameters"])
def test_groups_stay_together(cohort: Cohort, split: Split, recipe: Recipe, how: str) -> None:
    family = {subject: f"family {index // 3}" for index, subject in enumerate(sorted(split.table["subject_id"]))}
    related = Cohort(cohort.table.assign(family=cohort.table["subject_id"].map(family)))
    made = Split(split.table, {"parameters": {"group": "family"}})
    if how == "column":
        made = Split(split.table)
        made.table["group"] = made.table["subject_id"].map(family)
    inner = tuning_split(made, related, recipe)
    sides = [{family[subject] for subject in inner.subjects(name)} for name in ("train", "validation")]
    assert sides[1] and not sides[0] & sides[1]


def test_labels_are_divided_evenly(cohort: Cohort, split: Split, recipe: Recipe) -> None:
    subjects = sorted(cohort.table["subject_id"].unique())
    label = {subject: ["old", "young", "young"][index % 3] for index, subject in enumerate(subjects)}
    labelled = Cohort(cohort.table.assign(label=cohort.table["subject_id"].map(label)))
    inner = tuning_split(split, labelled, recipe.updated("task={name: multiclass}"), share=0.25)
    counts = pd.Series([label[subject] for subject in inner.subjects("validation")]).value_counts()
    assert len(inner.subjects("validation")) == pytest.approx(9, abs=1)
    assert counts["old"] == pytest.approx(3, abs=1)


def test_a_tuning_opens_no_file_of_a_held_out_subject_and_its_best_recipe_trains(
    cohort: Cohort, split: Split, store: Store, short: Recipe, tmp_path: Path
) -> None:
    held_out = split.subjects("validation")
    assert len(held_out) == 12
    gone = cohort.table["subject_id"].isin(held_out)
    blind = Cohort(cohort.table.assign(path=cohort.table["path"].mask(gone, str(tmp_path / "gone.nii.gz"))))
    tuned = tune(short, blind, split, tmp_path / "tuned", space=SPACE, n_trials=3, store=store)
    table = tuned.tuning.table
    assert len(table) == 3 and set(table["state"]) <= {"complete", "pruned"}
    assert table.iloc[0]["optim.lr"] == short.optim.lr and table.iloc[0]["backbone.features"] == 4
    assert tuned.best_score == table.loc[table["state"] == "complete", "score"].min()
    assert tuned.start_score == table.iloc[0]["score"]
    for place in range(3):
        run = Run(tuned.folder / f"trials/{place:03d}")
        assert not set(run.cohort.table["subject_id"]) & set(held_out)
        history = run.history
        assert table.loc[place, "score"] == pytest.approx(history["validation_mae"].iloc[-1])
        assert any(run.folder.glob("*.safetensors")) == (place == tuned.best_trial)
    assert {path.name for path in tuned.folder.iterdir()} >= {
        "best.yaml", "history.png", "split.csv", "split.json", "trials", "trials.csv", "tune.db", "tuning.html"
    }  # fmt: skip
    text = (tuned.folder / "best.yaml").read_text(encoding="utf-8")
    assert "neuroage train --config" in text and "no test score" in text
    best = Recipe.load(tuned.folder / "best.yaml")
    assert best.digest == tuned.recipe.digest and best.training.select == "last"
    run = train(best, cohort, split, tmp_path / "run", store=store)
    assert set(run.predictions["subject_id"]) == set(held_out)


def test_the_same_call_goes_on_after_a_stop_within_a_trial_from_its_last_epoch(
    cohort: Cohort, split: Split, store: Store, short: Recipe, tmp_path: Path
) -> None:
    class StopOnce(Observer):
        def __init__(self) -> None:
            self.epochs: list[int] = []
            self.first: list[int] = []

        def training(self, run: Run, first_epoch: int, n_epochs: int) -> None:
            self.first.append(first_epoch)

        def epoch(self, row: dict[str, Any]) -> None:
            self.epochs.append(row["epoch"])
            if len(self.epochs) == 3:  # in the middle of the second trial
                raise Interrupted(Run(tmp_path), 1, 2)

    observer = StopOnce()
    with pytest.raises(Interrupted):
        tune(short, cohort, split, tmp_path / "a", space=SPACE, n_trials=2, store=store, observer=observer)
    tuned = tune(short, cohort, split, tmp_path / "a", space=SPACE, n_trials=2, store=store, observer=observer)
    assert len(tuned.tuning.table) == 2 and observer.epochs == [1, 2, 1, 2] and observer.first == [0, 0, 1]
    whole = tune(short, cohort, split, tmp_path / "b", space=SPACE, n_trials=2, store=store)
    assert sorted(tuned.tuning.table["score"]) == pytest.approx(sorted(whole.tuning.table["score"]), rel=1e-6)
    with pytest.raises(RefusedError, match="other subjects"):
        tune(short.updated("seed=5"), cohort, split, tmp_path / "a", space=SPACE, n_trials=3, store=store)


def test_a_trial_that_diverges_is_recorded_with_its_reason(
    cohort: Cohort, split: Split, store: Store, short: Recipe, tmp_path: Path
) -> None:
    space: Space = {"optim.lr": Choices(values=(0.01, 1e30, 1e31, 1e32, 1e33))}
    recipe = short.updated("optim.clip_norm=null", "optim.warmup_epochs=0", "optim.ema=null", "training.epochs=1")
    table = tune(recipe, cohort, split, tmp_path / "a", space=space, n_trials=3, store=store).tuning.table
    failed = table[table["state"] == "failed"]
    assert table.iloc[0]["state"] == "complete" and len(failed) >= 1
    assert (failed["optim.lr"] >= 1e30).all() and failed["reason"].str.contains("NaN").all()


def test_the_score_is_of_the_epoch_that_the_recipe_would_keep(short: Recipe) -> None:
    from neuroage.training.tune import _Trials

    rows = [
        {"validation_mae": score, "inner_mae": inner}
        for score, inner in ((5.0, 9.0), (3.0, 8.0), (4.0, 7.0), (6.0, 8.5))
    ]
    scores = {}
    for select in ("last", "inner", "validation"):
        recipe = short.updated(f"training={{select: {select}, inner_fraction: 0.2}}")
        trials = _Trials(recipe, "mae", False, None, None, Path(), 1, None, Observer())  # type: ignore[arg-type]
        scores[select] = trials.score_of(rows)
    assert scores == {"last": 6.0, "inner": 4.0, "validation": 3.0}


def test_wrong_keys_are_said_before_anything_runs(cohort: Cohort, split: Split, short: Recipe, tmp_path: Path) -> None:
    wrong: Space = {"optim.lrr": Range(low=1e-4, high=1e-2), "seed": Choices(values=(0, 1))}
    with pytest.raises(UsageError, match="did you mean 'lr'") as caught:
        tune(short, cohort, split, tmp_path / "a", space=wrong, n_trials=1)
    assert "finds luck" in str(caught.value)
    assert not (tmp_path / "a").exists()


def made_tuning(*, higher: bool) -> Tuning:
    table = pd.DataFrame(
        {
            "trial": range(8),
            "state": ["complete", "failed", "complete", "pruned", "complete", "complete", "running", "complete"],
            "score": [7.0, math.nan, 5.5, 9.0, 5.0, 6.0, math.nan, 40.0],
            "steps": [10, 1, 10, 4, 10, 10, 2, 10],
            "seconds": 1.0,
            "reason": ["", "the loss became <NaN>", *[""] * 6],
            "optim.lr": [0.1 / (1 + k) for k in range(8)],
        }
    )
    if higher:
        table["score"] = 1 - table["score"] / 50
    return Tuning(table, ["optim.lr"], "auroc" if higher else "mae", higher, {"optim.lr": 1.0}, 40, 10)


@pytest.mark.parametrize("higher", [False, True])
def test_the_best_trials_are_best_first_whichever_direction(higher: bool, tmp_path: Path) -> None:
    tuning = made_tuning(higher=higher)
    assert tuning.best(3)["trial"].tolist() == [4, 2, 5]
    write_tuning(tuning, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"history.png", "importance.png", "trials.csv", "tuning.html"}
    page = (tmp_path / "tuning.html").read_text(encoding="utf-8")
    assert "no test score" in page and "&lt;NaN&gt;" in page and "<NaN>" not in page
    axes = draw_scores(tuning).axes[0]
    steps = axes.lines[0].get_ydata()
    assert list(steps) == sorted(steps, reverse=not higher)
    assert axes.get_ylim()[1] < 20 and len(draw_importance(tuning).axes[0].patches) == 1


def test_best_yaml_needs_no_further_key(short: Recipe) -> None:
    content = yaml.safe_load(yaml.safe_dump(short.model_dump(mode="json"))) | {"tune": {"optim.lr": [0.1, 0.2]}}
    assert Recipe.from_dict(content).digest == short.digest
