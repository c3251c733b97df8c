"""Weights for networks of timm: from timm's own publishers or from a file, all of them but the classifier's."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from torch import Tensor

from neuroage.errors import UsageError
from neuroage.models.weights import Say

OWN = "timm"  # `weights: timm` are those that timm itself fetches
TIMEOUT_SECONDS = 5
N_NAMED = 5  # names of tensors that a message lists
OF_CLASSIFIERS = ("pre_logits.",)  # hidden layers of published classifiers (VGG), beside what timm names


def timm_library() -> Any:
    """Give the package timm.

    Raises:
        UsageError: It is not installed.
    """
    try:
        import timm
    except ImportError:
        raise UsageError("backbone timm: the package timm is missing", fix='pip install "neuroage[images]"') from None
    return timm


def published_names(model: str) -> list[str]:
    """Give the full names (`model.training`) under which timm has weights for a model."""
    names: list[str] = timm_library().list_models(f"{model.partition('.')[0]}.*", pretrained=True)
    return names


def fetch_own(model: str, say: Say) -> dict[str, Tensor]:
    """Give the weights that timm publishes for a model; it keeps what it has fetched in its own cache.

    Args:
        model: A name of timm.
        say: Told from where they come, their licence and their origin.

    Raises:
        UsageError: They cannot be fetched.
    """
    timm = timm_library()
    about = timm.get_pretrained_cfg(model)
    where = f"https://huggingface.co/{about.hf_hub_id}" if about.hf_hub_id else str(about.url)
    name = ".".join(filter(None, (about.architecture, about.tag)))
    origin = [text for text in (about.origin_url, _listed(about.paper_ids)) if text]
    say(
        f"Weights {name}, fetched by timm from {where}: licence {about.license or 'not stated by timm'}"
        + (f", origin {', '.join(origin)}" if origin else "")
        + f". They were trained on {about.input_size[1]}×{about.input_size[2]} pixels."
    )
    try:
        with _hub():
            fetched: dict[str, Tensor] = timm.create_model(model, pretrained=True, num_classes=0).state_dict()
    except Exception as error:  # timm's publishers, their libraries and the network raise dozens of types
        reason = " ".join(str(error).split())[:120].rstrip(" .")
        raise UsageError(
            f"backbone timm: the weights {name} cannot be fetched from {where} ({type(error).__name__}: {reason})",
            fix="Name a file that you have, `weights: PATH`, or begin with random weights: `weights: null`, "
            "`pretrained=False`.",
        ) from None
    return fetched


@contextmanager
def _hub() -> Iterator[None]:
    """Let the publisher's library print nothing, and without a network use what it has kept instead of trying on."""
    from huggingface_hub import constants, utils

    was_offline, was_silent = constants.HF_HUB_OFFLINE, utils.are_progress_bars_disabled()
    constants.HF_HUB_OFFLINE = was_offline or not _answers(constants.ENDPOINT)
    utils.disable_progress_bars()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was_offline
        if not was_silent:
            utils.enable_progress_bars()


def _answers(address: str) -> bool:
    """Whether a host can be reached; behind a proxy only the publisher's library can tell."""
    if getproxies():
        return True
    try:
        socket.create_connection((str(urlsplit(address).hostname), 443), TIMEOUT_SECONDS).close()
    except OSError:
        return False
    return True


def _listed(names: Any) -> str:
    return names if isinstance(names, str) else ", ".join(names or ())


def take_weights(model: Any, tensors: Mapping[str, Tensor], source: str) -> None:
    """Fill a network of timm from tensors in its published layout, or in one that timm itself translates.

    A classifier among them is left out. Where the network has one input channel, the kernels of the stem are summed.

    Args:
        model: Of timm, without classifier; filled in place, all of it or nothing.
        tensors: Names and tensors; a leading `module.` (DataParallel) is no part of the name.
        source: Where they stand, for the message.

    Raises:
        UsageError: Tensors are missing, left over, or of another shape; the first ones are named.
    """
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    about, own = model.pretrained_cfg, model.state_dict()
    translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if translate is not None:
        with suppress(Exception):  # not a layout that timm knows: the names that are missing tell more than its error
            tensors = dict(translate(tensors, model))
    for stem in _names(about.get("first_conv")):
        _sum_kernels(tensors, own, f"{stem}.weight")
    classifiers = (*(f"{name}." for name in _names(about.get("classifier"))), *OF_CLASSIFIERS)
    missing = [name for name in own if name not in tensors and not name.endswith("num_batches_tracked")]
    unknown = [name for name in tensors if name not in own and not name.startswith(classifiers)]
    unfit = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(value.shape)}"
        for name, value in own.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    found = [("missing", missing), ("unknown", unknown), ("of another shape", unfit)]
    said = "; ".join(f"{what}: {_first(names)}" for what, names in found if names)
    if said:
        raise UsageError(
            f"{source}: not the weights of {about.get('architecture', 'this model')} ({said})",
            expected="the layout of timm",
            fix="Name the model that they belong to in backbone.model; `gray: repeat` keeps a stem as it is.",
        )
    model.load_state_dict({**own, **{name: tensor for name, tensor in tensors.items() if name in own}})


def _sum_kernels(tensors: dict[str, Tensor], own: Mapping[str, Tensor], name: str) -> None:
    """Make a stem for one channel of one for three: what it gives for three equal channels."""
    from timm.models import adapt_input_conv

    if name not in tensors or name not in own:
        return
    theirs, ours = tensors[name], own[name]
    if theirs.ndim == 4 and theirs.shape[1] == 3 * ours.shape[1] and theirs.shape[2:] == ours.shape[2:]:
        tensors[name] = adapt_input_conv(1, theirs)


def _names(given: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given or ())


def _first(names: list[str]) -> str:
    more = f" and {len(names) - N_NAMED} more" if len(names) > N_NAMED else ""
    return ", ".join(names[:N_NAMED]) + more
