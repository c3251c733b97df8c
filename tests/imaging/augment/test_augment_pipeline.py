"""The pipeline: what is drawn depends on the scan alone, and a record replays exactly."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from neuroage.errors import DataError
from neuroage.imaging.augment import Pipeline, augmentation_names, parse_steps
from neuroage.imaging.augment import pipeline as pipeline_module

SHAPE = (11, 12, 13)
ORDER = ["flip", "affine", "bias_field", "noise", "gamma", "binning"]


def make(p=0.7, seed=3, names=ORDER, **options):
    return Pipeline(parse_steps([{"step": name, "p": p} for name in names]), seed, **options)


def scans(n, shape=SHAPE):
    return torch.randn(n, 1, *shape, generator=torch.Generator().manual_seed(1))


def test_the_pipeline_here_holds_every_step():
    assert sorted(ORDER) == augmentation_names()


@pytest.mark.parametrize("shape", [SHAPE, (12, 9)], ids=["3D", "2D"])
def test_a_record_replays_exactly_also_through_json(shape):
    batch, pipeline = scans(4, shape), make()
    before = batch.clone()
    augmented, record = pipeline(batch, [(2, index) for index in range(4)])
    assert torch.equal(batch, before)
    assert torch.equal(make(seed=99).replay(batch, json.loads(json.dumps(record))), augmented)
    assert {name for one in record for name in one} <= set(ORDER) and any(record)


def test_a_scan_gets_the_same_whatever_its_batch():
    batch, pipeline = scans(6), make()
    keys = [(1, index) for index in (7, 3, 11, 0, 5, 2)]
    together, record = pipeline(batch, keys)
    order = [4, 0, 5, 2, 1, 3]
    shuffled, _ = pipeline(batch[order], [keys[index] for index in order])
    assert torch.equal(shuffled, together[order])
    for index in range(6):
        alone, drawn = pipeline(batch[index : index + 1], [keys[index]])
        assert torch.equal(alone[0], together[index]) and drawn == [record[index]]


def test_two_ranks_draw_what_one_draws():
    pipeline, keys = make(), [(0, index) for index in range(10)]
    whole = pipeline.draw(keys, SHAPE)
    first, second = pipeline.draw(keys[0::2], SHAPE), make().draw(keys[1::2], SHAPE)
    assert [one for pair in zip(first, second, strict=True) for one in pair] == whole


def test_scans_epochs_and_seeds_each_have_their_own_draw():
    draws = [
        make(p=1, seed=seed).draw([(epoch, scan)], SHAPE)[0] for seed in (0, 1) for epoch in (0, 1) for scan in (0, 1)
    ]
    assert len({json.dumps(one) for one in draws}) == 8
    assert len({json.dumps(one["noise"]["seed"]) for one in draws}) == 8


def test_leaving_a_step_out_leaves_the_draws_of_the_others():
    keys = [(0, index) for index in range(5)]
    full, fewer = make().draw(keys, SHAPE), make(names=[name for name in ORDER if name != "affine"]).draw(keys, SHAPE)
    assert [{name: one[name] for name in one if name != "affine"} for one in full] == fewer


def test_a_step_named_twice_draws_twice():
    pipeline = make(p=1, names=["noise", "gamma", "noise"])
    record = pipeline.draw([(0, 0)], SHAPE)[0]
    assert len(record) == 3 and record["noise"] != record["2_noise"]


def test_p_zero_changes_nothing_and_gives_new_memory():
    batch = scans(2)
    same, record = make(p=0)(batch, [(0, 0), (0, 1)])
    assert torch.equal(same, batch) and same.data_ptr() != batch.data_ptr() and record == [{}, {}]


def test_flip_and_affine_together_are_one_interpolation(monkeypatch):
    calls = []
    real = pipeline_module.move
    monkeypatch.setattr(pipeline_module, "move", lambda *args, **options: calls.append(1) or real(*args, **options))
    batch, steps = scans(2), parse_steps([{"step": "flip", "p": 1}, {"step": "affine", "p": 1, "sharpness": 0}])
    merged, record = Pipeline(steps)(batch, [(0, 0), (0, 1)])
    assert len(calls) == 1
    one_by_one = batch
    for step in steps:
        one_by_one = step.apply(one_by_one, [drawn[step.step] for drawn in record])
    torch.testing.assert_close(merged, one_by_one, atol=2e-3, rtol=0)


def test_a_lone_flip_is_exact_although_affine_is_in_the_recipe():
    batch = scans(1)
    assert torch.equal(make().replay(batch, [{"flip": {"axes": [0]}}]), batch.flip(2))


def test_spacing_reaches_the_shift():
    steps = parse_steps(
        [{"step": "affine", "p": 1, "degrees": 0, "scales": 0, "translation_mm": [8, 8], "sharpness": 0}]
    )
    batch = scans(1)
    moved, record = Pipeline(steps, spacing_mm=4)(batch, [(0, 0)])
    assert record[0]["affine"]["spacing_mm"] == [4, 4, 4]
    torch.testing.assert_close(moved[..., 3:-1, 3:-1, 3:-1], batch[..., 1:-3, 1:-3, 1:-3], atol=1e-4, rtol=0)


def test_a_record_of_another_pipeline_is_refused():
    with pytest.raises(DataError, match="affine"):
        make(names=["noise"]).replay(scans(1), [{"affine": {}}])


def test_draws_are_pinned():
    """Runs recorded by one version are replayed by the next: the stream of draws must not drift."""
    record = make(p=1, seed=3, names=["gamma"]).draw([(1, 2)], SHAPE)
    assert record == [{"gamma": {"gamma": pytest.approx(0.969123399695621, abs=1e-12)}}]


def run_python(code):
    subprocess.run([sys.executable, "-c", code], check=True)


def test_neither_torchio_nor_simpleitk_is_needed_and_torch_not_to_list_the_steps():
    run_python(
        "import sys; from neuroage.imaging.augment import augmentation_names, Pipeline, parse_steps;"
        "Pipeline(parse_steps([{'step': name} for name in augmentation_names()]));"
        "assert not {'torchio', 'SimpleITK', 'monai'} & set(sys.modules)"
    )
    run_python(
        "import sys; from neuroage.imaging.augment import augmentation_names; augmentation_names();"
        "assert 'torch' not in sys.modules"
    )


def test_draws_have_the_ranges_of_the_recipe():
    record = make(p=1).draw([(0, index) for index in range(400)], SHAPE)
    degrees = np.array([one["affine"]["degrees"] for one in record])
    assert np.abs(degrees).max() <= 10 and np.abs(degrees.mean(0)).max() < 1 and np.abs(degrees).max() > 9
    assert {one["binning"]["method"] for one in record} == {"equal_width", "quantile"}
