"""Prepare a cohort: what is stored is found, the rest is shared out among workers, failures are listed.

Every scan is a job of its own that leaves whole files or none, so a preparation may be stopped at any time, by whatever
means, and the same command goes on where it was.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from heapq import nlargest
from pathlib import Path
from typing import Any, NamedTuple

from neuroage.cohort import Scan
from neuroage.errors import DataError, NeuroageError, SetupError
from neuroage.imaging.machine import BYTES_A_GB, usable_cores
from neuroage.imaging.steps.companions import Companions, companions_of
from neuroage.imaging.store import PreparedElsewhere, Store, StoredVolume
from neuroage.imaging.workers import Workers, run_jobs
from neuroage.runs.recipe import Preparation

BASE_GB, NATIVE_COPIES = 0.4, 10  # see `estimate_memory_gb`; measured by benchmarks/preparing.py
LOOKED_AT = 20  # of the largest files, since packed ones do not say which holds most
SCANS_A_LOOK = 200  # looked up in the store by one thread in a row; each takes a fifth of a millisecond


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


class _Missing(NamedTuple):
    """A scan that is not in the store: all that a worker needs to know of it."""

    scan_id: str
    path: str
    companions: Companions


def prepare_scans(
    scans: Sequence[Scan],
    recipe: Preparation,
    store: Store,
    *,
    max_failed_share: float = 0.1,
    workers: Workers | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PreparedCohort:
    """Prepare every scan that is not stored yet, several at a time.

    A scan that cannot be prepared is left out with its reason, and so is one whose registration has failed, unless the
    recipe keeps those. A scan that another process is preparing is waited for at the end.

    Args:
        scans: Scans with paths.
        recipe: The `prepare` section.
        store: Where prepared volumes are kept.
        max_failed_share: Above this share of failed scans the whole preparation fails, with every reason, as it does
            when all fail; above 1 it never does.
        workers: Who prepares them; as many threads as there are usable cores when None. Those suffice where scans are
            only resampled: reading, resampling and statistics run outside of Python's lock.
        progress: Called with (done, all) after each scan.

    Raises:
        DataError: More than the stated share of scans failed, or all did.
        UsageError: The workers cannot be started or reached.
        SetupError: A package, program or template is missing that every scan needs.
    """
    result, missing, n_done = PreparedCohort(), [], 0

    def settle(scan_id: str, outcome: StoredVolume | NeuroageError) -> None:
        nonlocal n_done
        if isinstance(outcome, SetupError):
            raise outcome
        if isinstance(outcome, NeuroageError):
            result.failures[scan_id] = str(outcome)
        elif outcome.problem and _refuses(recipe):
            result.failures[scan_id] = f"{path_of[scan_id]}: {outcome.problem}"
        else:
            result.volumes[scan_id] = outcome
        n_done += 1
        if progress:
            progress(n_done, len(scans))

    path_of = {scan.scan_id: scan.path for scan in scans}
    for scan, found in zip(scans, _look_up(scans, recipe, store), strict=True):
        if isinstance(found, _Missing):
            missing.append(found)
        else:
            settle(scan.scan_id, found)
    workers, need_gb = workers or Workers(), estimate_memory_gb([scan.path for scan in missing], recipe)
    for wait in (False, True):
        elsewhere = []
        job = partial(_prepare_scan, recipe=recipe, folder=store.folder.absolute(), wait=wait)
        for place, outcome in run_jobs(job, missing, workers, need_gb=need_gb):
            if outcome is None:
                elsewhere.append(missing[place])
            elif isinstance(outcome, NeuroageError):
                settle(missing[place].scan_id, _naming(missing[place].path, outcome))
            else:
                result.n_made += outcome[1]
                settle(missing[place].scan_id, outcome[0])
        if missing:
            store.sweep()
        missing = elsewhere
    result.volumes = {scan.scan_id: result.volumes[scan.scan_id] for scan in scans if scan.scan_id in result.volumes}
    refuse_too_many_failures(result.failures, len(scans), max_failed_share)
    return result


def _look_up(
    scans: Sequence[Scan], recipe: Preparation, store: Store
) -> Iterable[StoredVolume | NeuroageError | _Missing]:
    """Look every scan up in the store, with threads, as a network's file system answers slowly but many at once."""

    def look(part: Sequence[Scan]) -> list[StoredVolume | NeuroageError | _Missing]:
        return [_find(scan, recipe, store) for scan in part]

    with ThreadPoolExecutor(usable_cores()) as pool:
        parts = [scans[start : start + SCANS_A_LOOK] for start in range(0, len(scans), SCANS_A_LOOK)]
        for found in pool.map(look, parts):
            yield from found


def _find(scan: Scan, recipe: Preparation, store: Store) -> StoredVolume | NeuroageError | _Missing:
    if scan.path is None:
        return DataError(f"{scan.scan_id}: the cohort names no file for it")
    try:
        companions = companions_of(scan, recipe)
        found = store.get(scan.path, recipe, companions)
    except NeuroageError as error:
        return error
    except FileNotFoundError as error:
        return DataError(f"{scan.scan_id}: no such file: {error.filename}", fix="Index the cohort again.")
    beside = {
        name: file.absolute() for name in ("reference", "mask", "template") if (file := getattr(companions, name))
    }
    return found or _Missing(scan.scan_id, os.path.abspath(scan.path), replace(companions, **beside))


def estimate_memory_gb(paths: Sequence[str], recipe: Preparation) -> float:
    """Estimate what preparing the largest of these scans takes: the libraries, and its float32 voxels a few times.

    0 for pictures, which take little.
    """
    if recipe.kind != "volume" or not paths:
        return 0.0
    largest = nlargest(LOOKED_AT, paths, key=_n_bytes)
    return BASE_GB + NATIVE_COPIES * 4 * max(map(_n_voxels, largest)) / BYTES_A_GB


def _n_bytes(path: str) -> int:
    if os.path.isdir(path):
        return sum(file.stat().st_size for file in os.scandir(path) if file.is_file())
    return os.path.getsize(path) if os.path.exists(path) else 0


def _n_voxels(path: str) -> int:
    import nibabel as nib

    try:
        image: Any = nib.load(path)
        return math.prod(image.shape)
    except Exception:  # another format, or a broken file, which is for the job to say
        return _n_bytes(path)  # of two bytes a voxel, and packed to half of that at most times


def _prepare_scan(scan: _Missing, recipe: Preparation, folder: Path, wait: bool) -> tuple[StoredVolume, bool] | None:
    """Prepare one scan, wherever a worker is; None when another process is at it and it is not to be waited for."""
    try:
        return Store(folder).prepare(scan.path, recipe, scan.companions, wait=wait)
    except PreparedElsewhere:
        return None


def _naming(path: str, error: NeuroageError) -> NeuroageError:
    """Let an error name the file that it is about."""
    named = Path(path).name in error.what or isinstance(error, SetupError)
    return error if named else DataError(f"{path}: {error.what}", expected=error.expected, fix=error.fix)


def _refuses(recipe: Preparation) -> bool:
    registration = getattr(recipe, "registration", None)
    return registration is not None and registration.on_failure == "refuse"


def refuse_too_many_failures(failures: dict[str, str], n_scans: int, max_failed_share: float) -> None:
    """Raise `DataError` with the reasons where more than this share of scans has failed, or all have."""
    if max_failed_share > 1:
        return
    if failures and (len(failures) > max_failed_share * n_scans or len(failures) == n_scans):
        raise DataError(
            f"{len(failures)} of {n_scans} scans could not be prepared ({len(failures) / n_scans:.0%}, and at most "
            f"{max_failed_share:.0%} may fail):\n" + listed(failures.values()),
            fix="Mend or remove these scans, or raise --max-failed-share.",
        )


def listed(reasons: Iterable[str], most: int = 20) -> str:
    """Set reasons as an indented list, cut after `most` with the number left out."""
    lines = list(reasons)
    shown = "\n".join(f"  - {line}" for line in lines[:most])
    return shown + (f"\n  … and {len(lines) - most} more" if len(lines) > most else "")
