"""`neuroage plan` as users type it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neuroage.cli.plan import in_time, parse_size
from neuroage.cohort import Cohort, Split
from neuroage.errors import UsageError

SMALL = ("--config", "t1_small", "--set", "prepare.size=[16, 16, 16]", "--set", "training.precision=fp32")


@pytest.fixture
def run(type_in: Callable[..., tuple[int, str, str]]) -> Any:
    """Type `neuroage plan …`; words of stdout are one space apart."""

    def call(*words: object) -> tuple[int, str, str]:
        code, out, err = type_in("plan", *words)
        return code, " ".join(out.split()), err

    return call


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("8GiB", 8 << 30),
        ("8G", 8 << 30),
        ("8GB", 8 * 10**9),
        ("512MiB", 512 << 20),
        ("0.5 tib", 1 << 39),
        ("1500000kb", 1_500_000_000),
        ("1073741824", 1 << 30),
    ],
)
def test_sizes_are_read_as_written(text: str, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize("text", ["8 gigs", "", "GiB", "-4GiB", "8Gib.", "8", "100KiB"])
def test_wrong_sizes_are_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(UsageError, match="such as 8GiB"):
        parse_size(text)


def test_the_table_says_what_fits_and_how_to_use_it(run: Any) -> None:
    code, out, err = run(*SMALL, "--no-probe")
    assert code == 0, err
    for words in ("weights", "kept for the backward pass", "peak", "to be used", "It fits."):
        assert words in out
    assert "--set training.batch_size=8 --set optim.accumulate=1 --set training.recompute=none" in out
    assert "an epoch" not in out


def test_json_has_the_plan_and_the_time(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuroage.training.epoch_time.MOST_STEPS", 2)
    code, out, err = run(*SMALL, "--scans", 40, "--json")
    assert code == 0, err
    content = json.loads(out)
    assert content["n_train_scans"] == 40 and content["time"]["n_steps"] == 5
    assert content["plan"]["fits"] and content["plan"]["exact"]
    assert content["plan"]["parts"]["total"] == content["plan"]["peak_bytes"]
    assert content["time"]["training_seconds"] > content["time"]["epoch_seconds"] > 0


def test_a_small_gpu_gets_a_smaller_plan_and_one_too_small_a_way_out(run: Any) -> None:
    big = (*SMALL[:2], "--set", "prepare.size=[64, 64, 64]", "--set", "prepare.fractions=null", "--no-probe")
    net = ("--set", "backbone.name=highresnet", "--set", "training.batch_size=auto", "--set", "standardise=none")
    code, out, err = run(*big, *net, "--device-memory", "4GiB", "--json")
    content = json.loads(out)
    assert code == 0 and content["plan"]["fits"], err
    assert content["plan"]["recompute"] == "blocks" and content["device"] == "another GPU"
    code, out, _ = run(*big, *net, "--device-memory", "1.2GiB")
    assert code == 0 and "It does not fit." in out and "prepare.spacing_mm" in out


def test_times_are_not_claimed_for_another_machine(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuroage.training.epoch_time.MOST_STEPS", 2)
    code, out, err = run(*SMALL, "--device-memory", "8GiB")
    assert code == 0, err
    assert "on this machine (not the other one)" in out


def test_scans_are_counted_from_cohort_and_split(run: Any, cohort: Cohort, split: Split, tmp_path: Path) -> None:
    cohort.to_csv(tmp_path / "cohort.csv")
    split.save(tmp_path / "split.csv")
    given = ("--data", tmp_path / "cohort.csv", "--split", tmp_path / "split.csv")
    code, out, err = run(*SMALL, *given, "--no-probe", "--json")
    assert code == 0, err
    n_train = sum(name == "train" for name in list(split.sets(0)))
    assert json.loads(out)["n_train_scans"] == n_train > 8


def test_mistakes_are_one_sentence(run: Any, tmp_path: Path) -> None:
    code, _, err = run(*SMALL, "--device-memory", "8 gigs")
    assert code == 2 and "--device-memory 8 gigs" in err
    code, _, err = run("--data", tmp_path / "none.csv")
    assert code == 2 and "No cohort" in err
    code, _, err = run("--config", "t1_small", "--set", "training.recompute=all")
    assert code == 2 and "recompute" in err


def test_durations_are_set_in_their_unit() -> None:
    assert [in_time(seconds) for seconds in (2.34, 200, 7200)] == ["2.3 s", "3 min", "2.0 h"]
