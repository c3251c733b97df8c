"""The verb tune as it is typed: what it searches, what it says, what it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from neuroage.cli.tune import parse_time
from neuroage.cohort import Cohort, Split
from neuroage.errors import UsageError
from neuroage.imaging.store import Store
from neuroage.runs.recipe import Recipe
from neuroage.runs.recipe_tune import Choices, Range, default_space, load_space, read_search

pytest.importorskip("optuna")


@pytest.fixture
def place(tmp_path: Path, cohort: Cohort, split: Split, store: Store, recipe: Recipe) -> list[object]:
    """Recipe, cohort, split and store as files, as words of the command."""
    cohort.to_csv(tmp_path / "cohort.csv")
    split.save(tmp_path / "split.csv")
    recipe.updated("training.epochs=1").save(tmp_path / "recipe.yaml")
    with open(tmp_path / "recipe.yaml", "a", encoding="utf-8") as file:
        file.write("tune:\n  optim.lr: {low: 1e-3, high: 1e-1, log: true}\n")
    files = ["--data", tmp_path / "cohort.csv", "--split", tmp_path / "split.csv", "--store", store.folder]
    return [tmp_path / "recipe.yaml", *files, "--out", tmp_path / "tuned"]


def test_it_ends_with_the_best_trials_and_the_command_to_type_next(
    type_in: Any, place: list[object], tmp_path: Path
) -> None:
    code, out, _ = type_in("tune", *place, "--trials", 2)
    assert code == 0
    assert "Best trials" in out and "optim.lr" in out and "better than new subjects will show" in out
    command = next(line for line in out.splitlines() if line.strip().startswith("neuroage train"))
    words = command.split()
    assert words[words.index("--split") + 1] == str(tmp_path / "split.csv")
    assert Recipe.load(words[words.index("--config") + 1]).optim.lr >= 1e-3
    code, out, error = type_in("tune", *place, "--trials", 2, "--json")  # nothing is left to do
    found = json.loads(out)
    assert code == 0 and found["trials"] == {"complete": 2} and found["metric"] == "mae" and not error
    assert found["best"]["score"] <= found["start_score"]


def test_wrong_keys_are_said_with_a_suggestion_before_anything_runs(
    type_in: Any, place: list[object], tmp_path: Path
) -> None:
    code, _, error = type_in("tune", *place, "--search", "head.dropuot=0:0.5", "--search", "optim.lr=1:0.5:log")
    assert code == 2 and "low 1 is not below high 0.5" in error
    code, _, error = type_in("tune", *place, "--search", "head.dropuot=0:0.5")
    assert code == 2 and error.count("did you mean 'dropout'") == 1  # not once for each end of the range
    assert not (tmp_path / "tuned").exists()


def test_times_are_read_with_their_units() -> None:
    assert [parse_time(text) for text in ("90m", "1.5h", "2d", "45", "30 s")] == [5400, 5400, 172800, 45, 30]
    for text in ("soon", "0h", "-3m", "3w"):
        with pytest.raises(UsageError, match="--timeout"):
            parse_time(text)


def test_dimensions_are_read_as_typed() -> None:
    assert read_search("optim.lr=1e-4:1e-2:log") == ("optim.lr", Range(low=1e-4, high=1e-2, log=True))
    assert read_search("head.dropout=0:0.6:0.1") == ("head.dropout", Range(low=0, high=0.6, step=0.1))
    assert read_search("backbone.features=8,16") == ("backbone.features", Choices(values=(8, 16)))
    assert read_search("head.hidden=[],[64, 32]") == ("head.hidden", Choices(values=([], [64, 32])))
    assert read_search("finetune.unfreeze={0: head, 5: 1.0},null")[1] == Choices(values=({0: "head", 5: 1.0}, None))
    for text in ("optim.lr", "=1:2", "optim.lr=1", "optim.lr=1:2:lin", "optim.lr=[1"):
        with pytest.raises(UsageError, match="search"):
            read_search(text)


def test_a_space_stands_in_the_recipe_or_in_a_file_of_its_own(tmp_path: Path) -> None:
    inside, alone = tmp_path / "recipe.yaml", tmp_path / "space.yaml"
    inside.write_text("modality: t1\ntune:\n  pool: [average, max]\n  optim.lr: {low: 1e-4, high: 0.01}\n")
    alone.write_text("pool: [average, max]\noptim.lr: {low: 1e-4, high: 0.01}\n")
    assert load_space(str(inside)) == load_space(str(alone))
    typed = load_space(str(inside), ["pool=max,grid", "head.dropout=0:0.5"])
    assert typed["pool"] == Choices(values=("max", "grid")) and list(typed) == ["pool", "optim.lr", "head.dropout"]
    inside.write_text("tune:\n  pool: max\n  optim.lr: {low: 2, high: 1}\n  head.dropout: {low: 0, high: 1, stpe: 1}\n")
    with pytest.raises(UsageError, match="3 problems") as caught:
        load_space(str(inside))
    assert "line 2, pool" in str(caught.value) and "stpe" in str(caught.value)


def test_the_space_by_itself_follows_the_recipe() -> None:
    plain = default_space(Recipe())
    assert plain["optim.lr"] == Range(low=1e-4, high=1e-2, log=True) and "finetune.layer_decay" not in plain
    tuned = default_space(Recipe().updated("finetune.unfreeze={0: head, 5: 1.0}"))
    assert set(tuned) == {*plain, "finetune.layer_decay", "finetune.head_lr"}
