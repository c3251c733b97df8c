import nibabel as nib
import numpy as np
import pytest

from neuroage.errors import DataError, UsageError
from neuroage.imaging.intensities import bin_levels, otsu_threshold
from neuroage.imaging.prepare import at_half_spacing, prepare
from neuroage.imaging.read import Volume
from neuroage.runs.recipe import Binning, Prepare, Recipe

RNG = np.random.default_rng(0)


def ball(
    shape: tuple[int, int, int] = (40, 44, 36), centre: tuple[float, float, float] = (20, 22, 18), radius: float = 12
) -> Volume:
    axes = np.meshgrid(*[np.arange(n) - c for n, c in zip(shape, centre, strict=True)], indexing="ij")
    distance = np.sqrt(sum(axis**2 for axis in axes))
    data = np.where(distance < radius, 100 + 20 * axes[0] / radius, 0).astype(np.float32)
    return Volume(data[None], np.diag([2.0, 2.0, 2.0, 1.0]))


def recipe(**values: object) -> Prepare:
    return Recipe.from_dict({"prepare": {"spacing_mm": 2.0, "size": [30, 30, 30], **values}}).prepare


def test_the_same_volume_and_recipe_give_the_same_numbers() -> None:
    first, second = prepare(ball(), recipe()), prepare(ball(), recipe())
    np.testing.assert_array_equal(first.data, second.data)
    assert first.record == second.record


def test_size_and_spacing_are_the_recipes() -> None:
    prepared = prepare(ball(), recipe(spacing_mm=[3.0, 2.0, 4.0], size=[20, 24, 16]))
    assert prepared.data.shape == (1, 20, 24, 16)
    np.testing.assert_allclose(np.linalg.norm(prepared.affine[:3, :3], axis=0), [3, 2, 4])


@pytest.mark.parametrize("centre", [(20, 22, 18), (14, 28, 22), (25.5, 18, 15)])
def test_the_head_is_in_the_middle_wherever_it_lies(centre: tuple[float, float, float]) -> None:
    data = prepare(ball(centre=centre), recipe(intensity="none")).data[0]
    where = np.argwhere(data > 50)
    middle = (where.min(axis=0) + where.max(axis=0)) / 2
    assert np.abs(middle - 14.5).max() <= 2  # a head is sought on a grid of 3 mm


def test_a_neck_does_not_pull_the_field_of_view_down() -> None:
    volume = ball((40, 44, 60), (20, 22, 44))
    volume.data[0, 12:28, 14:30, :36] = 100
    data = prepare(volume, recipe(intensity="none")).data[0]
    top = np.argwhere(data > 50)[:, 2].max()
    assert 25 <= top <= 29


def test_a_voxel_keeps_its_place_in_space() -> None:
    volume = ball()
    prepared = prepare(volume, recipe(spacing_mm=3.0, size=[24, 24, 24], intensity="none"))
    world = np.array([44.0, 40.0, 36.0, 1.0])
    before = volume.data[0][tuple(np.round(np.linalg.solve(volume.affine, world)[:3]).astype(int))]
    after = prepared.data[0][tuple(np.round(np.linalg.solve(prepared.affine, world)[:3]).astype(int))]
    assert after == pytest.approx(before, abs=4)


def test_scans_on_a_template_grid_are_centred_on_the_template() -> None:
    volume = ball((46, 55, 46), (16, 30, 20))
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = np.array([0, -18, 18]) - 4 * (np.array([46, 55, 46]) - 1) / 2
    placed = prepare(Volume(volume.data, affine), recipe(spacing_mm=4.0, size=[40, 48, 40]))
    assert placed.record["centred_on"] == "template"
    np.testing.assert_allclose(
        placed.affine[:3, :3] @ [19.5, 23.5, 19.5] + placed.affine[:3, 3], [0, -18, 18], atol=2
    )  # half a voxel: not interpolated
    assert prepare(volume, recipe()).record["centred_on"] == "head"


def test_coarser_voxels_are_averages_not_samples() -> None:
    noise = Volume(RNG.normal(100, 10, (1, 48, 48, 48)).astype(np.float32), np.eye(4))
    fine = prepare(
        noise, recipe(spacing_mm=1.0, size=[16, 16, 16], centre="image", intensity="none", clip_percentiles=None)
    ).data
    coarse = prepare(
        noise, recipe(spacing_mm=4.0, size=[8, 8, 8], centre="image", intensity="none", clip_percentiles=None)
    ).data
    assert coarse.mean() == pytest.approx(fine.mean(), rel=0.01)
    assert coarse.std() < fine.std() / 4


def test_intensities_do_not_depend_on_the_scanners_units() -> None:
    plain, louder = ball(), ball()
    louder = Volume(louder.data * 37, louder.affine)
    for intensity in ("zscore", "mean", "percentile"):
        a, b = prepare(plain, recipe(intensity=intensity)).data, prepare(louder, recipe(intensity=intensity)).data
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_zscore_has_mean_zero_and_spread_one_over_the_foreground() -> None:
    data = prepare(ball(), recipe(clip_percentiles=None, foreground="nonzero")).data
    inside = data > data.min()
    assert data[inside].mean() == pytest.approx(0, abs=0.02)
    assert data[inside].std() == pytest.approx(1, abs=0.05)


def test_percentile_scaling_lies_between_zero_and_one() -> None:
    data = prepare(ball(), recipe(intensity="percentile")).data
    assert (data.min(), data.max()) == (0, 1)


def test_a_label_map_becomes_the_share_of_labelled_voxels() -> None:
    labels = Volume((ball().data > 0) * RNG.integers(1, 6, ball().data.shape).astype(np.float32), ball().affine)
    fine = prepare(labels, recipe(labels=True, intensity="none", clip_percentiles=None))
    assert set(np.unique(fine.data)) == {0.0, 1.0}
    coarse = prepare(
        labels, recipe(labels=True, intensity="none", clip_percentiles=None, spacing_mm=5.0, size=[12, 12, 12])
    )
    assert 0 < ((coarse.data > 0.05) & (coarse.data < 0.95)).mean() < 0.5
    assert coarse.data.sum() * 125 == pytest.approx(fine.data.sum() * 8, rel=0.05)


def test_an_empty_field_of_view_is_an_error() -> None:
    volume = ball((60, 60, 60), (8, 8, 8), 6)
    with pytest.raises(DataError, match="field of view"):
        prepare(volume, recipe(size=[16, 16, 16], centre="image"))


@pytest.mark.parametrize("levels", [2, 5, 32])
@pytest.mark.parametrize("method", ["equal_width", "quantile"])
def test_binning_gives_that_many_levels_between_zero_and_one(method: str, levels: int) -> None:
    data = RNG.random(size=(12, 12, 12)).astype(np.float32)
    binned = bin_levels(data, Binning(method=method, levels=levels))
    np.testing.assert_allclose(np.unique(binned), np.arange(levels) / (levels - 1), atol=1e-6)
    order = np.argsort(data.ravel())
    assert (np.diff(binned.ravel()[order]) >= 0).all()


def test_quantile_levels_hold_equally_many_voxels() -> None:
    binned = bin_levels(RNG.exponential(size=4000).astype(np.float32), Binning(method="quantile", levels=4))
    assert np.unique(binned, return_counts=True)[1].tolist() == pytest.approx([1000] * 4, abs=2)


def test_binarising_at_a_threshold_a_percentile_and_otsus() -> None:
    data = np.concatenate([RNG.normal(0, 1, 900), RNG.normal(20, 1, 100)]).astype(np.float32)
    assert bin_levels(data, Binning(method="threshold", at=10)).sum() == 100
    assert bin_levels(data, Binning(method="percentile", at=80)).sum() == pytest.approx(200, abs=1)
    assert bin_levels(data, Binning(method="otsu")).sum() == 100
    assert 4 < otsu_threshold(data) < 17


def test_native_binning_keeps_thin_vessels_as_fractions() -> None:
    data = np.zeros((1, 40, 40, 40), np.float32)
    data[0, 20, 20, 5:35] = 200
    data += RNG.normal(20, 2, data.shape).astype(np.float32)
    volume = Volume(data, np.eye(4))
    common = dict(spacing_mm=4.0, size=[10, 10, 10], centre="image", intensity="none", clip_percentiles=None)
    native = prepare(volume, recipe(**common, binning={"method": "threshold", "at": 100, "native": True})).data
    assert 0.7 < native.sum() * 64 / 30 < 1.3  # the vessel's volume is kept, though no coarse voxel is full
    late = prepare(volume, recipe(**common, binning={"method": "threshold", "at": 100})).data
    assert late.sum() == 0  # once averaged, no voxel passes the threshold


@pytest.mark.parametrize(
    "binning",
    [{"method": "threshold"}, {"method": "otsu", "at": 3}, {"method": "percentile", "at": 120}, {"levels": 1}],
)
def test_binning_without_meaning_is_refused(binning: dict) -> None:
    with pytest.raises(Exception, match=r"prepare\.binning"):
        recipe(binning=binning)


def stored_template_brain() -> Volume:
    """A brain on the 182 × 218 × 182 grid of the 1 mm template, values in no unit, as `read` gives it (RAS+)."""
    rng = np.random.default_rng(3)
    data = np.zeros((182, 218, 182), np.float32)
    data[20:160, 25:195, 10:150] = rng.gamma(9, 40, (140, 170, 140))
    affine = np.eye(4)
    affine[:3, 3] = [-91, -126, -72]
    return Volume(data[None], affine, "LAS")


def test_the_preset_sfcn_ukb_is_the_published_input() -> None:
    volume = stored_template_brain()
    prepared = prepare(volume, Recipe.from_dict({"prepare": {"preset": "sfcn_ukb"}}).prepare)
    stored = volume.data[0, ::-1]  # as FSL stores it: the first axis from right to left
    scaled = stored / stored.mean(dtype=np.float64)  # over the whole grid, air included …
    expected = scaled[11:171, 13:205, 11:171]  # … and only then the middle
    np.testing.assert_allclose(prepared.data[0], expected, rtol=1e-5)
    assert prepared.record["orientation"] == "LAS+"
    assert prepared.data.max() > 2 * np.percentile(prepared.data, 99), "nothing is clipped"


def test_a_preset_fills_the_section_and_keys_beside_it_win() -> None:
    made = Recipe.from_dict({"prepare": {"preset": "li2017", "spacing_mm": 2.0, "size": [80, 96, 80]}}).prepare
    assert (made.spacing_mm, made.size, made.statistics, made.clip_percentiles) == (2.0, (80, 96, 80), "grid", None)
    assert made.histogram is not None and made.histogram.landmarks == "li2017"
    spelt = made.model_dump(mode="json")
    assert spelt["intensity"] == "zscore" and spelt["histogram"] == {"landmarks": "li2017", "over": "all"}
    again = Recipe.from_dict({"prepare": spelt}).prepare
    assert again == made
    by_hand = Recipe.from_dict({"prepare": {key: value for key, value in spelt.items() if key != "preset"}}).prepare
    assert by_hand.digest == made.digest, "the same preparation, whoever named it"


def test_a_preset_on_the_command_line_takes_the_place_of_the_section() -> None:
    base = Recipe.from_dict({"prepare": {"spacing_mm": 3.0, "intensity": "mean", "size": [40, 40, 40]}})
    made = base.updated("prepare.preset=sfcn_ukb", "prepare.spacing_mm=2.0").prepare
    assert (made.preset, made.spacing_mm, made.size, made.orientation) == ("sfcn_ukb", 2.0, (160, 192, 160), "LAS")
    with pytest.raises(UsageError, match=r"prepare\.preset.*li2017"):
        base.updated("prepare.preset=li2018")


@pytest.mark.parametrize("intensity", ["zscore", "mean", "percentile"])
def test_statistics_of_the_grid_do_not_depend_on_the_field_of_view(intensity: str) -> None:
    common = {"spacing_mm": 2.0, "centre": "image", "intensity": intensity, "statistics": "grid"}
    small, large = (prepare(ball(), recipe(**common, size=[n, n, n])).data[0] for n in (16, 24))
    np.testing.assert_allclose(small, large[4:-4, 4:-4, 4:-4], atol=1e-6)
    seen = [
        prepare(ball(), recipe(**{**common, "statistics": "field_of_view"}, size=[n, n, n])).data[0] for n in (16, 24)
    ]
    assert intensity == "percentile" or np.abs(seen[0] - seen[1][4:-4, 4:-4, 4:-4]).max() > 1e-3


@pytest.mark.parametrize("spacing_mm", [2.0, 3.0])
def test_las_is_the_mirror_image_of_ras_and_every_voxel_keeps_its_place(spacing_mm: float) -> None:
    turned = ball(centre=(17, 24, 19))
    angle = np.deg2rad(11)
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    turned.affine[:3, :3] = rotation @ turned.affine[:3, :3]
    ras, las = (
        prepare(turned, recipe(spacing_mm=spacing_mm, size=[22, 24, 20], orientation=axes)) for axes in ("RAS", "LAS")
    )
    np.testing.assert_array_equal(las.data, ras.data[:, ::-1])
    voxel = np.array([5, 7, 3, 1])
    mirrored = np.array([22 - 1 - 5, 7, 3, 1])
    np.testing.assert_allclose(las.affine @ mirrored, ras.affine @ voxel, atol=1e-9)
    assert las.data[(0, *mirrored[:3])] == ras.data[(0, *voxel[:3])]
    assert nib.aff2axcodes(las.affine) == ("L", "A", "S") and nib.aff2axcodes(ras.affine) == ("R", "A", "S")
    assert (ras.record["orientation"], las.record["orientation"]) == ("RAS+", "LAS+")


def test_li2017_on_a_whole_head_has_mean_zero_above_the_mean() -> None:
    rng = np.random.default_rng(5)
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in (80, 90, 84)], indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    data = np.where(radius < 0.9, 400 + 300 * np.cos(7 * radius), 0) + rng.gamma(2, 8, radius.shape)
    volume = Volume(data[None].astype(np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    made = prepare(volume, recipe(preset="li2017", spacing_mm=2.0, size=[80, 90, 84], centre="image"))
    standardised = made.data[0] * made.record["foreground_std"] + made.record["foreground_mean"]
    above = standardised > standardised.mean()
    assert made.data[0][above].mean() == pytest.approx(0, abs=1e-3)
    assert made.data[0][above].std() == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(np.percentile(standardised, [1, 50, 99]), [0, 29.986, 100], atol=0.5)


def head_of_two_tissues(spacing_mm: float) -> Volume:
    """A ball of two tissues in fine shells, as a scanner with such voxels sees it: each voxel is their mean."""
    fine = 48  # voxels of 1 mm
    axes = np.meshgrid(*[np.arange(fine) - (fine - 1) / 2] * 3, indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    data = np.where(radius < 20, np.where(np.floor(radius / 1.5) % 2 > 0, 100.0, 40.0), 0.0)
    step = round(spacing_mm)
    n = fine // step
    data = data.reshape(n, step, n, step, n, step).mean(axis=(1, 3, 5)) if step > 1 else data
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = (step - 1) / 2
    return Volume(data[None].astype(np.float32), affine, "RAS")


def test_shares_of_levels_depend_less_on_the_scanners_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Prepare(spacing_mm=4.0, size=(12, 12, 12), centre="image", fractions=(-2, -1, 0, 1), store_as="float32")

    def apart() -> float:
        fine, coarse = (prepare(head_of_two_tissues(spacing), recipe).data for spacing in (1.0, 2.0))
        return float(np.abs(fine - coarse).sum() / coarse.sum())

    at_half = apart()
    monkeypatch.setattr("neuroage.imaging.prepare.NEARLY", 0.0)  # every scan on its own grid
    assert at_half < 0.5 * apart()


def test_a_scan_that_is_not_finer_is_left_on_its_own_grid() -> None:
    volume = head_of_two_tissues(2.0)
    index = np.array([3.0, 4.5, 6.0])
    data, affine, place = at_half_spacing(volume.data[0], volume.affine, index, (4.0, 4.0, 4.0))
    assert data is volume.data[0] or np.shares_memory(data, volume.data)
    np.testing.assert_array_equal(affine, volume.affine)
    np.testing.assert_array_equal(place, index)


def test_a_finer_scan_keeps_its_places() -> None:
    volume = head_of_two_tissues(1.0)
    index = np.array([3.0, 20.5, 40.0])
    data, affine, place = at_half_spacing(volume.data[0], volume.affine, index, (4.0, 4.0, 4.0))
    assert data.shape == (24, 24, 24)
    np.testing.assert_allclose(
        affine[:3, :3] @ place + affine[:3, 3], volume.affine[:3, :3] @ index + volume.affine[:3, 3]
    )


@pytest.mark.parametrize("foreground", ["above_mean", "all"])
def test_shares_of_levels_do_not_depend_on_the_air_around_the_head(foreground: str) -> None:
    recipe = Prepare(
        spacing_mm=4.0, size=(12, 12, 12), centre="image", foreground=foreground,
        fractions=(-2, -1, 0, 1), store_as="float32",
    )  # fmt: skip
    tight = head_of_two_tissues(2.0)
    wide = Volume(np.pad(tight.data, ((0, 0), (6, 6), (0, 0), (7, 7))), tight.affine, "RAS")
    close = Volume(tight.data[:, 2:-2, 2:-2, 2:-2], tight.affine, "RAS")  # the field of view reaches beyond it
    expected = prepare(tight, recipe).data

    np.testing.assert_allclose(prepare(wide, recipe).data, expected, atol=1e-5)
    np.testing.assert_allclose(prepare(close, recipe).data, expected, atol=1e-5)
    whole = prepare(wide, recipe.model_copy(update={"statistics": "grid"})).data
    assert np.abs(whole - expected).max() > 0.05, "the whole grid has more air"
