"""Prepared images on disk, volumes and pictures: each is prepared once, kept compactly, and memory-mapped ever after.

A stored volume is keyed by the identity of its file (path, size, time of change) and by the preparation, so a changed
scan or recipe is prepared anew and an unchanged one never is. Files appear whole or not at all; of several processes
that are to prepare the same scan at once, one does.
"""

from __future__ import annotations

import importlib
import json
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from neuroage.errors import DataError
from neuroage.files import atomic_path, digest_text, write_json
from neuroage.imaging.locks import hold
from neuroage.imaging.steps.companions import Companions, identity
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
ALONE = Companions()
LOCKS = "locks"  # folder of the store; empty unless scans are being prepared


@dataclass(frozen=True, slots=True)
class StoredVolume:
    """One prepared volume on disk; as an object it is small, so that a hundred thousand of them are no burden.

    Attributes:
        file: Name of the `.npy` file, shape (C, *spatial), in the recipe's `store_as` type.
        scale, offset: value = stored · scale + offset.
        problem: Why it should not be used, in one sentence, such as a failed registration; "" where nothing is known.
    """

    file: str
    scale: float
    offset: float
    problem: str = ""

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


def default_store_folder() -> Path:
    """Give the folder of prepared volumes: $NEUROAGE_STORE, else `neuroage/prepared` in the user's cache folder."""
    if given := os.environ.get("NEUROAGE_STORE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "neuroage" / "prepared"


class PreparedElsewhere(Exception):
    """Another process is preparing the scan at this moment."""


class Store:
    """A folder of prepared volumes.

    Args:
        folder: Where to keep them; `default_store_folder()` when None.

    Example:
        >>> Store("prepared").get("sub-01_T1w.nii.gz", Prepare())  # doctest: +SKIP
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = Path(folder) if folder is not None else default_store_folder()

    def get(
        self, path: str | os.PathLike[str], recipe: Preparation, companions: Companions = ALONE
    ) -> StoredVolume | None:
        """Find a prepared volume; None when it is not stored or its file, or one it was prepared with, has changed."""
        place = self.place(path, recipe, companions)
        if not place.exists():
            return None
        try:
            about = _read_description(place)  # written before the volume: where that stands, both are whole
        except DataError:
            return None
        return StoredVolume(str(place), about["scale"], about["offset"], about.get("problem", ""))

    def put(
        self,
        path: str | os.PathLike[str],
        recipe: Preparation,
        prepared: Prepared,
        companions: Companions = ALONE,
    ) -> StoredVolume:
        """Store a prepared volume and give it back as stored."""
        place = self.place(path, recipe, companions)
        stored, scale, offset = compress(prepared.data, recipe.store_as)
        loss = float(np.abs(stored.astype(np.float32) * np.float32(scale) + np.float32(offset) - prepared.data).max())
        record = {**prepared.record, "affine": prepared.affine.round(6).tolist(), "precision_loss": loss}
        description = {"scale": scale, "offset": offset, "problem": prepared.problem, "record": record}
        write_json(place.with_suffix(".json"), description)
        with atomic_path(place) as temporary:
            np.save(temporary, stored)
        return StoredVolume(str(place), scale, offset, prepared.problem)

    def prepare(
        self, path: str | os.PathLike[str], recipe: Preparation, companions: Companions = ALONE, *, wait: bool = True
    ) -> tuple[StoredVolume, bool]:
        """Give the stored volume of a scan, preparing it first where needed; the flag says whether it was.

        Raises:
            PreparedElsewhere: Another process is at it, and `wait` is not set.
        """
        if found := self.get(path, recipe, companions):
            return found, False
        place = self.place(path, recipe, companions)
        with hold(self.folder / LOCKS / f"{place.stem}.lock", wait=wait) as mine:
            if not mine:
                raise PreparedElsewhere
            if found := self.get(path, recipe, companions):
                return found, False
            for rest in place.parent.glob(f".{place.stem}.*"):  # of a writer that was killed: the lock is ours
                rest.unlink(missing_ok=True)
            prepared = prepare_image(path, recipe, replace(companions, found=self.folder / "found"))
            return self.put(path, recipe, prepared, companions), True

    def sweep(self) -> None:
        """Remove the locks that killed processes have left; those that are held stay."""
        for lock in (self.folder / LOCKS).glob("*.lock"):
            with hold(lock, wait=False):
                pass

    def place(self, path: str | os.PathLike[str], recipe: Preparation, companions: Companions = ALONE) -> Path:
        """Give the name of the file in which a scan's prepared volume is, or would be, stored."""
        beside = [file for file in (companions.reference, companions.mask, companions.template) if file is not None]
        sources = "|".join(identity(file) for file in (Path(path), *beside))
        key = digest_text(f"{sources}|{recipe.digest}")[:32]
        return self.folder / f"v{steps_version(recipe)}-{recipe.digest[:12]}" / key[:2] / f"{key}.npy"


def steps_version(recipe: Preparation) -> int:
    """Give the version of the steps that prepare a scan: it rises whenever one of them gives other numbers."""
    return int(_preparer(recipe.kind).STEPS_VERSION)


def prepare_image(path: str | os.PathLike[str], recipe: Preparation, companions: Companions = ALONE) -> Prepared:
    """Read and prepare one image, by what prepares the recipe's kind."""
    prepare_it = getattr(_preparer(recipe.kind), PREPARERS[recipe.kind][1])
    prepared: Prepared = prepare_it(path, recipe, companions) if recipe.kind == "volume" else prepare_it(path, recipe)
    return prepared


def _preparer(kind: str) -> Any:
    return importlib.import_module(PREPARERS[kind][0])


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
