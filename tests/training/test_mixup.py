import numpy as np
import torch

from neuroage.training.mixup import draw_mixture, mix

IMAGES = torch.arange(4.0).reshape(4, 1, 1, 1, 1).expand(4, 1, 3, 3, 3).contiguous()
AGES = torch.tensor([20.0, 40.0, 60.0, 80.0])
EVERYONE = torch.arange(4)


def test_scans_and_ages_are_mixed_in_the_same_proportion() -> None:
    n_mixed = 0
    for seed in range(40):
        drawn = draw_mixture(0.5, 4, np.random.default_rng(seed))
        if drawn is None:
            continue
        n_mixed += 1
        share, partner = drawn
        images, ages = (mix(values, EVERYONE, torch.from_numpy(partner), share) for values in (IMAGES, AGES))
        # Image k is k everywhere and belongs to age 20 + 20 k, so any mixture keeps that line.
        assert torch.allclose(ages, 20 + 20 * images[:, 0, 0, 0, 0], atol=1e-4)
        assert torch.allclose(ages, share * AGES + (1 - share) * AGES[partner], atol=1e-4)
    assert n_mixed > 10


def test_about_half_of_the_steps_stay_unmixed() -> None:
    unmixed = [draw_mixture(0.5, 4, np.random.default_rng(seed)) is None for seed in range(200)]
    assert 70 < sum(unmixed) < 130
    assert all(draw_mixture(0.0, 4, np.random.default_rng(seed)) is None for seed in range(20))


def test_mixing_leaves_its_input_alone_and_keeps_the_type() -> None:
    before = IMAGES.clone()
    mixed = mix(IMAGES.half(), EVERYONE, EVERYONE.flip(0), 0.25)
    assert mixed.dtype == torch.float16
    assert torch.equal(IMAGES, before)
