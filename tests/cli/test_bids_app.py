"""`neuroage prepare BIDS OUT participant|group`: the command line of a BIDS App."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

import neuroage
from neuroage.cli.bids_app import spelt_out

RECIPE = {
    "modality": "t1",
    "prepare": {"spacing_mm": 8.0, "size": [12, 12, 12], "centre": "image"},
    "backbone": {"name": "cnn"},
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A BIDS folder without ages: three people, one with two sessions, one with a tof only."""
    root = tmp_path / "raw"
    names = ("sub-01/anat/sub-01_T1w", "sub-02/ses-a/anat/sub-02_ses-a_T1w", "sub-02/ses-b/anat/sub-02_ses-b_T1w")
    for number, name in enumerate((*names, "sub-x3/anat/sub-x3_acq-tof_angio")):
        path = root / f"{name}.nii.gz"
        path.parent.mkdir(parents=True)
        data = np.random.default_rng(number).normal(20, 3, (16, 16, 16))
        data[4:12, 4:12, 4:12] += 100
        nib.save(nib.Nifti1Image(data.astype(np.float32), np.diag([6.0, 6, 6, 1])), path)
    (root / "dataset_description.json").write_text('{"Name": "raw", "BIDSVersion": "1.10.0"}')
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(RECIPE))
    return root


def images(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*_T1w.nii.gz"))


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("prepare in out participant", "prepare in out participant"),
        (
            "prepare in out participant --participant-label 01 02 --json",
            "prepare in out participant --participant-label 01 --participant-label 02 --json",
        ),
        (
            "prepare in out participant --participant_label 01 02 --session_label a b --n_cpus 4",
            "prepare in out participant --participant-label 01 --participant-label 02 --session-label a "
            "--session-label b --workers 4",
        ),
        ("prepare in out participant --participant-label=01 -w work", None),
        (
            "prepare in out participant --skip_bids_validation --n_procs=3",
            "prepare in out participant --skip-bids-validation --workers=3",
        ),
        ("prepare --set optim.warmup_epochs=1 --modality t1", None),
        ("prepare --set=optim.warmup_epochs=1", None),
        ("train --participant_label 01 02", None),
    ],
)
def test_the_spelling_of_bids_apps_is_brought_to_ours(typed: str, meant: str | None) -> None:
    assert spelt_out(typed.split()) == (meant or typed).split()


def test_participants_asked_for_are_prepared_and_only_once(type_in: Callable, tree: Path, tmp_path: Path) -> None:
    words = ("prepare", tree, "out", "participant", "--config", "small.yaml", "--json")
    said = type_in(*words, "--participant-label", "01", "sub-02", "--session-label", "a")
    assert said.code == 0, said.err
    assert images(tmp_path / "out") == ["sub-02/ses-a/anat/sub-02_ses-a_res-8_desc-preproc_T1w.nii.gz"]
    said = type_in(*words, "--participant_label", "01", "sub-02", "--skip_bids_validation")
    assert said.code == 0, said.err
    told = json.loads(said.out)
    assert (told["n_prepared"], told["n_made"], told["failures"]) == (3, 2, {})
    assert json.loads(type_in(*words).out)["n_made"] == 0
    assert len(images(tmp_path / "out")) == 3


def test_the_group_level_makes_a_table_and_a_page(type_in: Callable, tree: Path, tmp_path: Path) -> None:
    assert type_in("prepare", tree, "out", "participant", "--config", "small.yaml").code == 0
    said = type_in("prepare", tree, "out", "group")
    assert said.code == 0, said.err
    assert said.out.split() == ["out/group_T1w.tsv", "out/group_T1w.html"]
    assert len((tmp_path / "out" / "group_T1w.tsv").read_text().splitlines()) == 4
    page = (tmp_path / "out" / "group_T1w.html").read_text(encoding="utf-8")
    assert "3 T1w scans" in page and "sub-02_ses-b" in page


def test_scans_of_two_recipes_in_one_folder_are_said(type_in: Callable, tree: Path, tmp_path: Path) -> None:
    words = ("prepare", tree, "out", "participant", "--config", "small.yaml")
    assert type_in(*words).code == 0
    assert type_in(*words, "--participant-label", "01", "--set", "prepare.clip_percentiles=[1,99]").code == 0
    said = type_in("prepare", tree, "out", "group")
    assert said.code == 0 and "group_T1w.tsv: prepared with 2 recipes: 2 scans with v" in " ".join(said.err.split())
    (note,) = json.loads(type_in("prepare", tree, "out", "group", "--json").out)["notes"]
    assert "1 scans with v" in note
    assert type_in(*words).code == 0
    assert json.loads(type_in("prepare", tree, "out", "group", "--json").out)["notes"] == []


def test_one_sentence_says_which_labels_there_are(type_in: Callable, tree: Path) -> None:
    words = ("prepare", tree, "out", "participant", "--config", "small.yaml")
    said = type_in(*words, "--participant-label", "1")
    assert said.code == 2
    assert "No participant sub-1; expected one of 'sub-01', 'sub-02', 'sub-x3'" in said.err
    said = type_in(*words, "--session-label", "c")
    assert said.code == 2 and "No session ses-c; expected one of 'ses-a', 'ses-b'" in said.err
    said = type_in(*words, "--participant-label", "x3")
    assert said.code == 2 and "no scan of modality 't1'; expected one of 'tof'" in said.err


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("nowhere", "out", "participant"), 2, "No BIDS folder nowhere"),
        ((".", "out", "participant"), 2, "is no BIDS folder"),
        (("raw",), 2, "neuroage prepare BIDS OUT participant|group"),
        (("raw", "out", "participant", "--modality", "flair"), 2, "no recipe for raw flair scans"),
        (("raw", "raw", "participant", "--config", "small.yaml"), 2, "holds the scans themselves"),
        (("raw", "empty", "group"), 3, "holds no prepared scans"),
        (("--participant-label", "01"), 2, "Labels belong to"),
    ],
)
def test_what_is_typed_wrong_is_said_in_a_sentence(
    type_in: Callable, tree: Path, words: tuple[str, ...], code: int, sentence: str
) -> None:
    said = type_in("prepare", *words)
    assert said.code == code
    assert sentence in said.err and "Traceback" not in said.err


def test_a_scan_that_cannot_be_read_fails_alone_and_is_tried_again(type_in: Callable, tree: Path) -> None:
    broken = tree / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    whole = broken.read_bytes()
    broken.write_bytes(b"nothing" * 300)
    words = ("prepare", tree, "out", "participant", "--config", "small.yaml", "--json")
    assert type_in(*words).code == 3, "more than a tenth"
    said = type_in(*words, "--max-failed-share", "0.5")
    assert said.code == 0
    assert list(json.loads(said.out)["failures"]) == ["sub-01_t1"]
    broken.write_bytes(whole)
    told = json.loads(type_in(*words).out)
    assert (told["n_prepared"], told["n_made"]) == (3, 1)


def test_a_cohort_is_written_as_derivatives_with_out(type_in: Callable, tree: Path, tmp_path: Path) -> None:
    rows = ["subject_id,path,age", f"sub-01,{tree}/sub-01/anat/sub-01_T1w.nii.gz,30"]
    rows += [f"P 2,{tree}/sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz,40"]
    (tmp_path / "cohort.csv").write_text("\n".join(rows))
    said = type_in("prepare", "--config", "small.yaml", "--out", "out", "--store", "kept", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["n_made"] == 2
    assert images(tmp_path / "out") == [
        "sub-01/anat/sub-01_res-8_desc-preproc_T1w.nii.gz",
        "sub-P2/anat/sub-P2_res-8_desc-preproc_T1w.nii.gz",
    ]
    again = type_in("prepare", "--config", "small.yaml", "--store", "kept", "--json")
    assert json.loads(again.out)["n_made"] == 0, "the store has them too"
    type_in("prepare", tree, "bids", "participant", "--config", "small.yaml", "-w", "work")
    assert list((tmp_path / "work" / "prepared").rglob("*.npy"))


def test_the_version_is_printed(type_in: Callable) -> None:
    said = type_in("prepare", "--version")
    assert (said.code, said.out) == (0, f"neuroage {neuroage.__version__}\n")


def test_shards_share_the_scans_out_and_leave_one_data_set(type_in: Callable, tree: Path, tmp_path: Path) -> None:
    words = ("prepare", tree, "out", "participant", "--config", "small.yaml", "--json")
    made = [json.loads(type_in(*words, "--shard", share).out)["n_made"] for share in ("1/2", "2/2")]
    assert sum(made) == 3 and len(images(tmp_path / "out")) == 3
    people = (tmp_path / "out" / "participants.tsv").read_text().splitlines()
    assert people == ["participant_id", "sub-01", "sub-02"]


def test_failures_and_exclusions_are_tables(type_in: Callable, tree: Path, tmp_path: Path) -> None:
    (tree / "sub-01" / "anat" / "sub-01_T1w.nii.gz").write_bytes(b"nothing" * 300)
    words = ("prepare", tree, "out", "participant", "--config", "small.yaml")
    assert type_in(*words, "--failures", "failed.csv").code == 3
    rows = (tmp_path / "failed.csv").read_text().splitlines()
    assert len(rows) == 2 and rows[1].startswith("sub-01_t1,")
    said = type_in(*words, "--exclude", "failed.csv", "--json")
    assert said.code == 0 and json.loads(said.out)["n_prepared"] == 2
