"""SFCN, the simple fully convolutional network of Peng et al. 2021 (doi:10.1016/j.media.2020.101871; code MIT)."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from neuroage.errors import UsageError
from neuroage.models.layers import CONV, MAX_POOL, HalveWhilePossible, Norm, activation, norm_layer
from neuroage.models.recompute import Blocks, Layers
from neuroage.models.weights import Published, Say, check_network, find_weights, load_tensors, silent, take_tensors

PUBLISHED_WIDTHS = (32, 64, 128, 256, 256, 64)
PUBLISHED_EDGES = tuple(range(42, 83))  # years; 40 bins of the UK Biobank models (Peng 2021, section 2.3)
PUBLISHED_HEAD = "classifier.conv_6"
PUBLISHED: dict[str, Published] = {}  # its weights are given as a file: see docs/how-to/pretrained-weights.md


class SFCN(nn.Module):
    """Five blocks of 3×3×3 convolution → norm → max pool 2 → ReLU, then 1×1×1 convolution → norm → ReLU.

    The published head (average pool, dropout 0.5, 1×1×1 convolution to 40 age bins) is the network's pooling and head
    with `head.dropout: 0.5` and the task `soft_label_age`.

    Attributes:
        published: Weight (40, 64) and bias (40,) of the head that came with pretrained weights; None without.
    """

    def __init__(self, spatial_dims: int, in_channels: int, widths: tuple[int, ...], norm: Norm) -> None:
        super().__init__()
        blocks = []
        n_in = in_channels
        for width in widths[:-1]:
            convolution = CONV[spatial_dims](n_in, width, 3, padding=1)
            halve = HalveWhilePossible(MAX_POOL[spatial_dims](2))
            blocks.append(Layers(convolution, norm_layer(norm, spatial_dims, width), halve, activation(norm)))
            n_in = width
        self.blocks = Blocks(*blocks)
        self.last = Layers(
            CONV[spatial_dims](n_in, widths[-1], 1), norm_layer(norm, spatial_dims, widths[-1]), activation(norm)
        )
        self.n_features = widths[-1]
        self.published: tuple[Tensor, Tensor] | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, *spatial) → features (B, F, *reduced); an axis of one voxel is not halved further."""
        features: Tensor = self.last(self.blocks(images))
        return features

    def published_head(self, edges: Tensor) -> tuple[Tensor, Tensor, str]:
        """Give the published head for other age bins.

        Rows are interpolated between the centres of the published bins (42.5 to 81.5 years); beyond them, the outermost
        one is taken. With the published bins this is the published head, to the bit.

        Args:
            edges: Edges of the bins in years, shape (n_bins + 1,).

        Returns:
            Weight (n_bins, 64), bias (n_bins,), and what was done, in words.
        """
        assert self.published is not None
        weight, bias = self.published
        low, high = PUBLISHED_EDGES[0], PUBLISHED_EDGES[-1]
        centres = (edges[:-1] + edges[1:]).double() / 2
        place = (centres - (low + 0.5)).clamp(0, len(bias) - 1)
        below = place.floor().long().clamp(max=len(bias) - 2)
        share = (place - below).to(weight)
        rows = [torch.lerp(part[below], part[below + 1], by) for part, by in ((weight, share[:, None]), (bias, share))]
        n_unseen = int(((centres < low) | (centres > high)).sum())
        note = f"The published head for {low} to {high} years was taken over"
        if len(centres) != len(bias) or not torch.equal(edges.double(), torch.tensor(PUBLISHED_EDGES).double()):
            note += f", interpolated to {len(centres)} bins from {edges[0]:g} to {edges[-1]:g} years"
        if n_unseen:
            note += f"; {n_unseen} of them lie outside of the ages that it was trained on and begin as copies"
        return rows[0], rows[1], f"{note}."

    def published_names(self) -> dict[str, str]:
        """Give our name of every module with weights → its name in the published files."""
        ours = [f"blocks.{index}" for index in range(len(PUBLISHED_WIDTHS) - 1)] + ["last"]
        return {
            f"{name}.{layer}": f"feature_extractor.conv_{index}.{layer}"
            for index, name in enumerate(ours)
            for layer in (0, 1)
        }


def check_weights(
    *,
    weights: str,
    spatial_dims: int,
    in_channels: int,
    widths: tuple[int, ...] = PUBLISHED_WIDTHS,
    norm: str = "batch",
    **options: Any,
) -> None:
    """Check that pretrained weights fit; raises UsageError where they do not."""
    check_network("sfcn", weights, spatial_dims=spatial_dims, in_channels=in_channels, norm=norm)
    if tuple(widths) != PUBLISHED_WIDTHS:
        raise UsageError(
            f"backbone sfcn: the weights {weights!r} do not fit widths {list(widths)}",
            expected=str(list(PUBLISHED_WIDTHS)),
            fix="Leave backbone.widths out, or backbone.weights.",
        )


def build(
    *,
    spatial_dims: int,
    in_channels: int,
    weights: str | None = None,
    widths: tuple[Annotated[int, Field(ge=1)], ...] = PUBLISHED_WIDTHS,
    norm: Norm = "batch",
    say: Say = silent,
) -> nn.Module:
    """Build SFCN.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the image.
        weights: Path of a checkpoint in the layout of the public UK Biobank models; null: random. With the task
            `soft_label_age` its head is taken over too, interpolated to the task's bins.
        widths: Channels of each block, the last one being the 1×1×1 convolution; the default is the published network.
        norm: batch (as published), instance, group (8 groups) or none.
        say: Told whose weights are used.

    Returns:
        A module with `n_features`.

    Raises:
        UsageError: The weights do not fit, or are not to be had.
        DataError: Their file holds more than tensors, or is not whole.
    """
    network = SFCN(spatial_dims, in_channels, tuple(widths), norm)
    if weights is not None:
        check_weights(weights=weights, spatial_dims=spatial_dims, in_channels=in_channels, widths=widths, norm=norm)
        path = find_weights("sfcn", weights, PUBLISHED, say)
        tensors = {name.removeprefix("module."): tensor for name, tensor in load_tensors(path).items()}
        take_tensors(network, network.published_names(), tensors, path)
        network.published = _head(tensors)
        say(f"Weights of the backbone: {path}, in the layout of SFCN (Peng 2021, doi:10.1016/j.media.2020.101871).")
    return network


def _head(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor] | None:
    weight, bias = (tensors.get(f"{PUBLISHED_HEAD}.{part}") for part in ("weight", "bias"))
    n_bins = len(PUBLISHED_EDGES) - 1
    if weight is None or bias is None or weight.shape[:2] != (n_bins, PUBLISHED_WIDTHS[-1]) or len(bias) != n_bins:
        return None  # another head, such as the one for sex: the backbone alone is of use
    return weight.flatten(1), bias
