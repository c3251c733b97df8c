"""The page "One scan's way" is true: a phantom scan is followed, and every shape on the page is checked."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from neuroage.cohort import Cohort, uniform_age_split
from neuroage.imaging.batches import VolumeSet
from neuroage.imaging.phantom import make_phantom
from neuroage.imaging.picture import read_picture
from neuroage.imaging.preparation import prepare_scans
from neuroage.imaging.prepare import prepare
from neuroage.imaging.read import read
from neuroage.imaging.store import Store
from neuroage.models.network import build_network
from neuroage.models.tasks import build_task
from neuroage.runs.recipe import Recipe
from neuroage.training.augmentation import build_augmentation
from neuroage.training.scoring import predictions_table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "one-scans-way.md"


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def stations(page: str) -> dict[str, str]:
    """Station → the shape or value that the page states."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    return {station.replace("`", ""): value.strip("`") for station, _, value in rows[2:]}


def test_the_page_states_the_shapes_that_a_scan_really_has(page: str, stations: dict[str, str], tmp_path: Path) -> None:
    seen: dict[str, str] = {}
    make_phantom(tmp_path / "phantom", n_subjects=7)
    recipe = Recipe.from_dict(yaml.safe_load(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1]))

    cohort = Cohort.read(tmp_path / "phantom").select(modality="t1")
    scan = cohort.scans()[0]
    assert scan.path is not None and scan.path.name == "sub-0001_T1w.nii.gz"
    stored_image = nib.load(scan.path)
    assert stored_image.get_data_dtype() == np.int16
    seen["file"] = str(stored_image.shape)
    seen["cohort: reader → Cohort"] = f"scan_id={scan.scan_id}"

    split = uniform_age_split(cohort, n_validation=2, exact=True, max_share_per_decade=1.0)
    sets = split.sets(0)
    seen["Split"] = sets[scan.subject_id]

    volume = read(scan.path)
    assert volume.data.dtype == np.float32 and volume.affine.shape == (4, 4)
    assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")
    seen["imaging.read"] = str(volume.data.shape)

    prepared = prepare(volume, recipe.prepare)
    seen["imaging.prepare"] = str(prepared.data.shape)

    together = prepare_scans(cohort.scans(), recipe.prepare, Store(tmp_path / "store"))
    stored = together.volumes[scan.scan_id]
    assert stored.map().dtype == np.uint8 and isinstance(stored.map(), np.memmap)
    assert np.abs(stored.load() - prepared.data).max() <= stored.record["precision_loss"] * 1.001
    seen["imaging.store"] = str(stored.map().shape)

    rows = cohort.table.set_index("scan_id", drop=False).assign(set=lambda table: table["subject_id"].map(sets))
    rows = rows[rows["set"] == "train"].iloc[: recipe.training.batch_size]
    assert rows.index[0] == scan.scan_id
    batch = VolumeSet([together.volumes[scan_id] for scan_id in rows.index]).batch(range(len(rows)))
    assert batch.dtype == torch.float32
    seen["batch"] = str(tuple(batch.shape))

    before = batch.clone()
    augmented, record = build_augmentation(recipe)(batch, [(0, position) for position in range(len(rows))])
    assert torch.equal(batch, before) and not torch.equal(augmented, before)
    assert len({str(drawn["affine"]) for drawn in record}) == len(rows), "each scan has its own draw"
    seen["imaging.augment"] = str(tuple(augmented.shape))

    task = build_task(recipe)
    task.fit(rows)
    network = build_network(recipe, spatial_dims=3, in_channels=1, n_outputs=task.n_outputs).eval()
    with torch.no_grad():
        seen["backbone"] = str(tuple(network.backbone(augmented).shape))
        seen["pool"] = str(tuple(network.features(augmented).shape))
        outputs = network(augmented)
    seen["head"] = str(tuple(outputs.shape))
    seen["task.loss"] = str(tuple(task.loss(outputs, task.encode(rows)).shape))
    years = task.decode(outputs)["predicted_age"]
    seen["task.decode"] = str(tuple(years.shape))

    table = predictions_table(rows, task, outputs, fold=0, member="")
    named = re.search(r"\| predictions \| `(.+?)`", page)[1].split(", ")
    assert set(named) <= set(table.columns)
    assert np.allclose(table["predicted_age"], years.numpy())
    seen["predictions"] = f"{len(table)} rows"

    assert seen == stations
    assert len(seen) == 14


def test_a_picture_goes_the_same_way_with_the_shapes_that_the_page_states(page: str, tmp_path: Path) -> None:
    text = " ".join(page.split("## A picture's way")[1].split())
    picture = np.random.default_rng(0).integers(0, 255, (50, 80), dtype=np.uint8)
    for index in range(4):
        Image.fromarray(picture).save(tmp_path / f"{index}.png")
    prepare_section, task_section = re.findall(r"`(?:prepare|task): (\{[^`]*\})`", text)
    recipe = Recipe.from_dict({"prepare": yaml.safe_load(prepare_section), "task": yaml.safe_load(task_section)})
    table = pd.DataFrame(
        {
            "subject_id": list("abcd"),
            "label": ["x", "y", "x", "y"],
            "path": [str(tmp_path / f"{index}.png") for index in range(4)],
        }
    )
    cohort = Cohort(table)
    seen = [read_picture(cohort.scans()[0].path).data.shape]
    stored = prepare_scans(cohort.scans(), recipe.prepare, Store(tmp_path / "store")).volumes
    seen.append(stored["a"].map().shape)
    batch = VolumeSet(list(stored.values())).batch(range(4))
    seen.append(tuple(batch.shape))
    task = build_task(recipe)
    task.fit(cohort.table)
    network = build_network(recipe, spatial_dims=2, in_channels=1, n_outputs=task.n_outputs).eval()
    with torch.no_grad():
        seen.append(tuple(network.backbone(batch).shape))
        decoded = task.decode(network(batch))
    assert [str(shape) for shape in seen] == re.findall(r"`(\(\d[^`]*\))`", text)
    assert list(decoded) == ["probability_x", "probability_y"]
