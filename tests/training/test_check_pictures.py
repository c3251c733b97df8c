"""Made pictures, a network that was hardly trained on them, and the mistakes that people make with pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import ndimage

from neuroage.cohort import Cohort, uniform_age_split
from neuroage.imaging.store import Store
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run
from neuroage.training.check import check
from neuroage.training.inputs import gather_scans
from neuroage.training.train import train

N_SUBJECTS, N_HELD_OUT, SIDE = 60, 12, 96


def chest(index: int) -> np.ndarray:
    """Two dark lungs in a bright body, a heart on one side, a dark background: as light as a chest can be drawn."""
    rng = np.random.default_rng(index)
    rows, columns = np.meshgrid(*[np.linspace(-1, 1, SIDE)] * 2, indexing="ij")
    rows, columns = rows + rng.normal(0, 0.04), columns + rng.normal(0, 0.04)

    def blob(row: float, column: float, height: float, width: float) -> np.ndarray:
        return ((rows - row) / height) ** 2 + ((columns - column) / width) ** 2 < 1

    size = rng.normal(1, 0.05)
    data = np.where(blob(0.3, 0, 1.3 * size, 0.85 * size), 170.0, 5.0)
    data[blob(0, -0.4, 0.6, 0.28 * size) | blob(0, 0.4, 0.6, 0.28 * size)] = 70
    data[blob(0.25, 0.25, 0.3 * size, 0.25)] = 215
    data[blob(-0.95, 0, 0.2, 0.15)] = 190
    data = ndimage.gaussian_filter(data, 1) + rng.normal(0, 5, data.shape)
    return np.clip(data, 0, 250).astype(np.uint8)


def save(path: Path, data: np.ndarray) -> Path:
    Image.fromarray(np.ascontiguousarray(data)).save(path)
    return path


@pytest.fixture(scope="module")
def chests(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("chests")
    rows = []
    for index, age in enumerate(np.linspace(20, 80, N_SUBJECTS)):
        path = save(folder / f"p{index:02d}.png", chest(index))
        rows.append({"scan_id": path.stem, "subject_id": path.stem, "path": str(path), "age": age})
    return Cohort(pd.DataFrame(rows).assign(session="", modality="xray", sex="", site=""))


@pytest.fixture(scope="module")
def run(chests: Cohort, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Run:
    recipe = Recipe.from_dict(
        {
            "modality": "xray",
            "prepare": {"kind": "picture", "size": 64},
            "backbone": {"name": "cnn", "n_blocks": 2, "features": 4},
            "training": {"epochs": 2, "batch_size": 8, "precision": "fp32"},
        }
    )
    split = uniform_age_split(chests, n_validation=N_HELD_OUT, seed=0)
    return train(recipe, chests, split, tmp_path_factory.mktemp("runs") / "xray", store=store)


@pytest.fixture(scope="module")
def held_out(run: Run, chests: Cohort) -> list[Path]:
    subjects = run.split.subjects("validation")
    return [Path(path) for path in chests.table.loc[chests.table["subject_id"].isin(subjects), "path"]]


def checked(run: Run, files: list[Path], store: Store) -> pd.DataFrame:
    return check(run, gather_scans(files, "xray", kind="picture"), store=store)[0]


def test_clean_held_out_pictures_are_ok(run: Run, held_out: list[Path], store: Store) -> None:
    table = checked(run, held_out, store)
    assert len(table) == N_HELD_OUT
    assert (table["verdict"] != "ok").sum() <= 1, table["concerns"].tolist()


def photograph(data: np.ndarray) -> np.ndarray:
    return np.stack([data, data * 0.8, data * 0.6], axis=-1).astype(np.uint8)


MISTAKES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str | None, str]] = {
    "inverted": (lambda a: 255 - a, "refuse", "dark and bright are exchanged"),
    "upside down": (lambda a: a[::-1, ::-1], "refuse", "upside down"),
    "flipped up–down": (lambda a: a[::-1], "refuse", "upside down"),
    "clockwise": (lambda a: np.rot90(a, -1), "refuse", "turned by 90° clockwise"),
    "anticlockwise": (lambda a: np.rot90(a), "refuse", "turned by 90° anticlockwise"),
    "mirrored": (lambda a: a[:, ::-1], "warn", "left and right are exchanged"),
    "window too narrow": (lambda a: np.clip(a * 2.0 - 200, 0, 255).astype(np.uint8), None, "cut off"),
    "blurred": (lambda a: ndimage.gaussian_filter(a, 5), None, "smoothed"),
    "photograph": (photograph, "warn", "photograph"),
    "margins": (lambda a: np.pad(a, ((0, 0), (60, 60))), None, "empty margins"),
    "cropped": (lambda a: a[20:60, 20:60], None, "fine detail is missing"),
    "mask": (lambda a: (a > 100).astype(np.uint8) * 255, "refuse", "distinct values"),
}


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_each_mistake_is_flagged_in_its_own_words(
    mistake: str, run: Run, held_out: list[Path], store: Store, tmp_path: Path
) -> None:
    make, verdict, words = MISTAKES[mistake]
    files = [save(tmp_path / path.name, make(np.asarray(Image.open(path)))) for path in held_out[:3]]
    table = checked(run, files, store)
    assert (table["verdict"] != "ok").all()
    assert verdict is None or (table["verdict"] == verdict).all(), table["concerns"].tolist()
    assert table["concerns"].str.contains(words).all(), table["concerns"].tolist()
    assert not table["concerns"].str.contains("scan").any()


def test_another_kind_of_picture_is_refused(run: Run, store: Store, tmp_path: Path) -> None:
    rows, columns = np.meshgrid(*[np.linspace(-1, 1, SIDE)] * 2, indexing="ij")
    head = np.where((rows / 0.8) ** 2 + (columns / 0.6) ** 2 < 1, 120 + 60 * np.sin(20 * rows * columns), 0)
    row = checked(run, [save(tmp_path / "head.png", head.astype(np.uint8))], store).iloc[0]
    assert row["verdict"] == "refuse" and "another kind of picture" in row["concerns"]


def test_files_and_folders_of_pictures_are_gathered(tmp_path: Path) -> None:
    (tmp_path / "folder" / "deeper").mkdir(parents=True)
    save(tmp_path / "x.png", chest(0))
    save(tmp_path / "folder" / "y.jpg", chest(1))
    save(tmp_path / "folder" / "deeper" / "y.tif", chest(2))
    (tmp_path / "folder" / "z.dcm").write_bytes(b"")
    (tmp_path / "folder" / "IM0007").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "folder" / "notes.txt").write_text("no picture")
    table = gather_scans([tmp_path / "x.png", tmp_path / "folder"], "xray", kind="picture").table
    assert sorted(Path(path).name for path in table["path"]) == ["IM0007", "x.png", "y.jpg", "y.tif", "z.dcm"]
    assert table["scan_id"].is_unique and "x" in table["scan_id"].tolist()
