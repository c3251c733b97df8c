"""Random gamma: a change of contrast by raising intensities to a power."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from neuroage.imaging.augment.parts import apart, run_lines
from neuroage.imaging.augment.ranges import Range, axis_pairs, draw_uniform
from neuroage.imaging.augment.step import Parameters, Step, per_scan


class Gamma(Step):
    """Raise intensities to a power γ = exp(β), β drawn uniformly; defaults and meaning are TorchIO's `RandomGamma`.

    Below 0 the sign is kept: sign(x) |x|^γ. With z-scored scans this bends both ends about the mean.
    """

    step: Literal["gamma"] = "gamma"
    p: float = Field(default=0.5, ge=0, le=1)
    log_gamma: float | Range = 0.3
    """β is uniform within ±this, or in [low, high]; 0 changes nothing. ±0.3 is γ from 0.74 to 1.35."""

    def draw(self, rng: np.random.Generator, shape: Sequence[int]) -> Parameters:
        """Draw the exponent."""
        return {"gamma": float(np.exp(draw_uniform(rng, axis_pairs(self.log_gamma, 1, neutral=0.0))[0]))}

    def change(self, source: torch.Tensor, parameters: Sequence[Parameters], out: torch.Tensor) -> None:
        """Raise each scan to its own power."""
        raise_to_power(source, [drawn["gamma"] for drawn in parameters], out=out)


def raise_to_power(source: torch.Tensor, gammas: Sequence[float], *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Raise each scan's intensities to its own power, keeping signs: sign(x) |x|^γ.

    As exp(γ log|x|), one compiled pass on a CPU, equal to a general power to about 1e-6.

    Args:
        source: Images (N, C, *spatial).
        gammas: N exponents above 0; 1 leaves a scan bit for bit.
        out: Where to write; may be `source`. New memory when None.

    Returns:
        Images of the same shape.
    """
    if out is None:
        out = torch.empty_like(source, memory_format=torch.contiguous_format)
    if all(gamma == 1 for gamma in gammas):
        return out if out is source else out.copy_(source)
    if source.device.type == "cpu" and source.dtype == out.dtype == torch.float32 and out.is_contiguous():
        from neuroage.imaging.augment.cpu_kernels import raise_all

        for image, target, gamma in zip(source, out, gammas, strict=True):
            _raise_image(image.detach().numpy().reshape(-1), target.view(-1).numpy(), np.float32(gamma), raise_all)
        return out
    raised = source.abs().pow_(per_scan(gammas, source))
    return torch.copysign(raised, source, out=out)


def _raise_image(source: np.ndarray, out: np.ndarray, gamma: np.float32, kernel: Callable[..., None]) -> None:
    run_lines(lambda part: kernel(apart(source[part], out), gamma, out[part]), (len(source), 1))
