import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scale_cases import write_noise

from neuroage.cli.scale import choose_workers
from neuroage.imaging.workers import Workers
from neuroage.runs.recipe import Recipe

RAW = Recipe.from_dict({"prepare": {"registration": {}}}).prepare
PLAIN = Recipe().prepare


@pytest.fixture
def small(tmp_path: Path) -> tuple[str, ...]:
    """Words that prepare a cohort of seven scans into a store of its own."""
    write_noise(tmp_path, 7, size=24).table.to_csv(tmp_path / "cohort.csv", index=False)
    (tmp_path / "recipe.yaml").write_text("modality: t1\nprepare: {spacing_mm: 8.0, size: [12, 12, 12]}\n")
    return "prepare", "--data", "cohort.csv", "--store", "shared", "--config", "recipe.yaml", "--json"


def test_the_shares_of_an_array_are_gathered_by_a_last_command(
    type_in: Callable[..., Any], small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [json.loads(type_in(*small, "--shard", f"{index}/2").out) for index in (1, 2)]
    for name, value in {"ID": 2, "MIN": 1, "MAX": 3, "COUNT": 3}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    again = json.loads(type_in(*small, "--shard", "auto").out)
    last = json.loads(type_in(*small).out)
    assert [part["n_made"] for part in parts] == [4, 3]
    assert (again["n_prepared"], again["n_made"]) == (2, 0)
    assert (last["n_prepared"], last["n_made"], last["failures"]) == (7, 0, {})


def test_failures_are_listed_in_a_table_also_when_they_are_too_many(
    type_in: Callable[..., Any], small: tuple[str, ...], tmp_path: Path
) -> None:
    broken = tmp_path / "sub-03_T1w.nii"
    whole = broken.read_bytes()
    broken.write_bytes(b"nothing")
    failed = type_in(*small, "--failures", "failed.csv")
    assert failed.code == 3 and "sub-03_T1w.nii" in failed.err
    table = pd.read_csv(tmp_path / "failed.csv")
    assert list(table["scan_id"]) == ["sub-03"] and "cannot be read" in table["reason"][0]
    broken.write_bytes(whole)
    mended = json.loads(type_in(*small, "--failures", "failed.csv").out)
    assert (mended["n_made"], mended["failures"]) == (1, {}), "the failed one alone"
    assert pd.read_csv(tmp_path / "failed.csv").empty


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--shard", "3/2"), "i/n"),
        (("--scheduler", "tcp://a:1", "--workers", "2"), "dask worker"),
        (("--failures", "cohort.csv"), "one of the inputs"),
        (("--failures", "failed.txt"), "--failures failed.txt"),
        (("--register-to", "t1"), "through themselves"),
        (("--register-to", "flairr"), "no flairr scan to register through"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    type_in: Callable[..., Any], small: tuple[str, ...], options: tuple[str, ...], word: str
) -> None:
    said = type_in(*small, *options)
    assert said.code == 2 and word in said.err


def test_threads_resample_and_processes_do_the_long_steps() -> None:
    assert choose_workers(PLAIN, None, "", None) == Workers()
    assert choose_workers(RAW, None, "", None) == Workers(processes=True)
    assert choose_workers(PLAIN, 4, "", None) == Workers(4, processes=True)
    assert choose_workers(PLAIN, None, "", 3.0) == Workers(processes=True, memory_gb=3.0)
    assert choose_workers(RAW, None, "tcp://a:1", None) == Workers(scheduler="tcp://a:1")
