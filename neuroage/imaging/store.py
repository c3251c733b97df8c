"""Prepared images on disk, volumes and pictures: each is prepared once, kept compactly, and memory-mapped ever after.

A stored volume is keyed by the identity of its file (path, size, time of change) and by the preparation, so a changed
scan or recipe is prepared anew and an unchanged one never is. Files appear whole or not at all; two processes that
prepare the same scan at once leave one whole copy.
"""

from __future__ import annotations

import importlib
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from neuroage.cohort import Scan
from neuroage.errors import DataError, NeuroageError
from neuroage.files import atomic_path, digest_text, write_json
from neuroage.runs.recipe import Preparation

if TYPE_CHECKING:
    from neuroage.imaging.prepare import Prepared

# What prepares each kind of image: imported when one is prepared, so that each needs its own packages only. The steps'
# version is a part of the folder's name.
PREPARERS = {
    "volume": ("neuroage.imaging.prepare", "prepare_file"),
    "picture": ("neuroage.imaging.prepare_picture", "prepare_picture_file"),
}
UINT8_STEPS = 255
SCANS_AT_ONCE = 1_000  # handed to the threads together; each waits with a kilobyte or two


@dataclass(frozen=True, slots=True)
class StoredVolume:
    """One prepared volume on disk; as an object it is small, so that a hundred thousand of them are no burden.

    Attributes:
        file: Name of the `.npy` file, shape (C, *spatial), in the recipe's `store_as` type.
        scale, offset: value = stored · scale + offset.
    """

    file: str
    scale: float
    offset: float

    @property
    def path(self) -> Path:
        """The file as a path."""
        return Path(self.file)

    @property
    def record(self) -> dict[str, Any]:
        """What `prepare` recorded, with `precision_loss` (largest rounding error, in prepared intensities).

        It is read from the description beside the volume each time.
        """
        return dict(_read_description(self.path)["record"])

    def map(self) -> np.ndarray:
        """Memory-map the stored values, shape (C, *spatial); pages are read when touched."""
        return np.load(self.file, mmap_mode="r")

    def load(self) -> np.ndarray:
        """Load the prepared intensities, shape (C, *spatial), float32."""
        return np.asarray(self.map(), dtype=np.float32) * np.float32(self.scale) + np.float32(self.offset)


class Layout(NamedTuple):
    """How the stored volumes of one preparation lie in their files: all have the same header, to the byte."""

    header: bytes
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def n_bytes(self) -> int:
        """Bytes of the values of one volume."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_layout(file: str) -> Layout:
    """Read the header of one stored volume; the others of its preparation are then read without parsing theirs.

    Raises:
        DataError: The file is gone or not whole.
    """
    try:
        with open(file, "rb") as handle:
            version = np.lib.format.read_magic(handle)
            parse = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran_order, dtype = parse(handle)
            n_header = handle.tell()
            handle.seek(0)
            header = handle.read(n_header)
    except (OSError, ValueError) as error:
        raise _unreadable(file, str(error)) from error
    if fortran_order:
        raise _unreadable(file, "its axes are in another order")
    return Layout(header, tuple(shape), dtype)


def read_values(file: str, layout: Layout, target: np.ndarray) -> None:
    """Read stored values straight into an array: one opening, two readings, no copy.

    Args:
        file: Name of the `.npy` file.
        layout: What `read_layout` found for a volume of the same preparation.
        target: C-contiguous, of the layout's shape and type.

    Raises:
        DataError: The file is gone, cut short, or of another shape or type.
    """
    header = bytearray(len(layout.header))
    try:
        with open(file, "rb", buffering=0) as handle:
            same = handle.readinto(header) == len(header) and header == layout.header
            rest, n_read = target.data.cast("B"), 0
            while same and (n := handle.readinto(rest[n_read:])):  # a network file system may give less than asked for
                n_read += n
    except OSError as error:
        raise _unreadable(file, str(error)) from error
    if not same:
        raise _unreadable(file, f"not {' × '.join(map(str, layout.shape))} values of type {layout.dtype}")
    if n_read != layout.n_bytes:
        raise _unreadable(file, f"cut short, {n_read} of {layout.n_bytes} bytes")


def _unreadable(file: str, reason: str) -> DataError:
    return DataError(
        f"{file}: the stored volume cannot be read ({reason})", fix="Remove the file; the scan is then prepared anew."
    )


def _read_description(place: Path) -> dict[str, Any]:
    path = place.with_suffix(".json")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise _unreadable(str(path), str(error)) from error


@dataclass
class PreparedCohort:
    """The prepared volumes of a cohort.

    Attributes:
        volumes: scan_id → stored volume.
        failures: scan_id → why it could not be prepared.
        n_made: How many were prepared now; the others were in the store already.
    """

    volumes: dict[str, StoredVolume] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    n_made: int = 0


def default_store_folder() -> Path:
    """Give the folder of prepared volumes: $NEUROAGE_STORE, else `neuroage/prepared` in the user's cache folder."""
    if given := os.environ.get("NEUROAGE_STORE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "neuroage" / "prepared"


class Store:
    """A folder of prepared volumes.

    Args:
        folder: Where to keep them; `default_store_folder()` when None.

    Example:
        >>> Store("prepared").get("sub-01_T1w.nii.gz", Prepare())  # doctest: +SKIP
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = Path(folder) if folder is not None else default_store_folder()

    def get(self, path: str | os.PathLike[str], recipe: Preparation) -> StoredVolume | None:
        """Find a prepared volume; None when it is not stored or its file has changed since."""
        place = self._place(Path(path), recipe)
        if not place.exists():
            return None
        try:
            about = _read_description(place)  # written before the volume: where that stands, both are whole
        except DataError:
            return None
        return StoredVolume(str(place), about["scale"], about["offset"])

    def put(self, path: str | os.PathLike[str], recipe: Preparation, prepared: Prepared) -> StoredVolume:
        """Store a prepared volume and give it back as stored."""
        place = self._place(Path(path), recipe)
        stored, scale, offset = compress(prepared.data, recipe.store_as)
        loss = float(np.abs(stored.astype(np.float32) * np.float32(scale) + np.float32(offset) - prepared.data).max())
        record = {**prepared.record, "affine": prepared.affine.round(6).tolist(), "precision_loss": loss}
        write_json(place.with_suffix(".json"), {"scale": scale, "offset": offset, "record": record})
        with atomic_path(place) as temporary:
            np.save(temporary, stored)
        return StoredVolume(str(place), scale, offset)

    def prepare(self, path: str | os.PathLike[str], recipe: Preparation) -> tuple[StoredVolume, bool]:
        """Give the stored volume of a scan, preparing it first where needed; the flag says whether it was."""
        found = self.get(path, recipe)
        return (found, False) if found else (self.put(path, recipe, prepare_image(path, recipe)), True)

    def _place(self, path: Path, recipe: Preparation) -> Path:
        key = digest_text(f"{_identity(path)}|{recipe.digest}")[:32]
        version = _preparer(recipe.kind).STEPS_VERSION
        return self.folder / f"v{version}-{recipe.digest[:12]}" / key[:2] / f"{key}.npy"


def prepare_image(path: str | os.PathLike[str], recipe: Preparation) -> Prepared:
    """Read and prepare one image, by what prepares the recipe's kind."""
    prepared: Prepared = getattr(_preparer(recipe.kind), PREPARERS[recipe.kind][1])(path, recipe)
    return prepared


def _preparer(kind: str) -> Any:
    return importlib.import_module(PREPARERS[kind][0])


def _identity(path: Path) -> str:
    def stamp(file: Path) -> str:
        status = file.stat()
        return f"{status.st_size}:{status.st_mtime_ns}"

    path = path.resolve()
    if path.is_dir():
        return f"{path}:" + ",".join(f"{file.name}:{stamp(file)}" for file in sorted(path.iterdir()) if file.is_file())
    twin = path.with_suffix(".img") if path.suffix == ".hdr" else path  # Analyze keeps its pixels in a second file
    return f"{path}:{stamp(path)}" + (f":{stamp(twin)}" if twin != path and twin.exists() else "")


def compress(data: np.ndarray, store_as: str) -> tuple[np.ndarray, float, float]:
    """Bring prepared intensities into their stored type.

    Args:
        data: Shape (C, I, J, K), float32.
        store_as: uint8 (rounded to 255 steps over the volume's range: at most half a step lost), float16 or float32.

    Returns:
        Stored values, scale and offset, with value ≈ stored · scale + offset.
    """
    if store_as != "uint8":
        return data.astype(store_as), 1.0, 0.0
    low, high = float(data.min()), float(data.max())
    scale = (high - low) / UINT8_STEPS or 1.0
    return np.round((data - low) / scale).astype(np.uint8), scale, low


def prepare_scans(
    scans: Sequence[Scan],
    recipe: Preparation,
    store: Store,
    *,
    max_failed_share: float = 0.1,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PreparedCohort:
    """Prepare every scan that is not stored yet, several at a time.

    A scan that cannot be prepared is left out with its reason. Threads suffice: reading, resampling and statistics
    run outside of Python's lock.

    Args:
        scans: Scans with paths.
        recipe: The `prepare` section.
        store: Where prepared volumes are kept.
        max_failed_share: Above this share of failed scans the whole preparation fails, with every reason, as it does
            when all fail; above 1 it never does.
        threads: Scans at a time; the number of usable cores when None.
        progress: Called with (done, all) after each scan.

    Raises:
        DataError: More than the stated share of scans failed, or all did.
    """
    result = PreparedCohort()
    threads = threads or len(
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )
    with ThreadPoolExecutor(threads) as pool:
        try:
            for start in range(0, len(scans), SCANS_AT_ONCE):
                part = scans[start : start + SCANS_AT_ONCE]
                jobs = {pool.submit(_prepare_scan, scan, recipe, store, threads > 1): scan.scan_id for scan in part}
                for done, job in enumerate(as_completed(jobs), start=start + 1):
                    scan_id = jobs[job]
                    try:
                        result.volumes[scan_id], made = job.result()
                        result.n_made += made
                    except NeuroageError as error:
                        result.failures[scan_id] = str(error)
                    if progress:
                        progress(done, len(scans))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    result.volumes = {scan.scan_id: result.volumes[scan.scan_id] for scan in scans if scan.scan_id in result.volumes}
    _refuse_too_many_failures(result.failures, len(scans), max_failed_share)
    return result


def _prepare_scan(scan: Scan, recipe: Preparation, store: Store, in_parallel: bool) -> tuple[StoredVolume, bool]:
    if scan.path is None:
        raise DataError(f"{scan.scan_id}: the cohort names no file for it")
    found = store.get(scan.path, recipe)
    if found:
        return found, False
    if in_parallel and recipe.kind == "volume":
        _one_itk_thread_each()  # only now: stored volumes need no SimpleITK
    return store.put(scan.path, recipe, prepare_image(scan.path, recipe)), True


def _one_itk_thread_each() -> None:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def _refuse_too_many_failures(failures: dict[str, str], n_scans: int, max_failed_share: float) -> None:
    if max_failed_share > 1:
        return
    if failures and (len(failures) > max_failed_share * n_scans or len(failures) == n_scans):
        raise DataError(
            f"{len(failures)} of {n_scans} scans could not be prepared ({len(failures) / n_scans:.0%}):\n"
            + listed(failures.values()),
            expected=f"at most {max_failed_share:.0%}",
            fix="Mend or remove these scans, or raise --max-failed-share.",
        )


def listed(reasons: Iterable[str], most: int = 20) -> str:
    """Set reasons as an indented list, cut after `most` with the number left out."""
    lines = list(reasons)
    shown = "\n".join(f"  - {line}" for line in lines[:most])
    return shown + (f"\n  … and {len(lines) - most} more" if len(lines) > most else "")
