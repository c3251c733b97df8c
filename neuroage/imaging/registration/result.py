"""What a registration leaves."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Registration:
    """Where a fixed space's places lie in a moving scan, and how far this can be trusted.

    Attributes:
        matrix: Fixed millimetres to moving millimetres (RAS+), (4, 4).
        quality: Named figures, JSON-ready: similarity, overlap, coverage, rotation and so on.
        problem: Why the registration has failed, in one sentence; "" where nothing speaks against it.
        seconds: What it took.
    """

    matrix: np.ndarray
    quality: dict[str, float] = field(default_factory=dict)
    problem: str = ""
    seconds: float = 0.0
