"""Figures of label predictions, for many resamples at once: ranking, decisions, probabilities.

A resample is a row of weights, how often each group was drawn; the plain figure is the row of ones. So the figure, its
resamples and its leave-one-out values come from one piece of code.

Undefined is NaN: ranking without positives or without negatives; sensitivity, F1 and average precision without
positives; specificity without negatives.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from neuroage.analysis.label_table import MULTICLASS, Array

METRICS = ("auroc", "auprc", "f1", "sensitivity", "specificity", "accuracy", "brier")
N_ECE_BINS = 15  # Guo 2017, arXiv 1706.04599
FEWEST_IN_BIN = 10  # a rate among fewer scans has a standard error above 0.15, more than most models are off


class Ranking:
    """One label's scans by falling probability, sorted once, so that a resample costs one pass.

    Args:
        truth: 1, 0 or NaN, shape `(n_scans,)`; NaN is left out.
        probability: Same shape.
        group: Index of each scan's group, same shape.
    """

    def __init__(self, truth: Array, probability: Array, group: NDArray[np.intp]) -> None:
        known = np.flatnonzero(~np.isnan(truth))
        order = known[np.argsort(-probability[known], kind="stable")]
        falling = probability[order]
        starts = np.flatnonzero(np.concatenate([[True], falling[1:] != falling[:-1]])) if len(order) else order
        ends = np.append(starts[1:], len(order))  # one past the last scan of each run of equal probabilities
        self._group = group[order]
        self._positives = np.flatnonzero(truth[order] == 1)
        tie = np.searchsorted(starts, self._positives, side="right") - 1
        self._before, self._through = starts[tie], ends[tie]
        self._true_before = np.searchsorted(self._positives, self._before)
        self._true_through = np.searchsorted(self._positives, self._through)

    def areas(self, weights: Array) -> tuple[Array, Array]:
        """Give the area under the ROC curve, ties counted half, and the average precision, for every resample.

        Args:
            weights: How often each group was drawn, shape `(n_resamples, n_groups)`.

        Returns:
            Both of shape `(n_resamples,)`; NaN without positives or without negatives.

        Source: area, Hanley & McNeil 1982, doi:10.1148/radiology.143.1.7063747; average precision as the sum of
        precision over recalled positives, no interpolation: Davis & Goadrich 2006, doi:10.1145/1143844.1143874.
        """
        drawn = weights[:, self._group]
        positive = drawn[:, self._positives]
        above, true_above = _running(drawn), _running(positive)
        n_positive = true_above[:, -1]
        n_negative = above[:, -1] - n_positive
        true_through, all_through = true_above[:, self._true_through], above[:, self._through]
        false_before = above[:, self._before] - true_above[:, self._true_before]
        lost = (positive * (false_before + all_through - true_through)).sum(axis=1) / 2
        precise = (positive * true_through / np.maximum(all_through, 1.0)).sum(axis=1)
        precision = np.where(n_negative > 0, _ratio(precise, n_positive), np.nan)  # 1 for any model without negatives
        return 1 - _ratio(lost, n_positive * n_negative), precision


def _running(values: Array) -> Array:
    total = np.empty((values.shape[0], values.shape[1] + 1))
    total[:, 0] = 0.0
    np.cumsum(values, axis=1, out=total[:, 1:])
    return total


def _ratio(over: Array, under: Array) -> Array:
    return np.asarray(np.divide(over, under, out=np.full(np.broadcast(over, under).shape, np.nan), where=under > 0))


class LabelScorer:
    """All figures of one model on one set of scans, for any weights of the groups.

    Args:
        truth: 1, 0 or NaN, shape `(n_scans, n_labels)`.
        probability: Same shape.
        predicted: The decision, 1 or 0, same shape; a column of NaN has no threshold.
        group: Index of each scan's group, shape `(n_scans,)`.
    """

    def __init__(self, truth: Array, probability: Array, predicted: Array, group: NDArray[np.intp]) -> None:
        self._rankings = [Ranking(truth[:, at], probability[:, at], group) for at in range(truth.shape[1])]
        yes, no = truth == 1, truth == 0
        parts = (
            yes * predicted,
            no * predicted,
            yes * (1 - predicted),
            no * (1 - predicted),
            np.where(np.isnan(truth), 0, np.square(probability - truth)),
        )
        self._shape = (len(parts), truth.shape[1])
        self._sums = group_sums(np.concatenate([yes.astype(float), no.astype(float), *parts], axis=1), group)

    def figures(self, weights: Array) -> dict[str, Array]:
        """Give every metric for every resample and label.

        Args:
            weights: How often each group was drawn, shape `(n_resamples, n_groups)`.

        Returns:
            Name to `(n_resamples, n_labels)`.
        """
        totals = (weights @ self._sums).reshape(len(weights), 2 + self._shape[0], self._shape[1])
        n_yes, n_no, hit, false, missed, passed, squared = np.moveaxis(totals, 1, 0)
        areas = [ranking.areas(weights) for ranking in self._rankings]
        return {
            "auroc": np.stack([area for area, _ in areas], axis=1),
            "auprc": np.stack([precision for _, precision in areas], axis=1),
            "f1": np.where(n_yes > 0, _ratio(2 * hit, 2 * hit + false + missed), np.nan),
            "sensitivity": _ratio(hit, n_yes),
            "specificity": _ratio(passed, n_no),
            "accuracy": _ratio(hit + passed, n_yes + n_no),
            "brier": _ratio(squared, n_yes + n_no),
        }


def overall(figures: dict[str, Array], kind: str) -> dict[str, Array]:
    """Sum up the labels: the mean over those where a figure is defined; for classes the share of right answers, too.

    Args:
        figures: As `LabelScorer.figures` gives them, of all labels.
        kind: "binary", "multilabel" or "multiclass".

    Returns:
        Name to `(n_resamples,)`, with `balanced_accuracy`: for classes the mean sensitivity, for a yes or no the mean
        of sensitivity and specificity.
    """
    found = {name: mean_defined(values) for name, values in figures.items()}
    if kind == MULTICLASS:
        # One-vs-rest each wrong answer is two mistakes: a miss of one class and a false alarm of another.
        n_classes = figures["accuracy"].shape[1]
        found["accuracy"] = 1 - (1 - found["accuracy"]) * n_classes / 2
        found["balanced_accuracy"] = found["sensitivity"]
    else:
        found["balanced_accuracy"] = mean_defined((figures["sensitivity"] + figures["specificity"]) / 2)
    return found


def mean_defined(values: Array) -> Array:
    """Average over the last axis, leaving out NaN; NaN where nothing is defined."""
    told = ~np.isnan(values)
    return _ratio(np.where(told, values, 0.0).sum(axis=-1), told.sum(axis=-1).astype(np.float64))


def group_sums(values: Array, group: NDArray[np.intp]) -> Array:
    """Add up the scans of each group: `(n_scans, n)` to `(n_groups, n)`."""
    from scipy.sparse import csr_matrix

    n_scans, n_groups = len(group), int(group.max()) + 1
    member = csr_matrix((np.ones(n_scans), (group, np.arange(n_scans))), shape=(n_groups, n_scans))
    return np.asarray(member @ values)


def reliability(truth: Array, probability: Array) -> list[dict[str, float]]:
    """Sort scans into bins of equal size by probability: mean probability, observed rate and n of each.

    Equal probabilities share a bin, so that the order of the rows does not matter.

    Args:
        truth: 1, 0 or NaN, shape `(n_scans,)`.
        probability: Same shape.

    Returns:
        At most 15 bins `{"n", "probability", "rate"}`, of 10 scans or more while there are as many.

    Source: bins of equal size, Nixon 2019, arXiv 1904.01685; less biased than bins of equal width: Roelofs 2022,
    arXiv 2012.08668.
    """
    known = ~np.isnan(truth)
    real, chance = truth[known], probability[known]
    if not len(real):
        return []
    n_bins = int(np.clip(len(real) // FEWEST_IN_BIN, 1, N_ECE_BINS))
    rank = np.searchsorted(np.sort(chance), chance, side="left")
    bins = rank * n_bins // len(real)
    members = [bins == index for index in np.unique(bins)]
    return [
        {"n": int(inside.sum()), "probability": float(chance[inside].mean()), "rate": float(real[inside].mean())}
        for inside in members
    ]


def expected_calibration_error(truth: Array, probability: Array) -> tuple[float, float]:
    """Give the expected calibration error, and what a perfectly calibrated model would show on as many scans.

    Few scans give rates that stray, so even perfect probabilities show an error. The second figure is its mean; an
    error of that size is no sign of bad probabilities.

    Args:
        truth: 1, 0 or NaN, shape `(n_scans,)`.
        probability: Same shape.

    Returns:
        Σ n_bin / n · |rate − mean probability| over the bins of `reliability`, and its mean under perfect calibration
        (normal approximation, scans taken as independent). NaN without scans.

    Source: Guo 2017, arXiv 1706.04599.
    """
    bins = reliability(truth, probability)
    if not bins:
        return float("nan"), float("nan")
    n, chance, rate = (np.array([entry[key] for entry in bins]) for key in ("n", "probability", "rate"))
    share = n / n.sum()
    stray = np.sqrt(2 / np.pi) * np.sqrt(chance * (1 - chance) / n)  # mean |x| of a normal is √(2/π) of its sd
    return float((share * np.abs(rate - chance)).sum()), float((share * stray).sum())
