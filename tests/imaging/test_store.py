import multiprocessing
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from neuroage.cohort import Cohort, Scan
from neuroage.errors import DataError
from neuroage.imaging.preparation import prepare_scans
from neuroage.imaging.store import Store, compress, default_store_folder
from neuroage.runs.recipe import Prepare, Recipe

PREPARE = Recipe.from_dict({"prepare": {"spacing_mm": 8.0, "size": [12, 12, 12]}}).prepare


def scans_of(cohort: Cohort, n: int = 6) -> list[Scan]:
    return cohort.scans()[:n]


def test_a_scan_is_prepared_once(cohort: Cohort, tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert prepare_scans(scans_of(cohort), PREPARE, store).n_made == 6
    again = prepare_scans(scans_of(cohort), PREPARE, store)
    assert again.n_made == 0
    assert list(again.volumes) == [scan.scan_id for scan in scans_of(cohort)]


def test_another_recipe_or_a_changed_file_is_prepared_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((20, 20, 20), np.float32), np.diag([4, 4, 4, 1])), path)
    store = Store(tmp_path / "store")
    _, made = store.prepare(path, PREPARE)
    assert made
    assert store.get(path, PREPARE) is not None
    assert store.get(path, PREPARE.model_copy(update={"intensity": "mean"})) is None
    os.utime(path, ns=(1, 1))
    assert store.get(path, PREPARE) is None


@pytest.mark.parametrize(("store_as", "largest"), [("uint8", 1 / 509), ("float16", 1e-3), ("float32", 0.0)])
def test_the_loss_of_precision_is_bounded_and_stated(
    tmp_path: Path, cohort: Cohort, store_as: str, largest: float
) -> None:
    recipe = PREPARE.model_copy(update={"store_as": store_as})
    store = Store(tmp_path)
    path = scans_of(cohort)[0].path
    assert path is not None
    stored, _ = store.prepare(path, recipe)
    data = stored.load()
    assert stored.map().dtype == np.dtype(store_as)
    assert stored.record["precision_loss"] <= largest * float(data.max() - data.min()) + 1e-12


def test_compressing_and_restoring_keeps_the_extremes() -> None:
    data = np.linspace(-3, 7, 1000, dtype=np.float32)
    stored, scale, offset = compress(data, "uint8")
    back = stored * scale + offset
    assert (back[0], back[-1]) == pytest.approx((-3, 7))
    assert np.abs(back - data).max() <= scale / 2 + 1e-6


def test_a_bad_scan_is_left_out_with_its_reason(tmp_path: Path, cohort: Cohort) -> None:
    (tmp_path / "bad.nii.gz").write_bytes(b"nothing")
    bad = Scan(
        scan_id="bad",
        subject_id="bad",
        session="",
        modality="t1",
        path=tmp_path / "bad.nii.gz",
        age=50.0,
        sex="",
        site="",
        extra={},
    )
    result = prepare_scans([*scans_of(cohort, 12), bad], PREPARE, Store(tmp_path / "s"))
    assert "bad" not in result.volumes
    assert "bad.nii.gz" in result.failures["bad"]


def test_too_many_bad_scans_fail_the_preparation_with_every_reason(tmp_path: Path, cohort: Cohort) -> None:
    bad = []
    for index in range(3):
        (tmp_path / f"bad{index}.nii.gz").write_bytes(b"nothing")
        bad.append(
            Scan(
                scan_id=f"bad{index}",
                subject_id="b",
                session="",
                modality="t1",
                path=tmp_path / f"bad{index}.nii.gz",
                age=50.0,
                sex="",
                site="",
                extra={},
            )
        )
    with pytest.raises(DataError) as caught:
        prepare_scans([*scans_of(cohort), *bad], PREPARE, Store(tmp_path / "s"))
    assert all(f"bad{index}.nii.gz" in str(caught.value) for index in range(3))
    assert prepare_scans(
        [*scans_of(cohort), *bad], PREPARE, Store(tmp_path / "s"), max_failed_share=0.5
    ).failures.keys() == {"bad0", "bad1", "bad2"}


def test_a_volume_cut_short_by_a_crash_is_never_taken_for_whole(
    tmp_path: Path, cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    path = scans_of(cohort)[0].path
    assert path is not None

    def half(file: Path, data: np.ndarray) -> None:
        Path(file).write_bytes(b"\x93NUMPY")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", half)
    with pytest.raises(KeyboardInterrupt):
        store.prepare(path, PREPARE)
    monkeypatch.undo()
    assert store.get(path, PREPARE) is None
    assert store.prepare(path, PREPARE)[0].load().shape == (1, 12, 12, 12)


def _prepare_all(paths: list[Path], folder: Path) -> None:
    for path in paths:
        Store(folder).prepare(path, PREPARE)


def test_two_processes_at_once_leave_whole_files(tmp_path: Path, cohort: Cohort) -> None:
    paths = [scan.path for scan in scans_of(cohort, 4)]
    context = multiprocessing.get_context("spawn")
    jobs = [context.Process(target=_prepare_all, args=(paths, tmp_path)) for _ in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0, 0]
    files = sorted(tmp_path.rglob("*.*"))
    assert sum(file.suffix == ".npy" for file in files) == 4
    assert not [file for file in files if ".tmp" in file.name]
    assert all(Store(tmp_path).get(path, PREPARE).load().shape == (1, 12, 12, 12) for path in paths)  # type: ignore[union-attr, arg-type]


def test_the_default_folder_is_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NEUROAGE_STORE", str(tmp_path))
    assert default_store_folder() == tmp_path
    monkeypatch.delenv("NEUROAGE_STORE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    assert default_store_folder() == tmp_path / "c" / "neuroage" / "prepared"


def test_preparation_digests_differ_for_every_key() -> None:
    other = {
        "spacing_mm": 3.0,
        "size": (12, 12, 13),
        "centre": "head",
        "labels": True,
        "nonfinite": "zero",
        "intensity": "mean",
        "foreground": "all",
        "clip_percentiles": None,
        "binning": {"levels": 4},
        "fractions": [-1.0, 1.0],
        "store_as": "float32",
        "histogram": {"landmarks": "li2017"},
        "statistics": "grid",
        "orientation": "LAS",
        "registration": {"kind": "rigid"},
        "bias_field": {},
        "brain": {"mask": "nonzero"},
        "vessels": {},
    }
    assert set(other) == set(Prepare.model_fields) - {"preset", "kind"}  # a name for values that stand in the others
    digests = {Prepare.model_validate({**PREPARE.model_dump(), key: value}).digest for key, value in other.items()}
    assert len(digests | {PREPARE.digest}) == len(other) + 1
