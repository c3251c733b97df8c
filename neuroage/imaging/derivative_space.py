"""Where prepared scans lie, in the words of BIDS and of NIfTI."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from neuroage.imaging.derivative_names import SUFFIXES, resolution_label
from neuroage.imaging.registration.mni152 import SPACE
from neuroage.runs.recipe import Prepare

# Of NIfTI-1: what the coordinates of an image are those of (nifti1.h).
SCANNER, ALIGNED, MNI_152, TEMPLATE = 1, 2, 4, 5
TEMPLATE_PAGE = "https://www.bic.mni.mcgill.ca/ServicesAtlases/ICBM152NLin2009"


@dataclass(frozen=True)
class Space:
    """Where the voxels of a prepared scan lie.

    Attributes:
        label: Of the entity `space`; "" where the scan stays in its own.
        reference: What BIDS calls `SpatialReference`.
        code: Of NIfTI.
    """

    label: str
    reference: str
    code: int


def grid_entities(recipe: Prepare) -> dict[str, str]:
    """Give the entities that name a prepared grid: `space` and `res`."""
    space = space_of(recipe).label
    return {"res": resolution_label(recipe.spacing), **({"space": space} if space else {})}


def space_of(recipe: Prepare) -> Space:
    """Say where a recipe brings scans."""
    wanted = recipe.registration
    if wanted is None:
        return Space("", "orig", SCANNER)
    if wanted.to == "mni152":
        return Space(SPACE, TEMPLATE_PAGE, MNI_152)
    if wanted.to == "reference":
        return Space(SUFFIXES.get(wanted.reference, "reference"), "orig", ALIGNED)
    file = Path(wanted.to).name
    return Space(_plain(file.split(".")[0]) or "template", file, TEMPLATE)


def target_of(key: str, recipe: Prepare) -> str:
    """Say in a label of BIDS where a transform leads: to the space where the scan ends, or to another scan."""
    if key in ("mni152", "template", "reference"):  # where scans end
        return space_of(recipe).label or SPACE
    return SUFFIXES.get(key, _plain(key) or "template")


def _plain(text: str) -> str:
    return re.sub(r"[^a-zA-Z0-9]+", "", text)
