from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from neuroage.cohort import Scan
from neuroage.errors import DataError
from neuroage.imaging.inspect import blur_pixels, measure_picture
from neuroage.imaging.picture_form import Picture
from neuroage.imaging.preparation import prepare_scans
from neuroage.imaging.prepare_picture import place_picture, prepare_picture, prepare_picture_file
from neuroage.imaging.store import Store
from neuroage.runs.recipe import PreparePicture

RNG = np.random.default_rng(0)


def picture(rows: int = 40, columns: int = 60, **others: object) -> Picture:
    ramp = np.add.outer(np.arange(rows), np.arange(columns)).astype(np.float32) + 1
    return Picture(ramp[None] * (250 / ramp.max()), 255.0, "made", **others)  # type: ignore[arg-type]


def plain(**options: object) -> PreparePicture:
    return PreparePicture.model_validate({"intensity": "none", "clip_percentiles": None, **options})


def test_a_picture_of_the_wanted_size_is_left_as_it_is() -> None:
    made = picture()
    prepared = prepare_picture(made, plain(size=[40, 60]))
    np.testing.assert_array_equal(prepared.data, made.data)
    np.testing.assert_allclose(prepared.affine, np.eye(3))


def test_padding_keeps_the_shape_and_fills_with_the_darkest_of_the_border() -> None:
    made = picture(40, 60)
    prepared = prepare_picture(made, plain(size=32))
    assert prepared.record["filled"] == [[5, 26], [0, 32]]
    assert (prepared.data[:, :5] == made.data.min()).all() and (prepared.data[:, 26:] == made.data.min()).all()
    assert prepared.data[0, 5:26].min() > made.data.min()


def test_cropping_keeps_the_shape_and_the_middle_and_stretching_keeps_all() -> None:
    made = picture(40, 60)
    cropped = prepare_picture(made, plain(size=40, fit="crop"))
    np.testing.assert_allclose(cropped.data, made.data[:, :, 10:50], atol=1e-3)
    stretched = prepare_picture(made, plain(size=[40, 30], fit="stretch"))
    np.testing.assert_allclose(stretched.data.mean(), made.data.mean(), rtol=1e-3)
    assert stretched.data.shape == (1, 40, 30)


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("size", [(32, 32), (48, 20), (90, 110)])
def test_the_affine_says_where_each_prepared_pixel_was(fit: str, size: tuple[int, int]) -> None:
    rows, columns = np.meshgrid(np.arange(40), np.arange(60), indexing="ij")
    where = Picture(np.stack([rows, columns, rows]).astype(np.float32), 255.0, "made")
    recipe = plain(size=list(size), fit=fit, channels="rgb")
    prepared = prepare_picture(where, recipe)
    (top, bottom), (left, right) = prepared.record["filled"]
    row, column = (top + bottom) // 2, (left + right) // 2
    found = prepared.affine @ [row, column, 1]
    assert prepared.data[:2, row, column] == pytest.approx(found[:2], abs=0.05)


def test_pixels_that_are_not_square_are_made_so() -> None:
    wide = picture(40, 20, spacing_mm=(1.0, 2.0))
    place = place_picture(wide.shape, wide.spacing_mm, plain(size=32))
    assert (place.rows, place.columns) == (slice(0, 32), slice(0, 32))


def test_shrinking_averages_instead_of_picking() -> None:
    stripes = np.tile(np.array([0, 200], np.float32), (128, 64))
    shrunk = prepare_picture(Picture(stripes[None], 255.0, "made"), plain(size=32)).data
    assert np.abs(shrunk - 100).max() < 15


@pytest.mark.parametrize(
    ("intensity", "low", "high"), [("range", 1 / 255, 250 / 255), ("percentile", 0, 1), ("none", 10, 250)]
)
def test_each_scale_of_intensities(intensity: str, low: float, high: float) -> None:
    prepared = prepare_picture(picture(), PreparePicture.model_validate({"size": [40, 60], "intensity": intensity}))
    assert prepared.data.min() == pytest.approx(low, abs=0.11 if intensity == "range" else 6)
    assert prepared.data.max() == pytest.approx(high, rel=0.1)


def test_a_z_score_is_that_of_the_picture_and_not_of_what_was_padded() -> None:
    recipe = PreparePicture.model_validate({"size": 64, "intensity": "zscore", "clip_percentiles": None})
    prepared = prepare_picture(picture(20, 60), recipe)
    (top, bottom), (left, right) = prepared.record["filled"]
    inside = prepared.data[:, top:bottom, left:right]
    assert (inside.mean(), inside.std()) == pytest.approx((0, 1), abs=1e-4)
    assert prepared.data.mean() < -0.5


def test_depth_does_not_matter_to_what_is_prepared() -> None:
    eight = picture()
    sixteen = Picture(eight.data * 257, 65535.0, "made")
    for intensity in ("range", "percentile", "zscore"):
        recipe = PreparePicture.model_validate({"size": 32, "intensity": intensity})
        one, other = (prepare_picture(made, recipe).data for made in (eight, sixteen))
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_gray_and_colours_come_in_the_channels_that_are_wanted() -> None:
    gray, colour = picture(), Picture(RNG.random((3, 40, 60)).astype(np.float32), 1.0, "made")
    as_colours = prepare_picture(gray, plain(size=32, channels="rgb")).data
    assert as_colours.shape == (3, 32, 32) and (as_colours[0] == as_colours[2]).all()
    assert prepare_picture(colour, plain(size=32)).data.shape == (1, 32, 32)
    assert len(np.unique(prepare_picture(colour, plain(size=32, channels="rgb")).data[:, 5, 5])) == 3


def test_only_what_is_above_zero_counts_where_the_recipe_says_so() -> None:
    data = np.zeros((1, 32, 32), np.float32)
    data[0, 8:24, 8:24] = RNG.uniform(100, 200, (16, 16))
    recipe = PreparePicture.model_validate({"size": 32, "intensity": "zscore", "foreground": "nonzero"})
    prepared = prepare_picture(Picture(data, 255.0, "made"), recipe)
    assert prepared.record["foreground_share"] == 0.25
    assert prepared.data[0, 8:24, 8:24].mean() == pytest.approx(0, abs=1e-3)


def test_a_picture_of_one_value_is_refused_with_its_file_named(tmp_path: Path) -> None:
    Image.new("L", (20, 20), 7).save(tmp_path / "even.png")
    with pytest.raises(DataError, match=r"even\.png: every pixel is 7"):
        prepare_picture_file(tmp_path / "even.png", PreparePicture())


def test_the_record_is_json_and_has_the_measures() -> None:
    record = json.loads(json.dumps(prepare_picture(picture(), PreparePicture()).record))
    assert record["native_size"] == [40, 60] and record["native_spacing_mm"] == [1.0, 1.0]
    assert set(record["native"]) == {*measure_picture(picture()), "blur_px"}


def test_pictures_are_stored_once_and_come_back(tmp_path: Path) -> None:
    scans = []
    for index in range(3):
        path = tmp_path / f"{index}.png"
        Image.fromarray(RNG.integers(0, 255, (30, 40)).astype(np.uint8)).save(path)
        scans.append(Scan(f"p{index}", f"p{index}", "", "", path, float("nan")))
    (tmp_path / "bad.png").write_bytes(b"no")
    scans.append(Scan("bad", "bad", "", "", tmp_path / "bad.png", float("nan")))
    store, recipe = Store(tmp_path / "store"), PreparePicture(size=(24, 24))
    prepared = prepare_scans(scans, recipe, store, max_failed_share=0.5)
    assert prepared.n_made == 3 and "bad.png: cannot be read" in prepared.failures["bad"]
    assert prepare_scans(scans[:3], recipe, store).n_made == 0
    expected = prepare_picture_file(tmp_path / "1.png", recipe).data
    np.testing.assert_allclose(prepared.volumes["p1"].load(), expected, atol=1 / 500)
    assert prepared.volumes["p1"].record["stored"] == "PNG, 8 bit gray"
    assert store.get(tmp_path / "1.png", recipe.model_copy(update={"fit": "crop"})) is None


def test_pictures_need_nothing_that_reads_volumes(tmp_path: Path) -> None:
    Image.fromarray(RNG.integers(0, 255, (30, 40)).astype(np.uint8)).save(tmp_path / "a.png")
    program = f"""
import sys
from neuroage.imaging.store import Store
from neuroage.runs.recipe import PreparePicture
Store({str(tmp_path / "store")!r}).prepare({str(tmp_path / "a.png")!r}, PreparePicture())
print(sorted({{"SimpleITK", "nibabel", "pydicom", "torch"}} & set(sys.modules)))
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"


def test_measures_of_a_picture_tell_what_was_done_to_it() -> None:
    base = np.clip(RNG.normal(120, 30, (96, 96)), 1, 254).round().astype(np.float32)

    def measured(data: np.ndarray, full_scale: float = 255.0) -> dict[str, float]:
        return measure_picture(Picture(np.atleast_3d(data.T).T.reshape(-1, *data.shape[-2:]), full_scale, "made"))

    before = measured(base)
    assert before["margin_share"] == 0 and before["colourfulness"] == 0 and before["aspect_ratio"] == 1
    assert measured(np.pad(base, 16))["margin_share"] == pytest.approx(1 - (96 / 128) ** 2, abs=0.02)
    assert measured(np.minimum(base, 130))["white_share"] > 0.3 > before["white_share"]
    assert measured(np.maximum(base, 110))["black_share"] > 0.3 > before["black_share"]
    assert measured(base * 257, 65535.0) == pytest.approx(before, rel=1e-3)
    assert measured(np.stack([base, base * 0.5, base * 0.5]))["colourfulness"] > 0.2
    assert measured(base[:, :48])["aspect_ratio"] == 0.5


def test_blur_of_a_picture_grows_with_smoothing() -> None:
    from scipy import ndimage

    data = RNG.normal(0, 1, (64, 64)).astype(np.float32)
    blurs = [blur_pixels(ndimage.gaussian_filter(data, sigma)) for sigma in (0, 1, 3)]
    assert blurs[0] < blurs[1] < blurs[2] and blurs[0] == pytest.approx(0.58, abs=0.05)


CHANGES = {
    "size": {"size": [20, 28]},
    "channels": {"channels": "rgb"},
    "fit": {"fit": "stretch"},
    "intensity": {"intensity": "zscore"},
    "foreground": {"foreground": "nonzero"},
    "clip_percentiles": {"clip_percentiles": [5, 95]},
}


@pytest.mark.parametrize("key", sorted(set(PreparePicture.model_fields) - {"kind", "store_as"}))
def test_every_key_of_the_preparation_changes_the_picture(key: str) -> None:
    dark = picture()
    dark.data[:, :10] = 0
    first = PreparePicture.model_validate({"size": [24, 24]})
    second = PreparePicture.model_validate({"size": [24, 24], **CHANGES[key]})
    assert not np.array_equal(prepare_picture(dark, first).data, prepare_picture(dark, second).data)
    assert first.digest != second.digest
