"""The promises of the statistics, simulated with the very code that makes them."""

from __future__ import annotations

import numpy as np
import pytest

from neuroage.analysis import bootstrap, statistics
from neuroage.analysis.metrics import age_metrics, rmse
from neuroage.analysis.statistics import (
    bca_bounds,
    mean_bounds,
    mean_interval,
    metric_intervals,
    paired_difference,
    sign_flip_p,
    sign_flip_ps,
    smallest_detectable_difference,
)
from neuroage.errors import DataError

N_SIMULATIONS, N_SUBJECTS = 2_000, 50
MEAN_HALF_NORMAL = float(np.sqrt(2 / np.pi))  # the mean of |N(0, 1)|


def absolute_errors(correlation, sigma_a, sigma_b, seed, n_subjects=N_SUBJECTS):
    """Absolute errors, (simulations, subjects), of two models with normal gaps that correlate over subjects."""
    shared, own = np.random.default_rng(seed).standard_normal((2, N_SIMULATIONS, n_subjects))
    other = correlation * shared + np.sqrt(1 - correlation**2) * own
    return np.abs(shared * sigma_a), np.abs(other * sigma_b)


def covered(values, truth):
    low, high = mean_bounds(values, n_resamples=4_000, seed=11)
    return float(((low <= truth) & (truth <= high)).mean())


@pytest.mark.parametrize("correlation", [0.0, 0.6, 0.9])
def test_two_thousand_nulls_at_fifty_subjects_give_four_to_six_percent_false_alarms(correlation):
    a, b = absolute_errors(correlation, 6, 6, seed=1)
    assert 0.04 <= float((sign_flip_ps(a - b, n_flips=4_000, seed=3) <= 0.05).mean()) <= 0.06


@pytest.mark.parametrize(("correlation", "sigma_b"), [(0.0, 6), (0.0, 9), (0.6, 9), (0.9, 6)])
def test_intervals_of_paired_differences_cover_93_to_97_percent(correlation, sigma_b):
    a, b = absolute_errors(correlation, 6, sigma_b, seed=1)
    assert 0.93 <= covered(a - b, (6 - sigma_b) * MEAN_HALF_NORMAL) <= 0.97


def test_intervals_of_a_mean_absolute_error_cover_93_to_97_percent_though_errors_are_skewed():
    errors, _ = absolute_errors(0, 6, 6, seed=2)
    assert 0.93 <= covered(errors, 6 * MEAN_HALF_NORMAL) <= 0.97
    skewed = np.random.default_rng(2).exponential(6, (N_SIMULATIONS, N_SUBJECTS))
    assert 0.93 <= covered(skewed, 6) <= 0.97


def test_intervals_cover_with_twenty_subjects_too():
    errors, _ = absolute_errors(0, 6, 6, seed=4, n_subjects=20)
    assert 0.93 <= covered(errors, 6 * MEAN_HALF_NORMAL) <= 0.97


def test_the_smallest_detectable_difference_is_seen_four_times_out_of_five():
    a, b = absolute_errors(0.3, 6, 6, seed=5)
    smallest = smallest_detectable_difference(float((a - b).std()), N_SUBJECTS)
    power = float((sign_flip_ps(a - b + smallest, n_flips=2_000, seed=3) <= 0.05).mean())
    assert 0.77 <= power <= 0.83


def rmse_and_r(age, predicted, counts):
    """RMSE and r of resamples that draw each subject `counts` times; one row of counts per resample."""
    draws = counts.sum(axis=1)

    def mean(values):
        return counts @ values / draws

    covariance = mean(age * predicted) - mean(age) * mean(predicted)
    variances = (mean(age**2) - mean(age) ** 2) * (mean(predicted**2) - mean(predicted) ** 2)
    return {"rmse": np.sqrt(mean((predicted - age) ** 2)), "pearson_r": covariance / np.sqrt(variances)}


def test_intervals_of_other_metrics_cover_93_to_97_percent():
    random = np.random.default_rng(6)
    counts = random.multinomial(N_SUBJECTS, np.full(N_SUBJECTS, 1 / N_SUBJECTS), size=1_000).astype(float)
    everyone = np.ones((1, N_SUBJECTS))
    without_one = 1 - np.eye(N_SUBJECTS)
    truth = {"rmse": 8.0, "pearson_r": np.sqrt(300 / 364)}  # a uniform range of 60 years has variance 300
    hits = dict.fromkeys(truth, 0)
    for _ in range(N_SIMULATIONS):
        age = random.uniform(20, 80, N_SUBJECTS)
        predicted = age + random.normal(0, 8, N_SUBJECTS)
        whole, resampled, left_out = (rmse_and_r(age, predicted, drawn) for drawn in (everyone, counts, without_one))
        for name, true in truth.items():
            low, high = bca_bounds(float(whole[name][0]), resampled[name], left_out[name], n_subjects=N_SUBJECTS)
            hits[name] += low <= true <= high
    shares = {name: count / N_SIMULATIONS for name, count in hits.items()}
    assert all(0.93 <= share <= 0.97 for share in shares.values()), shares


def test_bca_agrees_with_another_implementation_at_the_widened_level():
    from scipy.stats import bootstrap, norm, t

    random = np.random.default_rng(7)
    age = random.uniform(18, 92, 50)
    predicted = 0.8 * age + 10 + random.normal(0, 6, 50)
    metric = age_metrics()["rmse"]
    mine = metric_intervals({"rmse": metric}, age, predicted, n_resamples=3_000)["rmse"]
    widened = 1 - 2 * norm.sf(np.sqrt(50 / 49) * t.ppf(0.975, 49))
    theirs = bootstrap(
        (age, predicted), metric, paired=True, vectorized=False, n_resamples=3_000, method="BCa", random_state=0,
        confidence_level=widened,
    ).confidence_interval  # fmt: skip
    assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high), abs=0.15)


def test_a_single_comparison_is_a_row_of_many():
    rows = np.random.default_rng(8).normal(1, 3, (5, 40))
    low, high = mean_bounds(rows, seed=2)
    alone = mean_interval(rows[3], seed=2)
    assert (alone.low, alone.high) == pytest.approx((low[3], high[3]))
    assert sign_flip_p(rows[3], seed=2) == pytest.approx(sign_flip_ps(rows, seed=2)[3])


def test_swapping_the_models_flips_the_sign_and_nothing_else():
    random = np.random.default_rng(9)
    for _ in range(5):
        age = random.uniform(20, 80, 30)
        a, b = age + random.normal(0, 5, 30), age + random.normal(1, 9, 30)
        one, other = paired_difference(age, a, b), paired_difference(age, b, a)
        assert other.difference == pytest.approx(-one.difference)
        assert (other.low, other.high) == pytest.approx((-one.high, -one.low))
        assert (other.p, other.sd, other.smallest_detectable) == pytest.approx((one.p, one.sd, one.smallest_detectable))


def test_p_is_never_zero_and_at_best_one_in_flips_plus_one():
    assert sign_flip_p(np.full(60, 5.0), n_flips=999) == pytest.approx(1 / 1000)


def test_p_agrees_with_all_flips_counted():
    differences = np.array([3.0, -1.0, 4.0, 2.5, -0.5, 5.0, 1.5])
    flips = np.array(np.meshgrid(*[[-1, 1]] * 7)).reshape(7, -1)
    exact = float((np.abs(differences @ flips) >= abs(differences.sum()) - 1e-9).mean())
    assert sign_flip_p(differences, n_flips=40_000) == pytest.approx(exact, abs=0.006)


def test_equal_models_differ_by_nothing_with_certainty():
    age = np.linspace(20, 80, 20)
    found = paired_difference(age, age + 3, age - 3)
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_too_few_subjects_give_no_interval_rather_than_a_false_one():
    found = paired_difference([20, 30, 40], [21, 33, 38], [25, 31, 47])
    assert np.isnan([found.low, found.high, found.smallest_detectable]).all()
    assert np.isfinite(found.difference)


def test_same_seed_same_figures_other_seed_others():
    values = np.random.default_rng(10).exponential(5, 50)
    assert mean_interval(values, seed=1) == mean_interval(values, seed=1)
    assert mean_interval(values, seed=1) != mean_interval(values, seed=2)


def test_many_subjects_are_resampled_in_blocks_with_the_same_meaning(monkeypatch):
    values = np.random.default_rng(12).exponential(5, 400)
    whole = mean_interval(values, n_resamples=3_000)
    monkeypatch.setattr("neuroage.analysis.bootstrap.BLOCK", 50_000)
    blocks = mean_interval(values, n_resamples=3_000)
    assert (blocks.low, blocks.high) == pytest.approx((whole.low, whole.high), rel=0.02)


def test_missing_values_are_refused():
    with pytest.raises(DataError, match="finite"):
        mean_interval([1.0, np.nan, 3.0])


@pytest.fixture
def drawn_always(monkeypatch):
    """Give a switch that makes resampling draw for however many subjects."""

    def switch():
        monkeypatch.setattr(bootstrap, "MANY_SUBJECTS", 10**9)
        monkeypatch.setattr(statistics, "MANY_SUBJECTS", 10**9)

    return switch


MANY = bootstrap.MANY_SUBJECTS + 500


def test_bounds_worked_out_for_many_subjects_are_those_that_resampling_gives(drawn_always):
    random = np.random.default_rng(5)
    rows = np.stack([np.abs(random.standard_normal(MANY)), random.gamma(2, 3, MANY), random.standard_normal(MANY)])
    worked_out = np.array(mean_bounds(rows))
    drawn_always()
    drawn = np.array(mean_bounds(rows, n_resamples=4_000))
    half_width = (drawn[1] - drawn[0]) / 2
    assert (np.abs(worked_out - drawn) < 0.06 * half_width).all()  # twice the Monte Carlo error of 4,000 resamples


def test_the_asymmetry_of_skewed_values_is_worked_out_too():
    values = np.random.default_rng(6).gamma(1.0, 1, MANY)
    low, high = (float(bound[0]) for bound in mean_bounds(values[None]))
    # The share of the bounds' distances that skewness predicts: (z + c) / (z − c), c = skewness · (2z² + 1) / (6 √n).
    centred = values - values.mean()
    c = (centred**3).mean() / (centred**2).mean() ** 1.5 * (2 * 1.96**2 + 1) / (6 * np.sqrt(MANY))
    assert (high - values.mean()) / (values.mean() - low) == pytest.approx((1.96 + c) / (1.96 - c), rel=1e-3)


def test_rows_that_a_few_subjects_decide_are_still_drawn(drawn_always):
    rows = np.random.default_rng(7).standard_normal((1, MANY))
    rows[0, :3] = 1000.0
    found = [*mean_bounds(rows, n_resamples=500), sign_flip_ps(rows, n_flips=500)]
    drawn_always()
    assert np.array_equal(found, [*mean_bounds(rows, n_resamples=500), sign_flip_ps(rows, n_flips=500)])


def test_p_worked_out_for_many_subjects_is_that_of_flipping(drawn_always):
    rows = np.random.default_rng(8).standard_t(5, (1, MANY)) + np.array([[0.0], [0.02], [0.04], [0.08], [1.0]])
    worked_out = sign_flip_ps(rows, n_flips=4_000)
    drawn_always()
    drawn = sign_flip_ps(rows, n_flips=4_000)
    assert drawn[0] > 0.1 and 1 / 4_001 <= worked_out[-1] == drawn[-1]
    assert (np.abs(worked_out - drawn) < 4 * np.sqrt(drawn / 4_000)).all()


def test_no_difference_at_all_has_a_p_of_one_however_many_subjects():
    assert sign_flip_ps(np.zeros((1, MANY)))[0] == 1
    assert mean_bounds(np.zeros((1, MANY))) == (0, 0)


def test_metric_intervals_from_smaller_resamples_are_as_wide_as_from_whole_ones(drawn_always):
    random = np.random.default_rng(9)
    age = random.uniform(20, 80, 3 * bootstrap.MANY_SUBJECTS)
    predicted = 50 + 0.8 * (age - 50) + random.normal(0, 6, age.size)
    some = {name: age_metrics()[name] for name in ("rmse", "pearson_r", "gap_slope", "median_ae")}
    smaller = metric_intervals(some, age, predicted)
    drawn_always()
    for name, whole in metric_intervals(some, age, predicted, n_resamples=1_000).items():
        width = whole.high - whole.low
        assert smaller[name].high - smaller[name].low == pytest.approx(width, rel=0.15)
        assert smaller[name].low == pytest.approx(whole.low, abs=0.08 * width)


def test_the_work_on_a_metric_does_not_grow_with_many_subjects():
    def evaluated(n_subjects):
        seen = []

        def metric(age, predicted_age):
            seen.append(len(age))
            return rmse(age, predicted_age)

        age = np.random.default_rng(0).uniform(20, 80, n_subjects)
        metric_intervals({"rmse": metric}, age, age + 1 + age % 7, n_resamples=200)
        return sum(seen) - n_subjects  # once on everybody, for the figure itself

    assert evaluated(20_000) == evaluated(10_000)


def test_no_resample_is_drawn_for_means_of_many_subjects(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("drawn")

    monkeypatch.setattr(bootstrap, "_resample_counts", refuse)
    monkeypatch.setattr(statistics, "block_sizes", lambda total, width: refuse() if total else iter(()))
    age = np.linspace(20, 80, MANY)
    found = paired_difference(age, age + np.sin(age), age + 1.5 * np.cos(7 * age))
    assert found.low < found.difference < found.high < 0
