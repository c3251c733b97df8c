"""DICOM pictures of every kind, made here: what is shown equals what the standard says is shown."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

from PIL import Image  # noqa: E402
from pydicom import uid  # noqa: E402
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402

from neuroage.errors import DataError, UsageError  # noqa: E402
from neuroage.imaging import dicom_picture  # noqa: E402
from neuroage.imaging.picture import read_picture  # noqa: E402

PATIENT = "Doe^Jane"
TWELVE = np.random.default_rng(0).integers(100, 3900, (64, 48)).astype(np.uint16)
RAMP = np.add.outer(np.arange(64), 2 * np.arange(48)).astype(np.uint8)


def dataset(pixels: np.ndarray, syntax: str = uid.ExplicitVRLittleEndian, **elements: Any) -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    made = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    made.PatientName, made.PatientID, made.PatientBirthDate = PATIENT, "id-4711", "19500101"
    made.SOPClassUID, made.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3"
    made.Rows, made.Columns = pixels.shape[:2]
    made.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    made.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    made.BitsAllocated = made.BitsStored = 8 * pixels.dtype.itemsize
    made.HighBit, made.PixelRepresentation = made.BitsAllocated - 1, int(pixels.dtype.kind == "i")
    if pixels.ndim == 3:
        made.PlanarConfiguration = 0
    made.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    for name, value in elements.items():
        if value is None:
            delattr(made, name)
        else:
            setattr(made, name, value)
    return made


def save(path: Path, made: FileDataset) -> Path:
    made.save_as(path, enforce_file_format=True)
    return path


def shown(tmp_path: Path, made: FileDataset) -> np.ndarray:
    """What is read, on a scale of 0 to 1."""
    picture = read_picture(save(tmp_path / "a.dcm", made))
    return picture.data / picture.full_scale


def test_without_a_window_the_range_of_the_values_is_shown(tmp_path: Path) -> None:
    made = dataset(TWELVE, BitsStored=12, HighBit=11)
    picture = read_picture(save(tmp_path / "a.dcm", made))
    low, high = float(TWELVE.min()), float(TWELVE.max())
    np.testing.assert_allclose(picture.data[0], (TWELVE - low) / (high - low) * 4095, atol=0.01)
    assert (picture.full_scale, picture.stored, picture.spacing_mm) == (4095, "DICOM, 12 bit gray", (1, 1))
    assert any("no window" in note for note in picture.notes)


def test_the_first_window_is_applied_after_the_rescale(tmp_path: Path) -> None:
    made = dataset(TWELVE, RescaleSlope="2", RescaleIntercept="-1000", WindowCenter=[400, 50], WindowWidth=[1500, 350])
    units = TWELVE * 2.0 - 1000
    expected = np.clip((units - 399.5) / 1499 + 0.5, 0, 1)
    np.testing.assert_allclose(shown(tmp_path, made)[0], expected, atol=1e-5)


@pytest.mark.parametrize("function", ["SIGMOID", "LINEAR_EXACT"])
def test_other_window_functions(tmp_path: Path, function: str) -> None:
    made = dataset(TWELVE, WindowCenter="2000", WindowWidth="1000", VOILUTFunction=function)
    exact = (TWELVE - 2000.0) / 1000
    expected = 1 / (1 + np.exp(-4 * exact)) if function == "SIGMOID" else np.clip(exact + 0.5, 0, 1)
    np.testing.assert_allclose(shown(tmp_path, made)[0], expected, atol=1e-5)


def test_monochrome1_is_inverted_last_inside_the_range_shown(tmp_path: Path) -> None:
    window = {"WindowCenter": "2000", "WindowWidth": "1000"}
    plain = shown(tmp_path, dataset(TWELVE, **window))
    inverted = shown(tmp_path, dataset(TWELVE, PhotometricInterpretation="MONOCHROME1", **window))
    np.testing.assert_allclose(inverted, 1 - plain, atol=1e-5)
    without = shown(tmp_path, dataset(TWELVE, PhotometricInterpretation="MONOCHROME1"))
    assert without[0].flat[TWELVE.argmin()] == 1 and without[0].flat[TWELVE.argmax()] == 0


def test_signed_values_of_fewer_bits_keep_their_sign(tmp_path: Path) -> None:
    signed = np.linspace(-2000, 2000, 64 * 48).round().astype(np.int16).reshape(64, 48)
    bits = dataset((signed & 0x0FFF).astype(np.uint16), BitsStored=12, HighBit=11, PixelRepresentation=1)
    np.testing.assert_allclose(shown(tmp_path, bits)[0], (signed + 2000) / 4000, atol=1e-5)


def test_stray_high_bits_are_masked(tmp_path: Path) -> None:
    overlay = TWELVE | (np.random.default_rng(1).integers(0, 16, TWELVE.shape).astype(np.uint16) << 12)
    plain = shown(tmp_path, dataset(TWELVE, BitsStored=12, HighBit=11))
    np.testing.assert_array_equal(shown(tmp_path, dataset(overlay, BitsStored=12, HighBit=11)), plain)


def test_bits_that_lie_elsewhere_are_refused_rather_than_misread(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="end at bit 15"):
        shown(tmp_path, dataset(TWELVE << 4, BitsStored=12, HighBit=15))


def test_missing_elements_have_their_usual_meaning(tmp_path: Path) -> None:
    bare = dataset(
        RAMP, PhotometricInterpretation=None, BitsStored=None, HighBit=None, PixelRepresentation=None,
        SamplesPerPixel=None,
    )  # fmt: skip
    picture = read_picture(save(tmp_path / "a.dcm", bare))
    np.testing.assert_allclose(picture.data[0], (RAMP - RAMP.min()) / np.ptp(RAMP) * 255, atol=1e-3)
    assert any("taken as MONOCHROME2" in note for note in picture.notes)
    odd = dataset(RAMP, WindowCenter="10", WindowWidth="0", PixelSpacing=["0", "0"])
    assert read_picture(save(tmp_path / "b.dcm", odd)).spacing_mm == (1, 1)


def test_pixels_that_were_filled_in_are_black_and_have_no_say(tmp_path: Path) -> None:
    padded = TWELVE.copy()
    padded[:, :5] = 60_000
    for kind in ("MONOCHROME1", "MONOCHROME2"):
        made = dataset(padded, PhotometricInterpretation=kind)
        made.add_new("PixelPaddingValue", "US", 60_000)
        values = shown(tmp_path, made)[0]
        assert (values[:, :5] == 0).all() and values[:, 5:].max() == 1


def test_a_voi_table_of_more_entries_than_levels_is_looked_up(tmp_path: Path) -> None:
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [4096, 0, 8])
    table.add_new("LUTData", "US", (np.sqrt(np.arange(4096) / 4095) * 255).round().astype(int).tolist())
    made = dataset(TWELVE, BitsStored=12, HighBit=11, VOILUTSequence=Sequence([table]))
    np.testing.assert_allclose(shown(tmp_path, made)[0], np.sqrt(TWELVE / 4095), atol=1 / 255)


def test_a_modality_table_comes_before_the_window(tmp_path: Path) -> None:
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [4096, 0, 16])
    table.add_new("LUTData", "US", (np.arange(4096)[::-1] * 2).tolist())
    table.ModalityLUTType = "US"
    made = dataset(TWELVE, ModalityLUTSequence=Sequence([table]), WindowCenter="4000", WindowWidth="4000")
    expected = np.clip(((4095 - TWELVE.astype(float)) * 2 - 3999.5) / 3999 + 0.5, 0, 1)
    np.testing.assert_allclose(shown(tmp_path, made)[0], expected, atol=1e-5)


def test_colours_and_palettes(tmp_path: Path) -> None:
    colours = np.random.default_rng(3).integers(0, 256, (8, 6, 3)).astype(np.uint8)
    picture = read_picture(save(tmp_path / "rgb.dcm", dataset(colours)))
    np.testing.assert_array_equal(picture.data, colours.transpose(2, 0, 1))
    indices = np.random.default_rng(4).integers(0, 4, (8, 6)).astype(np.uint8)
    made = dataset(indices, PhotometricInterpretation="PALETTE COLOR")
    levels = {"Red": [0, 255, 0, 10], "Green": [0, 0, 255, 20], "Blue": [0, 40, 50, 30]}
    for name, values in levels.items():
        made.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [4, 0, 16])
        data = (np.array(values) * 257).astype("<u2").tobytes()
        made.add_new(f"{name}PaletteColorLookupTableData", "OW", data)
    picture = read_picture(save(tmp_path / "palette.dcm", made))
    expected = np.array([levels["Red"], levels["Green"], levels["Blue"]])[:, indices]
    np.testing.assert_allclose(picture.data, expected, atol=1)


def compressed(syntax: str, pixels: np.ndarray, **elements: Any) -> FileDataset:
    made = dataset(pixels, **elements)
    made.compress(syntax, encoding_plugin="")
    return made


@pytest.mark.parametrize("syntax", [uid.JPEG2000Lossless, uid.JPEGLSLossless, uid.RLELossless])
@pytest.mark.parametrize("signed", [False, True])
def test_lossless_compression_changes_nothing(tmp_path: Path, syntax: str, signed: bool) -> None:
    pytest.importorskip("openjpeg" if syntax == uid.JPEG2000Lossless else "jpeg_ls")
    pixels = (TWELVE.astype(np.int32) - 2000).astype(np.int16) if signed else TWELVE
    elements: dict[str, Any] = {"WindowCenter": "300", "WindowWidth": "1800"}
    plain = shown(tmp_path, dataset(pixels, **elements))
    np.testing.assert_allclose(shown(tmp_path, compressed(syntax, pixels, **elements)), plain, atol=1e-6)


def jpeg(pixels: np.ndarray) -> FileDataset:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "jpeg", quality=95)
    made = dataset(pixels, uid.JPEGBaseline8Bit, WindowCenter="128", WindowWidth="256")
    made.PixelData = encapsulate([stream.getvalue()])
    made["PixelData"].is_undefined_length = True
    return made


def test_jpeg_baseline_comes_back_nearly(tmp_path: Path) -> None:
    np.testing.assert_allclose(shown(tmp_path, jpeg(RAMP))[0] * 255, RAMP, atol=8)


def test_compressed_pixels_without_their_end_mark_are_read(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.dcm", jpeg(RAMP)).read_bytes()
    assert whole.endswith(dicom_picture.END)
    (tmp_path / "open.dcm").write_bytes(whole[:-8])
    np.testing.assert_array_equal(read_picture(tmp_path / "open.dcm").data, read_picture(tmp_path / "whole.dcm").data)
    (tmp_path / "cut.dcm").write_bytes(whole[:-200])
    with pytest.raises(DataError, match=r"cut\.dcm: it is cut short"):
        read_picture(tmp_path / "cut.dcm")


def test_jpeg_2000_that_lacks_its_finest_detail_is_read_and_said_to(tmp_path: Path) -> None:
    pytest.importorskip("openjpeg")
    slope, rng = np.add.outer(np.arange(128), np.arange(128)) * 8, np.random.default_rng(0)
    whole = b""
    while not whole.endswith(dicom_picture.END_OF_CODESTREAM + dicom_picture.END):  # no byte of padding between
        pixels = (slope + rng.integers(0, 40, (128, 128))).astype(np.uint16)
        whole = save(tmp_path / "whole.dcm", compressed(uid.JPEG2000Lossless, pixels)).read_bytes()
    (tmp_path / "cut.dcm").write_bytes(whole[: -8 - len(whole) // 100])
    picture = read_picture(tmp_path / "cut.dcm")
    assert any("cut short" in note for note in picture.notes)
    assert np.abs(picture.data - read_picture(tmp_path / "whole.dcm").data).mean() < 0.02 * picture.full_scale
    (tmp_path / "half.dcm").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cut short"):
        read_picture(tmp_path / "half.dcm")


def test_a_missing_decoder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom.pixels.decoders.base import Decoder

    path = save(tmp_path / "a.dcm", jpeg(RAMP))
    monkeypatch.setattr(Decoder, "is_available", property(lambda self: False))
    with pytest.raises(UsageError, match=r"pip install pylibjpeg pylibjpeg-libjpeg"):
        read_picture(path)


def test_a_file_without_preamble_and_meta_is_read(tmp_path: Path) -> None:
    made = dataset(TWELVE, WindowCenter="2000", WindowWidth="3000")
    expected = shown(tmp_path, made)
    with open(tmp_path / "bare.dcm", "wb") as file:
        pydicom.dcmwrite(file, Dataset(made), implicit_vr=True, little_endian=True)
    assert (tmp_path / "bare.dcm").read_bytes()[128:132] != b"DICM"
    picture = read_picture(tmp_path / "bare.dcm")
    np.testing.assert_allclose(picture.data / picture.full_scale, expected, atol=1e-6)


def test_dicom_is_known_by_its_content(tmp_path: Path) -> None:
    assert "DICOM" in read_picture(save(tmp_path / "IM0001", dataset(TWELVE))).stored


def test_the_size_of_pixels_is_read(tmp_path: Path) -> None:
    made = dataset(TWELVE, ImagerPixelSpacing=["0.14", "0.28"])
    assert read_picture(save(tmp_path / "a.dcm", made)).spacing_mm == pytest.approx((0.14, 0.28))


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        ({"NumberOfFrames": "3"}, "3 frames"),
        ({"PixelData": None}, "holds no picture"),
        ({"PixelData": b"\0" * 10}, "cannot be read"),
    ],
)
def test_what_is_wrong_is_said_without_the_patient(tmp_path: Path, elements: dict[str, Any], words: str) -> None:
    path = save(tmp_path / "a.dcm", dataset(TWELVE, **elements))
    assert PATIENT.encode() in path.read_bytes()
    with pytest.raises(DataError, match=words) as caught:
        read_picture(path)
    for secret in ("Doe", "4711", "1950"):
        assert secret not in str(caught.value)


def test_other_files_with_this_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"not a DICOM file at all" * 20)
    (tmp_path / "b.dcm").write_bytes(b"")
    for name in ("a.dcm", "b.dcm"):
        with pytest.raises(DataError, match=name):
            read_picture(tmp_path / name)
