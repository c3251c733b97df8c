"""The phantom on disk: a BIDS data set that says it is synthetic, with every file whole or absent."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip

from neuroage.files import atomic_path, write_json, write_text

BIDS_VERSION = "1.9.0"
_README = """# A synthetic cohort

These heads are drawn by a program; no person was scanned. Ages, sexes and sites are made up, and what age does to the
pictures is known exactly: see `phantom.json` for every age effect and for the error that the best possible model makes.
Use it for trying software, not for saying anything about people.
"""
_SIDECAR = {
    "t1": {"MRAcquisitionType": "3D", "ScanningSequence": "GR", "SequenceName": "drawn T1-weighted gradient echo"},
    "tof": {"MRAcquisitionType": "3D", "ScanningSequence": "GR", "SequenceName": "drawn time of flight"},
}


def scan_path(root: Path, subject_id: str, modality: str) -> Path:
    """Give the BIDS path of a subject's scan (`"t1"` or `"tof"`) below `root`."""
    ending = {"t1": "T1w", "tof": "acq-tof_angio"}[modality]
    return root / subject_id / "anat" / f"{subject_id}_{ending}.nii.gz"


def write_scan(root: Path, subject_id: str, modality: str, data: np.ndarray, affine: np.ndarray, site: str) -> Path:
    """Write one scan and its sidecar; the same scan gives the same bytes.

    Args:
        root: Folder of the data set.
        subject_id: For example `"sub-0001"`.
        modality: `"t1"` or `"tof"`.
        data: int16 (I, J, K) as stored.
        affine: Voxel to scanner millimetres, (4, 4).
        site: Where it was "scanned".

    Returns:
        Path of the image.
    """
    path = scan_path(root, subject_id, modality)
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(data.shape)
    header.set_sform(affine, code=1)
    header.set_qform(affine, code=1)
    header.set_xyzt_units("mm")
    header["descrip"] = b"synthetic"
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    content = header.binaryblock + b"\0\0\0\0" + data.astype("<i2", copy=False).tobytes(order="F")
    with atomic_path(path) as temporary:
        temporary.write_bytes(igzip.compress(content, 1, mtime=0))
    sidecar = {"Modality": "MR", "Manufacturer": "synthetic", "InstitutionName": site, **_SIDECAR[modality]}
    write_json(path.with_name(path.name.removesuffix(".nii.gz") + ".json"), sidecar)
    return path


def write_tables(root: Path, people: Sequence[dict[str, Any]], generator_version: str) -> None:
    """Write what stands beside the subjects: description, README, participants and their data dictionary.

    Args:
        root: Folder of the data set.
        people: One row per subject: participant_id, age (years), sex, site; anything else is left out.
        generator_version: Version of the phantom, stated in the description.
    """
    write_json(
        root / "dataset_description.json",
        {
            "Name": "Synthetic brain-age cohort",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "raw",
            "License": "CC0",
            "Authors": ["neuroage phantom"],
            "HowToAcknowledge": "Synthetic: no person was scanned.",
            "GeneratedBy": [
                {"Name": "neuroage phantom", "Version": generator_version, "Description": "synthetic heads"}
            ],
        },
    )
    write_json(
        root / "participants.json",
        {
            "age": {"Description": "age at the scan (made up)", "Units": "years"},
            "sex": {"Description": "sex (made up)", "Levels": {"F": "female", "M": "male"}},
            "site": {"Description": "where the scan was taken (made up)"},
        },
    )
    table = io.StringIO()
    columns = ["participant_id", "age", "sex", "site"]
    writer = csv.DictWriter(table, columns, extrasaction="ignore", delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows({**person, "age": f"{person['age']:.1f}"} for person in people)
    write_text(root / "participants.tsv", table.getvalue())
    write_text(root / "README", _README)
    write_text(root / ".bidsignore", "phantom.json\n")
