"""Every kind of picture file, made here: what is read equals what was written."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from neuroage.errors import DataError, UsageError
from neuroage.imaging.picture import read_picture
from neuroage.imaging.picture_form import luminance

GRAY = np.random.default_rng(0).integers(0, 256, (20, 30)).astype(np.uint8)
DEEP = np.random.default_rng(1).integers(0, 65536, (20, 30)).astype(np.uint16)
COLOUR = np.random.default_rng(2).integers(0, 256, (20, 30, 3)).astype(np.uint8)
SMOOTH = np.add.outer(np.arange(64), 2 * np.arange(48)).astype(np.uint8)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def deep_png(path: Path, pixels: np.ndarray, colour_type: int) -> Path:
    """Write a PNG of 16 bits a channel, which Pillow cannot: 0 gray, 2 RGB, 4 gray and alpha, 6 RGB and alpha."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, colour_type, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".webp"])
def test_gray_and_colours_come_back_exactly_from_every_lossless_format(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True, "exact": True} if suffix == ".webp" else {}
    gray = read_picture(save(tmp_path / f"gray{suffix}", Image.fromarray(GRAY), **options))
    np.testing.assert_array_equal(gray.data[0], GRAY)
    assert (gray.data.shape, gray.data.dtype, gray.full_scale) == ((1, 20, 30), np.float32, 255)
    colour = read_picture(save(tmp_path / f"colour{suffix}", Image.fromarray(COLOUR), **options))
    np.testing.assert_array_equal(colour.data, COLOUR.transpose(2, 0, 1))
    assert "colour" in colour.stored and "gray" in gray.stored


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_comes_back_nearly_and_gray_ones_in_colours_are_gray(tmp_path: Path, mode: str) -> None:
    picture = read_picture(save(tmp_path / "a.jpg", Image.fromarray(SMOOTH).convert(mode), quality=95))
    assert picture.data.shape == (1, 64, 48)
    assert np.abs(picture.data[0] - SMOOTH).max() <= 6


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "1"])
def test_gray_pictures_stored_in_any_mode_are_gray(tmp_path: Path, mode: str) -> None:
    pixels = GRAY if mode != "1" else np.where(GRAY > 127, 255, 0).astype(np.uint8)
    image = Image.fromarray(pixels)
    if mode == "P":
        image = Image.fromarray(pixels).copy()
        image.putpalette([level for level in range(256) for _ in range(3)])
    picture = read_picture(save(tmp_path / "a.png", image.convert(mode) if mode != "P" else image))
    np.testing.assert_array_equal(picture.data[0] / picture.full_scale, pixels.astype(np.float32) / 255)
    assert picture.data.shape[0] == 1


def test_opaque_alpha_is_dropped_and_transparency_is_laid_over_black(tmp_path: Path) -> None:
    alpha = np.full(GRAY.shape, 255, np.uint8)
    rgba = np.dstack([COLOUR, alpha])
    opaque = read_picture(save(tmp_path / "opaque.png", Image.fromarray(rgba)))
    np.testing.assert_array_equal(opaque.data, COLOUR.transpose(2, 0, 1))
    assert not any("transparent" in note for note in opaque.notes)
    rgba[:10, :, 3] = 0
    picture = read_picture(save(tmp_path / "half.png", Image.fromarray(rgba)))
    assert (picture.data[:, :10] == 0).all()
    np.testing.assert_array_equal(picture.data[:, 10:], COLOUR.transpose(2, 0, 1)[:, 10:])
    assert any("transparent" in note for note in picture.notes)


def test_a_palette_with_a_transparent_entry_is_laid_over_black(tmp_path: Path) -> None:
    image = Image.frombytes("P", (30, 20), (GRAY > 100).astype(np.uint8).tobytes())
    image.putpalette([10, 200, 30, 250, 40, 60])
    picture = read_picture(save(tmp_path / "a.png", image, transparency=1))
    dark = GRAY <= 100
    assert (picture.data[:, ~dark] == 0).all()
    np.testing.assert_array_equal(picture.data[:, dark][:, 0], [10, 200, 30])


def test_sixteen_bits_are_neither_clipped_nor_cut(tmp_path: Path) -> None:
    for path in (deep_png(tmp_path / "a.png", DEEP, 0), save(tmp_path / "a.tif", Image.fromarray(DEEP))):
        picture = read_picture(path)
        np.testing.assert_array_equal(picture.data[0], DEEP)
        assert picture.full_scale == 65535 and "16 bit gray" in picture.stored


@pytest.mark.parametrize("compressed", [False, True])
def test_sixteen_bit_tiff_of_either_byte_order(tmp_path: Path, compressed: bool) -> None:
    big = Image.frombytes("I;16B", (30, 20), DEEP.astype(">u2").tobytes())
    options = {"compression": "tiff_deflate"} if compressed else {}
    picture = read_picture(save(tmp_path / "a.tif", big, **options))
    np.testing.assert_array_equal(picture.data[0], DEEP)


@pytest.mark.parametrize(("colour_type", "n"), [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bit_colours_and_alpha_keep_all_bits(tmp_path: Path, colour_type: int, n: int) -> None:
    pixels = np.random.default_rng(n).integers(0, 65536, (11, 13, n)).astype(np.uint16)
    if n in (2, 4):
        pixels[..., -1] = 65535
    picture = read_picture(deep_png(tmp_path / "a.png", pixels, colour_type))
    expected = pixels[..., : 1 if n == 2 else 3].transpose(2, 0, 1)
    np.testing.assert_array_equal(picture.data, expected)
    assert picture.full_scale == 65535


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bit_colours_of_a_tiff_keep_all_bits(tmp_path: Path, order: str) -> None:
    pixels = np.random.default_rng(5).integers(0, 65536, (11, 13, 3)).astype(np.uint16)
    shorts = {256: 13, 257: 11, 259: 1, 262: 2, 277: 3, 278: 11}
    entries = {tag: struct.pack(order + "HHIHH", tag, 3, 1, value, 0) for tag, value in shorts.items()}
    end = 8 + 2 + 12 * 9 + 4
    entries[258] = struct.pack(order + "HHII", 258, 3, 3, end)
    entries[273] = struct.pack(order + "HHII", 273, 4, 1, end + 6)
    entries[279] = struct.pack(order + "HHII", 279, 4, 1, pixels.nbytes)
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, 9)
    content = (
        header + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4) + struct.pack(order + "3H", *[16] * 3)
    )
    (tmp_path / "a.tif").write_bytes(content + pixels.astype(f"{order}u2").tobytes())
    picture = read_picture(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.data, pixels.transpose(2, 0, 1))
    assert picture.full_scale == 65535


def test_deep_transparency_is_laid_over_black_too(tmp_path: Path) -> None:
    pixels = np.dstack([DEEP, np.where(np.arange(30) < 15, 0, 65535)[None].repeat(20, 0)]).astype(np.uint16)
    picture = read_picture(deep_png(tmp_path / "a.png", pixels, 4))
    assert (picture.data[0, :, :15] == 0).all()
    np.testing.assert_array_equal(picture.data[0, :, 15:], DEEP[:, 15:])


def test_gray_stored_as_sixteen_bit_colours_is_gray(tmp_path: Path) -> None:
    picture = read_picture(deep_png(tmp_path / "a.png", np.repeat(DEEP[..., None], 3, axis=2), 2))
    np.testing.assert_array_equal(picture.data, DEEP[None])


def test_integers_and_floats_of_32_bits(tmp_path: Path) -> None:
    whole = read_picture(save(tmp_path / "i.tif", Image.fromarray(DEEP.astype(np.int32))))
    np.testing.assert_array_equal(whole.data[0], DEEP)
    assert whole.full_scale == 65535
    part = np.random.default_rng(0).random((20, 30)).astype(np.float32)
    picture = read_picture(save(tmp_path / "f.tif", Image.fromarray(part)))
    np.testing.assert_array_equal(picture.data[0], part)
    assert picture.full_scale == 1
    part[3, 4] = np.nan
    with pytest.raises(DataError, match=r"nan\.tif: it has NaN"):
        read_picture(save(tmp_path / "nan.tif", Image.fromarray(part)))


TURNED = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].T,
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", sorted(TURNED))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".deflate.tif"])
def test_a_picture_is_turned_as_its_exif_says(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"compression": "tiff_deflate"} if "deflate" in suffix else {}
    picture = read_picture(save(tmp_path / f"a{suffix}", Image.fromarray(SMOOTH), exif=exif, **options))
    expected = TURNED[orientation](SMOOTH)
    assert picture.data.shape[1:] == expected.shape
    assert np.abs(picture.data[0] - expected).max() <= (8 if suffix == ".jpg" else 0)


def test_several_pictures_in_one_file_are_refused(tmp_path: Path) -> None:
    pages = [Image.fromarray(GRAY)] * 3
    path = save(tmp_path / "a.tif", pages[0], save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match="it holds 3 pictures"):
        read_picture(path)


def test_broken_files_are_one_error_that_names_the_file(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.png", Image.fromarray(GRAY)).read_bytes()
    jpeg = save(tmp_path / "whole.jpg", Image.fromarray(SMOOTH)).read_bytes()
    broken = {
        "empty.png": b"",
        "cut.png": whole[: len(whole) // 2],
        "cut.jpg": jpeg[:300],
        "text.png": b"not a picture",
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}: cannot be read"):
            read_picture(tmp_path / name)
    with pytest.raises(DataError) as found:
        read_picture(tmp_path / "text.png")
    assert "no picture format" in str(found.value) and "BufferedReader" not in str(found.value)
    with pytest.raises(UsageError, match="No such picture"):
        read_picture(tmp_path / "missing.png")


def test_a_volume_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "head.nii.gz").write_bytes(b"\x1f\x8b not a picture")
    with pytest.raises(DataError, match=r"is a volume.*prepare\.kind: volume"):
        read_picture(tmp_path / "head.nii.gz")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    deep_png(path, np.zeros((1, 1), np.uint16), 0)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"bomb\.png"):
        read_picture(path)


def test_luminance_weighs_green_most_and_leaves_gray_alone() -> None:
    colours = np.eye(3, dtype=np.float32)[:, :, None]
    assert luminance(colours)[0, :, 0] == pytest.approx([0.299, 0.587, 0.114])
    gray = np.repeat(GRAY[None].astype(np.float32), 3, axis=0)
    np.testing.assert_array_equal(luminance(gray)[0], GRAY)
