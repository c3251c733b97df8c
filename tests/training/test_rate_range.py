"""The learning-rate range test, on losses that are known and on the small cohort."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neuroage.cohort import Cohort, Split
from neuroage.errors import InfeasibleError, UsageError
from neuroage.imaging.store import Store
from neuroage.runs.recipe import Recipe
from neuroage.training import rate_range
from neuroage.training.rate_range import draw_range, find_rate, read_range

RATES = np.geomspace(1e-6, 1, 121)  # twenty steps a decade


def made_losses(noise: float = 0.0) -> np.ndarray:
    """Losses that fall by 1 around a rate of 1e-3, and explode from 1e-1 on; batches jump by `noise`."""
    untrained = 2 + np.random.default_rng(0).normal(0, noise, len(RATES))
    fall = 1 / (1 + np.exp(-4 * (np.log10(RATES) + 3)))
    return np.stack([untrained - fall + np.maximum(0, 20 * (np.log10(RATES) + 1)), untrained], axis=1)


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_the_suggestion_is_where_half_of_the_fall_is_done_however_batches_jump(noise: float) -> None:
    found = read_range(RATES, made_losses(noise), diverged=True)
    assert found.suggested is not None
    assert 5e-4 < found.suggested < 2e-3
    assert 1e-2 < found.lowest < 2e-1
    assert "optim.lr=" in found.words and found.diverged


def test_nothing_is_suggested_where_the_loss_never_falls() -> None:
    found = read_range(RATES, np.stack([2 + RATES, np.full(len(RATES), 2.0)], axis=1), diverged=False)
    assert found.suggested is None
    assert "at no rate" in found.words


def test_a_network_is_asked_at_every_rate_and_nothing_is_left(
    recipe: Recipe, cohort: Cohort, split: Split, store: Store, tmp_path: Path
) -> None:
    options = {"n_steps": 40, "lowest": 1e-5, "highest": 30.0, "store": store}
    found = find_rate(recipe, cohort, split, **options)
    again = find_rate(recipe, cohort, split, **options)
    assert found.table.equals(again.table)
    assert found.table["learning_rate"].is_monotonic_increasing
    assert found.suggested is not None and 1e-5 < found.suggested < found.lowest < 30
    first = found.table.iloc[0]
    assert first["loss"] == pytest.approx(first["untrained_loss"], rel=1e-5)  # nothing is learnt before the first step
    draw_range(found, tmp_path / "range.png")
    assert (tmp_path / "range.png").stat().st_size > 5000


def test_it_ends_when_the_loss_explodes(recipe: Recipe, cohort: Cohort, split: Split, store: Store) -> None:
    sgd = recipe.updated("optim.name=sgd", "optim.clip_norm=null", "augment=[]")
    found = find_rate(sgd, cohort, split, lowest=1e-5, highest=1e6, n_steps=60, store=store)
    assert found.diverged and len(found.table) < 60


def test_wrong_ranges_are_refused(recipe: Recipe, cohort: Cohort, split: Split, store: Store) -> None:
    for options in ({"lowest": 1.0, "highest": 0.1}, {"lowest": 0.0}, {"n_steps": 3}):
        with pytest.raises(UsageError):
            find_rate(recipe, cohort, split, store=store, **options)


def test_a_range_that_begins_too_high_says_so(
    recipe: Recipe, cohort: Cohort, split: Split, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = rate_range.learn_from
    monkeypatch.setattr(rate_range, "learn_from", lambda *args, **named: step(*args, **named) * float("nan"))
    with pytest.raises(InfeasibleError, match=r"not finite.*--from"):
        find_rate(recipe, cohort, split, store=store)
