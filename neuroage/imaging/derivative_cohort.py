"""A whole cohort as BIDS derivatives: every scan a job of its own, the tables when they are done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from neuroage.cohort import Scan
from neuroage.errors import DataError, NeuroageError, SetupError, UsageError
from neuroage.imaging.derivative_names import ScanName, name_scans
from neuroage.imaging.derivative_tables import write_description, write_participants
from neuroage.imaging.derivatives import ToWrite, Written, find_written, is_left_out, write_one
from neuroage.imaging.preparation import estimate_memory_gb
from neuroage.imaging.steps.companions import Companions, companions_of
from neuroage.imaging.workers import Workers, run_jobs
from neuroage.runs.recipe import Preparation, Prepare


@dataclass
class WrittenCohort:
    """What was written of a cohort.

    Attributes:
        written: scan_id → its files, also of scans that were there already.
        failures: scan_id → why it could not be prepared, or should not be used.
    """

    written: dict[str, Written] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def n_made(self) -> int:
        """How many were prepared now; the others stood there already."""
        return sum(one.made for one in self.written.values())

    def take(self, scan: Scan, recipe: Prepare, outcome: Written | NeuroageError) -> None:
        """Note what became of a scan; one whose registration has failed is both written and a failure."""
        if isinstance(outcome, SetupError):
            raise outcome
        if isinstance(outcome, Written):
            self.written[scan.scan_id] = outcome
            if is_left_out(outcome.problem, recipe):
                self.failures[scan.scan_id] = f"{scan.path}: {outcome.problem}"
        else:
            named = scan.path is None or scan.path.name in outcome.what
            self.failures[scan.scan_id] = str(outcome) if named else f"{scan.path}: {outcome}"


def write_cohort(
    scans: Sequence[Scan],
    recipe: Preparation,
    folder: Path,
    *,
    names: dict[str, ScanName] | None = None,
    store_folder: Path | None = None,
    bids_folder: Path | None = None,
    workers: Workers | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> WrittenCohort:
    """Prepare scans and write them as a data set of BIDS derivatives; what stands there already is left as it is.

    A scan that cannot be prepared is left out with its reason. One whose registration is found to have failed is
    written, so that one can look at it, and listed among the failures all the same.

    Args:
        scans: With paths.
        recipe: The `prepare` section.
        folder: Of the derivatives.
        names: What to call the scans; needed where they are a part of a cohort only. As `name_scans` does when None.
        store_folder: Folder of prepared volumes, which then keeps them too.
        bids_folder: Of the data set that the scans belong to; found by itself where all lie in one when None.
        workers: Who prepares them.
        progress: Called with (done, all) after each scan that is prepared now.

    Raises:
        UsageError: The folder holds something else, or the recipe prepares pictures.
        SetupError: A package, program or template is missing that every scan needs.
        DataError: A scan has no place in BIDS.

    Example:
        >>> write_cohort(cohort.scans(), recipe.prepare, Path("derivatives"))  # doctest: +SKIP
    """
    if not isinstance(recipe, Prepare):
        raise UsageError("Derivatives are written of volumes, and the recipe prepares pictures")
    names = names or name_scans(scans)
    bids_folder = bids_folder or find_bids_folder(scans)
    write_description(folder, bids_folder)
    store_folder, folder, root = _absolute(store_folder), folder.absolute(), _absolute(bids_folder)
    result, jobs = WrittenCohort(), list[ToWrite]()
    for scan in scans:
        name = names[scan.scan_id]
        try:
            companions = _companions(scan, recipe)
            if found := find_written(scan, recipe, folder, companions, name):
                result.take(scan, recipe, found)
            else:
                jobs.append(ToWrite(scan, recipe, store_folder, folder, companions, name, root))
        except NeuroageError as error:
            result.take(scan, recipe, error)
    need_gb = estimate_memory_gb([str(job.scan.path) for job in jobs], recipe)
    outcomes = run_jobs(write_one, jobs, workers or Workers(), need_gb=need_gb)
    for n_done, (place, outcome) in enumerate(outcomes, start=len(scans) - len(jobs) + 1):
        result.take(jobs[place].scan, recipe, outcome)
        if progress:
            progress(n_done, len(scans))
    write_participants(folder, scans, names, bids_folder)
    return result


def _companions(scan: Scan, recipe: Prepare) -> Companions:
    if scan.path is None or not scan.path.exists():
        raise DataError(f"{scan.scan_id}: {scan.path or 'the cohort names no file for it'}", expected="a file")
    return companions_of(scan, recipe)


def find_bids_folder(scans: Sequence[Scan]) -> Path | None:
    """Find the BIDS data set that all scans lie in; None where they lie in none or in several."""
    roots = set()
    for scan in scans:
        above = scan.path.absolute().parents if scan.path is not None else ()
        subject = next((folder for folder in above if folder.name.startswith("sub-")), None)
        inside = subject is not None and (subject.parent / "dataset_description.json").is_file()
        roots.add(subject.parent if subject is not None and inside else None)
    return roots.pop() if len(roots) == 1 else None


def _absolute(folder: Path | None) -> Path | None:
    return None if folder is None else folder.absolute()
