"""Read a scan in any common format into one form: float32 voxels in RAS+ order and their affine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroage.errors import DataError, UsageError

if TYPE_CHECKING:
    import nibabel as nib

NIBABEL_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img", ".hdr.gz", ".img.gz", ".mgz", ".mgh")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")
SUFFIXES = NIBABEL_SUFFIXES + ITK_SUFFIXES

# Analyze 7.5 `orient` byte -> orientation of the stored axes (Mayo Clinic, Analyze 7.5 file format; ITK reads it the
# same way).
ANALYZE_ORIENT = {0: "LAS", 1: "LSA", 2: "ASL"}


@dataclass(frozen=True)
class Volume:
    """One scan in memory.

    Attributes:
        data: Voxels, shape (1, I, J, K), float32, axes nearest to right, anterior, superior (RAS+).
        affine: Voxel index to millimetres in scanner space, shape (4, 4), float64.
        source_orientation: Axis codes of the file before reordering, such as "LPS".
    """

    data: np.ndarray
    affine: np.ndarray
    source_orientation: str = "RAS"

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centres along each axis, in millimetres."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along each axis, without the channel."""
        i, j, k = self.data.shape[1:]
        return int(i), int(j), int(k)


def read(path: str | os.PathLike[str], *, nonfinite: str = "refuse") -> Volume:
    """Read one scan: NIfTI, Analyze, MGZ, NRRD, MetaImage or a folder with one DICOM series.

    Axes are permuted and flipped to the nearest RAS+ orientation, never interpolated: an oblique scan keeps its
    oblique affine. A 4-D file with one volume is taken as 3-D. Intensities are the scaled ones (`scl_slope`, rescale
    slope).

    Args:
        path: The file, or the folder that holds a DICOM series.
        nonfinite: "refuse" raises on NaN or infinite voxels; "zero" sets them to 0, as tools that write NaN outside
            the brain intend.

    Returns:
        The volume, data (1, I, J, K) float32 with an RAS+ affine.

    Raises:
        UsageError: The path does not exist or its format is not known.
        DataError: The content is broken: truncated, wrong header, all voxels equal, NaN, several volumes, colour, one
            slice.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"No such scan: {path}", fix="Check the path, or index the cohort again.")
    data, affine = _load(path)
    data, affine = _one_volume(data, path), _sound_affine(affine, path)
    data = _finite(np.asarray(data, dtype=np.float32), nonfinite, path)
    if data.min() == data.max():
        what = "zero" if data.flat[0] == 0 else f"{data.flat[0]:g}"
        raise DataError(f"{path}: every voxel is {what}", expected="an image", fix="Export the scan again.")
    return _to_ras(data, affine)


def _load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    name = path.name.lower()
    try:
        if path.is_dir():
            return _load_dicom_series(path)
        if name.endswith(NIBABEL_SUFFIXES):
            return _load_nibabel(path)
        if name.endswith(ITK_SUFFIXES) or name.endswith(DICOM_SUFFIXES):
            return _load_itk(path)
    except (DataError, UsageError):
        raise
    except Exception as error:  # the readers raise dozens of types for a broken file; all mean the same to a user
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{path}: cannot be read ({reason})",
            expected="a whole, valid image file",
            fix="Copy or export the file again.",
        ) from error
    raise UsageError(
        f"{path}: unknown image format", expected=f"one of {', '.join(SUFFIXES)} or a folder with a DICOM series"
    )


def _load_nibabel(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import nibabel as nib

    if path.stat().st_size < 1024:
        text = path.read_bytes()
        if b"git-lfs" in text or b"annex" in text:
            raise DataError(
                f"{path}: a git-annex or LFS pointer, not the image",
                fix="Fetch the content (git annex get, git lfs pull).",
            )
    image: Any
    image = _image_of_compressed(path) if path.name.lower().endswith((".nii.gz", ".mgz")) else nib.load(path)
    data = np.asanyarray(image.dataobj)
    if data.dtype.names or np.iscomplexobj(data):
        raise DataError(
            f"{path}: holds {'colour' if data.dtype.names else 'complex'} voxels", expected="one real number a voxel"
        )
    return data, _affine_of(image)


def _image_of_compressed(path: Path) -> nib.spatialimages.SpatialImage:
    """Decompress the whole file in one go (ISA-L, about twice as fast as zlib) and read it from memory."""
    import nibabel as nib
    from isal import igzip

    raw = path.read_bytes()
    content = igzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    if path.name.lower().endswith(".mgz"):
        return nib.MGHImage.from_bytes(content)
    version_2 = content[:4] in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c")  # sizeof_hdr = 540
    image_class = nib.Nifti2Image if version_2 else nib.Nifti1Image
    return image_class.from_bytes(content)


def _affine_of(image: Any) -> np.ndarray:
    import nibabel as nib

    header = image.header
    plain_analyze = isinstance(header, nib.analyze.AnalyzeHeader) and not isinstance(header, nib.Nifti1Header)
    if not plain_analyze or (isinstance(header, nib.spm99analyze.SpmAnalyzeHeader) and any(header["origin"][:3])):
        return np.asarray(image.affine, dtype=np.float64)
    codes = ANALYZE_ORIENT.get(int.from_bytes(header["orient"].tobytes(), "little"), "LAS")
    affine = np.zeros((4, 4))
    for axis, code in enumerate(codes):
        world = next(row for row, pair in enumerate(("LR", "PA", "IS")) if code in pair)
        affine[world, axis] = float(header.get_zooms()[axis]) * (-1 if code in "LPI" else 1)
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(image.shape[:3]) - 1) / 2)
    affine[3, 3] = 1
    return affine


def _load_itk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import SimpleITK as sitk

    return _from_itk(sitk.ReadImage(str(path)), path)


def _load_dicom_series(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    names = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if not names:
        raise DataError(
            f"{folder}: holds no DICOM series", expected="a folder with the slices of one series, or an image file"
        )
    series = {name: sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), name) for name in names}
    if len(series) > 1:
        sizes = ", ".join(str(len(files)) for files in series.values())
        raise DataError(
            f"{folder}: holds {len(series)} DICOM series ({sizes} slices)",
            expected="one series in a folder",
            fix="Put each series into its own folder.",
        )
    return _from_itk(sitk.ReadImage(next(iter(series.values()))), folder)


def _from_itk(image: Any, path: Path) -> tuple[np.ndarray, np.ndarray]:
    import SimpleITK as sitk

    if image.GetNumberOfComponentsPerPixel() > 1:
        raise DataError(f"{path}: holds {image.GetNumberOfComponentsPerPixel()} values a voxel", expected="one")
    dimension = image.GetDimension()
    data = sitk.GetArrayFromImage(image).transpose(range(dimension)[::-1])
    n = min(dimension, 3)
    direction = np.asarray(image.GetDirection()).reshape(dimension, dimension)[:n, :n]
    affine = np.eye(4)
    affine[:n, :n] = direction * np.asarray(image.GetSpacing()[:n])
    affine[:n, 3] = image.GetOrigin()[:n]
    return data, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # ITK's world is LPS, ours RAS


def _one_volume(data: np.ndarray, path: Path) -> np.ndarray:
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim != 3:
        shape = "×".join(map(str, data.shape))
        raise DataError(
            f"{path}: {data.ndim}-D image of {shape}",
            expected="one 3-D volume",
            fix="Extract one volume from the series.",
        )
    if min(data.shape) < 2:
        raise DataError(f"{path}: a single slice ({'×'.join(map(str, data.shape))})", expected="a 3-D volume")
    return data


def _sound_affine(affine: np.ndarray, path: Path) -> np.ndarray:
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    volume = abs(np.linalg.det(affine[:3, :3])) if np.isfinite(affine).all() else 0.0
    if not volume > 1e-3 * spacing.prod() > 0:
        raise DataError(
            f"{path}: the header gives no valid geometry (voxel size {np.round(spacing, 3).tolist()} mm)",
            expected="an invertible affine",
        )
    return np.asarray(affine, dtype=np.float64)


def _finite(data: np.ndarray, nonfinite: str, path: Path) -> np.ndarray:
    if np.isfinite(data.sum(dtype=np.float64)):  # one pass: a single NaN or infinite voxel makes the sum so
        return data
    bad = ~np.isfinite(data)
    n_bad = int(bad.sum())
    if nonfinite == "zero":
        return np.where(bad, np.float32(0), data)
    raise DataError(
        f"{path}: {n_bad} voxels ({n_bad / data.size:.1%}) are NaN or infinite",
        expected="finite intensities",
        fix="Where they mark the background, set prepare.nonfinite to zero; otherwise export the scan again.",
    )


def _to_ras(data: np.ndarray, affine: np.ndarray) -> Volume:
    import nibabel as nib

    orientation = nib.orientations.io_orientation(affine)
    codes = "".join(nib.orientations.ornt2axcodes(orientation))
    data = nib.orientations.apply_orientation(data, orientation)
    affine = affine @ nib.orientations.inv_ornt_aff(orientation, [data.shape[int(axis)] for axis in orientation[:, 0]])
    return Volume(np.ascontiguousarray(data, dtype=np.float32)[None], affine, codes)
