import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm

from neuroage.models.tasks import build_task, tasks
from neuroage.runs.recipe import Recipe

TABLE = pd.DataFrame({"age": np.linspace(20, 80, 31)})
AGE_TASKS = ("age_regression", "soft_label_age")


def task(name: str, **options: object):
    made = build_task(Recipe.from_dict({"task": {"name": name, **options}}))
    made.fit(TABLE)
    return made


def test_both_ways_of_predicting_age_are_there() -> None:
    assert set(AGE_TASKS) <= set(tasks())


@pytest.mark.parametrize("name", AGE_TASKS)
def test_a_network_that_follows_the_loss_ends_at_the_true_ages(name: str) -> None:
    made = task(name)
    ages = made.encode(TABLE)
    outputs = torch.zeros(len(TABLE), made.n_outputs, requires_grad=True)
    optimiser = torch.optim.Adam([outputs], lr=0.1)
    for _ in range(400):
        optimiser.zero_grad()
        made.loss(outputs, ages).backward()
        optimiser.step()
    assert float(made.errors(outputs.detach(), ages).mean()) < 1.0


@pytest.mark.parametrize("name", AGE_TASKS)
def test_what_was_learnt_survives_saving(name: str) -> None:
    made, fresh = task(name), build_task(Recipe.from_dict({"task": {"name": name}}))
    fresh.restore(made.state())
    outputs = torch.randn(5, made.n_outputs)
    assert fresh.n_outputs == made.n_outputs
    assert torch.equal(fresh.decode(outputs)["predicted_age"], made.decode(outputs)["predicted_age"])


@pytest.mark.parametrize("name", AGE_TASKS)
def test_the_baseline_is_the_error_of_the_mean_training_age(name: str) -> None:
    others = pd.DataFrame({"age": [30.0, 70.0]})
    assert task(name).baseline(others) == pytest.approx(20.0)


def test_zero_is_the_mean_age_when_standardised_and_year_zero_when_not() -> None:
    zero = torch.zeros(1, 1)
    assert float(task("age_regression").decode(zero)["predicted_age"]) == pytest.approx(50)
    assert float(task("age_regression", standardise=False).decode(zero)["predicted_age"]) == 0


@pytest.mark.parametrize(("loss", "expected"), [("l1", 2.0), ("mse", 4.0), ("huber", 2.0 - 0.125)])
def test_losses_are_in_standard_deviations_of_age(loss: str, expected: float) -> None:
    made = task("age_regression", loss=loss)
    target = made.encode(TABLE)[:1]
    output = (target - made.mean)[:, None] / made.std + 2
    assert float(made.loss(output, target)) == pytest.approx(expected, rel=1e-5)


def test_soft_labels_are_differences_of_the_normal_distribution_function() -> None:
    made = task("soft_label_age", bin_years=1.0, sigma_years=1.0, age_range=[42, 82])
    assert made.n_outputs == 40
    labels = made.labels(torch.tensor([60.3]))[0].numpy()
    edges = np.arange(42, 83)
    np.testing.assert_allclose(labels, np.diff(norm.cdf(edges, 60.3, 1.0)), atol=1e-6)
    assert labels.sum() == pytest.approx(1)


def test_bins_reach_beyond_the_training_ages() -> None:
    made = task("soft_label_age", bin_years=2.0)
    assert float(made.edges[0]) <= 20 - 2
    assert float(made.edges[-1]) >= 80 + 2


def test_a_certain_distribution_has_its_bins_age_and_no_spread() -> None:
    made = task("soft_label_age", bin_years=1.0, age_range=[40, 50])
    outputs = torch.full((1, 10), -50.0)
    outputs[0, 3] = 50.0
    decoded = made.decode(outputs)
    assert float(decoded["predicted_age"]) == pytest.approx(43.5)
    assert float(decoded["predicted_age_std"]) == pytest.approx(0, abs=1e-3)
