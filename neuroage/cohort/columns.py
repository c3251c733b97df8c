"""Which column of a found table means what."""

from __future__ import annotations

import re
from collections.abc import Iterable

# In order of preference: our own name first, then the commonest public spellings
# (BIDS, ABIDE, IXI, OASIS, BANC, PNC, ADNI, NDA).
SPELLINGS: dict[str, tuple[str, ...]] = {
    "scan_id": ("scan_id", "image_id", "mri_id"),
    "subject_id": (
        "subject_id", "participant_id", "sub_id", "subject", "subjectid", "subid", "subj", "subj_id", "participant",
        "ixi_id", "patient_id", "patientid", "patient", "src_subject_id", "ptid", "id", "subjects", "sub",
    ),
    "session": ("session", "session_id", "sessions", "visit", "visit_id", "wave", "timepoint", "follow_up"),
    "modality": ("modality", "sequence", "contrast", "scan_type"),
    "path": (
        "path", "file", "filename", "file_path", "filepath", "file_location", "image", "image_path", "scan_path",
        "image_index", "image_name", "file_name", "image_file",
    ),
    "age": (
        "age", "age_years", "age_at_scan", "ageatscan", "scan_age", "age_at_mri", "age_at_visit", "age_at_session",
        "patient_age", "age_yrs", "age_y", "age_in_years", "age_scan",
    ),
    "sex": ("sex", "gender", "sex_id", "m_f", "patient_gender", "patient_sex", "sex_code"),
    "site": ("site", "site_id", "study_site", "scanner_site", "center", "centre", "hospital"),
}  # fmt: skip


def normal_header(header: object) -> str:
    """Give a header in lower case, without its remark in brackets, words joined by one underscore.

    Example:
        >>> normal_header("SEX_ID (1=m, 2=f)"), normal_header("M/F"), normal_header("File.location")
        ('sex_id', 'm_f', 'file_location')
    """
    text = re.sub(r"[(\[].*", "", str(header)).strip().lower()
    return re.sub(r"[^0-9a-z]+", "_", text).strip("_")


def recognise_columns(headers: Iterable[str]) -> dict[str, str]:
    """Say which header stands for which field of a cohort; fields that no header names are absent.

    Example:
        >>> recognise_columns(["SUB_ID", "AGE_AT_SCAN", "FIQ"])
        {'subject_id': 'SUB_ID', 'age': 'AGE_AT_SCAN'}
    """
    by_name: dict[str, str] = {}
    for header in headers:
        by_name.setdefault(normal_header(header), header)
    found: dict[str, str] = {}
    for field, spellings in SPELLINGS.items():
        for spelling in spellings:
            if spelling in by_name:
                found[field] = by_name[spelling]
                break
    return found
