from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from neuroage.cohort import Cohort
from neuroage.imaging.preview import DRAWINGS, preview
from neuroage.imaging.store import PREPARERS
from neuroage.runs.recipe import Recipe
from neuroage.training.augmentation import build_augmentation

STEPS = [{"step": "flip", "p": 1.0}, {"step": "noise", "p": 1.0, "std": 0.1}]


def picture_file(folder: Path, colours: bool) -> Path:
    data = np.random.default_rng(0).integers(0, 255, (40, 60, 3) if colours else (40, 60)).astype(np.uint8)
    Image.fromarray(data).save(folder / "a.png")
    return folder / "a.png"


def test_every_kind_that_is_prepared_is_drawn() -> None:
    assert set(DRAWINGS) == set(PREPARERS)


@pytest.mark.parametrize("channels", ["gray", "rgb"])
def test_pictures_are_drawn_as_stored_prepared_and_augmented(tmp_path: Path, channels: str) -> None:
    prepare = {"kind": "picture", "size": [32, 48], "channels": channels}
    recipe = Recipe.from_dict({"prepare": prepare, "augment": STEPS})
    path = picture_file(tmp_path, channels == "rgb")
    preview([("one", path), ("two", path)], recipe, build_augmentation(recipe), tmp_path / "out.png", n_augmented=2)
    drawn = np.asarray(Image.open(tmp_path / "out.png").convert("RGB")).astype(float)
    assert drawn.shape[1] > 1.5 * drawn.shape[0]  # four columns, two rows
    assert (drawn.std(axis=2).max() > 20) == (channels == "rgb")
    assert drawn.max() > 200


def test_volumes_are_drawn_in_three_planes(tmp_path: Path, cohort: Cohort, recipe: Recipe) -> None:
    path = cohort.table["path"].iloc[0]
    preview([("one", path)], recipe, build_augmentation(recipe), tmp_path / "out.png", n_augmented=1)
    drawn = np.asarray(Image.open(tmp_path / "out.png").convert("L"))
    assert abs(drawn.shape[0] - drawn.shape[1]) < 0.1 * drawn.shape[0]  # three rows, three columns
