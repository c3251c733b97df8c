"""What prepared scans are called in BIDS: labels, the entities kept from the source, and their order.

Source: Brain Imaging Data Structure 1.10, derivatives, https://bids-specification.readthedocs.io; the names of
transforms (`from`, `to`, `mode`) are those of fMRIPrep.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from neuroage.cohort import Scan
from neuroage.cohort.modalities import canonical_modality
from neuroage.errors import DataError
from neuroage.files import digest_text

SUFFIXES = {"t1": "T1w", "t1c": "T1w", "t2": "T2w", "pd": "PDw", "flair": "FLAIR", "tof": "angio", "swi": "T2starw"}
# In the order of BIDS; those of a source that no derivative of an anatomical image has are not kept.
KEPT = ("task", "acq", "ce", "rec", "run", "echo", "flip", "inv", "mt", "part", "space", "chunk")
ORDER = ("sub", "ses", *KEPT, "res", "label", "desc", "from", "to", "mode")
_FILE = re.compile(r"(?P<entities>(?:[a-zA-Z]+-[a-zA-Z0-9+]+_)+)(?P<suffix>[a-zA-Z0-9]+)\.nii(?:\.gz)?$")
_HASH_DIGITS = 6  # tells apart the few ids that would otherwise get one label


@dataclass(frozen=True)
class ScanName:
    """What the files of one scan are called.

    Attributes:
        subject, session: Labels, without `sub-` and `ses-`; no session is "".
        entities: Further entities of the source, such as (("acq", "mprage"), ("run", "1")).
        suffix: T1w, T2w, PDw, FLAIR, angio, …
    """

    subject: str
    session: str = ""
    entities: tuple[tuple[str, str], ...] = ()
    suffix: str = "T1w"

    def place(self, folder: Path, extension: str = ".nii.gz", *, suffix: str = "", **further: str) -> Path:
        """Give the path of one of the scan's files below the folder of derivatives.

        Args:
            folder: Of the data set.
            extension: Of the file.
            suffix: Of the file where it is not the scan's own.
            **further: Entities of the file, such as space="MNI152NLin2009aSym"; "" leaves one out. `source` stands for
                `from`.

        Example:
            >>> ScanName("01", suffix="T2w").place(Path(), space="T1w", desc="preproc").as_posix()
            'sub-01/anat/sub-01_space-T1w_desc-preproc_T2w.nii.gz'
        """
        parts = {"sub": self.subject, "ses": self.session, **dict(self.entities), **further}
        parts["from"] = parts.pop("source", "")
        words = [f"{key}-{parts[key]}" for key in ORDER if parts.get(key)]
        visit = [f"ses-{self.session}"] if self.session else []
        return folder.joinpath(
            f"sub-{self.subject}", *visit, "anat", "_".join([*words, suffix or self.suffix]) + extension
        )


def name_scans(scans: Sequence[Scan], modality: str = "") -> dict[str, ScanName]:
    """Name every scan of a cohort, each unlike all others.

    A file that is named as BIDS says keeps its labels and entities. Others get labels made of the subject's and the
    session's id, with what BIDS does not allow left out, and a number (`run`) where a session has several of a kind.
    Name a whole cohort at once, not parts of it: labels are told apart within what is given.

    Args:
        scans: With paths.
        modality: Of scans that name none.

    Returns:
        scan_id → name.

    Raises:
        DataError: A modality has no place among anatomical images, or files of one BIDS name are there twice.
    """
    subjects = make_labels(scan.subject_id for scan in scans)
    sessions = make_labels(scan.session for scan in scans)
    names = {
        scan.scan_id: _of_file(scan) or _of_row(scan, subjects[scan.subject_id], sessions[scan.session], modality)
        for scan in scans
    }
    return _told_apart(names)


def make_labels(ids: Iterable[str]) -> dict[str, str]:
    """Make a BIDS label of every id: letters and digits, unlike all others; "" stays "".

    Example:
        >>> make_labels(["sub-01", "S_7", "s7", ""])
        {'sub-01': '01', 'S_7': 'S7c13ef2', 's7': 's713d28f', '': ''}
    """
    plain = {name: re.sub(r"[^a-zA-Z0-9]+", "", re.sub(r"^(sub|ses)-", "", name)) for name in dict.fromkeys(ids)}
    count = Counter(label.lower() for label in plain.values())  # some file systems know no difference of case
    return {
        name: label if not name or (label and count[label.lower()] == 1) else label + digest_text(name)[:_HASH_DIGITS]
        for name, label in plain.items()
    }


def resolution_label(spacing_mm: Sequence[float]) -> str:
    """Say a voxel size as a label.

    Example:
        >>> resolution_label((2.0, 2.0, 2.0)), resolution_label((1.5, 1.5, 1.5)), resolution_label((1, 1, 2.5))
        ('2', '1p5', '1x1x2p5')
    """
    words = [f"{value:.4g}".replace(".", "p") for value in spacing_mm]
    return words[0] if len(set(words)) == 1 else "x".join(words)


def _of_file(scan: Scan) -> ScanName | None:
    match = _FILE.match(scan.path.name) if scan.path is not None else None
    if not match or (match["suffix"] not in SUFFIXES.values() and match["suffix"] not in ("UNIT1", "MRA")):
        return None
    given = dict(part.split("-", 1) for part in match["entities"].strip("_").split("_"))
    if given.get("sub") != scan.subject_id.removeprefix("sub-"):
        return None
    kept = [(key, given[key]) for key in KEPT if key in given]
    suffix = "angio" if match["suffix"] == "MRA" else match["suffix"]
    return ScanName(given["sub"], given.get("ses", ""), tuple(kept), suffix)


def _of_row(scan: Scan, subject: str, session: str, modality: str) -> ScanName:
    kind = canonical_modality(scan.modality or modality)
    if kind not in SUFFIXES:
        raise DataError(
            f"{scan.scan_id}: scans of modality {kind!r} have no place among the anatomical images of BIDS",
            expected=", ".join(SUFFIXES),
        )
    enhanced = (("ce", "gadolinium"),) if kind == "t1c" else ()
    return ScanName(subject, session, enhanced, SUFFIXES[kind])


def _told_apart(names: dict[str, ScanName]) -> dict[str, ScanName]:
    alike: dict[ScanName, list[str]] = defaultdict(list)
    for scan_id, name in names.items():
        alike[replace(name, entities=tuple(pair for pair in name.entities if pair[0] != "space"))].append(scan_id)
    result = dict(names)
    for name, scan_ids in alike.items():
        if len(scan_ids) > 1 and "run" in dict(name.entities):
            raise DataError(
                f"{', '.join(scan_ids)}: these scans have one name in BIDS, {name.place(Path()).name}",
                fix="Remove all but one from the cohort.",
            )
        for number, scan_id in enumerate(sorted(scan_ids), start=1) if len(scan_ids) > 1 else ():
            given = {**dict(names[scan_id].entities), "run": str(number)}
            ordered = tuple((key, given[key]) for key in ORDER if key in given)
            result[scan_id] = replace(names[scan_id], entities=ordered)
    return result
