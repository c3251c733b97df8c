"""Files that are whole or absent: atomic writing, and digests of content."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def is_main_process() -> bool:
    """Whether this process, of those started together, is the one that writes shared files and talks to the user."""
    return os.environ.get("RANK", "0") == "0"  # set by torchrun


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success flush it to disk and move it into place, on failure remove it.

    A reader sees the old file or the new one, never a part; two writers at once leave one whole file. The suffix is
    kept, so writers that look at it (NIfTI, PNG) work.

    Args:
        path: Where the file shall stand. Its folder is made when missing.

    Yields:
        The temporary path to write to, in the same folder.

    Example:
        >>> with atomic_path(folder / "table.csv") as temporary:  # doctest: +SKIP
        ...     table.to_csv(temporary)
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    suffix = "".join(target.suffixes[-2:]) if target.suffix == ".gz" else target.suffix
    temporary = target.parent / f".{target.name[:80]}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp{suffix}"
    try:
        yield temporary
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` (UTF-8) to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write `content` as readable JSON to `path` atomically; NaN becomes null, which every JSON reader accepts."""
    write_text(path, json.dumps(finite(content), indent=2, ensure_ascii=False) + "\n")


def finite(content: Any) -> Any:
    """Make content JSON-ready: arrays become lists, paths text, NaN and infinity null."""
    if isinstance(content, dict):
        return {str(key): finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    if hasattr(content, "tolist"):  # NumPy arrays and scalars
        return finite(content.tolist())
    if isinstance(content, float) and (content != content or content in (float("inf"), float("-inf"))):
        return None
    if isinstance(content, os.PathLike):
        return os.fspath(content)
    return content


def digest_text(text: str) -> str:
    """Give the sha256 of `text` as 64 hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def digest_file(path: str | os.PathLike[str]) -> str:
    """Give the sha256 of a file's bytes as 64 hexadecimal digits; the file is read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while piece := handle.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
