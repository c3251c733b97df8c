from __future__ import annotations

import numpy as np
import pytest

from neuroage.errors import UsageError
from neuroage.runs.recipe import Recipe
from neuroage.training.steps import plan_steps

N_SCANS = 29


def recipe(**training: object) -> Recipe:
    return Recipe.from_dict({"training": {"batch_size": 8, **training}})


@pytest.mark.parametrize("n_processes", [1, 2, 3])
def test_every_scan_is_learnt_from_once_an_epoch_over_all_processes(n_processes: int) -> None:
    parts = [plan_steps(recipe(), N_SCANS, 3, rank=rank, n_processes=n_processes) for rank in range(n_processes)]
    learnt = [step.scans[step.own] for steps in parts for step in steps]
    assert sorted(np.concatenate(learnt)) == list(range(N_SCANS))
    assert len({len(steps) for steps in parts}) == 1


@pytest.mark.parametrize("n_processes", [2, 4])
def test_mixtures_do_not_depend_on_the_number_of_processes(n_processes: int) -> None:
    mixed = recipe(mixup=0.4)
    whole = [_pairs(step) for step in plan_steps(mixed, N_SCANS, 0)]
    parts = [plan_steps(mixed, N_SCANS, 0, rank=rank, n_processes=n_processes) for rank in range(n_processes)]
    together = [set().union(*(_pairs(step) for step in steps)) for steps in zip(*parts, strict=True)]
    assert together == whole
    assert any(step.partners is not None for step in parts[0])


def _pairs(step) -> set[tuple[int, int, float]]:
    partners = step.own if step.partners is None else step.partners
    return {(int(a), int(b), step.share) for a, b in zip(step.scans[step.own], step.scans[partners], strict=True)}


def test_a_process_reads_no_scan_that_it_does_not_need() -> None:
    for step in plan_steps(recipe(mixup=0.4), N_SCANS, 0, rank=1, n_processes=4):
        needed = set(step.own) | set(() if step.partners is None else step.partners)
        assert needed == set(range(len(step.scans)))


def test_more_processes_than_scans_in_a_step_are_refused() -> None:
    with pytest.raises(UsageError, match=r"batch_size"):
        plan_steps(recipe(batch_size=2), N_SCANS, 0, rank=0, n_processes=3)
