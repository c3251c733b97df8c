"""The training scans' mean: what a raw scan is registered to before a run can be asked about it.

A run that was trained on prepared brains, such as those of a public archive, says nothing of how they were made. What
they look like suffices: a raw head is registered to MNI152, and so is the mean of the training scans; the two together
lead from one to the other.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from neuroage.errors import DataError, RefusedError, UsageError
from neuroage.files import atomic_path, digest_file
from neuroage.imaging.intensities import one_channel, otsu_threshold
from neuroage.imaging.resampling import Grid, block_mean
from neuroage.imaging.store import Store, StoredVolume
from neuroage.runs.recipe import Preparation, Prepare
from neuroage.runs.run import Run

MOST_SCANS = 200  # that make the mean: more change it by less than a grey level
COARSE_MM = 4.0  # grid on which poses are measured
# Spread of brains that were registered affinely, in OASIS-1: nodding 2.0 degrees, turning 1.1, size 0.5%; all of it is
# shape. Phantoms turned by up to 8 degrees about each axis: 2.5, 7 and 6%; heads in scanners nod by 5 degrees and more.
ALIGNED_NOD_DEG, ALIGNED_TURN_DEG, ALIGNED_SIZE = 3.5, 2.5, 0.02
BRAIN_ONLY_ML = 2500.0  # all aligned brains together take some 2,000 ml, heads 3,500 and more
SHOWN = 0.05  # of the mean's range: where less is seen there is background


@dataclass(frozen=True)
class TrainingTemplate:
    """The mean of a run's training scans, and how alike they lie.

    Attributes:
        mean: Prepared intensities, of several channels one, shape (I, J, K), float32.
        affine: Voxel index to millimetres about the middle of the grid, (4, 4).
        nod_deg: By how much nodding differs among the scans: a robust standard deviation.
        turn_deg: By how much turning to the side does.
        size: By how much their size does, relative.
        n_scans: How many scans made the mean.
    """

    mean: np.ndarray
    affine: np.ndarray
    nod_deg: float
    turn_deg: float
    size: float
    n_scans: int

    @classmethod
    def of(cls, volumes: Sequence[StoredVolume], recipe: Prepare) -> TrainingTemplate:
        """Average prepared training volumes; of very many, 200 evenly chosen."""
        chosen = [volumes[int(i)] for i in np.unique(np.linspace(0, len(volumes) - 1, MOST_SCANS).astype(int))]
        total, poses = np.zeros(recipe.size), []
        for volume in chosen:
            data = one_channel(volume.load())
            total += data
            poses.append(pose_of(data, recipe.spacing))
        axes = np.diag([-1.0 if recipe.orientation == "LAS" else 1.0, 1.0, 1.0])
        affine = Grid.about(np.zeros(3), axes, recipe.spacing, recipe.size).affine
        spread = 1.4826 * np.median(np.abs(poses - np.median(poses, axis=0)), axis=0)  # of a Gaussian: its SD
        nod, turn, size = map(float, spread)
        return cls((total / len(chosen)).astype(np.float32), affine, nod, turn, size, len(chosen))

    @property
    def alignment(self) -> Literal["affine", "rigid", ""]:
        """How the training scans were brought to lie alike: sizes and poses, poses only, or not at all."""
        if not (self.nod_deg <= ALIGNED_NOD_DEG and self.turn_deg <= ALIGNED_TURN_DEG):
            return ""
        return "affine" if self.size <= ALIGNED_SIZE else "rigid"

    @property
    def is_brain_only(self) -> bool:
        """Whether the training scans showed brains without skull and skin."""
        low, high = float(self.mean.min()), float(self.mean.max())
        voxel_ml = abs(np.linalg.det(self.affine[:3, :3])) / 1000
        return bool((self.mean > low + SHOWN * (high - low)).sum() * voxel_ml < BRAIN_ONLY_ML)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as safetensors."""
        from safetensors.numpy import save_file

        figures = np.array([self.nod_deg, self.turn_deg, self.size, self.n_scans])
        with atomic_path(path) as temporary:
            save_file({"mean": self.mean, "affine": self.affine, "figures": figures}, temporary)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TrainingTemplate:
        """Read what `save` wrote.

        Raises:
            UsageError: There is none: the run was trained before runs had one.
            DataError: It is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        if not Path(path).is_file():
            raise UsageError(f"{path} is missing", fix="Train the run again: runs of before have no mean to align to.")
        try:
            kept = load_file(Path(path))
            nod, turn, size, n_scans = kept["figures"].tolist()
            return cls(kept["mean"], kept["affine"], nod, turn, size, int(n_scans))
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise DataError(f"{path} is damaged", fix="Copy the whole run folder again, or train it again.") from error

    def export(self, folder: Path, source: Path) -> Path:
        """Write the mean as a NIfTI file named by the content of `source`, once, and give its name."""
        import nibabel as nib

        path = folder / f"{digest_file(source)[:16]}.nii.gz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                nib.save(nib.Nifti1Image(self.mean, self.affine), temporary)
        return path


def pose_of(data: np.ndarray, spacing_mm: Sequence[float]) -> tuple[float, float, float]:
    """Measure how far a head nods and turns, in degrees, and the logarithm of its size, from moments of what is bright.

    Args:
        data: Shape (I, J, K), prepared, RAS+ or LAS+.
        spacing_mm: Voxel size along each axis.
    """
    block = [max(1, round(COARSE_MM / step)) for step in spacing_mm]
    coarse = block_mean(data, block)
    inside = coarse > otsu_threshold(coarse)
    places = np.argwhere(inside) * np.asarray(block) * np.asarray(spacing_mm)
    if len(places) < 2:
        return (float("nan"),) * 3
    moments = np.cov(places.T)
    nod, turn = (
        0.5 * np.degrees(np.arctan2(2 * moments[1, other], moments[1, 1] - moments[other, other])) for other in (2, 0)
    )
    return float(nod), float(turn), float(np.log(max(np.linalg.det(moments), 1e-12)) / 6)


def preparation_for_raw(run: Run, store: Store) -> Preparation:
    """Give a run's preparation with what brings a raw scan to lie and look like its training scans.

    Where the run's own recipe registers, it brings raw scans in already and stays as it is.

    Args:
        run: A single training, not a run of members.
        store: Receives the training scans' mean as an image.

    Raises:
        UsageError: The run is about pictures, or of before training means were kept.
        RefusedError: The training scans did not lie alike, so that there is nothing to register to.
    """
    recipe = run.recipe.prepare
    if recipe.kind != "volume":
        raise UsageError("--prepare auto is about volumes, and the run was trained on pictures", fix="Leave it out.")
    if recipe.registration is not None:
        return recipe
    template = TrainingTemplate.load(run.template_path)
    if not template.alignment:
        raise RefusedError(
            f"The training scans of {run.folder} did not lie alike (nodding differs by {template.nod_deg:.1f} "
            f"degrees, turning by {template.turn_deg:.1f}): there is no pose to bring a scan into",
            fix="Predict without --prepare auto; scans like the training scans need no more than the run's own recipe.",
        )
    file = template.export(store.folder / "templates", run.template_path)
    raw = {"registration": {"to": str(file), "kind": template.alignment}, "bias_field": {}}
    brain = {"brain": {"mask": "auto"}} if template.is_brain_only else {}
    return Prepare.model_validate({**recipe.model_dump(exclude={"preset"}), **raw, **brain})
