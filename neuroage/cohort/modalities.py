"""One spelling for each kind of image, and the spellings found in the wild."""

from __future__ import annotations

import re

ALIASES: dict[str, tuple[str, ...]] = {
    "t1": ("t1w", "t1", "mprage", "mpr", "mpr1", "spgr", "bravo", "mp2rage", "t1wi"),
    "t1c": ("t1c", "t1ce", "t1gd", "t1c+", "t1post"),
    "t2": ("t2w", "t2", "t2wi"),
    "pd": ("pdw", "pd"),
    "flair": ("flair", "t2flair"),
    "tof": ("tof", "mra", "angio", "tofmra", "angiography"),
    "swi": ("swi", "t2star", "t2starw"),
    "dwi": ("dwi", "dti"),
    "bold": ("bold", "fmri"),
    "ct": ("ct",),
    "xray": ("xray", "cxr", "dx", "cr"),
}
_CANONICAL = {alias: name for name, aliases in ALIASES.items() for alias in aliases}


def canonical_modality(word: object) -> str:
    """Give the one spelling of a modality; an unknown word is kept in lower case, so nothing is lost.

    Example:
        >>> canonical_modality("T1w"), canonical_modality("MRA"), canonical_modality("QSM")
        ('t1', 'tof', 'qsm')
    """
    text = "" if word is None else str(word).strip().lower()
    if text in {"nan", "n/a", "none"}:
        return ""
    return _CANONICAL.get(re.sub(r"[\s_\-]+", "", text), text)


def modality_of_filename(name: str) -> str:
    """Give the modality that a file name ends with, "" when none of its parts is one.

    Example:
        >>> modality_of_filename("IXI999-Guys-1234-MRA.nii.gz"), modality_of_filename("sub-01_acq-tof_angio.nii")
        ('tof', 'tof')
    """
    stem = name.replace("\\", "/").rsplit("/", 1)[-1].split(".", 1)[0].lower()
    for part in reversed(re.split(r"[_\-\s]+", stem)):
        if part in _CANONICAL:
            return _CANONICAL[part]
    return ""
