from __future__ import annotations

import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroage.analysis import metrics
from neuroage.analysis.metrics import age_metrics, describe_metric
from neuroage.errors import DataError, UsageError

ages = st.lists(st.tuples(st.floats(0, 110), st.floats(-20, 130)), min_size=3, max_size=30)


def test_known_values():
    age, predicted = [20.0, 40.0, 60.0, 80.0], [24.0, 38.0, 61.0, 70.0]
    found = {name: metric(age, predicted) for name, metric in age_metrics().items()}
    assert found["mae"] == pytest.approx(17 / 4)
    assert found["rmse"] == pytest.approx(np.sqrt((16 + 4 + 1 + 100) / 4))
    assert found["median_ae"] == pytest.approx(3.0)
    assert found["pearson_r"] == pytest.approx(np.corrcoef(age, predicted)[0, 1])
    assert found["r2"] == pytest.approx(1 - 121 / 2000)
    assert found["gap_mean"] == pytest.approx(-7 / 4)
    assert found["gap_sd"] == pytest.approx(np.std([4, -2, 1, -10], ddof=1))
    assert found["gap_slope"] == pytest.approx(np.polyfit(age, [4, -2, 1, -10], 1)[0])


def test_every_metric_is_a_float_and_states_its_unit_and_better_direction():
    assert len(age_metrics()) >= 8
    for name, metric in age_metrics().items():
        assert isinstance(metric([20, 50, 70], [25, 44, 71]), float)
        note = describe_metric(name)
        assert note.title and note.summary and note.unit
        assert note.better in {"lower", "higher", "nearer 0"}


def test_a_new_metric_is_found_by_itself(monkeypatch):
    def worst_miss(age, predicted_age):
        """Worst miss: the largest absolute error.

        Unit: years. Better: lower.
        """
        return float(np.abs(np.subtract(predicted_age, age)).max())

    worst_miss.__module__ = metrics.__name__
    monkeypatch.setattr(metrics, "worst_miss", worst_miss, raising=False)
    assert age_metrics()["worst_miss"]([20, 30], [20, 37]) == 7
    assert describe_metric("worst_miss").unit == "years"


def test_only_metrics_are_found():
    for metric in age_metrics().values():
        assert list(inspect.signature(metric).parameters) == ["age", "predicted_age"]
        assert metric.__module__ == metrics.__name__


@pytest.mark.parametrize("name", ["pearson_r", "r2", "gap_slope"])
def test_what_needs_different_ages_is_nan_without_them_never_zero(name):
    assert np.isnan(age_metrics()[name]([50, 50, 50], [49, 50, 55]))


def test_correlation_with_a_constant_prediction_is_nan_even_when_its_average_is_off_by_a_bit():
    constant = np.full(50, 52.3)
    constant[::2] += 1e-13
    assert np.isnan(age_metrics()["pearson_r"](np.linspace(20, 90, 50), constant))


def test_no_subjects_give_nan_for_every_metric():
    assert all(np.isnan(metric([], [])) for metric in age_metrics().values())


def test_predicting_one_age_always_has_a_gap_slope_of_minus_one():
    assert age_metrics()["gap_slope"](np.linspace(18, 92, 50), np.full(50, 55.0)) == pytest.approx(-1)


def test_predicting_the_mean_on_a_uniform_range_costs_a_quarter_of_it():
    age = 18 + 74 * (np.arange(50) + 0.5) / 50
    assert age_metrics()["mae"](age, np.full(50, age.mean())) == pytest.approx(74 / 4)


@settings(max_examples=60, deadline=None)
@given(ages, st.randoms(use_true_random=False))
def test_the_order_of_subjects_does_not_matter(pairs, random):
    shuffled = pairs.copy()
    random.shuffle(shuffled)
    for metric in age_metrics().values():
        np.testing.assert_allclose(
            metric(*zip(*pairs, strict=True)), metric(*zip(*shuffled, strict=True)), rtol=1e-6, atol=1e-6
        )


@settings(max_examples=60, deadline=None)
@given(ages)
def test_mae_is_never_above_rmse(pairs):
    age, predicted = zip(*pairs, strict=True)
    assert age_metrics()["mae"](age, predicted) <= age_metrics()["rmse"](age, predicted) + 1e-9


@pytest.mark.parametrize(
    ("age", "predicted", "words"),
    [
        ([1, 2], [1, 2, 3], "same length"),
        ([[1, 2]], [[1, 2]], "same length"),
        ([1, np.nan], [1, 2], "age is nan in position 1"),
        ([1, 2], [np.inf, 2], "predicted_age is inf in position 0"),
        (["old", 2], [1, 2], "not numbers"),
    ],
)
def test_wrong_input_is_named(age, predicted, words):
    for metric in age_metrics().values():
        with pytest.raises(DataError, match=words):
            metric(age, predicted)


def test_an_unknown_metric_is_answered_with_the_known_ones():
    with pytest.raises(UsageError, match="did you mean 'pearson_r'"):
        describe_metric("pearson")
