"""The small CNN on small colour pictures: it learns made ones of ten kinds, from scratch, in seconds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from neuroage.models.network import build_network
from neuroage.runs.recipe import Recipe

PIXELS = 32
KINDS = ("disc", "ring", "square", "frame", "cross", "triangle", "rows", "columns", "diagonals", "checks")
NOISE = 0.15  # standard deviation beside intensities of 0 to 1


def made_pictures(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Ten kinds of shape and texture of any size, place and colours, in noise: (n, 3, 32, 32) in 0 to 1, and kinds."""
    rng = np.random.default_rng(seed)
    kinds = rng.permutation(np.arange(n) % len(KINDS))
    rows, columns = np.meshgrid(np.arange(PIXELS), np.arange(PIXELS), indexing="ij")
    images = np.empty((n, 3, PIXELS, PIXELS), dtype=np.float32)
    for image, kind in zip(images, kinds, strict=True):
        y, x = (axis - PIXELS / 2 - rng.uniform(-5, 5) for axis in (rows, columns))
        size, period, start = rng.uniform(7, 11), rng.uniform(5, 8), rng.uniform(0, 8)
        outer, far = np.maximum(abs(x), abs(y)), np.hypot(x, y)
        waves = [np.sin(2 * np.pi * (axis + start) / period) for axis in (y, x, (x + y) / 2**0.5)]
        shape = {
            "disc": far < size,
            "ring": (far < size) & (far > 0.6 * size),
            "square": outer < 0.9 * size,
            "frame": (outer < size) & (outer > 0.6 * size),
            "cross": (np.minimum(abs(x), abs(y)) < 0.3 * size) & (outer < size),
            "triangle": (y > -size) & (y < 0.8 * size) & (abs(x) < 0.55 * (y + size)),
            "rows": waves[0] > 0,
            "columns": waves[1] > 0,
            "diagonals": waves[2] > 0,
            "checks": waves[0] * waves[1] > 0,
        }[KINDS[kind]]
        dark, bright = rng.uniform(0, 0.45, (3, 1, 1)), rng.uniform(0.55, 1, (3, 1, 1))
        image[:] = np.where(shape, bright, dark) if rng.random() < 0.5 else np.where(shape, dark, bright)
    images += rng.normal(0, NOISE, images.shape).astype(np.float32)
    return torch.from_numpy(images.clip(0, 1)), torch.from_numpy(kinds)


@pytest.mark.slow
def test_small_colour_pictures_of_ten_kinds_are_learnt_to_95_percent() -> None:
    recipe = Recipe.from_dict(
        {
            "modality": "photograph",
            "prepare": {"kind": "picture", "size": PIXELS, "channels": "rgb"},
            "backbone": {"name": "cnn", "n_blocks": 3, "features": 16, "convs_per_block": 2, "dropout": 0.05},
            "head": {"hidden": [64], "dropout": 0.1},
            "pool_grid": [2, 2],
        }
    )
    network = build_network(recipe, spatial_dims=2, in_channels=3, n_outputs=len(KINDS))
    images, kinds = made_pictures(2000, seed=0)
    held_out, held_out_kinds = made_pictures(500, seed=1)
    n_epochs, batch = 5, 50
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=n_epochs * len(images) // batch)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network.train().to(memory_format=torch.channels_last)
    for _ in range(n_epochs):
        for chosen in torch.randperm(len(images), generator=generator).split(batch):
            optimiser.zero_grad()
            outputs = network(images[chosen].contiguous(memory_format=torch.channels_last))
            torch.nn.functional.cross_entropy(outputs, kinds[chosen]).backward()
            optimiser.step()
            schedule.step()
    with torch.no_grad():
        accuracy = (network.eval()(held_out).argmax(dim=1) == held_out_kinds).float().mean()
    assert accuracy >= 0.95
    # The same from pixels alone, without convolutions, is out of reach: it is the shape that was learnt.
    pixels = torch.cat([images.flatten(1), torch.ones(len(images), 1)], dim=1)
    wanted = torch.nn.functional.one_hot(kinds).float()
    weights = torch.linalg.solve(pixels.T @ pixels + 100 * torch.eye(pixels.shape[1]), pixels.T @ wanted)
    guessed = torch.cat([held_out.flatten(1), torch.ones(len(held_out), 1)], dim=1) @ weights
    assert (guessed.argmax(dim=1) == held_out_kinds).float().mean() < 0.5
