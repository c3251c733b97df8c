"""Networks of timm as backbones: the contract that every backbone has, on tiny pictures, without network."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from neuroage.errors import DataError, UsageError
from neuroage.models.backbones import ready_weights
from neuroage.models.freezing import HEAD, Stage, check_finetune, freeze_for, rate_scales, stages_of
from neuroage.models.network import Network, build_network, check_backbone
from neuroage.models.recompute import recompute_levels, set_recompute
from neuroage.runs.recipe import Finetune, Recipe
from neuroage.training.description import describe_network
from neuroage.training.memory import peak_memory
from neuroage.training.optim import make_optimiser

timm = pytest.importorskip("timm")

# Every network that users have asked for: how many stages it has, and the names of the first and the last.
NETWORKS = {
    "resnet34": (5, "conv1", "layer4"),
    "resnet50": (5, "conv1", "layer4"),
    "wide_resnet50_2": (5, "conv1", "layer4"),
    "resnetrs152": (5, "conv1", "layer4"),
    "tf_efficientnetv2_b1": (7, "conv_stem", "blocks.5"),
    "convnext_small": (5, "stem", "stages.3"),
    "vit_base_patch16_224": (13, "patch_embed", "blocks.11"),
    "densenet121": (5, "features.conv0", "features.denseblock4"),
    "vgg16": (13, "features.0", "features.28"),
}
SMALL = ("test_resnet", "test_vit", "test_convnext", "test_efficientnet")  # timm's own tiny ones
PIXELS = 32


def recipe(model: str, **changes: Any) -> Recipe:
    backbone = {"name": "timm", "model": model, **changes.pop("backbone", {})}
    prepare = {"kind": "picture", "size": PIXELS, "channels": changes.pop("channels", "gray")}
    return Recipe.from_dict({"modality": "xray", "backbone": backbone, "prepare": prepare, **changes})


def build(model: str, *, n_outputs: int = 2, pretrained: bool = True, **changes: Any) -> Network:
    made = recipe(model, **changes)
    channels = made.prepare.n_channels
    return build_network(made, spatial_dims=2, in_channels=channels, n_outputs=n_outputs, pretrained=pretrained)


def pictures(n: int = 2, size: tuple[int, int] = (PIXELS, PIXELS), channels: int = 1) -> Tensor:
    return torch.rand(n, channels, *size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    """Each network once; it is told its model."""
    made = build(request.param, backbone={"gray": "repeat"})
    made.about = request.param  # type: ignore[assignment]
    yield made


def test_every_parameter_is_in_exactly_one_named_stage(network: Network) -> None:
    stages = stages_of(network)
    counted = [id(parameter) for stage in stages for parameter in stage.parameters]
    assert sorted(counted) == sorted(id(parameter) for parameter in network.parameters())
    assert all(stage.n_parameters for stage in stages)
    n_stages, first, last = NETWORKS[str(network.about)]
    names = [stage.name for stage in stages]
    assert (len(stages) - 1, names[0], names[-2], names[-1]) == (n_stages, first, last, HEAD)
    assert len(set(names)) == len(names)
    inside = {module for stage in stages for part in stage.modules for module in part.modules()}
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    assert all(norm in inside for norm in norms), "what is frozen keeps its statistics"


def test_layer_decay_scales_each_stage(network: Network) -> None:
    made = recipe(str(network.about), finetune={"layer_decay": 0.5, "head_lr": 4}, optim={"lr": 0.1})
    stages = stages_of(network)
    optimiser = make_optimiser(network, made.optim, made.finetune)
    rates = {id(parameter): group["lr"] for group in optimiser.param_groups for parameter in group["params"]}
    assert len(rates) == len(list(network.parameters()))
    for n_below, stage in enumerate(reversed(stages[:-1]), start=1):
        (rate,) = {rates[id(parameter)] for parameter in stage.parameters}
        assert rate == pytest.approx(0.1 * 0.5**n_below)
    assert all(rates[id(parameter)] == pytest.approx(0.4) for parameter in stages[-1].parameters)


def test_a_frozen_network_still_explains_itself(network: Network) -> None:
    made = recipe(str(network.about), finetune={"freeze": 1.0})
    freeze_for(network, made, 0)
    images = pictures().requires_grad_()
    maps = network.backbone(images)
    maps.retain_grad()
    network.head(network.pooling(maps)).sum().backward()
    assert maps.ndim == 4 and maps.shape[1] == network.backbone.n_features
    assert maps.grad is not None and maps.grad.abs().sum() > 0
    assert images.grad is not None and images.grad.abs().sum() > 0
    freeze_for(network, recipe(str(network.about), finetune={"unfreeze": {0: 1.0}}), 0)
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_saved_weights_give_equal_outputs_and_one_channel_equals_three(network: Network, tmp_path: Path) -> None:
    network.eval()
    images = pictures()
    with torch.no_grad():
        expected = network(images)
    with torch.device("meta"):  # nothing is drawn: every number comes from what was saved
        loaded = build(str(network.about), backbone={"gray": "repeat"})
    loaded.load_state_dict(safetensors.torch.load(safetensors.torch.save(network.state_dict())), assign=True)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images), expected)
    del loaded

    path = tmp_path / "model.safetensors"  # as published: three channels, and a classifier
    tensors = {key: value.contiguous() for key, value in network.backbone.model.state_dict().items()}
    classifier = network.backbone.model.pretrained_cfg["classifier"]
    tensors |= {f"{classifier}.weight": torch.zeros(1000, 8), f"{classifier}.bias": torch.zeros(1000)}
    safetensors.torch.save_file(tensors, path)
    summed = build(str(network.about), backbone={"weights": str(path), "gray": "sum_stem"})
    path.unlink()
    with torch.no_grad():
        maps, repeated = summed.eval().backbone(images), network.backbone(images)
    assert (maps - repeated).abs().max() <= 1e-5 * max(1.0, float(repeated.abs().max()))
    assert n_weights(summed) < n_weights(network), "the stem has the kernels of one channel"


def n_weights(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_a_step_teaches_what_trains_and_leaves_every_number_of_what_is_frozen(network: Network) -> None:
    made = recipe(str(network.about), finetune={"unfreeze": {0: "head", 1: 0.5, 2: 1.0}})
    stages = stages_of(network)
    n = len(stages) - 1
    for epoch, n_frozen in enumerate((n, n - int(n * 0.5 + 0.5), 0)):
        freeze_for(network, made, epoch)
        frozen = [tensor for stage in stages[:n_frozen] for tensor in numbers_of(stage)]
        before = [tensor.clone() for tensor in frozen]
        norms = [module for stage in stages[n_frozen:] for module in norms_of(stage)]
        means = [norm.running_mean.clone() for norm in norms]
        learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
        first = [parameter.detach().flatten()[:1000].clone() for parameter in learning]
        optimiser = torch.optim.SGD(learning, lr=1e-2)
        network.train()
        loss = network(pictures(size=(64, 64))).sigmoid().mean()  # of one position, norms would give ±1 whatever comes
        assert torch.isfinite(loss)
        loss.backward()
        optimiser.step()
        assert all(torch.equal(tensor, old) for tensor, old in zip(frozen, before, strict=True))
        assert not any(torch.equal(norm.running_mean, old) for norm, old in zip(norms, means, strict=True))
        assert [name for name, p in network.named_parameters() if (p.grad is not None) != p.requires_grad] == []
        moved = {id(p) for p, old in zip(learning, first, strict=True) if not torch.equal(p.flatten()[:1000], old)}
        assert all(moved & {id(parameter) for parameter in stage.parameters} for stage in stages[n_frozen:])
        optimiser.zero_grad()


def numbers_of(stage: Stage) -> list[Tensor]:
    return [*stage.parameters, *(buffer for module in stage.modules for buffer in module.buffers())]


def norms_of(stage: Stage) -> list[Any]:
    return [part for module in stage.modules for part in module.modules() if isinstance(part, _BatchNorm)]


@pytest.mark.parametrize("model", SMALL)
@pytest.mark.parametrize("size", [(16, 16), (33, 20), (64, 96), (50, 50)])
def test_any_size_gives_maps_for_every_pool(model: str, size: tuple[int, int]) -> None:
    for pool in ("average", "max", "average_max", "grid", "attention"):
        made = build(model, pool=pool, pool_grid=[2, 2]).eval()
        with torch.no_grad():
            assert torch.isfinite(made(pictures(size=size))).all()
            assert made.backbone(pictures(size=size)).shape[:2] == (2, made.backbone.n_features)


def test_patches_of_a_transformer_lie_where_they_were() -> None:
    backbone = build("test_vit").backbone.eval()
    backbone.model.blocks = nn.Identity()
    backbone.model.norm = nn.Identity()
    backbone.model.pos_embed.data.zero_()
    images = pictures(size=(64, 96))
    with torch.no_grad():
        expected = backbone.model.patch_embed.proj((images - backbone.mean) / backbone.std)
        torch.testing.assert_close(backbone(images), expected)
    first = stages_of(build("test_vit"))[0]
    assert {parameter.ndim for parameter in first.loose} == {3} and len(first.loose) == 2  # class token and positions


def test_intensities_are_taken_to_the_mean_and_spread_of_the_model() -> None:
    gray, colour = build("test_resnet").backbone, build("test_resnet", channels="rgb").backbone
    about = colour.model.pretrained_cfg
    assert colour.mean.flatten().tolist() == pytest.approx(list(about["mean"]))
    assert colour.std.flatten().tolist() == pytest.approx(list(about["std"]))
    assert gray.mean.tolist() == [[[[pytest.approx(sum(about["mean"]) / 3)]]]]
    plain = build("test_resnet", backbone={"normalise": False}).backbone
    assert (float(plain.mean), float(plain.std)) == (0, 1)
    assert {"backbone.mean", "backbone.std"} <= set(build("test_resnet").state_dict()), "a run keeps them"


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    first, second, other = (build("test_resnet", seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("model", ["test_vit", "test_convnext", "test_efficientnet"])
def test_recomputing_blocks_gives_the_same_gradients_and_statistics(model: str) -> None:
    gradients, statistics = [], []
    for level in ("none", "blocks"):
        made = build(model, backbone={"drop_path": 0.5})
        assert recompute_levels(made) == ("none", "blocks")
        set_recompute(made, level)
        torch.manual_seed(3)
        made.train()(pictures(4)).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in made.named_parameters()})
        statistics.append(dict(made.named_buffers()))
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, rtol=1e-4, atol=1e-6)
    for name, value in statistics[0].items():
        torch.testing.assert_close(statistics[1][name], value)


@pytest.mark.parametrize("model", [*SMALL, "test_vit_relpos"])
def test_memory_is_foretold_and_networks_are_described(model: str) -> None:
    made = recipe(model)
    plain = peak_memory(build(model), (8, 1, 128, 128), made)
    levels = recompute_levels(build(model))
    assert plain.activations > 0
    if levels[-1] == "blocks":
        assert peak_memory(build(model), (8, 1, 128, 128), made, recompute="blocks").activations < plain.activations
    described = describe_network(made)
    assert described.forward_flops > 0
    assert described.parameters == n_weights(build(model, n_outputs=1))


@pytest.mark.parametrize("model", SMALL)
def test_reduced_precision_and_channels_last_change_only_roundings(model: str) -> None:
    made = build(model).eval()
    images = pictures(size=(64, 64))
    with torch.no_grad():
        expected = made(images)
        made.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(made(images), expected, atol=1e-4, rtol=1e-4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            reduced = made(images).float()
    assert (reduced - expected).abs().max() <= 0.1 * expected.abs().max().clamp_min(0.1)


def problems(model: str, **changes: Any) -> str:
    return " ".join(problem.message for problem in check_backbone(recipe(model, **changes)))


def test_what_cannot_be_is_said_before_anything_is_built() -> None:
    assert "convnext_small" in problems("convnext_smal") and len(problems("convnext_smal")) < 300
    assert problems("test_vit", backbone={"drop_path": 0.1}) == ""
    assert "it has no drop_path" in problems("vgg11", backbone={"drop_path": 0.1})
    assert "gives no feature maps" in problems("efficientvit_b0")
    volume = Recipe.from_dict({"modality": "t1", "backbone": {"name": "timm", "model": "resnet18"}})
    (problem,) = check_backbone(volume)
    assert "takes images with 2 spatial axes, not 3" in problem.message
    with pytest.raises(UsageError, match="2 spatial axes"):
        build_network(volume, spatial_dims=3, in_channels=1, n_outputs=1)
    assert problems("test_resnet") == ""


def test_stage_names_of_a_recipe_are_checked() -> None:
    (problem,) = check_finetune(recipe("test_vit", finetune={"freeze": ["patch_embed", "blocks.9"]}))
    assert "blocks.5" in problem.message and "blocks" in problem.message
    assert check_finetune(recipe("test_vit", finetune={"freeze": ["patch_embed", "blocks"]})) == []


def test_without_timm_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r'pip install "neuroage\[images\]"'):
        build("test_resnet")


def test_naming_the_backbones_does_not_import_timm() -> None:
    code = (
        "import sys; from neuroage.models.backbones import *; import neuroage.models.backbones as b;"
        "assert 'timm' in b.backbones() and b.backbone_summary('timm').endswith('.') and b.backbone_builder('timm');"
        "assert 'timm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def file_of(model: str, path: Path, **options: Any) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        torch.save(options or {"model": timm.create_model(model).state_dict(), "epoch": 3}, path)
    return path


@pytest.mark.parametrize("model", SMALL)
def test_a_file_of_torch_is_taken_without_its_classifier(model: str, tmp_path: Path) -> None:
    path = file_of(model, tmp_path / "model.pth")
    said: list[str] = []
    made = recipe(model, backbone={"weights": str(path)}, channels="rgb")
    network = build_network(made, spatial_dims=2, in_channels=3, n_outputs=2, say=said.append)
    expected = torch.load(path, weights_only=True)["model"]
    own = network.backbone.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in own.items())
    assert any(str(path) in words for words in said)
    ready_weights("timm", made.backbone.options)


def test_files_that_do_not_fit_are_refused_naming_what_does_not(tmp_path: Path) -> None:
    path = file_of("test_efficientnet", tmp_path / "other.pth")
    with pytest.raises(UsageError, match=r"missing: conv1.*more.*unknown: conv_stem.weight"):
        build("test_resnet", backbone={"weights": str(path)})
    tensors = timm.create_model("test_resnet").state_dict()
    first = next(name for name in tensors if name.startswith("layer3") and tensors[name].ndim == 4)
    tensors[first] = tensors[first][:1]
    torch.save(tensors, path)
    with pytest.raises(UsageError, match=rf"another shape: {first} \(1, "):
        build("test_resnet", backbone={"weights": str(path)})
    torch.save({"model": {}, "code": Path("x")}, path)
    with pytest.raises(DataError, match="more than tensors"):
        ready_weights("timm", {"model": "test_resnet", "weights": str(path)})
    with pytest.raises(UsageError, match=r"no weights 'nowhere\.pth'"):
        ready_weights("timm", {"model": "test_resnet", "weights": "nowhere.pth"})


def test_published_weights_are_fetched_by_timm_and_their_origin_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    make, said = timm.create_model, []

    def publisher(model: str, pretrained: bool = False, **options: Any) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            return make(model, **options)

    published = publisher("resnet10t", num_classes=0).state_dict()
    monkeypatch.setattr(timm, "create_model", publisher)
    made = recipe("resnet10t", backbone={"weights": "timm"}, channels="rgb")
    network = build_network(made, spatial_dims=2, in_channels=3, n_outputs=2, say=said.append)
    assert all(torch.equal(value, published[name]) for name, value in network.backbone.model.state_dict().items())
    assert "resnet10t.c3_in1k" in said[0] and "apache-2.0" in said[0] and "huggingface.co/timm/resnet10t" in said[0]
    assert "176×176" in said[0]


def test_without_a_network_one_sentence_says_what_else_can_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> Any:
        raise OSError("Name or service not known")

    monkeypatch.setattr(timm, "create_model", offline)
    options = {"model": "resnet34", "weights": "timm"}
    with pytest.raises(UsageError, match=r"cannot be fetched.*weights: PATH.*pretrained=False"):
        ready_weights("timm", options)


def test_a_model_that_nobody_has_trained_is_told_before_anything_is_computed() -> None:
    without = next(name for name in timm.list_models("resnet*") if not timm.get_pretrained_cfg(name).has_weights)
    assert f"there are no weights for {without}" in problems(without, backbone={"weights": "timm"})


def test_rates_of_a_transformer_fall_block_by_block() -> None:
    scales = rate_scales(stages_of(build("test_vit")), Finetune(layer_decay=0.75))
    assert scales == pytest.approx([0.75**depth for depth in range(7, 0, -1)] + [1.0])
