"""Backbones: images (B, C, *spatial) → features (B, F, *reduced).

Each family is one module here with a function

    build(*, spatial_dims, in_channels, weights=None, **options) -> torch.nn.Module

whose result has an attribute `n_features` (F). A module that stands here is found by itself: its name is the
backbone's name. A family with pretrained weights has a second function

    check_weights(weights, *, spatial_dims, in_channels, **options)

which raises where the weights cannot fit, and its `build` takes `say`, which is told whose weights they are. It may
have `ready(weights, *, say, **options)`, which fetches what it cannot list in `PUBLISHED`.

A family that is not for every image says so: `SPATIAL_DIMS` are the numbers of axes that it takes, and
`check(*, in_channels, **options)` raises where options name something that is not there. A backbone may have
`own_stages()`, which cuts it into the stages of models/freezing.py: their names, modules and parameters beside them.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

import torch

from neuroage.errors import UsageError, did_you_mean
from neuroage.models.weights import Say, find_weights, load_tensors, silent

GIVEN = ("spatial_dims", "in_channels", "say")  # filled in by the network, no options of the recipe


def backbones() -> list[str]:
    """Name every backbone."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def backbone_builder(name: str) -> Callable[..., torch.nn.Module]:
    """Give the `build` function of a backbone.

    Raises:
        UsageError: No backbone has that name; all names are listed.
    """
    if name not in backbones():
        raise UsageError(f"No backbone {name!r}", expected=did_you_mean(name, backbones()))
    build: Callable[..., torch.nn.Module] = importlib.import_module(f"{__name__}.{name}").build
    return build


def backbone_summary(name: str) -> str:
    """Give the first line of a backbone's description."""
    return (importlib.import_module(f"{__name__}.{name}").__doc__ or "").strip().splitlines()[0]


def spatial_dims_of(name: str) -> tuple[int, ...]:
    """Give the numbers of spatial axes that a backbone takes."""
    return tuple(getattr(importlib.import_module(f"{__name__}.{name}"), "SPATIAL_DIMS", (2, 3)))


def refuse_dimensions(name: str, spatial_dims: int) -> None:
    """Raise when a backbone does not take images with so many axes.

    Raises:
        UsageError: It does not.
    """
    allowed = spatial_dims_of(name)
    if spatial_dims not in allowed:
        raise UsageError(
            f"backbone {name}: takes images with {' or '.join(map(str, allowed))} spatial axes, not {spatial_dims}",
            fix="Choose another backbone, or `prepare: {kind: picture, …}` for images with two axes.",
        )


def check_family(name: str, *, spatial_dims: int, in_channels: int, options: dict[str, Any]) -> None:
    """Check that a backbone takes such images and has what its options name.

    Raises:
        UsageError: It does not.
    """
    refuse_dimensions(name, spatial_dims)
    if check := getattr(importlib.import_module(f"{__name__}.{name}"), "check", None):
        check(in_channels=in_channels, **options)


def check_weights(name: str, *, spatial_dims: int, in_channels: int, options: dict[str, Any]) -> None:
    """Check, before anything is computed, that pretrained weights can be had for a network; nothing is read.

    Raises:
        UsageError: The family has none, or they do not fit these options.
    """
    check = getattr(importlib.import_module(f"{__name__}.{name}"), "check_weights", None)
    if check is None or options.get("weights") is None:
        refuse_weights(name, options.get("weights"))
    else:
        check(spatial_dims=spatial_dims, in_channels=in_channels, **options)


def ready_weights(name: str, options: dict[str, Any], say: Say = silent) -> None:
    """Fetch the published weights that a recipe names, or find their file, before anything is computed.

    Args:
        name: Of the backbone.
        options: Its options in the recipe.
        say: Told what is fetched from where.

    Raises:
        UsageError: They are not to be had.
        DataError: What was fetched is not the published file, or a file is broken or holds code.
    """
    weights = options.get("weights")
    if weights is None:
        return
    module = importlib.import_module(f"{__name__}.{name}")
    if hasattr(module, "ready"):
        module.ready(**options, say=say)
        return
    # A broken file is found before scans are prepared.
    load_tensors(find_weights(name, weights, getattr(module, "PUBLISHED", {}), say))


def refuse_weights(name: str, weights: str | None) -> None:
    """Raise when pretrained weights are asked of a family that has none.

    Raises:
        UsageError: `weights` is not None.
    """
    if weights is not None:
        raise UsageError(
            f"backbone {name}: there are no pretrained weights {weights!r} for this family", fix="Leave `weights` out."
        )
