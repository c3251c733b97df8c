from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from neuroage.cohort import Cohort, Split
from neuroage.errors import InfeasibleError
from neuroage.imaging.store import Store
from neuroage.models.recompute import LEVELS
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run
from neuroage.training import loop
from neuroage.training.observer import Observer
from neuroage.training.train import train


class Notes(Observer):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def run_out_of_memory(monkeypatch: pytest.MonkeyPatch, *, after: int, until: Any) -> list[int]:
    """Let steps fail, from the one after `after`, as a full device does, until the recipe is small enough."""
    steps: list[int] = []
    step = loop.learn_from

    def failing(learner: Any, recipe: Recipe, *arguments: Any, **named: Any) -> Any:
        steps.append(recipe.optim.accumulate)
        if len(steps) > after and not until(recipe):
            learner.bare.head[-1].weight.data.add_(1.0)  # whatever a broken step has left behind
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return step(learner, recipe, *arguments, **named)

    monkeypatch.setattr(loop, "learn_from", failing)
    return steps


@pytest.mark.parametrize("after", [0, 9])  # before the first step; in the second epoch
def test_when_memory_runs_out_training_goes_on_in_smaller_parts(
    after: int, tmp_path: Path, cohort: Cohort, split: Split, store: Store, recipe: Recipe, monkeypatch: Any
) -> None:
    whole = train(recipe.updated("training.recompute=blocks"), cohort, split, tmp_path / "whole", store=store)
    notes = Notes()
    run_out_of_memory(monkeypatch, after=after, until=lambda small: small.training.recompute == "blocks")
    run = train(recipe, cohort, split, tmp_path / "run", store=store, observer=notes)
    assert run.complete
    assert run.about["plan"]["recompute"] == "blocks"
    assert any("Memory ran out" in text for text in notes.said)
    # Recomputation changes no number, so the interrupted training ends where an undisturbed one does.
    assert run.predictions["predicted_age"].tolist() == pytest.approx(
        whole.predictions["predicted_age"].tolist(), abs=1e-3
    )


def test_batches_are_split_once_nothing_more_can_be_recomputed(
    tmp_path: Path, cohort: Cohort, split: Split, store: Store, recipe: Recipe, monkeypatch: Any
) -> None:
    steps = run_out_of_memory(monkeypatch, after=0, until=lambda small: small.optim.accumulate >= 4)
    run = train(recipe, cohort, split, tmp_path / "run", store=store)
    assert run.about["plan"]["accumulate"] == 4
    assert run.about["plan"]["recompute"] == LEVELS[-1]
    assert steps[-1] == 4 and sorted(steps) == steps


def test_when_nothing_is_left_to_split_one_sentence_says_so_and_the_run_can_be_resumed(
    tmp_path: Path, cohort: Cohort, split: Split, store: Store, recipe: Recipe, monkeypatch: Any
) -> None:
    with monkeypatch.context() as patch:
        run_out_of_memory(patch, after=7, until=lambda small: False)
        with pytest.raises(InfeasibleError, match="one scan at a time"):
            train(recipe, cohort, split, tmp_path / "run", store=store)
    assert Run(tmp_path / "run").history["epoch"].tolist() == [1]
    assert train(recipe, cohort, split, tmp_path / "run", store=store, resume="required").complete


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    tmp_path: Path, cohort: Cohort, split: Split, store: Store, recipe: Recipe, monkeypatch: Any
) -> None:
    def broken(*arguments: Any, **named: Any) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(loop, "learn_from", broken)
    with pytest.raises(RuntimeError, match="something else"):
        train(recipe, cohort, split, tmp_path / "run", store=store)


def test_automatic_batch_size_and_recomputation_are_settled_and_kept(
    tmp_path: Path, cohort: Cohort, split: Split, store: Store, recipe: Recipe
) -> None:
    notes = Notes()
    run = train(
        recipe.updated("training.batch_size=auto"), cohort, split, tmp_path / "run", store=store, observer=notes
    )
    plan = run.about["plan"]
    assert (plan["batch_size"], plan["recompute"], plan["fits"]) == (8, "none", True)
    assert any("batch_size: auto is 8" in text for text in notes.said)
    assert run.recipe.training.batch_size == "auto"


class Waits(TorchDispatchMode):
    """Counts the operations that read a number off the device, for which the host must wait."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        # item(), float(), bool() of a tensor, and searches whose result has a size that only the device knows
        self.n += function.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "masked_select", "equal")
        return function(*arguments, **(named or {}))


def test_no_step_waits_for_the_device(
    tmp_path: Path, cohort: Cohort, split: Split, store: Store, recipe: Recipe, monkeypatch: Any
) -> None:
    counts = {}
    train_epoch = loop._train_epoch

    def counted(trainee: Any, learner: Any, state: Any) -> None:
        with Waits() as waits:
            train_epoch(trainee, learner, state)
        counts[len(trainee.train) // int(trainee.recipe.training.batch_size)] = waits.n

    monkeypatch.setattr(loop, "_train_epoch", counted)
    for batch_size in (18, 3):
        changes = [f"training.batch_size={batch_size}", "training.mixup=0.4", "optim.clip_norm=1", "training.epochs=1"]
        train(recipe.updated(*changes, "augment=[]"), cohort, split, tmp_path / str(batch_size), store=store)
    assert counts[2] == counts[12]  # what an epoch waits for does not grow with its steps


def test_where_torch_compile_cannot_the_network_runs_as_it_is(
    tmp_path: Path, cohort: Cohort, split: Split, store: Store, recipe: Recipe, monkeypatch: Any
) -> None:
    tried = []

    def no_compiler(graph: Any, examples: Any) -> Any:
        tried.append(graph)
        raise RuntimeError("no C++ compiler found")

    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **named: compile_module(self, backend=no_compiler, **named)
    )
    plain = train(recipe, cohort, split, tmp_path / "plain", store=store)
    compiled = train(recipe.updated("training.compile=true"), cohort, split, tmp_path / "compiled", store=store)
    assert tried
    assert compiled.predictions["predicted_age"].tolist() == plain.predictions["predicted_age"].tolist()
