"""Pictures of maps, the folder that they are saved in, and regions on prepared grids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from neuroage.errors import DataError
from neuroage.imaging.maps import Maps, ScanMap
from neuroage.imaging.overlay import Colours, draw_map, strongest_place
from neuroage.imaging.regions import mask_of_boxes, mask_of_volume

IDENTITY = np.eye(3)


def picture_map(scan_id: str = "a", target: str = "pneumonia", **given: Any) -> ScanMap:
    map_ = np.zeros((20, 30), dtype=np.float32)
    map_[4:8, 10:16] = 1.0
    image = np.tile(np.linspace(0, 1, 30, dtype=np.float32), (1, 20, 1))
    return ScanMap(scan_id, target, 1.5, map_, image, IDENTITY, probability=0.82, **given)


def volume_map(scan_id: str = "v") -> ScanMap:
    map_ = np.zeros((12, 14, 10), dtype=np.float32)
    map_[3, 9, 4] = -2.0
    image = np.ones((1, 12, 14, 10), dtype=np.float32)
    image[:, 0] = 0
    affine = np.array([[4.0, 0, 0, -24], [0, 4, 0, -28], [0, 0, 4, -20], [0, 0, 0, 1]])
    return ScanMap(scan_id, "age", 61.25, map_, image, affine)


def colours_in(path: Path) -> np.ndarray:
    """How far each pixel is from grey, (H, W)."""
    picture = np.asarray(imread(path), dtype=float)[..., :3]
    return np.asarray(picture.max(axis=2) - picture.min(axis=2))


def test_a_picture_is_shown_with_and_without_its_map(tmp_path: Path) -> None:
    scan = picture_map()
    for name, map_ in (("with", scan.map), ("without", 0 * scan.map), ("against", -scan.map)):
        draw_map(scan.image, map_, tmp_path / f"{name}.png", title="t", unit="u", two_sided=False)
    coloured = {name: (colours_in(tmp_path / f"{name}.png") > 0.2) for name in ("with", "without", "against")}
    half = coloured["with"].shape[1] // 2 - 40
    assert coloured["with"][:, half:].sum() > coloured["without"][:, half:].sum() + 500
    assert coloured["with"][:, :half].sum() == 0
    assert coloured["against"].sum() == coloured["without"].sum()


def test_what_pushes_down_is_blue_and_what_pushes_up_is_red() -> None:
    painted = Colours.of(np.array([[-1.0, 1.0, 0.0]]), two_sided=True).paint(np.array([[-1.0, 1.0, 0.0]]))[0]
    assert painted[0, 2] > painted[0, 0] and painted[1, 0] > painted[1, 2]
    assert painted[2, 3] == 0 and painted[:2, 3].min() > 0.7


def test_planes_go_through_the_strongest_place_that_is_not_background(tmp_path: Path) -> None:
    from neuroage.imaging.overlay import _planes

    scan = volume_map()
    map_ = scan.map.copy()
    image = np.zeros((12, 14, 10), dtype=np.float32)
    image[2:10, 2:12, 2:8] = np.arange(10)[:, None] + np.arange(2, 8)
    map_[0, 0, 0] = 9.0  # in the background
    planes = {name: (picture, over) for name, picture, over, _ in _planes(image, map_, (4, 4, 4), True, True)}
    assert planes["sagittal"][1].shape == (10, 14) and planes["axial"][1].shape == (14, 12)
    for _, over in planes.values():
        assert over.min() == -2.0
    row, column = np.unravel_index(planes["axial"][1].argmin(), (14, 12))
    assert (row, column) == (13 - 9, 3)  # anterior is up, the patient's left on the left
    turned = {name: over for name, _, over, _ in _planes(image[::-1], map_[::-1], (4, 4, 4), False, True)}
    assert np.array_equal(turned["axial"], planes["axial"][1])
    assert strongest_place(np.zeros((4, 6)), True) == (2, 3)


@pytest.mark.parametrize("scan", [picture_map("sub/01 <b>"), volume_map("sub/01 <b>")], ids=["2D", "3D"])
def test_a_folder_of_maps_is_whole_and_safe_with_any_name(scan: ScanMap, tmp_path: Path) -> None:
    maps = Maps([scan, scan], "occlusion", None, scan.target == "age", (4.0,) * scan.map.ndim)
    table = maps.save(tmp_path / "maps")
    there = {path.name for path in (tmp_path / "maps").iterdir()}
    assert there == {*table["file"], *table["picture"], "maps.csv", "maps.json", "index.html"} and len(there) == 7
    page = (tmp_path / "maps" / "index.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == 2 and "<b>" not in page and all(name in page for name in table["picture"])
    about = json.loads((tmp_path / "maps" / "maps.json").read_text(encoding="utf-8"))
    assert about["method"] == "occlusion" and len(about["scans"]) == 2
    file = tmp_path / "maps" / table["file"][1]
    if scan.map.ndim == 2:
        saved = np.load(file)
    else:
        saved = np.asarray(nib.load(file).dataobj)
        assert np.array_equal(nib.load(file).affine, scan.affine)
        assert table["strongest"][0] == "-12, 8, -4"
    assert np.array_equal(saved, scan.map)


def boxes_of(**box: Any) -> pd.DataFrame:
    return pd.DataFrame([{"scan_id": "a", "label": "pneumonia", "image_width": 30, "image_height": 20, **box}])


def test_boxes_of_a_larger_original_come_to_lie_where_the_picture_was_put() -> None:
    # The file has 20 × 30 pixels, its original 40 × 60; the prepared 20 × 20 are 1.5 of the file's each, 3 rows down.
    affine = np.array([[1.5, 0, 0.25 - 1.5 * 3], [0, 1.5, 0.25], [0, 0, 1]])
    boxes = boxes_of(x=18, y=12, width=12, height=6, image_width=60, image_height=40)
    mask = mask_of_boxes(boxes, (20, 20), affine, native_size=(20, 30))
    rows, columns = np.nonzero(mask)
    assert (rows.min(), rows.max()) == (3 + 4, 3 + 5) and (columns.min(), columns.max()) == (6, 9)
    assert mask.sum() == 8


def test_boxes_between_pixels_take_the_nearest_and_those_outside_none() -> None:
    tiny = mask_of_boxes(boxes_of(x=4.6, y=3.6, width=0.2, height=0.2), (20, 30), IDENTITY)
    assert tiny.sum() == 1 and tiny[3, 4]
    assert mask_of_boxes(boxes_of(x=40, y=3, width=5, height=5), (20, 30), IDENTITY).sum() == 0
    with pytest.raises(DataError, match="image_width"):
        mask_of_boxes(boxes_of(x=4, y=3, width=2, height=2).drop(columns="image_width"), (20, 30), IDENTITY)


def test_boxes_in_volumes_are_millimetres_of_the_scans_own_space() -> None:
    scan = volume_map()
    box = {"x": -14.0, "y": 6.0, "z": -6.0, "width": 8.0, "depth": 4.0, "height": 4.0}
    mask = mask_of_boxes(boxes_of(**box), scan.map.shape, scan.affine)
    assert np.argwhere(mask).tolist() == [[3, 9, 4], [4, 9, 4]]
    turned = scan.affine.copy()
    turned[0] = [-4, 0, 0, 20]  # LAS+
    assert np.array_equal(mask_of_boxes(boxes_of(**box), scan.map.shape, turned), mask[::-1])


def test_a_label_volume_is_brought_to_the_prepared_grid(tmp_path: Path) -> None:
    scan = volume_map()
    label = np.zeros((24, 28, 20), dtype=np.uint8)
    label[6:8, 18:20, 8:10] = 3
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = scan.affine[:3, 3] - 1
    flipped = affine.copy()
    flipped[0, 0], flipped[0, 3] = -2, affine[0, 3] + 2 * 23
    nib.save(nib.Nifti1Image(label[::-1], flipped), tmp_path / "label.nii.gz")
    mask = mask_of_volume(tmp_path / "label.nii.gz", scan.map.shape, scan.affine)
    assert np.argwhere(mask).tolist() == [[3, 9, 4]]


def test_maps_are_scored_by_boxes_of_their_own_label_and_by_masks() -> None:
    scans = [picture_map(f"s{i}", group=f"p{i // 2}") for i in range(12)]
    maps = Maps(scans, "gradcam", None, False, (1.0, 1.0))
    hit = pd.concat([boxes_of(x=10, y=4, width=6, height=4).assign(scan_id=scan.scan_id) for scan in scans])
    other = pd.concat([boxes_of(x=0, y=15, width=3, height=3).assign(scan_id=s.scan_id, label="mass") for s in scans])
    found = maps.score(pd.concat([hit, other]))
    table = found.table.set_index("measure")
    assert table["value"].tolist() == [1.0] * len(table) and table["n_images"].unique().tolist() == [12]
    assert found.images["group"].nunique() == 6
    assert maps.score({scan.scan_id: scan.map > 0 for scan in scans}).table["value"].min() == 1
    with pytest.raises(DataError, match="None of 12 maps"):
        maps.score(other)


def test_both_signs_are_evidence_about_ages_and_one_about_labels() -> None:
    volume = volume_map()
    assert Maps([volume], "gradcam", None, True, (4.0,) * 3).score({"v": volume.map < 0}).table["value"].min() == 1
    against = picture_map()
    against = ScanMap("a", "pneumonia", 1.5, -against.map, against.image, IDENTITY)
    found = Maps([against], "gradcam", None, False, (1.0, 1.0)).score({"a": against.map < 0})
    assert found.n_empty == 1 and found.table["value"].max() == 0
