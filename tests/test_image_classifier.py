"""The Python face of classification: fit, calibrate, evaluate, predict, explain, save and load."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import neuroage as na
from neuroage.errors import NeuroageError, RefusedError, UsageError
from neuroage.imaging.store import Store
from neuroage.runs.recipe import Recipe

TINY = {"name": "cnn", "n_blocks": 2, "features": 8}


def small(recipe: Recipe, task: str, *more: str) -> Recipe:
    return recipe.updated(f"task={task}", "training.epochs=8", "pool=average_max", *more)


@pytest.fixture(scope="module")
def classes(
    pictures: na.Cohort, picture_split: na.Split, store: Store, tmp_path_factory: pytest.TempPathFactory
) -> na.ImageClassifier:
    recipe = Recipe.from_dict(
        {
            "modality": "picture",
            "task": {"name": "multiclass"},
            "prepare": {"kind": "picture", "size": 24},
            "backbone": TINY,
            "optim": {"lr": 0.03},
            "training": {"epochs": 6, "batch_size": 8, "precision": "fp32"},
        }
    )
    folder = tmp_path_factory.mktemp("classes") / "run"
    return na.ImageClassifier(recipe, store=store.folder).fit(pictures, picture_split, out=folder)


@pytest.fixture(scope="module")
def labels(
    pictures: na.Cohort, picture_split: na.Split, store: Store, tmp_path_factory: pytest.TempPathFactory
) -> na.ImageClassifier:
    recipe = Recipe.from_dict(
        {
            "modality": "picture",
            "task": {"name": "multilabel"},
            "prepare": {"kind": "picture", "size": 24},
            "backbone": TINY,
            "pool": "average_max",
            "optim": {"lr": 0.03},
            "training": {"epochs": 10, "batch_size": 8, "precision": "fp32"},
        }
    )
    folder = tmp_path_factory.mktemp("labels") / "run"
    return na.ImageClassifier(recipe, store=store.folder).fit(pictures, picture_split, out=folder)


def test_a_backbone_by_name_takes_the_rest_from_the_recipe_for_pictures() -> None:
    model = na.ImageClassifier("cnn", task="multiclass", size=32, head=(8,), epochs=3, imbalance="class_weights")
    recipe = model.recipe
    assert recipe.backbone.name == "cnn"
    assert recipe.prepare.kind == "picture"
    assert recipe.prepare.size == (32, 32)
    assert recipe.head.hidden == (8,)
    assert (recipe.task.name, recipe.task.options["imbalance"]) == ("multiclass", "class_weights")
    assert recipe.training.epochs == 3
    assert na.ImageClassifier("cnn", size=(32, 48)).recipe.prepare.size == (32, 48)
    assert na.ImageClassifier("cnn", size=32, pretrained=False).recipe.backbone.name == "cnn"
    timm = na.ImageClassifier("resnet10t", task={"name": "binary", "label": "Rows"}, pretrained=False).recipe
    assert timm.backbone.name == "timm"
    assert timm.backbone.options["model"] == "resnet10t"
    assert timm.backbone.options["weights"] is None
    assert timm.task.options["label"] == "Rows"


def test_a_timm_model_is_fitted_in_phases_and_with_all_arguments(
    tmp_path: Path, pictures: na.Cohort, picture_split: na.Split, store: Store
) -> None:
    model = na.ImageClassifier(
        "resnet10t", task="multilabel", size=32, head=(8,), pretrained=False, store=store.folder, batch_size=16
    )
    model.fit(
        pictures,
        picture_split,
        out=tmp_path / "run",
        epochs=3,
        lr=3e-3,
        layer_decay=0.75,
        unfreeze={0: "head", 1: 0.5, 2: 1.0},
        imbalance="pos_weight",
        precision="fp32",
    )
    recipe = model.run.recipe
    assert recipe.finetune.unfreeze == {0: "head", 1: 0.5, 2: 1.0}
    assert (recipe.finetune.layer_decay, recipe.optim.lr, recipe.training.epochs) == (0.75, 3e-3, 3)
    assert recipe.task.options["imbalance"] == "pos_weight"
    assert len(model.evaluate().table) == 4  # three labels, and their mean
    maps = model.explain(pictures.sample(1), method="occlusion")
    assert maps.table["target"].iloc[0] in ("Rows", "Columns", "Spot")


def test_fit_calibrate_thresholds_and_evaluate_in_one_line(
    tmp_path: Path, labels: na.ImageClassifier, pictures: na.Cohort, store: Store
) -> None:
    before = labels.evaluate()
    assert before.sets == ("validation",)
    model = na.load(labels.save(tmp_path / "copy"))
    model._store = store.folder
    assert model.calibrate().choose_thresholds("sensitivity>=0.9") is model
    after = model.evaluate()
    assert after.sets == ("test",)  # what was chosen on the validation set is judged elsewhere
    assert list(after.table["label"]) == ["Rows", "Columns", "Spot", "macro"]
    on_validation = model.evaluate(subjects="validation")
    assert (on_validation.table["sensitivity"].head(3) >= 0.9).all()
    assert on_validation.table["auroc"].head(3).tolist() == pytest.approx(before.table["auroc"].head(3).tolist())
    table = model.predict(pictures.sample(6), force=True)
    thresholds = model.run.target["labels"]
    for label in thresholds:
        cut = {entry: value for entry, value in zip(*_thresholds(model), strict=True)}[label]
        expected = (table[f"probability_{label}"] >= cut).astype(float)
        assert table[f"predicted_{label}"].tolist() == expected.tolist()
    assert labels.evaluate().sets == ("validation",)  # the copy is another run


def _thresholds(model: na.ImageClassifier) -> tuple[list[str], list[float]]:
    import json

    found = json.loads(model.run.calibration_path.read_text(encoding="utf-8"))["thresholds"]
    return list(found), list(found.values())


def test_classes_are_calibrated_and_have_no_thresholds(tmp_path: Path, classes: na.ImageClassifier) -> None:
    model = na.load(classes.save(tmp_path / "copy"))
    model.calibrate()
    with pytest.raises(UsageError, match="thresholds for classes"):
        model.choose_thresholds("youden")
    with pytest.raises(UsageError, match="threshold rule"):
        model.choose_thresholds("sensitivity=0.9")
    with pytest.raises(UsageError, match=r"threshold rule 0\.5"):
        model.choose_thresholds(0.5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"takes a Cohort, not str.*Cohort\.read"):
        model.evaluate("cohort.csv")  # type: ignore[arg-type]


def test_another_cohort_is_aligned_by_label_names(
    labels: na.ImageClassifier, pictures: na.Cohort, picture_split: na.Split
) -> None:
    held_out = [*picture_split.subjects("validation"), *picture_split.subjects("test")]
    plain = labels.evaluate(pictures.select(subject_ids=held_out))
    table = pictures.table
    others = [name for name in table.columns if not str(name).startswith("label_")]
    turned = na.Cohort(table[[*others, "label_Spot", "label_Columns", "label_Rows"]].assign(label_Zebra=1.0))
    again = labels.evaluate(turned)  # with the subjects trained on, who are left out
    assert again.n_subjects == plain.n_subjects == len(held_out)
    pd.testing.assert_frame_equal(again.table, plain.table)
    fewer = labels.evaluate(na.Cohort(table.drop(columns=["label_Columns"])))
    by_label = fewer.table.set_index("label")
    assert np.isnan(by_label.loc["Columns", "auroc"])
    assert by_label.loc["Rows", "auroc"] == plain.table.set_index("label").loc["Rows", "auroc"]
    assert [entry["label"] for entry in fewer.undefined] == ["Columns"]


def test_a_class_that_the_model_does_not_know_is_said(
    classes: na.ImageClassifier, pictures: na.Cohort, picture_split: na.Split
) -> None:
    table = pictures.select(subject_ids=picture_split.subjects("test")).table.copy()
    table.loc[table.index[:4], "label"] = "swirl"
    with pytest.raises(NeuroageError, match=r"class 'swirl'.*expected one of 'None', 'both'"):
        classes.evaluate(na.Cohort(table))


def test_subjects_trained_on_are_never_evaluated(
    classes: na.ImageClassifier, pictures: na.Cohort, picture_split: na.Split
) -> None:
    trained = picture_split.subjects("train")
    with pytest.raises(RefusedError, match="was trained on, or chosen by, all"):
        classes.evaluate(pictures.select(subject_ids=trained))
    n_held_out = len(picture_split.subjects("validation")) + len(picture_split.subjects("test"))
    assert classes.evaluate(pictures).n_subjects == n_held_out
    marked = classes.predict(pictures.select(subject_ids=[trained[0], picture_split.subjects("test")[0]]), force=True)
    assert marked.set_index("subject_id")["trained_on"].groupby(level=0).all().to_dict() == {
        trained[0]: True,
        picture_split.subjects("test")[0]: False,
    }


def test_a_file_is_predicted_without_labels(
    classes: na.ImageClassifier, labels: na.ImageClassifier, pictures: na.Cohort
) -> None:
    path = pictures.table["path"].iloc[0]
    of_classes = classes.predict(path, force=True)
    assert len(of_classes) == 1
    columns = [f"probability_{name}" for name in classes.run.target["labels"]]
    assert of_classes[columns].sum(axis=1).tolist() == pytest.approx([1.0])
    assert of_classes["predicted_label"].iloc[0] == of_classes[columns].iloc[0].idxmax().removeprefix("probability_")
    of_labels = labels.predict([Path(path)], force=True)
    assert set(of_labels["predicted_Rows"]) <= {0.0, 1.0}
    assert not [name for name in of_labels.columns if str(name).startswith("target_") and of_labels[name].notna().any()]


@pytest.mark.parametrize("name", ["classes", "labels"])
def test_a_refused_scan_has_no_answer(
    name: str, pictures: na.Cohort, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model: na.ImageClassifier = request.getfixturevalue(name)
    bare = tmp_path / "bare.png"  # nothing like a training picture: a bright corner, turned and inverted
    shades = np.zeros((24, 24), dtype=np.uint8)
    shades[:2, :12] = 255
    Image.fromarray(shades).save(bare)
    table = model.predict([*pictures.table["path"].head(3), bare]).set_index("scan_id")
    assert table["verdict"].to_dict()["bare"] == "refuse"
    answers = [column for column in table.columns if str(column).startswith(("probability_", "predicted_"))]
    assert table.loc["bare", answers].isna().all()
    assert table.drop(index="bare")[answers].notna().all(axis=None)
    forced = model.predict(bare, force=True)
    assert forced[answers].notna().all(axis=None)
    assert forced["verdict"].tolist() == ["refuse"]
    with pytest.raises(RefusedError, match="Refused: the scan"):
        model.predict(bare)


def test_explain_saves_pictures(tmp_path: Path, classes: na.ImageClassifier, pictures: na.Cohort) -> None:
    maps = classes.explain(pictures.sample(2))
    assert len(maps.table) == 2
    maps.save(tmp_path / "maps")
    assert len(list((tmp_path / "maps").rglob("*.png"))) >= 2


def test_save_and_load_give_the_same_model(
    tmp_path: Path, classes: na.ImageClassifier, pictures: na.Cohort, store: Store
) -> None:
    loaded = na.load(classes.save(tmp_path / "saved"))
    assert type(loaded) is na.ImageClassifier
    some = pictures.sample(5, seed=1)
    pd.testing.assert_frame_equal(loaded.predict(some, force=True), classes.predict(some, force=True))
    pd.testing.assert_frame_equal(loaded.evaluate().labels_table(), classes.evaluate().labels_table())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: na.ImageClassifier("cnn", task="multiklass"), "multiclass"),
        (lambda: na.ImageClassifier("rezzznet"), "rezzznet"),
        (lambda: na.ImageClassifier("cnn", size=4), "size"),
        (lambda: na.ImageClassifier("cnn", head=(0,)), "hidden"),
        (lambda: na.ImageClassifier("cnn", epoch=4), "epochs"),
        (lambda: na.ImageClassifier("cnn", task="multilabel", imbalance="pos_weight+sampler"), "twice"),
        (lambda: na.ImageClassifier("cnn", task="age_regression"), "AgeRegressor"),
        (lambda: na.AgeRegressor("picture"), "ImageClassifier"),
    ],
)
def test_wrong_arguments_give_one_clear_sentence(
    make, said: str, tmp_path: Path, pictures: na.Cohort, picture_split: na.Split, store: Store
) -> None:
    with pytest.raises(UsageError, match=said):
        model = make()
        model._store = store.folder
        model.fit(pictures, picture_split, out=tmp_path / "run", epochs=1)
    assert not (tmp_path / "run").exists()


def test_a_task_whose_column_is_missing_is_said(
    tmp_path: Path, pictures: na.Cohort, picture_split: na.Split, store: Store
) -> None:
    bare = na.Cohort(pictures.table[["scan_id", "subject_id", "path", "age"]])
    for task in ("multiclass", "multilabel", {"name": "binary", "label": "Rows"}):
        with pytest.raises(NeuroageError, match=r"no column|neither a column"):
            na.ImageClassifier("cnn", task=task, size=24, store=store.folder).fit(
                bare, picture_split, out=tmp_path / "run"
            )


def test_numbers_of_any_kind_are_taken_as_arguments() -> None:
    model = na.ImageClassifier("cnn", size=np.int64(32), head=np.array([8]), lr=np.float32(0.5), epochs=np.int64(2))
    assert (model.recipe.optim.lr, model.recipe.training.epochs) == (0.5, 2)
    assert model.recipe.prepare.size == (32, 32)


def test_a_model_of_any_pictures_takes_the_only_modality_of_a_cohort(
    tmp_path: Path, pictures: na.Cohort, picture_split: na.Split, store: Store
) -> None:
    rays = na.Cohort(pictures.table.assign(modality="xray"))
    model = na.ImageClassifier("cnn", task="multiclass", size=24, store=store.folder, epochs=1, precision="fp32")
    model.fit(rays, picture_split, out=tmp_path / "run")
    assert model.run.recipe.modality == "xray"
    assert len(model.predict(rays.sample(2), force=True)) == 2
    other = na.ImageClassifier("cnn", task="multiclass", size=24, store=store.folder, modality="slice")
    with pytest.raises(UsageError, match=r"'slice'.*'xray'"):
        other.fit(rays, picture_split, out=tmp_path / "other")
