"""How a path in a cohort names one DICOM volume, and how that volume is found again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from neuroage.cohort.dicom_contrast import guess_contrast
from neuroage.cohort.dicom_header import read_headers
from neuroage.cohort.dicom_volumes import DicomVolume, group_volumes
from neuroage.cohort.image_files import split_volume
from neuroage.errors import DataError, UsageError

HEAD_BYTES = 1 << 16  # in which the uid of a series stands, before long private elements


def path_of(volume: DicomVolume, sharing: Sequence[DicomVolume], n_in_folder: int) -> Path | None:
    """Give the path that names one volume in a cohort.

    Args:
        volume: The one to name.
        sharing: Every volume that has slices in its first file, itself among them, in their order.
        n_in_folder: How many DICOM images lie in the folder of its first file.

    Returns:
        The folder when it holds nothing else; the first file, which stands for its volume, when the folder holds
        others too; that file with `#2` when the file itself holds several. None when its files lie in several folders.
    """
    files = volume.files
    folder = files[0].parent
    if any(file.parent != folder for file in files):
        return None
    if len(sharing) > 1:
        return files[0].with_name(f"{files[0].name}#{sharing.index(volume) + 1}")
    return folder if n_in_folder == len(files) > 1 else files[0]


def find_volume(path: Path) -> DicomVolume:
    """Find the one volume that a path names, as `path_of` gives it; headers alone are read.

    Args:
        path: A folder with one volume; or one file of a series, which stands for all its slices in the same folder;
            or `FILE#2`, the second volume of those in a file.

    Raises:
        UsageError: pydicom is not installed, or the path ends in the number of a volume that is not there.
        DataError: There is none, or several without saying which.
    """
    file, number = split_volume(path)
    beside = [entry for entry in sorted(file.iterdir()) if entry.is_file()] if file.is_dir() else _companions(file)
    headers = read_headers(beside)
    volumes = [one for one in group_volumes(headers) if file.is_dir() or file in one.files]
    broken = [text for uid in ("", *(one.series.uid for one in volumes)) for text in headers.unreadable.get(uid, [])]
    if broken:
        raise DataError(f"{path}: {broken[0]}", expected="every slice whole", fix="Copy or export the series again.")
    if not volumes:
        raise DataError(f"{path}: holds no DICOM series", expected="the slices of one series, or an image file")
    if number > len(volumes):
        raise UsageError(f"{path}: there is no volume {number}", expected=f"1 to {len(volumes)}")
    if number or len(volumes) == 1:
        return volumes[max(number, 1) - 1]
    raise _several(file, volumes)


def _companions(file: Path) -> list[Path]:
    """Give the files beside one that belong to its series; a look at their first bytes spares reading the rest."""
    headers = read_headers([file])
    if not headers.series:
        return [file]
    uid = next(iter(headers.series)).encode()
    if not _mentions(file, uid):  # compressed as a whole, say: then nothing can be told from the bytes
        return [entry for entry in sorted(file.parent.iterdir()) if entry.is_file()]
    return [entry for entry in sorted(file.parent.iterdir()) if entry.is_file() and _mentions(entry, uid)]


def _mentions(file: Path, uid: bytes) -> bool:
    with open(file, "rb") as handle:
        return uid in handle.read(HEAD_BYTES)


def _several(path: Path, volumes: Sequence[DicomVolume]) -> DataError:
    said = []
    for number, volume in enumerate(volumes, start=1):
        guess = guess_contrast(volume)
        name = volume.files[0].name if path.is_dir() else f"{path.name}#{number}"
        said.append(f"{name}: {guess.modality or 'unknown'}, {len(volume.frames)} slices")
    more = f"; and {len(said) - 6} more" if len(said) > 6 else ""
    n_series = len({volume.series.uid for volume in volumes})
    kinds = (
        f"{n_series} DICOM series" if n_series == len(volumes) else f"{len(volumes)} DICOM volumes in {n_series} series"
    )
    return DataError(
        f"{path}: holds {kinds} ({'; '.join(said[:6])}{more})",
        expected="one",
        fix="Name one of these files, which stands for its slices; or let `neuroage index` choose.",
    )
