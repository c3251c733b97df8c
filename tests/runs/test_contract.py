from __future__ import annotations

import numpy as np
import pytest

from neuroage.runs.concerns import verdict_of
from neuroage.runs.contract import InputContract
from neuroage.runs.departures import Concern
from neuroage.runs.measures import MEASURES

USUAL = {
    "voxel_mm": 1.0,
    "voxel_ratio": 1.1,
    "field_mm_r": 180.0,
    "field_mm_a": 220.0,
    "field_mm_s": 180.0,
    "head_ml": 1500.0,
    "head_mm_r": 130.0,
    "head_mm_a": 160.0,
    "head_mm_s": 130.0,
    "background_share": 0.7,
    "border_level": 0.01,
    "brightness": 400.0,
    "middle_level": 0.5,
    "bright_tail": 1.6,
    "negative_share": 0.0,
    "distinct_values": 300.0,
    "blur_mm": 1.0,
    "symmetry": 0.97,
    "likeness": 0.95,
    "turned": -0.1,
    "first_layer": 1.0,
    "features": 1.0,
}
USUAL_PICTURE = {
    "aspect_ratio": 1.0,
    "megapixels": 1.05,
    "margin_share": 0.02,
    "black_share": 0.05,
    "white_share": 0.001,
    "colourfulness": 0.0,
    "border_level": 0.4,
    "brightness": 0.8,
    "middle_level": 0.6,
    "bright_tail": 1.5,
    "distinct_values": 220.0,
    "blur_px": 1.1,
    "symmetry": 0.9,
    "likeness": 0.85,
    "turned": -0.3,
    "mirrored": -0.01,
    "inverted": -0.9,
    "first_layer": 1.0,
    "features": 1.0,
}
RECORD = {"native_spacing_mm": [1.0, 1.0, 1.0], "mean": 0.1, "std": 1.0, "foreground_share": 0.4}


def scans(n_scans: int, seed: int, spread: float = 0.06, usual: dict[str, float] = USUAL) -> list[dict[str, float]]:
    rng = np.random.default_rng(seed)
    return [
        {key: value * float(np.exp(spread * rng.standard_normal())) for key, value in usual.items()}
        for _ in range(n_scans)
    ]


def contract(n_scans: int = 60, seed: int = 0, spread: float = 0.06) -> InputContract:
    ages = np.linspace(20, 80, n_scans)
    measures = scans(n_scans, seed, spread)
    return InputContract.of("t1", (2.0, 2.0, 2.0), (8, 8, 8), [RECORD] * n_scans, ages, measures)


def test_every_measure_is_in_these_tests() -> None:
    assert set(USUAL) | set(USUAL_PICTURE) == set(MEASURES)
    assert set(contract().ranges) == set(USUAL)
    assert set(contract_of_pictures().ranges) == set(USUAL_PICTURE)


def contract_of_pictures() -> InputContract:
    record = {**RECORD, "native_spacing_mm": [1.0, 1.0], "native_size": [1024, 1024]}
    measures = scans(80, 0, usual=USUAL_PICTURE)
    return InputContract.of("xray", (1.0, 1.0), (128, 128), [record] * 80, np.full(80, np.nan), measures)


@pytest.mark.parametrize(
    ("changes", "verdict", "words"),
    [
        ({"likeness": -0.1, "inverted": 0.9, "turned": 0.3, "border_level": 0.9}, "refuse", "dark and bright"),
        ({"likeness": 0.2, "turned": 0.6}, "refuse", "turned by 90° clockwise"),
        (
            {"aspect_ratio": 0.5, "likeness": 0.4, "turned": 0.45, "features": 9.0},
            "refuse",
            "hardly like the training p",
        ),
        ({"likeness": 0.45, "features": 9.0}, "refuse", "another kind of picture"),
        ({"distinct_values": 4.0}, "refuse", "only 4 distinct values"),
        ({"mirrored": 0.2}, "warn", "left and right are exchanged"),
        ({"white_share": 0.4}, "warn", "widen the window"),
        ({"margin_share": 0.4}, "warn", "empty margins"),
        ({"blur_px": 4.0}, "warn", "smoothed"),
        ({"colourfulness": 0.2}, "warn", "photograph"),
        ({"megapixels": 0.01}, "warn", "full size"),
        ({"aspect_ratio": 1.8}, "warn", "stretched"),
    ],
)
def test_each_mistake_with_pictures_has_a_verdict_and_its_own_words(
    changes: dict[str, float], verdict: str, words: str
) -> None:
    concerns = contract_of_pictures().concerns(RECORD, {**USUAL_PICTURE, **changes}, "turned by 90° clockwise")
    assert verdict_of(concerns) == verdict, list(map(str, concerns))
    assert any(words in str(concern) for concern in concerns), list(map(str, concerns))
    assert not any("scan" in str(concern) or "head" in str(concern) for concern in concerns)


def test_usual_pictures_raise_no_concern_and_need_no_age() -> None:
    made = contract_of_pictures()
    assert made.n_scans == 80 and np.isnan(made.age_years).all()
    flagged = [bool(made.concerns(RECORD, picture)) for picture in scans(300, 7, usual=USUAL_PICTURE)]
    assert np.mean(flagged) <= 0.05


@pytest.mark.parametrize("n_scans", [30, 60, 200])
@pytest.mark.parametrize("spread", [0.02, 0.2])
def test_at_most_one_in_twenty_new_scans_of_the_same_kind_raises_a_concern(n_scans: int, spread: float) -> None:
    made = contract(n_scans, seed=n_scans, spread=spread)
    flagged = [bool(made.concerns(RECORD, scan)) for scan in scans(300, 1_000, spread)]
    assert np.mean(flagged) <= 0.05


def test_a_few_failed_scans_in_training_do_not_hide_mistakes() -> None:
    measures = [*scans(98, 0), *({**USUAL, "head_ml": 12_000.0} for _ in range(2))]
    made = InputContract.of("t1", (2.0,) * 3, (8,) * 3, [RECORD] * 100, np.linspace(20, 80, 100), measures)
    assert verdict_of(made.concerns(RECORD, {**USUAL, "head_ml": 12_000.0})) == "refuse"


@pytest.mark.parametrize(
    ("changes", "verdict", "words"),
    [
        ({"distinct_values": 3.0}, "refuse", "only 3 distinct values"),
        ({"voxel_mm": 10.0, "head_ml": 1.5e6}, "refuse", "centimetres taken for millimetres"),
        ({"voxel_mm": 0.001, "head_ml": 1.5e-6}, "refuse", "metres or micrometres"),
        ({"voxel_mm": 2.0, "head_ml": 12e3}, "refuse", "wrong voxel size"),
        ({"turned": 0.1, "likeness": 0.85}, "refuse", "flipped front–back"),
        ({"border_level": 1.0, "likeness": -0.5}, "refuse", "inverted"),
        ({"head_ml": 4000.0, "head_mm_s": 200.0, "background_share": 0.2}, "refuse", "skull is still on"),
        ({"likeness": 0.2}, "refuse", "hardly like"),
        ({"brightness": 4e5}, "warn", "other units"),
        ({"blur_mm": 3.0}, "warn", "smoothed"),
        ({"field_mm_s": 60.0, "head_mm_s": 60.0}, "warn", "part of the head is missing"),
        ({"features": 30.0}, "warn", "network's features"),
        ({"negative_share": 0.4}, "warn", "standardised or centred"),
        ({"bright_tail": float("nan")}, "warn", "brightest parts"),
    ],
)
def test_each_mistake_has_a_verdict_and_its_own_words(changes: dict[str, float], verdict: str, words: str) -> None:
    concerns = contract().concerns(RECORD, {**USUAL, **changes}, "flipped front–back")
    assert verdict_of(concerns) == verdict
    assert any(words in str(concern) for concern in concerns), list(map(str, concerns))


def test_what_a_grave_concern_explains_is_not_said_twice() -> None:
    concerns = contract().concerns(RECORD, {**USUAL, "voxel_mm": 10.0, "head_ml": 1.5e6, "field_mm_r": 1800.0})
    assert len(concerns) == 1


def test_an_image_is_refused_by_a_run_on_label_maps() -> None:
    labels = [{**scan, "distinct_values": 5.0} for scan in scans(40, 0)]
    made = InputContract.of("tof", (2.0,) * 3, (8,) * 3, [RECORD] * 40, np.linspace(20, 80, 40), labels)
    assert not made.concerns(RECORD, {**USUAL, "distinct_values": 5.0, "middle_level": 0.0, "bright_tail": 9.0})
    found = made.concerns(RECORD, {**USUAL, "distinct_values": 500.0})
    assert verdict_of(found) == "refuse" and "not a label map" in found[0].what


def test_a_verdict_is_the_gravest_concern() -> None:
    assert verdict_of([]) == "ok"
    assert verdict_of([Concern("odd")]) == "warn"
    assert verdict_of([Concern("odd"), Concern("wrong", "mend it", True)]) == "refuse"
    assert str(Concern("odd", "look at it")) == "odd (look at it)"


def test_a_contract_without_measures_is_the_smaller_one() -> None:
    few = InputContract.of("t1", (2.0,) * 3, (8,) * 3, [RECORD] * 4, np.linspace(20, 80, 4))
    assert not few.is_full
    old = {
        key: value
        for key, value in few.to_dict().items()
        if key not in ("ranges", "margin", "native_size", "native_orientations")
    }
    again = InputContract.from_dict(old)
    assert again.concerns(RECORD, USUAL) == []
    assert "voxels" in again.concerns({**RECORD, "native_spacing_mm": [10.0, 10.0, 10.0]})[0].what
