"""Programs of others that find the brain, where they are installed: SynthStrip and HD-BET."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from neuroage.errors import DataError, SetupError, UsageError, did_you_mean
from neuroage.imaging.read import Volume, read

TIMEOUT_S = 1800.0  # HD-BET takes minutes a scan without a GPU


class Program(NamedTuple):
    """How a program is found and called.

    Attributes:
        names: What it may be called on the PATH.
        arguments: Given the scan's file and the folder to write into.
        results: Files it may leave there, best first; of a stripped scan everything but 0 is brain.
        get: Where it comes from.
    """

    names: tuple[str, ...]
    arguments: Callable[[Path, Path], list[str]]
    results: tuple[str, ...]
    get: str


def _hd_bet_arguments(scan: Path, folder: Path) -> list[str]:
    device = "cuda" if shutil.which("nvidia-smi") else "cpu"
    return ["-i", str(scan), "-o", str(folder / "brain.nii.gz"), "-device", device]


PROGRAMS = {
    "synthstrip": Program(  # Hoopes 2022, doi:10.1016/j.neuroimage.2022.119474
        ("mri_synthstrip", "synthstrip-singularity", "synthstrip-docker", "nipreps-synthstrip"),
        lambda scan, folder: ["-i", str(scan), "-o", str(folder / "brain.nii.gz"), "-m", str(folder / "mask.nii.gz")],
        ("mask.nii.gz",),
        "It comes with FreeSurfer from 7.3 on, or as a container: https://w3id.org/synthstrip",
    ),
    "hd-bet": Program(  # Isensee 2019, doi:10.1002/hbm.24750; its first version writes a mask too, its second does not
        ("hd-bet",),
        _hd_bet_arguments,
        ("brain_mask.nii.gz", "brain_bet.nii.gz", "brain.nii.gz"),
        "Install it with: pip install hd-bet",
    ),
}


def mask_by_program(volume: Volume, name: str, *, timeout_s: float = TIMEOUT_S) -> tuple[np.ndarray, str]:
    """Let another program find the brain.

    The scan is written into a temporary folder, without anything of its header but the geometry.

    Args:
        volume: The scan on its own grid.
        name: `synthstrip` or `hd-bet`.
        timeout_s: It is stopped when it takes longer.

    Returns:
        True within the brain, shape (I, J, K); and the program's path.

    Raises:
        SetupError: The program is not on the PATH.
        DataError: It failed, took too long, or left no mask on the scan's grid.
    """
    import nibabel as nib

    if name not in PROGRAMS:
        raise UsageError(f"brain mask by {name!r}", expected=did_you_mean(name, PROGRAMS))
    program = PROGRAMS[name]
    found = next(filter(None, map(shutil.which, program.names)), None)
    if found is None:
        raise SetupError(
            f"{name} is not installed", expected=f"{' or '.join(program.names)} on the PATH", fix=program.get
        )
    with tempfile.TemporaryDirectory(prefix="neuroage-") as folder_name:
        folder = Path(folder_name)
        scan = folder / "scan.nii.gz"
        nib.save(nib.Nifti1Image(volume.data[0], volume.affine), scan)
        _run(name, [found, *program.arguments(scan, folder)], folder / "output.txt", timeout_s)
        result = next((folder / file for file in program.results if (folder / file).is_file()), None)
        if result is None:
            raise DataError(f"{name} ended without a mask", fix=f"Try it by hand: {found} --help")
        mask = read(result, nonfinite="zero")
    if mask.shape != volume.shape or not np.allclose(mask.affine, volume.affine, atol=1e-2):
        raise DataError(
            f"{name} left a mask of {mask.shape} voxels on another grid", expected=f"the scan's {volume.shape}"
        )
    return mask.data[0] != 0, found


def _run(name: str, command: list[str], output: Path, timeout_s: float) -> None:
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise DataError(f"{name} took longer than {timeout_s:g} s and was stopped") from error
        finally:
            if process.poll() is None:  # with all that a wrapper script started
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if code != 0:
        lines = [line for line in output.read_text(errors="replace").splitlines() if line.strip()]
        said = lines[-1].strip()[:300] if lines else "it said nothing"
        raise DataError(f"{name} failed (exit code {code}): {said}")
