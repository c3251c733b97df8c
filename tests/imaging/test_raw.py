from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from neuroage.cohort import Cohort, Scan
from neuroage.errors import DataError, NeuroageError
from neuroage.imaging.prepare import prepare, prepare_file
from neuroage.imaging.read import Volume
from neuroage.imaging.registration.mni152 import MIDDLE_MM
from neuroage.imaging.registration.result import Registration
from neuroage.imaging.registration.transform import place
from neuroage.imaging.steps.companions import Companions, companions_of
from neuroage.imaging.store import Store
from neuroage.runs.recipe import Prepare, Recipe

SIZE = (20, 24, 20)


def recipe(**raw: object) -> Prepare:
    return Recipe.from_dict(
        {"prepare": {"spacing_mm": 4.0, "size": list(SIZE), "intensity": "none", "clip_percentiles": None, **raw}}
    ).prepare


def pose(degrees: float, shift_mm: tuple[float, float, float] = (7.0, -5.0, 3.0), scale: float = 1.0) -> np.ndarray:
    angle = np.radians(degrees)
    matrix = np.eye(4)
    matrix[:3, :3] = scale * np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    matrix[:3, 3] = shift_mm
    return matrix


def head(matrix: np.ndarray, spacing_mm: float = 2.0, n: int = 60) -> Volume:
    """A smooth head about the template's middle, seen by a scanner in which `matrix` (template → scanner) puts it."""
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = matrix[:3, :3] @ MIDDLE_MM + matrix[:3, 3] - spacing_mm * (n - 1) / 2
    index = np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), axis=-1)
    scanner = index @ affine[:3, :3].T + affine[:3, 3]
    at = (scanner - matrix[:3, 3]) @ np.linalg.inv(matrix[:3, :3]).T - MIDDLE_MM
    shape = np.exp(-((at / [28, 36, 30]) ** 2).sum(axis=-1)) * (1 + 0.4 * np.sin(at[..., 0] / 9) * (at[..., 1] > 0))
    return Volume((100 * shape).astype(np.float32)[None], affine)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Registrations whose results are set by the test: the search itself has tests of its own."""
    answers: dict[str, object] = {"n": 0, "mni152": np.eye(4), "within": np.eye(4), "settled": np.eye(4), "problem": ""}

    def register_to_template(volume: Volume, template: object = None, *, kind: str = "affine") -> Registration:
        answers["n"] += 1  # type: ignore[operator]
        matrix = answers["mni152"]
        matrix = matrix(volume) if callable(matrix) else matrix
        return Registration(np.asarray(matrix), {"similarity": 0.5}, str(answers["problem"]), 0.1)

    def register_within(moving: Volume, fixed: Volume) -> Registration:
        return Registration(np.asarray(answers["within"]), {"similarity": 0.4}, "", 0.1)

    def align(fixed: Volume, moving: Volume, **how: object) -> tuple[np.ndarray, dict[str, float]]:
        return np.asarray(answers["settled"]), {}

    monkeypatch.setattr("neuroage.imaging.registration.align.align", align)
    monkeypatch.setattr("neuroage.imaging.registration.register.register_to_template", register_to_template)
    monkeypatch.setattr("neuroage.imaging.registration.within.register_within", register_within)
    return answers


def test_a_registered_scan_lies_on_the_templates_axes_about_its_middle(known: dict[str, object]) -> None:
    known["mni152"] = pose(30, scale=1.1)
    prepared = prepare(head(pose(30, scale=1.1)), recipe(registration={}))
    np.testing.assert_allclose(prepared.affine[:3, :3], 4 * np.eye(3), atol=1e-9)
    np.testing.assert_allclose(prepared.affine[:3, :3] @ ((np.array(SIZE) - 1) / 2) + prepared.affine[:3, 3], MIDDLE_MM)
    assert prepared.record["centred_on"] == "template"
    assert prepared.record["steps"][0]["quality"] == {"similarity": 0.5}
    np.testing.assert_allclose(prepared.transforms["mni152"], pose(30, scale=1.1))


def test_heads_in_any_pose_look_alike_once_registered(known: dict[str, object]) -> None:
    known["mni152"] = pose(0, (0, 0, 0))
    straight = prepare(head(pose(0, (0, 0, 0))), recipe(registration={})).data
    for moved in (pose(40), pose(-25, scale=0.9), pose(80, (20, 30, -15), 1.1)):
        known["mni152"] = moved
        seen = prepare(head(moved), recipe(registration={})).data
        assert np.corrcoef(seen.ravel(), straight.ravel())[0, 1] > 0.999
        assert np.abs(seen - straight).max() < 3


def test_a_slab_goes_through_its_reference_with_one_interpolation(known: dict[str, object], tmp_path: Path) -> None:
    to_reference, to_mni = pose(12, (4, 2, -3)), pose(-20, (-6, 8, 2), 1.05)
    slab, reference = head(to_reference @ to_mni), head(to_mni)
    nib.save(nib.Nifti1Image(reference.data[0], reference.affine), tmp_path / "t1.nii.gz")
    known["mni152"], known["within"] = to_mni, to_reference
    wanted = recipe(registration={"reference": "t1"})
    prepared = prepare(slab, wanted, companions=Companions(reference=tmp_path / "t1.nii.gz"))
    known["mni152"] = to_reference @ to_mni
    direct = prepare(slab, recipe(registration={}))
    np.testing.assert_allclose(prepared.data, direct.data, atol=1e-3)  # composed, not resampled twice
    assert set(prepared.transforms) == {"t1", "mni152"}
    with pytest.raises(DataError, match="t1 scan of the same session"):
        prepare(slab, wanted)


def test_a_scan_can_end_in_its_references_space(known: dict[str, object], tmp_path: Path) -> None:
    to_reference = pose(15)
    reference = head(pose(35, (0, 0, 0)))
    nib.save(nib.Nifti1Image(reference.data[0], reference.affine), tmp_path / "t1.nii.gz")
    known["within"] = to_reference
    moved = place(head(pose(35, (0, 0, 0))), np.linalg.inv(to_reference))  # the same head, scanned elsewhere
    wanted = recipe(registration={"to": "reference", "reference": "t1"})
    seen = prepare(moved, wanted, companions=Companions(reference=tmp_path / "t1.nii.gz"))
    there = prepare(reference, recipe())
    assert np.corrcoef(seen.data.ravel(), there.data.ravel())[0, 1] > 0.99
    assert known["n"] == 0  # nothing was sought in MNI152


def test_a_template_of_ones_own_is_reached_through_mni152(known: dict[str, object], tmp_path: Path) -> None:
    template_pose, scan_pose = pose(50, (40, 0, 0), 0.9), pose(-30)
    template, scan = head(template_pose), head(scan_pose)
    nib.save(nib.Nifti1Image(template.data[0], template.affine), tmp_path / "own.nii.gz")
    known["mni152"] = lambda volume: template_pose if np.allclose(volume.affine, template.affine) else scan_pose
    wanted = recipe(registration={"to": str(tmp_path / "own.nii.gz")})
    seen = prepare(scan, wanted).data
    own = prepare(template, recipe(centre="image")).data
    assert np.corrcoef(seen.ravel(), own.ravel())[0, 1] > 0.999


def test_a_scan_settles_on_a_template_of_ones_own(known: dict[str, object], tmp_path: Path) -> None:
    template, off = head(np.eye(4)), pose(8, (3, -2, 4), 1.03)
    nib.save(nib.Nifti1Image(template.data[0], template.affine), tmp_path / "own.nii.gz")
    known["mni152"] = lambda volume: off if volume.shape == (50, 50, 50) else np.eye(4)
    known["settled"] = np.linalg.inv(off)  # the way through MNI152 was off by this
    seen = prepare(head(np.eye(4), n=50), recipe(registration={"to": str(tmp_path / "own.nii.gz")}))
    own = prepare(template, recipe(centre="image"))
    assert np.corrcoef(seen.data.ravel(), own.data.ravel())[0, 1] > 0.999
    np.testing.assert_allclose(seen.transforms["template"], np.eye(4), atol=1e-9)


def test_the_mask_and_the_axes_of_las_agree(known: dict[str, object]) -> None:
    scan = head(np.eye(4))
    scan = replace(scan, data=np.where(scan.data > 20, scan.data, 0))
    for orientation in ("RAS", "LAS"):
        prepared = prepare(scan, recipe(registration={}, brain={"mask": "nonzero"}, orientation=orientation))
        assert prepared.mask is not None and prepared.mask.shape == SIZE
        assert ((prepared.data[0] > 10) == prepared.mask).mean() > 0.98
    assert [step["name"] for step in prepared.record["steps"]] == ["registration", "brain"]


def test_a_failed_registration_is_told_and_kept_only_where_asked_for(known: dict[str, object]) -> None:
    known["problem"] = "upside down"
    refused = prepare(head(np.eye(4)), recipe(registration={}))
    kept = prepare(head(np.eye(4)), recipe(registration={"on_failure": "keep"}))
    assert "upside down" in refused.problem and kept.problem == ""
    assert "upside down" in kept.record["problem"]


def test_a_transform_that_was_found_is_not_sought_again(known: dict[str, object], tmp_path: Path) -> None:
    scan = head(pose(10))
    nib.save(nib.Nifti1Image(scan.data[0], scan.affine), tmp_path / "scan.nii.gz")
    known["mni152"] = pose(10)
    beside = Companions(found=tmp_path / "found")
    first = prepare_file(tmp_path / "scan.nii.gz", recipe(registration={}), beside)
    again = prepare_file(tmp_path / "scan.nii.gz", recipe(registration={}, bias_field={}), beside)
    assert known["n"] == 1
    np.testing.assert_array_equal(first.transforms["mni152"], again.transforms["mni152"])
    prepare_file(tmp_path / "scan.nii.gz", recipe(registration={"kind": "rigid"}), beside)
    assert known["n"] == 2


def test_what_a_scan_was_prepared_with_is_part_of_its_place_in_the_store(tmp_path: Path) -> None:
    for name in ("tof", "t1", "other"):
        nib.save(nib.Nifti1Image(head(np.eye(4)).data[0], np.eye(4)), tmp_path / f"{name}.nii.gz")
    store, wanted = Store(tmp_path / "store"), recipe(registration={"reference": "t1"})
    places = {
        store.place(tmp_path / "tof.nii.gz", wanted, Companions(reference=reference))
        for reference in (None, tmp_path / "t1.nii.gz", tmp_path / "other.nii.gz")
    }
    assert len(places) == 3


def test_companions_come_from_the_cohort_and_missing_ones_are_named(tmp_path: Path) -> None:
    rows = [("a_t1", "a", "t1"), ("a_tof", "a", "tof"), ("b_tof", "b", "tof")]
    table = [
        {"scan_id": scan, "subject_id": who, "modality": kind, "path": str(tmp_path / f"{scan}.nii.gz")}
        for scan, who, kind in rows
    ]
    for row in table:
        Path(row["path"]).write_bytes(b"")
    import pandas as pd

    chosen = Recipe.from_dict({"modality": "tof", "prepare": {"registration": {"reference": "t1"}}})
    mine, lone = chosen.select(Cohort(pd.DataFrame(table))).scans()
    assert companions_of(mine, chosen.prepare).reference == tmp_path / "a_t1.nii.gz"
    with pytest.raises(DataError, match="b_tof: the recipe needs a t1 scan of the same session"):
        companions_of(lone, chosen.prepare)
    masked = recipe(brain={"mask": "file", "file": "{folder}/{stem}_mask.nii.gz"})
    scan = Scan("a_t1", "a", path=tmp_path / "a_t1.nii.gz")
    with pytest.raises(NeuroageError, match="has no mask at"):
        companions_of(scan, masked)
    (tmp_path / "a_t1_mask.nii.gz").write_bytes(b"")
    assert companions_of(scan, masked).mask == tmp_path / "a_t1_mask.nii.gz"
