"""The search beneath tuning: better than chance, shared by processes, continued where it stopped."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neuroage.errors import InfeasibleError, RefusedError, UsageError
from neuroage.runs.recipe_tune import Choices, Range, Space

pytest.importorskip("optuna")
from neuroage.training.search import Attempt, Found, search, trials_in

VALLEY: Space = {
    "optim.lr": Range(low=1e-5, high=1e-1, log=True),
    "optim.weight_decay": Range(low=1e-5, high=1.0, log=True),
    "head.dropout": Range(low=0.0, high=0.8),
    "pool": Choices(values=("average", "max", "attention")),
}
LINE: Space = {"optim.lr": Range(low=0.0, high=1.0)}


def regret(values: dict[str, object]) -> float:
    """A valley that bends through rate and weight decay; 0 at decay 10**-1.5, dropout 0.35, pool max."""
    rate = math.log10(float(str(values["optim.lr"]))) + 3
    decay = math.log10(float(str(values["optim.weight_decay"]))) + 2
    drop = float(str(values["head.dropout"]))
    bent = 6 * (rate - 0.25 * decay**2 + 0.25) ** 2 + 0.4 * (decay - 0.5) ** 2
    return bent + 8 * (drop - 0.35) ** 2 + 0.4 * (values["pool"] != "max")


def test_the_optimum_of_the_made_problem_is_where_it_is_said_to_be() -> None:
    best = {"optim.lr": 10 ** (-3.25 + 1 / 16), "optim.weight_decay": 10**-1.5, "head.dropout": 0.35, "pool": "max"}
    assert regret(best) == pytest.approx(0, abs=1e-9)


def test_it_beats_random_search_at_equal_budget() -> None:
    bent = {key: VALLEY[key] for key in ("optim.lr", "optim.weight_decay")}

    def best(sampler: str, seed: int) -> float:
        def objective(one: Attempt) -> float:
            return regret({**one.values, "head.dropout": 0.35, "pool": "max"})

        return search(objective, bent, 25, seed=seed, sampler=sampler).best_score

    model = np.array([best("gp", seed) for seed in range(5)])
    chance = np.array([best("random", seed) for seed in range(5)])
    assert model.mean() < 0.2 * chance.mean()
    assert (model < chance).sum() >= 4


def test_the_same_seed_tries_the_same_values_and_another_seed_others() -> None:
    tables = [search(lambda one: regret(one.values), VALLEY, 12, seed=seed).table for seed in (3, 3, 4)]
    kept = [table[[*VALLEY, "score"]] for table in tables]
    pd.testing.assert_frame_equal(kept[0], kept[1])
    assert not kept[0].equals(kept[2])


def test_the_first_trial_is_the_start_as_far_as_it_lies_in_the_space() -> None:
    start = {"optim.lr": 1e-3, "optim.weight_decay": 5.0, "pool": "attention"}
    first = search(lambda one: regret(one.values), VALLEY, 2, seed=0, start=start).table.iloc[0]
    assert first["optim.lr"] == 1e-3 and first["pool"] == "attention"
    assert 1e-5 <= first["optim.weight_decay"] <= 1


def test_higher_may_be_better_and_every_kind_of_dimension_keeps_its_type() -> None:
    space: Space = {
        "a": Range(low=1, high=9, step=2),
        "b": Range(low=0.0, high=1.0, step=0.25),
        "c": Choices(values=([], [64], {"0": "head"})),
        "d": Choices(values=(True, 1, None)),
    }
    seen: list[dict[str, object]] = []

    def objective(one: Attempt) -> float:
        seen.append(one.values)
        return float(str(one.values["a"]))

    found = search(objective, space, 16, seed=0, higher_is_better=True)
    assert found.best["a"] == 9 and found.best_score == 9
    assert {type(values["a"]) for values in seen} == {int} and {values["a"] for values in seen} <= {1, 3, 5, 7, 9}
    assert {values["b"] for values in seen} <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert {str(values["c"]) for values in seen} == {"[]", "[64]", "{'0': 'head'}"}
    assert {str(values["d"]) for values in seen} == {"True", "1", "None"}


def test_nothing_is_tried_twice_where_there_are_only_choices() -> None:
    space: Space = {"a": Choices(values=("x", "y")), "b": Range(low=1, high=3)}
    table = search(lambda one: float(one.values["b"]), space, 6, seed=0).table
    assert not table[["a", "b"]].duplicated().any()
    assert len(search(lambda one: 1.0, space, 8, seed=0).table) == 8


def test_hopeless_trials_are_ended_early_and_counted() -> None:
    steps: list[int] = []

    def objective(one: Attempt) -> float:
        for step in range(1, 7):
            steps.append(step)
            one.report(step, regret(one.values) + 1 / step)
        return regret(one.values)

    found = search(objective, VALLEY, 20, seed=0, prune_from=3)
    pruned = found.table[found.table["state"] == "pruned"]
    assert len(found.table) == 20 and len(pruned) >= 3
    assert pruned["steps"].between(3, 5).all() and len(steps) < 20 * 6
    assert found.best_score == found.table.loc[found.table["state"] == "complete", "score"].min()


def test_a_failed_trial_is_recorded_and_the_others_go_on() -> None:
    def objective(one: Attempt) -> float:
        if one.number in (1, 4):
            raise ValueError("the loss became NaN")
        return math.nan if one.number == 2 else float(one.number)

    table = search(objective, LINE, 8, seed=0).table
    assert table["state"].tolist() == ["complete", "failed", "failed", "complete", "failed", *["complete"] * 3]
    assert table.loc[1, "reason"] == "the loss became NaN" and "not defined" in table.loc[2, "reason"]


def test_when_all_fail_it_stops_early_with_one_error_that_says_why() -> None:
    asked: list[int] = []

    def objective(one: Attempt) -> float:
        asked.append(one.number)
        raise ValueError("too few scans")

    with pytest.raises(InfeasibleError, match="All 5 trials failed:\n  - too few scans"):
        search(objective, LINE, 30, seed=0)
    assert len(asked) == 5


def test_a_later_call_goes_on_and_a_finished_study_runs_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'deep' / 'tune.db'}"
    objective: Callable[[Attempt], float] = lambda one: regret(one.values)  # noqa: E731
    first = search(objective, VALLEY, 5, seed=0, storage=url).table
    both = search(objective, VALLEY, 12, seed=0, storage=url).table
    again = search(objective, VALLEY, 12, seed=0, storage=url).table
    whole = search(objective, VALLEY, 12, seed=0).table
    columns = ["trial", *VALLEY, "score"]
    pd.testing.assert_frame_equal(both[columns].head(5), first[columns])
    pd.testing.assert_frame_equal(both[columns], whole[columns])  # as if it had never stopped
    assert len(again) == 12 and trials_in(url, "tune") == 12 and trials_in(url, "another") == 0


def test_a_study_is_not_continued_with_another_space_or_recipe(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'tune.db'}"
    search(lambda one: 0.0, LINE, 1, seed=0, storage=url, about={"recipe": "a"})
    with pytest.raises(RefusedError, match="another recipe"):
        search(lambda one: 0.0, LINE, 2, seed=0, storage=url, about={"recipe": "b"})
    with pytest.raises(RefusedError, match="another search space"):
        search(lambda one: 0.0, VALLEY, 2, seed=0, storage=url, about={"recipe": "a"})
    with pytest.raises(RefusedError, match="another score"):
        search(lambda one: 0.0, LINE, 2, seed=0, storage=url, about={"recipe": "a"}, higher_is_better=True)


def test_a_storage_that_cannot_be_opened_is_said_without_its_password() -> None:
    with pytest.raises(UsageError, match="cannot be opened") as caught:
        search(lambda one: 0.0, LINE, 1, seed=0, storage="nosuch://me:secret@host/db")
    assert "secret" not in str(caught.value)


def test_a_stop_between_trials_leaves_the_trial_to_be_run_again(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'tune.db'}"
    seen: list[Attempt] = []

    def objective(one: Attempt) -> float:
        seen.append(one)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return float(one.values["optim.lr"])

    with pytest.raises(KeyboardInterrupt):
        search(objective, LINE, 5, seed=0, storage=url)
    assert trials_in(url, "tune") == 2
    found = search(objective, LINE, 5, seed=0, storage=url)
    assert len(found.table) == 5 and set(found.table["state"]) == {"complete"}
    assert seen[3].values == seen[2].values and seen[3].place == seen[2].number != seen[3].number


def test_no_trial_is_begun_after_the_time_is_over() -> None:
    def objective(one: Attempt) -> float:
        time.sleep(0.06)
        return 0.0

    found = search(objective, LINE, 1000, seed=0, timeout_s=0.3, sampler="random")
    assert 1 <= len(found.table) < 20


PROGRAM = """
import sys, time
from pathlib import Path
from neuroage.runs.recipe_tune import Range
from neuroage.training.search import search
url, n_trials, seconds, notes = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4])
def objective(one):
    with notes.open("a") as file:
        file.write(f"{one.number} {one.place} {one.values['x']!r}\\n")
    time.sleep(seconds)
    return (one.values["x"] - 0.3) ** 2
while not Path(notes.parent / "go").exists():
    time.sleep(0.005)
found = search(objective, {"x": Range(low=0.0, high=1.0)}, n_trials, seed=0, storage=url, sampler="random", alive_s=2)
print(len(found.table), found.best_score)
"""


def start(tmp_path: Path, name: str, n_trials: int, seconds: float) -> subprocess.Popen[str]:
    url = f"sqlite:///{tmp_path / 'tune.db'}"
    words = [sys.executable, "-c", PROGRAM, url, str(n_trials), str(seconds), str(tmp_path / name)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def noted(path: Path) -> list[tuple[int, int, str]]:
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [(int(number), int(place), value) for number, place, value in lines]


def test_processes_share_one_storage_and_no_trial_is_lost_or_doubled(tmp_path: Path) -> None:
    processes = [start(tmp_path, name, 12, 0.02) for name in ("first", "second")]
    (tmp_path / "go").touch()
    ends = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    first, second = noted(tmp_path / "first"), noted(tmp_path / "second")
    assert len(first) + len(second) == 12 and min(len(first), len(second)) >= 1
    assert len({number for number, _, _ in first + second}) == 12
    assert len({value for _, _, value in first + second}) == 12, "no value is tried twice"
    assert ends[0][0] == ends[1][0] and ends[0][0].startswith("12 ")


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_killed_trial_does_not_count_and_is_run_again(tmp_path: Path) -> None:
    process = start(tmp_path, "killed", 3, 60)
    (tmp_path / "go").touch()
    deadline = time.monotonic() + 60
    while not noted(tmp_path / "killed") and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    other = start(tmp_path, "other", 3, 0.01)
    out, error = other.communicate(timeout=60)
    assert other.returncode == 0, error
    assert out.startswith("3 ")
    lost, run = noted(tmp_path / "killed")[0], noted(tmp_path / "other")
    assert len(run) == 3, "the killed one is not counted"
    assert [(place, value) for _, place, value in run if value == lost[2]] == [(0, lost[2])]


def test_importances_tell_what_mattered() -> None:
    space: Space = {"a": Range(low=0.0, high=1.0), "b": Range(low=0.0, high=1.0)}
    found: Found = search(lambda one: float(one.values["a"]) * 5 + 0.1 * float(one.values["b"]), space, 20, seed=0)
    assert found.importances["a"] > 0.8
    assert sum(found.importances.values()) == pytest.approx(1)
    assert search(lambda one: 1.0, space, 5, seed=0).importances == {}
