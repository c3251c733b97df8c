"""The form into which every picture is read, whatever its file: channels, rows, columns and the largest value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GRAY = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # luminance of red, green, blue: ITU-R BT.601
ROUNDING = 2 / 255  # by which JPEG's rounding makes the channels of a gray picture differ


@dataclass(frozen=True)
class Picture:
    """One picture in memory.

    Attributes:
        data: Pixels, shape (C, H, W), float32; C is 1 (gray) or 3 (red, green, blue); row 0 is on top.
        full_scale: The largest value that the stored bits can hold: 255, 4095, 65535.
        stored: What the file held, in words: "PNG, 16 bit gray".
        spacing_mm: Size of a pixel along rows and columns; (1, 1) where the file does not say it.
        notes: What was done to read it, and what is odd about it.
    """

    data: np.ndarray
    full_scale: float
    stored: str
    spacing_mm: tuple[float, float] = (1.0, 1.0)
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.data.shape[1:]
        return int(rows), int(columns)


def one_or_three(data: np.ndarray, full_scale: float) -> np.ndarray:
    """Bring (H, W, C) to (C, H, W); three channels that are equal become one."""
    if data.shape[2] == 3:
        red, green, blue = np.moveaxis(data, 2, 0)
        if max(np.abs(red - green).max(), np.abs(blue - green).max()) <= ROUNDING * full_scale:
            return luminance(np.moveaxis(data, 2, 0))
    return np.ascontiguousarray(np.moveaxis(data, 2, 0), dtype=np.float32)


def luminance(data: np.ndarray) -> np.ndarray:
    """Bring channels (C, H, W) to one, shape (1, H, W): colours by how bright they look (ITU-R BT.601)."""
    if len(data) == 1:
        return data
    if np.array_equal(data[0], data[1]) and np.array_equal(data[1], data[2]):
        return np.ascontiguousarray(data[:1])
    return np.tensordot(GRAY, data.astype(np.float32), axes=1)[None]
