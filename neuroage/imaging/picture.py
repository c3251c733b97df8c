"""Read a picture, an image with two spatial axes, in any common format: float32 pixels and what the file held."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from neuroage.errors import DataError, UsageError
from neuroage.imaging.picture_form import Picture, one_or_three

if TYPE_CHECKING:
    from PIL.Image import Image

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", *DICOM_SUFFIXES)
_VOLUME_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img", ".mgz", ".mgh", ".nrrd", ".nhdr", ".mha", ".mhd")
ORIENTATION = 0x0112  # EXIF tag
BITS_PER_SAMPLE = 0x0102  # TIFF tag
# A byte order read the wrong way round gives, where Pillow keeps the upper byte only, the lower one.
OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


def read_picture(path: str | os.PathLike[str]) -> Picture:
    """Read one picture: PNG, JPEG, WebP, TIFF, BMP or DICOM.

    Pixels are turned upright as EXIF says. Transparent pixels are laid over black. Colour files whose channels are
    equal are gray. Nothing is scaled: 16 bits stay 16 bits, with `full_scale` beside them.

    Args:
        path: The file. DICOM is known by its content as well as by its name.

    Returns:
        The picture, data (C, H, W) float32.

    Raises:
        UsageError: The path does not exist, its format is not known, or a package that reads it is missing.
        DataError: The content is broken: truncated, empty, far too large, several frames, NaN.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"No such picture: {path}", fix="Check the path, or index the cohort again.")
    with _one_error(path):
        if is_dicom(path):
            from neuroage.imaging.dicom_picture import read_dicom_picture

            picture = read_dicom_picture(path)
        else:
            picture = _read_with_pillow(path)
        if not np.isfinite(picture.data).all():
            raise DataError("it has NaN or infinite pixels", expected="finite intensities", fix="Export it again.")
    return picture


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its first bytes or its name."""
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    with open(path, "rb") as handle:
        return handle.read(132)[128:] == b"DICM"


@contextmanager
def _one_error(path: Path) -> Iterator[None]:
    """Turn whatever a reader raises into one error that names the file."""
    try:
        yield
    except (DataError, UsageError) as error:
        raise type(error)(f"{path}: {error.what}", expected=error.expected, fix=error.fix) from None
    except Exception as error:  # the readers raise dozens of types for a broken file; all mean the same to a user
        if path.name.lower().endswith(_VOLUME_SUFFIXES):
            raise DataError(
                f"{path}: is a volume", expected="a picture", fix="Volumes need a recipe with prepare.kind: volume."
            ) from error
        reason = "it is empty" if path.stat().st_size == 0 else " ".join(str(error).replace(str(path), "it").split())
        if type(error).__name__ == "UnidentifiedImageError":  # its own words show a Python object
            reason = reason if path.stat().st_size == 0 else "its content is that of no picture format"
        raise DataError(
            f"{path}: cannot be read ({reason[:200] or type(error).__name__})",
            expected="a whole, valid picture",
            fix="Copy or export the file again.",
        ) from error


def _read_with_pillow(path: Path) -> Picture:
    try:
        from PIL import Image
    except ImportError:  # it comes with matplotlib
        raise UsageError("Pictures need Pillow, which is not here", fix="Install it: pip install pillow") from None
    # Opened by its name, Pillow would map a TIFF into memory, and garble one that EXIF turns (seen in 13.0).
    with open(path, "rb") as file, Image.open(file) as image:
        kind, mode = str(image.format), image.mode
        if image.width * image.height > (Image.MAX_IMAGE_PIXELS or np.inf):
            raise DataError(f"{image.width} × {image.height} pixels", expected="a picture, not millions of pages")
        if getattr(image, "n_frames", 1) > 1:
            raise DataError(f"it holds {image.n_frames} pictures", expected="one", fix="Save the one that is meant.")  # type: ignore[attr-defined]
        deep = _deep_tiles(image)
        notes: list[str] = []
        if deep is None:
            data, full_scale, words = _pixels(image, notes)
        else:
            data, full_scale, words = _deep_pixels(file, image, deep), 65535.0, "16 bit"
    data = one_or_three(_over_black(data, full_scale, notes), full_scale)
    said = "gray" if len(data) == 1 else "colour"
    if len(data) == 1 and mode not in ("1", "L", "LA", "F") and not mode.startswith("I"):
        notes.append(f"gray, stored as {mode}")
    return Picture(data, full_scale, f"{kind}, {words} {said}", notes=tuple(notes))


def _pixels(image: Image, notes: list[str]) -> tuple[np.ndarray, float, str]:
    """Give pixels (H, W, C), full scale and depth in words, as Pillow decodes them."""
    mode, transparent = image.mode, image.info.get("transparency")
    full_scale, words = 255.0, "8 bit"
    if mode == "1":
        full_scale, words = 1.0, "1 bit"
    elif mode == "P" or (transparent is not None and mode in ("L", "RGB")):
        notes.append("a palette" if mode == "P" else "one value is transparent")
        image = image.convert("RGBA" if transparent is not None or mode == "P" else "RGB")
    elif mode not in ("L", "LA", "RGB", "RGBA", "I", "F") and not mode.startswith("I;16"):
        image = image.convert({"La": "LA", "PA": "RGBA", "RGBa": "RGBA"}.get(mode, "RGB"))
        notes.append(f"{mode} turned into colours")
    data = np.asarray(_upright(image, notes))
    if mode.startswith("I") or mode == "F":
        full_scale, words = _deep_scale(image, data)
        if transparent is not None and isinstance(transparent, int):
            notes.append("one value is transparent")
            data = np.where(data == transparent, 0, data)
    return np.atleast_3d(data).astype(np.float32), full_scale, words


def _deep_scale(image: Image, data: np.ndarray) -> tuple[float, str]:
    if image.mode == "F":
        top = float(np.nanmax(data))
        return (1.0 if top <= 1 else top), "floating point"
    tags = getattr(image, "tag_v2", {})
    bits = int(np.max(tags.get(BITS_PER_SAMPLE, 16)))
    if bits > 16 and data.max() < 1 << 16:
        return 65535.0, f"{bits} bit (16 used)"
    return float((1 << bits) - 1 if bits <= 16 else (1 << (bits - 1)) - 1), f"{bits} bit"


def _upright(image: Image, notes: list[str]) -> Image:
    from PIL import ImageOps

    image.load()
    if image.getexif().get(ORIENTATION, 1) != 1:
        notes.append("turned as EXIF says")
        return ImageOps.exif_transpose(image)
    return image


def _deep_tiles(image: Image) -> str | None:
    """Give the raw mode of colours (or gray and alpha) of 16 bits, of which Pillow would silently keep 8; else None."""
    tiles: Any = getattr(image, "tile", [])
    if not tiles:
        return None
    arguments = tiles[0][3]
    raw = arguments[0] if isinstance(arguments, tuple) else arguments
    return raw if isinstance(raw, str) and raw[:-1].endswith(";16") and not raw.startswith("I") else None


def _deep_pixels(file: BinaryIO, image: Image, raw: str) -> np.ndarray:
    """Read 16 bits a channel by decoding twice: once for the upper byte, once for the lower."""
    from PIL import Image as pillow

    if raw.startswith("LA"):  # four bytes a pixel: decoded as four channels of 8 bits
        halves = _decoded(image, "RGBA").astype(np.float32)
        return halves[..., 0::2] * 256 + halves[..., 1::2]
    again = BytesIO(_whole(file))
    upper = _decoded(image, raw).astype(np.float32)
    with pillow.open(again) as second:
        lower = _decoded(second, raw[:-1] + OTHER_BYTE[raw[-1]]).astype(np.float32)
    return upper * 256 + lower


def _whole(file: BinaryIO) -> bytes:
    place = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(place)
    return content


def _decoded(image: Image, raw: str) -> np.ndarray:
    """Decode with another raw mode than Pillow would choose."""
    tiles: Any = image.tile  # type: ignore[attr-defined]
    image.tile = [  # type: ignore[attr-defined]
        (name, box, offset, (raw, *rest[1:]) if isinstance(rest, tuple) else raw) for name, box, offset, rest in tiles
    ]
    return np.asarray(_upright(image, []))


def _over_black(data: np.ndarray, full_scale: float, notes: list[str]) -> np.ndarray:
    """Take the alpha channel away; what it makes transparent becomes black."""
    if data.shape[2] in (1, 3):
        return data
    data, alpha = data[..., :-1], data[..., -1:]
    if alpha.min() < full_scale:
        notes.append("transparent pixels laid over black")
        return data * (alpha / full_scale)
    return data
