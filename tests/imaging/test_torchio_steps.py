"""The steps as TorchIO transforms: equal to TorchIO's own, at home in any Compose, replayed from history."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
import torchio as tio
from scipy import stats

from neuroage.imaging import torchio_steps as fast
from neuroage.imaging.augment import Pipeline, parse_steps
from neuroage.imaging.augment.bias_field import bias_field

OBLIQUE = np.array([[0, -1.2, 0.1, 5], [1.1, 0, 0, -7], [0, 0.1, 2.0, 3], [0, 0, 0, 1.0]])
TWINS = [
    ("RandomBiasField", {}),
    ("RandomBiasField", {"coefficients": (0.1, 0.3), "order": 2}),
    ("RandomAffine", {"degrees": 30, "translation": 4}),
    ("RandomAffine", {"degrees": (0, 20), "scales": (0.8, 1.3), "isotropic": True, "default_pad_value": "mean"}),
    ("RandomAffine", {"degrees": 20, "center": "origin", "default_pad_value": "otsu"}),
    ("RandomAffine", {"degrees": 20, "default_pad_value": -1.5, "default_pad_label": 9}),
    ("RandomAffine", {"degrees": 20, "image_interpolation": "bspline"}),
    ("RandomNoise", {"mean": 0.3}),
    ("RandomGamma", {}),
    ("RandomFlip", {"axes": (0, 1, 2)}),
]


def subject(shape=(16, 17, 11), affine=OBLIQUE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tio.Subject(
        t1=tio.ScalarImage(tensor=torch.rand(2, *shape, generator=generator) - 0.3, affine=affine),
        t2=tio.ScalarImage(tensor=torch.rand(1, *shape, generator=generator), affine=affine),
        labels=tio.LabelMap(tensor=torch.randint(0, 4, (1, *shape), generator=generator), affine=affine),
        age=37,
    )


@pytest.mark.parametrize("shape", [(12, 14, 10), (13, 15, 11), (12, 15, 1), (1, 9, 8), (91, 20, 33)], ids=str)
@pytest.mark.parametrize("order", [0, 1, 3, 5])
def test_bias_field_equals_torchio_for_the_same_coefficients(shape, order):
    n_terms = (order + 1) * (order + 2) * (order + 3) // 6
    coefficients = np.random.default_rng(order).uniform(-0.5, 0.5, n_terms).tolist()
    image = torch.rand(1, *shape)
    theirs, ours = tio.BiasField(coefficients, order)(image), fast.BiasField(coefficients, order)(image)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("name", "options"), TWINS, ids=lambda value: value if isinstance(value, str) else "")
class TestTwins:
    def test_same_torch_seed_gives_the_same_picture_as_torchio(self, name, options):
        before = subject()
        torch.manual_seed(5)
        theirs = getattr(tio, name)(**options)(subject())
        torch.manual_seed(5)
        ours = getattr(fast, name)(**options)(before)
        for image in ("t1", "t2"):
            torch.testing.assert_close(ours[image].data, theirs[image].data, rtol=1e-5, atol=1e-3)
            assert torch.equal(before[image].data, subject()[image].data)
        assert torch.equal(ours["labels"].data, theirs["labels"].data)
        assert ours["labels"].data.dtype == theirs["labels"].data.dtype
        assert ours["age"] == 37

    def test_history_replays_and_inverts(self, name, options):
        torch.manual_seed(6)
        changed = tio.Compose([getattr(fast, name)(**options)])(subject())
        again = changed.get_composed_history()(subject())
        for image in ("t1", "t2", "labels"):
            assert torch.equal(again[image].data, changed[image].data)
        torch.manual_seed(6)
        theirs = tio.Compose([getattr(tio, name)(**options)])(subject()).apply_inverse_transform(warn=False)
        inverted = changed.apply_inverse_transform(warn=False)
        torch.testing.assert_close(inverted.t1.data, theirs.t1.data, rtol=1e-4, atol=1e-3)


def test_affine_equals_torchio_on_an_odd_and_an_even_grid():
    for shape in ((20, 22, 18), (21, 19, 23)):
        image = tio.ScalarImage(tensor=torch.rand(1, *shape), affine=np.diag([1, 1.5, 2, 1.0]))
        options = {"scales": (1.1, 0.9, 1.05), "degrees": (12, -7, 9), "translation": (2, -1, 3)}
        difference = fast.Affine(**options)(image).data - tio.Affine(**options)(image).data
        assert difference.abs().max() < 1e-3


def test_images_are_turned_in_their_plane():
    image = tio.ScalarImage(tensor=torch.rand(1, 21, 18, 1))
    options = {"scales": (1.1, 0.9, 1.3), "degrees": (12, -7, 9), "translation": (2, -1, 0)}
    assert (fast.Affine(**options)(image).data - tio.Affine(**options)(image).data).abs().max() < 1e-3


def test_history_of_both_families_stays_apart():
    coefficients = [0.1] * 20
    both = tio.Compose(
        [tio.BiasField(coefficients, 3), fast.BiasField(coefficients, 3), tio.Noise(0, 0.1, 5), fast.Noise(0, 0.1, 5)]
    )
    kinds = [type(transform) for transform in both(subject()).history]
    assert kinds == [tio.BiasField, fast.BiasField, tio.Noise, fast.Noise]


def test_transforms_travel_to_worker_processes():
    for transform in (
        fast.RandomBiasField(),
        fast.Affine((1, 1, 1), (5, 0, 0), (0, 0, 0)),
        fast.RandomBinning(),
        fast.BiasField([0.1], 0),
    ):
        assert type(pickle.loads(pickle.dumps(transform))) is type(transform)


def test_compose_with_all_of_them_replays():
    random_ones = [
        fast.RandomFlip(),
        fast.RandomAffine(),
        fast.RandomBiasField(),
        fast.RandomNoise(),
        fast.RandomGamma(),
        fast.RandomBinning(),
    ]
    compose = tio.Compose([*random_ones, tio.RandomBlur()])
    torch.manual_seed(1)
    changed = compose(subject())
    assert torch.equal(changed.get_composed_history()(subject()).t1.data, changed.t1.data)
    torch.manual_seed(1)
    assert torch.equal(compose(subject()).t1.data, changed.t1.data)


def test_without_copy_the_given_tensor_is_still_left_alone():
    image = torch.rand(1, 6, 7, 8)
    before = image.clone()
    fast.RandomBiasField(copy=False)(image)
    fast.Gamma(1.3, copy=False)(image)
    assert torch.equal(image, before)


def test_include_exclude_and_p_are_torchio_s():
    changed = fast.RandomBiasField(include=["t1"])(subject())
    assert torch.equal(changed.t2.data, subject().t2.data) and not torch.equal(changed.t1.data, subject().t1.data)
    assert torch.equal(fast.RandomBinning(p=0)(subject()).t1.data, subject().t1.data)


def test_integers_become_floating_point():
    image = torch.arange(60).reshape(1, 3, 4, 5)
    for transform in (fast.BiasField([0.1] * 20, 3), fast.Gamma(1.2), fast.Binning(levels=3), fast.Noise(0, 0.1, 1)):
        assert transform(image).dtype == torch.float32


def test_noise_leaves_the_global_random_state():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    fast.Noise(0, 0.1, 5, p=1).apply_transform(subject())
    assert torch.equal(torch.get_rng_state(), state)


# --- the batch steps draw from TorchIO's distributions

N_DRAWS = 400
SMALLEST_P = 1e-3
"""Draws are seeded, so this is decided once: a right sampler fails one seed in a thousand."""


def record_of(name, **options):
    pipeline = Pipeline(parse_steps([{"step": name, "p": 1, **options}]), seed=11)
    return [one[name] for one in pipeline.draw([(0, index) for index in range(N_DRAWS)], (10, 10, 10))]


def same_distribution(ours, theirs):
    return stats.ks_2samp(np.ravel(ours), np.ravel(theirs)).pvalue > SMALLEST_P


def test_affine_draws_have_torchio_s_distribution():
    torch.manual_seed(0)
    twin = tio.RandomAffine(scales=0.1, degrees=10, translation=5)
    theirs = [
        [part.numpy() for part in twin.get_params(twin.scales, twin.degrees, twin.translation, False)]
        for _ in range(N_DRAWS)
    ]
    ours = record_of("affine", translation_mm=5)
    for place, name in enumerate(("scales", "degrees", "translation_mm")):
        for axis in range(3):
            assert same_distribution([one[name][axis] for one in ours], [one[place][axis] for one in theirs])
        assert abs(np.corrcoef(np.array([one[name] for one in ours]).T)[0, 1]) < 0.2


def test_isotropic_scales_are_equal_and_distributed_as_torchio_s():
    torch.manual_seed(0)
    twin = tio.RandomAffine(isotropic=True)
    theirs = [twin.get_params(twin.scales, twin.degrees, twin.translation, True)[0].numpy() for _ in range(N_DRAWS)]
    ours = np.array([one["scales"] for one in record_of("affine", isotropic=True)])
    assert (ours == ours[:, :1]).all() and same_distribution(ours[:, 0], [one[0] for one in theirs])


def test_bias_fields_have_torchio_s_distribution():
    torch.manual_seed(0)
    twin = tio.RandomBiasField()
    theirs = [twin.get_params(3, twin.coefficients_range) for _ in range(N_DRAWS)]
    ours = [one["coefficients"] for one in record_of("bias_field")]
    assert len(ours[0]) == len(theirs[0]) == 20
    assert same_distribution(ours, theirs)
    fields = [np.log(np.stack([bias_field(one, (6, 7, 8)).numpy() for one in some])) for some in (ours, theirs)]
    for place in ((0, 0, 0), (3, 3, 4), (5, 6, 7), (0, 6, 3)):
        assert same_distribution(*[field[(slice(None), *place)] for field in fields])
    assert same_distribution(*[field.std((1, 2, 3)) for field in fields])


def test_noise_and_gamma_draws_have_torchio_s_distribution():
    torch.manual_seed(0)
    noise, gamma = tio.RandomNoise(mean=0.2), tio.RandomGamma()
    theirs = [noise.get_params(noise.mean_range, noise.std_range) for _ in range(N_DRAWS)]
    ours = record_of("noise", mean=0.2)
    assert same_distribution([one["mean"] for one in ours], [one[0] for one in theirs])
    assert same_distribution([one["std"] for one in ours], [one[1] for one in theirs])
    gammas = [gamma.get_params(gamma.log_gamma_range) for _ in range(N_DRAWS)]
    assert same_distribution([one["gamma"] for one in record_of("gamma")], gammas)


def test_random_binning_draws_as_the_batch_step_does():
    torch.manual_seed(0)
    transform, one = fast.RandomBinning(), tio.Subject(t1=tio.ScalarImage(tensor=torch.rand(1, 3, 3, 3)))
    levels = [transform(one).history[0].levels["t1"] for _ in range(N_DRAWS)]
    assert same_distribution(levels, [record.get("levels") for record in record_of("binning")])
