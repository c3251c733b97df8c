from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from neuroage.cohort import Cohort
from neuroage.errors import DataError, UsageError
from neuroage.imaging.duplicates import LARGEST_GROUP, SMALLEST_LARGEST, _join, find_duplicates
from neuroage.imaging.grouping import grouped_split
from neuroage.imaging.signatures import (
    choose_distance,
    find_near_pairs,
    measure_distances,
    measure_slopes,
    sign_slopes,
)


def texture(rng: np.random.Generator, sigma: float, side: int = 96) -> np.ndarray:
    field = gaussian_filter(rng.normal(size=(side, side)), sigma)
    return field / field.std()


def person(rng: np.random.Generator, anatomy: np.ndarray) -> np.ndarray:
    """A picture of somebody: the anatomy that all share, in which most of the contrast lies, and their own."""
    return np.clip(128 + 40 * anatomy + 25 * texture(rng, 2.0), 0, 255).astype(np.uint8)


def save(folder: Path, name: str, pixels: np.ndarray | Image.Image, **options: int) -> str:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(folder / name, **options)
    return str(folder / name)


def cohort_of(paths: list[str], **columns: list[object]) -> Cohort:
    names = [Path(path).name for path in paths]
    return Cohort(pd.DataFrame({"scan_id": names, "subject_id": names, "path": paths, **columns}))


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("people")
    anatomy = texture(rng, 8.0)
    return [save(folder, f"p{k:02d}.png", person(rng, anatomy)) for k in range(60)]


def test_people_who_all_look_alike_are_never_joined(people: list[str]) -> None:
    found = find_duplicates(cohort_of(people))
    assert found.report["groups"] == 0 and len(found.pairs) == 0
    pixels = np.stack([np.asarray(Image.open(path), dtype=float).ravel() for path in people])
    assert np.median(np.corrcoef(pixels)) > 0.6  # alike they are


def test_copies_are_found_whatever_was_done_to_them(people: list[str], tmp_path: Path) -> None:
    image = Image.open(people[0])
    pixels = np.asarray(image, dtype=float)
    copies = [
        save(tmp_path, "jpeg.jpg", image, quality=30),
        save(tmp_path, "half.png", image.resize((48, 48), Image.Resampling.BILINEAR)),
        save(tmp_path, "large.png", image.resize((150, 150), Image.Resampling.BICUBIC)),
        save(tmp_path, "bright.png", np.clip(pixels * 1.15 + 8, 0, 255).astype(np.uint8)),
        save(tmp_path, "gamma.png", (255 * (pixels / 255) ** 0.8).astype(np.uint8)),
    ]
    found = find_duplicates(cohort_of([*people, *copies]))
    groups = found.table.set_index("scan_id")["duplicate_group"]
    assert set(groups[groups != ""].index) == {"p00.png", *(Path(path).name for path in copies)}
    assert groups[groups != ""].nunique() == 1
    assert (found.pairs["kind"] == "near").all() and found.pairs["distance"].between(0, found.distance).all()


def test_equal_pixels_are_exact_duplicates_in_any_format(people: list[str], tmp_path: Path) -> None:
    image = Image.open(people[3])
    same = [
        save(tmp_path, "a.bmp", image),
        save(tmp_path, "b.png", image.convert("RGB")),
        save(tmp_path, "c.tif", image),
    ]
    found = find_duplicates(cohort_of([*people[:10], *same]), distance=0)
    assert set(found.pairs["kind"]) == {"exact"} and len(found.pairs) == 3
    assert found.report["scans_in_groups"] == 4 and found.report["exact_pairs"] == 3


def test_black_background_joins_nobody(tmp_path: Path) -> None:
    rng, paths = np.random.default_rng(1), []
    for k in range(30):
        pixels = np.zeros((80, 80), np.uint8)
        pixels[25:55, 25:55] = np.clip(130 + 50 * texture(rng, 2.0, 30), 0, 255)
        paths.append(save(tmp_path, f"{k}.png", pixels))
    assert find_duplicates(cohort_of(paths)).report["groups"] == 0


def test_neighbouring_slices_are_one_group_and_other_heads_are_not(tmp_path: Path) -> None:
    rng, paths = np.random.default_rng(2), []
    for head in range(4):
        volume = gaussian_filter(rng.normal(size=(24, 64, 64)), (6, 2, 2))
        volume = np.clip(128 + 50 * volume / volume.std(), 0, 255).astype(np.uint8)
        paths += [save(tmp_path, f"h{head}_{k:02d}.png", volume[k]) for k in range(0, 24, 2)]
    groups = find_duplicates(cohort_of(paths)).table["duplicate_group"]
    assert (groups != "").all() and groups.groupby([name[:7] for name in groups]).nunique().eq(1).all()
    assert groups.nunique() == 4


def test_pictures_without_edges_are_duplicates_only_when_equal(tmp_path: Path) -> None:
    paths = [save(tmp_path, f"{k}.png", np.full((32, 32), 10 * (k // 2), np.uint8)) for k in range(4)]
    groups = find_duplicates(cohort_of(paths)).table["duplicate_group"].tolist()
    assert groups == ["like-0.png", "like-0.png", "like-2.png", "like-2.png"]


def test_neither_order_nor_threads_matter(people: list[str], tmp_path: Path) -> None:
    copies = [save(tmp_path, f"z{k}.jpg", Image.open(people[k]), quality=40) for k in range(5)]
    cohort = cohort_of([*people[:20], *copies])
    first = find_duplicates(cohort, threads=1)
    shuffled = Cohort(cohort.table.sample(frac=1, random_state=0))
    second = find_duplicates(shuffled, threads=3)
    assert second.table["scan_id"].tolist() == shuffled.table["scan_id"].tolist()
    by_scan = first.table.set_index("scan_id")["duplicate_group"]
    assert second.table.set_index("scan_id")["duplicate_group"].loc[by_scan.index].equals(by_scan)
    assert second.pairs.equals(first.pairs) and len(first.pairs) == 5


def test_contradicting_labels_are_said(people: list[str], tmp_path: Path) -> None:
    paths = [*people[:6], save(tmp_path, "twin.png", Image.open(people[0]))]
    label = ["a", "a", "b", "b", "a", "b", "b"]
    found = find_duplicates(cohort_of(paths, label=label, label_Mass=[1, 0, 0, 0, 0, 0, 0]))
    assert len(found.conflicts) == 2
    assert found.conflicts[0].where == "p00.png, twin.png"
    assert "label a (1), b (1)" in found.conflicts[0].what and "label_Mass 1 (1), 0 (1)" in found.conflicts[1].what
    unknown = find_duplicates(cohort_of(paths, label=[*label[:-1], ""]))
    assert unknown.conflicts == [] and unknown.report["groups"] == 1


def test_the_cohort_gets_the_groups_and_the_findings(people: list[str], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    twin = save(tmp_path, "twin.png", Image.open(people[0]))
    cohort = cohort_of([*people[:4], twin, str(broken)], label=list("aaaaba"))
    with_groups = find_duplicates(cohort).add_to(cohort)
    assert with_groups.table["duplicate_group"].tolist() == ["like-p00.png", "", "", "", "like-p00.png", ""]
    assert [problem.where for problem in with_groups.problems] == ["p00.png, twin.png", "broken.png"]
    with pytest.raises(DataError, match="none of 1 pictures can be read"):
        find_duplicates(cohort_of([str(broken)]))


def test_pictures_of_several_subjects_in_one_group_are_noted(people: list[str], tmp_path: Path) -> None:
    paths = [people[0], people[1], save(tmp_path, "twin.png", Image.open(people[0]))]
    table = cohort_of(paths).table.assign(subject_id=["s1", "s1", "s2"])
    notes = find_duplicates(Cohort(table)).notes
    assert len(notes) == 1 and "hold several subjects, for example p00.png, twin.png" in notes[0].what


def test_volumes_are_compared_by_their_files(tmp_path: Path) -> None:
    rng, paths = np.random.default_rng(0), []
    for name in ("a", "b"):
        paths.append(str(tmp_path / f"{name}.nii"))
        nib.save(nib.Nifti1Image(rng.normal(size=(8, 8, 8)).astype(np.float32), np.eye(4)), paths[-1])
    paths.append(str(tmp_path / "c.nii"))
    Path(paths[-1]).write_bytes(Path(paths[0]).read_bytes())
    (tmp_path / "dicom").mkdir()
    found = find_duplicates(cohort_of([*paths, str(tmp_path / "dicom")]))
    assert found.table["duplicate_group"].tolist() == ["like-a.nii", "", "like-a.nii", ""]
    assert [note.action for note in found.notes] == ["compared by their files alone", "not compared"]


def test_a_chain_of_chance_likenesses_stops_growing() -> None:
    n = 4000
    chain = (np.arange(n - 1), np.arange(1, n), np.full(n - 1, 0.3))
    groups, n_apart = _join(np.arange(n), chain)
    largest = np.bincount(groups).max()
    assert largest <= LARGEST_GROUP * n and n_apart >= n / (LARGEST_GROUP * n) - 1
    sure = (chain[0], chain[1], np.full(n - 1, 0.05))
    assert np.bincount(_join(np.arange(n), sure)[0]).max() == n
    few, _ = _join(np.arange(40), (np.arange(39), np.arange(1, 40), np.full(39, 0.3)))
    assert np.bincount(few).max() == 40 <= SMALLEST_LARGEST


def test_blocks_find_what_every_pair_compared_finds() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(40, 2 * 63 * 63))
    noisy = np.repeat(base, 20, axis=0) + 0.6 * rng.normal(size=(800, base.shape[1]))
    signatures = sign_slopes(noisy.astype(np.float32))
    first, second = np.triu_indices(800, 1)
    distances = measure_distances(signatures, first, second)
    found = find_near_pairs(signatures, 0.4, threads=2)
    near = distances <= 0.4
    assert near.sum() == 40 * 190
    assert set(zip(found[0], found[1], strict=True)) == set(zip(first[near], second[near], strict=True))
    true = [float(np.corrcoef(noisy[a], noisy[b])[0, 1]) for a, b in zip(found[0][:50], found[1][:50], strict=True)]
    assert np.abs(1 - found[2][:50] - true).max() < 0.12  # four standard errors of 1,024 bits


def test_the_limit_falls_where_strangers_look_alike() -> None:
    rng = np.random.default_rng(0)
    shared, own = rng.normal(size=(1, 7938)), rng.normal(size=(400, 7938))
    subjects = np.arange(400).astype(str).astype(object)
    limits = [choose_distance(sign_slopes((w * shared + own).astype(np.float32)), subjects) for w in (0.0, 1.0, 1.6)]
    assert limits[0] == 0.45 > limits[1] > limits[2] >= 0.15


def test_brightness_contrast_and_size_leave_the_slopes_alone() -> None:
    pixels = texture(np.random.default_rng(0), 4.0, 128)[None]
    slopes = measure_slopes(pixels)
    assert np.linalg.norm(slopes) == pytest.approx(1, abs=1e-5)
    assert slopes @ measure_slopes(3 * pixels + 100) == pytest.approx(1, abs=1e-4)
    assert slopes @ measure_slopes(np.kron(pixels, np.ones((1, 3, 3)))) == pytest.approx(1, abs=1e-4)
    assert not measure_slopes(np.zeros((1, 20, 30))).any()
    assert not measure_slopes(np.full((1, 333, 47), 0.1)).any()


def test_a_distance_out_of_range_is_refused() -> None:
    with pytest.raises(UsageError, match=r"0 to 0\.8"):
        find_duplicates(Cohort(pd.DataFrame({"subject_id": ["a"]})), distance=1.5)


def test_the_public_split_keeps_like_pictures_on_one_side(people: list[str], tmp_path: Path) -> None:
    copies = [save(tmp_path, f"z{k:02d}.jpg", Image.open(path), quality=40) for k, path in enumerate(people)]
    cohort = cohort_of([*people, *copies], label=["a", "b", "b"] * 40)
    split = grouped_split(cohort, seed=3)
    sets = split.table.set_index("subject_id")["set"]
    assert all(sets[f"p{k:02d}.png"] == sets[f"z{k:02d}.jpg"] for k in range(60))
    assert split.groups()["z07.jpg"] == "p07.png"
    report = split.meta["report"]
    assert report["duplicates"]["groups"] == 60 and any("60 groups" in line for line in report["advice"])
    assert split.meta["cohort_digest"] == cohort.digest
    blind = grouped_split(cohort, duplicates=False, seed=3)
    assert "duplicates" not in blind.meta["report"] and blind.table["group"].nunique() == 120
    found = find_duplicates(cohort)
    assert grouped_split(cohort, duplicates=found, seed=3).digest == split.digest
    assert grouped_split(found.add_to(cohort), seed=3).digest == split.digest


@pytest.mark.parametrize("groups", [["site"], "site"])
def test_naming_a_further_group_does_not_tear_like_pictures_apart(
    people: list[str], tmp_path: Path, groups: object
) -> None:
    copies = [save(tmp_path, f"z{k:02d}.jpg", Image.open(path), quality=40) for k, path in enumerate(people)]
    cohort = cohort_of([*people, *copies], label=["a", "b", "b"] * 40)
    sets = grouped_split(cohort, groups=groups, seed=3).table.set_index("subject_id")["set"]
    assert all(sets[f"p{k:02d}.png"] == sets[f"z{k:02d}.jpg"] for k in range(60))
