"""The MNI152 template (Fonov 2011, doi:10.1016/j.neuroimage.2010.07.033), as nilearn packages it.

It is the symmetric ICBM 2009a T1 average at 1 mm without its skull, with maps of grey and white matter. McConnell Brain
Imaging Centre permits use, copying and changing for any purpose where its notice stands.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from neuroage.errors import SetupError
from neuroage.imaging.read import Volume

SPACE = "MNI152NLin2009aSym"  # its name in BIDS
MIDDLE_MM = np.array([0.0, -18.0, 18.0])  # of the template's grids, at any voxel size


@dataclass(frozen=True)
class Template:
    """A template to register to.

    Attributes:
        volume: T1 intensities 0 to 1, data (1, I, J, K), RAS+; 0 outside of the brain.
        brain: True within the brain, shape (I, J, K).
        tissue: Shares of grey and of white matter, shape (2, I, J, K), 0 to 1.
    """

    volume: Volume
    brain: np.ndarray
    tissue: np.ndarray


@lru_cache(maxsize=4)
def load_mni152(spacing_mm: int = 1) -> Template:
    """Load the template at 1 mm, or averaged in blocks of 2 or 4 mm.

    Raises:
        SetupError: nilearn, which brings it, is not installed.
    """
    import nibabel as nib

    folder = _folder()
    names = ("t1", "gm", "wm")
    images: list[Any] = [nib.load(folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz") for name in names]
    t1, grey, white = (np.asarray(image.dataobj, dtype=np.float32) / 255 for image in images)
    affine = np.asarray(images[0].affine, dtype=np.float64)
    brain = (t1 > 0).astype(np.float32)
    if spacing_mm != 1:
        from neuroage.imaging.resampling import block_mean

        block = (spacing_mm,) * 3
        t1, grey, white, brain = (block_mean(part, block) for part in (t1, grey, white, brain))
        affine = affine @ np.diag([*block, 1.0])
        affine[:3, 3] += (spacing_mm - 1) / 2
    return Template(Volume(np.asarray(t1)[None], affine), np.asarray(brain) > 0.5, np.stack([grey, white]))


def _folder() -> Path:
    from importlib.util import find_spec

    found = find_spec("nilearn")  # its data are read without importing it, which takes seconds
    folder = Path(found.origin).parent / "datasets" / "data" if found and found.origin else None
    if folder is None or not folder.is_dir():
        raise SetupError(
            "The MNI152 template, which nilearn brings, is not installed", fix='Install it: pip install "neuroage[raw]"'
        )
    return folder
