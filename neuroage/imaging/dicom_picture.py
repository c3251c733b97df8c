"""Read a single DICOM picture: pixel values → modality LUT → window → inversion of MONOCHROME1, in this order.

Only the elements that describe pixels are read, so that nothing of the patient can reach an error or a log.

Source: DICOM PS3.3 C.11.1 (modality LUT), C.11.2 (VOI LUT), C.7.6.3.1.2 (photometric interpretation).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroage.errors import DataError, UsageError
from neuroage.imaging.picture_form import Picture, one_or_three

if TYPE_CHECKING:
    from pydicom import Dataset

PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
ELEMENTS = [
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence", "VOILUTSequence", "VOILUTFunction"),
    *("WindowCenter", "WindowWidth", "PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"),
    *("RedPaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData", "PaletteColorLookupTableUID"),
    *("GreenPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableData"),
    *("BluePaletteColorLookupTableDescriptor", "BluePaletteColorLookupTableData"),
    *("SegmentedRedPaletteColorLookupTableData", "SegmentedGreenPaletteColorLookupTableData"),
    *("SegmentedBluePaletteColorLookupTableData", "AlphaPaletteColorLookupTableData"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths", *PIXELS),
]
ITEM, END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"  # of encapsulated fragments (PS3.5 A.4)
END_OF_CODESTREAM = b"\xff\xd9"  # of JPEG 2000 (ITU-T T.800, A.4.4): without it decoders refuse what they have
MOST_MISSING = 0.02  # of a JPEG 2000 stream, whose end holds the finest detail only
INSTALL = {"JPEG 2000": "pylibjpeg pylibjpeg-openjpeg", "JPEG-LS": "pyjpegls", "JPEG": "pylibjpeg pylibjpeg-libjpeg"}


def read_dicom_picture(path: Path) -> Picture:
    """Read one DICOM file as a picture; see `neuroage.imaging.picture.read_picture`.

    Args:
        path: The file; without the preamble or the file's meta information it is read all the same.

    Returns:
        Gray pictures with 0 for the darkest and `full_scale` for the brightest that the window shows; without a window
        the file's own values are spread over this range.

    Raises:
        UsageError: pydicom, or the package that decodes this compression, is not installed.
        DataError: There are no pixels in it, several frames, or the pixels are broken.
    """
    notes: list[str] = []
    dataset = _dataset(path, notes)
    if not any(name in dataset for name in PIXELS) or "Rows" not in dataset:
        raise DataError("it holds no picture", expected="a DICOM image", fix="Leave this file out.")
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise DataError(f"it holds {dataset.NumberOfFrames} frames", expected="one", fix="Export the frame meant.")
    syntax = _transfer_syntax(dataset)
    _complete(dataset, notes)
    bits = int(dataset.get("BitsStored", dataset.get("BitsAllocated", 16)))
    if not syntax.is_compressed and int(dataset.get("HighBit", bits - 1)) != bits - 1:
        raise DataError(f"its {bits} bits end at bit {dataset.HighBit}", expected=f"bit {bits - 1}")
    values = _decode(dataset, syntax)
    full_scale = float((1 << min(bits, 16)) - 1)
    if values.ndim == 3 or dataset.PhotometricInterpretation == "PALETTE COLOR":
        data = _colours(values, dataset, full_scale)
        stored = f"DICOM, {bits} bit {'colour' if len(data) == 3 else 'gray'}"
    else:
        data = _shown(values, dataset, notes)[None] * np.float32(full_scale)
        stored = f"DICOM, {bits} bit gray"
    if syntax.is_compressed:
        stored += f", {syntax.name}"
    return Picture(data.astype(np.float32), full_scale, stored, _spacing_mm(dataset), tuple(notes))


def _dataset(path: Path, notes: list[str]) -> Dataset:
    try:
        import pydicom
    except ImportError:
        raise UsageError("DICOM pictures need pydicom", fix="Install it: pip install pydicom") from None
    size = path.stat().st_size
    mended = _mended(path, notes) if size else None
    with open(path, "rb") if mended is None else io.BytesIO(mended) as handle:
        return pydicom.dcmread(handle, force=True, specific_tags=ELEMENTS)


def _mended(path: Path, notes: list[str]) -> bytes | None:
    """Give the file with the end of its compressed pixels put where it is missing; None where nothing is."""
    import pydicom

    with open(path, "rb") as handle:
        handle.seek(-len(END), io.SEEK_END) if path.stat().st_size > len(END) else None
        if handle.read() == END:
            return None
        handle.seek(0)
        head = pydicom.dcmread(handle, force=True, stop_before_pixels=True, specific_tags=["Rows"])
        start = handle.tell()
        handle.seek(0)
        content = handle.read()
    place = start + (12 if head.original_encoding[0] is False else 8)
    if content[start : start + 4] != b"\xe0\x7f\x10\x00" or content[place : place + 4] != ITEM:
        return None
    first = place
    while content[place : place + 4] == ITEM:
        place += 8 + int.from_bytes(content[place + 4 : place + 8], "little")
    missing = (place - len(content)) / (place - first)
    if missing < 0:
        return None  # other elements follow, or other ends
    if missing > 0:
        syntax = head.file_meta.get("TransferSyntaxUID", "")
        if "JPEG 2000" not in getattr(syntax, "name", "") or missing > MOST_MISSING:
            raise DataError(f"it is cut short: {missing:.0%} of its last pixels are missing")
        notes.append(f"cut short: the last {missing:.1%} of its pixels' detail is missing")
    lost = place - len(content)
    return content + (b"\0" * (lost - len(END_OF_CODESTREAM)) + END_OF_CODESTREAM)[-lost:] * (lost > 0) + END


def _transfer_syntax(dataset: Dataset) -> Any:
    from pydicom import uid
    from pydicom.dataset import FileMetaDataset

    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    if "TransferSyntaxUID" not in dataset.file_meta:
        if bytes(dataset.get("PixelData", b"")[:4]) == ITEM:
            raise DataError("it does not say how its pixels are compressed", fix="Export it again.")
        implicit, little = dataset.original_encoding
        named = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = named if little is not False else uid.ExplicitVRBigEndian
    return dataset.file_meta.TransferSyntaxUID


def _complete(dataset: Dataset, notes: list[str]) -> None:
    """Fill what decoding needs and some files lack."""
    if not dataset.get("SamplesPerPixel"):
        dataset.SamplesPerPixel = 1
    if not dataset.get("PhotometricInterpretation"):
        dataset.PhotometricInterpretation = "MONOCHROME2" if dataset.SamplesPerPixel == 1 else "RGB"
        notes.append(f"no photometric interpretation: taken as {dataset.PhotometricInterpretation}")
    if "BitsAllocated" not in dataset:
        n_bytes = len(dataset.get("PixelData", b"")) // max(1, dataset.Rows * dataset.Columns)
        dataset.BitsAllocated = 16 if n_bytes >= 2 * dataset.SamplesPerPixel else 8
    if "BitsStored" not in dataset:
        dataset.BitsStored = dataset.BitsAllocated
    if "PixelRepresentation" not in dataset:
        dataset.PixelRepresentation = 0
    if dataset.SamplesPerPixel > 1 and "PlanarConfiguration" not in dataset:
        dataset.PlanarConfiguration = 0


def _decode(dataset: Dataset, syntax: Any) -> np.ndarray:
    if syntax.is_compressed:
        from pydicom.pixels import get_decoder

        try:
            available = get_decoder(syntax).is_available
        except NotImplementedError:
            raise DataError(f"its pixels are compressed as {syntax.name}", expected="a picture") from None
        if not available:
            packages = next((p for name, p in INSTALL.items() if name in syntax.name), "pylibjpeg pylibjpeg-libjpeg")
            raise UsageError(f"nothing here decodes {syntax.name}", fix=f"Install it: pip install {packages}")
    return np.asarray(dataset.pixel_array)


def _colours(values: np.ndarray, dataset: Dataset, full_scale: float) -> np.ndarray:
    if values.ndim == 2:
        from pydicom.pixels import apply_color_lut

        values = apply_color_lut(values, dataset)[..., :3]
        values = values.astype(np.float32) * (full_scale / np.iinfo(values.dtype).max)
    return one_or_three(values[..., :3].astype(np.float32), full_scale)


def _shown(values: np.ndarray, dataset: Dataset, notes: list[str]) -> np.ndarray:
    """Give what the window shows, 0 (black) to 1 (white), shape (H, W)."""
    from pydicom.pixels import apply_modality_lut

    padding = _padding(values, dataset)
    levels = np.asarray(apply_modality_lut(values, dataset)).astype(np.float64)
    if dataset.get("VOILUTSequence"):
        shown = _by_table(levels, dataset)
        notes.append("its VOI table is applied")
    elif (window := _window(dataset)) is not None:
        shown = _windowed(levels, *window, str(dataset.get("VOILUTFunction") or "LINEAR").upper())
        notes.append(f"shown at window {window[0]:g}, width {window[1]:g}")
    else:
        inside = levels if padding is None else levels[~padding]
        low, high = (inside.min(), inside.max()) if inside.size else (0.0, 0.0)
        shown = (levels - low) / max(high - low, 1e-12)
        notes.append("no window: the range of its values is shown")
    shown = np.clip(shown, 0, 1)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shown = 1 - shown
        notes.append("MONOCHROME1 inverted")
    if padding is not None:
        shown[padding] = 0
    return shown.astype(np.float32)


def _padding(values: np.ndarray, dataset: Dataset) -> np.ndarray | None:
    """Give the pixels that were filled in beyond the picture; None where there are none."""
    value = dataset.get("PixelPaddingValue")
    if not isinstance(value, int):
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    ends = sorted((value, limit if isinstance(limit, int) else value))
    inside = (values >= ends[0]) & (values <= ends[1])
    return inside if inside.any() and not inside.all() else None


def _window(dataset: Dataset) -> tuple[float, float] | None:
    """Give centre and width of the first window; None without a valid one."""
    numbers = []
    for name in ("WindowCenter", "WindowWidth"):
        given = dataset.get(name)
        if isinstance(given, Sequence) and not isinstance(given, str):
            given = given[0] if len(given) else None
        try:
            numbers.append(float(given))  # type: ignore[arg-type]
        except (TypeError, ValueError):
            return None
    return (numbers[0], numbers[1]) if np.isfinite(numbers).all() and numbers[1] > 0 else None


def _windowed(levels: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(-4 * (levels - centre) / width)))
    if function == "LINEAR_EXACT":
        return (levels - centre) / width + 0.5
    if width <= 1:  # LINEAR of width 1 is a threshold
        return (levels > centre - 0.5).astype(np.float64)
    return (levels - (centre - 0.5)) / (width - 1) + 0.5


def _by_table(levels: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Look levels up in the VOI table (its own lookup: pydicom 3.0's overflows where 8 bits come of more entries)."""
    table = dataset.VOILUTSequence[0]
    n_entries, first, bits = (int(number) for number in table.LUTDescriptor)
    if dataset.PixelRepresentation and first > 0x7FFF:
        first -= 0x10000  # a negative number that was written as a positive one
    data = table.LUTData
    entries = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.atleast_1d(np.asarray(data))
    place = np.clip(np.rint(levels).astype(np.int64) - first, 0, min(n_entries or 1 << 16, len(entries)) - 1)
    return entries[place].astype(np.float64) / float((1 << bits) - 1)


def _spacing_mm(dataset: Dataset) -> tuple[float, float]:
    for name in ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"):
        given = dataset.get(name)
        try:
            rows, columns = (float(value) for value in given)  # type: ignore[union-attr]
        except (TypeError, ValueError):
            continue
        if min(rows, columns) > 0 and np.isfinite([rows, columns]).all():
            return rows, columns
    return 1.0, 1.0
