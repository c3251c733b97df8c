"""The parts of the recipe's section `prepare` that bring raw scans, with skull and in any pose, to a network."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from neuroage.runs.recipe_sections import Positive, Section


class Register(Section):
    """Register every scan to a template, so that all brains lie alike; the volume is then centred on the template.

    Attributes:
        to: Where scans end: `mni152`; `reference` (the space of the session's reference scan, on its own axes), or the
            file of a template of one's own: a brain or head that is registered to MNI152 itself.
        kind: `affine` (12 parameters: position, size and shape) or `rigid` (6: position only). Scans of one session are
            registered to each other rigidly in any case.
        reference: Modality of another scan of the same session, such as `t1`, through which the scan is registered:
            rigidly to it, and on with its transform. For scans that show a part of the head only, or whose contrast
            says little about the brain, such as TOF. "": directly.
        on_failure: What becomes of a scan whose registration is found to have failed: `refuse` leaves it out, `keep`
            keeps it with the problem in its record.
    """

    to: str = "mni152"
    kind: Literal["affine", "rigid"] = "affine"
    reference: str = ""
    on_failure: Literal["refuse", "keep"] = "refuse"

    @model_validator(mode="after")
    def _reference_named(self) -> Register:
        if self.to == "reference" and not self.reference:
            raise ValueError("to: reference needs `reference`, the modality of that scan, such as t1")
        return self


class BiasField(Section):
    """Estimate and divide out the bias field: N4 (Tustison 2010, doi:10.1109/TMI.2010.2046908).

    Attributes:
        shrink: The field is estimated on a grid coarser by this factor, or by less where its voxels would be far above
            4 mm.
        iterations: Most iterations on each level, coarse to fine.
        knots_mm: Distance of the field's knots on the coarsest level; each further level halves it.
    """

    shrink: Annotated[int, Field(ge=1, le=8)] = 4
    iterations: tuple[Annotated[int, Field(ge=1, le=500)], ...] = (50, 50, 30)
    knots_mm: Positive = 200.0


class Brain(Section):
    """Keep the brain only: everything outside of its mask becomes 0.

    Attributes:
        mask: How the mask is made: `template` (that of MNI152 laid over the scan, refined by intensity; needs
            `registration`), `file` (a file beside each scan, or the cohort's column `mask_path`), `synthstrip` or
            `hd-bet` (programs that have to be installed), `nonzero` (the scan has no skull any more), or `auto`:
            `nonzero` where the scan has no skull, else `template`.
        file: Where `mask: file` finds the mask of a scan: a pattern with {folder} and {stem} of the scan's path, such
            as "{folder}/{stem}_mask.nii.gz".
        margin_mm: The mask is grown by this much, or shrunk where negative.
    """

    mask: Literal["auto", "template", "file", "synthstrip", "hd-bet", "nonzero"] = "template"
    file: str = ""
    margin_mm: Annotated[float, Field(ge=-20, le=20)] = 0.0


class Vessels(Section):
    """Enhance bright vessels of an angiography, and cut them out by their shape at several radii (Sato 1998).

    Attributes:
        radii_mm: Radii that are looked for; what is thinner than a voxel is seen at the voxel's scale.
        output: `vesselness` (0 to 1), `binary` (a mask of vessels) or `enhanced` (intensity × vesselness).
        share: For `binary`: the share of the head's volume that the brightest vessels take. null: thresholds found
            from each scan's own tissue and lumina.
    """

    radii_mm: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=12)] = (0.5, 1.0, 1.5, 2.0)
    output: Literal["vesselness", "binary", "enhanced"] = "binary"
    share: Annotated[float, Field(gt=0, lt=0.5)] | None = None
