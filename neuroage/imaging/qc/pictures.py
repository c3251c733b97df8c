"""Small pictures of prepared images: three planes side by side, all at one scale, and outlines to lay over them.

Sagittal, coronal and axial planes through the middle of the grid; superior or anterior is up, anterior is to the right
in the sagittal one, and the patient's left is on the left (neurological view).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

PIXEL_MM = 2.0  # no finer: three planes of a head are then 256 × 96 pixels and some 4 kB
GAP_MM = 4.0
QUALITY = 62  # of WebP: its steps are below what one sees at this size
WINDOW = (1.0, 99.7)  # percentiles of what is not background that become black and white
SPARSE = 0.05  # a volume with fewer voxels above its minimum holds vessels, of which one slice shows next to nothing
SAMPLED = 40  # voxels along an axis that tell whether a volume is sparse
PLANES = ((1, 2), (0, 2), (0, 1))  # axes across and up of the sagittal, coronal and axial plane


@dataclass(frozen=True)
class Sheet:
    """Where the planes of one preparation lie in the picture, in millimetres; alike for all scans of a page.

    Attributes:
        spacing: Of the prepared voxels, millimetres; two of them for pictures.
        size: Voxels along each axis.
        flipped: The first axis runs to the patient's left (LAS+) and is turned for display.
    """

    spacing: tuple[float, ...]
    size: tuple[int, ...]
    flipped: bool = False

    @property
    def extents_mm(self) -> list[tuple[float, float]]:
        """Width and height of each panel."""
        length = [n * step for n, step in zip(self.size, self.spacing, strict=True)]
        return [(length[1], length[0])] if len(length) == 2 else [(length[a], length[u]) for a, u in PLANES]

    @property
    def width_mm(self) -> float:
        """Of the whole picture."""
        return sum(width for width, _ in self.extents_mm) + GAP_MM * (len(self.extents_mm) - 1)

    @property
    def height_mm(self) -> float:
        """Of the whole picture."""
        return max(height for _, height in self.extents_mm)

    @property
    def corners_mm(self) -> list[tuple[float, float]]:
        """Left upper corner of each panel; panels stand in the middle of the height."""
        corners, left = [], 0.0
        for width, height in self.extents_mm:
            corners.append((left, (self.height_mm - height) / 2))
            left += width + GAP_MM
        return corners

    @property
    def pixel_mm(self) -> float:
        """Of the picture; pictures without a scale are taken as 192 mm high, like a head."""
        return max(PIXEL_MM, min(self.spacing)) if len(self.size) == 3 else self.height_mm / 96

    def cut(self, stored: np.ndarray) -> list[np.ndarray]:
        """Cut the planes out of a volume (C, I, J, K), or take a picture (C, H, W) as it is; rows from the top."""
        if stored.ndim == 3:
            return [np.asarray(stored, dtype=np.float32).mean(axis=0)]
        sample = stored[-1][tuple(slice(None, None, max(1, n // SAMPLED)) for n in stored.shape[1:])]
        sparse = bool((sample > sample.min()).mean() < SPARSE)
        planes = []
        for axis in range(3):
            part = stored.max(axis=axis + 1) if sparse else np.take(stored, stored.shape[axis + 1] // 2, axis=axis + 1)
            if self.flipped and axis > 0:
                part = part[:, ::-1]
            planes.append(_one_channel(np.asarray(part, dtype=np.float32)).T[::-1])
        return planes

    def draw(self, stored: np.ndarray) -> np.ndarray:
        """Draw the planes as one gray picture, shape (H, W), uint8.

        Args:
            stored: Volume (C, I, J, K) or picture (C, H, W); any linear scale, since each is given its own window.
        """
        from PIL import Image

        planes = self.cut(stored)
        values = np.concatenate([plane.ravel() for plane in planes])
        inside = values[values > values.min()]
        low, high = np.percentile(inside, WINDOW) if inside.size else (0.0, 1.0)
        low = min(float(low), float(values.min()) + 0.05 * float(high - values.min()))
        canvas = np.zeros((round(self.height_mm / self.pixel_mm), round(self.width_mm / self.pixel_mm)), np.uint8)
        for plane, (width, height), (left, top) in zip(planes, self.extents_mm, self.corners_mm, strict=True):
            gray = (np.clip((plane - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)
            shape = (round(height / self.pixel_mm), round(width / self.pixel_mm))
            if gray.shape != shape:
                gray = np.asarray(Image.fromarray(gray).resize(shape[::-1], Image.Resampling.BILINEAR))
            y, x = round(top / self.pixel_mm), round(left / self.pixel_mm)
            part = canvas[y : y + shape[0], x : x + shape[1]]
            part[:] = gray[: part.shape[0], : part.shape[1]]
        return canvas


def _one_channel(plane: np.ndarray) -> np.ndarray:
    """Show shares of intensity levels (C, H, W) as one picture: level times share, so that fluid is dark again."""
    return plane[0] if len(plane) == 1 else np.einsum("chw,c->hw", plane, np.arange(1, len(plane) + 1) / len(plane))


def encode(picture: np.ndarray) -> str:
    """Give a gray picture (H, W), uint8, as WebP in base64."""
    from PIL import Image

    target = io.BytesIO()
    Image.fromarray(picture).save(target, "WEBP", quality=QUALITY, method=3)
    return base64.b64encode(target.getvalue()).decode("ascii")


def trace_mean(sheet: Sheet, mean: np.ndarray) -> str:
    """Trace the outline of the cohort's mean picture: where its brightness is a quarter of what is usual inside.

    Args:
        sheet: Where its planes lie.
        mean: Shape (H, W), 0 to 255.
    """
    from scipy.ndimage import binary_fill_holes, gaussian_filter

    inside = mean[mean > 0.1 * mean.max()]
    if not inside.size:
        return ""
    whole = binary_fill_holes(mean > float(np.median(inside)) / 4)  # skull and ventricles are dark, too
    smooth = gaussian_filter(np.asarray(whole, dtype=np.float32), 1.0)
    return svg(sheet, [("outline", lines_at(smooth, 0.5, sheet.pixel_mm, (0.0, 0.0)))])


def trace_template(sheet: Sheet, affine: np.ndarray) -> str:
    """Trace the MNI152 template on the planes of a prepared grid: the brain's outline, and the white matter's.

    The inner border of white matter is also that of the ventricles.

    Args:
        sheet: Where the planes lie.
        affine: Prepared voxel index to millimetres of the template, (4, 4).

    Raises:
        UsageError: nilearn, which brings the template, is not installed.
    """
    from scipy.ndimage import gaussian_filter, map_coordinates

    from neuroage.imaging.registration.mni152 import load_mni152

    template = load_mni152(1)
    to_index = np.linalg.inv(template.volume.affine)
    found: dict[str, list[np.ndarray]] = {"outline": [], "inner": []}
    for axis, ((across, up), (width, height), corner) in enumerate(
        zip(PLANES, sheet.extents_mm, sheet.corners_mm, strict=True)
    ):
        columns, rows = np.arange(round(width)) + 0.5, np.arange(round(height)) + 0.5  # of a millimetre each
        x, y = np.meshgrid(columns, height - rows)  # up is the far end of its axis
        index = np.empty((3, *x.shape))
        index[axis] = sheet.size[axis] // 2
        index[across] = x / sheet.spacing[across] - 0.5
        index[up] = y / sheet.spacing[up] - 0.5
        if sheet.flipped and axis > 0:
            index[0] = sheet.size[0] - 1 - index[0]
        place = np.einsum("ij,jhw->ihw", to_index[:3, :3] @ affine[:3, :3], index)
        place += (to_index[:3, :3] @ affine[:3, 3] + to_index[:3, 3])[:, None, None]
        for name, part in (("outline", template.brain.astype(np.float32)), ("inner", template.tissue[1])):
            plane = gaussian_filter(map_coordinates(part, place, order=1), 0.7)
            found[name] += lines_at(plane, 0.5, 1.0, corner)
    return svg(sheet, list(found.items()))


def lines_at(picture: np.ndarray, level: float, pixel_mm: float, corner_mm: tuple[float, float]) -> list[np.ndarray]:
    """Find the lines at which a picture (H, W) has a value; short ones, which only clutter, are left out.

    Returns:
        Lines of points (x, y) in millimetres of the sheet.
    """
    import contourpy

    generator = contourpy.contour_generator(z=picture, line_type="Separate")
    lines: list[np.ndarray] = [np.asarray(line) for line in generator.lines(level)]
    shortest = 20.0 / pixel_mm  # millimetres around: smaller loops are islands of a voxel or two
    kept = [line for line in lines if np.abs(np.diff(line, axis=0)).sum() >= shortest]
    return [(line + 0.5) * pixel_mm + np.asarray(corner_mm) for line in kept]


# Amber and sky blue of Okabe and Ito (2008), which the colour-blind tell apart, on gray too.
# Widths are those on the screen, at any size of the picture.
STROKES = {"outline": ("#ffb000", 1.2, 0.95), "inner": ("#56b4e9", 0.9, 0.8)}


def svg(sheet: Sheet, parts: Sequence[tuple[str, Iterable[np.ndarray]]]) -> str:
    """Write lines as an SVG picture, in base64."""
    text = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {sheet.width_mm:g} {sheet.height_mm:g}" '
    text += 'preserveAspectRatio="none" fill="none">'
    for name, lines in parts:
        colour, width, opacity = STROKES[name]
        path = "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in line) for line in lines)
        text += f'<path d="{path}" stroke="{colour}" stroke-width="{width}" stroke-opacity="{opacity}" '
        text += 'vector-effect="non-scaling-stroke"/>'
    return base64.b64encode(f"{text}</svg>".encode()).decode("ascii")
