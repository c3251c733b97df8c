"""Voxels of one DICOM volume: classic slices or an enhanced file, in a regular grid or refused with the slice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroage.cohort.dicom_frame import Frame
from neuroage.cohort.dicom_geometry import Grid, arrange_slices
from neuroage.cohort.dicom_paths import find_volume
from neuroage.errors import DataError, UsageError

if TYPE_CHECKING:
    from pydicom import Dataset

# Nothing of the patient is read with the pixels.
ELEMENTS = [
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "ExtendedOffsetTable"),
    *("ExtendedOffsetTableLengths", "PixelData", "FloatPixelData", "DoubleFloatPixelData"),
]


@dataclass(frozen=True)
class DicomVoxels:
    """A DICOM volume, before its voxels are read: the value is stored · slope + intercept.

    Attributes:
        shape: Columns, rows, slices.
        affine: Voxel to millimetres, RAS+, shape (4, 4).
        planes: `planes(n)` yields (columns, rows, up to n) voxels at a time, in order.
        slope, intercept: Of all slices; where slices differ, `planes` gives scaled values, and these are 1 and 0.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    planes: Callable[[int], Iterator[np.ndarray]]
    slope: float = 1.0
    intercept: float = 0.0


def open_dicom(path: Path) -> DicomVoxels:
    """Find the slices of one DICOM volume and bring them into their order; voxels are read when asked for.

    Args:
        path: A folder with one volume, one file of a series, or `FILE#2` for the second volume in a file.

    Raises:
        UsageError: pydicom, or what decodes this compression, is not installed.
        DataError: Slices are missing, repeated, unlike each other, unevenly spaced or sheared; or there is no volume,
            or several.
    """
    volume = find_volume(path)
    pixels = _Pixels()
    try:
        grid = arrange_slices(volume.frames, same_pixels=pixels.are_same)
        scaled_by_itk = not pixels.decodes(grid.frames[0])
    except DataError as error:
        raise DataError(f"{path}: {error.what}", expected=error.expected, fix=error.fix) from None
    scalings = {frame.scaling or (1.0, 0.0) for frame in grid.frames}
    if scaled_by_itk:
        return DicomVoxels(grid.shape, grid.affine, lambda n: _planes(grid, pixels.scaled_by_itk, n))
    if len(scalings) > 1:
        return DicomVoxels(grid.shape, grid.affine, lambda n: _planes(grid, pixels.scaled, n))
    return DicomVoxels(grid.shape, grid.affine, lambda n: _planes(grid, pixels.stored, n), *scalings.pop())


def _planes(grid: Grid, pixels: Callable[[Frame], np.ndarray], n_planes: int) -> Iterator[np.ndarray]:
    for start in range(0, len(grid.frames), n_planes):
        yield np.stack([pixels(frame) for frame in grid.frames[start : start + n_planes]]).T


class _Pixels:
    """Reads slices; the file read last stays open, because an enhanced one holds all."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._dataset: Any = None

    def stored(self, frame: Frame) -> np.ndarray:
        """Give the stored values of one slice, shape (rows, columns)."""
        from pydicom.pixels import get_decoder

        dataset = self._open(frame.path)
        if int(dataset.get("SamplesPerPixel") or 1) > 1:
            raise DataError(
                f"{frame.path.name} holds colours", expected="one value a voxel", fix="Leave this file out."
            )
        decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
        try:
            values, _ = decoder.as_array(dataset, index=frame.index, raw=True)
        except Exception as error:  # whatever a decoder raises for broken pixels; which of many files is for us to say
            raise DataError(
                f"{frame.path.name} cannot be decoded ({' '.join(str(error).split())[:200]})",
                expected="a whole DICOM file",
                fix="Export it again.",
            ) from error
        if values.shape != frame.size:
            raise DataError(f"{frame.path.name} holds {values.shape} pixels", expected=f"{frame.size}")
        return _without_unused_bits(values, dataset)

    def scaled(self, frame: Frame) -> np.ndarray:
        """Give the values of one slice by its own slope and intercept."""
        slope, intercept = frame.scaling or (1.0, 0.0)
        return self.stored(frame).astype(np.float64) * slope + intercept

    def scaled_by_itk(self, frame: Frame) -> np.ndarray:
        """Decode by GDCM what pydicom cannot; it applies the slope itself."""
        import SimpleITK as sitk

        sitk.ProcessObject.SetGlobalWarningDisplay(False)
        return sitk.GetArrayFromImage(sitk.ReadImage(str(frame.path)))[0]

    def decodes(self, frame: Frame) -> bool:
        """Say whether pydicom decodes this compression; else SimpleITK has to, which reads classic slices alone."""
        from pydicom.pixels import get_decoder

        syntax = self._open(frame.path).file_meta.TransferSyntaxUID
        try:
            available = not syntax.is_compressed or get_decoder(syntax).is_available
        except NotImplementedError:
            raise DataError(f"{frame.path.name} is compressed as {syntax.name}", expected="an image") from None
        if not available and int(self._dataset.get("NumberOfFrames") or 1) > 1:
            raise UsageError(
                f"nothing here decodes {syntax.name} of several frames", fix="Install it: pip install pylibjpeg-libjpeg"
            )
        return bool(available)

    def are_same(self, a: Frame, b: Frame) -> bool:
        """Say whether two slices hold the same values."""
        read = self.stored if self.decodes(a) else self.scaled_by_itk
        return bool(np.array_equal(read(a), read(b)))

    def _open(self, path: Path) -> Dataset:
        if self._path != path:
            self._dataset, self._path = _dataset(path), path
        return self._dataset


def _dataset(path: Path) -> Dataset:
    import pydicom
    from pydicom import uid
    from pydicom.dataset import FileMetaDataset

    dataset = pydicom.dcmread(path, force=True, specific_tags=ELEMENTS)
    if not any(name in dataset for name in ELEMENTS[-3:]):
        raise DataError(f"{path.name} holds no pixels", expected="an image", fix="Export it again.")
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    if "TransferSyntaxUID" not in dataset.file_meta:  # files without a preamble are not compressed
        implicit, little = dataset.original_encoding
        named = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = named if little is not False else uid.ExplicitVRBigEndian
    return dataset


def _without_unused_bits(values: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Take away what old files keep in the bits above the stored ones, and spread the sign over them."""
    if values.dtype.kind not in "iu":
        return values
    allocated = values.dtype.itemsize * 8
    stored = int(dataset.get("BitsStored") or allocated)
    compressed = dataset.file_meta.TransferSyntaxUID.is_compressed
    high = stored - 1 if compressed else int(dataset.get("HighBit") or stored - 1)
    above, below = allocated - 1 - high, high + 1 - stored
    if above <= 0 and below <= 0:
        return values
    return np.right_shift(np.left_shift(values, max(above, 0)), max(above, 0) + max(below, 0))
