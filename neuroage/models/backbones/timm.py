"""Any network of timm for pictures (R. Wightman, PyTorch Image Models, doi:10.5281/zenodo.4414861; code Apache-2.0)."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from neuroage.errors import UsageError
from neuroage.models.backbones import refuse_dimensions
from neuroage.models.backbones._timm_weights import (
    OWN,
    fetch_own,
    published_names,
    take_weights,
    timm_library,
)
from neuroage.models.recompute import Blocks
from neuroage.models.weights import Say, find_weights, load_tensors, silent

SPATIAL_DIMS = (2,)
LEAST_PIXELS = 32  # along each axis; most networks halve five times
SMALLEST_PICTURE = (LEAST_PIXELS, 49)  # tried with; 49 is a multiple of no patch
N_SUGGESTED = 5
USUAL = "resnet50"

Gray = Literal["sum_stem", "repeat"]
Part = tuple[str, tuple[nn.Module, ...], tuple[nn.Parameter, ...]]  # a stage: name, modules, parameters beside them


class TimmFeatures(nn.Module):
    """A network of timm without pool and classifier: images of about 0 to 1 → feature maps.

    Images smaller than the network can take are enlarged; for networks that take one size alone all others are resized.
    Transformers give one position for each patch; the class token takes part in their attention but is no position.

    Attributes:
        n_features: Channels of the maps.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, in_channels: int, model_channels: int, *, resizes: bool, normalise: bool) -> None:
        super().__init__()
        about = model.pretrained_cfg
        self.n_features = int(getattr(model, "head_hidden_size", None) or model.num_features)
        if _has_weights(getattr(model, "pre_logits", None)):  # VGG: fully connected layers of the published classifier
            model.pre_logits, self.n_features = nn.Identity(), int(model.num_features)
        model.reset_classifier(0, "")
        self.model = model
        self.model_channels = model_channels
        self.channels_last = str(getattr(model, "output_fmt", "")) == "NHWC"
        self.only_size = tuple(about["input_size"][1:]) if resizes else None
        for name, usual in (("mean", 0.0), ("std", 1.0)):
            values = torch.tensor(about[name] if normalise else [usual] * 3)
            # One number for all three channels of a gray image: only then may kernels be summed instead.
            values = values.mean()[None] if in_channels == 1 else values
            self.register_buffer(name, values.reshape(1, -1, 1, 1))
        _mark_rows(model)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) → features (B, F, h, w)."""
        images = (self._resized(images) - self.mean) / self.std
        maps: Tensor = self.model(images.expand(-1, self.model_channels, -1, -1))
        if maps.ndim == 3:
            return self._on_grid(maps, images.shape[2:])
        return maps.permute(0, 3, 1, 2) if self.channels_last else maps

    def _resized(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        if self.only_size is not None:
            size = self.only_size
        else:
            growth = max(1.0, LEAST_PIXELS / min(height, width))
            size = (round(height * growth), round(width * growth))
        if size == (height, width):
            return images
        return nn.functional.interpolate(images, size=size, mode="bilinear", align_corners=False)

    def _on_grid(self, tokens: Tensor, size: torch.Size) -> Tensor:
        """Tokens (B, N, F) of images of a size → (B, F, h, w), without class and other extra tokens."""
        tokens = tokens[:, getattr(self.model, "num_prefix_tokens", 0) :]
        n_positions = tokens.shape[1]
        patches: Any = getattr(self.model, "patch_embed", None)
        if hasattr(patches, "dynamic_feat_size"):
            rows, columns = patches.dynamic_feat_size(tuple(size))
        else:
            rows = max(round((n_positions * size[0] / size[1]) ** 0.5), 1)
            columns = n_positions // rows
        if rows * columns != n_positions:
            raise ValueError(f"{n_positions} positions are no grid for images of {tuple(size)}")
        return tokens.transpose(1, 2).reshape(len(tokens), -1, rows, columns)

    def own_stages(self) -> list[Part]:
        """Cut the network as timm groups it (`group_matcher`); empty where timm does not say."""
        from timm.models import group_parameters

        try:
            matcher = self.model.group_matcher(coarse=True)
        except (AttributeError, AssertionError):
            return []
        place: dict[str, int] = group_parameters(self.model, matcher, reverse=True)
        groups: dict[int, list[tuple[str, Any]]] = {}
        last = 0
        for depth, name, part in _parts("", self.model, place):
            last = last if depth is None else depth
            groups.setdefault(last, []).append((name, part))
        return _joined([groups[depth] for depth in sorted(groups)])


def _parts(path: str, module: nn.Module, place: dict[str, int]) -> Iterator[tuple[int | None, str, Any]]:
    """Give the largest modules that lie within one group, and parameters that stand in none: (group, name, part)."""
    start = f"{path}." if path else ""
    depths = {place[start + name] for name, _ in module.named_parameters() if start + name in place}
    if not depths:
        if any(True for _ in module.buffers()):  # a norm without weights goes with what stands before it
            yield None, path, module
    elif len(depths) == 1 and path:
        yield depths.pop(), path, module
    else:
        for name, parameter in module.named_parameters(recurse=False):
            yield place.get(start + name), start + name, parameter
        for name, child in module.named_children():
            yield from _parts(start + name, child, place)


def _joined(groups: list[list[tuple[str, Any]]]) -> list[Part]:
    """Name groups by their first modules, and join those of norms alone to the one before."""
    joined: list[Part] = []
    for group in groups:
        modules = tuple(part for _, part in group if isinstance(part, nn.Module))
        loose = tuple(part for _, part in group if isinstance(part, nn.Parameter))
        weights = [*loose, *(parameter for module in modules for parameter in module.parameters())]
        if joined and not any(weight.ndim > 1 for weight in weights):
            name, before, beside = joined.pop()
            joined.append((name, (*before, *modules), (*beside, *loose)))
        else:
            name = next((name for name, part in group if isinstance(part, nn.Module)), group[0][0])
            name = f"model.{name}" if name.split(".")[0] == "head" else name  # `head` is what follows the backbone
            joined.append((name, modules, loose))
    return joined


def _mark_rows(model: nn.Module) -> None:
    """Make rows of blocks such that they can be computed again; names of weights stay."""
    rows = [
        module
        for module in model.modules()
        if type(module) is nn.Sequential
        and len(module) > 1
        and all(_has_weights(child) and list(child.children()) for child in module)
    ]
    for row in rows:
        if not any(inner in rows for inner in row.modules() if inner is not row):
            row.__class__ = Blocks


def _has_weights(module: nn.Module | None) -> bool:
    return module is not None and any(True for _ in module.parameters())


def _made(
    model: str, in_channels: int, gray: Gray, drop_path: float, *, normalise: bool = True, resizes: bool = False
) -> TimmFeatures:
    """Make a network with random weights."""
    create = timm_library().create_model
    n_channels = 1 if in_channels == 1 and gray == "sum_stem" else 3
    options: dict[str, Any] = {"num_classes": 0, "in_chans": n_channels}
    if drop_path:
        options["drop_path_rate"] = drop_path
    made = None
    if not resizes:
        with suppress(TypeError):  # transformers alone know how to interpolate their positions
            made = create(model, **options, dynamic_img_size=True, dynamic_img_pad=True)
    if made is None:
        made = create(model, **options)
    return TimmFeatures(made, in_channels, n_channels, resizes=resizes, normalise=normalise)


@lru_cache(maxsize=64)
def _try(model: str, in_channels: int, gray: Gray, drop_path: float) -> tuple[str, bool]:
    """Try with shapes alone whether a network can be a backbone.

    Returns:
        Why it cannot, empty where it can; and whether it takes pictures of its own size alone.
    """
    wrong = ""
    for resizes in (False, True):
        try:
            with torch.device("meta"), torch.no_grad():
                network = _made(model, in_channels, gray, drop_path, resizes=resizes).eval()
                maps = network(torch.empty(1, in_channels, *SMALLEST_PICTURE))
        except TypeError as error:
            no_drop_path = "drop_path" in str(error)
            return ("it has no drop_path: leave drop_path out" if no_drop_path else f"{error}"), False
        except Exception as error:  # a thousand networks of many authors: each fails in its own way
            wrong = f"it gives no feature maps ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
            continue
        if maps.ndim == 4 and maps.shape[1] == network.n_features:
            return "", resizes
        wrong = f"it gives no feature maps, but an array of {tuple(maps.shape)} for a picture"
    return wrong, False


def check(*, in_channels: int, model: str, gray: Gray = "sum_stem", drop_path: float = 0.0, **options: Any) -> None:
    """Check that there is such a network and that it can be a backbone.

    Raises:
        UsageError: There is none of that name, or it gives no feature maps, or timm is not installed.
    """
    timm = timm_library()
    if in_channels not in (1, 3):
        raise UsageError(f"backbone timm: {in_channels} channels", expected="1 or 3 (prepare.channels)")
    if not timm.is_model(model):
        names = [*timm.list_models(), *timm.list_pretrained()]
        near = difflib.get_close_matches(model.lower(), names, n=N_SUGGESTED)
        raise UsageError(
            f"backbone timm: no model {model!r}",
            expected="a name of timm.list_models()" + (f", such as {', '.join(near)}" if near else ""),
        )
    wrong, _ = _try(model, in_channels, gray, drop_path)
    if wrong:
        raise UsageError(f"backbone timm: {model} cannot be used: {wrong}")


def check_weights(*, weights: str, model: str, **options: Any) -> None:
    """Check that pretrained weights can be had; raises UsageError where timm has none of that name."""
    about = timm_library().get_pretrained_cfg(model)
    if weights == OWN and (about is None or not about.has_weights):
        names = published_names(model)
        raise UsageError(
            f"backbone timm: there are no weights for {model}",
            expected=f"one of {', '.join(names)}" if names else "another model, or the path of a file",
            fix="Name it in backbone.model, or begin with random weights: `weights: null`, `pretrained=False`.",
        )


def ready(*, weights: str, model: str = USUAL, say: Say = silent, **options: Any) -> None:
    """Fetch what timm publishes, or see that a file is whole, before anything is computed.

    Raises:
        UsageError: They are not to be had.
        DataError: A file is broken or holds code.
    """
    if weights == OWN:
        fetch_own(model, say)
    else:
        load_tensors(find_weights("timm", weights, {}))


def build(
    *,
    spatial_dims: int,
    in_channels: int,
    model: str = USUAL,
    weights: str | None = None,
    gray: Gray = "sum_stem",
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    normalise: bool = True,
    say: Say = silent,
) -> nn.Module:
    """Build a network of timm up to its feature maps.

    Args:
        spatial_dims: 2.
        in_channels: 1 or 3.
        model: A name of timm, such as `resnet50`, `convnext_small` or `vit_base_patch16_224`; a training may follow it,
            as in `convnext_small.fb_in22k_ft_in1k`.
        weights: `timm` (fetched by timm, with licence and origin) or the path of a file in timm's layout; null: random.
        gray: What a network for colours makes of gray images: `sum_stem` sums the kernels of its first convolution over
            the colours, `repeat` gives it three equal channels. Both give the same, the first with less work.
        drop_path: Largest share of residual branches left out while training, growing with depth (stochastic depth).
        normalise: Take intensities of 0 to 1 to the mean and spread that the network was made for; false where
            `prepare.intensity` is zscore.
        say: Told whose weights are used.

    Returns:
        A module with `n_features`.

    Raises:
        UsageError: There is no such network, or the weights do not fit or are not to be had.
        DataError: Their file holds more than tensors, or is not whole.
    """
    refuse_dimensions("timm", spatial_dims)
    check(in_channels=in_channels, model=model, gray=gray, drop_path=drop_path)
    _, resizes = _try(model, in_channels, gray, drop_path)
    network = _made(model, in_channels, gray, drop_path, normalise=normalise, resizes=resizes)
    if weights == OWN:
        check_weights(weights=weights, model=model)
        take_weights(network.model, fetch_own(model, say), model)
    elif weights is not None:
        path = find_weights("timm", weights, {})
        take_weights(network.model, load_tensors(path), str(path))
        say(f"Weights of the backbone: {path}, as {model} of timm.")
    return network
