import numpy as np
import pytest
import torch

from neuroage.cohort import Cohort
from neuroage.imaging.batches import VolumeSet, age_weights, plan_epoch, read_ahead
from neuroage.imaging.store import Store, prepare_scans
from neuroage.runs.recipe import Recipe

PREPARE = Recipe.from_dict({"prepare": {"spacing_mm": 8.0, "size": [12, 12, 12]}}).prepare


@pytest.fixture(scope="module")
def volumes(cohort: Cohort, store: Store) -> list:
    return list(prepare_scans(cohort.scans()[:7], PREPARE, store).volumes.values())


def test_a_batch_holds_the_prepared_intensities(volumes: list) -> None:
    batch = VolumeSet(volumes).batch([3, 0])
    assert batch.shape == (2, 1, 12, 12, 12)
    assert batch.dtype == torch.float32
    np.testing.assert_allclose(batch[0].numpy(), volumes[3].load(), atol=1e-6)


def test_resident_and_streamed_volumes_give_the_same_batches(volumes: list) -> None:
    plan = [np.array([0, 1, 2]), np.array([6, 5]), np.array([3])]
    resident, streamed = VolumeSet(volumes, resident=True), VolumeSet(volumes, resident=False)
    assert (resident.resident, streamed.resident) == (True, False)
    for a, b in zip(resident.batches(plan), streamed.batches(plan), strict=True):
        assert torch.equal(a, b)


def test_resident_volumes_keep_their_compact_type(volumes: list) -> None:
    stored = VolumeSet(volumes, resident=True)._stored
    assert stored is not None
    assert stored.dtype == torch.uint8


@pytest.mark.parametrize("n_scans", [1, 7, 8, 9, 225])
def test_an_epoch_shows_every_scan_once_in_even_batches(n_scans: int) -> None:
    plan = plan_epoch(n_scans, 8, seed=1)
    sizes = [len(batch) for batch in plan]
    assert sorted(np.concatenate(plan)) == list(range(n_scans))
    assert max(sizes) <= 8
    assert max(sizes) - min(sizes) <= 1


def test_epochs_differ_and_are_repeatable() -> None:
    assert np.concatenate(plan_epoch(50, 8, 1)).tolist() == np.concatenate(plan_epoch(50, 8, 1)).tolist()
    assert np.concatenate(plan_epoch(50, 8, 1)).tolist() != np.concatenate(plan_epoch(50, 8, 2)).tolist()


def test_scans_are_drawn_as_often_as_their_weight_says() -> None:
    weights = np.array([0.25, 0.25, 0.5, 1.0, 3.0])
    counts = (
        sum(np.bincount(np.concatenate(plan_epoch(5, 2, seed, weights)), minlength=5) for seed in range(2000)) / 2000
    )
    np.testing.assert_allclose(counts, weights, atol=0.05)
    for seed in range(20):  # systematic: never more than one off the weight
        once = np.bincount(np.concatenate(plan_epoch(5, 2, seed, weights)), minlength=5)
        assert (np.abs(once - weights) <= 1).all()


def test_full_balance_makes_every_age_equally_frequent() -> None:
    ages = np.concatenate([np.full(80, 25.0), np.full(20, 70.0)])
    weights = age_weights(ages, 1.0)
    assert weights[:80].sum() == pytest.approx(weights[80:].sum(), rel=0.01)
    assert weights.mean() == pytest.approx(1)
    np.testing.assert_allclose(age_weights(ages, 0.0), 1)
    half = age_weights(ages, 0.5)
    assert weights[80] > half[80] > 1


def test_reading_ahead_keeps_the_order_and_passes_errors_on() -> None:
    assert list(read_ahead(lambda item: item * 2, range(5))) == [0, 2, 4, 6, 8]
    with pytest.raises(ZeroDivisionError):
        list(read_ahead(lambda item: 1 / item, [1, 0]))
