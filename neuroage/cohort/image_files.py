"""Which files are images, and which only look like it: git-annex and LFS pointers, empty or missing files."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from neuroage.cohort.modalities import modality_of_filename

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
_VOLUME_SUFFIXES = (".nii.gz", ".nii", ".hdr", ".mgz", ".mgh", ".nrrd", ".nhdr", ".mha", ".mhd")
IMAGE_SUFFIXES = (*_VOLUME_SUFFIXES, *PICTURE_SUFFIXES, ".dcm")
# A pointer is a few lines of text; the smallest real header (NIfTI-1) has 348 bytes, but text may be a little longer.
_MAX_POINTER_BYTES = 1024
_HASH_DIGITS = 6  # tells apart the few files that would otherwise get one name


def is_image_name(name: str) -> bool:
    """Say whether a file name ends like an image; an Analyze pair counts once, by its header."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def modality_of_image(path: str) -> str:
    """Give the modality that the name of an image ends with; "" for pictures, whose names follow no convention."""
    return "" if path.lower().endswith(PICTURE_SUFFIXES) else modality_of_filename(os.path.basename(path))


def name_files(paths: Sequence[str]) -> list[str]:
    """Make a readable name of each relative path: without its suffix, safe as a file name, unlike all others.

    The names depend on the paths alone, not on their order. Paths that would get one name get a short hash each.

    Args:
        paths: Relative paths with forward slashes, all different.

    Example:
        >>> name_files(["Class A/1.png", "Class A/2.png", "Class A/2.jpg"])
        ['Class-A_1', 'Class-A_2_5d7282', 'Class-A_2_2eb66a']
    """
    plain = [
        "_".join(re.sub(r"[^\w.+-]+", "-", part) for part in os.path.splitext(path)[0].split("/")) for path in paths
    ]
    count = Counter(name.lower() for name in plain)  # some file systems know no difference of case
    return [
        name if count[name.lower()] == 1 else f"{name}_{hashlib.sha256(path.encode()).hexdigest()[:_HASH_DIGITS]}"
        for name, path in zip(plain, paths, strict=True)
    ]


def find_images(folder: Path) -> list[Path]:
    """Give every image below a folder, sorted; hidden folders are skipped, links to files are followed."""
    found = []
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(os.path.abspath(root)) / name for name in files if is_image_name(name)]
    return sorted(found)


def image_fault(path: Path) -> str:
    """Say what keeps a file from being an image without opening more than its first lines; "" when nothing does.

    Args:
        path: An image file, `FILE#2` for the second volume in one, or a DICOM folder.

    Returns:
        Words that follow the file name: "does not exist", "is a git-annex pointer …", "is a Git LFS pointer …",
        "is empty", "has no .img beside it"; or "".
    """
    path, _ = split_volume(path)
    try:
        size = os.stat(path).st_size
    except OSError:
        if os.path.islink(path):
            annexed = ".git/annex" in os.readlink(path).replace(os.sep, "/")
            return "is a git-annex pointer without content (datalad get it)" if annexed else "is a broken link"
        return "does not exist"
    if os.path.isdir(path):
        return ""
    if size == 0:
        return "is empty"
    if size <= _MAX_POINTER_BYTES:
        start = path.read_bytes()[:200]
        if start.startswith(b"version https://git-lfs"):
            return "is a Git LFS pointer without content (git lfs pull it)"
        if b"/annex/objects/" in start:
            return "is a git-annex pointer without content (datalad get it)"
    if path.suffix.lower() == ".hdr" and not any(path.with_suffix(s).exists() for s in (".img", ".img.gz", ".IMG")):
        return "has no .img beside it"
    return ""


def split_volume(path: Path) -> tuple[Path, int]:
    """Part `FILE#2`, the second volume in a file that holds several, into the file and the number; 0 for no number.

    Example:
        >>> split_volume(Path("IM0001#2"))
        (PosixPath('IM0001'), 2)
    """
    match = re.fullmatch(r"(.+)#([1-9]\d*)", path.name)
    if match is None or os.path.lexists(path):
        return path, 0
    return path.with_name(match[1]), int(match[2])
