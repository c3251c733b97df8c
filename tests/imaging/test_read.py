import gzip
import tracemalloc
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from neuroage.errors import DataError, UsageError
from neuroage.imaging.read import read

RNG = np.random.default_rng(0)
DATA = RNG.integers(1, 200, (5, 6, 7)).astype(np.int16)
AFFINE = np.diag([2.0, 3.0, 4.0, 1.0])
AFFINE[:3, 3] = [-5, -8, -12]


def save(path: Path, data: np.ndarray = DATA, affine: np.ndarray = AFFINE) -> Path:
    kind = (
        nib.MGHImage
        if path.suffix == ".mgz"
        else nib.AnalyzeImage
        if path.suffix in (".hdr", ".img")
        else nib.Nifti1Image
    )
    nib.save(kind(data, affine), path)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_every_format_and_type_gives_the_same_voxels_and_affine(tmp_path: Path, name: str, dtype: type) -> None:
    volume = read(save(tmp_path / name, DATA.astype(dtype)))
    assert volume.data.dtype == np.float32
    np.testing.assert_array_equal(volume.data[0], DATA)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    assert volume.spacing_mm == pytest.approx((2, 3, 4))


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_itk_formats_are_turned_from_lps_to_ras(tmp_path: Path, name: str) -> None:
    image = sitk.GetImageFromArray(DATA.transpose(2, 1, 0))
    image.SetSpacing((2, 3, 4))
    image.SetOrigin((5, 8, -12))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / name))
    volume = read(tmp_path / name)
    np.testing.assert_array_equal(volume.data[0], DATA)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)


def test_a_dicom_series_is_one_volume_in_the_right_order(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(DATA.transpose(2, 1, 0))
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(DATA.shape[2]):
        part = image[:, :, k]
        for tag, value in {
            "0008|0060": "MR",
            "0020|000d": "1.2.3",
            "0020|000e": "1.2.3.4",
            "0020|0013": str(k),
            "0008|0018": f"1.2.3.4.{k + 1}",
            "0020|0032": f"0\\0\\{4 * k}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0018|0050": "4",
        }.items():
            part.SetMetaData(tag, value)
        writer.SetFileName(str(tmp_path / f"{9 - k}.dcm"))
        writer.Execute(part)
    volume = read(tmp_path)
    np.testing.assert_array_equal(volume.data[0], DATA[::-1, ::-1])
    assert volume.source_orientation == "LPS"
    assert volume.spacing_mm[2] == pytest.approx(4)


@pytest.mark.parametrize("codes", ["LAS", "LPS", "PIR", "ASL", "SRA"])
def test_any_orientation_comes_out_as_the_same_ras_volume(tmp_path: Path, codes: str) -> None:
    image = nib.Nifti1Image(DATA, AFFINE)
    transform = nib.orientations.ornt_transform(nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(tuple(codes)))
    nib.save(image.as_reoriented(transform), tmp_path / "a.nii.gz")
    volume = read(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume.data[0], DATA)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-4)
    assert volume.source_orientation == codes


def test_an_oblique_scan_keeps_its_affine_and_voxels(tmp_path: Path) -> None:
    angle = np.deg2rad(10)
    rotation = np.eye(4)
    rotation[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    volume = read(save(tmp_path / "a.nii.gz", affine=rotation @ AFFINE))
    np.testing.assert_allclose(volume.affine, rotation @ AFFINE, atol=1e-5)
    np.testing.assert_array_equal(volume.data[0], DATA)


def test_scaled_intensities_are_the_ones_that_count(tmp_path: Path) -> None:
    image = nib.Nifti1Image(DATA, AFFINE)
    image.header.set_slope_inter(0.5, 3)
    nib.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_allclose(
        read(tmp_path / "a.nii.gz").data[0], nib.load(tmp_path / "a.nii.gz").get_fdata(), rtol=1e-6
    )


def test_a_fourth_axis_of_one_volume_is_dropped(tmp_path: Path) -> None:
    assert read(save(tmp_path / "a.nii.gz", DATA[..., None])).data.shape == (1, 5, 6, 7)


@pytest.mark.parametrize("orient", [0, 1, 2])
def test_an_analyze_volume_is_read_by_its_orient_byte(tmp_path: Path, orient: int) -> None:
    image = nib.AnalyzeImage(DATA, None)
    nib.save(image, tmp_path / "a.img")
    header = bytearray((tmp_path / "a.hdr").read_bytes())
    header[252] = orient
    (tmp_path / "a.hdr").write_bytes(bytes(header))
    volume = read(tmp_path / "a.hdr")
    assert volume.source_orientation == {0: "LAS", 1: "LSA", 2: "ASL"}[orient]
    expected = {0: DATA[::-1], 1: DATA[::-1].transpose(0, 2, 1), 2: DATA.transpose(2, 0, 1)[::-1]}[orient]
    np.testing.assert_array_equal(volume.data[0], expected)


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (np.zeros((5, 6, 7), np.float32), "every voxel is zero"),
        (np.full((5, 6, 7), np.nan, np.float32), "NaN"),
        (np.ones((5, 6, 7, 3), np.float32), "4-D image of 5×6×7×3"),
        (np.ones((5, 6, 7, 2, 3), np.float32), "5-D"),
        (np.arange(42, dtype=np.float32).reshape(6, 7, 1), "single slice"),
        (np.ones((5, 6, 7), np.complex64), "complex"),
    ],
)
def test_broken_content_is_one_error_that_names_the_file(tmp_path: Path, data: np.ndarray, part: str) -> None:
    with pytest.raises(DataError) as caught:
        read(save(tmp_path / "scan.nii.gz", data))
    assert part in str(caught.value)
    assert "scan.nii.gz" in str(caught.value)


def test_nan_outside_the_brain_reads_as_zero_when_asked(tmp_path: Path) -> None:
    data = DATA.astype(np.float32)
    data[0] = np.nan
    assert (read(save(tmp_path / "a.nii.gz", data), nonfinite="zero").data[0, 0] == 0).all()


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.mgz"])
def test_a_truncated_file_is_an_error(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, RNG.integers(0, 99, (20, 20, 20)).astype(np.int16))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="cannot be read"):
        read(path)


@pytest.mark.parametrize("content", [b"no image at all", b"\x00" * 2000])
def test_a_file_that_is_no_image_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.nii\.gz"):
        read(tmp_path / "a.nii.gz")


def test_a_pointer_instead_of_an_image_says_how_to_fetch_it(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(DataError, match="git lfs pull"):
        read(tmp_path / "a.nii.gz")


def test_a_header_without_geometry_is_an_error(tmp_path: Path) -> None:
    affine = AFFINE.copy()
    affine[:3, 0] = 0
    image = nib.Nifti1Image(DATA, None)
    image.set_sform(affine, code=1)
    nib.save(image, tmp_path / "a.nii")
    with pytest.raises(DataError, match="geometry"):
        read(tmp_path / "a.nii")


def test_missing_files_and_unknown_formats_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such scan"):
        read(tmp_path / "a.nii.gz")
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(UsageError, match="unknown image format"):
        read(tmp_path / "a.docx")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i2", "<f4", ">f8"])
@pytest.mark.parametrize("codes", ["LPS", "SAL"])
def test_voxels_are_those_of_nibabel_to_the_last_bit(tmp_path: Path, name: str, dtype: str, codes: str) -> None:
    header = nib.Nifti1Header(endianness="<" if dtype[0] != ">" else ">")
    header.set_data_dtype(dtype)
    image = nib.Nifti1Image(DATA.astype(dtype), AFFINE, header)
    transform = nib.orientations.ornt_transform(nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(tuple(codes)))
    image = image.as_reoriented(transform)
    image.header.set_slope_inter(0.1, -7.3)
    nib.save(image, tmp_path / name)
    stored = nib.load(tmp_path / name)
    assert stored.dataobj.dtype == np.dtype(dtype)
    expected = nib.as_closest_canonical(stored).get_fdata().astype(np.float32)
    volume = read(tmp_path / name)
    np.testing.assert_array_equal(volume.data[0], expected)
    assert volume.data.flags.writeable


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_file_compressed_in_parts_is_read_whole(tmp_path: Path, kind: type) -> None:
    content = kind(DATA, AFFINE).to_bytes()
    cuts = [0, 100, 400, len(content) - 50, len(content)]
    parts = [gzip.compress(content[a:b]) for a, b in pairwise(cuts)]
    (tmp_path / "a.nii.gz").write_bytes(b"".join(parts))
    np.testing.assert_array_equal(read(tmp_path / "a.nii.gz").data[0], DATA)


def test_a_file_that_is_not_compressed_though_its_name_says_so_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(nib.Nifti1Image(DATA, AFFINE).to_bytes())
    np.testing.assert_array_equal(read(tmp_path / "a.nii.gz").data[0], DATA)


def test_a_wrong_checksum_is_an_error_though_every_voxel_could_be_read(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz")
    raw = bytearray(path.read_bytes())
    raw[-8] ^= 255
    path.write_bytes(bytes(raw))
    with pytest.raises(DataError, match="cannot be read"):
        read(path)


def test_numbers_too_large_for_single_precision_are_refused_and_not_made_infinite(tmp_path: Path) -> None:
    data = DATA.astype(np.float64)
    data[1, 1, 1] = 1e300
    with pytest.raises(DataError, match="1 voxels"):
        read(save(tmp_path / "a.nii.gz", data))


def test_a_constant_integer_image_is_refused_whatever_its_scale(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.full((5, 6, 7), 3, np.int16), AFFINE)
    image.header.set_slope_inter(0.5, 1)
    nib.save(image, tmp_path / "a.nii.gz")
    with pytest.raises(DataError, match=r"every voxel is 2\.5"):
        read(tmp_path / "a.nii.gz")


def test_reading_holds_little_more_than_the_voxels_it_gives(tmp_path: Path) -> None:
    image = nib.Nifti1Image(RNG.integers(0, 99, (128, 128, 96)).astype(np.int16), np.diag([-1, -1, 1, 1]))
    image.header.set_slope_inter(0.5, 3)
    nib.save(image, tmp_path / "a.nii.gz")
    read(tmp_path / "a.nii.gz")
    tracemalloc.start()
    volume = read(tmp_path / "a.nii.gz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.4 * volume.data.nbytes  # a copy in another type or order would double it at least
