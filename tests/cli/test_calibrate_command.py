"""`train --folds` on a split of one fold, and `calibrate`, as users type them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from neuroage.cohort import Cohort, Split
from neuroage.runs.run import Run

TRAIN = ["train", "--config", "smoke", "--set", "prepare.size=[16, 16, 16]", "--set", "training.epochs=1"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few resamples and no pictures, which are drawn and looked at in tests/analysis."""
    monkeypatch.setattr("neuroage.analysis.scores.N_METRIC_RESAMPLES", 100)
    monkeypatch.setattr("neuroage.analysis.report._PICTURES", {})


def test_folds_of_one_fold_calibrate_a_run_and_calibrate_refits_it(
    type_in: Callable[..., tuple[int, str, str]], quick: None, cohort: Cohort, split: Split, tmp_path: Path
) -> None:
    cohort.to_csv(tmp_path / "cohort.csv")
    split.save(tmp_path / "split.csv")
    code, _, said = type_in(*TRAIN, "--folds", 2, "--fold", 1)
    assert code == 0, said
    member = Run(tmp_path / "runs" / "t1" / "members" / "part1-seed0")
    assert member.complete and member.about["n_parts"] == 2

    code, shown, said = type_in(*TRAIN, "--folds", 2, "--resume", "auto")
    assert code == 0, said
    assert "Member 2 of 2: t1, without part 2 of 2, seed 0" in said and "Calibrated: 90% intervals for people" in said
    assert "real ages lie inside the 90% intervals" in shown and "Report the raw MAE" in shown
    run = Run(tmp_path / "runs" / "t1")
    assert run.predictions["set"].value_counts().to_dict() == {"out_of_fold": 36, "validation": 24}

    code, shown, said = type_in("evaluate", "runs/t1", "--subjects", "out_of_fold")
    assert code == 0 and "cross-validation" in shown, said
    page = tmp_path / "runs" / "t1" / "evaluation-out_of_fold" / "evaluation.html"
    assert "Raw and corrected for age" in page.read_text(encoding="utf-8")

    code, shown, said = type_in("calibrate", "runs/t1", "--level", 0.8, "--ages", "30-70", "--bins", 1)
    assert code == 0 and "80% intervals for people of whom every age from 30 to 70 years" in shown, said
    assert json.loads(run.calibration_path.read_text(encoding="utf-8"))["intervals"]["level"] == 0.8
    assert run.evaluation["calibration"]["level"] == 0.8

    code, shown, said = type_in("predict", "runs/t1", cohort.select("t1").scans()[0].path, "--force")
    assert code == 0 and "In brackets: 80% intervals for people of whom every age" in said
    assert {"interval_low", "members_std", "gap_corrected"} <= set(pd.read_csv("predictions.csv"))

    code, _, said = type_in(*TRAIN, "--folds", 3, "--resume", "auto")
    assert code == 5 and "2 parts, not 3" in said
    code, _, said = type_in(*TRAIN, "--folds", 2, "--fold", 2, "--out", "else")
    assert code == 2 and "0 to 1 with --folds 2" in said
    code, _, said = type_in("calibrate", "runs/t1", "--ages", "young")
    assert code == 2 and "LOW-HIGH" in said
