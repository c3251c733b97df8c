"""The command line as users type it, on the small cohort; each verb once, and each of its mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from neuroage.cohort import Cohort, Split
from neuroage.imaging.store import Store
from neuroage.runs.recipe import Recipe


class Shell:
    """Types `neuroage …`, gives the exit code, and keeps what was printed."""

    def __init__(self, type_in: Callable[..., tuple[int, str, str]]) -> None:
        self.type_in = type_in
        self.out = self.err = ""

    def __call__(self, *words: object) -> int:
        code, self.out, self.err = self.type_in(*words)
        return code

    def json(self, *words: object) -> Any:
        assert self(*words, "--json") == 0, self.err
        return json.loads(self.out)


@pytest.fixture
def shell(type_in: Callable[..., tuple[int, str, str]]) -> Shell:
    return Shell(type_in)


@pytest.fixture(scope="module")
def trained(cohort: Cohort, split: Split, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as it is after `index`, `split` and `compare t1 tof`."""
    from neuroage.analysis import write_comparison
    from neuroage.training.experiment import compare_modalities

    folder = tmp_path_factory.mktemp("work")
    cohort.to_csv(folder / "cohort.csv")
    split.save(folder / "split.csv")
    recipe = Recipe.from_dict(
        {
            "prepare": {"spacing_mm": 8.0, "size": [12, 12, 12]},
            "backbone": {"name": "cnn", "n_blocks": 2, "features": 8},
            "optim": {"lr": 0.02, "ema": 0.9},
            "training": {"epochs": 15, "batch_size": 6, "precision": "fp32"},
        }
    )
    recipes = {name: recipe.updated(f"modality={name}") for name in ("t1", "tof")}
    comparison, _ = compare_modalities(recipes, cohort, split, folder / "runs", store=store)
    write_comparison(comparison, folder / "compare")
    return folder


@pytest.mark.parametrize(
    ("words", "next_command"),
    [
        (["train", "--modality", "tof"], "neuroage index"),
        (["compare", "t1", "tof"], "neuroage phantom"),
        (["split", "--uniform-age"], "neuroage index"),
        (["prepare"], "neuroage index"),
        (["preview"], "neuroage index"),
    ],
)
def test_without_a_cohort_the_next_command_is_named(shell: Shell, words: list[str], next_command: str) -> None:
    assert shell(*words) == 2
    assert next_command in shell.err


def test_without_a_split_the_next_command_is_named(shell: Shell, cohort: Cohort, tmp_path: Path) -> None:
    cohort.to_csv(tmp_path / "cohort.csv")
    assert shell("train", "--modality", "t1") == 2
    assert "neuroage split --uniform-age" in shell.err


def test_index_reports_subjects_modalities_ages_and_problems(shell: Shell, cohort: Cohort, tmp_path: Path) -> None:
    cohort.to_csv(tmp_path / "scans" / "table.csv")
    said = shell.json("index", tmp_path / "scans" / "table.csv")
    assert (said["n_subjects"], said["n_scans"], said["modalities"]) == (48, 96, {"t1": 48, "tof": 48})
    assert said["age_years"] == {"min": 20, "mean": 50, "max": 80}
    assert shell("index", tmp_path / "scans" / "table.csv") == 0
    assert "48 subjects, 96 scans" in shell.out
    assert "█" in shell.out
    assert Cohort.from_csv(tmp_path / "cohort.csv").digest == cohort.digest


def test_index_never_replaces_another_cohort_unasked(shell: Shell, cohort: Cohort, tmp_path: Path) -> None:
    cohort.select(modality="t1").to_csv(tmp_path / "cohort.csv")
    cohort.to_csv(tmp_path / "all.csv")
    assert shell("index", tmp_path / "all.csv") == 2
    assert "--overwrite" in shell.err
    assert shell("index", tmp_path / "all.csv", "--overwrite") == 0


def test_split_tells_how_uniform_it_is_and_what_each_decade_gave(shell: Shell, cohort: Cohort, tmp_path: Path) -> None:
    cohort.to_csv(tmp_path / "cohort.csv")
    assert shell("split", "--uniform-age", "--n-validation", 12, "--balance", "sex") == 0
    for part in ("W1", "Kolmogorov–Smirnov", "10,000 random splits", "20–29", "kept"):
        assert part in shell.out
    assert shell("split", "--uniform-age", "--n-validation", 12) == 2
    assert "--overwrite" in shell.err
    said = shell.json("split", "--n-validation", 12, "--exact", "--overwrite")
    assert said["report"]["sets"][0]["w1_years"] == said["report"]["optimum_w1_years"]


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["split", "--age-range", "20-80"], 2, "20:80"),
        (["split", "--uniform-age", "--stratified-age"], 2, "exclude each other"),
        (["split", "--n-validation", "47"], 4, "n_validation"),
        (["split", "--balance", "height"], 2, "height"),
        (["split", "--uniform-age", "--validation", "0.2"], 2, "--grouped"),
        (["split", "--from", "cohort.csv", "--exact"], 2, "as it is"),
        (["train", "--config", "t1_smal"], 2, "did you mean 't1_small'"),
        (["train", "--set", "optim.lr"], 2, "no value"),
        (["train", "--set", "optim.larning=3"], 2, "optim.larning"),
        (["train", "--modality", "t9"], 2, "t9"),
        (["train", "--fold", "3", "--config", "smoke"], 2, "fold 3"),
        (["predict", "nowhere", "x.nii.gz"], 2, "does not exist"),
        (["runs", "nowhere"], 2, "nowhere"),
        (["compare", "t1"], 2, "two or more"),
        (["compare", "t1", "flair", "--config", "smoke"], 2, "flair"),
        (["index", "nowhere"], 2, "nowhere"),
        (["frobnicate"], 2, "frobnicate"),
    ],
)
def test_a_wrong_command_is_one_sentence_and_a_stable_code(
    shell: Shell, cohort: Cohort, split: Split, tmp_path: Path, words: list[str], code: int, part: str
) -> None:
    cohort.to_csv(tmp_path / "cohort.csv")
    if words[0] != "split":
        split.save(tmp_path / "split.csv")
    assert shell(*words) == code, shell.err
    assert part in shell.err
    assert "Traceback" not in shell.err


def test_train_and_evaluate_and_predict_and_runs(shell: Shell, cohort: Cohort, split: Split, tmp_path: Path) -> None:
    cohort.to_csv(tmp_path / "cohort.csv")
    split.save(tmp_path / "split.csv")
    assert shell("train", "--modality", "t1", "--config", "smoke", "--set", "prepare.size=[16, 16, 16]") == 0, shell.err
    assert "ridge" in shell.out
    assert "predicting the mean" in " ".join(shell.out.split())
    assert shell("train", "--modality", "t1", "--config", "smoke") == 2
    assert "--resume" in shell.err

    path = cohort.select(modality="t1").scans()[0].path
    said = shell.json("predict", "runs/t1", path)
    assert 0 < said["rows"][0]["predicted_age"] < 120
    assert pd.read_csv(tmp_path / "predictions.csv")["predicted_age"].notna().all()

    assert shell.json("evaluate", "runs/t1")["n_subjects"] == 12
    assert shell("evaluate", "runs/t1", "--data", "cohort.csv") == 0, shell.err
    assert "36 subjects were left out" in shell.err

    rows = shell.json("runs", "runs")["runs"]
    assert list(rows) == ["t1"]
    assert rows["t1"]["status"] == "complete"
    assert (tmp_path / "runs" / "curves.png").stat().st_size > 5000


def test_folds_and_repeats_make_one_run_of_members(shell: Shell, cohort: Cohort, tmp_path: Path) -> None:
    from neuroage.cohort import uniform_age_split
    from neuroage.runs.run import Run

    cohort.to_csv(tmp_path / "cohort.csv")
    uniform_age_split(cohort, n_validation=8, folds=2, seed=1).save(tmp_path / "split.csv")
    common = ["train", "--config", "smoke", "--set", "prepare.size=[16, 16, 16]", "--set", "training.epochs=1"]
    assert shell(*common, "--fold", 1) == 0, shell.err
    assert shell(*common, "--folds", 2, "--resume", "auto") == 0, shell.err
    run = Run(tmp_path / "runs" / "t1")
    assert [member.name for member in run.members] == ["fold0-seed0", "fold1-seed0"]
    assert sorted(run.predictions["fold"].unique()) == [0, 1]
    assert run.predictions["subject_id"].nunique() == 16
    assert shell.json("predict", "runs/t1", cohort.scans()[0].path)["rows"][0]["members_std"] >= 0


def test_compare_uses_what_is_trained_and_writes_a_page(
    shell: Shell, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    said = shell.json("compare", "t1", "tof", "--out", "again")
    assert {"t1", "tof", "mean", "ridge (t1)", "ridge (tof)"} <= set(said["models"])
    assert said["models"]["t1"]["mae"] < said["models"]["tof"]["mae"]
    assert (trained / "again" / "comparison.html").is_file()
    assert "trained already" in (shell("compare", "t1", "tof", "--out", "again"), shell.err)[1]
    assert shell("compare", "runs/t1", "runs/tof", "--out", "byrun") == 0
    assert "MAE" in shell.out


def test_compare_refuses_what_would_mislead(
    shell: Shell, trained: Path, cohort: Cohort, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neuroage.cohort import uniform_age_split
    from neuroage.training.train import train

    monkeypatch.chdir(trained)
    assert shell("compare", "t1", "tof", "--set", "training.epochs=99") == 5
    assert "another recipe" in shell.err
    other = uniform_age_split(cohort, n_validation=12, seed=9)
    recipe = Recipe.load(trained / "runs" / "t1" / "recipe.yaml").updated("training.epochs=1")
    train(recipe, cohort, other, trained / "elsewhere", store=store)
    assert shell("compare", "runs/t1", "elsewhere") == 5
    assert "different splits" in shell.err


def test_preview_and_prepare(shell: Shell, cohort: Cohort, tmp_path: Path) -> None:
    cohort.to_csv(tmp_path / "cohort.csv")
    assert shell("preview", "--config", "t1_small", "--n", 2) == 0, shell.err
    assert (tmp_path / "preview.png").read_bytes()[:4] == b"\x89PNG"
    said = shell.json("prepare", "--config", "smoke")
    assert said["n_prepared"] == 48
    assert said["precision_loss"] < 0.05


@pytest.mark.parametrize("what", ["backbones", "augmentations", "layouts", "metrics", "configs", "tasks"])
def test_list_names_things_with_one_line_each(shell: Shell, what: str) -> None:
    rows = shell.json("list", what)
    assert len(rows) >= 2
    assert all(isinstance(line, str) and len(line) > 10 for line in rows.values())


def test_version_and_help_start_without_torch() -> None:
    lines = [
        "import sys; sys.argv = ['neuroage', 'split', '--help']",
        "from neuroage.cli.main import main",
        "try: main()",
        "except SystemExit: pass",
        "print('torch' in sys.modules, 'pandas' in sys.modules, 'matplotlib' in sys.modules)",
    ]
    code = "\n".join(lines)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False False"


def test_debug_shows_the_traceback(shell: Shell) -> None:
    from neuroage.errors import UsageError

    with pytest.raises(UsageError):
        shell("train", "--debug")
