"""Trained here, tested there, on two made hospitals: one shows pictures as negatives, with fainter stripes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from picture_cases import PICTURE_PIXELS, striped_picture
from PIL import Image

import neuroage as na
from neuroage.errors import InfeasibleError, UsageError
from neuroage.imaging.store import Store
from neuroage.runs.recipe import Recipe
from neuroage.training.across import count_shared_images
from neuroage.training.observer import Observer

RECIPE = Recipe.from_dict(
    {
        "modality": "picture",
        "task": {"name": "multilabel"},
        "prepare": {"kind": "picture", "size": PICTURE_PIXELS, "intensity": "range"},
        "backbone": {"name": "cnn", "n_blocks": 2, "features": 8},
        "pool": "average_max",
        "optim": {"lr": 0.03},
        "training": {"epochs": 10, "batch_size": 8, "precision": "fp32"},
    }
)
N_COPIES, N_SHARED = 4, 3


@pytest.fixture(scope="module")
def elsewhere(pictures: na.Cohort, picture_split: na.Split, tmp_path_factory: pytest.TempPathFactory) -> na.Cohort:
    """60 pictures without spots and with a label of their own; four are copies of here, three subjects are of here."""
    folder = tmp_path_factory.mktemp("elsewhere")
    rng = np.random.default_rng(8)
    rows = []
    trained = pictures.table[pictures.table["subject_id"].isin(picture_split.subjects("train"))]
    for index in range(60):
        stripes, columns = index % 2 == 0, index // 2 % 2 == 0
        shades = 255 - striped_picture(stripes, columns, False, 50.0, rng).astype(float)
        shades = 120 + 0.6 * (shades - 120)
        path = folder / f"elsewhere-{index:02d}.png"
        Image.fromarray(shades.astype(np.uint8)).save(path)
        subject = f"patient-{index // 2:02d}"
        if index < N_COPIES:
            path.write_bytes(Path(trained["path"].iloc[index]).read_bytes())
        elif index >= 60 - 2 * N_SHARED:
            subject = trained["subject_id"].unique()[index // 2 % N_SHARED]
        rows.append(
            {
                "scan_id": path.stem,
                "subject_id": subject,
                "path": str(path),
                "label_Zebra": float(index % 3 == 0),
                "label_Columns": float(columns),
                "label_Rows": float(stripes),
            }
        )
    return na.Cohort(pd.DataFrame(rows))


@pytest.fixture(scope="module")
def models(
    pictures: na.Cohort,
    picture_split: na.Split,
    elsewhere: na.Cohort,
    store: Store,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, na.ImageClassifier]:
    folder = tmp_path_factory.mktemp("across")
    there = na.Cohort(elsewhere.table[~elsewhere.table["subject_id"].str.startswith("person")])
    split = na.grouped_split(there, validation=0.3, test=0, seed=0)
    return {
        "here": na.ImageClassifier(RECIPE, store=store.folder).fit(pictures, picture_split, out=folder / "here"),
        "there": na.ImageClassifier(RECIPE, store=store.folder).fit(there, split, out=folder / "there"),
    }


class Notes(Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def found(
    models: dict[str, na.ImageClassifier],
    pictures: na.Cohort,
    elsewhere: na.Cohort,
    store: Store,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[na.analysis.CrossDomain, Path]:
    out = tmp_path_factory.mktemp("page")
    cohorts = {"here": pictures, "there": elsewhere}
    return na.cross_domain(models, cohorts, out=out, store=store), out


def test_every_model_is_tested_on_every_data_set(found) -> None:
    result = found[0]
    assert (result.trains, result.tests) == (("here", "there"), ("here", "there"))
    assert set(result.labels) == {"Rows", "Columns", "Spot", "Zebra"}
    assert set(result.common_labels) == {"Rows", "Columns"}
    matrix = result.matrix("Rows")
    assert matrix.shape == (2, 2)
    assert matrix.notna().all(axis=None)
    assert matrix.loc["here", "here"] > 0.9
    rows = result.table.set_index(["train", "test", "label"])
    for train, test in (("here", "there"), ("there", "here")):
        drop = matrix.loc[train, train] - matrix.loc[train, test]
        assert rows.loc[(train, test, "Rows"), "drop"] == pytest.approx(drop)


def test_a_label_that_a_side_lacks_leaves_its_cell_blank(found) -> None:
    result = found[0]
    spot, zebra = result.matrix("Spot"), result.matrix("Zebra")
    assert spot.loc["here"].notna().tolist() == [True, False]
    assert spot.loc["there"].isna().all()
    assert zebra.loc["here"].isna().all()
    assert zebra.loc["there"].notna().tolist() == [False, True]
    why = result.table.set_index(["train", "test", "label"])["absent"]
    assert why["there", "here", "Spot"] == "the model does not know it"
    assert why["here", "there", "Spot"]
    assert why["here", "here", "Spot"] == ""


def test_who_was_trained_on_is_never_tested(
    found, models: dict[str, na.ImageClassifier], elsewhere: na.Cohort, picture_split: na.Split, store: Store
) -> None:
    table = found[0].table.query("label == 'Rows'").set_index(["train", "test"])
    assert table.loc[("here", "here"), "n_subjects"] == len(picture_split.subjects("validation"))
    assert table.loc[("here", "there"), "shared_subjects"] == N_SHARED
    assert table.loc[[("here", "here"), ("there", "there"), ("there", "here")], "shared_subjects"].eq(0).all()
    assert table.loc[("here", "there"), "n_subjects"] == table.loc[("there", "there"), "n_subjects"]
    told = Notes()
    alone = na.cross_domain({"here": models["here"]}, {"all of there": elsewhere}, store=store, observer=told)
    assert f"{N_SHARED} subjects of all of there are left out: a model was trained on them." in told.notes
    assert alone.n_subjects == elsewhere.table["subject_id"].nunique() - N_SHARED
    assert alone.table["shared_images"].eq(N_COPIES).all()


def test_pictures_that_both_sides_have_are_counted(elsewhere: na.Cohort, pictures: na.Cohort) -> None:
    assert count_shared_images(pictures, elsewhere) == N_COPIES
    assert count_shared_images(pictures, pictures.sample(5)) == 5


def test_the_table_the_map_and_the_page_are_written(found) -> None:
    result, out = found
    names = {path.name for path in out.iterdir()}
    assert {path.suffix for path in out.iterdir()} >= {".csv", ".png", ".html"}, names
    [written] = [pd.read_csv(path) for path in out.glob("*.csv")]
    assert len(written) == len(result.table)
    assert "AUROC" in result.verdict


def test_one_model_from_a_folder_on_one_cohort(
    models: dict[str, na.ImageClassifier], pictures: na.Cohort, store: Store
) -> None:
    result = na.cross_domain({"here": models["here"].run.folder}, {"here": pictures}, store=store)
    assert result.matrix("Rows").shape == (1, 1)


def test_what_cannot_be_compared_is_said(
    models: dict[str, na.ImageClassifier], pictures: na.Cohort, picture_split: na.Split, store: Store
) -> None:
    with pytest.raises(UsageError, match="needs models and cohorts"):
        na.cross_domain({}, {"here": pictures}, store=store)
    trained = pictures.select(subject_ids=picture_split.subjects("train"))
    with pytest.raises(InfeasibleError, match="No scan of other may be tested"):
        na.cross_domain({"here": models["here"]}, {"other": trained}, store=store)
