"""What a network about labels must beat: training frequencies, and a linear model on coarse pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from neuroage.cohort import Cohort, Split
from neuroage.imaging.store import Store
from neuroage.models.tasks import build_task
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run
from neuroage.training.baselines import baselines_for, blend
from neuroage.training.baselines.labels import LabelBaselines
from neuroage.training.predict import predict
from neuroage.training.train import train

N = 90
PIXELS = 8


class Picture:
    """As much of a stored picture as a baseline asks for."""

    def __init__(self, data: np.ndarray) -> None:
        self.data = data

    def load(self) -> np.ndarray:
        return self.data


def shaded(n: int = N, seed: int = 0) -> tuple[list[Picture], pd.DataFrame]:
    """Pictures that are brighter on the left (A), above (B), both or neither, in noise; 30 persons."""
    rng = np.random.default_rng(seed)
    left, above = rng.random(n) < 0.4, rng.random(n) < 0.5
    data = rng.normal(0, 1, (n, 1, PIXELS, PIXELS)).astype(np.float32)
    data[left, :, :, : PIXELS // 2] += 1
    data[above, :, : PIXELS // 2] += 1
    known = rng.random((2, n)) < 0.8
    rows = pd.DataFrame(
        {
            "scan_id": [f"scan-{index}" for index in range(n)],
            "subject_id": [f"person-{index // 3}" for index in range(n)],
            "set": "train",
            "label_A": np.where(known[0], left, np.nan),
            "label_B": np.where(known[1], above, np.nan),
            "label": np.select([left & above, left, above], ["both", "left", "above"], "none"),
        }
    )
    return [Picture(picture) for picture in data], rows


def recipe_for(task: str) -> Recipe:
    return Recipe.from_dict({"modality": "picture", "prepare": {"kind": "picture", "size": PIXELS}}).updated(
        f"task={task}"
    )


def fitted(task: str, rows: pd.DataFrame, pictures: list[Picture]) -> LabelBaselines:
    recipe = recipe_for(task)
    made = build_task(recipe)
    made.fit(rows)
    return baselines_for(made.target).fit(pictures, rows, recipe, made)


@pytest.mark.parametrize("task", ["{name: multilabel}", "{name: binary, label: A}", "{name: multiclass}"])
def test_a_linear_signal_is_found_and_the_frequencies_are_those_of_training(task: str) -> None:
    pictures, rows = shaded()
    models = fitted(task, rows, pictures)
    others, truth = shaded(60, seed=1)
    keys = truth[["scan_id", "subject_id", "set"]]
    tables = models.tables(keys, others)
    assert list(tables) == ["majority", "linear"]  # the linear one is the last: it may be mixed in
    for label in models.labels:
        name = f"probability_{label}"
        wanted = (truth["label"] == label) if "multiclass" in task else truth[f"label_{label}"]
        known = wanted.notna()
        assert roc_auc_score(wanted[known], tables["linear"].loc[known, name]) > 0.85
        share = (rows["label"] == label).mean() if "multiclass" in task else rows[f"label_{label}"].mean()
        assert tables["majority"][name].to_numpy() == pytest.approx(share)
    if "multiclass" in task:
        np.testing.assert_allclose(tables["linear"].filter(like="probability_").sum(axis=1), 1)
        np.testing.assert_allclose(tables["majority"].filter(like="probability_").sum(axis=1), 1)


def test_unknown_labels_change_nothing() -> None:
    pictures, rows = shaded()
    known = rows["label_A"].notna()
    alone = fitted("{name: binary, label: A}", rows[known], [p for p, k in zip(pictures, known, strict=True) if k])
    beside = fitted("{name: multilabel, labels: [A, B]}", rows, pictures)
    others, truth = shaded(40, seed=2)
    keys = truth[["scan_id", "subject_id", "set"]]
    columns = [models.tables(keys, others)["linear"]["probability_A"] for models in (alone, beside)]
    # The scans without an answer still have a say in how pixels are standardised, and in nothing else.
    np.testing.assert_allclose(columns[0], columns[1], atol=0.08)
    assert np.corrcoef(columns[0], columns[1])[0, 1] > 0.99


def test_two_classes_are_one_question() -> None:
    pictures, rows = shaded()
    two = rows.assign(label=np.where(rows["label"].isin(["left", "both"]), "left", "other"))
    both = rows.assign(label_left=(two["label"] == "left").astype(float))
    others, truth = shaded(40, seed=2)
    keys = truth[["scan_id", "subject_id", "set"]]
    classes = fitted("{name: multiclass}", two, pictures).tables(keys, others)["linear"]
    one = fitted("{name: binary, label: left}", both, pictures).tables(keys, others)["linear"]
    np.testing.assert_allclose(classes["probability_left"], one["probability_left"], atol=1e-5)


def test_a_class_that_the_drawn_scans_lack_is_hardly_ever_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    from neuroage.training.baselines import labels

    pictures, rows = shaded()
    rows.loc[rows.index[0], "label"] = "rare"
    drawn = np.sort(np.random.default_rng(0).permutation(N)[:60])
    monkeypatch.setattr(labels, "MOST_SCANS", 60)
    models = fitted("{name: multiclass}", rows, pictures)
    table = models.tables(rows[["scan_id", "subject_id", "set"]], pictures)["linear"]
    assert (table["probability_rare"] < (0.5 if 0 in drawn else 1e-3)).sum() >= N - 1
    np.testing.assert_allclose(table.filter(like="probability_").sum(axis=1), 1)


def test_baselines_are_kept_with_the_run(tmp_path: Path) -> None:
    pictures, rows = shaded()
    models = fitted("{name: multiclass}", rows, pictures)
    run = Run(tmp_path)
    models.save(run)
    loaded = LabelBaselines.load(run)
    keys = rows[["scan_id", "subject_id", "set"]]
    for name, table in models.tables(keys, pictures).items():
        pd.testing.assert_frame_equal(table, loaded.tables(keys, pictures)[name], check_dtype=False, atol=1e-6)


def test_no_scans_are_predicted_as_none() -> None:
    pictures, rows = shaded()
    tables = fitted("{name: multilabel}", rows, pictures).tables(rows[["scan_id", "subject_id", "set"]].head(0), [])
    assert [len(table) for table in tables.values()] == [0, 0]


def test_a_blend_of_probabilities_is_one_of_probabilities() -> None:
    table = pd.DataFrame({"scan_id": ["a"], "probability_x": [0.2], "probability_y": [0.8]})
    linear = pd.DataFrame({"scan_id": ["a"], "probability_x": [0.6], "probability_y": [0.4]})
    mixed = blend(table, linear, 0.25)
    assert mixed[["probability_x", "probability_y"]].iloc[0].tolist() == pytest.approx([0.3, 0.7])
    assert blend(table, linear, 0) is table


def test_a_run_may_mix_the_linear_model_in(
    tmp_path: Path, pictures: Cohort, picture_split: Split, store: Store, picture_recipe: Recipe
) -> None:
    recipe = picture_recipe.updated("training.epochs=1", "predict.ridge_share=0.5")
    run = train(recipe, pictures, picture_split, tmp_path / "run", store=store)
    plain = train(recipe.updated("predict.ridge_share=0"), pictures, picture_split, tmp_path / "plain", store=store)
    columns = [f"probability_{label}" for label in run.target["labels"]]
    linear = run.baselines["linear"].reset_index(drop=True)
    np.testing.assert_allclose(run.predictions[columns], (plain.predictions[columns] + linear[columns]) / 2, atol=1e-6)
    some = pictures.select(subject_ids=picture_split.subjects("test"))
    again = predict(run, some, store=store, force=True).table.set_index("scan_id")[columns]
    kept = run.predictions.set_index("scan_id").loc[again.index, columns]
    np.testing.assert_allclose(again, kept, atol=1e-5)
