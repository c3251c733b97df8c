import numpy as np
import torch

from neuroage.training.mixup import mix_scans

IMAGES = torch.arange(4.0).reshape(4, 1, 1, 1, 1).expand(4, 1, 3, 3, 3).contiguous()
AGES = torch.tensor([20.0, 40.0, 60.0, 80.0])


def test_scans_and_ages_are_mixed_in_the_same_proportion() -> None:
    for seed in range(40):
        images, ages = mix_scans(IMAGES, AGES, 0.5, np.random.default_rng(seed))
        # Image k is k everywhere and belongs to age 20 + 20 k, so any mixture keeps that line.
        assert torch.allclose(ages, 20 + 20 * images[:, 0, 0, 0, 0], atol=1e-4)


def test_about_half_of_the_steps_stay_unmixed_and_the_input_is_left_alone() -> None:
    before = IMAGES.clone()
    same = [mix_scans(IMAGES, AGES, 0.5, np.random.default_rng(seed))[0] is IMAGES for seed in range(200)]
    assert 70 < sum(same) < 130
    assert torch.equal(IMAGES, before)
