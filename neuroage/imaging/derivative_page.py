"""The page of quality control for a data set of derivatives: what stands there is all that is needed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuroage.cohort import Scan
from neuroage.imaging.derivative_tables import find_sidecars
from neuroage.imaging.derivatives import read_sidecar
from neuroage.imaging.qc import write_qc
from neuroage.imaging.steps.companions import Companions
from neuroage.imaging.store import Store, StoredVolume
from neuroage.runs.recipe import Preparation, Prepare


@dataclass(frozen=True)
class _Done:
    """A scan that stands there: its image, and what its JSON file says of it."""

    image: Path
    about: dict[str, Any]


class _DerivedVolume(StoredVolume):
    """An image of the derivatives in the place of a stored volume."""

    @property
    def record(self) -> dict[str, Any]:
        """What the JSON file says of the preparation, as a stored volume says it."""
        import nibabel as nib

        about = read_sidecar(self.path.with_name(self.path.name.removesuffix(".nii.gz") + ".json")) or {}
        affine = np.asarray(nib.load(self.path).affine).tolist()  # type: ignore[attr-defined]
        return {**about.get("record", {}), "steps": about.get("steps", []), "affine": affine}

    def map(self) -> np.ndarray:
        """Read the prepared intensities, shape (C, I, J, K)."""
        import nibabel as nib

        data = np.asarray(nib.load(self.path).dataobj, dtype=np.float32)  # type: ignore[attr-defined]
        return data[None] if data.ndim == 3 else data.transpose(3, 0, 1, 2)


class _Shelf(Store):
    """Derivatives that are looked up as prepared volumes are."""

    def __init__(self, done: list[_Done], digest: str) -> None:
        super().__init__(done[0].image.parent)
        self.done = {one.image: one.about for one in done if one.about["digest"] == digest}

    def get(self, path: Any, recipe: Preparation, companions: Companions | None = None) -> StoredVolume | None:
        """Find an image; None where it was prepared in another way than most."""
        about = self.done.get(Path(path))
        return None if about is None else _DerivedVolume(str(path), 1.0, 0.0, about["problem"])


def write_group_pages(folder: Path, progress: Callable[[int, int], None] | None = None) -> list[Path]:
    """Write one page for the scans of each kind and grid, such as `group_T1w.html`.

    Args:
        folder: Of the derivatives.
        progress: Called with (done, all) after each scan of a page.

    Returns:
        The pages.
    """
    kinds: dict[str, dict[str, list[_Done]]] = defaultdict(lambda: defaultdict(list))
    for sidecar in find_sidecars(folder):
        if about := read_sidecar(sidecar):
            stem = sidecar.name.removesuffix(".json")
            grid = "_".join(part for part in stem.split("_") if part.startswith(("space-", "res-")))
            image = sidecar.with_name(f"{stem}.nii.gz")
            kinds[stem.rsplit("_", 1)[1]][grid].append(_Done(image, about))
    pages = []
    for suffix, grids in sorted(kinds.items()):
        for grid, done in sorted(grids.items()):
            pages.append(folder / f"group_{suffix if len(grids) == 1 else f'{grid}_{suffix}'}.html")
            _write_page(done, pages[-1], f"{len(done):,} {suffix} scans", progress)
    return pages


def _write_page(done: list[_Done], page: Path, title: str, progress: Callable[[int, int], None] | None) -> None:
    (digest, _), *_ = Counter(one.about["digest"] for one in done).most_common(1)
    recipe = Prepare(**next(one.about["recipe"] for one in done if one.about["digest"] == digest))
    if recipe.registration is not None:  # its companions lie with the sources, and nothing is prepared here
        recipe = recipe.model_copy(update={"registration": recipe.registration.model_copy(update={"reference": ""})})
    recipe = recipe.model_copy(update={"brain": None})
    scans = [Scan(one.about.get("scan_id") or one.image.name, "", path=one.image) for one in done]
    write_qc(scans, recipe, _Shelf(done, digest), page, title=title, progress=progress)
