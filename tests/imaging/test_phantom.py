"""The phantom cohort: what it writes, what repeats, and what must not tell age."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from isal import igzip

from neuroage.errors import UsageError
from neuroage.imaging.phantom import make_phantom, phantom_subject
from neuroage.imaging.phantom_scanner import ORIENTATIONS

N_SUBJECTS = 4


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "cohort"
    calls: list[tuple[int, int]] = []
    make_phantom(folder, n_subjects=N_SUBJECTS, seed=3, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(k + 1, N_SUBJECTS) for k in range(N_SUBJECTS)]
    return folder


def digests(folder: Path, subject_id: str) -> dict[str, str]:
    files = sorted((folder / subject_id).rglob("*.*"))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_the_folder_is_a_bids_data_set_that_says_it_is_synthetic(cohort: Path) -> None:
    description = json.loads((cohort / "dataset_description.json").read_text(encoding="utf-8"))
    assert description["BIDSVersion"] and description["DatasetType"] == "raw" and "ynthetic" in description["Name"]
    people = list(csv.DictReader((cohort / "participants.tsv").open(), delimiter="\t"))
    assert [person["participant_id"] for person in people] == [f"sub-{k:04d}" for k in range(1, N_SUBJECTS + 1)]
    assert set(people[0]) == {"participant_id", "age", "sex", "site"}
    assert set(json.loads((cohort / "participants.json").read_text(encoding="utf-8"))) == {"age", "sex", "site"}
    for person in people:
        assert 20 <= float(person["age"]) <= 80 and len(person["age"].split(".")[1]) == 1
        anat = cohort / person["participant_id"] / "anat"
        names = {f"{person['participant_id']}_{ending}" for ending in ("T1w", "acq-tof_angio")}
        assert {file.name for file in anat.iterdir()} == {n + e for n in names for e in (".nii.gz", ".json")}


def test_every_scan_opens_with_its_geometry_and_int16_voxels(cohort: Path) -> None:
    files = sorted(cohort.rglob("*.nii.gz"))
    assert len(files) == 2 * N_SUBJECTS
    for file in files:
        image = nib.load(file)
        assert image.get_data_dtype() == np.int16 and image.ndim == 3
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-3)
        data = np.asanyarray(image.dataobj)
        assert data.min() >= 0 and data.std() > 10
        assert 1.0 < min(image.header.get_zooms()) < max(image.header.get_zooms()) < 2.5


def test_nothing_in_a_sidecar_or_header_tells_age(cohort: Path) -> None:
    sidecars = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(cohort.rglob("anat/*T1w.json"))]
    assert len({json.dumps({**s, "InstitutionName": ""}) for s in sidecars}) == 1


def test_a_subject_is_the_same_whatever_the_number_of_subjects_and_processes(cohort: Path, tmp_path: Path) -> None:
    make_phantom(tmp_path, n_subjects=2, seed=3, processes=2)
    for subject_id in ("sub-0001", "sub-0002"):
        assert len(digests(cohort, subject_id)) == 4
        assert digests(tmp_path, subject_id) == digests(cohort, subject_id)
    truths = [
        json.loads((folder / "phantom.json").read_text(encoding="utf-8"))["subjects"][:2]
        for folder in (cohort, tmp_path)
    ]
    assert truths[0] == truths[1]


def test_another_seed_gives_other_people() -> None:
    one, other = (phantom_subject(seed=seed, modalities=("t1",)) for seed in (0, 1))
    assert one.age != other.age
    assert one.scans["t1"].apparent_age != other.scans["t1"].apparent_age


def test_phantom_json_states_effects_ceilings_and_truth(cohort: Path) -> None:
    facts = json.loads((cohort / "phantom.json").read_text(encoding="utf-8"))
    assert {effect["name"] for effect in facts["age_effects"]} >= {
        "ventricle_scale",
        "sulcal_half_width_mm",
        "cortical_thickness_mm",
        "lesion_load",
        "calibre_scale",
        "tortuosity_mm",
        "branch_share",
    }
    ceiling = facts["noise_ceiling_years"]
    assert 0 < ceiling["t1"] < ceiling["tof"] < facts["mean_baseline_years"] / 2
    errors = [abs(truth["t1"]["best_guess"] - truth["age"]) for truth in facts["subjects"]]
    assert np.mean(errors) == pytest.approx(facts["noise_ceiling_of_these_subjects_years"]["t1"])


def test_stored_orientations_differ_between_scans(cohort: Path) -> None:
    codes = {"".join(nib.aff2axcodes(nib.load(file).affine)) for file in cohort.rglob("*.nii.gz")}
    assert len(codes) >= 3 and codes <= set(ORIENTATIONS)


def test_age_changes_the_picture_but_not_how_it_is_taken() -> None:
    young, old = (phantom_subject(age, seed=5, index=1) for age in (25.0, 75.0))
    assert (young.sex, young.site) == (old.sex, old.site)
    for modality in ("t1", "tof"):
        a, b = young.scans[modality], old.scans[modality]
        np.testing.assert_array_equal(a.affine, b.affine)
        assert a.data.shape == b.data.shape and (a.data != b.data).mean() > 0.01


def test_head_size_mean_intensity_and_file_size_together_hardly_tell_age() -> None:
    # With uniform ages and a straight-line effect the ridge error is about sqrt(1 - R²) of the baseline's:
    # 90% of it is R² = 0.19.
    for modality in ("t1", "tof"):
        statistics = np.array([[crude_statistics(age, index, modality) for age in (20.0, 80.0)] for index in range(5)])
        shift = (statistics[:, 1] - statistics[:, 0]).mean(axis=0)
        people = statistics.mean(axis=1)
        spread = np.cov(people.T) + 1e-9 * np.eye(3)
        signal = shift @ np.linalg.solve(spread, shift) / 12
        assert signal / (1 + signal) < 0.19, modality


def crude_statistics(age: float, index: int, modality: str) -> list[float]:
    scan = phantom_subject(age, seed=8, index=index, modalities=(modality,)).scans[modality]
    data = scan.data
    head = data[data > data.mean() / 2].size * abs(np.linalg.det(scan.affine[:3, :3]))
    return [float(np.log(value)) for value in (head, data.mean(), len(igzip.compress(data.tobytes(), 1)))]


def test_a_noise_free_t1_shows_csf_grey_and_white_as_separate_peaks() -> None:
    data = phantom_subject(50.0, noise_free=True, modalities=("t1",)).scans["t1"].data
    counts, edges = np.histogram(data[data > 40], bins=40, range=(40, 440))
    middles = (edges[1:] + edges[:-1]) / 2
    inner = counts[1:-1]
    peaks = middles[1:-1][(inner > counts[:-2]) & (inner >= counts[2:]) & (inner > 0.004 * data.size)]
    csf, grey, white = 80, 224, 336  # 400 counts times the intensities of the tissues
    assert all(np.abs(peaks - tissue).min() < 16 for tissue in (csf, grey, white)), peaks


@pytest.mark.parametrize("wrong", [{"n_subjects": 0}, {"age_range": (60.0, 60.0)}, {"age_range": (-5.0, 60.0)}])
def test_impossible_cohorts_are_refused_before_anything_is_written(wrong: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        make_phantom(tmp_path / "none", **wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "none").exists()
