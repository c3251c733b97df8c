"""Checkpoints: named tensors and JSON in one safetensors file, written whole or not at all. No pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from neuroage.errors import DataError
from neuroage.files import atomic_path


def save_checkpoint(path: str | os.PathLike[str], tensors: dict[str, dict[str, Tensor]], about: dict[str, Any]) -> None:
    """Write groups of tensors and what goes with them.

    Args:
        path: Where to.
        tensors: Group → name → tensor.
        about: JSON-ready values.
    """
    flat = {
        f"{group}/{name}": tensor.detach().to("cpu", copy=True).contiguous()
        for group, named in tensors.items()
        for name, tensor in named.items()
    }
    with atomic_path(path) as temporary:
        save_file(flat, temporary, metadata={"about": json.dumps(about)})


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read what `save_checkpoint` wrote.

    Raises:
        DataError: The file is missing or not whole.
    """
    if not Path(path).is_file():
        raise DataError(f"No checkpoint at {path}", fix="Train again.")
    groups: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["about"])
            for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
                group, _, name = key.partition("/")
                groups.setdefault(group, {})[name] = file.get_tensor(key)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not a checkpoint of this package ({error})", fix="Train again.") from None
    return groups, about


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Name the optimiser's state tensors: `<parameter>.<quantity>`."""
    state = optimiser.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, values in state.items()
        for name, value in values.items()
        if value is not None
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimiser_tensors` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    for parameter, values in optimiser.state.items():
        for name, value in values.items():
            if value.shape == parameter.shape:
                # A file keeps no memory format, and fused kernels walk weights and moments in step without looking.
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
