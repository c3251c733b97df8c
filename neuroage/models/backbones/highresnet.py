"""HighRes3DNet: full resolution, blocks of growing dilation (Li 2017, doi:10.1007/978-3-319-59050-9_28)."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn

from neuroage.models.layers import CONV, Norm, activation, norm_layer
from neuroage.models.recompute import Blocks, Layers
from neuroage.models.weights import Published, Say, check_network, find_weights, load_tensors, silent, take_tensors

WIDTHS, DILATIONS, RESIDUAL_BLOCKS = (16, 32, 64), (1, 2, 4), 3  # Li 2017, figure 1
LAYERS_PER_BLOCK = 3  # norm, ReLU, convolution: the places of the second half of a block follow those of the first

PUBLISHED = {
    "li2017": Published(
        name="li2017",
        url="https://github.com/fepegar/highresnet-models/raw/master/highres3dnet_li_parameters-7d297872.pth",
        sha256="7d2978724469087fa46d5beda42edc7b5941cdec2065e310534ca8a7a5d15edc",
        n_bytes=3_329_775,
        licence="CC-BY 4.0 (NiftyNet model zoo), converted under MIT",
        source="HighRes3DNet of W. Li and the NiftyNet model zoo, converted by F. Pérez-García",
        paper="Li 2017, doi:10.1007/978-3-319-59050-9_28",
        input="whole T1 heads, RAS, 1 mm, histogram standardised, z-scored above the mean (`prepare.preset: li2017`)",
    )
}


class ResidualBlock(nn.Module):
    """Twice (norm, ReLU, dilated convolution), added to the input, which is widened by zero channels on both sides."""

    def __init__(self, spatial_dims: int, n_in: int, n_out: int, dilation: int, norm: Norm) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (n_in, n_out):
            layers += [
                norm_layer(norm, spatial_dims, channels),
                activation(norm),
                CONV[spatial_dims](channels, n_out, 3, padding=dilation, dilation=dilation, bias=False),
            ]
        self.layers = Layers(*layers)
        self.n_in, self.before = n_in, (n_out - n_in) // 2

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, n_in, *spatial) → (B, n_out, *spatial)."""
        result: Tensor = self.layers(features)
        if result.shape[1] == self.n_in:
            return result.add_(features)
        # Widening without a tensor of zeros: the input is added to the middle of what the convolutions gave.
        result.narrow(1, self.before, self.n_in).add_(features)
        return result


class HighResNet(nn.Module):
    """A stem convolution and stages of three residual blocks, dilated by 1, 2, 4; only the stem may have a stride."""

    def __init__(self, spatial_dims: int, in_channels: int, depth: int, norm: Norm, stem_stride: int = 1) -> None:
        super().__init__()
        width = WIDTHS[0]
        self.stem = Layers(
            CONV[spatial_dims](in_channels, width, 3, stride=stem_stride, padding=1, bias=False),
            norm_layer(norm, spatial_dims, width),
            activation(norm),
            whole=True,
        )
        self.stages = nn.ModuleList()
        for stage, (n_out, dilation) in enumerate(zip(WIDTHS, DILATIONS, strict=True)):
            blocks = []
            for _ in range(min(depth - stage * RESIDUAL_BLOCKS, RESIDUAL_BLOCKS)):
                blocks.append(ResidualBlock(spatial_dims, width, n_out, dilation, norm))
                width = n_out
            if blocks:
                self.stages.append(Blocks(*blocks))
        self.n_features = width

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, *spatial) → features (B, F, *spatial / stem_stride)."""
        features = self.stem(images)
        for stage in self.stages:
            features = stage(features)
        return features

    def published_names(self) -> dict[str, str]:
        """Give our name of every module with weights → its name in the published file."""
        names = {"stem.0": "block.0.convolutional_block.1", "stem.1": "block.0.convolutional_block.2"}
        for stage, blocks in enumerate(self.stages):
            for block in range(len(list(blocks.children()))):
                for half in (0, 1):
                    ours = f"stages.{stage}.{block}.layers"
                    theirs = f"block.{stage + 1}.dilation_block.{block}.residual_block.{half}.convolutional_block"
                    names[f"{ours}.{LAYERS_PER_BLOCK * half}"] = f"{theirs}.0"
                    names[f"{ours}.{LAYERS_PER_BLOCK * half + 2}"] = f"{theirs}.3"
        return names


def check_weights(*, weights: str, spatial_dims: int, in_channels: int, norm: str = "batch", **options: Any) -> None:
    """Check that pretrained weights fit; raises UsageError where they do not."""
    check_network("highresnet", weights, spatial_dims=spatial_dims, in_channels=in_channels, norm=norm)


def build(
    *,
    spatial_dims: int,
    in_channels: int,
    weights: str | None = None,
    depth: Annotated[int, Field(ge=1, le=9)] = 9,
    stem_stride: Annotated[int, Field(ge=1, le=4)] = 1,
    norm: Norm = "batch",
    say: Say = silent,
) -> nn.Module:
    """Build HighResNet up to its last dilated block (64 features).

    It keeps full resolution, and with it much memory: see `training.recompute`. A coarser input (`prepare.spacing_mm:
    2`) or a strided stem needs an eighth.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the image.
        weights: `li2017` (brain parcellation on T1: fetched once, checked, attributed) or the path of a file of that
            layout; null: random.
        depth: Keep the first of the nine residual blocks: 1 to 3 give 16 features, 4 to 6 give 32, 7 to 9 give 64.
        stem_stride: Stride of the first convolution; above 1 it is another network than the published one, several
            times smaller and faster.
        norm: batch (as published), instance, group (8 groups) or none.
        say: Told whose weights are used.

    Returns:
        A module with `n_features`.

    Raises:
        UsageError: The weights do not fit, or are not to be had.
        DataError: Their file holds more than tensors, or is not whole.
    """
    network = HighResNet(spatial_dims, in_channels, depth, norm, stem_stride)
    if weights is not None:
        check_weights(weights=weights, spatial_dims=spatial_dims, in_channels=in_channels, norm=norm)
        path = find_weights("highresnet", weights, PUBLISHED, say)
        take_tensors(network, network.published_names(), load_tensors(path), path)
        say(PUBLISHED[weights].words if weights in PUBLISHED else f"Weights of the backbone: {path}.")
        if stem_stride > 1:
            say(f"The weights were trained with a stem of stride 1; with {stem_stride} all later layers see wider.")
    return network
