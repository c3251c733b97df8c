"""Fingerprints of image files: what is kept of each to find it again, a digest of its content and a signature."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from neuroage.cohort.problem import Problem
from neuroage.errors import DataError, NeuroageError
from neuroage.files import digest_file
from neuroage.imaging.picture import SUFFIXES as PICTURE_SUFFIXES
from neuroage.imaging.picture import read_picture
from neuroage.imaging.signatures import measure_slopes, sign_slopes

WHOLE_FILES = (".nii", ".nii.gz", ".mgz", ".mgh", ".nrrd", ".mha")  # one file holds the whole volume
AT_ONCE = 256  # pictures whose slopes are held at a time: 8 MB
PIECE_BYTES = 1 << 16  # of a volume, read from its middle to tell it from others of the same size


@dataclass
class Fingerprints:
    """What is kept of some files, by their position.

    Args:
        digests: Equal for pictures with equal pixels, and for volumes in equal files.
        rows: Which files have a signature, ascending, (N,).
        signatures: Shape (N, 128).
        faults: Why a file could not be read.
        remarks: What was not compared as a picture.
    """

    digests: dict[int, str] = field(default_factory=dict)
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    signatures: np.ndarray = field(default_factory=lambda: np.empty((0, 128), np.uint8))
    faults: dict[int, str] = field(default_factory=dict)
    remarks: list[Problem] = field(default_factory=list)


def take_fingerprints(paths: Sequence[str], threads: int, progress: Callable[[int, int], None] | None) -> Fingerprints:
    """Read every file once and keep what finds it again; pixels are let go at once.

    Args:
        paths: Files; "" for none.
        threads: Files read at a time.
        progress: Called with (done, all) after each picture.

    Raises:
        DataError: When no picture at all can be read.
    """
    taken, signed = Fingerprints(), []
    pictures = [row for row, path in enumerate(paths) if _is_picture(path)]
    volumes = [row for row, path in enumerate(paths) if path.lower().endswith(WHOLE_FILES)]
    done = len(paths) - len(pictures)
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(pictures), AT_ONCE):
            part = pictures[start : start + AT_ONCE]
            slopes, kept = [], []
            for row, (digest, found, fault) in zip(part, pool.map(_take, [paths[row] for row in part]), strict=True):
                if found is None:
                    taken.faults[row] = fault
                else:
                    taken.digests[row] = digest
                    if found.any():  # a picture without edges is like every other such: equal pixels alone count
                        slopes.append(found)
                        kept.append(row)
                done += 1
                if progress:
                    progress(done, len(paths))
            if slopes:
                signed.append((kept, sign_slopes(np.stack(slopes))))
    if pictures and len(taken.faults) == len(pictures):
        raise DataError(
            f"none of {len(pictures)} pictures can be read, for example: {taken.faults[pictures[0]]}",
            fix="Check the cohort's paths.",
        )
    if signed:
        taken.rows = np.concatenate([np.array(kept, np.int64) for kept, _ in signed])
        taken.signatures = np.concatenate([signatures for _, signatures in signed])
    taken.digests.update(_digest_volumes(volumes, paths, taken.faults))
    n_skipped = sum(bool(path) for path in paths) - len(pictures) - len(volumes)
    if volumes:
        taken.remarks.append(Problem("duplicates", f"{len(volumes)} volumes", "compared by their files alone"))
    if n_skipped:
        taken.remarks.append(Problem("duplicates", f"{n_skipped} folders or files of several parts", "not compared"))
    return taken


def _is_picture(path: str) -> bool:
    return path.lower().endswith(PICTURE_SUFFIXES) and not os.path.isdir(path)


def _take(path: str) -> tuple[str, np.ndarray | None, str]:
    try:
        data = read_picture(Path(path)).data
    except (NeuroageError, OSError) as error:
        return "", None, str(error)
    pixels = np.ascontiguousarray(data, dtype=np.float32)
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest(), measure_slopes(pixels), ""


def _digest_volumes(rows: Iterable[int], paths: Sequence[str], faults: dict[int, str]) -> dict[int, str]:
    """Digest the files that agree with another in size and in a piece of their middle; only these can be equal."""
    alike: dict[tuple[int, bytes], list[int]] = {}
    for row in rows:
        try:
            with open(paths[row], "rb") as handle:
                size = os.fstat(handle.fileno()).st_size
                handle.seek(size // 2)
                alike.setdefault((size, hashlib.sha256(handle.read(PIECE_BYTES)).digest()), []).append(row)
        except OSError as error:
            faults[row] = f"cannot be read: {error.strerror}"
    return {row: digest_file(paths[row]) for same in alike.values() if len(same) > 1 for row in same}
