"""What lies beside a scan and takes part in its preparation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from neuroage.cohort import Scan
from neuroage.cohort.image_files import split_volume
from neuroage.cohort.paths import MASK_COLUMN, REFERENCE_COLUMN
from neuroage.errors import DataError, SetupError
from neuroage.runs.recipe import Preparation


@dataclass(frozen=True)
class Companions:
    """Files that a scan is prepared with.

    Attributes:
        reference: The reference scan of the same session (`registration.reference`); None where there is none.
        mask: The scan's mask file (`brain.mask: file`); None where there is none.
        template: A template of one's own (`registration.to`); None for MNI152.
        found: Folder where transforms that were found are kept, so that other preparations of the same scan need not
            search again; None keeps none.
    """

    reference: Path | None = None
    mask: Path | None = None
    template: Path | None = None
    found: Path | None = None


def companions_of(scan: Scan, recipe: Preparation) -> Companions:
    """Find the files that a scan is prepared with.

    Args:
        scan: With a path; its columns `reference_path` and `mask_path` are used where the recipe asks for them.
        recipe: The `prepare` section.

    Raises:
        DataError: The recipe needs a reference or a mask that this scan has not.
        SetupError: There is no such template.
    """
    if recipe.kind != "volume" or scan.path is None:
        return Companions()
    from neuroage.imaging.steps.brain import find_mask_file

    reference = mask = template = None
    if recipe.registration is not None:
        if recipe.registration.reference:
            reference = _existing(scan, REFERENCE_COLUMN, f"a {recipe.registration.reference} scan of the same session")
        if recipe.registration.to not in ("mni152", "reference"):
            template = Path(recipe.registration.to)
            if not template.exists():
                raise SetupError(
                    f"{template}: no such template",
                    expected="mni152, reference, or a file",
                    fix="Mend prepare.registration.to.",
                )
    if recipe.brain is not None and recipe.brain.mask == "file":
        mask = (
            find_mask_file(scan.path, recipe.brain.file)
            if recipe.brain.file
            else _existing(scan, MASK_COLUMN, "a mask file")
        )
    return Companions(reference, mask, template)


def _existing(scan: Scan, column: str, what: str) -> Path:
    given = scan.extra.get(column)
    if not isinstance(given, str) or not given:
        raise DataError(
            f"{scan.scan_id}: the recipe needs {what}, and the cohort has none", expected=f"column {column}"
        )
    if not Path(given).exists():
        raise DataError(f"{scan.scan_id}: {given} does not exist", expected=what)
    return Path(given)


def identity(path: Path) -> str:
    """Tell a file, or a folder of slices, from every other and from its own earlier states, without reading it."""

    def stamp(file: Path) -> str:
        status = file.stat()
        return f"{status.st_size}:{status.st_mtime_ns}"

    path = path.resolve()
    if path.is_dir():
        return f"{path}:" + ",".join(f"{file.name}:{stamp(file)}" for file in sorted(path.iterdir()) if file.is_file())
    file, _ = split_volume(path)
    twin = file.with_suffix(".img") if file.suffix == ".hdr" else file  # Analyze keeps its pixels in a second file
    return f"{path}:{stamp(file)}" + (f":{stamp(twin)}" if twin != file and twin.exists() else "")
