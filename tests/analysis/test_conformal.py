"""The promises of intervals and of the age-bias correction, checked by simulation with the very code that ships."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from neuroage.analysis.age_bias import fit_age_bias
from neuroage.analysis.calibration import Calibration, apply_across, fit_calibration
from neuroage.analysis.conformal import (
    ConformalIntervals,
    Population,
    age_weights,
    conformal_quantile,
    effective_number,
    fewest_subjects,
    fit_intervals,
)
from neuroage.analysis.uncertainty import coverage_bounds, score_coverage
from neuroage.errors import InfeasibleError, UsageError

N_REPETITIONS = 300
LOW, HIGH = 18.0, 90.0
AS_TRAINED, UNIFORM = Population("training", LOW, HIGH), Population("uniform", LOW, HIGH)


def draw(rng, n, *, ages="young", spread=0.09, slope=-0.2):
    """Subjects whose gap falls with age and whose errors grow with it, as brain age does; mostly young, or uniform."""
    if ages == "uniform":
        age = rng.uniform(LOW, HIGH, n)
    else:
        age = np.where(rng.random(n) < 0.7, rng.uniform(LOW, 35, n), rng.uniform(35, HIGH, n))
    return age, age + slope * (age - 45) + rng.normal(0, 2 + spread * (age - LOW))


def coverage(n, *, fitted_for, tested_on, n_bins, **errors):
    """Mean share inside over repetitions, and the same by predicted age in three slices."""
    rng = np.random.default_rng(1)
    shares, slices = [], []
    for _ in range(N_REPETITIONS):
        found = fit_intervals(*draw(rng, n, **errors), level=0.9, population=fitted_for, n_bins=n_bins)
        age, predicted = draw(rng, 1000, ages=tested_on, **errors)
        low, high = found.bounds(predicted)
        inside = (age >= low) & (age <= high)
        shares.append(inside.mean())
        which = np.searchsorted([42, 66], predicted)
        slices.append([inside[which == index].mean() for index in range(3)])
    return np.mean(shares), np.nanmean(slices, axis=0)


@pytest.mark.parametrize("n", [50, 225, 1000])
@pytest.mark.parametrize("n_bins", [1, 3])
def test_intervals_cover_88_to_92_percent_of_exchangeable_people(n, n_bins):
    share, _ = coverage(n, fitted_for=AS_TRAINED, tested_on="young", n_bins=n_bins)
    assert 0.88 <= share <= 0.92 + 0.01 * (n == 50)  # the ceiling of few subjects errs to the safe side


@pytest.mark.parametrize("n_bins", [1, 3])
def test_weighted_intervals_cover_other_ages_where_unweighted_ones_fail(n_bins):
    errors = {"tested_on": "uniform", "spread": 0.12}
    unweighted, _ = coverage(400, fitted_for=AS_TRAINED, n_bins=1, **errors)
    weighted, _ = coverage(400, fitted_for=UNIFORM, n_bins=n_bins, **errors)
    assert unweighted < 0.84
    assert 0.88 <= weighted <= 0.92


def test_bins_keep_the_promise_for_every_range_of_predicted_age():
    _, one = coverage(600, fitted_for=AS_TRAINED, tested_on="young", n_bins=1, slope=0.0)
    _, three = coverage(600, fitted_for=AS_TRAINED, tested_on="young", n_bins=3, slope=0.0)
    assert one[0] > 0.95 and one[2] < 0.78  # one width for all: too wide for the young, too narrow for the old
    assert np.all(np.abs(three - 0.9) < 0.035)


def test_a_quantile_is_the_ceiling_rank_and_infinite_below_the_fewest_subjects():
    residuals = np.random.default_rng(0).permutation(np.arange(1.0, 100.0))
    for level in (0.5, 0.8, 0.9, 0.95):
        assert conformal_quantile(residuals, level) == np.ceil(level * 100 - 1e-9)
        assert conformal_quantile(residuals, level, np.full(99, 3.0)) == conformal_quantile(residuals, level)
    assert conformal_quantile(np.arange(8), 0.9) == np.inf
    assert conformal_quantile(np.arange(9), 0.9) == 8
    assert conformal_quantile([], 0.9) == np.inf
    heavy = conformal_quantile(residuals, 0.9, np.where(residuals > 80, 10.0, 1.0))
    assert heavy > conformal_quantile(residuals, 0.9)


def test_weights_turn_the_ages_into_those_of_the_population():
    age, _ = draw(np.random.default_rng(2), 4000)
    weights = age_weights(age, UNIFORM)
    shares = np.histogram(age, np.linspace(LOW, HIGH, 7), weights=weights)[0] / weights.sum()
    np.testing.assert_allclose(shares, 1 / 6, atol=0.03)
    assert effective_number(weights) < 0.7 * len(age)
    assert (age_weights(age, AS_TRAINED) == 1).all()
    narrow = age_weights(age, Population("uniform", 40, 60))
    assert (narrow[(age < 40) | (age > 60)] == 0).all() and narrow.sum() > 0
    clinic = tuple(np.random.default_rng(3).normal(70, 6, 300).clip(50, 88))
    weights = age_weights(age, Population("table", min(clinic), max(clinic), clinic))
    assert np.average(age, weights=weights) == pytest.approx(np.mean(clinic), abs=1.5)
    with pytest.raises(InfeasibleError, match="2 out-of-fold subjects"):
        age_weights([20.0, 30.0, 85.0, 88.0], Population("uniform", 84, 90))


def test_too_few_subjects_give_infinite_intervals_that_are_said_in_words():
    age, predicted = draw(np.random.default_rng(4), 25)
    found = fit_intervals(age, predicted, level=0.95, population=AS_TRAINED)
    low, high = found.bounds([30.0, 60.0])
    assert (low == -np.inf).all() and (high == np.inf).all()
    assert f"25 subjects are too few for this level (at least {fewest_subjects(0.95)})" in found.words
    assert np.isfinite(fit_intervals(age, predicted, level=0.9, population=AS_TRAINED).bounds([30.0])).all()
    for level in (0.8, 0.9, 0.95):
        n = fewest_subjects(level)
        for count, finite in ((n, True), (n - 1, False)):
            found = fit_intervals(*draw(np.random.default_rng(5), count), level=level, population=AS_TRAINED, n_bins=1)
            assert bool(np.isfinite(found.bins[0].years_above)) is finite


def test_slices_are_joined_where_a_high_level_needs_more_subjects():
    age, predicted = draw(np.random.default_rng(14), 225)
    found = fit_intervals(age, predicted, level=0.99, population=AS_TRAINED)
    assert len(found.bins) == 1 and np.isfinite(found.bounds([30.0])).all()
    assert len(fit_intervals(age, predicted, level=0.9, population=AS_TRAINED).bins) > 1


def test_ages_of_too_few_or_of_no_subjects_are_refused_and_what_is_fitted_can_be_checked():
    rng = np.random.default_rng(15)
    age = np.concatenate([rng.uniform(18, 50, 60), rng.uniform(60, 90, 20)])
    table = pd.DataFrame({"age": age, "predicted_age": age + rng.normal(0, 4, 80)})
    found = fit_calibration(table, population=Population("uniform", 60, 90))
    assert len(apply_across(found, table)) == 80
    with pytest.raises(InfeasibleError, match="19 out-of-fold subjects aged 60 to 90"):
        fit_calibration(table[:-1], population=Population("uniform", 60, 90))
    clinic = (*np.linspace(50, 80, 80), *np.linspace(95, 99, 20))
    for beyond in (Population("uniform", 60, 130), Population("table", 50, 99, clinic)):
        with pytest.raises(InfeasibleError, match="who are 19 to 90"):
            fit_calibration(table, population=beyond)
    fit_calibration(table, population=Population("uniform", 18, 92))


def test_levels_and_bins_that_cannot_be_meant_are_refused():
    age, predicted = draw(np.random.default_rng(4), 30)
    for wrong in ({"level": 90}, {"level": 0.0}, {"level": 0.9, "n_bins": 0}):
        with pytest.raises(UsageError):
            fit_intervals(age, predicted, population=AS_TRAINED, **wrong)


def test_a_higher_level_is_wider_and_every_interval_holds_its_prediction():
    age, predicted = draw(np.random.default_rng(6), 500)
    widths = []
    for level in (0.5, 0.8, 0.9, 0.95):
        found = fit_intervals(age, predicted, level=level, population=UNIFORM)
        low, high = found.bounds(predicted)
        assert (low <= predicted).all() and (predicted <= high).all()
        widths.append((high - low).mean())
    assert widths == sorted(widths) and len(set(widths)) == 4
    assert all(each.n_effective >= 35 for each in found.bins) and len(found.bins) == 3


@pytest.mark.parametrize("slope", [-0.4, -0.1])
def test_the_corrected_gap_of_held_out_people_does_not_go_with_age_and_the_raw_one_does(slope):
    rng = np.random.default_rng(7)
    raw_r, corrected_r, n = [], [], 50
    for _ in range(N_REPETITIONS):
        line = fit_age_bias(*draw(rng, 225, slope=slope))
        age, predicted = draw(rng, n, ages="uniform", slope=slope)
        gap = predicted - age
        raw_r.append(np.corrcoef(age, gap)[0, 1])
        corrected_r.append(np.corrcoef(age, gap - line.expected_gap(age))[0, 1])
    assert np.mean(raw_r) < -0.3
    assert abs(np.mean(corrected_r)) < 0.04
    raw, corrected = (np.mean(np.abs(np.arctanh(r)) * np.sqrt(n - 3) > 1.96) for r in (raw_r, corrected_r))
    assert raw > 0.65  # the 95% interval of r leaves out 0
    assert corrected < 0.15  # 5%, and what the error of the fitted slope itself adds


def test_the_interval_of_the_slope_covers_95_percent_though_errors_grow_with_age():
    rng = np.random.default_rng(8)
    lines = [fit_age_bias(*draw(rng, 150)) for _ in range(600)]
    covered = np.mean([line.slope_low <= -0.2 <= line.slope_high for line in lines])
    assert 0.925 <= covered <= 0.975
    assert np.mean([line.slope_se for line in lines]) == pytest.approx(np.std([line.slope for line in lines]), rel=0.1)


def test_an_age_line_needs_people_of_different_age():
    with pytest.raises(InfeasibleError):
        fit_age_bias([30.0, 30.0, 30.0], [31.0, 29.0, 30.0])
    with pytest.raises(InfeasibleError):
        fit_age_bias([30.0, 40.0], [31.0, 29.0])


def subjects(seed, n=200, **errors):
    age, predicted = draw(np.random.default_rng(seed), n, **errors)
    return pd.DataFrame({"age": age, "predicted_age": predicted})


def test_a_calibration_changes_no_raw_column_and_survives_its_file():
    found = fit_calibration(subjects(9), population=UNIFORM)
    new = subjects(10, 40)
    new.loc[0, "age"] = np.nan
    treated = found.apply(new)
    pd.testing.assert_frame_equal(treated[["age", "predicted_age"]], new)
    assert np.isnan(treated.loc[0, "gap_corrected"]) and np.isfinite(treated.loc[0, "interval_low"])
    np.testing.assert_allclose(
        treated["gap_corrected"][1:],
        (new["predicted_age"] - new["age"] - found.age_bias.expected_gap(new["age"]))[1:],
    )
    back = Calibration.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
    assert back == found
    few = fit_intervals(*subjects(9, 30).to_numpy().T, level=0.99, population=AS_TRAINED)
    assert ConformalIntervals.from_dict(json.loads(json.dumps(few.to_dict(), allow_nan=False))) == few
    assert "every age from 18 to 90 years is equally frequent" in found.words
    assert "interval_low" in found.apply(new[["predicted_age"]])
    with pytest.raises(InfeasibleError, match="19"):
        fit_calibration(subjects(9, 19), population=UNIFORM)


def test_people_on_whom_it_was_fitted_are_judged_by_a_fit_on_others():
    """With few people and a high level the fit on the very same people always covers; the honest one does not."""
    own, across = [], []
    for seed in range(60):
        table = subjects(seed, 60)
        found = fit_calibration(table, population=AS_TRAINED, level=0.9)
        for treated, kept in ((found.apply(table), own), (apply_across(found, table), across)):
            kept.append(treated["age"].between(treated["interval_low"], treated["interval_high"]).mean())
            assert treated.index.equals(table.index)
    assert 0.88 <= np.mean(across) <= 0.945
    assert np.mean(own) > np.mean(across) + 0.004
    table = subjects(3, 60)
    found = fit_calibration(table, population=AS_TRAINED)
    moved = table.assign(predicted_age=table["predicted_age"].where(table.index != 5, 500.0))
    before, after = (apply_across(found, each).loc[5] for each in (table, moved))
    assert before["predicted_age_corrected"] - table.loc[5, "predicted_age"] == pytest.approx(
        after["predicted_age_corrected"] - 500.0
    )  # its own error has no part in its correction


def test_bounds_of_a_share_cover_at_least_what_they_promise():
    rng = np.random.default_rng(11)
    for share in (0.5, 0.9, 0.98):
        bounds = [coverage_bounds(int(k), 50) for k in rng.binomial(50, share, 500)]
        assert np.mean([low <= share <= high for low, high in bounds]) >= 0.94
    assert coverage_bounds(0, 50)[0] == 0 and coverage_bounds(50, 50)[1] == 1
    found = score_coverage([30, 40, 50], [20, 45, 45], [35, 50, np.inf])
    assert (found["n_inside"], found["coverage"]) == (2, pytest.approx(2 / 3)) and np.isnan(found["mean_width"])
