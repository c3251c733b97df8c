from __future__ import annotations

import platform
from typing import Any

import pytest
import torch

from neuroage.training import devices
from neuroage.training.devices import is_out_of_memory, kept_memory


class Library:
    """Stands for the C library and remembers what was asked of it."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    def mallopt(self, *arguments: int) -> int:
        self.asked.append(arguments)
        return 1

    def malloc_trim(self, *arguments: int) -> int:
        self.asked.append(("trim", *arguments))
        return 1


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library()
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: made)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    return made


def test_memory_is_kept_while_training_and_given_back_after_it_also_after_an_error(library: Library) -> None:
    with pytest.raises(ValueError), kept_memory(torch.device("cpu"), wanted=True):
        during = list(library.asked)
        raise ValueError
    assert during == [(-4, 0), (-1, -1)]
    assert library.asked[2:] == [(-4, 65536), (-1, 128 * 1024), ("trim", 0)]


@pytest.mark.parametrize(("device", "wanted"), [("cuda", True), ("cpu", False)])
def test_nothing_is_done_on_gpus_or_where_there_is_little_room(device: str, wanted: bool, library: Library) -> None:
    with kept_memory(torch.device(device), wanted=wanted):
        pass
    assert library.asked == []


def test_other_c_libraries_are_left_alone(library: Library, monkeypatch: Any) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    with kept_memory(torch.device("cpu"), wanted=True):
        pass
    assert library.asked == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
            True,
        ),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("DefaultCPUAllocator"), False),
    ],
)
def test_a_lack_of_memory_is_told_from_other_errors(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) == expected
