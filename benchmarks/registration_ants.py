"""The steps of `registration.py speed` with ANTsPy's defaults; runs in a Python of its own: SCAN FOLDER."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import ants

scan, folder = ants.image_read(sys.argv[1]), Path(sys.argv[2])
template, brain = ants.image_read(str(folder / "template.nii")), ants.image_read(str(folder / "brain.nii"))
wall, cpu, last = {}, {}, (time.perf_counter(), time.process_time())


def stop(step: str) -> None:
    global last
    now = time.perf_counter(), time.process_time()
    wall[step], cpu[step], last = now[0] - last[0], now[1] - last[1], now


scan = ants.n4_bias_field_correction(scan)
stop("bias_field")
found = ants.registration(fixed=template, moving=scan, type_of_transform="Affine")
stop("registration")
mask = ants.apply_transforms(
    fixed=scan, moving=brain, transformlist=found["fwdtransforms"], whichtoinvert=[True], interpolator="nearestNeighbor"
)
stop("mask")
moved = ants.apply_transforms(fixed=template, moving=scan * mask, transformlist=found["fwdtransforms"])
values = moved.numpy()
held = values > 0
values[held] = (values[held] - values[held].mean()) / values[held].std()
stop("normalise")
shutil.copy(found["fwdtransforms"][0], folder / "affine.mat")
figures = {"wall_seconds": wall | {"all": sum(wall.values())}, "cpu_seconds": cpu | {"all": sum(cpu.values())}}
print(json.dumps(figures))
