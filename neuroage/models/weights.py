"""Published weights: whose they are, how they get here, and how they get into a network. Tensors only, never code."""

from __future__ import annotations

import hashlib
import os
import pickle
import urllib.request
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neuroage.errors import DataError, UsageError, did_you_mean
from neuroage.files import atomic_path, digest_file

TIMEOUT_SECONDS = 30
PIECE = 1 << 16  # bytes read at a time
NESTED = (
    "state_dict",
    "model_state_dict",
    "network",
    "model",
)  # where training scripts put the weights among other things

Say = Callable[[str], None]


def silent(words: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Published:
    """Weights that someone has published.

    Attributes:
        name: By which a recipe asks for them.
        url: Where the file stands.
        sha256: Of the file; another file is refused.
        n_bytes: Of the file.
        licence: Under which it may be used.
        source: Whose work it is, to be named wherever the weights are used.
        paper: Where it is described.
        input: The images that it was trained on, in words.
    """

    name: str
    url: str
    sha256: str
    n_bytes: int
    licence: str
    source: str
    paper: str
    input: str

    @property
    def words(self) -> str:
        """Whose weights these are and what they were trained on, to be said where they are used."""
        return f"Weights {self.name}: {self.source}, {self.paper}, {self.licence}. They were trained on {self.input}."


def default_weights_folder() -> Path:
    """Give the folder of fetched weights: $NEUROAGE_WEIGHTS, else `neuroage/weights` in the user's cache folder."""
    if given := os.environ.get("NEUROAGE_WEIGHTS"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "neuroage" / "weights"


def fetch(published: Published, *, folder: str | os.PathLike[str] | None = None, say: Say = silent) -> Path:
    """Give the file of published weights, from the cache folder or, the first time, from its publisher.

    Args:
        published: Which.
        folder: Where fetched weights are kept; `default_weights_folder()` when None.
        say: Told what is fetched from where, and whose it is.

    Returns:
        A file with the published checksum. Nothing else is ever kept.

    Raises:
        UsageError: The publisher cannot be reached.
        DataError: What came is not the published file.
    """
    place = Path(folder or default_weights_folder()) / published.url.rsplit("/", 1)[-1]
    if place.is_file() and digest_file(place) == published.sha256:
        return place
    say(
        f"Fetching the weights {published.name} ({published.n_bytes / 1e6:.1f} MB) from {published.url}: "
        f"{published.source}, {published.licence}. They are kept in {place.parent}."
    )
    by_hand = f"Put the file there yourself as {place}, or name its path in backbone.weights."
    try:
        with atomic_path(place) as temporary:
            digest = _download(published, temporary)
            if digest != published.sha256:
                raise DataError(
                    f"{published.url} gave another file than the published one, which was thrown away",
                    expected=f"{published.n_bytes} bytes with sha256 {published.sha256}",
                    fix=by_hand,
                )
    except (OSError, ValueError, HTTPException) as error:  # no network, no such page, a broken connection, a full disk
        raise UsageError(
            f"The weights {published.name} cannot be fetched from {published.url} ({error})", fix=by_hand
        ) from None
    return place


def _download(published: Published, path: Path) -> str:
    """Write what a publisher gives, hardly more than was published; gives its sha256."""
    digest, n_bytes = hashlib.sha256(), 0
    with urllib.request.urlopen(published.url, timeout=TIMEOUT_SECONDS) as answer, open(path, "wb") as file:
        while n_bytes <= published.n_bytes and (piece := answer.read(PIECE)):
            digest.update(piece)
            n_bytes += file.write(piece)
    return digest.hexdigest()


def find_weights(family: str, weights: str, published: Mapping[str, Published], say: Say = silent) -> Path:
    """Give the file that `weights` means: a published name, or a path.

    Raises:
        UsageError: It is neither.
    """
    if weights in published:
        return fetch(published[weights], say=say)
    path = Path(weights).expanduser()
    if not path.is_file():
        names = did_you_mean(weights, published) + " or the path of a file" if published else "the path of a file"
        raise UsageError(f"backbone {family}: no weights {weights!r}", expected=names)
    return path


def load_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a checkpoint of somebody else: names and tensors, on the CPU.

    Safetensors, or what `torch.save` wrote (old or new format), flat or below `state_dict`, `model_state_dict`,
    `network` or `model`. It is read by an unpickler that knows tensors alone, so that no code in it ever runs.

    Args:
        path: The file.

    Raises:
        UsageError: There is no such file.
        DataError: The file holds more than tensors, none at all, or is not whole.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"No weights at {path}", fix="Check the path.")
    try:
        content = _read(path)
    except pickle.UnpicklingError as error:
        raise _refused(path, " ".join(str(error).split())) from None
    except Exception as error:  # torch and the unpickler raise dozens of types for a broken file
        reason = str(error).split(". ")[0].strip()  # what follows is for torch's developers; "101" alone says nothing
        raise DataError(
            f"{path}: not a whole file of weights" + (f" ({reason})" if " " in reason else ""),
            expected="safetensors, or what torch.save wrote",
            fix="Copy or download the file again.",
        ) from None
    return _tensors_alone(content, path)


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    with warnings.catch_warnings():  # torch asks users to report pickles that it did not write
        warnings.simplefilter("ignore")
        return torch.load(path, weights_only=True, map_location="cpu")


def _tensors_alone(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, dict):
        content = next((content[key] for key in NESTED if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict):
        raise _refused(path, f"a {type(content).__name__} instead of names and tensors")
    tensors = {}
    for name, value in content.items():
        if isinstance(value, Tensor):
            tensors[str(name)] = value.detach()
        elif not isinstance(value, (int, float, str, bool, dict, type(None))):  # an epoch, a note: left out
            raise _refused(path, f"{name!r} is a {type(value).__name__}")
    if not tensors:
        raise DataError(f"{path}: holds no tensors", expected="weights of a network")
    return tensors


def _refused(path: Path, reason: str) -> DataError:
    if "Unsupported global" in reason or "GLOBAL" in reason:
        reason = "it names code to run"
    elif "Weights only load failed" in reason:
        reason = "it is no file of weights"
    return DataError(
        f"{path}: holds more than tensors and was not loaded ({reason[:120]})",
        expected="names and tensors alone",
        fix="Ask its author for a state_dict, saved as safetensors if possible.",
    )


def check_network(family: str, weights: str, *, spatial_dims: int, in_channels: int, norm: str) -> None:
    """Check that a network is of the kind that weights are published for: 3D, one channel, batch norm.

    Raises:
        UsageError: It is not; there is one reason, and what to do.
    """
    leave = "or leave backbone.weights out"
    for wrong, what, fix in (
        (spatial_dims != 3, f"{spatial_dims}D images", f"They are for volumes: give prepare.size three axes, {leave}."),
        (
            in_channels != 1,
            f"{in_channels} channels",
            f"They are for one channel: set prepare.fractions: null, {leave}.",
        ),
        (norm != "batch", f"norm: {norm}", f"They hold statistics of batch norm: set backbone.norm: batch, {leave}."),
    ):
        if wrong:
            raise UsageError(f"backbone {family}: the weights {weights!r} do not fit {what}", fix=fix)


def take_tensors(network: nn.Module, modules: Mapping[str, str], tensors: Mapping[str, Tensor], path: Path) -> None:
    """Fill a whole network from tensors with other names.

    Args:
        network: Filled in place, all of it or nothing.
        modules: Our name of each module with weights → its name in the file.
        tensors: As `load_tensors` gives them; a leading `module.` (DataParallel) is no part of the name.
        path: Where they stand, for the message.

    Raises:
        UsageError: A tensor is missing or has another shape.
    """
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    state = network.state_dict()
    for key, own in state.items():
        module, _, leaf = key.rpartition(".")
        name = f"{modules[module]}.{leaf}"
        if name not in tensors and leaf == "num_batches_tracked":  # old files have none, and nothing needs it
            continue
        if name not in tensors or tensors[name].shape != own.shape:
            found = f"shape {tuple(tensors[name].shape)}" if name in tensors else "nothing"
            raise UsageError(
                f"{path}: not the weights of this network ({name}: {found})",
                expected=f"shape {tuple(own.shape)}",
                fix="Give weights of the published layout, or leave backbone.weights out.",
            )
        state[key] = tensors[name]
    network.load_state_dict(state)
