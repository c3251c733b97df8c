"""DICOM volumes: voxels and geometry as they were written, and every fault refused with its slice."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_cases import PLANTED, SAGITTAL, save_enhanced, save_series, save_slice, voxels
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, RLELossless

from neuroage.errors import DataError, UsageError
from neuroage.imaging.read import read


def expected(data: np.ndarray) -> np.ndarray:
    """Axial slices in LPS, bottom first, as a RAS+ volume."""
    return data.transpose(2, 1, 0)[::-1, ::-1].astype(np.float32)


def refusal(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        read(path)
    assert not any(word in str(caught.value) for word in PLANTED)
    return caught.value


def test_a_series_with_shuffled_names_and_no_suffix_is_one_volume(tmp_path: Path) -> None:
    data = voxels()
    save_series(tmp_path, data=data)
    (tmp_path / "LICENSE").write_text("no DICOM")
    volume = read(tmp_path)
    np.testing.assert_array_equal(volume.data[0], expected(data))
    np.testing.assert_allclose(volume.spacing_mm, (2, 1.5, 3))
    np.testing.assert_allclose(volume.affine @ [0, 0, 0, 1], [-3, -2, 10, 1])
    assert volume.source_orientation == "LPS"


def test_an_oblique_series_equals_what_itk_reads(tmp_path: Path) -> None:
    a, b = np.deg2rad([12, -7])
    row = np.array([np.cos(a), np.sin(a), 0])
    column = np.array([-np.sin(a) * np.cos(b), np.cos(a) * np.cos(b), np.sin(b)])
    normal, data = np.cross(row, column), voxels(7)
    for k, pixels in enumerate(data):
        position = np.array([-30, 12, -5]) + 2.5 * k * normal
        save_slice(
            tmp_path / f"{k * 5 % 7}.dcm", "1.2.8", position, pixels, ImageOrientationPatient=[*row, *column],
            RescaleSlope=2.5, RescaleIntercept=-3,
        )  # fmt: skip
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path))
    image = sitk.ReadImage(names)
    sitk.WriteImage(image, str(tmp_path / "itk.mha"))
    other, own = read(tmp_path / "itk.mha"), read(tmp_path)
    np.testing.assert_allclose(own.data, other.data, rtol=1e-6)
    np.testing.assert_allclose(own.affine, other.affine, atol=1e-6)


def test_one_file_stands_for_its_series_in_a_mixed_folder(tmp_path: Path) -> None:
    first, second = voxels(6, 1), voxels(5, 2)
    files = save_series(tmp_path, "1.2.1", data=first)
    others = save_series(tmp_path, "1.2.22", data=second, prefix="X")
    np.testing.assert_array_equal(read(files[3]).data[0], expected(first))
    np.testing.assert_array_equal(read(others[0]).data[0], expected(second))
    error = refusal(tmp_path)
    assert "holds 2 DICOM series" in error.what and "6 slices" in error.what and "X0000" in error.what


def test_echoes_of_one_series_are_volumes_of_their_own(tmp_path: Path) -> None:
    echoes = [voxels(5, seed) for seed in (1, 2)]
    files = [
        save_series(tmp_path, data=data, prefix=f"e{n}_", EchoTime=te)
        for n, (data, te) in enumerate(zip(echoes, (12, 90), strict=True))
    ]
    for data, own in zip(echoes, files, strict=True):
        np.testing.assert_array_equal(read(own[2]).data[0], expected(data))


def test_repeats_that_a_time_tells_apart_are_volumes_of_their_own(tmp_path: Path) -> None:
    data = [voxels(5, seed) for seed in (1, 2)]
    files = [
        save_series(tmp_path, data=one, prefix=f"t{n}_", TemporalPositionIdentifier=n) for n, one in enumerate(data)
    ]
    np.testing.assert_array_equal(read(files[1][0]).data[0], expected(data[1]))


@pytest.mark.parametrize("skip", [1, 3])
def test_a_missing_slice_is_named_by_its_number_and_place(tmp_path: Path, skip: int) -> None:
    save_series(tmp_path, skip=skip)
    what = refusal(tmp_path).what
    assert f"slice {skip + 1} of 6 is missing, at {10 + 3 * skip:.2f} mm" in what
    assert f"({10 + 3 * (skip - 1):.2f} mm)" in what and f"({10 + 3 * (skip + 1):.2f} mm)" in what


def test_two_missing_slices_in_a_row_are_named_together(tmp_path: Path) -> None:
    files = save_series(tmp_path, data=voxels(8))
    files[3].unlink(), files[4].unlink()
    assert "slices 4 to 5 of 8 are missing" in refusal(tmp_path).what


@pytest.mark.parametrize(("change", "said"), [(0, "with the same pixels"), (7, "with different pixels")])
def test_a_repeated_slice_is_named_and_told_whether_it_is_a_copy(tmp_path: Path, change: int, said: str) -> None:
    data = voxels()
    save_series(tmp_path, data=data)
    save_slice(tmp_path / "again", "1.2.3.4", (-3, -4, 16), data[2] + change, EchoTime=2.98)
    what = refusal(tmp_path).what
    assert "the slice at 16.00 mm is there 2 times" in what and "again" in what and said in what


def test_a_series_that_was_copied_twice_is_refused(tmp_path: Path) -> None:
    for path in save_series(tmp_path):
        shutil.copy(path, path.with_name(path.name + "_copy"))
    assert "every slice is there 2 times" in refusal(tmp_path).what


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ({"ImageOrientationPatient": list(SAGITTAL)}, "another direction"),
        ({"PixelSpacing": [1.5, 2.1]}, "another pixel spacing"),
        ({"pixels": voxels()[0, :4]}, "another size"),
        ({"RescaleSlope": 2.0, "RescaleIntercept": 0}, "rescale slope, unlike the other"),
        ({"ImagePositionPatient": None}, "gives no position"),
        ({"ImagePositionPatient": [-3, -4, 17]}, "unevenly spaced"),
        ({"ImagePositionPatient": [-3, -1, 16]}, "lies 3.00 mm beside"),
    ],
)
def test_a_slice_unlike_the_others_is_named(tmp_path: Path, odd: dict[str, Any], said: str) -> None:
    files = save_series(tmp_path)
    pixels = odd.pop("pixels", voxels()[2])
    save_slice(files[2], "1.2.3.4", (-3, -4, 16), pixels, EchoTime=2.98, **odd)
    what = refusal(tmp_path).what
    assert said in what and (files[2].name in what or "evenly" in what)


def test_a_tilted_gantry_is_refused_with_its_angle(tmp_path: Path) -> None:
    for k, pixels in enumerate(voxels()):
        save_slice(tmp_path / f"{k}", "1.2.3", (0, 0.8 * k, 3 * k), pixels)
    assert "sheared by 14.9°" in refusal(tmp_path).what


def test_a_mosaic_is_refused_in_words(tmp_path: Path) -> None:
    save_series(tmp_path, ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"])
    error = refusal(tmp_path)
    assert "is a mosaic" in error.what and "dcm2niix" in error.fix


def test_every_slice_keeps_its_own_slope(tmp_path: Path) -> None:
    data = voxels()
    for k, pixels in enumerate(data):
        save_slice(tmp_path / f"{k}", "1.2.3", (0, 0, k), pixels, RescaleSlope=1 + k, RescaleIntercept=-k)
    scaled = data * np.arange(1, 7)[:, None, None] - np.arange(6)[:, None, None]
    np.testing.assert_allclose(read(tmp_path).data[0], expected(scaled))


def test_signed_values_in_fewer_bits_than_allocated_are_read_right(tmp_path: Path) -> None:
    data = (voxels().astype(np.int16) - 450) * 4
    for k, pixels in enumerate(data):
        path = save_slice(tmp_path / f"{k}", "1.2.3", (0, 0, k), (pixels & 0x0FFF | 0x3000).astype(np.int16))
        dataset = pydicom.dcmread(path)
        dataset.BitsStored, dataset.HighBit = 12, 11  # above them lies something else, as overlays did
        dataset.save_as(path)
    np.testing.assert_array_equal(read(tmp_path).data[0], expected(data))


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_slices_hold_the_same_values(tmp_path: Path, syntax: str) -> None:
    data = voxels(5).repeat(16, 1).repeat(16, 2)
    for path in save_series(tmp_path, data=data, RescaleSlope=2, RescaleIntercept=1):
        dataset = pydicom.dcmread(path)
        dataset.compress(syntax)
        dataset.save_as(path)
    np.testing.assert_array_equal(read(tmp_path).data[0], expected(data * 2 + 1))


def test_what_pydicom_cannot_decode_itk_decodes_with_the_slope_applied_once(tmp_path: Path) -> None:
    data = voxels(5)
    files = save_series(tmp_path / "plain", data=data)
    for k, path in enumerate(files):
        target = tmp_path / "packed" / f"{k}.dcm"
        target.parent.mkdir(exist_ok=True)
        compress_by_itk(path, target)
        dataset = pydicom.dcmread(target)
        assert dataset.file_meta.TransferSyntaxUID == JPEGLosslessSV1
        dataset.RescaleSlope, dataset.RescaleIntercept = 2, 1
        dataset.save_as(target)
    np.testing.assert_array_equal(read(tmp_path / "packed").data[0], expected(data * 2 + 1))


def compress_by_itk(path: Path, target: Path) -> None:
    reader, writer = sitk.ImageFileReader(), sitk.ImageFileWriter()
    reader.SetFileName(str(path))
    image = reader.Execute()[:, :, 0]
    for key in reader.GetMetaDataKeys():
        if not key.startswith("0028"):
            image.SetMetaData(key, reader.GetMetaData(key))
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(target))
    writer.UseCompressionOn()
    writer.SetCompressor("JPEG")
    writer.Execute(image)


def test_files_without_preamble_are_read(tmp_path: Path) -> None:
    data = voxels()
    for path in save_series(tmp_path, data=data):
        dataset = pydicom.dcmread(path)
        content = path.read_bytes()
        path.write_bytes(content[132 + 12 + dataset.file_meta.FileMetaInformationGroupLength :])
    np.testing.assert_array_equal(read(tmp_path).data[0], expected(data))


def enhanced_expected(data: np.ndarray) -> np.ndarray:
    """Sagittal slices: rows run to the back, columns down, slices from right to left."""
    return data.transpose(0, 2, 1)[::-1, ::-1, ::-1].astype(np.float32)


def test_an_enhanced_file_is_read_in_the_order_of_its_places(tmp_path: Path) -> None:
    data, scalings = voxels(), [(1.0 + k, float(-k)) for k in range(6)]
    path = save_enhanced(tmp_path / "e.dcm", [data], scalings=scalings)
    volume = read(path)
    scaled = np.stack([pixels * slope + shift for pixels, (slope, shift) in zip(data, scalings, strict=True)])
    np.testing.assert_allclose(volume.data[0], enhanced_expected(scaled))
    np.testing.assert_allclose(volume.spacing_mm, (2, 2, 1.5))
    np.testing.assert_array_equal(read(tmp_path).data, volume.data)


def test_volumes_of_an_enhanced_file_are_named_by_number(tmp_path: Path) -> None:
    echoes = [voxels(6, seed) for seed in (1, 2)]
    path = save_enhanced(tmp_path / "IM1", echoes, echoes=(3.0, 80.0))
    assert "holds 2 DICOM volumes in 1 series" in refusal(path).what and "IM1#2" in refusal(path).what
    found = [read(f"{path}#{number}").data[0] for number in (1, 2)]
    for data in echoes:
        assert sum(np.array_equal(one, enhanced_expected(data)) for one in found) == 1
    with pytest.raises(UsageError, match="no volume 3"):
        read(f"{path}#3")


def test_gaps_and_repeats_in_an_enhanced_file_are_refused_with_the_frame(tmp_path: Path) -> None:
    gap = save_enhanced(tmp_path / "gap.dcm", [voxels()], skip=2)
    assert "slice 4 of 6 is missing" in refusal(gap).what and "frame" in refusal(gap).what
    twice = save_enhanced(tmp_path / "b" / "twice.dcm", [voxels(6, 1), voxels(6, 2)], echoes=(3.0, 3.0))
    assert "every slice is there 2 times" in refusal(twice).what and "frame" in refusal(twice).what


def test_an_enhanced_file_with_compressed_frames_is_read(tmp_path: Path) -> None:
    data = voxels()
    path = save_enhanced(tmp_path / "e.dcm", [data])
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless)
    dataset.save_as(path)
    np.testing.assert_array_equal(read(path).data[0], enhanced_expected(data))


def test_a_cut_file_is_refused_without_a_word_of_the_patient(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    files = save_series(tmp_path, PatientAge="Plantedname")
    files[2].write_bytes(files[2].read_bytes()[:-20])
    caplog.clear(), recwarn.clear()  # what the writing said
    with caplog.at_level(logging.DEBUG):
        assert files[2].name in refusal(tmp_path).what
    said = caplog.text + " ".join(str(warning.message) for warning in recwarn)
    assert not any(word in said for word in PLANTED)
