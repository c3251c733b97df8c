"""BIDS derivatives: names, files, what their JSON says, what a second time does, and reading them back."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from neuroage.cohort import Cohort, Scan, bids
from neuroage.errors import DataError, UsageError
from neuroage.imaging.derivative_cohort import find_bids_folder, write_cohort
from neuroage.imaging.derivative_names import ScanName, make_labels, name_scans, resolution_label
from neuroage.imaging.derivative_tables import write_description, write_group_tables, write_participants
from neuroage.imaging.derivatives import (
    OWN,
    ToWrite,
    place_sidecar,
    prepare_and_write,
    read_sidecar,
    write_derivatives,
    write_one,
)
from neuroage.imaging.prepare import Prepared
from neuroage.imaging.registration.mni152 import SPACE
from neuroage.imaging.registration.transform import read_transform
from neuroage.imaging.steps.companions import Companions
from neuroage.runs.recipe import Prepare
from neuroage.runs.recipe_raw import Brain

# The names that BIDS 1.10 allows for derivatives of anatomical images: entities, their order, forms and suffixes; and
# fMRIPrep's for transforms.
LABEL = "[0-9a-zA-Z]+"
SOURCE = (
    rf"sub-{LABEL}(_ses-{LABEL})?(_task-{LABEL})?(_acq-{LABEL})?(_ce-{LABEL})?(_rec-{LABEL})?(_run-\d+)?(_echo-\d+)?"
    rf"(_flip-\d+)?(_inv-\d+)?(_mt-(on|off))?(_part-(mag|phase|real|imag))?"
)
SUFFIX = "T1w|T2w|PDw|FLAIR|angio|T2starw|UNIT1|mask"
IMAGE = rf"{SOURCE}(_space-{LABEL})?(_chunk-\d+)?(_res-{LABEL})?(_desc-{LABEL})?_({SUFFIX})"
TRANSFORM = rf"{SOURCE}_from-{LABEL}_to-{LABEL}_mode-image_xfm\.txt"
ALLOWED = re.compile(rf"({IMAGE}\.(nii\.gz|json)|{TRANSFORM})$")
TURN = np.array([[0.9, 0.1, 0, 3], [-0.1, 1.1, 0, -2], [0, 0, 1, 5], [0, 0, 0, 1.0]])
REGISTERED = Prepare(spacing_mm=2.0, size=(6, 8, 4), registration={"to": "mni152"}, brain={"mask": "template"})
PLAIN = Prepare(spacing_mm=8.0, size=(12, 12, 12), centre="image")


def scan_at(path: str | Path, subject: str = "sub-01", modality: str = "t1", **more: Any) -> Scan:
    return Scan(f"{subject}_{modality}", subject, modality=modality, path=Path(path), **more)


def prepared_as(recipe: Prepare, **more: Any) -> Prepared:
    data = np.random.default_rng(0).normal(0, 1, (recipe.n_channels, *recipe.size)).astype(np.float32)
    data[:, 0] = 0
    affine = np.diag([*recipe.spacing, 1.0])
    affine[:3, 3] = (-6, -26, 14)
    steps = [{"name": "registration", "to": "mni152", "quality": {"correlation": 0.9}, "seconds": 1.5}]
    return Prepared(data, affine, {"steps": steps, "native_size": [5, 6, 7]}, **more)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A scan in a BIDS folder without ages or any table."""
    path = tmp_path / "raw" / "sub-01" / "ses-a" / "anat" / "sub-01_ses-a_acq-fast_run-02_T1w.nii.gz"
    return write_ball(path)


def write_ball(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (bids_root(path) / "dataset_description.json").write_text('{"Name": "raw", "BIDSVersion": "1.10.0"}')
    axes = np.meshgrid(*[np.arange(16) - 7.5] * 3, indexing="ij")
    noise = np.random.default_rng(seed).normal(0, 3, (16, 16, 16))
    data = np.where(sum(axis**2 for axis in axes) < 40, 100 + noise, 0).astype(np.float32)
    nib.save(nib.Nifti1Image(data, np.diag([6.0, 6, 6, 1])), path)
    return path


def bids_root(path: Path) -> Path:
    return next(folder for folder in path.parents if folder.name.startswith("sub-")).parent


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_every_file_of_a_registered_scan_is_there_under_a_name_that_bids_allows(source: Path, tmp_path: Path) -> None:
    prepared = prepared_as(REGISTERED, mask=np.ones((6, 8, 4), bool), transforms={"mni152": TURN, "t1": np.eye(4)})
    written = write_derivatives(prepared, scan_at(source), tmp_path / "out", REGISTERED)
    stem = "sub-01_ses-a_acq-fast_run-02"
    grid = f"{stem}_space-{SPACE}_res-2"
    assert {path.name for path in written} == {
        f"{grid}_desc-preproc_T1w.nii.gz",
        f"{grid}_desc-preproc_T1w.json",
        f"{grid}_desc-brain_mask.nii.gz",
        f"{grid}_desc-brain_mask.json",
        f"{stem}_from-T1w_to-{SPACE}_mode-image_xfm.txt",
        f"{stem}_from-T1w_to-T1w_mode-image_xfm.txt",
    }
    assert all(path.parent == tmp_path / "out" / "sub-01" / "ses-a" / "anat" for path in written)
    assert all(ALLOWED.match(path.name) for path in written)
    assert written[-1].name.endswith("preproc_T1w.json")


def test_image_mask_and_transform_hold_what_was_prepared(source: Path, tmp_path: Path) -> None:
    mask = np.zeros((6, 8, 4), bool)
    mask[2:4] = True
    prepared = prepared_as(REGISTERED, mask=mask, transforms={"mni152": TURN})
    written = {
        path.name.split("_")[-1]: path for path in write_derivatives(prepared, scan_at(source), tmp_path, REGISTERED)
    }
    image = nib.load(written["T1w.json"].with_suffix("").with_suffix(".nii.gz"))
    step = np.abs(prepared.data).max() / 32767
    np.testing.assert_allclose(image.get_fdata(), prepared.data[0], atol=step * 0.51)
    assert (image.get_fdata()[0] == 0).all(), "what is 0 stays 0"
    np.testing.assert_allclose(image.affine, prepared.affine)
    header = image.header
    assert (int(header["sform_code"]), int(header["qform_code"]), header.get_xyzt_units()[0]) == (4, 4, "mm")
    np.testing.assert_allclose(header.get_qform(), prepared.affine, atol=1e-5)
    stored = nib.load(written["mask.nii.gz"])
    assert stored.get_data_dtype() == np.uint8
    assert (np.asarray(stored.dataobj) == mask).all()
    np.testing.assert_allclose(read_transform(written["xfm.txt"]), TURN, atol=1e-9)


def test_whole_numbers_are_kept_exactly_and_channels_become_the_fourth_axis(source: Path, tmp_path: Path) -> None:
    recipe = Prepare(spacing_mm=2.0, size=(6, 8, 4), fractions=(0.0, 0.5, 1.0))
    prepared = prepared_as(recipe)
    prepared = Prepared(np.round(prepared.data), prepared.affine, {})
    image = nib.load(write_derivatives(prepared, scan_at(source), tmp_path, recipe)[-2])
    assert image.shape == (6, 8, 4, 3)
    assert (image.get_fdata() == prepared.data.transpose(1, 2, 3, 0)).all()


def test_the_json_file_says_how_the_image_came_about(source: Path, tmp_path: Path) -> None:
    root = bids_root(source)
    sidecar = write_derivatives(
        prepared_as(REGISTERED), scan_at(source), tmp_path / "out", REGISTERED, bids_folder=root, seconds=3.21
    )[-1]
    said = json.loads(sidecar.read_text())
    assert said["Sources"] == ["bids:raw:sub-01/ses-a/anat/sub-01_ses-a_acq-fast_run-02_T1w.nii.gz"]
    assert said["SkullStripped"] is True
    assert said["Resolution"] == "2 × 2 × 2 mm"
    assert said["SpatialReference"].startswith("https://")
    own = said[OWN]
    assert own["steps"][0]["quality"] == {"correlation": 0.9}
    assert own["seconds"] == 3.21
    assert own["record"]["native_size"] == [5, 6, 7]
    assert own["recipe"]["registration"]["to"] == "mni152"
    assert set(own["versions"]) == {"neuroage", "SimpleITK", "nibabel", "numpy"}
    assert str(tmp_path) not in sidecar.read_text(), "folders of this disk are not told"


def test_sources_outside_of_a_data_set_are_named_by_their_file_alone(source: Path, tmp_path: Path) -> None:
    sidecar = write_derivatives(prepared_as(PLAIN), scan_at(source), tmp_path, PLAIN)[-1]
    said = json.loads(sidecar.read_text())
    assert said["Sources"] == [source.name]
    assert said["SpatialReference"] == "orig"
    assert said["SkullStripped"] is False
    assert "_space-" not in sidecar.name
    image = nib.load(sidecar.with_suffix("").with_suffix(".nii.gz"))
    assert int(image.header["sform_code"]) == 1


def test_a_scan_in_the_space_of_another_is_aligned_to_it(source: Path, tmp_path: Path) -> None:
    recipe = Prepare(size=(6, 8, 4), registration={"to": "reference", "reference": "t1"})
    tof = source.with_name("sub-01_ses-a_angio.nii.gz")
    tof.write_bytes(b"x")
    written = write_derivatives(
        prepared_as(recipe, transforms={"t1": TURN, "reference": TURN}),
        scan_at(tof, modality="tof"),
        tmp_path / "out",
        recipe,
        companions=Companions(reference=source),
        bids_folder=bids_root(source),
    )
    said = json.loads(written[-1].read_text())
    assert written[-1].name == "sub-01_ses-a_space-T1w_res-2_desc-preproc_angio.json"
    assert said["SpatialReference"].endswith(source.name) and len(said["Sources"]) == 2
    assert {path.name for path in written if path.suffix == ".txt"} == {
        "sub-01_ses-a_from-angio_to-T1w_mode-image_xfm.txt"
    }
    assert int(nib.load(written[-2]).header["sform_code"]) == 2


def test_a_template_of_ones_own_gives_its_name_to_the_space(source: Path, tmp_path: Path) -> None:
    recipe = Prepare(size=(6, 8, 4), registration={"to": "/somewhere/our_mean-1.nii.gz"})
    written = write_derivatives(prepared_as(recipe, transforms={"mni152": TURN}), scan_at(source), tmp_path, recipe)
    assert written[0].name.endswith("_from-T1w_to-ourmean1_mode-image_xfm.txt")
    assert written[-1].name.endswith("_space-ourmean1_res-2_desc-preproc_T1w.json")
    assert json.loads(written[-1].read_text())["SpatialReference"] == "our_mean-1.nii.gz"
    assert int(nib.load(written[-2]).header["sform_code"]) == 5


def test_masks_of_two_contrasts_of_one_session_do_not_meet(tmp_path: Path) -> None:
    names = set()
    for suffix in ("T1w", "T2w"):
        path = tmp_path / f"sub-01_{suffix}.nii.gz"
        path.write_bytes(b"x")
        prepared = prepared_as(REGISTERED, mask=np.ones((6, 8, 4), bool))
        written = write_derivatives(prepared, scan_at(path, modality=suffix[:2].lower()), tmp_path, REGISTERED)
        names |= {path.name for path in written if "mask" in path.name}
    assert len(names) == 4 and all(ALLOWED.match(name) for name in names)


@pytest.mark.parametrize(
    ("file", "subject", "modality", "stem"),
    [
        ("sub-7_ses-1_acq-a_ce-b_rec-c_run-3_part-mag_chunk-2_T1w.nii.gz", "sub-7", "t1", "same"),
        ("sub-7_acq-tof_angio.nii", "sub-7", "tof", "sub-7_acq-tof_angio"),
        ("sub-7_space-MNI_res-2_desc-preproc_T1w.nii.gz", "sub-7", "t1", "sub-7_space-MNI_T1w"),
        ("sub-7_MRA.nii.gz", "sub-7", "tof", "sub-7_angio"),
        ("IMG_0001.nii", "Müller 3", "flair", "sub-Mller3_FLAIR"),
        ("scan.nii", "p-1", "t1c", "sub-p1_ce-gadolinium_T1w"),
        ("sub-8_T1w.nii.gz", "other", "t1", "sub-other_T1w"),
    ],
)
def test_a_scan_keeps_its_bids_entities_or_gets_a_name_of_its_own(
    file: str, subject: str, modality: str, stem: str
) -> None:
    scan = scan_at(f"/data/{file}", subject, modality)
    name = name_scans([scan])[scan.scan_id].place(Path(), "").name
    assert name == (file.removesuffix(".nii.gz") if stem == "same" else stem)
    assert ALLOWED.match(name + ".nii.gz")


def test_names_of_a_cohort_are_all_different_and_allowed() -> None:
    scans = [
        Scan(f"scan{i}", subject, session, modality, Path(f"/data/{i}.nii"))
        for i, (subject, session, modality) in enumerate(
            [
                ("A_1", "", "t1"),
                ("a1", "", "t1"),
                ("a1", "", "t1"),
                ("a1", "first visit", "t1"),
                ("a1", "firstvisit", "t1"),
                ("###", "", "t2"),
                ("a1", "", ""),
            ]
        )
    ]
    names = name_scans(scans, "pd")
    files = [name.place(Path(), desc="preproc", res="1").as_posix() for name in names.values()]
    assert len({file.lower() for file in files}) == len(scans)
    assert all(ALLOWED.match(Path(file).name) for file in files), files
    assert "_run-1" in files[1] and "_run-2" in files[2] and files[6].endswith("PDw.nii.gz")
    assert name_scans(list(reversed(scans)), "pd") == names, "the order of the table does not matter"


def test_two_files_of_one_bids_name_and_modalities_without_a_place_are_refused() -> None:
    twice = [Scan(str(i), "1", "", "t1", Path(f"/data/sub-1_run-1_T1w.nii{end}")) for i, end in enumerate(("", ".gz"))]
    with pytest.raises(DataError, match="one name in BIDS"):
        name_scans(twice)
    with pytest.raises(DataError, match="'xray' have no place"):
        name_scans([scan_at("/data/a.nii", modality="xray")])


def test_labels_and_resolutions() -> None:
    assert make_labels(["sub-01", "", "ses-pre"]) == {"sub-01": "01", "": "", "ses-pre": "pre"}
    assert [resolution_label(s) for s in ((1.0,) * 3, (1.5,) * 3, (1, 1, 2.5))] == ["1", "1p5", "1x1x2p5"]
    assert ScanName("1", "2", (("run", "3"),)).place(Path("o"), res="1").as_posix() == (
        "o/sub-1/ses-2/anat/sub-1_ses-2_run-3_res-1_T1w.nii.gz"
    )


def test_what_is_done_is_left_and_what_has_changed_is_done_again(source: Path, tmp_path: Path) -> None:
    out, scan = tmp_path / "out", scan_at(source)
    first = prepare_and_write(scan, PLAIN, None, out)
    before = first.sidecar.stat().st_mtime_ns
    assert first.made and read_sidecar(first.sidecar)
    again = write_one(pickle.loads(pickle.dumps(ToWrite(scan, PLAIN, None, out))))
    assert not again.made and first.sidecar.stat().st_mtime_ns == before
    other = PLAIN.model_copy(update={"intensity": "mean"})
    assert prepare_and_write(scan, other, None, out).made, "another recipe"
    write_ball(source, seed=1)
    assert prepare_and_write(scan, other, None, out).made, "another scan under the same name"
    image = first.sidecar.with_suffix("").with_suffix(".nii.gz")
    image.unlink()
    assert read_sidecar(first.sidecar) is None
    assert prepare_and_write(scan, other, None, out).made and image.exists(), "the image is gone"


def test_a_mask_of_another_recipe_does_not_stay_beside_the_image(source: Path, tmp_path: Path) -> None:
    out, scan = tmp_path / "out", scan_at(source)
    masked = PLAIN.model_copy(update={"brain": Brain(mask="nonzero")})
    prepare_and_write(scan, masked, None, out)
    assert len(list(out.rglob("*_mask.*"))) == 2
    prepare_and_write(scan, PLAIN, None, out)
    assert not list(out.rglob("*_mask.*"))


def test_what_was_made_of_a_scan_is_not_taken_for_that_of_its_broken_successor(source: Path, tmp_path: Path) -> None:
    out, scan = tmp_path / "out", scan_at(source)
    done = prepare_and_write(scan, PLAIN, None, out).sidecar
    source.write_bytes(b"broken")
    with pytest.raises(DataError):
        prepare_and_write(scan, PLAIN, None, out)
    assert read_sidecar(done) is None


def test_a_failure_midway_leaves_neither_torn_files_nor_a_scan_that_seems_done(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import neuroage.imaging.derivatives as module

    out, scan = tmp_path / "out", scan_at(source)
    done = prepare_and_write(scan, PLAIN, None, out).sidecar
    whole = done.with_suffix("").with_suffix(".nii.gz").read_bytes()

    def stop(image: nib.Nifti1Image, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(nib, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare_and_write(scan, PLAIN.model_copy(update={"intensity": "mean"}), None, out)
    monkeypatch.undo()
    assert read_sidecar(done) is None
    assert done.with_suffix("").with_suffix(".nii.gz").read_bytes() == whole
    assert not [name for name in files_of(out) if "tmp" in name or "lock" in name]
    assert module.prepare_and_write(scan, PLAIN, None, out).made


def test_the_store_keeps_the_volume_too_where_there_is_one(source: Path, tmp_path: Path) -> None:
    from neuroage.imaging.store import Store

    scan = scan_at(source)
    prepare_and_write(scan, PLAIN, tmp_path / "store", tmp_path / "out")
    stored = Store(tmp_path / "store").get(source, PLAIN)
    image = nib.load(
        place_sidecar(name_scans([scan])[scan.scan_id], PLAIN, tmp_path / "out").with_suffix("").with_suffix(".nii.gz")
    )
    assert stored is not None
    np.testing.assert_allclose(stored.load()[0], image.get_fdata(), atol=0.02)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three people in BIDS with ages, one of whom has two sessions, and one scan that cannot be read."""
    root = tmp_path / "raw"
    for number, name in enumerate(
        ("sub-01/anat/sub-01", "sub-02/ses-a/anat/sub-02_ses-a", "sub-02/ses-b/anat/sub-02_ses-b")
    ):
        write_ball(root / f"{name}_T1w.nii.gz", number)
    (root / "sub-03" / "anat").mkdir(parents=True)
    (root / "sub-03" / "anat" / "sub-03_T1w.nii.gz").write_bytes(b"no image at all" * 100)
    (root / "participants.tsv").write_text(
        "participant_id\tage\thand\nsub-01\t30\t\nsub-02\t40\tleft\nsub-03\t50\tright\n"
    )
    (root / "sub-02" / "sub-02_sessions.tsv").write_text("session_id\tage\nses-a\t40\nses-b\t42\n")
    return root


def test_a_cohort_is_written_with_its_tables_and_reads_back_as_a_cohort(tree: Path, tmp_path: Path) -> None:
    out = tree / "derivatives" / "neuroage"
    scans = bids.read(tree).scans()
    assert find_bids_folder(scans) == tree
    done = write_cohort(scans, PLAIN, out)
    assert (len(done.written), done.n_made, list(done.failures)) == (3, 3, ["sub-03_t1"])
    described = json.loads((out / "dataset_description.json").read_text())
    assert described["DatasetType"] == "derivative" and described["DatasetLinks"] == {"raw": "../.."}
    assert described["BIDSVersion"] == "1.10.0" and described["GeneratedBy"][0]["Name"] == "neuroage"
    assert (out / "participants.tsv").read_text() == "participant_id\tage\thand\nsub-01\t30\tn/a\nsub-02\t40\tleft\n"
    tables = (".bidsignore", "dataset_description.json", "participants.tsv", "sub-02/sub-02_sessions.tsv")
    assert all(name in tables or ALLOWED.match(Path(name).name) for name in files_of(out)), files_of(out)
    back = Cohort.read(out).table
    assert back["subject_id"].tolist() == ["sub-01", "sub-02", "sub-02"]
    assert back["age"].tolist() == [30, 40, 42]
    assert set(back["desc"]) == {"preproc"} and set(back["res"]) == {8} and set(back["space"]) == {""}
    assert sorted(back["scan_id"]) == sorted(done.written), "the same ids, so that one table excludes from both"
    assert write_cohort(scans, PLAIN, out).n_made == 0


def test_participants_are_those_done_by_anyone(tree: Path, tmp_path: Path) -> None:
    out, scans = tmp_path / "out", bids.read(tree).scans()
    names = name_scans(scans)
    for part in (scans[2:3], scans[:1]):
        write_cohort(part, PLAIN, out, names=names)
    rows = (out / "participants.tsv").read_text().splitlines()
    assert [row.split("\t")[0] for row in rows[1:]] == ["sub-01", "sub-02"]
    before = (out / "participants.tsv").stat().st_mtime_ns
    write_participants(out, scans, names, tree)
    assert (out / "participants.tsv").stat().st_mtime_ns == before


def test_a_cohort_of_another_layout_gets_participants_of_its_own(cohort: Cohort, tmp_path: Path) -> None:
    scans = [Scan("x", "Person_7", "", "t1", cohort.scans()[0].path, 33.0, "F", "here")]
    write_cohort(scans, PLAIN, tmp_path)
    assert (tmp_path / "participants.tsv").read_text() == (
        "participant_id\tsource_id\tage\tsex\tsite\nsub-Person7\tPerson_7\t33\tF\there\n"
    )
    assert "DatasetLinks" not in json.loads((tmp_path / "dataset_description.json").read_text())


def test_a_failed_registration_is_written_listed_and_not_read_back(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = REGISTERED.model_copy(update={"brain": None})
    monkeypatch.setattr(
        "neuroage.imaging.derivatives.prepare_image",
        lambda path, *_: prepared_as(recipe, problem="upside down" if "sub-01" in path.name else ""),
    )
    scans, out = bids.read(tree).scans()[:3], tmp_path / "out"
    done = write_cohort(scans, recipe, out)
    assert list(done.failures) == ["sub-01_t1"] and "upside down" in done.failures["sub-01_t1"]
    assert list(write_cohort(scans, recipe, out).failures) == ["sub-01_t1"], "and again without preparing anew"
    back = Cohort.read(out)
    assert back.table["subject_id"].tolist() == ["sub-02", "sub-02"]
    assert any("upside down" in str(problem) for problem in back.problems)
    (table,) = write_group_tables(out)
    lines = [line.split("\t") for line in table.read_text().splitlines()]
    assert table.name == "group_T1w.tsv"
    assert lines[0][:7] == ["participant_id", "session_id", "scan_id", "image", "problem", "seconds", "recipe"]
    assert lines[0][7:] == ["registration_mni152_correlation"]
    assert [line[1] for line in lines[1:]] == ["n/a", "ses-a", "ses-b"]
    assert [line[4] for line in lines[1:]] == ["upside down", "n/a", "n/a"]
    keep = recipe.model_copy(update={"registration": recipe.registration.model_copy(update={"on_failure": "keep"})})
    assert not write_cohort(scans, keep, out).failures
    assert len(Cohort.read(out)) == 3


def test_derivatives_are_not_written_over_anything_else(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds the scans themselves"):
        write_description(tree, tree)
    other = tmp_path / "other"
    other.mkdir()
    (other / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.8.0"}')
    with pytest.raises(UsageError, match="no derivative"):
        write_description(other, tree)
    write_description(tmp_path / "out", tree)
    with pytest.raises(UsageError, match="holds derivatives of the scans in"):
        write_description(tmp_path / "out", other)
