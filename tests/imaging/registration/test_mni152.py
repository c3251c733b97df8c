"""The MNI152 template: where it lies, what it holds, and how its coarser forms relate to it."""

from __future__ import annotations

import importlib.util

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from neuroage.errors import UsageError
from neuroage.imaging.registration import mni152
from neuroage.imaging.registration.mni152 import Template, load_mni152

pytest.importorskip("nilearn", reason="brings the template")


@pytest.fixture(scope="module")
def fine() -> Template:
    return load_mni152(1)


def voxel_of(template: Template, place_mm: tuple[float, float, float]) -> tuple[int, ...]:
    return tuple(np.rint(np.linalg.solve(template.volume.affine, [*place_mm, 1.0])[:3]).astype(int))


def test_it_is_ras_with_cubic_voxels_of_the_spacing_asked_for() -> None:
    for spacing_mm in (1, 2, 4):
        template = load_mni152(spacing_mm)
        assert nib.orientations.aff2axcodes(template.volume.affine) == ("R", "A", "S")
        assert np.allclose(template.volume.spacing_mm, spacing_mm)
        assert template.brain.shape == template.volume.shape == template.tissue.shape[1:]


def test_known_places_hold_the_tissue_that_they_should(fine: Template) -> None:
    grey, white = fine.tissue
    assert white[voxel_of(fine, (26, -20, 28))] > 0.8  # corona radiata
    assert grey[voxel_of(fine, (26, 4, -2))] > 0.5  # putamen
    assert fine.brain[voxel_of(fine, (8, 62, 0))] and not fine.brain[voxel_of(fine, (0, 80, 0))]  # frontal pole
    assert fine.brain[voxel_of(fine, (-10, -95, 0))] and not fine.brain[voxel_of(fine, (0, -110, 0))]  # occipital pole
    assert fine.brain[voxel_of(fine, (20, -60, -45))] and not fine.brain[voxel_of(fine, (0, 60, -45))]  # cerebellum


def test_the_brain_is_one_piece_of_a_large_brains_volume(fine: Template) -> None:
    litres = fine.brain.sum() / 1e6
    assert 1.6 < litres < 2.1  # MNI152 is larger than most brains
    assert ndimage.label(fine.brain)[1] == 1
    assert (fine.volume.data[0][~fine.brain] == 0).all()


def test_the_two_sides_mirror_each_other_about_x_0(fine: Template) -> None:
    assert np.linalg.solve(fine.volume.affine, [0, 0, 0, 1.0])[0] == (fine.volume.shape[0] - 1) / 2
    assert np.array_equal(np.flip(fine.volume.data[0], 0), fine.volume.data[0])


def test_coarser_forms_lie_at_the_same_place(fine: Template) -> None:
    def middle_mm(template: Template) -> np.ndarray:
        return template.volume.affine[:3] @ [*ndimage.center_of_mass(template.volume.data[0]), 1.0]

    for spacing_mm in (2, 4):
        assert np.allclose(middle_mm(load_mni152(spacing_mm)), middle_mm(fine), atol=0.05)


def test_tissue_shares_are_shares(fine: Template) -> None:
    for template in (fine, load_mni152(4)):
        assert template.tissue.min() >= 0 and template.tissue.sum(axis=0).max() <= 1.02


def test_without_nilearn_the_install_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="not installed") as caught:
        mni152._folder()
    assert "neuroage[raw]" in str(caught.value.fix)
