"""From a raw head to one that lies in a template's space, with an even field, and with its brain alone.

    registration (searched, not applied) → brain mask → N4 within it → mask again, skull off → vessels

Each step is asked for in the recipe. Voxels stay on the scan's own grid: registration changes the affine alone, so that
whatever follows interpolates once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from neuroage.errors import DataError
from neuroage.files import digest_text, write_json
from neuroage.imaging.read import Volume, read
from neuroage.imaging.registration.mni152 import MIDDLE_MM
from neuroage.imaging.registration.result import Registration
from neuroage.imaging.registration.transform import place
from neuroage.imaging.resampling import Grid, carry_mask, head_centre
from neuroage.imaging.steps.companions import Companions, identity
from neuroage.runs.recipe import Prepare
from neuroage.runs.recipe_raw import Brain

SETTLED_MM = 4.0  # a mean of many brains shows nothing finer
# Raised, with `prepare.STEPS_VERSION`, whenever a registration gives another matrix, so that it is sought anew.
REGISTRATION_VERSION = 2


@dataclass(frozen=True)
class Frame:
    """Where prepared volumes lie: axes as columns, shape (3, 3), and the middle of the field of view in millimetres."""

    axes: np.ndarray
    centre_mm: np.ndarray


@dataclass(frozen=True)
class Readied:
    """A raw scan made ready.

    Attributes:
        volume: On its own grid, placed in the space of the template where it was registered.
        frame: Of that space; None where the scan was not registered.
        mask: True in the brain, shape (I, J, K); None where none was asked for.
        transforms: Name of a space (`mni152`, `template`, `reference`, a modality) → matrix, its millimetres to the
            scan's.
        steps: What was done, in order, JSON-ready.
        problems: What speaks against the result, in words.
        keeps: Whether it shall be used all the same.
        template: A template of one's own, which it was brought near to; see `settle`.
    """

    volume: Volume
    frame: Frame | None = None
    mask: np.ndarray | None = None
    transforms: dict[str, np.ndarray] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    problems: tuple[str, ...] = ()
    keeps: bool = False
    template: Volume | None = None

    @property
    def problem(self) -> str:
        """Why the result should not be used; "" where nothing is known, or where it shall be used all the same."""
        return "" if self.keeps else "; ".join(self.problems)

    @property
    def record(self) -> dict[str, Any]:
        """What was done and measured, for the preparation's record; empty where nothing was asked for."""
        if not self.steps:
            return {}
        return {"steps": self.steps, "problem": "; ".join(self.problems)}


def make_ready(
    volume: Volume, recipe: Prepare, path: Path | None = None, companions: Companions | None = None
) -> Readied:
    """Do what the recipe asks for, in the order above.

    Args:
        volume: As `read` gives it.
        recipe: The `prepare` section.
        path: The scan's file; external masks and kept transforms are found by it.
        companions: Files beside the scan.

    Raises:
        DataError: A reference, mask or template is missing or does not fit.
        UsageError: A package or program that a step needs is not installed.
    """
    job = _Job(volume, recipe, path, companions or Companions())
    for step in (job.register, job.find_brain, job.correct, job.strip, job.enhance):
        step()
    return job.readied()


def settle(ready: Readied, prepared: Volume, kind: str) -> Readied:
    """Register a scan to a template of one's own once more, directly, now that it looks as the template does.

    The mean of many brains is blurred, and is found in MNI152 at another size than each of them: by 2.5% for OASIS-1,
    which comes to three years. Prepared scans settle on their own mean within 0.3% and 0.2 mm.

    Args:
        ready: Brought near to the template through MNI152.
        prepared: The same scan, prepared like the template, in its space.
        kind: "affine" or "rigid".
    """
    from neuroage.imaging.registration.align import align

    assert ready.template is not None
    began = time.perf_counter()
    matrix, quality = align(ready.template, prepared, kind=kind, spacings_mm=(SETTLED_MM,))
    seconds = round(time.perf_counter() - began, 2)
    step = {"name": "registration", "to": "template", "kind": kind, "quality": quality, "seconds": seconds}
    return replace(
        ready,
        volume=place(ready.volume, matrix),
        transforms={**ready.transforms, "template": ready.transforms["template"] @ matrix},
        steps=[*ready.steps, step],
    )


class _Job:
    """One scan on its way through the steps."""

    def __init__(self, volume: Volume, recipe: Prepare, path: Path | None, companions: Companions) -> None:
        self.volume, self.recipe, self.path, self.companions = volume, recipe, path, companions
        self.frame: Frame | None = None
        self.mask: np.ndarray | None = None
        self.of_mask: dict[str, Any] = {}
        self.to_space: np.ndarray | None = None  # millimetres of the space where it ends → the scan's
        self.reference: Volume | None = None
        self.affine_to_mni: Registration | None = None  # of the reference where there is one, else of the scan
        self.to_reference: Registration | None = None
        self.own_template: Volume | None = None
        self.transforms: dict[str, np.ndarray] = {}
        self.steps: list[dict[str, Any]] = []
        self.problems: list[str] = []

    def register(self) -> None:
        wanted = self.recipe.registration
        if wanted is None:
            return
        if wanted.reference:
            self._register_through(wanted.reference)
        anchor = self.reference or self.volume
        self.frame = Frame(np.eye(3), MIDDLE_MM)
        if wanted.to == "reference":
            self.to_space = np.eye(4)
            self.frame = Frame(anchor.affine[:3, :3] / np.asarray(anchor.spacing_mm), _head_centre(anchor, self.recipe))
        else:
            anchor_path = self.companions.reference if self.reference else self.path
            found = self._registered(anchor, anchor_path, wanted.kind)
            self._note("registration", found, to="mni152", kind=wanted.kind)
            self.affine_to_mni = found if wanted.kind == "affine" else None
            self.to_space = found.matrix
            if wanted.to != "mni152":
                self._go_on_to(Path(wanted.to), wanted.kind)
        if self.to_reference is not None:
            self.to_space = self.to_reference.matrix @ self.to_space

    def _register_through(self, modality: str) -> None:
        from neuroage.imaging.registration.within import register_within

        if self.companions.reference is None:
            raise DataError(f"the recipe registers through a {modality} scan of the same session, and none is given")
        reference = read(self.companions.reference, nonfinite=self.recipe.nonfinite)
        key = ("within", self.path, self.companions.reference)
        self.reference, self.to_reference = reference, self._kept(key, lambda: register_within(self.volume, reference))
        self.transforms[modality] = self.to_reference.matrix
        self._note("registration", self.to_reference, to=modality, kind="rigid")

    def _registered(self, volume: Volume, path: Path | None, kind: str) -> Registration:
        from neuroage.imaging.registration.register import register_to_template

        return self._kept(("mni152", kind, path), lambda: register_to_template(volume, kind=kind))

    def _go_on_to(self, template: Path, kind: str) -> None:
        """Compose the way to a template of one's own, which lies in MNI152 like any other head."""
        own = read(template)
        found = self._registered(own, template, kind)
        if found.problem:
            raise DataError(f"{template}: {found.problem}", expected="a template of the human head or brain")
        self.to_space = self.to_space @ np.linalg.inv(found.matrix)
        self.frame = Frame(own.affine[:3, :3] / np.asarray(own.spacing_mm), _middle(own))
        self.own_template = own

    def _kept(self, key: tuple[str | Path | None, ...], search: Callable[[], Registration]) -> Registration:
        """Give a registration that was found before, else find it and keep it."""
        if self.companions.found is None or None in key:
            return search()
        words = [identity(part) if isinstance(part, Path) else str(part) for part in key]
        name = digest_text("|".join(words))[:32]
        file = self.companions.found / f"v{REGISTRATION_VERSION}" / name[:2] / f"{name}.json"
        if file.exists():
            about = json.loads(file.read_text(encoding="utf-8"))
            return Registration(**{**about, "matrix": np.asarray(about["matrix"])})
        found = search()
        write_json(file, {**asdict(found), "matrix": found.matrix.tolist()})
        return found

    def _note(self, name: str, found: Registration, **parameters: Any) -> None:
        self.steps.append({"name": name, **parameters, "quality": found.quality, "seconds": round(found.seconds, 2)})
        if found.problem:
            self.problems.append(f"registration to {parameters['to']}: {found.problem}")

    def find_brain(self) -> None:
        wanted = self.recipe.brain
        if wanted is None:
            return
        self.mask = self._brain_of(wanted)

    def _brain_of(self, wanted: Brain) -> np.ndarray:
        """Find the mask on the scan that shows the brain best: the reference where there is one."""
        from neuroage.imaging.steps.brain import brain_mask, is_stripped

        shows = self.volume if self.reference is None or wanted.mask == "file" else self.reference
        if wanted.mask == "auto":
            wanted = wanted.model_copy(update={"mask": "nonzero" if is_stripped(shows) else "template"})
        registration = self._registration_of_mask() if wanted.mask == "template" else None
        found = brain_mask(shows, wanted, registration=registration, mask_file=self.companions.mask)
        self.of_mask = found.record
        if shows is self.volume or self.to_reference is None:
            return found.mask
        onto = Grid(self.volume.shape, np.linalg.solve(self.to_reference.matrix, self.volume.affine))
        return carry_mask(found.mask, shows.affine, onto)

    def _registration_of_mask(self) -> Registration:
        """Give the affine way to MNI152, which the template's mask needs wherever the scan ends."""
        if self.affine_to_mni is None:
            path = self.path if self.reference is None else self.companions.reference
            self.affine_to_mni = self._registered(self.reference or self.volume, path, "affine")
            self._note("registration", self.affine_to_mni, to="mni152", kind="affine")
        return self.affine_to_mni

    def correct(self) -> None:
        wanted = self.recipe.bias_field
        if wanted is None:
            return
        from neuroage.imaging.steps.bias import correct_bias

        self.volume, record = correct_bias(
            self.volume, self.mask, shrink=wanted.shrink, iterations=wanted.iterations, knots_mm=wanted.knots_mm
        )
        self.steps.append({"name": "bias_field", **record})

    def strip(self) -> None:
        """Cut the brain out; where its border was found by intensity, find it again now that the field is even."""
        wanted = self.recipe.brain
        if wanted is None or self.mask is None:
            return
        if self.recipe.bias_field is not None and self.reference is None and wanted.mask in ("auto", "template"):
            self.mask = self._brain_of(wanted)
        self.steps.append({"name": "brain", **self.of_mask})
        if self.of_mask.get("problem"):
            self.problems.append(f"brain mask: {self.of_mask['problem']}")
        self.volume = replace(self.volume, data=np.where(self.mask, self.volume.data[0], np.float32(0))[None])

    def enhance(self) -> None:
        wanted = self.recipe.vessels
        if wanted is None:
            return
        from neuroage.imaging.steps.vessels import vessels_of

        self.volume, record = vessels_of(self.volume, wanted, self.mask)
        self.steps.append({"name": "vessels", **record})

    def readied(self) -> Readied:
        volume = self.volume
        if self.recipe.registration is not None and self.to_space is not None:
            end = self.recipe.registration.to
            self.transforms[end if end in ("mni152", "reference") else "template"] = self.to_space
            volume = place(volume, self.to_space)
        keeps = self.recipe.registration is not None and self.recipe.registration.on_failure == "keep"
        return Readied(
            volume, self.frame, self.mask, self.transforms, self.steps, tuple(self.problems), keeps, self.own_template
        )


def _middle(volume: Volume) -> np.ndarray:
    return np.asarray(volume.affine[:3, :3] @ ((np.asarray(volume.shape) - 1) / 2) + volume.affine[:3, 3])


def _head_centre(volume: Volume, recipe: Prepare) -> np.ndarray:
    index = head_centre(volume.data[0], volume.spacing_mm, np.asarray(recipe.size) * recipe.spacing)
    return np.asarray(volume.affine[:3, :3] @ index + volume.affine[:3, 3])
