"""Read a scan in any common format into one form: float32 voxels in RAS+ order and their affine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

import numpy as np

from neuroage.cohort.dicom_header import looks_like_dicom
from neuroage.cohort.image_files import split_volume
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
BLOCK = 1 << 16  # voxels worked on at once, so that what lies between two steps stays in the processor's cache


@dataclass(frozen=True)
class Volume:
    """One scan in memory.

    Attributes:
        data: Voxels, shape (1, I, J, K), float32, axes nearest to right, anterior, superior (RAS+). In memory they keep
            the order of the file, mostly I fastest; `np.ascontiguousarray` brings K to be fastest where that matters.
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


class _Stored(NamedTuple):
    """What a file holds, before its voxels are read: the value is stored · slope + intercept.

    `planes(n)` yields the voxels in the file's own type and axes (I, J, K), n planes along K at a time, in order.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    planes: Callable[[int], Iterator[np.ndarray]]
    slope: float = 1.0
    intercept: float = 0.0


def read(path: str | os.PathLike[str], *, nonfinite: str = "refuse") -> Volume:
    """Read one scan: NIfTI, Analyze, MGZ, NRRD, MetaImage or DICOM, classic or enhanced.

    Axes are permuted and flipped to the nearest RAS+ orientation, never interpolated: an oblique scan keeps its
    oblique affine. A 4-D file with one volume is taken as 3-D. Intensities are the scaled ones (`scl_slope`, rescale
    slope).

    Args:
        path: The file. Of DICOM: the folder that holds one series; or one file of a series, which stands for all its
            slices in that folder; or `FILE#2`, the second volume of those in an enhanced file.
        nonfinite: "refuse" raises on NaN or infinite voxels; "zero" sets them to 0, as tools that write NaN outside
            the brain intend.

    Returns:
        The volume, data (1, I, J, K) float32 with an RAS+ affine.

    Raises:
        UsageError: The path does not exist or its format is not known.
        DataError: The content is broken: truncated, wrong header, all voxels equal, NaN, several volumes, colour, one
            slice.
    """
    import nibabel as nib

    path = Path(path)
    if not split_volume(path)[0].exists():
        raise UsageError(f"No such scan: {path}", fix="Check the path, or index the cohort again.")
    with _one_error(path):
        stored = _load(path)
    shape, affine = _one_volume(stored.shape, path), _sound_affine(stored.affine, path)
    orientation = nib.orientations.io_orientation(affine)
    with _one_error(path):
        data, low, high = _to_float32(stored, shape, flipped=orientation[:, 1] < 0)
    if not (np.isfinite(low) and np.isfinite(high)):
        data = _settle_nonfinite(data, nonfinite, path)
        low, high = data.min(), data.max()
    if low == high:
        what = "zero" if data.flat[0] == 0 else f"{data.flat[0]:g}"
        raise DataError(f"{path}: every voxel is {what}", expected="an image", fix="Export the scan again.")
    data = data.transpose(np.argsort(orientation[:, 0]))
    affine = affine @ nib.orientations.inv_ornt_aff(orientation, shape)
    return Volume(data[None], affine, "".join(nib.orientations.ornt2axcodes(orientation)))


@contextmanager
def _one_error(path: Path) -> Iterator[None]:
    """Turn whatever a reader raises into one error that names the file."""
    try:
        yield
    except (DataError, UsageError):
        raise
    except Exception as error:  # the readers raise dozens of types for a broken file; all mean the same to a user
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{path}: cannot be read ({reason})",
            expected="a whole, valid image file",
            fix="Copy or export the file again.",
        ) from error


def _load(path: Path) -> _Stored:
    name = path.name.lower()
    if name.endswith(NIBABEL_SUFFIXES) and path.is_file():
        return _load_nibabel(path)
    if name.endswith(ITK_SUFFIXES) and path.is_file():
        return _load_itk(path)
    if path.is_dir() or name.endswith(DICOM_SUFFIXES) or looks_like_dicom(split_volume(path)[0]):
        return _load_dicom(path)
    raise UsageError(
        f"{path}: unknown image format", expected=f"one of {', '.join(SUFFIXES)} or a folder with a DICOM series"
    )


def _load_nibabel(path: Path) -> _Stored:
    import nibabel as nib

    if path.stat().st_size < 1024:
        text = path.read_bytes()
        if b"git-lfs" in text or b"annex" in text:
            raise DataError(
                f"{path}: a git-annex or LFS pointer, not the image",
                fix="Fetch the content (git annex get, git lfs pull).",
            )
    image: Any
    name, planes = path.name.lower(), None
    if name.endswith(".mgz"):
        with _open(path) as file:
            image = nib.MGHImage.from_bytes(file.read())
    elif name.endswith(".nii.gz"):
        image = _compressed_nifti(path)
        planes = partial(_streamed_planes, path, image.dataobj)
    else:
        image = nib.load(path)
    stored = image.dataobj
    if stored.dtype.names or stored.dtype.kind == "c":
        raise DataError(
            f"{path}: holds {'colour' if stored.dtype.names else 'complex'} voxels", expected="one real number a voxel"
        )
    planes = planes or partial(_planes_of, stored.get_unscaled())
    return _Stored(tuple(stored.shape), _affine_of(image), planes, float(stored.slope), float(stored.inter))


def _open(path: Path) -> BinaryIO:
    """Open a file that may be compressed; ISA-L decompresses two to three times as fast as zlib."""
    from isal import igzip

    with open(path, "rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, igzip.open(path)) if compressed else open(path, "rb")


def _compressed_nifti(path: Path) -> nib.Nifti1Image:
    import nibabel as nib

    with _open(path) as file:
        version_2 = file.read(4) in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c")  # sizeof_hdr = 540
        file.seek(0)
        return (nib.Nifti2Image if version_2 else nib.Nifti1Image).from_stream(cast(Any, file))


def _streamed_planes(path: Path, stored: Any, n_planes: int) -> Iterator[np.ndarray]:
    """Decompress into one small buffer again and again: what was decompressed is still in the cache when it is used."""
    shape = stored.shape[:3]
    buffer = np.empty((n_planes, shape[1], shape[0]), stored.dtype)
    with _open(path) as file:
        file.seek(stored.offset)
        for start in range(0, shape[2], n_planes):
            block: np.ndarray = buffer[: shape[2] - start]
            rest = block.reshape(-1).view(np.uint8).data
            while rest:
                if not (n := file.readinto(rest)):  # type: ignore[attr-defined]
                    raise EOFError("it ends too early")
                rest = rest[n:]
            yield block.T
        while file.read(BLOCK):  # to the very end, where the checksum is
            pass


def _planes_of(values: np.ndarray, n_planes: int) -> Iterator[np.ndarray]:
    values = values.reshape(values.shape[:3], order="F")
    for start in range(0, len(values.T), n_planes):
        yield values[..., start : start + n_planes]


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


def _load_itk(path: Path) -> _Stored:
    import SimpleITK as sitk

    return _from_itk(sitk.ReadImage(str(path)), path)


def _load_dicom(path: Path) -> _Stored:
    from neuroage.imaging.dicom_series import open_dicom

    found = open_dicom(path)
    return _Stored(found.shape, found.affine, found.planes, found.slope, found.intercept)


def _from_itk(image: Any, path: Path) -> _Stored:
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
    return _Stored(
        data.shape, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, partial(_planes_of, data)
    )  # ITK's world is LPS, ours RAS


def _one_volume(shape: tuple[int, ...], path: Path) -> tuple[int, ...]:
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    said = "×".join(map(str, shape))
    if len(shape) != 3:
        raise DataError(
            f"{path}: {len(shape)}-D image of {said}",
            expected="one 3-D volume",
            fix="Extract one volume from the series.",
        )
    if min(shape) < 2:
        raise DataError(f"{path}: a single slice ({said})", expected="a 3-D volume")
    return shape


def _sound_affine(affine: np.ndarray, path: Path) -> np.ndarray:
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    volume = abs(np.linalg.det(affine[:3, :3])) if np.isfinite(affine).all() else 0.0
    if not volume > 1e-3 * spacing.prod() > 0:
        raise DataError(
            f"{path}: the header gives no valid geometry (voxel size {np.round(spacing, 3).tolist()} mm)",
            expected="an invertible affine",
        )
    return np.asarray(affine, dtype=np.float64)


def _to_float32(
    stored: _Stored, shape: tuple[int, ...], *, flipped: np.ndarray
) -> tuple[np.ndarray, np.floating, np.floating]:
    """Scale and flip in one pass over the memory; give also the values of the least and the largest stored (NaN wins).

    Scaling is done in double precision and rounded once. Integers are compared as they are stored, which is many times
    faster than as float32. The result is in the file's memory order.
    """
    data = np.empty(shape, dtype=np.float32, order="F")
    target = data[tuple(slice(None, None, -1 if flip else 1) for flip in flipped)]
    ends, start = [], 0
    with np.errstate(over="ignore", invalid="ignore"):
        for block in stored.planes(max(1, BLOCK // (shape[0] * shape[1]))):
            ends += [block.min(), block.max()]
            if stored.slope == 1 and stored.intercept == 0:
                target[..., start : start + block.shape[-1]] = block
            else:
                scaled = block.astype(np.float64, order="K")
                scaled *= stored.slope
                scaled += stored.intercept
                target[..., start : start + block.shape[-1]] = scaled
            start += block.shape[-1]
        low, high = (
            np.float32(np.float64(end) * stored.slope + stored.intercept) for end in (np.min(ends), np.max(ends))
        )
    return data, low, high


def _settle_nonfinite(data: np.ndarray, nonfinite: str, path: Path) -> np.ndarray:
    bad = ~np.isfinite(data)
    n_bad = int(bad.sum())
    if nonfinite == "zero":
        data[bad] = 0
        return data
    raise DataError(
        f"{path}: {n_bad} voxels ({n_bad / data.size:.1%}) are NaN or infinite",
        expected="finite intensities",
        fix="Where they mark the background, set prepare.nonfinite to zero; otherwise export the scan again.",
    )
