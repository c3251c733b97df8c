"""Maps of where a network looked: kept with the images that they are about, saved for viewers, scored against marks."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroage.analysis.localisation import TOLERANCE, Localisation, score_maps
from neuroage.errors import DataError
from neuroage.files import atomic_path, write_json, write_text
from neuroage.imaging.overlay import draw_map, strength_of, strongest_place
from neuroage.imaging.regions import mask_of_boxes, mask_of_volume

UNITS = {
    "gradcam": "strength",
    "gradcam++": "strength",
    "integrated_gradients": "{unit} a pixel",
    "occlusion": "{unit} lost when covered",
}


@dataclass(frozen=True)
class ScanMap:
    """Where networks looked in one scan.

    Attributes:
        scan_id: Which scan.
        target: What is explained: "age", or the name of a label.
        output: The number that is explained: predicted age in years, or the label's logit; mean of the members.
        map: Shape (*spatial), float32, on the prepared grid; positive where the image pushes `output` up.
        image: The prepared image, shape (C, *spatial), float32.
        affine: Voxel index to millimetres in the scan's own space, (4, 4); of a picture, prepared row and column to row
            and column of the file, (3, 3).
        record: What preparation recorded.
        probability: Of the label; NaN for ages.
        group: Unit over which scores are bootstrapped: the subject.
    """

    scan_id: str
    target: str
    output: float
    map: np.ndarray = field(repr=False)
    image: np.ndarray = field(repr=False)
    affine: np.ndarray = field(repr=False)
    record: Mapping[str, Any] = field(default_factory=dict, repr=False)
    probability: float = float("nan")
    group: str = ""


@dataclass(frozen=True)
class Maps:
    """Maps of some scans, made in one way.

    Attributes:
        scans: One map a scan, in the cohort's order.
        method: How they were made.
        layer: Grad-CAM's layer; None: the backbone's feature map.
        two_sided: Both signs are evidence (ages: what makes older, what makes younger), not only what speaks for.
        spacing: Of the prepared grid, millimetres.
        failures: scan_id → why it could not be read.
    """

    scans: list[ScanMap]
    method: str
    layer: str | None
    two_sided: bool
    spacing: tuple[float, ...]
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def table(self) -> pd.DataFrame:
        """One row a scan: scan_id, target, output, probability, and where the map is strongest.

        `strongest` is a row and column of the picture's file, or millimetres in the volume's own space.
        """
        rows = []
        for scan in self.scans:
            place = np.array(strongest_place(scan.map, self.two_sided))
            place = np.round(scan.affine[:-1, :-1] @ place + scan.affine[:-1, -1], 1)
            rows.append(
                {
                    "scan_id": scan.scan_id,
                    "target": scan.target,
                    "output": scan.output,
                    "probability": scan.probability,
                    "strongest": ", ".join(f"{value:g}" for value in place),
                }
            )
        return pd.DataFrame(rows, columns=["scan_id", "target", "output", "probability", "strongest"])

    def unit(self, scan: ScanMap) -> str:
        """Say what a value of a map is."""
        unit = "years" if scan.target == "age" else "logit"
        side = "+ older, − younger" if self.two_sided else f"speaks for {scan.target}"
        return f"{side} ({UNITS[self.method].format(unit=unit)})"

    def save(self, folder: str | os.PathLike[str]) -> pd.DataFrame:
        """Write every map, a picture of it, a table, and a page with all of them.

        A volume's map is NIfTI in the scan's own space, on the prepared grid, so that a viewer lays it over the scan; a
        picture's is `.npy` on the prepared grid, and `affines` in `maps.json` say where its pixels lie in the file.
        Files of the same name are replaced, each whole or not at all.

        Returns:
            `table`, with the columns `file` and `picture`: names inside the folder.
        """
        where = Path(folder)
        names = _file_names([scan.scan_id for scan in self.scans])
        files, pictures = [], []
        for name, scan in zip(names, self.scans, strict=True):
            files.append(f"{name}_map.npy" if scan.map.ndim == 2 else f"{name}_map.nii.gz")
            pictures.append(f"{name}.png")
            _write_map(scan, where / files[-1])
            draw_map(
                scan.image,
                scan.map,
                where / pictures[-1],
                title=f"{scan.scan_id}  ·  {self.in_words(scan)}",
                unit=self.unit(scan),
                two_sided=self.two_sided,
                spacing=self.spacing,
                first_axis_right=bool(scan.affine[0, 0] > 0),
            )
        table = self.table.assign(file=files, picture=pictures)
        with atomic_path(where / "maps.csv") as temporary:
            table.to_csv(temporary, index=False)
        affines = {scan.scan_id: scan.affine for scan in self.scans}
        write_json(where / "maps.json", {**self.how(), "scans": table.to_dict("records"), "affines": affines})
        write_text(where / "index.html", self._page(table))
        return table

    def how(self) -> dict[str, Any]:
        """Say how the maps were made, JSON-ready."""
        return {"method": self.method, "layer": self.layer, "two_sided": self.two_sided, "failures": self.failures}

    def in_words(self, scan: ScanMap) -> str:
        """Say what was predicted: "72.4 years", or "tumour 0.93"."""
        if scan.target == "age":
            return f"{scan.output:.1f} years"
        return f"{scan.target} {scan.probability:.2f}"

    def score(
        self,
        regions: pd.DataFrame | Mapping[str, np.ndarray | str | os.PathLike[str]],
        *,
        tolerance: float = TOLERANCE,
        seed: int = 0,
    ) -> Localisation:
        """Score the maps against regions that experts marked, beside maps that know nothing.

        Args:
            regions: A table of boxes: scan_id, x, y, width, height, image_width, image_height in a picture (pixels of
                an image of that size), x, y, z, width, depth, height in a volume (millimetres in the scan's own space,
                along left–right, back–front, bottom–top); with a column `label`, only boxes of the explained label
                count. Or scan_id → mask: an array on the prepared grid, or for a volume a label file in the scan's own
                space.
            tolerance: Of the pointing game: a share of the longest side.
            seed: Of random maps and bootstrap.

        Raises:
            DataError: No scan has a map and a region, or a column is missing.
        """
        masks = {scan.scan_id: mask for scan in self.scans if (mask := self._mask(scan, regions)) is not None}
        return score_maps(
            {scan.scan_id: strength_of(scan.map, self.two_sided) for scan in self.scans},
            masks,
            labels={scan.scan_id: scan.target for scan in self.scans},
            groups={scan.scan_id: scan.group or scan.scan_id for scan in self.scans},
            tolerance=tolerance,
            seed=seed,
        )

    def _mask(
        self, scan: ScanMap, regions: pd.DataFrame | Mapping[str, np.ndarray | str | os.PathLike[str]]
    ) -> np.ndarray | None:
        if isinstance(regions, pd.DataFrame):
            if "scan_id" not in regions.columns:
                raise DataError("boxes lack the column 'scan_id'", expected="the scan_id of the maps")
            boxes = regions[regions["scan_id"].astype(str) == scan.scan_id]
            if "label" in boxes.columns and scan.target != "age":
                boxes = boxes[boxes["label"].astype(str) == scan.target]
            return (
                mask_of_boxes(boxes, scan.map.shape, scan.affine, scan.record.get("native_size"))
                if len(boxes)
                else None
            )
        marked = regions.get(scan.scan_id)
        if marked is None or isinstance(marked, np.ndarray):
            return marked
        if scan.map.ndim == 2:
            raise DataError(f"{scan.scan_id}: a label volume for a picture", fix="Give an array, or a table of boxes.")
        return mask_of_volume(marked, scan.map.shape, scan.affine)

    def _page(self, table: pd.DataFrame) -> str:
        from neuroage.analysis.page import whole_page

        layer = f", layer {self.layer}" if self.layer else ""
        figures = [
            f'<figure><img src="{escape(row["picture"])}" alt="{escape(str(row["scan_id"]))}" loading="lazy">'
            f"<figcaption>{escape(str(row['scan_id']))}: {escape(self.in_words(scan))} · "
            f'<a href="{escape(row["file"])}">{escape(row["file"])}</a></figcaption></figure>\n'
            for row, scan in zip(table.to_dict("records"), self.scans, strict=True)
        ]
        about = (
            "A map shows what the network's answer rests on, not what causes age or disease; another method or another "
            "training may show something else."
        )
        return whole_page(
            "Where it looked",
            f"<h1>Where it looked</h1>\n<p class='lead'>{len(self.scans)} scans, {escape(self.method + layer)}.</p>\n",
            f"<p>{about}</p>\n",
            *figures,
        )


def _write_map(scan: ScanMap, path: Path) -> None:
    with atomic_path(path) as temporary:
        if scan.map.ndim == 2:
            np.save(temporary, scan.map.astype(np.float32))
            return
        import nibabel as nib

        nib.save(nib.Nifti1Image(scan.map.astype(np.float32), scan.affine), temporary)


def _file_names(scan_ids: list[str]) -> list[str]:
    """Make a file name of each scan's name; no two alike, also where capitals do not count."""
    names: list[str] = []
    for scan_id in scan_ids:
        plain = re.sub(r"[^\w.-]", "_", scan_id).lstrip(".")[:120] or "scan"
        name, number = plain, 1
        while name.lower() in {taken.lower() for taken in names} | {"index"}:
            number += 1
            name = f"{plain}_{number}"
        names.append(name)
    return names
