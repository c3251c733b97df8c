"""Maps of made networks with known answers, of networks that learnt where something was planted, and of whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from neuroage.analysis.localisation import score_maps
from neuroage.cohort import Cohort, Split
from neuroage.errors import InfeasibleError, UsageError
from neuroage.imaging.maps import Maps
from neuroage.imaging.store import Store
from neuroage.models.backbones.cnn import build
from neuroage.models.freezing import stages_of
from neuroage.models.network import Network
from neuroage.models.tasks.binary import Binary
from neuroage.models.tasks.multiclass import MultiClass
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run
from neuroage.training.attribution import (
    METHODS,
    attribute,
    features_and_gradients,
    integrate_gradients,
    occlude,
    patch_places,
    reference_of,
    weights_of_mean,
    weights_plus_plus,
)
from neuroage.training.explain import Member, ask_for, check_target, choose_target, explain
from neuroage.training.train import train

CAMS = ("gradcam", "gradcam++")


def first(outputs: Tensor) -> Tensor:
    return outputs[:, 0]


def network_of(backbone: nn.Module, n_outputs: int = 1, **options: Any) -> Network:
    given: dict[str, Any] = {"pool": "average", "grid": (), "hidden": (), "dropout": 0.0, **options}
    return Network(backbone, n_outputs=n_outputs, **given).eval()


def small_network(spatial_dims: int, seed: int = 0, n_blocks: int = 2, features: int = 8, **options: Any) -> Network:
    torch.manual_seed(seed)
    backbone = build(spatial_dims=spatial_dims, in_channels=1, n_blocks=n_blocks, features=features)
    return network_of(backbone, **options)


TIMM = ("test_vit", "test_resnet", "swin_tiny_patch4_window7_224")


def timm_network(name: str) -> Network:
    pytest.importorskip("timm")
    from neuroage.models.backbones.timm import build as build_timm

    torch.manual_seed(0)
    return network_of(build_timm(spatial_dims=2, in_channels=1, model=name))


# --- what is asked -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(24, 17), (12, 16, 13)])
def test_every_method_maps_pictures_and_volumes_of_any_size_and_repeats_itself(
    method: str, size: tuple[int, ...]
) -> None:
    network = small_network(len(size))
    images = torch.rand(2, 1, *size)
    maps = attribute(network, images, first, method, n_at_once=3)
    assert maps.shape == (2, *size) and maps.dtype == torch.float32 and not maps.requires_grad
    assert maps.std() > 0
    assert torch.equal(maps, attribute(network, images, first, method, n_at_once=3))
    alone = attribute(network, images[1:], first, method, n_at_once=64)
    torch.testing.assert_close(maps[1:], alone, rtol=1e-3, atol=1e-5 * float(maps.abs().max()) + 1e-7)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backbone", ["cnn", *TIMM[:2]])
def test_frozen_networks_are_mapped_as_trainable_ones_and_are_left_as_found(method: str, backbone: str) -> None:
    network = small_network(2) if backbone == "cnn" else timm_network(backbone)
    images = torch.rand(1, 1, 64, 64)
    expected = attribute(network, images, first, method)
    network.train()
    for parameter in network.backbone.parameters():
        parameter.requires_grad_(False)
    network.frozen = (network.backbone,)
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    wanted = [parameter.requires_grad for parameter in network.parameters()]
    with torch.no_grad():
        frozen = attribute(network, images, first, method)
    torch.testing.assert_close(frozen, expected)
    assert frozen.std() > 0
    assert modes == [module.training for module in network.modules()] and len(set(modes)) == 2
    assert wanted == [parameter.requires_grad for parameter in network.parameters()]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in network.modules())


def test_a_network_that_fails_is_left_without_hooks_and_in_its_mode() -> None:
    network = small_network(2).train()
    with pytest.raises(ZeroDivisionError):
        attribute(network, torch.rand(1, 1, 16, 16), lambda outputs: outputs[:, 0] / (1 // 0))
    assert network.training and not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("size", [(24, 20), (12, 10, 16)])
@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_grad_cam_is_that_of_monai_but_for_its_rectifier(size: tuple[int, ...]) -> None:
    from monai.visualize import GradCAM, GradCAMpp

    network = small_network(len(size), seed=3, n_outputs=2)
    nn.init.uniform_(network.head[-1].weight, 0.1, 1.0)
    images = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0))
    features, gradients = features_and_gradients(network, images, lambda outputs: outputs[:, 1])
    for rule, kind in ((weights_of_mean, GradCAM), (weights_plus_plus, GradCAMpp)):
        their = kind(network, target_layers="backbone").compute_map(images, class_idx=1).detach()
        ours = (rule(features, gradients) * features).sum(dim=1, keepdim=True).clamp_min(0)
        assert their.max() > 0
        # Grad-CAM++'s factor exp(score) is left out.
        torch.testing.assert_close(ours / ours.max(), their / their.max(), rtol=0.01, atol=1e-4)


@pytest.mark.parametrize("size", [(24, 20), (12, 16, 12)])
def test_two_sided_grad_cam_adds_up_to_the_difference_from_the_reference_and_is_zero_in_the_background(
    size: tuple[int, ...],
) -> None:
    network = small_network(len(size), seed=2)
    images = torch.ones(1, 1, *size)
    images[(..., *[slice(8, -1)] * len(size))] = 3.0
    with torch.no_grad():
        difference = float(first(network(images)) - first(network(torch.ones_like(images))))
    found = attribute(network, images, first, "gradcam", two_sided=True)[0]
    assert abs(difference) > 1e-3
    n_cells = np.prod([-(-n // 4) for n in size])
    assert float(found.mean()) * n_cells == pytest.approx(difference, rel=0.01)
    assert found[(slice(0, 2),) * len(size)].abs().max() == 0
    assert attribute(network, images, first, "gradcam")[0][(slice(0, 2),) * len(size)].abs().max() > 0


def test_integrated_gradients_add_up_to_the_difference_from_the_reference() -> None:
    for spatial_dims, size in ((2, (20, 24)), (3, (12, 10, 8))):
        network = small_network(spatial_dims, seed=1)
        images = torch.rand(1, 1, *size) + 0.5
        with torch.no_grad():
            difference = float(first(network(images)) - first(network(reference_of(network, images))))
        total = float(integrate_gradients(network, images, first).sum())
        assert abs(difference) > 1e-3
        assert total == pytest.approx(difference, rel=0.02, abs=1e-4)


class Linear(nn.Module):
    """Gives the image back as its features: with average pooling, a linear network."""

    n_features = 1

    def forward(self, images: Tensor) -> Tensor:
        return images * self.weights if hasattr(self, "weights") else images


def linear_network(weights: Tensor) -> Network:
    backbone = Linear()
    backbone.weights = weights
    network = network_of(backbone)
    nn.init.constant_(network.head[-1].weight, float(weights.numel()))
    nn.init.zeros_(network.head[-1].bias)
    return network


def test_maps_of_a_linear_network_are_weight_times_image_and_keep_their_sign() -> None:
    weights = torch.zeros(16, 16)
    weights[:4, :4], weights[8:12, 8:12] = 1.0, -2.0
    network, images = linear_network(weights), torch.rand(1, 1, 16, 16)
    images[..., (0, -1), :] = images[..., :, (0, -1)] = 0.0
    exact = weights * images[0, 0]
    torch.testing.assert_close(attribute(network, images, first, "integrated_gradients")[0], exact)
    occluded = attribute(network, images, first, "occlusion")[0]
    assert occluded[1:4, 1:4].min() > 0 and occluded[9:11, 9:11].max() < 0 and occluded[:, 14:].abs().max() < 1e-4


def test_occlusion_loses_what_a_patch_holds() -> None:
    network = linear_network(torch.ones(16, 16))
    images = torch.zeros(1, 1, 16, 16)
    images[..., 4:6, 8:10] = 1.0  # one patch's worth: 2 × 2, four units
    fall = occlude(network, images, first)[0]
    assert float(fall.max()) == pytest.approx((4 + 2 + 2 + 1) / 4, rel=1e-4)  # of the four patches over a pixel
    assert float(fall[0, 0]) == 0


@pytest.mark.parametrize("size", [(5, 9), (224, 224), (20, 24, 20), (160, 192, 160)])
def test_patches_cover_every_pixel_and_stay_few(size: tuple[int, ...]) -> None:
    patches = patch_places(size)
    covered = np.zeros(size, dtype=int)
    for patch in patches:
        covered[patch] += 1
    assert covered.min() >= 1 and len(patches) <= 1_500


def test_voxelwise_standardised_networks_are_held_against_the_mean_scan() -> None:
    network = network_of(Linear(), input_size=(1, 8, 8))
    network.input_mean.fill_(0.5)
    same = torch.full((1, 1, 8, 8), 0.5)
    assert attribute(network, same, first, "integrated_gradients").abs().max() == 0
    assert attribute(network, same, first, "occlusion").abs().max() == 0


def test_grad_cam_plus_plus_tells_both_sides_when_asked() -> None:
    network = linear_network(torch.ones(16, 16))
    nn.init.constant_(network.head[-1].weight, -1.0)
    images = nn.functional.pad(torch.rand(1, 1, 12, 12), (2, 2, 2, 2))
    assert attribute(network, images, first, "gradcam++").abs().max() == 0
    both = attribute(network, images, first, "gradcam++", two_sided=True)[0]
    assert both[3:-3, 3:-3].max() < 0 and both[0].abs().max() == 0


@pytest.mark.parametrize("backbone", TIMM)
def test_layers_are_stages_and_the_tokens_of_a_transformer_take_their_places(backbone: str) -> None:
    network = timm_network(backbone)
    layer = stages_of(network)[-3].name
    images = torch.rand(1, 1, 64, 64)
    inner = attribute(network, images, first, layer=layer)
    assert inner.std() > 0 and not torch.allclose(inner, attribute(network, images, first))


def test_a_layer_method_or_feature_map_that_cannot_say_where_is_refused() -> None:
    network = small_network(2, n_blocks=4)
    images = torch.rand(1, 1, 8, 8)
    with pytest.raises(InfeasibleError, match="single position"):
        attribute(network, images, first)
    assert attribute(network, images, first, layer="blocks.0").std() > 0
    with pytest.raises(UsageError, match=r"blocks\.0"):
        attribute(network, images, first, layer="block")
    with pytest.raises(UsageError, match="head"):
        attribute(network, images, first, layer="head")
    with pytest.raises(UsageError, match="gradcam"):
        attribute(network, images, first, "grad_cam")
    with pytest.raises(UsageError, match="no layer"):
        attribute(network, images, first, "occlusion", layer="blocks.0")


# --- does it find what was planted ---------------------------------------------------------------------------------


def planted(size: tuple[int, ...], n: int, seed: int) -> tuple[Tensor, Tensor, list[np.ndarray]]:
    """Noise, in every second image with a textured blob at a place of its own; and where it lies."""
    rng = np.random.default_rng(seed)
    images = rng.normal(0, 1, (n, 1, *size)).astype(np.float32)
    masks = []
    grid = np.indices(size)
    for index in range(n):
        middle = np.array([rng.uniform(4, side - 4) for side in size])
        away = np.sqrt(sum((axis - place) ** 2 for axis, place in zip(grid, middle, strict=True)))
        masks.append(away <= 3.5)
        if index % 2:
            images[index, 0] += 2.5 * np.exp(-0.5 * (away / 2) ** 2)
    labels = torch.arange(n) % 2
    return torch.from_numpy(images), labels.float(), masks


Learnt = tuple[Network, Tensor, list[np.ndarray], dict[str, Tensor]]


@pytest.fixture(scope="module", params=[2, 3], ids=["2D", "3D"])
def learnt(request: pytest.FixtureRequest) -> Learnt:
    """A tiny network that tells images with a blob from those without; new ones with a blob, and its maps of them."""
    size = (32, 28) if request.param == 2 else (14, 16, 12)
    network = untrained(request.param, seed=5)
    images, labels, _ = planted(size, 96, 0)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    network.train()
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        for part in torch.randperm(len(images), generator=generator).split(16):
            optimizer.zero_grad()
            logits = first(network(images[part]))
            nn.functional.binary_cross_entropy_with_logits(logits, labels[part]).backward()
            optimizer.step()
    network.eval()
    images, labels, masks = planted(size, 28, 1)
    with torch.no_grad():
        assert float(((first(network(images)) > 0) == (labels > 0)).float().mean()) > 0.9
    maps = {method: attribute(network, images[1::2], first, method, n_at_once=16) for method in METHODS}
    return network, images[1::2], masks[1::2], maps


def untrained(spatial_dims: int, seed: int) -> Network:
    torch.manual_seed(seed)
    return network_of(build(spatial_dims=spatial_dims, in_channels=1, n_blocks=1, features=8, convs_per_block=2))


@pytest.mark.parametrize("method", METHODS)
def test_maps_point_at_what_was_planted(method: str, learnt: Learnt) -> None:
    _, _, masks, maps = learnt
    found = score_maps(
        {str(i): map_ for i, map_ in enumerate(maps[method].numpy())}, {str(i): mask for i, mask in enumerate(masks)}
    )
    pointing = found.table.set_index("measure").loc["pointing_game"]
    assert pointing["n_images"] == 14
    assert pointing["value"] >= 0.8
    assert pointing["above_centre_low"] > 0 and pointing["random"] < 0.3


@pytest.mark.parametrize("method", METHODS)
def test_randomised_weights_change_the_map(method: str, learnt: Learnt) -> None:
    """The sanity check of Adebayo 2018 (arXiv 1810.03292): a map that stays the same says nothing of the network.

    A random network answers to what is bright, with either sign; so the correlation is that over some of them.
    """
    network, images, _, maps = learnt
    few = images[:2]
    correlations = [
        spearmanr(one.flatten(), other.flatten()).statistic
        for seed in range(70, 74)
        for one, other in zip(
            maps[method], attribute(untrained(images.ndim - 2, seed), few, first, method, n_at_once=16), strict=False
        )
    ]
    assert len(correlations) == 8 and np.std(correlations) > 0
    assert abs(float(np.mean(correlations))) < 0.3
    same = attribute(network, few[:1], first, method, n_at_once=16)[0]
    assert spearmanr(same.flatten(), maps[method][0].flatten()).statistic > 0.99


# --- runs ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(cohort: Cohort, split: Split, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Run:
    recipe = Recipe.from_dict(
        {
            "modality": "t1",
            "prepare": {"spacing_mm": 6.0, "size": [16, 16, 16], "centre": "image"},
            "backbone": {"name": "cnn", "n_blocks": 2, "features": 4},
            "optim": {"lr": 0.01},
            "training": {"epochs": 2, "batch_size": 6, "precision": "fp32"},
        }
    )
    return train(recipe, cohort, split, tmp_path_factory.mktemp("runs") / "t1", store=store)


def some(cohort: Cohort, n: int = 2) -> Cohort:
    scans = cohort.select(modality="t1")
    return scans.select(scan_ids=scans.table["scan_id"].tolist()[:n])


def maps_of(run: Run, cohort: Cohort, store: Store, **options: Any) -> Maps:
    return explain(run, some(cohort), store=store, **options)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_explains_scans_in_years(method: str, run: Run, cohort: Cohort, store: Store) -> None:
    maps = maps_of(run, cohort, store, method=method)
    table = run.predictions.set_index("scan_id")
    assert maps.two_sided and maps.failures == {}
    for scan in maps.scans:
        assert scan.target == "age" and scan.map.shape == (16, 16, 16) and scan.map.dtype == np.float32
        assert scan.map.std() > 0 and scan.image.shape == (1, 16, 16, 16)
        if scan.scan_id in table.index:
            assert scan.output == pytest.approx(table.loc[scan.scan_id, "predicted_age"], abs=0.01)


def test_the_saved_map_lies_in_the_scans_own_space(run: Run, cohort: Cohort, store: Store, tmp_path: Path) -> None:
    maps = maps_of(run, cohort, store, method="occlusion")
    table = maps.save(tmp_path)
    image = nib.load(tmp_path / table["file"][0])
    np.testing.assert_allclose(np.asarray(image.dataobj), maps.scans[0].map, rtol=1e-6)
    # `centre: image`: the middle of the prepared grid is the middle of the scan, in the scan's own millimetres.
    scan = nib.load(some(cohort).table["path"].iloc[0])
    middles = [each.affine[:3, :3] @ ((np.array(each.shape) - 1) / 2) + each.affine[:3, 3] for each in (image, scan)]
    np.testing.assert_allclose(*middles, atol=1e-3)
    place = [float(value) for value in table["strongest"][0].split(",")]
    voxel = np.round(np.linalg.solve(image.affine[:3, :3], np.array(place) - image.affine[:3, 3])).astype(int)
    assert abs(maps.scans[0].map[tuple(voxel)]) == pytest.approx(np.abs(maps.scans[0].map).max())


def test_members_are_averaged(run: Run, cohort: Cohort, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import neuroage.training.explain as module

    real = module.load_network
    one = maps_of(run, cohort, store, method="gradcam")
    turned: list[bool] = []

    def load(leaf: Run) -> Any:
        fabric, network, task = real(leaf)
        turned.append(len(turned) % 2 == 1)
        if turned[-1]:
            with torch.no_grad():
                network.head[-1].weight.neg_()
        return fabric, network, task

    monkeypatch.setattr(module, "load_network", load)
    monkeypatch.setattr(module, "complete_leaves", lambda run: [run, run])
    both = maps_of(run, cohort, store, method="gradcam")
    assert np.abs(both.scans[0].map).max() < 1e-5 * np.abs(one.scans[0].map).max()


def test_a_target_that_a_run_does_not_have_is_refused(run: Run, cohort: Cohort, store: Store) -> None:
    with pytest.raises(UsageError, match="age"):
        maps_of(run, cohort, store, target="tumour")
    assert maps_of(run, cohort, store, target="age").scans[0].target == "age"


class Fixed(nn.Module):
    """Gives the same outputs for every image."""

    def __init__(self, *outputs: float) -> None:
        super().__init__()
        self.outputs = torch.tensor([outputs])

    def forward(self, images: Tensor) -> Tensor:
        return self.outputs.expand(len(images), -1)


def member_of(task: Any, labels: list[str], *outputs: float) -> Member:
    task.restore({"labels": labels, "shares": [1 / len(labels)] * len(labels)})
    return Member(None, Fixed(*outputs), task)  # type: ignore[arg-type]


def test_labels_of_members_are_aligned_by_name_and_the_most_probable_is_explained() -> None:
    image = torch.zeros(1, 1, 4, 4)
    members = [
        member_of(MultiClass(), ["a", "b", "c"], 0.0, 4.0, 1.0),
        member_of(MultiClass(), ["c", "a", "b"], 1.0, 0.0, 5.0),
    ]
    name, probability = choose_target(members, image, None)
    each = [float(torch.tensor([0.0, top, 1.0]).softmax(0)[1]) for top in (4.0, 5.0)]
    assert name == "b" and probability == pytest.approx(np.mean(each))
    assert [float(ask_for(member.task, "b")(member.network(image))[0]) for member in members] == [4.0, 5.0]
    assert choose_target(members, image, "c")[0] == "c"
    with pytest.raises(UsageError, match="'a', 'b', 'c'"):
        check_target(members[0].task, "d")


def test_a_binary_run_explains_its_label_whatever_it_answers() -> None:
    member = member_of(Binary(), ["tumour"], -3.0)
    name, probability = choose_target([member], torch.zeros(1, 1, 4, 4), None)
    assert name == "tumour" and probability == pytest.approx(1 / (1 + np.exp(3)), abs=1e-6)
