import builtins
import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neuroage.cohort import Cohort
from neuroage.errors import DataError
from neuroage.imaging import batches
from neuroage.imaging.batches import VolumeSet, plan_epoch, read_ahead
from neuroage.imaging.preparation import prepare_scans
from neuroage.imaging.store import Store
from neuroage.models.tasks._ages import age_weights
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


def test_stopping_early_waits_for_one_reading_and_leaves_no_thread() -> None:
    started: list[int] = []
    before = threading.active_count()
    ahead = read_ahead(lambda item: started.append(item) or item, range(100))
    assert [next(ahead), next(ahead)] == [0, 1]
    ahead.close()
    assert len(started) <= 3
    assert threading.active_count() == before


def count_opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    opened: list[str] = []
    usual = builtins.open

    def counting(file: Any, *arguments: Any, **options: Any) -> Any:
        if str(file).endswith((".npy", ".json")):
            opened.append(str(file))
        return usual(file, *arguments, **options)

    monkeypatch.setattr(builtins, "open", counting)
    return opened


def test_a_streamed_batch_opens_each_of_its_files_once_and_a_set_only_its_first(
    volumes: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = count_opened(monkeypatch)
    streamed = VolumeSet(volumes * 1000, resident=False)
    assert opened == [volumes[0].file]
    del opened[:]
    streamed.batch([5, 2, 8])
    assert opened == [volumes[number].file for number in (5, 2, 1)]


def test_what_a_streamed_epoch_holds_does_not_grow_with_the_number_of_scans(volumes: list) -> None:
    def held_bytes(n_scans: int) -> int:
        streamed = VolumeSet((volumes * n_scans)[:n_scans], resident=False)
        tracemalloc.start()
        for _ in streamed.batches([[index, index + 1] for index in range(0, n_scans - 1, 2)]):
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    held_bytes(10)
    few, many = held_bytes(20), held_bytes(2000)
    volume_bytes = 12**3
    assert many < few + 20 * volume_bytes + 300_000  # the plan itself: a list of 1,000 lists


def test_a_stored_volume_is_a_few_hundred_bytes_and_keeps_its_record_on_disk(volumes: list) -> None:
    tracemalloc.start()
    many = [replace(volume, file=volume.file + "") for volume in volumes for _ in range(100)]
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert size / len(many) < 400
    assert many[0].record["native_size"] == [24, 24, 24]


def test_small_sets_are_kept_and_large_ones_streamed(volumes: list, monkeypatch: pytest.MonkeyPatch) -> None:
    assert VolumeSet(volumes).resident
    monkeypatch.setattr(batches, "RESIDENT_CPU_BYTES", len(volumes) * 12**3)
    assert not VolumeSet(volumes).resident
    assert VolumeSet(volumes[:-1]).resident


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("damage", ["cut", "gone", "other"])
def test_a_damaged_stored_volume_is_an_error_that_names_it(
    volumes: list, tmp_path: Path, resident: bool, damage: str
) -> None:
    path = tmp_path / "damaged.npy"
    if damage == "cut":
        path.write_bytes(volumes[1].path.read_bytes()[:-7])
    elif damage == "other":
        np.save(path, np.zeros((1, 3, 3, 3), np.uint8))
    with pytest.raises(DataError, match=r"damaged\.npy"):
        for _ in VolumeSet([volumes[0], replace(volumes[1], file=str(path))], resident=resident).batches([[0], [1]]):
            pass
