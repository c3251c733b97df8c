"""Labels on the command line: index, split, train, evaluate, calibrate, predict, runs and cross, and their mistakes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from neuroage.cohort import Cohort, Split
from neuroage.cohort.grouped import grouped_split
from neuroage.imaging.store import Store
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run
from neuroage.training.train import train

TypeIn = Callable[..., tuple[int, str, str]]
N_PEOPLE, N_EACH, PIXELS = 24, 3, 24
RECIPE = {
    "modality": "picture",
    "task": {"name": "multilabel"},
    "prepare": {"kind": "picture", "size": [16, 16]},
    "backbone": {"name": "cnn", "n_blocks": 2, "features": 4},
    "optim": {"lr": 0.02, "ema": 0.9},
    "training": {"epochs": 2, "batch_size": 8, "precision": "fp32", "select": "validation", "train_eval_scans": 0},
}


def draw(bright: bool, striped: bool, seed: int) -> Image.Image:
    """Noise with a bright middle, with stripes, with both or with neither."""
    pixels = np.random.default_rng(seed).normal(70, 18, (PIXELS, PIXELS))
    pixels[8:16, 8:16] += 90 * bright
    pixels[:, ::4] += 60 * striped
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders `bright` and `dark`, the person in each file name; and `labels.csv` with a label to be named."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for person in range(N_PEOPLE):
        for number in range(N_EACH):
            bright, striped = person % 2 == 0, person % 3 == 0
            place = folder / "classes" / ("bright" if bright else "dark [1]") / f"p{person:02d}_{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            draw(bright, striped, seed=person * N_EACH + number).save(place)
            rows.append((f"p{person:02d}", os.path.relpath(place, folder), int(bright), int(striped), -1 + 2 * bright))
    table = pd.DataFrame(rows, columns=["subject_id", "path", "Bright", "Striped", "Doubtful"])
    table.to_csv(folder / "labels.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def labelled(pictures: Path) -> Cohort:
    return Cohort.from_csv(pictures / "labels.csv", labels=["Bright", "Striped"])


@pytest.fixture(scope="module")
def run(labelled: Cohort, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run about two labels, with a test set."""
    made = grouped_split(labelled, validation=0.25, test=0.25)
    return train(Recipe.from_dict(RECIPE), labelled, made, tmp_path_factory.mktemp("runs") / "two", store=store)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few resamples: figures and intervals are tested with the analysis."""
    monkeypatch.setattr("neuroage.analysis.label_evaluation.N_RESAMPLES", 50)


def test_index_of_class_folders_counts_classes_and_takes_columns_from_paths(
    type_in: TypeIn, pictures: Path, tmp_path: Path
) -> None:
    code, out, err = type_in("index", pictures / "classes", "--pattern", "(?P<class_>[^/]+)/(?P<subject_id>p[0-9]+)_")
    assert code == 0, err
    assert "24 subjects, 72 scans (72 of no named modality)" in out and "no images" not in out
    assert "2 classes" in out and "dark [1]" in out and "36" in out
    assert "neuroage split --grouped" in err and "person of its own" not in err
    assert Cohort.from_csv(tmp_path / "cohort.csv").table["subject_id"].nunique() == N_PEOPLE
    code, out, err = type_in("index", pictures / "classes", "--out", "plain.csv")
    assert code == 0 and "every image counts as a person of its own" in err
    assert "neuroage split plain.csv --grouped" in err


def test_index_of_a_table_names_labels_and_what_is_uncertain(type_in: TypeIn, pictures: Path) -> None:
    code, out, err = type_in(
        "index", pictures / "labels.csv", "--labels", "Bright,Striped", "--labels", "Doubtful", "--json"
    )
    assert code == 0, err
    rows = {row.pop("label"): row for row in json.loads(out)["labels"]}
    assert rows["Striped"] == {"kind": "label", "positive": 24, "known": 72}
    assert rows["Doubtful"] == {"kind": "label", "positive": 36, "known": 36}
    words = ["--labels", "Doubtful", "--uncertain", "negative", "--out", "other.csv", "--json"]
    code, out, _ = type_in("index", pictures / "labels.csv", *words)
    assert code == 0 and json.loads(out)["labels"] == [
        {"label": "Doubtful", "kind": "label", "positive": 36, "known": 72}
    ]
    code, out, _ = type_in("index", pictures / "labels.csv", "--label", "Striped", "--out", "third.csv")
    assert code == 0 and "2 classes" in out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["classes", "--label", "x"], "is a folder"),
        (["labels.csv", "--pattern", "(?P<a>.)"], "class folders"),
        (["classes", "--pattern", "(?P<a>.)", "--layout", "ixi"], "--layout ixi"),
        (["labels.csv", "--label", "Brigt"], "did you mean 'Bright'?"),
        (["labels.csv", "--labels", "Bright", "--uncertain", "maybe"], "missing"),
    ],
)
def test_index_says_in_one_sentence_which_options_do_not_belong_together(
    type_in: TypeIn, pictures: Path, words: list[str], part: str
) -> None:
    code, _, err = type_in("index", pictures / words[0], *words[1:])
    assert code == 2 and part in err and "Traceback" not in err


def test_split_of_labels_is_by_group_and_says_what_is_in_each_set(
    type_in: TypeIn, labelled: Cohort, tmp_path: Path
) -> None:
    labelled.to_csv(tmp_path / "cohort.csv")
    code, out, err = type_in("split", "--validation", 0.25, "--test", 0.25)
    assert code == 0, err
    assert "Pairs of equal pictures: 0" in out and "Striped" in out and "groups" in out
    assert "neuroage train --config picture --set 'task={name: multilabel}'" in err
    made = Split.load(tmp_path / "split.csv")
    assert made.meta["method"] == "grouped" and made.groups().nunique() == N_PEOPLE
    code, out, _ = type_in("split", "--grouped", "--folds", 3, "--no-duplicates", "--out", "folds.csv", "--json")
    said = json.loads(out)
    assert code == 0 and said["parameters"]["folds"] == 3 and "duplicates" not in said["report"]
    code, _, err = type_in("split", "--n-validation", 5, "--out", "x.csv")
    assert code == 2 and "--n-validation: this split is by group" in err and "--uniform-age" in err
    code, _, err = type_in("split", "--official", "--test", 0.3, "--out", "x.csv")
    assert code == 2 and "Drop one of the two" in err
    code, _, err = type_in("split", "--grouped", "--uniform-age", "--out", "x.csv")
    assert code == 2 and "exclude each other" in err


def test_a_cohort_with_labels_and_ages_is_split_by_age_only_where_that_is_asked(
    type_in: TypeIn, labelled: Cohort, tmp_path: Path
) -> None:
    people = labelled.table["subject_id"].str[1:].astype(int)
    Cohort(labelled.table.assign(age=20.0 + 2 * people)).to_csv(tmp_path / "cohort.csv")
    code, _, err = type_in("split", "--no-duplicates")
    assert code == 0 and "--uniform-age splits it by age" in err
    code, out, err = type_in("split", "--uniform-age", "--n-validation", 6, "--out", "age.csv")
    assert code == 0 and "Kolmogorov" in out and "--set 'task={name: age_regression}'" in err


def test_train_evaluate_calibrate_predict_and_runs_speak_of_labels(
    type_in: TypeIn, pictures: Path, labelled: Cohort, tmp_path: Path
) -> None:
    labelled.to_csv(tmp_path / "cohort.csv")
    code, _, err = type_in("train", "--config", "picture")
    assert code == 2 and "neuroage split --grouped" in err
    grouped_split(labelled, validation=0.25, test=0.25).save(tmp_path / "split.csv")
    code, _, err = type_in("train")
    assert code == 2 and "--config picture" in err and "Traceback" not in err
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    code, out, err = type_in("train", "--config", "recipe.yaml")
    assert code == 0, err
    assert "Striped" in out and "AUROC" in out and "specificity" in out and "linear" in out and "MAE" not in out
    assert "AUROC" in err and "knowing nothing 0.50" in err
    run = Run(tmp_path / "runs" / "picture")  # the recipe's modality, though --modality was not given
    assert run.curve_path.stat().st_size > 5000

    code, out, err = type_in("evaluate", run.folder)
    assert code == 0 and (run.folder / "evaluation-test" / "evaluation.html").is_file(), err
    code, out, err = type_in("evaluate", run.folder, "--subjects", "validation")
    assert code == 0 and "better than new subjects will show" in " ".join(out.split())

    code, out, err = type_in("calibrate", run.folder, "--threshold", "sensitivity>=0.9")
    assert code == 0 and "threshold (sensitivity>=0.9)" in out and "Figures of the test set" in err, err
    assert json.loads(run.calibration_path.read_text(encoding="utf-8"))["rule"] == "sensitivity>=0.9"
    for words, part in (
        (["--level", 0.8], "about ages"),
        (["--ages", "uniform"], "about ages"),
        (["--threshold", "sens>0.9"], "sensitivity>=X"),
    ):
        code, _, err = type_in("calibrate", run.folder, *words)
        assert code == 2 and part in err

    code, out, err = type_in("predict", run.folder, tmp_path / "cohort.csv", "--force")
    assert code == 0 and "predicted" in out and "… and 52 more" in out and "age" not in out, err
    assert {"probability_Bright", "predicted_Striped", "verdict"} <= set(pd.read_csv("predictions.csv").columns)

    code, out, err = type_in("runs", "runs", "--json")
    said = json.loads(out)
    row = said["runs"]["picture"]
    assert (
        code == 0 and 0 <= row["AUROC"] <= 1 and 0 <= row["linear"] <= 1 and row["set"] == "test" and "MAE" not in row
    )
    assert list(said["pictures"]) == ["validation_auroc"] and (tmp_path / "runs" / "curves.png").is_file()


def test_runs_of_ages_and_labels_stand_side_by_side_each_with_its_own_figure_and_curves(
    type_in: TypeIn, run: Run, cohort: Cohort, split: Split, store: Store, recipe: Recipe, tmp_path: Path
) -> None:
    train(recipe.updated("training.epochs=1"), cohort, split, tmp_path / "runs" / "t1", store=store)
    run.copy_to(tmp_path / "runs" / "two")
    code, out, err = type_in("runs", "runs", "--json")
    assert code == 0, err
    said = json.loads(out)
    assert said["runs"]["t1"]["AUROC"] is None and said["runs"]["two"]["MAE"] is None
    assert said["runs"]["t1"]["MAE"] > 0 and said["runs"]["two"]["AUROC"] > 0
    assert [Path(path).name for path in said["pictures"].values()] == ["curves.png", "curves-auroc.png"]
    code, out, _ = type_in("runs", "runs")
    assert code == 0 and "The recipes also differ in" in out and max(map(len, out.splitlines()[:3])) < 200
    code, _, err = type_in("compare", "runs/t1", "runs/two")
    assert code == 2 and "`compare` compares ages" in err and "neuroage cross" in err
    code, _, err = type_in("calibrate", "runs/t1", "--threshold", "f1")
    assert code == 2 and "predicts ages" in err
    code, _, err = type_in("cross", "runs/t1", "--data", tmp_path / "runs" / "two" / "cohort.csv")
    assert code == 2 and "predicts ages" in err


def test_external_scans_are_scored_without_those_that_were_trained_on(
    type_in: TypeIn, run: Run, labelled: Cohort, tmp_path: Path
) -> None:
    labelled.to_csv(tmp_path / "elsewhere.csv")
    code, out, err = type_in("evaluate", run.folder, "--data", "elsewhere.csv", "--out", "scored")
    assert code == 0 and "subjects were left out: the run was trained on them" in err, err
    assert (tmp_path / "scored" / "evaluation.html").is_file() and "AUROC" in out
    unlabelled = labelled.table.drop(columns=["label_Bright", "label_Striped"]).assign(age=40.0)
    Cohort(unlabelled).to_csv(tmp_path / "unlabelled.csv")
    code, _, err = type_in("evaluate", run.folder, "--data", "unlabelled.csv")
    assert code == 4 and "has a label" in err


def test_cross_prints_the_matrix_and_takes_files_among_the_runs_as_cohorts(
    type_in: TypeIn, run: Run, labelled: Cohort, tmp_path: Path
) -> None:
    held = run.split.subjects("test")
    labelled.to_csv(tmp_path / "all.csv")
    labelled.select(subject_ids=held).to_csv(tmp_path / "held.csv")
    code, out, err = type_in("cross", f"here={run.folder}", "--data", "here=all.csv", "held.csv", "--out", "matrix")
    assert code == 0, err
    assert "Mean AUROC, trained on (down) and tested on (across)" in out and "held" in out
    assert (tmp_path / "matrix" / "cross_domain.html").is_file()
    for words, part in (
        ([run.folder, "--data", "a=all.csv", "--data", "a=held.csv"], "Two are called 'a'"),
        (["all.csv", "--data", "held.csv"], "No RUN is named"),
        ([run.folder, "--data", "nowhere.csv"], "No cohort at nowhere.csv"),
        ([tmp_path / "nowhere", "--data", "all.csv"], "does not exist"),
    ):
        code, _, err = type_in("cross", *words)
        assert code == 2 and part in err


def test_rows_whose_image_is_gone_are_said_by_every_command(
    type_in: TypeIn, pictures: Path, labelled: Cohort, tmp_path: Path
) -> None:
    table = labelled.table.copy()
    table.loc[table.index[:2], "path"] = ["gone_1.png", "gone_2.png"]
    table.to_csv(tmp_path / "cohort.csv", index=False)
    code, _, err = type_in("split", "--no-duplicates", "--out", "some.csv")
    assert code == 0 and "gone_1.png" in err and "2 in all" in err


def test_index_says_which_labels_differ_in_case_only_and_which_columns_may_be_named(
    type_in: TypeIn, pictures: Path, tmp_path: Path
) -> None:
    table = pd.read_csv(pictures / "labels.csv").assign(path="", kind=["Glioma", "glioma", "none"] * N_PEOPLE)
    table.to_csv(tmp_path / "kinds.csv", index=False)
    code, _, err = type_in("index", tmp_path / "kinds.csv", "--label", "kind")
    assert code == 0 and "'Glioma', 'glioma' differ in case or blanks only" in err
    code, _, err = type_in("index", tmp_path / "kinds.csv", "--labels", "Bright, Striped", "--out", "two.csv")
    assert code == 0 and "differ in case" not in err
    code, _, err = type_in("index", tmp_path / "kinds.csv", "--out", "three.csv")
    assert code == 3 and "--labels A,B" in err


def test_explain_takes_a_folder_of_pictures(type_in: TypeIn, run: Run, pictures: Path, tmp_path: Path) -> None:
    some = tmp_path / "some"
    some.mkdir()
    for number, path in enumerate(sorted((pictures / "classes" / "bright").iterdir())[:2]):
        (some / f"{number}.png").write_bytes(path.read_bytes())
    code, _, err = type_in("explain", run.folder, some, "--out", "maps")
    assert code == 0, err
    assert len(pd.read_csv(tmp_path / "maps" / "maps.csv")) == 2
