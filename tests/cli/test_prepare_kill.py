import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scale_cases import PREPARE, content, wait_until, write_noise

from neuroage.imaging.preparation import prepare_scans
from neuroage.imaging.store import Store

N_SCANS = 40
ATTEMPTS = 5  # to meet it midway: on a busy machine the last scan may be stored before the kill

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")


def stored(folder: Path) -> dict[str, int]:
    """Give the volumes that stand in a store, with their times of change in nanoseconds."""
    return {str(path): path.stat().st_mtime_ns for path in folder.glob("v*/*/*.npy") if path.name[0] != "."}


def start(tmp_path: Path) -> subprocess.Popen[bytes]:
    words = [
        "prepare",
        "--data",
        "cohort.csv",
        "--store",
        "store",
        "--config",
        "recipe.yaml",
        "--workers",
        "2",
        "--json",
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "neuroage", *words], cwd=tmp_path, stdout=subprocess.PIPE, start_new_session=True
    )


def test_a_kill_midway_costs_only_the_scans_at_work(tmp_path: Path) -> None:
    cohort = write_noise(tmp_path, N_SCANS, size=48)
    cohort.table.to_csv(tmp_path / "cohort.csv", index=False)
    (tmp_path / "recipe.yaml").write_text("modality: t1\nprepare: {spacing_mm: 8.0, size: [12, 12, 12]}\n")
    prepare_scans(cohort.scans(), PREPARE, Store(tmp_path / "undisturbed"))
    for _ in range(ATTEMPTS):
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        command = start(tmp_path)
        wait_until(lambda: len(stored(tmp_path / "store")) >= 5)
        os.killpg(command.pid, signal.SIGKILL)
        assert command.wait() == -signal.SIGKILL
        time.sleep(0.05)
        before = stored(tmp_path / "store")
        if len(before) < N_SCANS:
            break
    assert 5 <= len(before) < N_SCANS
    for path in before:
        assert np.load(path).shape == (1, 12, 12, 12), "no torn file"

    command = start(tmp_path)
    said, _ = command.communicate()
    assert command.returncode == 0
    assert f'"n_made": {N_SCANS - len(before)}' in said.decode()
    after = stored(tmp_path / "store")
    assert {path: after[path] for path in before} == before, "what was stored is not made again"
    assert content(tmp_path / "store") == content(tmp_path / "undisturbed")
