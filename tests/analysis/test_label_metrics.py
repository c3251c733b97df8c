from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import (
    auc,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    precision_recall_fscore_support,
    recall_score,
    roc_auc_score,
)

from neuroage.analysis.bootstrap import MINIMUM_SUBJECTS
from neuroage.analysis.label_figures import curve_points
from neuroage.analysis.label_intervals import (
    Resampled,
    bound,
    bound_difference,
    bound_mean,
    carriers,
    resample_figures,
)
from neuroage.analysis.label_metrics import (
    LabelScorer,
    expected_calibration_error,
    group_sums,
    mean_defined,
    overall,
    reliability,
)
from neuroage.analysis.label_thresholds import most_probable


def scorer_of(truth, chance, group=None, at=0.5):
    group = np.arange(len(truth)) if group is None else group
    return LabelScorer(truth, chance, (chance >= at).astype(float), group)


def random_case(seed, n=150, n_labels=3, decimals=2):
    random = np.random.default_rng(seed)
    truth = (random.random((n, n_labels)) < 0.3).astype(float)
    chance = 1 / (1 + np.exp(-(truth + random.normal(size=truth.shape) - 0.5)))
    return truth, np.round(chance, decimals)  # rounded, so that many are equal


@pytest.mark.parametrize("seed", range(5))
def test_every_metric_is_scikit_learns_per_label(seed):
    truth, chance = random_case(seed)
    figures = scorer_of(truth, chance).figures(np.ones((1, len(truth))))
    for at in range(truth.shape[1]):
        real, score, called = truth[:, at], chance[:, at], chance[:, at] >= 0.5
        expected = {
            "auroc": roc_auc_score(real, score),
            "auprc": average_precision_score(real, score),
            "f1": f1_score(real, called),
            "sensitivity": recall_score(real, called),
            "specificity": recall_score(real, called, pos_label=0),
            "accuracy": (real == called).mean(),
            "brier": brier_score_loss(real, score),
        }
        assert {name: figures[name][0, at] for name in expected} == pytest.approx(expected)


def test_weights_are_worth_as_many_copies_of_a_group():
    truth, chance = random_case(7)
    random = np.random.default_rng(0)
    group = random.integers(0, 30, len(truth))
    weights = random.integers(0, 4, (6, 30)).astype(float)
    found = scorer_of(truth, chance, group).figures(weights)
    for row, counts in enumerate(weights):
        copies = np.repeat(np.arange(len(truth)), counts[group].astype(int))
        plain = scorer_of(truth[copies], chance[copies]).figures(np.ones((1, len(copies))))
        for name, values in plain.items():
            assert found[name][row] == pytest.approx(values[0]), name


def test_unknown_answers_are_left_out_label_by_label():
    truth, chance = random_case(3)
    gaps = truth.copy()
    gaps[:60, 0] = np.nan
    figures = scorer_of(gaps, chance).figures(np.ones((1, len(truth))))
    known = scorer_of(truth[60:], chance[60:]).figures(np.ones((1, len(truth) - 60)))
    whole = scorer_of(truth, chance).figures(np.ones((1, len(truth))))
    for name in figures:
        assert figures[name][0, 0] == pytest.approx(known[name][0, 0]), name
        assert figures[name][0, 1:] == pytest.approx(whole[name][0, 1:]), name


def test_what_is_undefined_is_nan_and_not_zero():
    truth = np.array([[0.0, 1.0, np.nan]] * 6)
    chance = np.tile(np.linspace(0.1, 0.9, 6)[:, None], 3)
    figures = {name: values[0] for name, values in scorer_of(truth, chance).figures(np.ones((1, 6))).items()}
    assert np.isnan(figures["auroc"]).all() and np.isnan(figures["auprc"]).all()
    for name, undefined in {"f1": 0, "sensitivity": 0, "specificity": 1}.items():
        assert np.isnan(figures[name][undefined]) and np.isnan(figures[name][2]), name
        assert np.isfinite(figures[name][1 - undefined]), name
    assert np.isfinite(figures["brier"][:2]).all() and np.isnan(figures["brier"][2])


def test_classes_are_summed_up_as_scikit_learn_does():
    random = np.random.default_rng(0)
    truth = random.integers(0, 4, 200)
    chance = random.dirichlet(np.ones(4), 200) + 0.6 * np.eye(4)[truth]
    predicted = chance.argmax(axis=1)
    scorer = LabelScorer(np.eye(4)[truth], chance, most_probable(chance), np.arange(200))
    found = overall(scorer.figures(np.ones((1, 200))), "multiclass")
    assert found["accuracy"][0] == pytest.approx((truth == predicted).mean())
    assert found["balanced_accuracy"][0] == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert found["f1"][0] == pytest.approx(f1_score(truth, predicted, average="macro"))
    per_class = precision_recall_fscore_support(truth, predicted)[1]
    assert scorer.figures(np.ones((1, 200)))["sensitivity"][0] == pytest.approx(per_class)


def test_means_are_over_what_is_defined():
    assert mean_defined(np.array([[0.5, np.nan, 0.7], [np.nan] * 3])) == pytest.approx([0.6, np.nan], nan_ok=True)


def test_group_sums_add_up_the_scans_of_each_group():
    values = np.arange(10.0).reshape(5, 2)
    assert group_sums(values, np.array([1, 0, 1, 0, 1])).tolist() == [[8.0, 10.0], [12.0, 15.0]]


def test_curves_enclose_the_areas():
    truth, chance = random_case(11, n_labels=1)
    false_share, recall, precision = curve_points(truth[:, 0], chance[:, 0])
    area = auc(np.append(0, false_share), np.append(0, recall))
    assert area == pytest.approx(roc_auc_score(truth[:, 0], chance[:, 0]))
    steps = (np.diff(np.append(0, recall)) * precision).sum()
    assert steps == pytest.approx(average_precision_score(truth[:, 0], chance[:, 0]))
    assert curve_points(np.zeros(5), np.linspace(0, 1, 5)) is None


def test_reliability_bins_are_of_equal_size_and_do_not_know_the_order_of_rows():
    truth, chance = (values[:, 0] for values in random_case(5, n=600, decimals=6))
    bins = reliability(truth, chance)
    assert len(bins) == 15 and {entry["n"] for entry in bins} == {40}
    assert sum(entry["n"] * entry["rate"] for entry in bins) == pytest.approx(truth.sum())
    shuffled = np.random.default_rng(0).permutation(600)
    tied = np.round(chance, 1)
    for one, other in zip(reliability(truth, tied), reliability(truth[shuffled], tied[shuffled]), strict=True):
        assert one == pytest.approx(other)
    assert len(reliability(truth[:35], chance[:35])) == 3


def test_perfect_probabilities_show_the_ece_of_chance_and_wrong_ones_more():
    random = np.random.default_rng(1)
    right, by_chance, wrong = [], [], []
    for _ in range(60):
        chance = random.random(400)
        truth = (random.random(400) < chance).astype(float)
        error, expected = expected_calibration_error(truth, chance)
        right.append(error)
        by_chance.append(expected)
        wrong.append(expected_calibration_error(truth, chance**3)[0])
    assert np.mean(right) == pytest.approx(np.mean(by_chance), rel=0.08)
    assert np.mean(wrong) > 4 * np.mean(right)
    assert expected_calibration_error(np.array([1.0, 0.0]), np.array([0.75, 0.75]))[0] == pytest.approx(0.25)
    assert all(np.isnan(expected_calibration_error(np.array([np.nan]), np.array([0.5]))))


def clustered_case(seed, n_groups=60, n_each=2, share=0.3, shift=1.2, within=0.7):
    """Groups of scans that share most of their noise; the true area is Φ(shift / √2)."""
    random = np.random.default_rng(seed)
    group = np.repeat(np.arange(n_groups), n_each)
    truth = np.repeat((random.random((n_groups, 1)) < share).astype(float), n_each, axis=0)
    common = np.repeat(random.normal(size=(n_groups, 1)), n_each, axis=0)
    return truth, shift * truth + within * common + np.sqrt(1 - within**2) * random.normal(size=truth.shape), group


def test_intervals_over_groups_cover_the_true_figures():
    area, weaker = norm.cdf(1.2 / np.sqrt(2)), norm.cdf(1.2 / np.sqrt(4))
    covered, as_if_scans, differences = [], [], []
    for seed in range(120):
        truth, score, group = clustered_case(seed)
        noisier = score + np.random.default_rng(10_000 + seed).normal(size=score.shape) * np.sqrt(2)
        scorers = {name: scorer_of(truth, 1 / (1 + np.exp(-z)), group) for name, z in (("a", score), ("b", noisier))}
        found = resample_figures(scorers, "binary", 60, n_scans=120, n_resamples=300, seed=seed)
        n = int(carriers(truth, group)["auroc"][0])
        interval = bound("auroc", found["a"].overall["auroc"], n)
        covered.append(interval.low <= area <= interval.high)
        gap = bound_difference(found["a"].overall["auroc"].minus(found["b"].overall["auroc"]), n)
        differences.append(gap.low <= area - weaker <= gap.high)
        alone = {"a": scorer_of(truth, 1 / (1 + np.exp(-score)))}
        torn = resample_figures(alone, "binary", 120, n_scans=120, n_resamples=300, seed=seed)["a"].overall["auroc"]
        torn_interval = bound("auroc", torn, 2 * n)
        as_if_scans.append(torn_interval.low <= area <= torn_interval.high)
    # 95% promised; the standard error of 120 simulations is 2%.
    assert 0.90 <= np.mean(covered) <= 1.0
    assert 0.86 <= np.mean(differences) <= 1.0
    assert np.mean(as_if_scans) < np.mean(covered)


def few_groups_per_class(seed, n_each, n_classes=12, n_scans=4):
    """Slices of cases: three groups per class, or as many as asked for; the slices of a case are alike."""
    random = np.random.default_rng(seed)
    group = np.repeat(np.arange(n_classes * n_each), n_scans)
    truth = group // n_each
    common = random.normal(size=(n_classes * n_each, n_classes))[group]
    score = 0.6 * common + 0.8 * random.normal(size=common.shape)
    score[np.arange(len(group)), truth] += 1.6
    return truth, np.exp(score) / np.exp(score).sum(axis=1, keepdims=True), group


def test_the_interval_of_a_macro_f1_covers_with_few_groups_per_class():
    many = [few_groups_per_class(seed, 200) for seed in range(1000, 1004)]
    real = np.mean([f1_score(truth, chance.argmax(axis=1), average="macro") for truth, chance, _ in many])
    covered, plain = [], []
    for seed in range(100):
        truth, chance, group = few_groups_per_class(seed, 3)
        scorer = LabelScorer(np.eye(12)[truth], chance, most_probable(chance), group)
        found = resample_figures({"a": scorer}, "multiclass", 36, n_scans=len(group), n_resamples=200, seed=seed)
        figure = found["a"].overall["f1"]
        for bounds, hits in ((bound_mean(figure, 36), covered), (bound("", figure, 36), plain)):
            hits.append(bounds.low <= real <= bounds.high)
    assert np.mean(covered) >= 0.90  # 95% promised; the standard error of 100 simulations is 2%
    assert np.mean(covered) > np.mean(plain)


def test_a_perfect_ranking_still_gets_an_interval_that_few_scans_can_promise():
    same = Resampled(np.float64(1.0), np.ones(300), np.ones(20))
    assert bound("auroc", same, 10).low == pytest.approx(0.025 ** (1 / 10))
    assert bound("sensitivity", Resampled(np.float64(0.0), np.zeros(300), np.zeros(20)), 10).high == pytest.approx(
        1 - 0.025 ** (1 / 10)
    )
    assert np.isnan(bound("f1", same, 10).low)
    assert np.isnan(bound("auroc", same, MINIMUM_SUBJECTS - 1).low)
    half = Resampled(np.float64(0.5), np.full(300, 0.5), np.full(20, 0.5))
    assert bound("auroc", half, 10) == (0.5, 0.5, 0.5)
    assert np.isnan(bound_difference(half, 10).low)


def test_carriers_are_groups_and_of_the_rarer_answer():
    truth = np.array([[1.0], [1.0], [0.0], [0.0], [np.nan]])
    counts = carriers(truth, np.array([0, 0, 1, 2, 3]))
    assert {name: int(counts[name][0]) for name in ("auroc", "sensitivity", "specificity", "brier")} == {
        "auroc": 1,
        "sensitivity": 1,
        "specificity": 2,
        "brier": 3,
    }
