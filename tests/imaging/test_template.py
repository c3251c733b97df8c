from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from neuroage.imaging.template import TURNS, Album, coarse_cube, compare_with, left_right_symmetry, turned_right

MAKE_WRONG = {
    "mirrored left–right": lambda a: a[..., ::-1],
    "upside down": lambda a: a[..., ::-1, ::-1],
    "mirrored and upside down": lambda a: a[..., ::-1, :],
    "turned by 90° clockwise": lambda a: np.rot90(a, -1, (-2, -1)),
    "turned by 90° anticlockwise": lambda a: np.rot90(a, 1, (-2, -1)),
    "mirrored and turned by 90° clockwise": lambda a: np.rot90(a[..., ::-1], -1, (-2, -1)),
    "mirrored and turned by 90° anticlockwise": lambda a: np.rot90(a[..., ::-1], 1, (-2, -1)),
}


def pictures(n: int, seed: int = 0) -> np.ndarray:
    """Pictures with one scene, on no axis symmetric, and noise of their own."""
    scene = ndimage.gaussian_filter(np.random.default_rng(99).normal(size=(128, 128)), 12)
    scene /= scene.std()
    rng = np.random.default_rng(seed)
    return np.stack([scene + 0.5 * ndimage.gaussian_filter(rng.normal(size=(128, 128)), 4) * 10 for _ in range(n)])


def coarse(data: np.ndarray) -> np.ndarray:
    return np.stack([coarse_cube(picture[None].astype(np.float32), (1.0, 1.0)) for picture in data])


def test_a_coarse_picture_is_a_square_of_a_32nd_with_mean_0_and_norm_1() -> None:
    square = coarse(pictures(1))[0]
    assert square.shape == (32, 32)
    assert (square.mean(), np.linalg.norm(square)) == pytest.approx((0, 1), abs=1e-5)
    gray = pictures(1)[0][None].astype(np.float32)
    np.testing.assert_allclose(coarse_cube(np.repeat(gray, 3, axis=0), (1.0, 1.0)), square, atol=1e-5)
    assert coarse_cube(gray[:, :64], (1.0, 1.0)).shape == (32, 32)


def test_every_wrong_turn_is_named_and_turned_right_undoes_it() -> None:
    album, new = Album(coarse(pictures(20))), coarse(pictures(4, seed=1))
    assert set(MAKE_WRONG) | {""} == set(TURNS)
    for turn, make_wrong in MAKE_WRONG.items():
        wrong = np.ascontiguousarray(make_wrong(new))
        np.testing.assert_array_equal(turned_right(wrong, turn), new)
        for compared, plain in zip(album.compare(wrong), album.compare(new), strict=True):
            assert compared.likeness < plain.likeness - 0.2
            if turn == "mirrored left–right":
                assert compared.more["mirrored"] > 0.2
            else:
                assert compared.turn == turn
                assert compared.likeness + compared.turned == pytest.approx(plain.likeness, abs=1e-5)


def test_a_turned_picture_of_something_symmetric_is_not_called_mirrored() -> None:
    data = pictures(20)
    symmetric = coarse(data + data[..., ::-1])
    assert left_right_symmetry(symmetric[0]) > 0.99
    wrong = np.ascontiguousarray(np.rot90(symmetric[:2], -1, (1, 2)))
    assert {compared.turn for compared in Album(symmetric).compare(wrong)} == {"turned by 90° clockwise"}


def test_inverted_pictures_gain_when_inverted_again() -> None:
    album, new = Album(coarse(pictures(20))), coarse(pictures(3, seed=2))
    assert all(compared.more["inverted"] < -0.5 for compared in album.compare(new))
    assert all(compared.more["inverted"] > 0.5 for compared in album.compare(-new))


def test_pictures_of_several_kinds_are_each_like_their_own() -> None:
    data = pictures(30)
    album = compare_with(np.concatenate([coarse(data), coarse(np.rot90(data, 1, (1, 2)))]))
    new = pictures(2, seed=3)
    for kind in (new, np.rot90(new, 1, (1, 2))):
        assert all(compared.likeness > 0.8 for compared in album.compare(coarse(kind)))
