"""Which files are images, and which only look like it: git-annex and LFS pointers, empty or missing files."""

from __future__ import annotations

import os
from pathlib import Path

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".hdr", ".mgz", ".mgh", ".nrrd", ".nhdr", ".mha", ".mhd", ".png", ".jpg", ".dcm")
# A pointer is a few lines of text; the smallest real header (NIfTI-1) has 348 bytes, but text may be a little longer.
_MAX_POINTER_BYTES = 1024


def is_image_name(name: str) -> bool:
    """Say whether a file name ends like an image; an Analyze pair counts once, by its header."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


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
        path: An image file or a DICOM folder.

    Returns:
        Words that follow the file name: "does not exist", "is a git-annex pointer …", "is a Git LFS pointer …",
        "is empty", "has no .img beside it"; or "".
    """
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
