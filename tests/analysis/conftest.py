"""Predictions with a known answer: 50 uniform ages, and models whose gaps have a known spread and slope."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from neuroage.analysis import compare_models, evaluate


def make_predictions(spread_years, *, seed, slope=0.0, n_subjects=50, n_members=1, constant=None):
    """Predictions of one model on subjects s00, s01, … aged 18 to 92, one validation scan each."""
    random = np.random.default_rng(seed)
    age = 18 + 74 * (np.arange(n_subjects) + 0.5) / n_subjects
    gap = random.normal(0, spread_years, n_subjects) + slope * (age - 55)
    subjects = [f"s{index:02d}" for index in range(n_subjects)]
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "scan_id": [f"{subject}_scan" for subject in subjects],
                    "subject_id": subjects,
                    "set": "validation",
                    "fold": 0,
                    "member": member,
                    "age": age,
                    "predicted_age": np.full(n_subjects, constant)
                    if constant is not None
                    else age + gap + random.normal(0, 1.0, n_subjects) * (n_members > 1),
                }
            )
            for member in range(n_members)
        ],
        ignore_index=True,
    )


@pytest.fixture(scope="session", autouse=True)
def few_resamples():
    """Keep the slow bootstrap short; what it promises is tested on its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("neuroage.analysis.scores.N_METRIC_RESAMPLES", 200)
        yield


@pytest.fixture(scope="session")
def predictions():
    return make_predictions


@pytest.fixture(scope="session")
def models():
    return {
        "t1": make_predictions(4, seed=1, slope=-0.1, n_members=3),
        "tof": make_predictions(10, seed=2, slope=-0.3, n_members=3),
    }


@pytest.fixture(scope="session")
def baselines():
    return {"mean": make_predictions(0, seed=0, constant=54.0), "ridge": make_predictions(9, seed=3)}


@pytest.fixture(scope="session")
def comparison(models, baselines):
    return compare_models(models, baselines)


@pytest.fixture(scope="session")
def evaluation(models, baselines):
    return evaluate(models["t1"], baselines, name="t1")
