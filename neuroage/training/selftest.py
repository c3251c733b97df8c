"""The self-test: a golden phantom proves that this installation still gives a run's own numbers.

At the end of training a made-up head, or picture, is drawn, prepared and predicted; what came of each stage stays with
the run. `selftest` does it again. No person's scan takes part.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric

from neuroage.errors import DataError, UsageError
from neuroage.files import digest_file
from neuroage.imaging.batches import VolumeSet
from neuroage.imaging.store import Store, StoredVolume
from neuroage.models.network import Network
from neuroage.models.tasks import Task, build_task
from neuroage.runs.run import Run, environment
from neuroage.training.baselines import baselines_for, blend
from neuroage.training.inference import complete_leaves, load_network, outputs_of

GOLDEN_SEED, GOLDEN_AGE_YEARS = 20_260, 55.0
ANSWERS = ("predicted_age", "probability_")  # columns of the predictions table
N_SAMPLES = 500  # prepared voxels that are kept, evenly spread
STAGES = ("phantom", "prepared", "weights", "prediction")
PHANTOM_LEVELS = 1.0  # stored values of the phantom: rounding may fall either way where mathematics libraries differ
PREPARED_STEPS = 2.0  # of 1/255 of the prepared range: what uint8 storing may lose, twice
OTHER_DEVICE = 10  # times the task's tolerance, which is for the same device: half precision, another device
PICTURE_PIXELS = 256


@dataclass
class SelfTest:
    """What a self-test of one training found.

    Attributes:
        member: Name of the training, empty for a single one.
        differences: For each stage the largest difference: `phantom` (stored values), `prepared` (intensities),
            `weights` (files that changed), `prediction` (years, or
            a probability).
        tolerances: What is allowed at each stage.
        failed: The first stage that differs by more; empty when the test passes.
        words: The result, for a person.
    """

    member: str
    differences: dict[str, float]
    tolerances: dict[str, float]
    failed: str
    words: str = ""
    versions: dict[str, list[str]] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every stage that matters is within its tolerance."""
        return not self.failed


@lru_cache(maxsize=4)
def golden_phantom(modality: str) -> tuple[np.ndarray, np.ndarray]:
    """Draw the golden phantom: int16 voxels and affine; a T1 head for modalities other than TOF."""
    from neuroage.imaging.phantom import phantom_subject  # with nibabel, which training on prepared scans does not need

    drawn = "tof" if modality == "tof" else "t1"
    scan = phantom_subject(GOLDEN_AGE_YEARS, GOLDEN_SEED, modalities=(drawn,)).scans[drawn]
    return scan.data, scan.affine


def golden_picture() -> np.ndarray:
    """Draw the golden picture: bright ribs on a dark oval, in noise; uint8, shape (256, 256)."""
    rows, columns = np.mgrid[-1 : 1 : PICTURE_PIXELS * 1j, -1 : 1 : PICTURE_PIXELS * 1j]
    oval = (rows / 0.8) ** 2 + (columns / 0.6) ** 2 < 1
    ribs = 0.5 + 0.5 * np.sin(24 * (rows + 0.4 * columns**2))
    noise = np.random.default_rng(GOLDEN_SEED).normal(0, 6, rows.shape)
    shades = 170 - 40 * rows**2 + oval * (60 * ribs - 90) + 60 * np.exp(-((columns / 0.12) ** 2)) + noise
    return np.clip(shades, 0, 255).astype(np.uint8)


def _write_head(folder: Path, modality: str) -> tuple[Path, np.ndarray]:
    import nibabel as nib

    data, affine = golden_phantom(modality)
    nib.save(nib.Nifti1Image(data, affine), folder / "phantom.nii")
    return folder / "phantom.nii", data


def _write_picture(folder: Path, modality: str) -> tuple[Path, np.ndarray]:
    from PIL import Image

    data = golden_picture()
    Image.fromarray(data).save(folder / "phantom.png")
    return folder / "phantom.png", data


WRITERS = {"volume": _write_head, "picture": _write_picture}


def record_selftest(run: Run, fabric: Fabric, network: Network, task: Task) -> None:
    """Let a run that was just trained predict the golden phantom, and keep what came of each stage.

    Where the run's preparation cannot take a head (a threshold in file units, for example), that is what is kept; so is
    that no volume can be prepared here, which training on prepared ones does not need.

    Args:
        run: Its weights and ridge are saved.
        fabric, network, task: With the weights that were kept; of several processes one suffices.
    """
    try:
        stages = _go_through(run, fabric, network, task)
    except DataError as error:
        stages = {"impossible": str(error)}
    except ImportError as error:
        stages = {"missing": error.name}
    run.save_selftest(stages)


def selftest(run: Run) -> list[SelfTest]:
    """Predict the golden phantom again with every member of a run, and compare each stage with what was kept.

    Args:
        run: A complete run.

    Returns:
        One result a training.

    Raises:
        UsageError: The run is not complete, or was trained before there were self-tests.
    """
    return [_test(leaf, leaf.name if run.is_parent else "") for leaf in complete_leaves(run)]


def _test(run: Run, member: str) -> SelfTest:
    then = run.selftest
    if not then:
        raise UsageError(f"{run.folder} has no self-test", fix="It was trained before there were any: train it again.")
    if "impossible" in then:
        raise UsageError(
            f"{run.folder} has no self-test: its preparation cannot take the phantom", expected=str(then["impossible"])
        )
    if "missing" in then:
        raise UsageError(f"{run.folder} has no self-test: it was trained where {then['missing']} is not installed")
    now = _go_through(run, *load_network(run))
    differences = {
        "phantom": abs(now["phantom"]["mean"] - then["phantom"]["mean"])
        if now["phantom"]["sha256"] != then["phantom"]["sha256"]
        else 0.0,
        "prepared": float(np.abs(np.subtract(now["prepared"]["samples"], then["prepared"]["samples"])).max()),
        "weights": float(sum(now["weights"][name] != then["weights"][name] for name in then["weights"])),
        "prediction": float(np.abs(np.subtract(now["prediction"], then["prediction"])).max()),
    }
    same = now["device"] == then["device"] and now["precision"] == then["precision"]
    tolerances = {
        "phantom": PHANTOM_LEVELS,
        "prepared": PREPARED_STEPS * then["prepared"]["step"],
        "weights": 0.0,
        "prediction": build_task(run.recipe).tolerance * (1 if same else OTHER_DEVICE),
    }
    failed = next((stage for stage in STAGES if not differences[stage] <= tolerances[stage]), "")
    versions = _changed_versions(run.environment, environment())
    unit = " years" if run.target["kind"] == "age" else " of a probability"
    return SelfTest(member, differences, tolerances, failed, _words(failed, differences, versions, unit), versions)


def _words(failed: str, differences: dict[str, float], versions: dict[str, list[str]], unit: str) -> str:
    if not failed:
        return (
            f"This installation gives the run's own numbers (prediction within {differences['prediction']:.4f}{unit})."
        )
    meaning = {
        "phantom": "the phantom itself is drawn otherwise (NumPy or SciPy)",
        "prepared": f"preparation differs by {differences['prepared']:.3g} (reading, resampling or intensities)",
        "weights": "the weights in the run folder are not those that were trained; copy the run again",
        "prediction": f"the same weights predict {differences['prediction']:.3g}{unit} otherwise (PyTorch or device)",
    }[failed]
    changed = ", ".join(f"{name} {before} → {after}" for name, (before, after) in versions.items()) or "none"
    return f"Differs at stage `{failed}`: {meaning}. Versions that changed: {changed}."


def _changed_versions(then: dict[str, Any], now: dict[str, Any]) -> dict[str, list[str]]:
    flat_then, flat_now = ({**{k: v for k, v in e.items() if k != "packages"}, **e["packages"]} for e in (then, now))
    return {
        name: [str(flat_then.get(name, "–")), str(value)]
        for name, value in flat_now.items()
        if flat_then.get(name) != value and name != "cores"
    }


def _go_through(run: Run, fabric: Fabric, network: Network, task: Task) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path, data = WRITERS[run.recipe.prepare.kind](Path(folder), run.recipe.modality)
        volume, _ = Store(Path(folder) / "store").prepare(path, run.recipe.prepare)
        prepared = volume.map().astype(np.float32) * np.float32(volume.scale) + np.float32(volume.offset)
        predicted = _predict(run, volume, fabric, network, task)
    same_device = fabric.device.type == run.about["device"]
    samples = prepared.ravel()[:: max(1, prepared.size // N_SAMPLES)][:N_SAMPLES]
    return {
        "phantom": {"sha256": hashlib.sha256(data.tobytes()).hexdigest(), "mean": round(float(data.mean()), 6)},
        "prepared": {
            "mean": round(float(prepared.mean()), 6),
            "std": round(float(prepared.std()), 6),
            "step": round(float(prepared.max() - prepared.min()) / 255, 6),
            "samples": samples.astype(float).round(5).tolist(),
        },
        "weights": {path.name: digest_file(path) for path in (run.weights_path, run.linear_path)},
        "prediction": [round(value, 6) for value in predicted],
        "precision": run.about["precision"] if same_device else "fp32",
        "device": fabric.device.type,
    }


@torch.no_grad()
def _predict(run: Run, volume: StoredVolume, fabric: Fabric, network: Network, task: Task) -> list[float]:
    """Predict as a scan is predicted, the linear model's share included: years, or a probability for each label."""
    recipe, was_training = run.recipe, network.training
    images = VolumeSet([volume], fabric.device).batch(np.arange(1))
    outputs = outputs_of(fabric, network.eval(), images, recipe.predict.flips)
    network.train(was_training)
    table = pd.DataFrame({name: values.float().cpu().numpy() for name, values in task.decode(outputs).items()})
    if recipe.predict.ridge_share:
        beside = baselines_for(task.target).load(run).tables(table, [volume])
        table = blend(table, [*beside.values()][-1], recipe.predict.ridge_share)
    return [float(value) for name, value in table.iloc[0].items() if str(name).startswith(ANSWERS)]
