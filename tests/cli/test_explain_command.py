"""`neuroage explain` as users type it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from neuroage.cohort import Cohort, Split
from neuroage.imaging.store import Store
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run
from neuroage.training.train import train


@pytest.fixture(scope="module")
def run(cohort: Cohort, split: Split, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Run:
    recipe = Recipe.from_dict(
        {
            "modality": "t1",
            "prepare": {"spacing_mm": 8.0, "size": [12, 12, 12], "centre": "image"},
            "backbone": {"name": "cnn", "n_blocks": 2, "features": 4},
            "training": {"epochs": 1, "batch_size": 6, "precision": "fp32"},
        }
    )
    return train(recipe, cohort, split, tmp_path_factory.mktemp("runs") / "run", store=store)


def test_explain_writes_maps_shows_a_table_and_scores_boxes(
    type_in: Any, run: Run, cohort: Cohort, store: Store, tmp_path: Path
) -> None:
    scans = cohort.select(modality="t1").table.head(3)
    boxes = {"x": 20.0, "y": 20.0, "z": 20.0, "width": 30.0, "depth": 30.0, "height": 30.0}
    scans[["scan_id"]].assign(**boxes).to_csv(tmp_path / "boxes.csv", index=False)
    words = ["explain", run.folder, *scans["path"], "--store", store.folder, "--out", tmp_path / "maps"]
    code, out, err = type_in(*words, "--boxes", tmp_path / "boxes.csv")
    assert code == 0, err
    assert all(f"{scan_id}_map.nii.gz" in out and "years" in out for scan_id in scans["scan_id"])
    assert "pointing_game" in out and "index.html" in err
    assert len(pd.read_csv(tmp_path / "maps" / "maps.csv")) == 3
    code, out, _ = type_in(*words, "--method", "occlusion", "--json")
    said = json.loads(out)
    assert code == 0 and said["method"] == "occlusion" and len(said["scans"]) == 3
    assert all((tmp_path / "maps" / row["file"]).is_file() for row in said["scans"])


def test_explain_refuses_in_one_sentence_what_it_cannot_do(
    type_in: Any, run: Run, cohort: Cohort, store: Store, tmp_path: Path
) -> None:
    path = cohort.select(modality="t1").table["path"].iloc[0]
    for words, said in (
        (["--target", "tumour"], "No target 'tumour'"),
        (["--layer", "block"], "blocks.1"),
        (["--method", "occlusion", "--layer", "blocks.0"], "no layer"),
        (["--boxes", tmp_path / "none.csv"], "No table of boxes"),
    ):
        code, _, err = type_in("explain", run.folder, path, "--store", store.folder, "--out", tmp_path / "maps", *words)
        assert code == 2 and said in err
    assert not (tmp_path / "maps").exists()
