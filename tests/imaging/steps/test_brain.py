"""Brain masks from every source, on the scan's own grid, and the sources' failures."""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from neuroage.errors import DataError, UsageError
from neuroage.imaging.read import Volume
from neuroage.imaging.registration.mni152 import load_mni152
from neuroage.imaging.registration.result import Registration
from neuroage.imaging.steps import brain
from neuroage.imaging.steps.brain import brain_mask, find_mask_file, is_stripped, mask_from_file, template_mask
from neuroage.imaging.steps.brain_surface import template_surface
from neuroage.imaging.steps.programs import PROGRAMS, mask_by_program
from neuroage.runs.recipe_raw import Brain


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())


@pytest.fixture(scope="module")
def head() -> tuple[Volume, np.ndarray]:
    """The template's brain, larger by 8 %, in fluid, skull and scalp; and where the brain with its fluid is."""
    template = load_mni152(2)
    grow = np.diag([1.08, 1.08, 1.08])
    middle = (np.array(template.brain.shape) - 1) / 2
    offset = middle - np.linalg.inv(grow) @ middle
    image, inside = (
        ndimage.affine_transform(part.astype(np.float32), np.linalg.inv(grow), offset, order=1)
        for part in (template.volume.data[0], template.brain)
    )
    truth = inside > 0.5
    far = ndimage.distance_transform_edt(~truth, sampling=2.0)
    shell = np.select([far <= 0, far <= 3, far <= 9, far <= 16], [0, 0.2, 0.05, 0.9], 0.0)
    noise = np.random.default_rng(0).normal(0, 0.01, truth.shape)
    data = np.maximum(np.where(truth, np.maximum(image, 0.2), shell) + noise, 0)
    return Volume(data[None].astype(np.float32), template.volume.affine), ndimage.binary_fill_holes(far <= 2)


@pytest.fixture
def scan() -> Volume:
    data = np.zeros((20, 22, 18), dtype=np.float32)
    data[5:15, 5:17, 5:13] = 100.0
    return Volume(data[None], np.diag([8.0, 8.0, 8.0, 1.0]))


def write_mask(path: Path, data: np.ndarray, affine: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def test_the_template_mask_moves_to_where_the_brain_ends(head: tuple[Volume, np.ndarray]) -> None:
    volume, truth = head
    plain = template_surface().distance_mm <= 0
    mask, record = template_mask(volume)
    assert dice(mask, truth) > 0.96 > 0.95 > dice(plain, truth)
    assert record["refined"] and record["covered"] > 0.97 and record["problem"] == ""
    assert 2 < record["moved_mm"][0] < 10
    assert record["template_overlap"] == pytest.approx(dice(mask, plain), abs=0.01)


def test_another_contrast_keeps_the_plain_template_mask(head: tuple[Volume, np.ndarray]) -> None:
    volume, _ = head
    dark = Volume(volume.data.max() - volume.data, volume.affine)
    mask, record = template_mask(dark)
    assert not record["refined"] and "moved_mm" not in record
    assert dice(mask, template_surface().distance_mm <= 0) > 0.999


def test_the_registration_brings_the_mask_to_the_scans_own_grid(head: tuple[Volume, np.ndarray]) -> None:
    volume, truth = head
    moved = np.eye(4)
    moved[:3, 3] = (30.0, -20.0, 10.0)
    away = Volume(volume.data[:, :, :, ::2], moved @ volume.affine @ np.diag([1, 1, 2, 1]))
    found = brain_mask(away, Brain(), registration=Registration(moved))
    assert found.mask.shape == away.shape and dice(found.mask, truth[:, :, ::2]) > 0.95
    assert 1800 < found.record["volume_ml"] < 2600 and found.record["problem"] == ""
    assert found.record["seconds"] > 0 and found.record["parameters"] == {"mask": "template", "margin_mm": 0.0}


def test_an_implausible_volume_is_a_problem(head: tuple[Volume, np.ndarray]) -> None:
    volume, _ = head
    small = Volume(volume.data, np.diag([0.5, 0.5, 0.5, 1.0]) @ volume.affine)
    found = brain_mask(small, Brain(), registration=Registration(np.diag([0.5, 0.5, 0.5, 1.0])))
    assert "ml, and 700 to 2600 are usual" in found.record["problem"]


def test_template_and_file_say_what_they_need(scan: Volume) -> None:
    with pytest.raises(UsageError, match="needs a registration"):
        brain_mask(scan, Brain())
    with pytest.raises(UsageError, match="needs a mask for every scan"):
        brain_mask(scan, Brain(mask="file"))


def test_nonzero_takes_what_is_left_and_fills_its_holes(scan: Volume) -> None:
    scan.data[0, 9, 9, 9] = 0
    found = brain_mask(scan, Brain(mask="nonzero"))
    assert found.mask.sum() == 10 * 12 * 8 and found.mask[9, 9, 9]


@pytest.mark.parametrize(("margin_mm", "size"), [(8.0, (12, 14, 10)), (-8.0, (8, 10, 6)), (0.0, (10, 12, 8))])
def test_the_margin_grows_and_shrinks_in_millimetres(scan: Volume, margin_mm: float, size: tuple[int, ...]) -> None:
    mask = brain_mask(scan, Brain(mask="nonzero", margin_mm=margin_mm)).mask
    extent = [np.ptp(np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))) + 1 for axis in range(3)]
    assert tuple(extent) == size


def test_a_stripped_brain_is_told_from_a_head(scan: Volume, head: tuple[Volume, np.ndarray]) -> None:
    scan.data[0, 3:17, 3:19, 3:15] = 50.0  # 1.4 l
    assert is_stripped(scan)
    whole = np.where(scan.data > 0, scan.data, np.random.default_rng(0).uniform(1, 5, scan.data.shape))
    assert not is_stripped(Volume(whole.astype(np.float32), scan.affine)), "air is never one value in a raw scan"
    assert not is_stripped(head[0]), "a head has more volume than a brain"
    slab = np.zeros_like(scan.data)
    slab[:, 3:17, 3:19, :] = 50.0
    assert not is_stripped(Volume(slab[..., 4:14].copy(), scan.affine)), "a slab is cut on two sides"


def test_a_mask_file_is_read_on_its_own_or_another_grid(scan: Volume, tmp_path: Path) -> None:
    truth = scan.data[0] > 0
    same = write_mask(tmp_path / "same.nii.gz", truth.astype(np.uint8) * 255, scan.affine)
    assert (mask_from_file(scan, same) == truth).all()
    shares = write_mask(tmp_path / "shares.nii.gz", truth * np.float32(0.7) + np.float32(0.2), scan.affine)
    assert (mask_from_file(scan, shares) == truth).all()
    fine = np.repeat(np.repeat(np.repeat(truth, 2, 0), 2, 1), 2, 2)
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = -2.0
    other = write_mask(tmp_path / "fine.nii.gz", fine.astype(np.uint8), affine)
    found = brain_mask(scan, Brain(mask="file"), mask_file=other)
    assert (found.mask == truth).all()


def test_what_is_no_mask_of_this_scan_is_refused(scan: Volume, tmp_path: Path) -> None:
    labels = write_mask(tmp_path / "labels.nii.gz", scan.data[0] / 100 * np.arange(18, dtype=np.float32), scan.affine)
    with pytest.raises(DataError, match="not a mask"):
        mask_from_file(scan, labels)
    away = scan.affine.copy()
    away[0, 3] = 60.0
    moved = write_mask(tmp_path / "away.nii.gz", (scan.data[0] > 0).astype(np.uint8), away)
    whole = Volume(scan.data[:, :16], scan.affine)
    with pytest.raises(DataError, match="of the mask lies outside of the scan"):
        mask_from_file(whole, moved)


def test_a_mask_file_is_found_by_folder_and_stem(tmp_path: Path) -> None:
    scan, mask = tmp_path / "sub-01_T1w.nii.gz", tmp_path / "sub-01_T1w_mask.nii.gz"
    mask.touch()
    assert find_mask_file(scan, "{folder}/{stem}_mask.nii.gz") == mask
    with pytest.raises(UsageError, match="has no mask at"):
        find_mask_file(scan, "{folder}/{stem}_brain.nii.gz")
    with pytest.raises(UsageError, match="between the braces"):
        find_mask_file(scan, "{folder}/{subject}.nii.gz")


FAKE = f"""#!{sys.executable}
import sys, time
import nibabel as nib, numpy as np
image = nib.load(sys.argv[sys.argv.index("-i") + 1])
data = np.asarray(image.dataobj)
target = sys.argv[sys.argv.index("OPTION") + 1]
"""
SAVE = "nib.save(nib.Nifti1Image((data > 50).astype(np.uint8), image.affine), target)"


def install(folder: Path, name: str, option: str, rest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / name
    path.write_text(FAKE.replace("OPTION", option) + rest, encoding="utf-8")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


@pytest.mark.parametrize(
    ("way", "name", "option"), [("synthstrip", "mri_synthstrip", "-m"), ("hd-bet", "hd-bet", "-o")]
)
def test_another_program_makes_the_mask(
    way: str, name: str, option: str, scan: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, name, option, SAVE, monkeypatch)
    found = brain_mask(scan, Brain.model_validate({"mask": way}))
    assert (found.mask == (scan.data[0] > 50)).all()
    assert found.record["program"] == str(tmp_path / name)


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("print('loading'); sys.exit('out of memory')", r"synthstrip failed \(exit code 1\): out of memory"),
        ("nib.save(nib.Nifti1Image((data[::2] > 50).astype(np.uint8), image.affine), target)", "on another grid"),
        ("print('done')", "ended without a mask"),
        ("time.sleep(60)", "took longer than 3 s"),
    ],
)
def test_a_program_that_fails_gives_one_clear_error(
    rest: str, said: str, scan: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "mri_synthstrip", "-m", rest, monkeypatch)
    with pytest.raises(DataError, match=said):
        mask_by_program(scan, "synthstrip", timeout_s=3.0 if "sleep" in rest else 60.0)


@pytest.mark.parametrize("way", PROGRAMS)
def test_a_missing_program_says_where_to_get_it(
    way: str, scan: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="is not installed") as caught:
        brain_mask(scan, Brain.model_validate({"mask": way}))
    assert caught.value.fix == PROGRAMS[way].get


def test_a_mask_without_holes_stays_as_it_is(scan: Volume) -> None:
    mask = scan.data[0] > 0
    assert (brain.fill_holes(mask) == mask).all()
    assert not brain.fill_holes(np.zeros((3, 3, 3), dtype=bool)).any()
