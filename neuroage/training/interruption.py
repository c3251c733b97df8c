"""Stop when asked: a signal sets a flag, and the training saves its state at the next step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")  # Ctrl-C, a scheduler's end, a scheduler's warning


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Turn the first signal into a flag; a second Ctrl-C stops at once.

    Yields:
        A function that tells whether a signal came. Outside of the main thread signals stay as they were.
    """
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True

    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in SIGNALS:
            if number := getattr(signal, name, None):
                before[number] = signal.signal(number, ask)
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
