"""Scores of maps against regions: known answers, and maps that know nothing."""

from __future__ import annotations

import numpy as np
import pytest

from neuroage.analysis.localisation import MEASURES, blob, measures, score_maps, widened
from neuroage.errors import DataError


def square(size: tuple[int, ...], low: tuple[int, ...], length: int) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[tuple(slice(start, start + length) for start in low)] = True
    return mask


@pytest.mark.parametrize("size", [(20, 30), (16, 12, 10)])
def test_a_map_that_is_the_region_scores_one_in_every_measure(size: tuple[int, ...]) -> None:
    mask = square(size, (2,) * len(size), 5)
    assert measures(mask.astype(np.float32), mask, mask) == dict.fromkeys(MEASURES, 1.0)


def test_measures_of_a_map_have_the_values_worked_out_by_hand() -> None:
    mask = square((10, 10), (0, 0), 4)  # 16 pixels
    evidence = np.zeros((10, 10), dtype=np.float32)
    evidence[2:6, 0:4] = 1.0  # 16 pixels, 8 of them inside
    evidence[9, 9] = 2.0  # the maximum, outside
    found = measures(evidence, mask, mask)
    assert found["pointing_game"] == 0
    assert found["energy"] == pytest.approx(8 / 18)
    assert found["iou_50"] == pytest.approx(8 / 25)
    assert found["iou_75"] == 0
    assert (found["found_10"], found["found_25"], found["found_50"]) == (1, 1, 0)


def test_a_map_without_evidence_finds_nothing_and_equal_maxima_share_a_hit() -> None:
    mask = square((8, 8), (0, 0), 4)
    assert set(measures(np.zeros((8, 8), dtype=np.float32), mask, mask).values()) == {0.0}
    assert measures(np.ones((8, 8), dtype=np.float32), mask, mask)["pointing_game"] == pytest.approx(0.25)


def test_the_tolerance_widens_a_region_by_its_distance_in_pixels() -> None:
    mask = square((21, 21), (10, 10), 1)
    near = widened(mask, 3.0)
    assert near[10, 13] and near[12, 12] and not near[10, 14] and not near[13, 13]
    assert widened(mask, 0.5) is mask


def test_the_centre_prior_is_a_blob_of_a_quarter_of_each_side_at_the_centre() -> None:
    drawn = blob((40, 80), np.array([0.5, 0.5]))
    assert drawn[19:21, 39:41].min() > 0.99
    assert drawn[29, 40] / drawn[20, 40] == pytest.approx(np.exp(-0.5), rel=0.1)
    assert drawn[20, 59] / drawn[20, 40] == pytest.approx(np.exp(-0.5), rel=0.1)


def test_random_maps_hit_as_often_as_the_region_is_large_and_central_regions_flatter_the_centre() -> None:
    rng = np.random.default_rng(0)
    size = (32, 32)
    masks = {f"s{i}": square(size, tuple(rng.integers(0, 24, 2)), 8) for i in range(60)}
    maps = {name: rng.random(size).astype(np.float32) for name in masks}
    table = score_maps(maps, masks, tolerance=0).table.set_index("measure")
    assert table.loc["pointing_game", "random"] == pytest.approx(64 / 1024, abs=0.03)
    assert table.loc["pointing_game", "low"] < 64 / 1024 < table.loc["pointing_game", "high"]
    central = {f"s{i}": square(size, (12, 12), 8) for i in range(8)}
    table = score_maps({name: maps[name] for name in central}, central).table.set_index("measure")
    assert table.loc["pointing_game", "centre"] == 1
    assert table.loc["pointing_game", "above_centre"] < 0


def test_intervals_count_groups_not_images_and_stay_open_where_all_agree() -> None:
    mask = square((16, 16), (2, 2), 5)
    maps = {f"s{i}": mask.astype(np.float32) for i in range(20)}
    masks = dict.fromkeys(maps, mask)
    alone = score_maps(maps, masks).table.set_index("measure").loc["pointing_game"]
    grouped = score_maps(maps, masks, groups={f"s{i}": f"p{i % 10}" for i in range(20)}).table
    grouped = grouped.set_index("measure").loc["pointing_game"]
    assert alone["low"] == pytest.approx(0.025 ** (1 / 20)) and alone["high"] == 1
    assert grouped["low"] == pytest.approx(0.025 ** (1 / 10))


def test_labels_have_rows_of_their_own_and_the_same_seed_gives_the_same_scores() -> None:
    rng = np.random.default_rng(1)
    mask = square((16, 16), (2, 2), 5)
    maps = {f"s{i}": rng.random((16, 16)).astype(np.float32) for i in range(12)}
    masks, labels = dict.fromkeys(maps, mask), {f"s{i}": "ab"[i % 2] for i in range(12)}
    first, second = (score_maps(maps, masks, labels=labels, seed=3) for _ in range(2))
    assert first.table.equals(second.table)
    assert first.table["label"].unique().tolist() == ["all", "a", "b"]
    assert first.images["pointing_game_random"].nunique() > 1
    assert first.to_dict()["tolerance"] == first.tolerance


def test_maps_without_regions_and_regions_of_another_shape_are_refused() -> None:
    mask = square((8, 8), (0, 0), 2)
    with pytest.raises(DataError, match="None of 1 maps"):
        score_maps({"a": np.ones((8, 8), np.float32)}, {"b": mask})
    with pytest.raises(DataError, match="a map of shape"):
        score_maps({"a": np.ones((9, 8), np.float32)}, {"a": mask})
