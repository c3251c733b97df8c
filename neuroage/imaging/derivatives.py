"""Prepared scans as BIDS derivatives: image, brain mask, transforms, and a JSON file that says how they came about.

    OUT/sub-01/ses-1/anat/sub-01_ses-1_space-MNI152NLin2009aSym_res-1_desc-preproc_T1w.nii.gz   and .json
                          sub-01_ses-1_space-MNI152NLin2009aSym_res-1_desc-brain_mask.nii.gz    and .json
                          sub-01_ses-1_from-T1w_to-MNI152NLin2009aSym_mode-image_xfm.txt

Every file is whole or absent, and the JSON file of the image comes last: where it stands, the scan is done.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import neuroage
from neuroage.cohort import Scan
from neuroage.errors import DataError
from neuroage.files import atomic_path, digest_text, write_json
from neuroage.imaging.derivative_names import ScanName, name_scans
from neuroage.imaging.derivative_space import ALIGNED, grid_entities, space_of, target_of
from neuroage.imaging.locks import hold
from neuroage.imaging.prepare import Prepared
from neuroage.imaging.registration.transform import write_transform
from neuroage.imaging.steps.companions import Companions, companions_of, identity
from neuroage.imaging.store import Store, prepare_image, steps_version
from neuroage.runs.recipe import Prepare

OWN = "Preparation"  # the key of the JSON file under which all stands that BIDS has no word for
INT16_MOST = 32767


@dataclass(frozen=True)
class Written:
    """What was written of one scan.

    Attributes:
        scan_id: Of the cohort.
        sidecar: The JSON file of its image.
        made: Whether it was prepared now; False where it stood there already.
        problem: Why it should not be used, such as a failed registration; "" where nothing is known.
    """

    scan_id: str
    sidecar: Path
    made: bool
    problem: str = ""


def prepare_and_write(
    scan: Scan,
    recipe: Prepare,
    store_folder: Path | None,
    out_folder: Path,
    companions: Companions | None = None,
    name: ScanName | None = None,
    bids_folder: Path | None = None,
) -> Written:
    """Prepare one scan and write its derivatives, unless they stand there already, made of the same files in this way.

    Args:
        scan: With a path.
        recipe: The `prepare` section.
        store_folder: Folder of prepared volumes, which then keeps the volume too; None keeps the derivatives only.
        out_folder: Of the data set of derivatives.
        companions: Files that it is prepared with; those that its columns name when None.
        name: From `name_scans` for the whole cohort; that of this scan alone when None.
        bids_folder: Of the data set that the scan belongs to; None where it belongs to none.

    Raises:
        DataError: The scan cannot be prepared.
    """
    if scan.path is None:
        raise DataError(f"{scan.scan_id}: the cohort names no file for it")
    name = name or name_scans([scan])[scan.scan_id]
    companions = companions or companions_of(scan, recipe)
    sidecar = place_sidecar(name, recipe, out_folder)
    with hold(sidecar.with_name(f".{sidecar.name}.lock")):
        if found := find_written(scan, recipe, out_folder, companions, name):
            return found
        if (old := read_sidecar(sidecar)) and old["source"] != _source(scan.path, companions):
            sidecar.unlink()  # of a scan that was replaced, also where the new one cannot be prepared
        start = time.perf_counter()
        prepared = _prepared(scan.path, recipe, companions, store_folder)
        write_derivatives(
            prepared,
            scan,
            out_folder,
            recipe,
            name=name,
            companions=companions,
            bids_folder=bids_folder,
            seconds=time.perf_counter() - start,
        )
    return Written(scan.scan_id, sidecar, True, prepared.problem)


def find_written(
    scan: Scan, recipe: Prepare, out_folder: Path, companions: Companions, name: ScanName
) -> Written | None:
    """Find what stands there of a scan, made of the same files in this way; None where it has to be made."""
    sidecar = place_sidecar(name, recipe, out_folder)
    found = read_sidecar(sidecar)
    if scan.path is None or not found or found["digest"] != _digest(recipe):
        return None
    same = found["source"] == _source(scan.path, companions)
    return Written(scan.scan_id, sidecar, False, found["problem"]) if same else None


def _prepared(path: Path, recipe: Prepare, companions: Companions, store_folder: Path | None) -> Prepared:
    if store_folder is None:
        return prepare_image(path, recipe, companions)
    store = Store(store_folder)
    prepared = prepare_image(path, recipe, replace(companions, found=companions.found or store.folder / "found"))
    if store.get(path, recipe, companions) is None:
        store.put(path, recipe, prepared, companions)
    return prepared


class ToWrite(NamedTuple):
    """The arguments of `prepare_and_write`, so that workers elsewhere can be handed a scan as one small thing."""

    scan: Scan
    recipe: Prepare
    store_folder: Path | None
    out_folder: Path
    companions: Companions | None = None
    name: ScanName | None = None
    bids_folder: Path | None = None


def write_one(job: ToWrite) -> Written:
    """Do what `prepare_and_write` does."""
    return prepare_and_write(*job)


def write_derivatives(
    prepared: Prepared,
    scan: Scan,
    folder: Path,
    recipe: Prepare,
    *,
    name: ScanName | None = None,
    companions: Companions | None = None,
    bids_folder: Path | None = None,
    seconds: float | None = None,
) -> list[Path]:
    """Write what was made of a scan: transforms, mask, image, and last the JSON file that says it is all there.

    Args:
        prepared: What `prepare` gave.
        scan: What it was made of, with a path.
        folder: Of the data set of derivatives.
        recipe: The `prepare` section that made it.
        name: What the files are called; as `name_scans` names the scan alone when None.
        companions: Files that it was prepared with.
        bids_folder: Of the data set that the scan belongs to; sources are then named within it, else by name alone.
        seconds: What the preparation took.

    Returns:
        Every file, the JSON file of the image last.
    """
    if scan.path is None:
        raise DataError(f"{scan.scan_id}: the cohort names no file for it")
    name = name or name_scans([scan])[scan.scan_id]
    companions = companions or Companions()
    sidecar, code = place_sidecar(name, recipe, folder), space_of(recipe).code
    sidecar.unlink(missing_ok=True)  # what it says of the files is no longer true from here on
    written = []
    for key, matrix in prepared.transforms.items():
        ends = {"space": "", "source": name.suffix, "to": target_of(key, recipe), "mode": "image"}
        written.append(name.place(folder, ".txt", suffix="xfm", **ends))
        write_transform(written[-1], matrix)
    common = _common(scan.path, companions, recipe, bids_folder)
    if prepared.mask is not None:
        path = name.place(folder, suffix="mask", **grid_entities(recipe), desc=_brain_label(name))
        _write_image(path, prepared.mask.astype(np.uint8), prepared.affine, code)
        about = path.with_name(path.name.removesuffix(".nii.gz") + ".json")
        write_json(about, {"Description": "Brain, on the grid of the prepared scan", "Type": "Brain", **common})
        written += [path, about]
    else:
        _remove_mask(name, recipe, folder)
    image = sidecar.with_name(sidecar.name.removesuffix(".json") + ".nii.gz")
    data = prepared.data[0] if len(prepared.data) == 1 else prepared.data.transpose(1, 2, 3, 0)
    _write_image(image, data, prepared.affine, code)
    own = {
        "digest": _digest(recipe),
        "source": _source(scan.path, companions),
        "scan_id": scan.scan_id,
        "seconds": None if seconds is None else round(seconds, 2),
        **_found(prepared, recipe),
        "recipe": recipe.model_dump(mode="json", exclude_none=True),
        "versions": _versions(),
    }
    what = {"Description": f"Prepared {name.suffix} scan", **common, "SkullStripped": recipe.brain is not None}
    write_json(sidecar, {**what, OWN: own})
    return [*written, image, sidecar]


def _remove_mask(name: ScanName, recipe: Prepare, folder: Path) -> None:
    """Remove the mask that another recipe left, which is not that of the image any more."""
    mask = name.place(folder, suffix="mask", **grid_entities(recipe), desc=_brain_label(name))
    for path in (mask, mask.with_name(mask.name.removesuffix(".nii.gz") + ".json")):
        path.unlink(missing_ok=True)


def place_sidecar(name: ScanName, recipe: Prepare, folder: Path) -> Path:
    """Give the JSON file that, where it stands, says that a scan is done."""
    return name.place(folder, ".json", **grid_entities(recipe), desc="preproc")


def read_sidecar(path: Path) -> dict[str, Any] | None:
    """Read what stands there of a done scan's preparation; None where the scan is not done.

    Returns:
        `digest`, `source`, `problem`, `left_out`, `seconds`, `steps`, `record`, `recipe`, `versions`.
    """
    try:
        own = json.loads(path.read_text(encoding="utf-8"))[OWN]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    image = path.with_name(path.name.removesuffix(".json") + ".nii.gz")
    return own if isinstance(own, dict) and image.exists() else None


def is_left_out(problem: str, recipe: Prepare) -> bool:
    """Say whether a scan with this problem should not be used, as the recipe wants it."""
    return bool(problem) and not (recipe.registration is not None and recipe.registration.on_failure == "keep")


def _brain_label(name: ScanName) -> str:
    # BIDS tells masks of one session apart by their label only, and a T1 scan's is the one that others look for.
    return "brain" if name.suffix == "T1w" else f"brain{name.suffix}"


def _write_image(path: Path, data: np.ndarray, affine: np.ndarray, code: int) -> None:
    """Write an image: whole numbers as they are, others in 65,535 steps about 0, which stays 0."""
    import nibabel as nib

    slope, most = 1.0, float(np.abs(data).max())
    if data.dtype != np.uint8:
        if most > INT16_MOST or not np.array_equal(data, np.round(data)):
            slope = most / INT16_MOST
        data = np.round(data / np.float32(slope)).astype(np.int16)
    image = nib.Nifti1Image(data, affine)
    image.header.set_slope_inter(slope, 0.0)
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


def _common(path: Path, companions: Companions, recipe: Prepare, bids_folder: Path | None) -> dict[str, Any]:
    """Say what the JSON files of image and mask have in common."""
    beside = [file for file in (companions.reference, companions.mask) if file is not None]
    space, reference = space_of(recipe), space_of(recipe).reference
    if space.code == ALIGNED and companions.reference is not None:
        reference = _uri(companions.reference, bids_folder)
    return {
        # The folder of a DICOM series may be called after the person.
        "Sources": [_uri(file, bids_folder) for file in (path, *beside) if not file.is_dir()],
        "SpatialReference": reference,
        "Resolution": " × ".join(f"{value:g}" for value in recipe.spacing) + " mm",
    }


def _uri(path: Path, bids_folder: Path | None) -> str:
    """Name a source within its data set, or by its name alone: folders of a disk are nobody else's business."""
    if bids_folder is not None:
        relative = os.path.relpath(os.path.abspath(path), os.path.abspath(bids_folder)).replace(os.sep, "/")
        if not relative.startswith("../"):
            return f"bids:raw:{relative}"
    return path.name


def _digest(recipe: Prepare) -> str:
    return f"v{steps_version(recipe)}-{recipe.digest}"


def _source(path: Path, companions: Companions) -> str:
    """Tell the state of the files a scan is made of, wherever their folder lies."""
    beside = (companions.reference, companions.mask, companions.template)
    files = [path, *(file for file in beside if file is not None)]
    return digest_text("|".join(f"{file.name}{identity(file).removeprefix(str(file.resolve()))}" for file in files))


def _found(prepared: Prepared, recipe: Prepare) -> dict[str, Any]:
    """Give what the steps found: their own list, and the rest of the record."""
    return {
        "problem": prepared.problem,
        "left_out": is_left_out(prepared.problem, recipe),
        "steps": prepared.record.get("steps", []),
        "record": {key: value for key, value in prepared.record.items() if key not in ("steps", "problem")},
    }


def _versions() -> dict[str, str]:
    found = {"neuroage": neuroage.__version__}
    for package in ("SimpleITK", "nibabel", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
