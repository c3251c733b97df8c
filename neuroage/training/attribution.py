"""Where a network looked: maps of one number that it gives, over the picture or volume that it was given.

Every method takes a network, images (B, C, *spatial) and `ask`, which makes of the outputs (B, n_outputs) the one
number a scan that is explained, (B,). Maps are signed: positive where the image pushes that number up. Networks are
left as they were found: no hook stays, no parameter and no mode changes; frozen ones work as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuroage.errors import InfeasibleError, UsageError, did_you_mean
from neuroage.models.freezing import HEAD, stages_of
from neuroage.models.network import Network

METHODS = ("gradcam", "gradcam++", "integrated_gradients", "occlusion")
N_STEPS = 64  # of the path; Sundararajan 2017 finds 20 to 300 enough
PATCHES = 8  # along each axis: what an occlusion map can tell apart
MOST_POSITIONS = 1_500  # of patches: half overlapping in pictures (225), side by side in volumes (512, not 3,375)
LINEAR = {2: "bilinear", 3: "trilinear"}

Ask = Callable[[Tensor], Tensor]


def attribute(
    network: Network,
    images: Tensor,
    ask: Ask,
    method: str = "gradcam",
    *,
    layer: str | None = None,
    two_sided: bool = False,
    n_at_once: int = 8,
) -> Tensor:
    """Map what one number of a network rests on.

    Args:
        network: On the device of the images.
        images: Prepared, shape (B, C, *spatial), two or three spatial axes.
        ask: Outputs (B, n_outputs) → the number that is explained, (B,).
        method: One of `METHODS`.
        layer: Grad-CAM's layer, a stage's name; the backbone's feature map when None.
        two_sided: Grad-CAM with a meaningful sign, see `grad_cam`; the other methods always have one.
        n_at_once: Images that go through the network together.

    Returns:
        Shape (B, *spatial), float32, without gradient. Sums are comparable within a method only.

    Raises:
        UsageError: No such method or layer, or a layer for a method that has none.
        InfeasibleError: The layer's feature map has a single position.
    """
    check_method(method, layer)
    with _undisturbed(network), torch.autocast(images.device.type, enabled=False):
        if method == "occlusion":
            maps = [occlude(network, image[None], ask, n_at_once=n_at_once) for image in images]
        elif method == "integrated_gradients":
            maps = [integrate_gradients(network, image[None], ask, n_at_once=n_at_once) for image in images]
        else:
            rule = weights_plus_plus if method == "gradcam++" else weights_of_mean
            maps = [grad_cam(network, part, ask, rule, layer, two_sided) for part in images.split(n_at_once)]
    return torch.cat(maps).detach().float()


def check_method(method: str, layer: str | None) -> None:
    """Raise where a method is not there, or has no use for a layer; as `attribute` does."""
    if method not in METHODS:
        raise UsageError(f"No method {method!r}", expected=did_you_mean(method, METHODS))
    if layer is not None and not method.startswith("gradcam"):
        raise UsageError(f"{method} looks at the image itself and has no layer", fix="Leave `layer` out.")


@contextmanager
def _undisturbed(network: nn.Module) -> Iterator[None]:
    """Ask in evaluation mode, part by part as found afterwards: frozen parts may be in another mode than the rest."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.enable_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def grad_cam(
    network: Network,
    images: Tensor,
    ask: Ask,
    rule: Callable[[Tensor, Tensor], Tensor],
    layer: str | None,
    two_sided: bool,
) -> Tensor:
    """Weigh the channels of a feature map by their gradients and add them up; the map is enlarged linearly.

    The rectifier that the papers end with is left to whoever wants one side only. Where both sides count, a map needs
    a zero: features are then taken less those of the reference, so that empty background says nothing and, with
    average pooling and no hidden layer, the cells add up to the number's difference from that for the reference.

    Args:
        network, images, ask, layer, two_sided: As in `attribute`.
        rule: Features and gradients (B, F, *reduced) → weights (B, F, 1, …).

    Source: Selvaraju 2017, arXiv 1610.02391; Chattopadhyay 2018, arXiv 1710.11063.
    """
    features, gradients = features_and_gradients(network, images, ask, layer)
    weights = rule(features, gradients)
    if two_sided:
        if rule is weights_plus_plus:
            weights = weights - rule(features, -gradients)
        features = features - features_and_gradients(network, reference_of(network, images), ask, layer)[0]
    cam = (weights * features).sum(dim=1, keepdim=True)
    size = tuple(images.shape[2:])
    return F.interpolate(cam.float(), size, mode=LINEAR[len(size)], align_corners=False)[:, 0]


def weights_of_mean(features: Tensor, gradients: Tensor) -> Tensor:
    """Weigh as Grad-CAM does: a channel by the mean of its gradient."""
    return gradients.mean(dim=_spatial(gradients), keepdim=True)


def weights_plus_plus(features: Tensor, gradients: Tensor) -> Tensor:
    """Weigh as Grad-CAM++ does: by rising gradients, less where a channel is strong at many places.

    The paper's factor exp(score) is one for the whole map, and too large a number for a score in years: left out.
    """
    axes = _spatial(gradients)
    # Written for features after a rectifier; those of a transformer may be negative, and would let this reach 0.
    strength = features.clamp_min(0).sum(dim=axes, keepdim=True)
    rising = gradients.clamp_min(0)
    share = 1 / (2 + strength * rising).clamp_min(1e-7)
    return (share * rising).sum(dim=axes, keepdim=True)


def _spatial(features: Tensor) -> tuple[int, ...]:
    return tuple(range(2, features.ndim))


def features_and_gradients(
    network: Network, images: Tensor, ask: Ask, layer: str | None = None
) -> tuple[Tensor, Tensor]:
    """Give a layer's feature map and the gradient of the number with respect to it, both (B, F, *reduced).

    Raises:
        UsageError: No such layer, or what it gives has no places.
        InfeasibleError: Its feature map has a single position.
    """
    caught: dict[str, Tensor] = {}

    def catch(name: str) -> Callable[..., Tensor | None]:
        def hook(_: nn.Module, __: Any, output: Any) -> Tensor | None:
            if not isinstance(output, Tensor):
                return None
            caught[name] = output
            return output.clone()  # so that nothing later can change in place what was caught

        return hook

    module = network.backbone if layer is None else find_layer(network, layer)
    handles = [module.register_forward_hook(catch("layer")), network.backbone.register_forward_hook(catch("backbone"))]
    try:
        value = ask(network(images.detach().clone().requires_grad_()))  # else frozen backbones have no gradient
    finally:
        for handle in handles:
            handle.remove()
    if "layer" not in caught:
        raise UsageError(f"layer {layer!r} gives no feature map", fix="Choose another, or leave `layer` out.")
    (gradient,) = torch.autograd.grad(value.sum(), caught["layer"], allow_unused=True)
    features = caught["layer"].detach()
    gradient = torch.zeros_like(features) if gradient is None else gradient
    grid = tuple(caught["backbone"].shape[2:])
    if layer is not None and getattr(network.backbone, "channels_last", False) and features.ndim == images.ndim:
        features, gradient = features.movedim(-1, 1), gradient.movedim(-1, 1)
    features, gradient = (as_map(each, grid, images.ndim - 2, layer) for each in (features, gradient))
    if features[0, 0].numel() == 1:
        raise InfeasibleError(
            f"The feature map of {layer or 'the backbone'} has a single position and cannot say where",
            fix="Choose an earlier layer, one of "
            + ", ".join(stage.name for stage in stages_of(network)[:-1])
            + ", or integrated_gradients or occlusion.",
        )
    return features, gradient


def as_map(features: Tensor, grid: Sequence[int], spatial_dims: int, layer: str | None) -> Tensor:
    """Give tokens (B, N, F) of a transformer their places, (B, F, *grid); maps stay as they are.

    Tokens that stand for no place (class, registers) come first and are left out.
    """
    n_places = math.prod(grid)
    if features.ndim == spatial_dims + 2:
        return features
    if features.ndim == 3 and len(grid) == spatial_dims and features.shape[1] >= n_places:
        return features[:, features.shape[1] - n_places :].transpose(1, 2).unflatten(2, tuple(grid))
    raise UsageError(
        f"layer {layer!r} gives values of shape {tuple(features.shape)}", expected="a feature map, or tokens of places"
    )


def find_layer(network: Network, name: str) -> nn.Module:
    """Find the last layer of the stage of that name, or of the last one whose name begins with it.

    Raises:
        UsageError: There is none; all names are listed.
    """
    stages = [stage for stage in stages_of(network) if stage.name != HEAD]
    found = [stage for stage in stages if stage.name == name or stage.name.startswith(f"{name}.")]
    if not found:
        raise UsageError(f"No layer {name!r}", expected=did_you_mean(name, [stage.name for stage in stages]))
    return found[-1].modules[-1]


def reference_of(network: Network, images: Tensor) -> Tensor:
    """Give what an image is held against, shape (B, C, *spatial): one of which there is nothing to say.

    It is the mean training scan where the network standardises voxel by voxel, else one value for each channel: the
    median of its outermost pixels, which is the background of heads and pads, and no outlier.
    """
    if network.standardised:
        return network.input_mean.to(images).expand_as(images)
    edges = [images.select(axis, side).flatten(2) for axis in _spatial(images) for side in (0, -1)]
    background = torch.cat(edges, dim=2).median(dim=2).values
    return background[(..., *[None] * (images.ndim - 2))].expand_as(images)


def integrate_gradients(
    network: Network, images: Tensor, ask: Ask, *, n_steps: int = N_STEPS, n_at_once: int = 8
) -> Tensor:
    """Share the difference to the reference out among the pixels, by gradients along the straight way between both.

    A map adds up to the number for the image less the number for the reference (completeness), to within what
    `n_steps` Gauss–Legendre points leave.

    Args:
        network, ask, n_at_once: As in `attribute`.
        images: Shape (1, C, *spatial).
        n_steps: Points on the way.

    Returns:
        Shape (1, *spatial), summed over channels, in the number's own unit a pixel.

    Source: Sundararajan 2017, arXiv 1703.01365.
    """
    reference = reference_of(network, images)
    difference = images - reference
    points, weights = np.polynomial.legendre.leggauss(n_steps)
    places = torch.as_tensor((points + 1) / 2, dtype=images.dtype, device=images.device)
    shares = torch.as_tensor(weights / 2, dtype=images.dtype, device=images.device)
    total = torch.zeros_like(images)
    shape = (-1,) + (1,) * (images.ndim - 1)
    for place, share in zip(places.split(n_at_once), shares.split(n_at_once), strict=True):
        way = (reference + place.view(shape) * difference).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(ask(network(way)).sum(), way)
        total += (gradient * share.view(shape)).sum(dim=0, keepdim=True)
    return (total * difference).sum(dim=1)


@torch.no_grad()
def occlude(network: Network, images: Tensor, ask: Ask, *, n_at_once: int = 8) -> Tensor:
    """Cover one patch after the other with the reference and see how much the number falls.

    Args:
        network, ask, n_at_once: As in `attribute`.
        images: Shape (1, C, *spatial).

    Returns:
        Shape (1, *spatial): at each pixel the mean fall over the patches that cover it, in the number's own unit.

    Source: Zeiler and Fergus 2014, doi:10.1007/978-3-319-10590-1_53.
    """
    size = images.shape[2:]
    whole = reference_of(network, images)
    plain = ask(network(images))
    fall, n_covered = (torch.zeros(size, dtype=torch.float32, device=images.device) for _ in range(2))
    patches = patch_places(size)
    # What looks like the reference already would change nothing; in scans of heads that is half of all patches.
    telling = [patch for patch in patches if not torch.equal(images[_all_of(patch)], whole[_all_of(patch)])]
    for start in range(0, len(telling), n_at_once):
        part = telling[start : start + n_at_once]
        covered = images.expand(len(part), *images.shape[1:]).clone()
        for number, patch in enumerate(part):
            covered[number][_all_of(patch)] = whole[0][_all_of(patch)]
        for patch, value in zip(part, ask(network(covered)), strict=True):
            fall[patch] += (plain[0] - value).float()
    for patch in patches:
        n_covered[patch] += 1
    return (fall / n_covered)[None]


def _all_of(patch: tuple[slice, ...]) -> Any:
    """Index a patch in all channels and images."""
    return (..., *patch)


def patch_places(size: Sequence[int]) -> list[tuple[slice, ...]]:
    """Give where patches lie: an eighth of each axis long, half overlapping where that is not too many."""
    lengths = [-(-n // PATCHES) for n in size]
    for part in (2, 1):
        steps = [max(1, length // part) for length in lengths]
        starts = [
            range(0, max(n - length, 0) + step, step) for n, length, step in zip(size, lengths, steps, strict=True)
        ]
        if math.prod(map(len, starts)) <= MOST_POSITIONS:
            break
    return [
        tuple(slice(start, min(start + length, n)) for start, length, n in zip(place, lengths, size, strict=True))
        for place in product(*starts)
    ]
