"""Published weights: fetched whole or not at all, read without running anything, and the same network afterwards."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from neuroage.cohort import Cohort, Split
from neuroage.errors import DataError, UsageError
from neuroage.files import digest_file
from neuroage.imaging.store import Store
from neuroage.models.backbones import highresnet, sfcn
from neuroage.models.network import build_network
from neuroage.models.recompute import set_recompute
from neuroage.models.weights import Published, fetch, load_tensors
from neuroage.runs.recipe import Recipe
from neuroage.training import scoring
from neuroage.training.observer import Observer
from neuroage.training.predict import predict
from neuroage.training.train import check_recipe, train


def norm_tensors(name: str, n: int, generator: torch.Generator) -> dict[str, Tensor]:
    return {
        f"{name}.weight": torch.rand(n, generator=generator) + 0.5,
        f"{name}.bias": torch.randn(n, generator=generator),
        f"{name}.running_mean": torch.randn(n, generator=generator),
        f"{name}.running_var": torch.rand(n, generator=generator) + 0.5,
        f"{name}.num_batches_tracked": torch.tensor(7),
    }


def highresnet_tensors() -> dict[str, Tensor]:
    """Random weights in the published layout: every name and shape of Li's file."""
    g = torch.Generator().manual_seed(0)

    def convolution(n_out: int, n_in: int, size: int) -> Tensor:
        return torch.randn(n_out, n_in, size, size, size, generator=g) / (n_in * size**3) ** 0.5

    def block(name: str, n_in: int, n_out: int, size: int, places: tuple[int, int]) -> dict[str, Tensor]:
        name = f"{name}.convolutional_block"
        n_normed = n_in if places[1] == 0 else n_out
        weights = {f"{name}.{places[0]}.weight": convolution(n_out, n_in, size)}
        return {**weights, **norm_tensors(f"{name}.{places[1]}", n_normed, g)}

    tensors = block("block.0", 1, 16, 3, (1, 2))
    width = 16
    for stage, n_out in enumerate((16, 32, 64), start=1):
        for residual in range(3):
            for half in range(2):
                name = f"block.{stage}.dilation_block.{residual}.residual_block.{half}"
                tensors |= block(name, width, n_out, 3, (3, 0))
                width = n_out
    return {**tensors, **block("block.4", 64, 80, 1, (0, 1)), **block("block.6", 80, 160, 1, (0, 1))}


def normed(x: Tensor, tensors: dict[str, Tensor], name: str) -> Tensor:
    mean, var, weight, bias = (
        tensors[f"{name}.{part}"].to(x).view(1, -1, 1, 1, 1)
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def highresnet_features(images: Tensor, tensors: dict[str, Tensor], depth: int = 9) -> Tensor:
    """Compute what the published network computes up to residual block `depth`: padding, then convolution."""
    stem = "block.0.convolutional_block"
    x = F.conv3d(F.pad(images, [1] * 6), tensors[f"{stem}.1.weight"].to(images))
    x = normed(x, tensors, f"{stem}.2").relu()
    for number in range(depth):
        stage, residual = number // 3 + 1, number % 3
        dilation, y = 2 ** (stage - 1), x
        for half in (0, 1):
            name = f"block.{stage}.dilation_block.{residual}.residual_block.{half}.convolutional_block"
            y = F.pad(normed(y, tensors, f"{name}.0").relu(), [dilation] * 6)
            y = F.conv3d(y, tensors[f"{name}.3.weight"].to(images), dilation=dilation)
        zeros = x.new_zeros(len(x), (y.shape[1] - x.shape[1]) // 2, *x.shape[2:])
        x = y + torch.cat([zeros, x, zeros], dim=1)
    return x


def sfcn_tensors() -> dict[str, Tensor]:
    """Random weights in the layout of the public UK Biobank models, as DataParallel names them."""
    g = torch.Generator().manual_seed(1)
    tensors: dict[str, Tensor] = {}
    widths = (1, 32, 64, 128, 256, 256, 64)
    for index, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
        name, size = f"module.feature_extractor.conv_{index}", 1 if index == 5 else 3
        weight = torch.randn(n_out, n_in, size, size, size, generator=g) / (n_in * size**3) ** 0.5
        tensors |= {f"{name}.0.weight": weight, f"{name}.0.bias": torch.randn(n_out, generator=g)}
        tensors |= norm_tensors(f"{name}.1", n_out, g)
    weight = torch.randn(40, 64, 1, 1, 1, generator=g) / 8
    head = {"module.classifier.conv_6.weight": weight, "module.classifier.conv_6.bias": torch.randn(40, generator=g)}
    return {**tensors, **head}


def sfcn_outputs(images: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """Compute what the published SFCN computes in evaluation; its window of average pooling covers all positions."""
    x = images
    for index in range(6):
        name = f"module.feature_extractor.conv_{index}"
        x = F.conv3d(x, tensors[f"{name}.0.weight"], tensors[f"{name}.0.bias"], padding=1 if index < 5 else 0)
        x = normed(x, tensors, f"{name}.1")
        x = (F.max_pool3d(x, 2, 2) if index < 5 else x).relu()
    x = F.avg_pool3d(x, tuple(x.shape[2:]))
    x = F.conv3d(x, tensors["module.classifier.conv_6.weight"], tensors["module.classifier.conv_6.bias"])
    return F.log_softmax(x, dim=1).flatten(1)


def save(content: Any, folder: Path, kind: str = "zip") -> Path:
    path = folder / f"weights.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "safetensors":
        save_file(content, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    return path


def age_network(weights: Path | str, said: list[str] | None = None, edges: Tensor | None = None, **changes: Any) -> Any:
    recipe = Recipe.from_dict({"backbone": {"name": "sfcn", "weights": str(weights)}, **changes})
    n_outputs = 1 if edges is None else len(edges) - 1
    return build_network(
        recipe,
        spatial_dims=3,
        in_channels=1,
        n_outputs=n_outputs,
        bin_edges=edges,
        say=(said if said is not None else []).append,
    ).eval()


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


class Told(Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_the_made_layout_is_the_published_one() -> None:
    tensors = highresnet_tensors()
    learnt = [t for name, t in tensors.items() if not name.endswith(("mean", "var", "tracked"))]
    assert (len(tensors), sum(t.numel() for t in learnt)) == (126, 821_904)  # those of the published file


@pytest.mark.parametrize("kind", ["legacy", "zip", "safetensors"])
def test_highresnet_with_published_weights_is_the_published_network(kind: str, tmp_path: Path) -> None:
    tensors = highresnet_tensors()
    network = highresnet.build(spatial_dims=3, in_channels=1, weights=str(save(tensors, tmp_path, kind)))
    images = torch.randn(2, 1, 9, 8, 10, generator=torch.Generator().manual_seed(2)).double()
    with torch.no_grad():
        features = network.double().eval()(images)
    assert features.shape == (2, 64, 9, 8, 10)
    torch.testing.assert_close(features, highresnet_features(images, tensors), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("depth", "n_features"), [(1, 16), (3, 16), (4, 32), (8, 64)])
def test_depth_keeps_the_first_blocks(depth: int, n_features: int, tmp_path: Path) -> None:
    tensors = highresnet_tensors()
    path = str(save(tensors, tmp_path))
    network = highresnet.build(spatial_dims=3, in_channels=1, weights=path, depth=depth).double().eval()
    images = torch.randn(1, 1, 6, 7, 6, generator=torch.Generator().manual_seed(3)).double()
    with torch.no_grad():
        features = network(images)
    assert features.shape[1] == network.n_features == n_features
    torch.testing.assert_close(features, highresnet_features(images, tensors, depth), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("level", ["activations", "blocks"])
def test_recomputation_leaves_published_features_as_they_are(level: str, tmp_path: Path) -> None:
    network = highresnet.build(spatial_dims=3, in_channels=1, weights=str(save(highresnet_tensors(), tmp_path)))
    images = torch.randn(1, 1, 6, 6, 6)
    expected = network.eval()(images)
    set_recompute(network, level)
    torch.testing.assert_close(network(images), expected)


def test_other_initial_weights_are_for_the_head_alone(tmp_path: Path) -> None:
    path = str(save(highresnet_tensors(), tmp_path))
    recipes = [
        Recipe.from_dict({"init": init, "backbone": {"name": "highresnet", "weights": path}})
        for init in ("he", "default")
    ]
    he, default = (build_network(recipe, spatial_dims=3, in_channels=1, n_outputs=1) for recipe in recipes)
    assert torch.equal(he.backbone.stem[0].weight, default.backbone.stem[0].weight)
    assert not torch.equal(he.head[-1].weight, default.head[-1].weight)


def test_a_strided_stem_with_published_weights_is_said_to_be_another_network(tmp_path: Path) -> None:
    said: list[str] = []
    path = str(save(highresnet_tensors(), tmp_path))
    highresnet.build(spatial_dims=3, in_channels=1, weights=path, stem_stride=2, say=said.append)
    assert any("stride" in words for words in said)
    highresnet.build(spatial_dims=3, in_channels=1, stem_stride=2, say=lambda words: pytest.fail(words))


def test_sfcn_with_public_weights_and_bins_is_the_published_network(tmp_path: Path) -> None:
    tensors = sfcn_tensors()
    said: list[str] = []
    network = age_network(save(tensors, tmp_path), said, torch.arange(42.0, 83.0), head={"dropout": 0.5})
    images = torch.randn(2, 1, 64, 32, 32, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        outputs = network(images).log_softmax(dim=1)
    torch.testing.assert_close(outputs, sfcn_outputs(images, tensors), rtol=1e-5, atol=1e-5)
    assert any("published head" in words and "interpolated" not in words for words in said)
    assert torch.equal(network.head[-1].weight, tensors["module.classifier.conv_6.weight"].flatten(1))


def test_keys_without_the_prefix_of_parallel_training_are_the_same(tmp_path: Path) -> None:
    plain = {name.removeprefix("module."): tensor for name, tensor in sfcn_tensors().items()}
    prefixed, bare = (
        sfcn.build(spatial_dims=3, in_channels=1, weights=str(save(tensors, tmp_path)))
        for tensors in (sfcn_tensors(), plain)
    )
    assert all(torch.equal(value, bare.state_dict()[name]) for name, value in prefixed.state_dict().items())


def test_the_published_head_is_interpolated_to_other_bins(tmp_path: Path) -> None:
    tensors = sfcn_tensors()
    said: list[str] = []
    path = save(tensors, tmp_path)
    bias = tensors["module.classifier.conv_6.bias"]
    halves = age_network(path, said, torch.arange(42.5, 82.0))  # centres between those of the published bins
    torch.testing.assert_close(halves.head[-1].bias, (bias[:-1] + bias[1:]) / 2)
    wide = age_network(path, said, torch.arange(20.0, 91.0))
    assert torch.equal(wide.head[-1].bias[:23], bias[:1].expand(23)), "nearest below the youngest"
    torch.testing.assert_close(wide.head[-1].bias[22:62], bias)
    assert "30 of them lie outside" in said[-1]  # 22 bins below 42 years, 8 above 82
    double = age_network(path, said, torch.arange(42.0, 83.0, 2.0))
    torch.testing.assert_close(double.head[-1].bias, (bias[::2] + bias[1::2]) / 2)


@pytest.mark.parametrize(
    ("edges", "changes"),
    [
        (None, {}),
        (torch.arange(42.0, 83.0), {"head": {"hidden": [8]}}),
        (torch.arange(42.0, 83.0), {"head": {"norm": True}}),
        (torch.arange(42.0, 83.0), {"pool": "max"}),
    ],
)
def test_where_the_published_head_cannot_go_it_is_said(edges: Any, changes: Any, tmp_path: Path) -> None:
    said: list[str] = []
    network = age_network(save(sfcn_tensors(), tmp_path), said, edges, **changes)
    assert "not taken over" in said[-1]
    assert torch.equal(network.backbone.last[0].bias, sfcn_tensors()["module.feature_extractor.conv_5.0.bias"])


@pytest.mark.parametrize("nested", ["state_dict", "model_state_dict", "network"])
def test_weights_among_other_things_of_a_training_are_found(nested: str, tmp_path: Path) -> None:
    path = save({nested: {"a": torch.ones(2)}, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path)
    assert list(load_tensors(path)) == ["a"]


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_a_file_that_would_run_code_is_refused_and_does_not_run(kind: str, tmp_path: Path) -> None:
    marker = tmp_path / "it-ran"
    content = {"a": torch.ones(2), "b": Evil(marker)}
    if kind == "pickle":
        (tmp_path / "weights.pth").write_bytes(pickle.dumps({"b": Evil(marker)}))
        path = tmp_path / "weights.pth"
    else:
        path = save(content, tmp_path, kind)
    with pytest.raises(DataError, match="more than tensors and was not loaded"):
        load_tensors(path)
    assert not marker.exists()
    with pytest.raises(DataError, match="not loaded"):
        highresnet.build(spatial_dims=3, in_channels=1, weights=str(path))
    assert not marker.exists()
    pickle.loads(pickle.dumps(Evil(marker)))
    assert marker.exists(), "the trap works where nobody guards against it"


def test_what_is_no_tensor_is_refused(tmp_path: Path) -> None:
    for content in ({"a": torch.ones(2), "b": [1, 2]}, [torch.ones(2)], torch.ones(2)):
        with pytest.raises(DataError, match="more than tensors"):
            load_tensors(save(content, tmp_path))
    with pytest.raises(DataError, match="no tensors"):
        load_tensors(save({"epoch": 3}, tmp_path))


@pytest.mark.parametrize("kind", ["legacy", "zip", "safetensors"])
def test_a_truncated_file_is_refused(kind: str, tmp_path: Path) -> None:
    path = save(highresnet_tensors(), tmp_path, kind)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="not a whole file"):
        load_tensors(path)


def published(folder: Path, content: bytes, **changes: Any) -> Published:
    folder.mkdir(exist_ok=True)
    (folder / "some.pth").write_bytes(content)
    given = {"url": (folder / "some.pth").as_uri(), "sha256": digest_file(folder / "some.pth"), "n_bytes": len(content)}
    about = {"name": "some", "licence": "CC0", "source": "somebody", "paper": "a paper", "input": "anything"}
    return Published(**{**about, **given, **changes})


def test_weights_are_fetched_once_and_it_is_said_from_where_and_whose(tmp_path: Path) -> None:
    some, cache, said = published(tmp_path / "there", b"weights" * 100_000), tmp_path / "cache", list[str]()
    first = fetch(some, folder=cache, say=said.append)
    assert first.read_bytes() == b"weights" * 100_000
    assert len(said) == 1 and all(words in said[0] for words in (some.url, "somebody", "CC0", "0.7 MB", str(cache)))
    (tmp_path / "there" / "some.pth").unlink()
    assert fetch(some, folder=cache, say=said.append) == first
    assert len(said) == 1


def test_a_damaged_copy_is_fetched_again(tmp_path: Path) -> None:
    some, cache = published(tmp_path / "there", b"weights"), tmp_path / "cache"
    fetch(some, folder=cache).write_bytes(b"weigh")
    assert fetch(some, folder=cache).read_bytes() == b"weights"


@pytest.mark.parametrize("content", [b"other weights, of more bytes", b"weightz", b""])
def test_another_file_than_the_published_one_is_refused_and_not_kept(content: bytes, tmp_path: Path) -> None:
    some = published(tmp_path / "there", b"weights")
    (tmp_path / "there" / "some.pth").write_bytes(content)
    with pytest.raises(DataError, match="another file"):
        fetch(some, folder=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_a_network_it_is_said_where_to_put_the_file(tmp_path: Path) -> None:
    some = published(tmp_path / "there", b"weights", url=(tmp_path / "nowhere" / "some.pth").as_uri())
    with pytest.raises(UsageError, match="cannot be fetched") as caught:
        fetch(some, folder=tmp_path / "cache")
    assert str(tmp_path / "cache" / "some.pth") in caught.value.fix and "backbone.weights" in caught.value.fix
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(highresnet_tensors(), tmp_path)
    made = dataclasses.replace(
        highresnet.PUBLISHED["li2017"], url=path.as_uri(), sha256=digest_file(path), n_bytes=path.stat().st_size
    )
    monkeypatch.setitem(highresnet.PUBLISHED, "li2017", made)
    monkeypatch.delenv("NEUROAGE_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    said: list[str] = []
    network = highresnet.build(spatial_dims=3, in_channels=1, weights="li2017", say=said.append)
    assert (tmp_path / "xdg" / "neuroage" / "weights" / "weights.pth").is_file()
    monkeypatch.setenv("NEUROAGE_WEIGHTS", str(tmp_path / "mine"))
    highresnet.build(spatial_dims=3, in_channels=1, weights="li2017")
    assert (tmp_path / "mine" / "weights.pth").is_file()
    assert torch.equal(network.stem[0].weight, highresnet_tensors()["block.0.convolutional_block.1.weight"])
    assert len(said) == 2 and "CC-BY 4.0" in said[1] and "T1" in said[1]


@pytest.mark.parametrize("module", [highresnet, sfcn])
@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"spatial_dims": 2}, "2D"),
        ({"in_channels": 3}, "3 channels"),
        ({"norm": "group"}, "norm: group"),
        ({"weights": "nowhere.pth"}, "no weights 'nowhere.pth'"),
        ({"weights": "li2018"}, "li2018"),
    ],
)
def test_what_cannot_be_pretrained_says_so(module: Any, given: Any, match: str, tmp_path: Path) -> None:
    tensors = highresnet_tensors() if module is highresnet else sfcn_tensors()
    path = str(save(tensors, tmp_path))
    with pytest.raises(UsageError, match=match) as caught:
        module.build(**{"spatial_dims": 3, "in_channels": 1, "weights": path, **given})
    assert caught.value.fix or caught.value.expected


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = save(sfcn_tensors(), tmp_path)
    with pytest.raises(UsageError, match="not the weights of this network"):
        highresnet.build(spatial_dims=3, in_channels=1, weights=str(path))
    wrong = {**highresnet_tensors(), "block.0.convolutional_block.1.weight": torch.zeros(16, 2, 3, 3, 3)}
    with pytest.raises(UsageError, match="expected shape \\(16, 1, 3, 3, 3\\)"):
        highresnet.build(spatial_dims=3, in_channels=1, weights=str(save(wrong, tmp_path)))
    with pytest.raises(UsageError, match="widths"):
        sfcn.build(spatial_dims=3, in_channels=1, weights=str(path), widths=(8, 8, 8, 8, 8, 8))


@pytest.mark.parametrize(
    ("backbone", "prepare"),
    [
        ({"name": "cnn", "weights": "some.pth"}, {}),
        ({"name": "highresnet", "weights": "some.pth"}, {"fractions": [-0.5, 0.5]}),
        ({"name": "sfcn", "weights": "some.pth", "norm": "none"}, {}),
    ],
)
def test_a_recipe_is_refused_before_anything_is_computed(backbone: Any, prepare: Any) -> None:
    with pytest.raises(UsageError, match=r"backbone\.weights"):
        check_recipe(Recipe.from_dict({"backbone": backbone, "prepare": prepare}))


def test_published_weights_are_needed_for_training_alone(
    cohort: Cohort, split: Split, store: Store, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "write_run_pages", lambda run: None)  # pictures tell nothing here
    path, told = save(sfcn_tensors(), tmp_path), Told()
    content = recipe.model_dump(mode="json")
    content |= {"backbone": {"name": "sfcn", "weights": str(path)}, "task": {"name": "soft_label_age"}}
    content["training"] |= {"epochs": 1}
    run = train(Recipe.from_dict(content), cohort, split, tmp_path / "run", store=store, observer=told)
    assert any(str(path) in note for note in told.notes)
    assert any("interpolated to" in note and "lie outside of the ages" in note for note in told.notes)
    path.unlink()
    held_out = run.predictions.query("set == 'validation'").set_index("scan_id")["predicted_age"]
    answer = predict(run, cohort.select(scan_ids=list(held_out.index)), store=store)
    again = answer.table.set_index("scan_id")["predicted_age"].loc[held_out.index]
    assert held_out.to_numpy() == pytest.approx(again.to_numpy(), abs=1e-3)
    with pytest.raises(UsageError, match="no weights"):
        train(Recipe.from_dict(content), cohort, split, tmp_path / "another", store=store)
    path.write_text("hello\n")
    with pytest.raises(DataError, match="not a whole file of weights; expected"):
        train(Recipe.from_dict(content), cohort, split, tmp_path / "another", store=store)
    assert not (tmp_path / "another").exists()
