"""DICOM folders become cohorts: the right series of each visit, with the reason, and nothing that names a person."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_cases import AXIAL, MPRAGE, PLANTED, SAGITTAL, person, save_enhanced, save_series, save_slice, voxels
from typer.testing import CliRunner

from neuroage.cli.main import app
from neuroage.cohort import Cohort
from neuroage.cohort.dicom_contrast import guess_contrast
from neuroage.cohort.dicom_header import read_headers
from neuroage.cohort.dicom_volumes import group_volumes
from neuroage.errors import DataError
from neuroage.imaging.read import read
from neuroage.imaging.steps.companions import identity
from neuroage.training.inputs import gather_scans

CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
T2 = {"SeriesDescription": "t2_tse_tra", "ScanningSequence": "SE", "SequenceVariant": "SK", "MRAcquisitionType": "2D",
      "RepetitionTime": 5000, "EchoTime": 95, "InversionTime": None}  # fmt: skip
TOF = {"SeriesDescription": "TOF_3D_multi-slab", "ScanningSequence": "GR", "SequenceVariant": "SP", "AngioFlag": "Y",
       "RepetitionTime": 22, "EchoTime": 3.7, "InversionTime": None}  # fmt: skip


def index(folder: Path) -> Cohort:
    return Cohort.read(folder, layout="dicom")


def save_visit(folder: Path, uid: str, **facts: Any) -> None:
    """One visit in one flat folder: a localizer, two T1 series, a TOF with its projection and its phase image."""
    v = uid[-1]
    for k, plane in enumerate((AXIAL, SAGITTAL, CORONAL)):
        about = {**MPRAGE, **facts, "SeriesDescription": "localizer", "ImageOrientationPatient": list(plane)}
        save_slice(folder / f"{v}loc{k}", f"{uid}.1", (0, 0, 0), voxels()[k], SeriesNumber=1, **about)
    save_series(folder, f"{uid}.2", prefix=f"{v}a", **{**facts, "MRAcquisitionType": "2D"}, SeriesNumber=2)
    save_series(folder, f"{uid}.3", prefix=f"{v}b", **facts, SeriesNumber=3)
    save_series(folder, f"{uid}.4", prefix=f"{v}c", **{**TOF, **facts}, SeriesNumber=4)
    mip, phase = ["DERIVED", "SECONDARY", "MIP"], ["ORIGINAL", "PRIMARY", "P"]
    save_series(folder, f"{uid}.5", prefix=f"{v}d", **{**TOF, **facts}, SeriesNumber=5, ImageType=mip)
    save_series(folder, f"{uid}.6", prefix=f"{v}e", **{**TOF, **facts}, SeriesNumber=6, ImageType=phase)


def test_the_right_series_of_a_mixed_folder_is_chosen_and_every_other_is_given_its_reason(tmp_path: Path) -> None:
    save_visit(tmp_path, "1.2.5")
    (tmp_path / "DICOMDIR").write_bytes(b"index")
    cohort = index(tmp_path / "DICOMDIR")
    assert cohort.table["modality"].tolist() == ["t1", "tof"]
    assert cohort.table["reason"][0] == ("TR 2300 ms, TE 2.98 ms, TI 900 ms, 3-D, 6 slices of 1 mm; its name says T1")
    assert cohort.table["age"].tolist() == [58, 58] and cohort.table["sex"].tolist() == ["F", "F"]
    said = {str(problem).split(" series ")[1][0]: problem.action for problem in cohort.problems}
    assert said["1"] == "left aside: a localizer"
    assert said["2"].startswith("left aside: 2-D, and series 3") and said["2"].endswith("is 3-D")
    assert said["5"] == "left aside: a maximum projection, computed from another series"
    assert said["6"] == "left aside: a phase image"
    assert Cohort.read(tmp_path).digest == Cohort.read(tmp_path / "DICOMDIR").digest == cohort.digest


def test_a_cohort_read_again_from_its_table_gives_the_voxels_of_the_chosen_series(tmp_path: Path) -> None:
    t1, tof = voxels(6, 1), voxels(6, 2)
    save_series(tmp_path / "dicom" / "flat", "1.2.1", data=t1, prefix="a")
    save_series(tmp_path / "dicom" / "flat", "1.2.2", data=tof, prefix="b", **TOF)
    save_series(tmp_path / "dicom" / "alone", "1.2.3", data=voxels(6, 3), **T2)
    cohort = index(tmp_path / "dicom")
    cohort.to_csv(tmp_path / "cohort.csv")
    again = Cohort.read(tmp_path / "cohort.csv")
    assert again.problems == [] and again.digest == cohort.digest
    paths = dict(zip(again.table["modality"], map(Path, again.table["path"]), strict=True))
    assert paths["t2"] == tmp_path / "dicom" / "alone" and paths["t1"].is_file()
    for modality, data in (("t1", t1), ("tof", tof), ("t2", voxels(6, 3))):
        np.testing.assert_array_equal(read(paths[modality]).data[0], data.transpose(2, 1, 0)[::-1, ::-1])


def test_echoes_in_one_enhanced_file_are_named_by_number_and_survive_the_table(tmp_path: Path) -> None:
    facts = {"SeriesDescription": "pd+t2", "RepetitionTime": 3000.0, "InversionTime": 0.0, "EchoPulseSequence": "SPIN"}
    save_enhanced(tmp_path / "dicom" / "IM1", [voxels(6, 1), voxels(6, 2)], echoes=(12.0, 90.0), **facts)
    index(tmp_path / "dicom").to_csv(tmp_path / "cohort.csv")
    table = Cohort.read(tmp_path / "cohort.csv").table
    assert table["modality"].tolist() == ["pd", "t2"]
    for path, seed in zip(table["path"], (1, 2), strict=True):
        assert "#" in path
        assert read(path).data.sum() == voxels(6, seed).sum()


def test_a_series_with_a_gap_gives_way_to_the_next_best_and_the_slice_is_named(tmp_path: Path) -> None:
    save_series(tmp_path / "a", "1.2.1", data=voxels(8), skip=3, SeriesNumber=1)
    save_series(tmp_path / "b", "1.2.2", SeriesNumber=2)
    cohort = index(tmp_path)
    assert cohort.table["path"].tolist() == [str(tmp_path / "b")]
    assert any("slice 4 of 8 is missing" in str(p) and p.action == "left out" for p in cohort.problems)


def test_a_stored_scan_of_a_mixed_folder_is_known_by_its_file_and_volume(tmp_path: Path) -> None:
    path = save_enhanced(tmp_path / "IM1", [voxels(6, 1), voxels(6, 2)], echoes=(12.0, 90.0))
    first, second = (identity(path.with_name(f"IM1#{number}")) for number in (1, 2))
    assert first != second and first == identity(path.with_name("IM1#1"))
    cohort = gather_scans([f"{path}#2"], "t2")
    assert cohort.table["path"][0].endswith("IM1#2")


def test_a_series_spread_over_folders_is_left_out_with_what_to_do(tmp_path: Path) -> None:
    for k, path in enumerate(save_series(tmp_path)):
        (tmp_path / str(k % 2)).mkdir(exist_ok=True)
        path.rename(tmp_path / str(k % 2) / path.name)
    with pytest.raises(DataError, match="its slices lie in 2 folders"):
        index(tmp_path)


@pytest.mark.parametrize(
    ("facts", "years"),
    [
        ({"PatientAge": "041Y"}, 41),
        ({"PatientAge": "042"}, 42),
        ({"PatientAge": "42"}, 42),
        ({"PatientAge": "011M"}, 11 / 12),
        ({"PatientAge": "003W"}, 21 / 365.25),
        ({"PatientAge": "100D"}, 100 / 365.25),
        ({"PatientAge": ""}, 58.92),
        ({"PatientAge": None}, 58.92),
        ({"PatientAge": "000Y"}, 58.92),
        ({"PatientAge": "4 1"}, 58.92),
        ({"PatientAge": None, "PatientBirthDate": "20191105"}, 61 / 365.25),
        ({"PatientAge": None, "PatientBirthDate": ""}, None),
        ({"PatientAge": None, "PatientBirthDate": "18500101"}, None),
        ({"PatientAge": "000Y", "PatientBirthDate": None}, None),
    ],
)
def test_ages_are_read_as_people_write_them_else_computed(
    tmp_path: Path, facts: dict[str, Any], years: float | None
) -> None:
    save_series(tmp_path, **facts)
    age = index(tmp_path).table["age"][0]
    assert np.isnan(age) if years is None else age == pytest.approx(years, abs=0.006)


def test_an_age_that_its_dates_contradict_is_named_and_taken(tmp_path: Path) -> None:
    save_series(tmp_path, PatientAge="030Y")
    cohort = index(tmp_path)
    assert cohort.table["age"][0] == 30 and "its age (30) and its dates (59) disagree" in str(cohort.problems[0])


@pytest.mark.parametrize(("text", "sex"), [("M", "M"), ("F", "F"), ("O", ""), (None, "")])
def test_sexes_are_m_f_or_empty(tmp_path: Path, text: str | None, sex: str) -> None:
    save_series(tmp_path, PatientSex=text)
    assert index(tmp_path).table["sex"][0] == sex


def test_visits_of_one_person_stay_together_in_the_order_of_their_dates(tmp_path: Path) -> None:
    later = person("PID4711", "1.2.3.1", "20220301", PatientAge="060Y")
    save_series(tmp_path / "x", "1.2.1", **later)
    save_series(tmp_path / "y", "1.2.2", **person("PID4711", "1.2.3.2", "20200105"))
    save_series(tmp_path / "z", "1.2.3", **person("PID0815", "1.2.3.3", "20200105"))
    before = index(tmp_path).table
    assert before.groupby("subject_id")["session"].apply(list).tolist() in (
        [["ses-1", "ses-2"], ["ses-1"]],
        [["ses-1"], ["ses-1", "ses-2"]],
    )
    longitudinal = before[before["subject_id"].duplicated(keep=False)]
    assert longitudinal["age"].tolist() == [58, 60]
    save_series(tmp_path / "w", "1.2.4", **person("PID0001", "1.2.3.4", "20190101"))
    after = index(tmp_path).table
    assert set(before["scan_id"]) < set(after["scan_id"]), "who is added changes nobody else's name"


@pytest.mark.parametrize("identifier", ["", "Anonymous"])
def test_without_ids_each_top_folder_is_a_person_and_it_is_said(tmp_path: Path, identifier: str) -> None:
    for number, folder in enumerate(("a/1", "a/2", "b/1")):
        save_series(tmp_path / folder, f"1.2.{number}", **person(identifier, f"1.2.3.{number}", f"202{number}0101"))
    cohort = index(tmp_path)
    assert cohort.table["subject_id"].nunique() == 2 and len(cohort) == 3
    assert "3 of 3 studies have no patient id" in str(cohort.problems[0])


def test_ages_that_fit_no_one_person_are_named(tmp_path: Path) -> None:
    for number, age in enumerate(("030Y", "071Y")):
        about = person("PID4711", f"1.2.3.{number}", f"202{number}0101", PatientAge=age, PatientBirthDate=None)
        save_series(tmp_path / str(number), f"1.2.{number}", **{**about, "PatientSex": "FM"[number]})
    said = [str(problem) for problem in index(tmp_path).problems]
    assert any("both sexes and ages that do not fit its dates" in text for text in said)


@pytest.mark.parametrize(
    ("facts", "modality"),
    [
        ({"SeriesDescription": "Sag MPRAGE Plantedname"}, "t1"),
        ({"SeriesDescription": "t1_mprage_post_gd"}, "t1c"),
        ({"ContrastBolusAgent": "x"}, "t1c"),
        ({"SeriesDescription": "t1_mprage pre contrast", "ContrastBolusAgent": "NONE"}, "t1"),
        ({"SeriesDescription": "t1_fl3d FA 20"}, "t1"),
        ({"SeriesDescription": "T1 FLAIR"}, "t1"),
        ({"SeriesDescription": "AX T2 FLAIR"}, "flair"),
        ({"SeriesDescription": "t2_tirm_tra_dark-fluid"}, "flair"),
        ({"SeriesDescription": "t2_space_sag"}, "t2"),
        ({"SeriesDescription": "t2*_gre"}, "swi"),
        ({"SeriesDescription": "PD_tra"}, "pd"),
        ({"SeriesDescription": "TOF_3D"}, "tof"),
        ({"SeriesDescription": "MRA head"}, "tof"),
        ({"SeriesDescription": "ep2d_diff_b1000"}, "dwi"),
        ({"SeriesDescription": "fMRI rest"}, "bold"),
        ({"SeriesDescription": "AAHead_Scout"}, "localizer"),
        ({"SeriesDescription": "Plantedname"}, "t1"),
        ({**T2, "SeriesDescription": "series"}, "t2"),
        ({**T2, "SeriesDescription": "series", "EchoTime": 12}, "pd"),
        ({**T2, "SeriesDescription": "series", "RepetitionTime": 9000, "InversionTime": 2500}, "flair"),
        ({**T2, "SeriesDescription": "series", "RepetitionTime": 500, "EchoTime": 12}, "t1"),
        ({**T2, "SeriesDescription": "dual PD+T2", "EchoTime": 95}, "t2"),
        ({**TOF, "SeriesDescription": "series"}, "tof"),
        ({**TOF, "SeriesDescription": "series", "AngioFlag": "N", "EchoTime": 20}, "swi"),
        ({"SeriesDescription": "series", "EchoTime": None}, ""),
    ],
)
def test_the_modality_comes_from_the_name_else_from_the_timing(
    tmp_path: Path, facts: dict[str, Any], modality: str
) -> None:
    (volume,) = group_volumes(read_headers(save_series(tmp_path, **facts)))
    guess = guess_contrast(volume)
    assert guess.modality == modality
    assert not any(word.lower() in guess.reason.lower() for word in PLANTED)


def test_a_name_that_the_timing_contradicts_is_said(tmp_path: Path) -> None:
    (volume,) = group_volumes(read_headers(save_series(tmp_path, **{**T2, "SeriesDescription": "t1_se"})))
    assert guess_contrast(volume).reason.endswith("its name says T1, though the timing looks like t2")


@pytest.mark.parametrize(
    ("better", "worse", "said"),
    [
        ({}, {"ImageType": ["DERIVED", "PRIMARY", "M"]}, "computed, and"),
        ({}, {"ImageType": ["ORIGINAL", "PRIMARY", "M", "NORM"], "SeriesNumber": 9}, "filtered, and"),
        ({"data": voxels(9)}, {}, "6 slices, and 9 in"),
        ({"SeriesNumber": 9}, {"SeriesNumber": 8}, "which was taken last"),
    ],
)
def test_of_two_series_the_better_is_chosen(
    tmp_path: Path, better: dict[str, Any], worse: dict[str, Any], said: str
) -> None:
    save_series(tmp_path / "better", "1.2.1", **better)
    save_series(tmp_path / "worse", "1.2.2", **worse)
    cohort = index(tmp_path)
    assert cohort.table["path"].tolist() == [str(tmp_path / "better")]
    assert said in cohort.problems[0].action


def test_a_folder_without_ages_is_indexed_all_the_same(tmp_path: Path) -> None:
    save_series(tmp_path, PatientAge=None, PatientBirthDate=None)
    cohort = Cohort.read(tmp_path)
    assert len(cohort) == 1 and any("no age for 1 of 1" in str(problem) for problem in cohort.problems)


def test_a_folder_with_nothing_usable_says_why(tmp_path: Path) -> None:
    save_series(tmp_path, SeriesDescription="localizer")
    with pytest.raises(DataError, match="a localizer"):
        index(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="holds no DICOM image"):
        index(empty)


def test_a_series_with_a_broken_file_is_left_out_and_one_with_too_few_images_is_noted(tmp_path: Path) -> None:
    broken = save_series(tmp_path / "a", "1.2.1", data=voxels(9))
    broken[0].write_bytes(broken[0].read_bytes()[:700])
    save_series(tmp_path / "b", "1.2.2", ImagesInAcquisition=8)
    cohort = index(tmp_path)
    assert cohort.table["path"].tolist() == [str(tmp_path / "b")]
    said = [str(problem) for problem in cohort.problems]
    assert any("6 images are here, and its header speaks of 8" in text for text in said)
    assert any(f"{broken[0].name}: its header" in text and "left out" in text for text in said)
    with pytest.raises(DataError, match="its header"):
        read(tmp_path / "a")


def test_no_name_id_birth_date_study_date_or_uid_leaves_the_reader(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for number in range(2):
        facts = person(f"PID4711{number}", f"1.2.3333.{number}", PatientAge="Plantedname")
        save_visit(tmp_path / "in" / str(number), f"1.2.7777.{number}", **facts)
    save_series(tmp_path / "in" / "gap", "1.2.7777.9", skip=2, **person("PID4711", "1.2.3333.9"))
    broken = save_series(tmp_path / "in" / "broken", "1.2.7777.8", **person("PID4711", "1.2.3333.9"))
    broken[0].write_bytes(broken[0].read_bytes()[:700])
    caplog.clear(), recwarn.clear(), capfd.readouterr()  # what the writing said
    table = tmp_path / "cohort.csv"
    runner, said = CliRunner(), []
    with caplog.at_level(logging.DEBUG):
        for options in ([], ["--json"]):
            done = runner.invoke(app, ["index", str(tmp_path / "in"), "--out", str(table), *options])
            assert done.exit_code == 0, done.output
            said.append(done.output)
    listed = json.loads(done.stdout)
    assert len(listed["chosen"]) == 4 and listed["chosen"][0]["reason"]
    assert sum("left aside" in problem for problem in listed["problems"]) == 2 * (3 + 3)
    assert "because" in said[0] and "t1" in said[0]
    everything = "\n".join(
        [*said, table.read_text(), caplog.text, *capfd.readouterr(), *(str(one.message) for one in recwarn)]
    )
    leaked = [word for word in (*PLANTED, "1.2.7777", "1.2.3333") if word.lower() in everything.lower()]
    assert leaked == []
