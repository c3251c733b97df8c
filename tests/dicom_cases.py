"""Small DICOM files for tests: classic series and enhanced files, with a name, id and birth date planted in each."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian

PLANTED = ("Plantedname", "PID4711", "19610203", "1961-02-03", "Plantedclinic", "20200105")
MR, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"
MPRAGE: dict[str, Any] = {
    "SeriesDescription": "t1_mprage Plantedname",
    "ScanningSequence": ["GR", "IR"],
    "SequenceVariant": ["SP", "MP"],
    "MRAcquisitionType": "3D",
    "RepetitionTime": 2300,
    "EchoTime": 2.98,
    "InversionTime": 900,
    "SliceThickness": 1,
}
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)


def person(identifier: str = "PID4711", study: str = "1.2.3.1", day: str = "20200105", **facts: Any) -> dict[str, Any]:
    """What a header says of a person and a visit."""
    return {
        "PatientName": f"Plantedname^{identifier}",
        "PatientID": identifier,
        "PatientBirthDate": "19610203",
        "PatientSex": "F",
        "PatientAge": "058Y",
        "InstitutionName": "Plantedclinic",
        "StudyInstanceUID": study,
        "StudyDate": day,
        **facts,
    }


def header(series: str, sop_class: str, uid: str, **facts: Any) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = sop_class
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = uid
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ages that are wrong on purpose
        for name, value in {"Modality": "MR", "SeriesInstanceUID": series, **person(), **facts}.items():
            if value is not None:
                setattr(dataset, name, value)
    return dataset


def put_pixels(dataset: Dataset, pixels: np.ndarray) -> None:
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()


def save_slice(path: Path, series: str, position: Sequence[float], pixels: np.ndarray, **facts: Any) -> Path:
    """Write one classic slice; `facts` set or, by None, take away elements."""
    geometry = {
        "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"],
        "ImagePositionPatient": [float(part) for part in position],
        "ImageOrientationPatient": list(AXIAL),
        "PixelSpacing": [1.5, 2.0],
    }
    dataset = header(series, MR, f"{series}.{zlib.crc32(str(path).encode())}", **{**geometry, **facts})
    put_pixels(dataset, pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def voxels(n: int = 6, seed: int = 0) -> np.ndarray:
    """Slices of 5 rows and 4 columns."""
    return np.random.default_rng(seed).integers(0, 900, (n, 5, 4)).astype(np.uint16)


def save_series(
    folder: Path,
    series: str = "1.2.3.4",
    *,
    data: np.ndarray | None = None,
    step_mm: float = 3.0,
    skip: int = -1,
    prefix: str = "IM",
    **facts: Any,
) -> list[Path]:
    """Write the slices of an axial series in shuffled names, from z = 10 mm up; `skip` leaves one out."""
    data = voxels() if data is None else data
    names = np.random.default_rng(len(series)).permutation(len(data))
    facts = {**MPRAGE, "SeriesNumber": 4, **facts}
    return [
        save_slice(folder / f"{prefix}{names[k]:04d}", series, (-3, -4, 10 + step_mm * k), pixels, **facts)
        for k, pixels in enumerate(data)
        if k != skip
    ]  # fmt: skip


def save_enhanced(
    path: Path,
    stacks: Sequence[np.ndarray],
    *,
    echoes: Sequence[float] = (3.0,),
    step_mm: float = 2.0,
    shuffle: bool = True,
    skip: int = -1,
    scalings: Sequence[tuple[float, float]] | None = None,
    **facts: Any,
) -> Path:
    """Write an enhanced file with one volume for each echo, its frames shuffled; `skip` leaves out a frame's slice."""
    frames = [(e, k, pixels) for e, data in enumerate(stacks) for k, pixels in enumerate(data) if k != skip]
    if shuffle:
        frames = [frames[k] for k in np.random.default_rng(1).permutation(len(frames))]
    given = {**MPRAGE, **facts}
    top = {name: given[name] for name in given if name not in ("EchoTime", "RepetitionTime", "InversionTime")}
    dataset = header("1.2.3.9", ENHANCED_MR, "1.2.3.9.1", ImageType=["ORIGINAL", "PRIMARY", "T1", "NONE"], **top)
    shared = Dataset()
    shared.PlaneOrientationSequence = Items([item(ImageOrientationPatient=list(SAGITTAL))])
    shared.PixelMeasuresSequence = Items([item(PixelSpacing=[1.5, 2.0], SliceThickness=2)])
    shared.MRTimingAndRelatedParametersSequence = Items([item(RepetitionTime=float(given["RepetitionTime"]))])
    shared.MRModifierSequence = Items([item(InversionTimes=[float(given["InversionTime"])])])
    dataset.SharedFunctionalGroupsSequence = Items([shared])
    groups = []
    for echo, k, _ in frames:
        slope, intercept = (scalings or [(1.0, 0.0)] * 99)[k]
        frame = Dataset()
        frame.FrameContentSequence = Items([item(StackID="1", InStackPositionNumber=k + 1)])
        frame.PlanePositionSequence = Items([item(ImagePositionPatient=[-20 + step_mm * k, 4.0, 5.0])])
        frame.MREchoSequence = Items([item(EffectiveEchoTime=float(echoes[echo]))])
        frame.PixelValueTransformationSequence = Items([item(RescaleSlope=slope, RescaleIntercept=intercept)])
        groups.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = Items(groups)
    dataset.NumberOfFrames = len(frames)
    put_pixels(dataset, np.stack([pixels for _, _, pixels in frames]))
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def item(**facts: Any) -> Dataset:
    dataset = Dataset()
    for name, value in facts.items():
        setattr(dataset, name, value)
    return dataset
