"""Attention pooling begins as the average and can learn where to look."""

from __future__ import annotations

import pytest
import torch

from neuroage.models.pooling import AttentionPooling, build_pooling


@pytest.mark.parametrize("shape", [(5, 4, 3), (1, 1, 1), (6, 7)])
def test_attention_begins_as_the_average_of_any_size(shape: tuple[int, ...]) -> None:
    maps = torch.randn(2, 16, *shape)
    pool = build_pooling("attention", 16, ())
    torch.testing.assert_close(pool(maps), maps.flatten(2).mean(dim=2), rtol=1e-5, atol=1e-6)
    assert pool.n_features == 16


def test_attention_is_an_average_with_weights_that_depend_on_the_features() -> None:
    torch.manual_seed(0)
    pool = AttentionPooling(8)
    torch.nn.init.normal_(pool.score.weight)
    maps = torch.randn(2, 8, 4, 4, 4)
    pooled = pool(maps)
    assert not torch.allclose(pooled, maps.flatten(2).mean(dim=2), atol=1e-3)
    assert (pooled <= maps.flatten(2).amax(dim=2)).all() and (pooled >= maps.flatten(2).amin(dim=2)).all()
    torch.testing.assert_close(pool(maps.flip(2)), pooled, rtol=1e-5, atol=1e-6)  # where a position lies says nothing
    torch.testing.assert_close(pool(maps[:1]), pooled[:1])


def test_attention_learns_which_positions_matter() -> None:
    torch.manual_seed(0)
    pool, head = AttentionPooling(8), torch.nn.Linear(8, 1)
    maps = torch.randn(64, 8, 5, 5)
    sign = torch.randn(64).sign()
    maps[:, 0] = -2  # no marked position …
    maps[:, 0, 2, 3], maps[:, 1, 2, 3] = 4, sign  # … but this one, whose second feature is the answer
    optimiser = torch.optim.Adam([*pool.parameters(), *head.parameters()], lr=0.03)
    losses = []
    for _ in range(60):
        loss = (head(pool(maps))[:, 0] - sign).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.25 * losses[0]
    with torch.no_grad():
        average = torch.linalg.lstsq(maps.flatten(2).mean(dim=2), sign[:, None])[0]
        left = (maps.flatten(2).mean(dim=2) @ average - sign[:, None]).square().mean()
    assert losses[-1] < 0.5 * float(left), "the plain average, at its best, hides it"


def test_attention_works_in_reduced_precision() -> None:
    pool = AttentionPooling(8)
    with torch.autocast("cpu", torch.bfloat16):
        assert pool(torch.randn(2, 8, 4, 4, 4).bfloat16()).dtype == torch.float32
