"""Trainings that freeze, thaw, take over a backbone, or learn on features that are computed once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from neuroage.cohort import Cohort, Split
from neuroage.errors import RefusedError, UsageError
from neuroage.files import digest_file
from neuroage.imaging.store import Store
from neuroage.models.freezing import stages_of
from neuroage.models.network import Network, build_network
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run
from neuroage.training import scoring
from neuroage.training.checkpoint import load_checkpoint
from neuroage.training.initial import subjects_learnt_from
from neuroage.training.observer import Observer
from neuroage.training.train import train

PHASES = "finetune.unfreeze={0: head, 1: 0.5, 3: 1.0}"


class Notes(Observer):
    def __init__(self, stop_after: int = 0) -> None:
        self.said: list[str] = []
        self.stop_after = stop_after

    def note(self, text: str) -> None:
        self.said.append(text)

    def epoch(self, row: dict[str, Any]) -> None:
        if row["epoch"] == self.stop_after:
            raise Stopped


class Stopped(Exception):
    """Stands for a kill between two epochs."""


@pytest.fixture(autouse=True)
def no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "write_run_pages", lambda run: None)


@pytest.fixture
def go(cohort: Cohort, split: Split, store: Store, tmp_path: Path) -> Any:
    def call(recipe: Recipe, name: str, **named: Any) -> Run:
        return train(recipe, cohort, named.pop("split", split), tmp_path / name, store=store, **named)

    return call


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_checkpoint(run.weights_path)[0]["network"]


def initial(recipe: Recipe) -> Network:
    return build_network(recipe, spatial_dims=3, in_channels=1, n_outputs=1)


def changed(run: Run, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in weights(run).items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("ema", ["0.9", "null"])
def test_frozen_stages_leave_a_training_as_they_came_statistics_and_all(ema: str, recipe: Recipe, go: Any) -> None:
    recipe = recipe.updated("finetune.freeze=0.5", f"optim.ema={ema}", "optim.weight_decay=0.5", "training.epochs=2")
    before = {name: value.clone() for name, value in initial(recipe).state_dict().items()}
    moved = changed(go(recipe, "run"), before)
    assert not [name for name in moved if name.startswith("backbone.blocks.0")]
    assert {"backbone.blocks.1.0.weight", "backbone.blocks.1.1.running_mean", "head.1.weight"} <= moved


def test_each_phase_moves_what_it_trains_and_no_more(recipe: Recipe, go: Any) -> None:
    recipe = recipe.updated(PHASES, "training.epochs=4")
    before = {name: value.clone() for name, value in initial(recipe).state_dict().items()}
    stages = [stage.name for stage in stages_of(initial(recipe))]
    assert stages == ["blocks.0", "blocks.1", "head"]
    expected = {1: {"head"}, 2: {"head", "blocks.1"}, 3: {"head", "blocks.1"}, 4: set(stages)}
    seen = {}
    notes = Notes()

    def look(row: dict[str, Any]) -> None:
        tensors = load_checkpoint(Run(notes.folder).checkpoint_path)[0]["network"]
        moved = {name.removeprefix("backbone.") for name in tensors if not torch.equal(tensors[name], before[name])}
        seen[row["epoch"]] = {stage for stage in stages if any(name.startswith(stage) for name in moved)}

    notes.training = lambda run, first, n: setattr(notes, "folder", run.folder)  # type: ignore[method-assign]
    notes.epoch = look  # type: ignore[method-assign]
    go(recipe, "run", observer=notes)
    assert seen == expected
    assert "After 1 epoch, 2 of 3 stages train: blocks.1, head." in notes.said


@pytest.mark.parametrize("stop_after", [1, 2, 3])
@pytest.mark.parametrize("change", ["optim.name=adamw", "optim.name=sgd", "finetune={layer_decay: 0.6, head_lr: 3}"])
def test_a_training_resumed_in_any_phase_ends_as_one_that_never_stopped(
    stop_after: int, change: str, recipe: Recipe, go: Any
) -> None:
    recipe = recipe.updated(change, PHASES, "training.epochs=4", "training.train_eval_scans=0")
    with pytest.raises(Stopped):
        go(recipe, "stopped", observer=Notes(stop_after))
    resumed, whole = go(recipe, "stopped", resume="required"), go(recipe, "whole")
    assert not changed(resumed, weights(whole))
    assert resumed.predictions["predicted_age"].tolist() == whole.predictions["predicted_age"].tolist()


def test_norms_are_measured_anew_once_before_training(recipe: Recipe, go: Any) -> None:
    recipe = recipe.updated("finetune={reestimate_norms: true, freeze: 1}", "training.epochs=1")
    notes = Notes()
    moved = changed(go(recipe, "run", observer=notes), initial(recipe).state_dict())
    statistics = {name for name in moved if name.startswith("backbone.")}
    assert {name.rpartition(".")[2] for name in statistics} == {"running_mean", "running_var", "num_batches_tracked"}
    assert sum("measured anew on 36 training scans" in said for said in notes.said) == 1


def test_features_computed_once_give_the_same_training(recipe: Recipe, go: Any) -> None:
    recipe = recipe.updated("finetune.freeze=1", "augment=[]", "training.inner_fraction=0.2", "training.select=inner")
    recipe = recipe.updated("head={hidden: [6], dropout: 0.3}", "training.epochs=4")
    notes = Notes()
    without = go(recipe, "without")
    cached = go(recipe.updated("finetune.cache_features=true"), "cached", observer=notes)
    assert cached.predictions["predicted_age"].tolist() == pytest.approx(
        without.predictions["predicted_age"].tolist(), abs=1e-3
    )
    first, second = weights(without), weights(cached)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=1e-4, rtol=1e-4)
    assert any("features of" in said and " s, once" in said for said in notes.said)


def test_a_training_on_features_resumes_exactly(recipe: Recipe, go: Any) -> None:
    recipe = recipe.updated("finetune={freeze: 1, cache_features: true}", "augment=[]")
    with pytest.raises(Stopped):
        go(recipe, "stopped", observer=Notes(2))
    assert not changed(go(recipe, "stopped", resume="required"), weights(go(recipe, "whole")))


def test_what_stands_against_features_computed_once_is_told_together(recipe: Recipe, go: Any) -> None:
    wrong = recipe.updated("finetune={freeze: 1, cache_features: true}", "training.mixup=0.4", "pool=attention")
    with pytest.raises(UsageError) as error:
        go(wrong, "run")
    assert all(key in str(error.value) for key in ("augment", "training.mixup", "pool"))
    with pytest.raises(UsageError, match="freeze: 1"):
        recipe.updated("finetune.cache_features=true")


def test_a_stage_that_is_not_there_is_told_before_anything_is_written(recipe: Recipe, go: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"finetune\.freeze\.0.*blocks\.1"):
        go(recipe.updated("finetune.freeze=[block.1]"), "run")
    assert not (tmp_path / "run").exists()


def test_a_backbone_is_taken_over_with_its_statistics_and_the_head_is_new(
    recipe: Recipe, go: Any, tmp_path: Path
) -> None:
    parent = go(recipe.updated("seed=3"), "parent")
    notes = Notes()
    changes = [
        "modality=tof",
        "task={name: soft_label_age}",
        "training.epochs=1",
        "finetune.freeze=1",
        f"finetune.init_from={parent.folder}",
    ]
    child = go(recipe.updated(*changes), "child", observer=notes)
    theirs, ours = weights(parent), weights(child)
    backbone = {name for name in ours if name.startswith("backbone.")}
    assert all(torch.equal(ours[name], theirs[name]) for name in backbone)
    assert ours["head.1.weight"].shape != theirs["head.1.weight"].shape
    about = child.about["init_from"]
    assert about["run"] == "parent" and about["recipe_digest"] == parent.about["recipe_digest"]
    assert about["weights_sha256"] == digest_file(parent.weights_path)
    assert any("parent" in said and "head is new" in said for said in notes.said)
    grandchild = go(recipe.updated("training.epochs=1", f"finetune.init_from={child.folder}"), "grandchild")
    assert subjects_learnt_from(parent) <= set(grandchild.about["init_from"]["trained_on"])


def test_once_begun_a_training_does_without_the_run_it_came_from(recipe: Recipe, go: Any) -> None:
    parent = go(recipe.updated("seed=3", "training.epochs=1"), "parent")
    recipe = recipe.updated(f"finetune.init_from={parent.folder}", "finetune.freeze=0.5")
    whole = go(recipe, "whole")
    with pytest.raises(Stopped):
        go(recipe, "child", observer=Notes(1))
    shutil.rmtree(parent.folder)
    assert not changed(go(recipe, "child", resume="required"), weights(whole))
    with pytest.raises(UsageError, match="does not exist"):
        go(recipe, "another")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("backbone={name: cnn, n_blocks: 3, features: 4}", r"n_blocks 2 there, 3 here.*--set 'backbone="),
        ("backbone={name: sfcn}", "name cnn there, sfcn here"),
        ("prepare.fractions=[-0.5, 0.5]", "input channels 1 there, 2 here.*[Pp]repare.*prepare.fractions"),
    ],
)
def test_another_backbone_is_refused_with_the_difference_and_its_remedy(
    change: str, said: str, recipe: Recipe, go: Any, tmp_path: Path, cohort: Cohort, split: Split
) -> None:
    parent = Run.create(tmp_path / "parent", recipe, cohort, split, fold=0)
    parent.update(status="complete")
    with pytest.raises(UsageError, match=said):
        go(recipe.updated(change, f"finetune.init_from={parent.folder}"), "child")


def test_a_parent_that_learnt_from_held_out_subjects_is_refused_without_naming_them(
    recipe: Recipe, go: Any, tmp_path: Path, cohort: Cohort, split: Split
) -> None:
    table = split.table.copy()
    swapped = [*split.subjects("train")[:2], *split.subjects("validation")[:2]]
    for subject in swapped:
        row = table["subject_id"] == subject
        is_train = bool((table.loc[row, "set"] == "train").all())
        table.loc[row, "set"], table.loc[row, "fold"] = ("validation", 0) if is_train else ("train", -1)
    parent = Run.create(tmp_path / "parent", recipe, cohort, Split(table), fold=0)
    parent.update(status="complete")
    with pytest.raises(RefusedError, match="trained on 2 of the 12 subjects") as error:
        go(recipe.updated(f"finetune.init_from={parent.folder}"), "child")
    assert not any(subject in str(error.value) for subject in swapped)
    assert not (tmp_path / "child").exists()


def test_of_a_parent_with_members_the_one_with_the_same_fold_is_taken(
    recipe: Recipe, go: Any, tmp_path: Path, cohort: Cohort, split: Split
) -> None:
    from neuroage.training.initial import find_parent

    parent = Run.create_parent(tmp_path / "parent", recipe, cohort, split)
    for fold in (0, 1):
        Run.create(parent.member_folder(f"fold{fold}"), recipe, cohort, split, fold=fold).update(status="complete")
    recipe = recipe.updated(f"finetune.init_from={parent.folder}")
    assert [find_parent(recipe, fold).name for fold in (0, 1, 7)] == ["fold0", "fold1", "fold0"]
