from __future__ import annotations

import os
from pathlib import Path

import pytest

from neuroage.cohort import Cohort, layouts
from neuroage.cohort.image_files import image_fault
from neuroage.errors import DataError, NeuroageError


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def image(path: Path) -> Path:
    return write(path, "x" * 2000)


def report(cohort: Cohort) -> str:
    return "\n".join(map(str, cohort.problems))


def test_the_layouts_are_found_and_the_plain_table_comes_last() -> None:
    assert {"bids", "ixi", "oasis1", "plain_table"} <= set(layouts())
    assert list(layouts())[-1] == "plain_table"


@pytest.mark.parametrize("name", list(layouts()))
def test_every_layout_keeps_the_contract(name: str, tmp_path: Path) -> None:
    layout = layouts()[name]
    assert layout.name == name and layout.summary
    empty, junk = tmp_path / "empty", tmp_path / "junk.csv"
    empty.mkdir()
    junk.write_bytes(b"\x00\xff\x00")
    assert not layout.recognises(empty)
    assert not layout.recognises(junk) or name == "plain_table"
    with pytest.raises(NeuroageError):
        layout.read(empty)


# ---- BIDS


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    root = tmp_path / "ds"
    write(
        root / "participants.tsv",
        "participant_id\tage\tsex\tsite",
        "sub-01\t30\tF\tA",
        "02\t50\tM\tB",
        "sub-03\t70\tF\tA",
    )
    image(root / "sub-01" / "ses-a" / "anat" / "sub-01_ses-a_T1w.nii.gz")
    image(root / "sub-01" / "ses-b" / "anat" / "sub-01_ses-b_T1w.nii.gz")
    image(root / "sub-01" / "ses-b" / "anat" / "sub-01_ses-b_angio.nii.gz")
    write(root / "sub-01" / "sub-01_sessions.tsv", "session_id\tage", "ses-a\tn/a", "ses-b\t32.5")
    for name in ("run-1_T1w", "run-2_T1w", "acq-tof_angio", "FLAIR", "PDw", "T2w"):
        image(root / "sub-02" / "anat" / f"sub-02_{name}.nii.gz")
    write(root / "sub-02" / "anat" / "sub-02_T1w.json", "{}")
    return root


def test_bids_ages_per_session_win(bids: Path) -> None:
    table = Cohort.read(bids).table.set_index("scan_id")
    assert table.age["sub-01_ses-a_t1"] == 30.0
    assert table.age["sub-01_ses-b_t1"] == table.age["sub-01_ses-b_tof"] == 32.5
    assert table.sex["sub-01_ses-b_t1"] == "F" and table.site["sub-02_pd"] == "B"


def test_bids_borrows_an_age_only_where_no_table_has_the_session(tmp_path: Path) -> None:
    rows = ["sub-1\t01\t9", "sub-2\t01\t10", "sub-2\t02\t12"]
    write(tmp_path / "participants.tsv", "participant_id\tsession_id\tage", *rows)
    image(tmp_path / "sub-1" / "anat" / "sub-1_T1w.nii.gz")
    for session in ("01", "02", "03"):
        image(tmp_path / "sub-2" / f"ses-{session}" / "anat" / f"sub-2_ses-{session}_T1w.nii.gz")
    cohort = Cohort.read(tmp_path)
    assert cohort.table.age.tolist() == [9.0, 10.0, 12.0, 10.0]
    assert report(cohort) == "sub-2_ses-03_T1w.nii.gz: no age at this session (age of ses-01 taken)"


def test_bids_runs_are_scans_and_suffixes_are_modalities(bids: Path) -> None:
    cohort = Cohort.read(bids)
    mine = cohort.table[cohort.table.subject_id == "sub-02"]
    assert sorted(mine.modality) == ["flair", "pd", "t1", "t1", "t2", "tof"]
    assert mine[mine.modality == "t1"].run.astype(float).tolist() == [1, 2] and mine.scan_id.is_unique
    assert "1 participants have no usable anatomical image: sub-03" in report(cohort)


def test_bids_names_pointers_and_broken_links(bids: Path) -> None:
    anat = bids / "sub-03" / "anat"
    write(anat / "sub-03_T1w.nii.gz", "version https://git-lfs.github.com/spec/v1", "oid sha256:0", "size 9")
    os.symlink("../../.git/annex/objects/aa/bb/MD5E-s1--0.nii.gz", anat / "sub-03_T2w.nii.gz")
    (anat / "sub-03_PDw.nii.gz").touch()
    cohort = Cohort.read(bids)
    assert "sub-03" not in set(cohort.table.subject_id)
    for words in (
        "sub-03_T1w.nii.gz: is a Git LFS pointer",
        "sub-03_T2w.nii.gz: is a git-annex pointer",
        "PDw.nii.gz: is empty",
    ):
        assert words in report(cohort)


def test_bids_of_pointers_only_says_so_with_the_count(tmp_path: Path) -> None:
    write(tmp_path / "participants.tsv", "participant_id\tage", "sub-01\t30")
    write(tmp_path / "sub-01" / "anat" / "sub-01_T1w.nii.gz", "/annex/objects/MD5E-s1--0.nii.gz")
    with pytest.raises(DataError, match=r"no usable image .* 1 problems, first: .*git-annex pointer"):
        Cohort.read(tmp_path)


def test_bids_ages_in_months_are_converted(bids: Path) -> None:
    write(bids / "participants.json", '{"age": {"Units": "months"}}')
    cohort = Cohort.read(bids)
    assert cohort.table.set_index("scan_id").age["sub-02_pd"] == pytest.approx(50 / 12)
    assert "ages are in months" in report(cohort)


def test_bids_participants_without_images_make_a_table(tmp_path: Path) -> None:
    write(tmp_path / "participants.tsv", "participant_id\tsession_id\tage", "01\t1\t30", "01\t2\t31", "02\t1\t40")
    cohort = Cohort.read(tmp_path)
    assert cohort.table.scan_id.tolist() == ["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1"]
    assert cohort.table.age.tolist() == [30.0, 31.0, 40.0]


# ---- IXI


@pytest.fixture
def ixi(tmp_path: Path) -> Path:
    rows = ["1,1,30", "2,2,40", "2,2,40", "3,2,50", "3,1,50.4", "4,2,53", "4,2,58", "5,1,", "6,1,66"]
    write(tmp_path / "IXI.csv", "IXI_ID,SEX_ID (1=m; 2=f),AGE", *rows)
    names = ("IXI001-HH-1000-MRA", "IXI001-HH-1000-T1", "IXI002-Guys-1001-T2", "IXI003-IOP-1002-PD",
             "IXI004-HH-1003-T1", "IXI005-HH-1004-T1", "IXI009-HH-1005-T1", "IXI001-HH-1000-DTI-00")  # fmt: skip
    for name in names:
        image(tmp_path / f"{name}.nii.gz")
    return tmp_path


def test_ixi_takes_modality_site_and_age(ixi: Path) -> None:
    table = Cohort.read(ixi).table.set_index("scan_id")
    assert table.modality["IXI001_tof"] == "tof" and table.site["IXI002_t2"] == "Guys"
    assert table.age["IXI001_t1"] == 30.0 and table.sex["IXI001_t1"] == "M" and table.sex["IXI002_t2"] == "F"


def test_ixi_duplicates_are_settled_by_the_rule(ixi: Path) -> None:
    cohort = Cohort.read(ixi)
    table = cohort.table.set_index("subject_id")
    assert table.age["IXI002"] == 40.0
    assert table.age["IXI003"] == pytest.approx(50.2) and table.sex["IXI003"] == ""
    assert "IXI004" not in table.index
    assert "IXI004 is there 2 times with ages 53 and 58 (left out)" in report(cohort)


def test_ixi_missing_ages_and_rows_are_reported(ixi: Path) -> None:
    cohort = Cohort.read(ixi)
    ageless = cohort.table.subject_id[cohort.table.age.isna()].tolist()
    assert ageless == ["IXI005", "IXI009"]
    assert "no age for 2 of 6 rows: IXI005, IXI009" in report(cohort)
    assert "1 of 9 rows have no image" in report(cohort) and "DTI-00" in report(cohort)


def test_one_image_named_as_ixis_makes_no_ixi_folder(tmp_path: Path) -> None:
    for name in ("IXI001-HH-1000-T1", "head_1", "head_2"):
        image(tmp_path / f"{name}.nii.gz")
    with pytest.raises(DataError, match="IXI_ID"):
        Cohort.read(tmp_path, layout="ixi")
    write(tmp_path / "scans.csv", "path,subject,age", "head_1.nii.gz,a,30", "IXI001-HH-1000-T1.nii.gz,b,40")
    assert Cohort.read(tmp_path).table["age"].tolist() == [30.0, 40.0]


def test_the_ixi_table_alone_is_read(ixi: Path) -> None:
    cohort = Cohort.read(ixi / "IXI.csv")
    assert cohort.table.subject_id.tolist() == ["IXI001", "IXI002", "IXI003", "IXI005", "IXI006"]
    assert set(cohort.table.path) == {""}


# ---- OASIS


@pytest.fixture
def oasis(tmp_path: Path) -> Path:
    write(
        tmp_path / "oasis_cross-sectional.csv", "ID,M/F,Hand,Age,SES,MMSE,CDR", "OAS1_0001_MR1,M,R,61,2,28,0",
        "OAS1_0002_MR1,M,R,28,,,0", "OAS1_0003_MR1,F,R,80,1,20,0.5", "OAS1_0003_MR2,F,R,81,1,21,1",
    )  # fmt: skip
    for name in (
        "OAS1_0001_MR1_T1w",
        "OAS1_0002_MR1_T1w",
        "OAS1_0002_MR2_T1w",
        "OAS1_0003_MR1_T1w",
        "OAS1_0003_MR2_T1w",
    ):
        image(tmp_path / f"{name}.nii.gz")
    return tmp_path


def test_oasis_rescans_belong_to_one_subject(oasis: Path) -> None:
    cohort = Cohort.read(oasis)
    assert len(cohort) == 5 and cohort.table.subject_id.nunique() == 3
    ages = cohort.table.set_index("scan_id").age
    assert ages["OAS1_0002_MR2_t1"] == 28.0 and ages["OAS1_0003_MR2_t1"] == 81.0
    assert "no row for 1 sessions: OAS1_0002_MR2" in report(cohort)


def test_oasis_keeps_cdr_but_not_the_zeros_of_people_never_examined(oasis: Path) -> None:
    cdr = Cohort.read(oasis).table.set_index("scan_id").CDR
    assert cdr["OAS1_0001_MR1_t1"] == 0.0 and cdr["OAS1_0003_MR1_t1"] == 0.5
    assert cdr.isna()["OAS1_0002_MR1_t1"]
    assert "SES" in Cohort.read(oasis).table.columns


def test_oasis_discs_give_the_most_processed_image(tmp_path: Path) -> None:
    write(
        tmp_path / "oasis_cross-sectional.csv",
        "ID,M/F,Age",
        "OAS1_0001_MR1,M,61",
        "OAS1_0002_MR1,M,28",
        "OAS1_0003_MR1,M,30",
    )
    one, two = tmp_path / "disc1" / "OAS1_0001_MR1", tmp_path / "disc1" / "OAS1_0002_MR1"
    atlas = one / "PROCESSED" / "MPRAGE" / "T88_111"
    for stem in ("OAS1_0001_MR1_mpr_n4_anon_111_t88_masked_gfc", "OAS1_0001_MR1_mpr_n4_anon_111_t88_gfc"):
        image(atlas / f"{stem}.hdr")
        image(atlas / f"{stem}.img")
    for run in (1, 2):
        image(two / "RAW" / f"OAS1_0002_MR1_mpr-{run}_anon.hdr")
    image(two / "RAW" / "OAS1_0002_MR1_mpr-1_anon.img")
    cohort = Cohort.read(tmp_path)
    assert [os.path.basename(path) for path in cohort.table.path] == [
        "OAS1_0001_MR1_mpr_n4_anon_111_t88_masked_gfc.hdr", "OAS1_0002_MR1_mpr-1_anon.hdr",
    ]  # fmt: skip
    assert "mpr-2_anon.hdr: has no .img beside it" in report(cohort) and "1 of 3 rows have no image" in report(cohort)


def test_oasis_2_is_read_without_its_header(tmp_path: Path) -> None:
    row = "OAS2_0001,OAS2_0001_MR{0},Nondemented,{0},0,M,R,8{0},14,2,27,0,1987,0.696,0.883"
    path = write(tmp_path / "longitudinal.csv", row.format(1), row.format(2))
    cohort = Cohort.read(path)
    assert cohort.table.scan_id.tolist() == ["OAS2_0001_MR1", "OAS2_0001_MR2"]
    assert cohort.table.age.tolist() == [81.0, 82.0]
    assert "no header" in report(cohort)


def test_a_healthy_image_file_has_no_fault(tmp_path: Path) -> None:
    assert image_fault(image(tmp_path / "a.nii.gz")) == ""
    assert image_fault(tmp_path / "b.nii.gz") == "does not exist"
    assert image_fault(tmp_path) == ""
