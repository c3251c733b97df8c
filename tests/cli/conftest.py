"""What tests of the command line share: `neuroage …` typed in this process, in a folder of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from neuroage.cli.main import main
from neuroage.imaging.store import Store


class Said(NamedTuple):
    """What a command left: its exit code, stdout as printed, and stderr with every run of spaces as one."""

    code: int
    out: str
    err: str


@pytest.fixture
def type_in(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, store: Store
) -> Callable[..., Said]:
    """Run `neuroage …` in this process, in the test's own folder and with the small cohort's store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEUROAGE_STORE", str(store.folder))
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["neuroage", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return Said(code, captured.out, " ".join(captured.err.split()))

    return call
