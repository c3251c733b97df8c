"""One at a time: a lock that ends with its holder, whatever ended that."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def hold(lock: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock among the processes, and the machines with the same file system, that use this file.

    The system frees it when its holder ends, also by a kill. The file is removed with it; one that a kill has left is
    taken over by the next. Where the system or the file system has no such locks, everyone holds it.

    Args:
        lock: The file; made where missing, with its folder.
        wait: Wait until the lock is free.

    Yields:
        Whether it is held; with `wait` always.

    Example:
        >>> with hold(folder / "a.lock", wait=False) as mine:  # doctest: +SKIP
        ...     if mine:
        ...         write()
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield True
        return
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            held = True
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                held = False
            except OSError:  # a file system without locks
                yield True
                return
            if held and not _is(lock, handle):
                continue  # its last holder has removed it since
            try:
                yield held
            finally:
                if held:
                    with suppress(OSError):
                        lock.unlink()
            return
        finally:
            os.close(handle)


def _is(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False
