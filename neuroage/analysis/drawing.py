"""The look that all figures share: quiet axes, one palette that the colour-blind can tell apart, one way to save."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from neuroage.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito 2008, "Color Universal Design"; its yellow is left out, for it vanishes on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
GREYS = ("#8A8F98", "#4A4F57", "#B9BDC4")
INK, FAINT, PAPER = "#22262B", "#D9DCE0", "#FFFFFF"
DASHES = ("-", (0, (5, 2)), (0, (1, 1.4)), (0, (6, 2, 1, 2)))

_LOOK: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Arial", "Helvetica", "Liberation Sans", "DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8.0,
    "axes.labelsize": 9.0,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9AA0A6",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "text.parse_math": False,  # a run may be called a$b$
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "legend.frameon": False,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "path",
    "svg.hashsalt": "neuroage",  # the same figure is the same file
}


@contextmanager
def style() -> Iterator[None]:
    """Draw and save inside this block in the shared look; nothing outside it changes."""
    import matplotlib

    with matplotlib.rc_context(_LOOK):
        yield


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure (inches) without touching pyplot, so that servers and threads are safe."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 200) -> None:
    """Write a figure to `path` atomically; the suffix (.png, .svg, .pdf) chooses the format."""
    with style(), atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dpi, bbox_inches="tight")  # else panels of equal aspect lose their titles


def svg_address(figure: Figure) -> str:
    """Give a figure as a `data:` address that a page can hold without another file."""
    with style():
        content = io.BytesIO()
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None}, dpi=200, bbox_inches="tight")
    return "data:image/svg+xml;base64," + base64.b64encode(content.getvalue()).decode("ascii")


def rule(axes: Axes, *, axis: Literal["x", "y"] = "y") -> None:
    """Draw faint lines across the axes, to read values by."""
    axes.grid(axis=axis, color=FAINT, linewidth=0.6)
    axes.tick_params(axis=axis, length=0)
