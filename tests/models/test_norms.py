"""Batch-norm statistics are measured anew, and nothing else moves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from neuroage.errors import UsageError
from neuroage.models.backbones import backbone_builder
from neuroage.models.norms import FeatureNorm, reestimate_norms

IMAGES = 3 + 2 * torch.randn(12, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_first_statistics_are_those_of_all_scans() -> None:
    norm = nn.BatchNorm3d(1)
    assert reestimate_norms(norm, IMAGES.split(4)) == 1
    assert float(norm.running_mean) == pytest.approx(float(IMAGES.mean()), abs=1e-5)
    within = torch.stack([batch.var() for batch in IMAGES.split(4)]).mean()
    assert float(norm.running_var) == pytest.approx(float(within), rel=1e-5)
    assert float(norm.running_var) == pytest.approx(float(IMAGES.var()), rel=0.02)


def test_deeper_statistics_are_those_behind_measured_ones() -> None:
    torch.manual_seed(1)
    network = backbone_builder("cnn")(spatial_dims=3, in_channels=1, n_blocks=2, features=4)
    reestimate_norms(network, [IMAGES])
    outputs = {}
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm3d)]
    for norm in norms:
        norm.register_forward_hook(lambda module, given, output: outputs.update({module: output.mean((0, 2, 3, 4))}))
    with torch.no_grad():
        network.eval()(IMAGES)
    assert len(outputs) == 2
    for norm, mean in outputs.items():
        torch.testing.assert_close(mean, norm.bias.detach(), atol=2e-2, rtol=0)  # standardised, whatever the scans were


def test_modes_momenta_weights_and_dropout_stay_as_they_were() -> None:
    torch.manual_seed(2)
    network = nn.Sequential(nn.BatchNorm3d(1, momentum=0.3), nn.Dropout(0.5), nn.BatchNorm3d(1))
    network.train()
    network[2].eval()
    weights = [parameter.clone() for parameter in network.parameters()]
    first = reestimate_norms(network, IMAGES.split(6)), network[2].running_var.clone()
    assert [module.training for module in network] == [True, True, False]
    assert [network[0].momentum, network[2].momentum] == [0.3, 0.1]
    assert all(torch.equal(*pair) for pair in zip(weights, network.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in network.parameters())
    again = reestimate_norms(network, IMAGES.split(6)), network[2].running_var
    assert first[0] == again[0] == 2
    assert torch.equal(first[1], again[1]), "dropout draws nothing, and what was there before does not count"


def test_without_a_batch_or_after_a_failure_the_statistics_are_as_before() -> None:
    norm = nn.BatchNorm3d(1)
    norm(IMAGES)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    with pytest.raises(UsageError, match="No batch"):
        reestimate_norms(norm, [])
    with pytest.raises(ValueError, match="5D"):
        reestimate_norms(norm, [IMAGES, torch.zeros(2)])
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    assert norm.momentum == 0.1 and norm.training
    assert reestimate_norms(nn.Conv3d(1, 1, 1), []) == 0


def test_features_are_standardised_and_a_batch_of_one_uses_what_is_known() -> None:
    norm = FeatureNorm(3, affine=False)
    features = torch.tensor([100.0, -20.0, 0.0]) + torch.randn(64, 3) * torch.tensor([50.0, 1.0, 0.1])
    standardised = norm(features)
    torch.testing.assert_close(standardised.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(standardised.std(0), torch.ones(3), atol=0.02, rtol=0)
    before = norm.running_mean.clone()
    one = norm(features[:1])
    assert torch.equal(norm.running_mean, before)
    torch.testing.assert_close(one, norm.eval()(features[:1]))
