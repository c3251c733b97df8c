"""Bootstrap intervals of label figures over groups: several models on the same resamples, so differences are paired."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuroage.analysis.bootstrap import LEVEL, MINIMUM_SUBJECTS, N_METRIC_RESAMPLES, Interval, bca_bounds, block_sizes
from neuroage.analysis.label_metrics import LabelScorer, overall
from neuroage.analysis.label_table import Array

N_LEFT_OUT = 200  # blocks of the jackknife, as in bootstrap.py: the acceleration needs no more
# Figures that count what a threshold or a ranking got right; at 1 or 0 an exact bound is known.
_COUNTED = ("auroc", "sensitivity", "specificity", "accuracy")


class Resampled(NamedTuple):
    """One figure of one model: on all groups, on every resample, and with blocks of groups left out."""

    value: Array
    drawn: Array
    left_out: Array

    def minus(self, other: Resampled) -> Resampled:
        """Give the paired difference: the same resamples of both."""
        return Resampled(self.value - other.value, self.drawn - other.drawn, self.left_out - other.left_out)


class ResampledFigures(NamedTuple):
    """Figures of one model: `labels`, name to columns per label; `overall`, name to one column."""

    labels: dict[str, Resampled]
    overall: dict[str, Resampled]


def resample_figures(
    scorers: Mapping[str, LabelScorer],
    kind: str,
    n_groups: int,
    *,
    n_scans: int,
    n_resamples: int = N_METRIC_RESAMPLES,
    seed: int = 0,
) -> dict[str, ResampledFigures]:
    """Draw groups with replacement and score every model on the same draws.

    Args:
        scorers: Name to scorer, all on the same scans.
        kind: "binary", "multilabel" or "multiclass".
        n_groups: Groups behind the scans: patients, unless larger ones were named.
        n_scans: Scans, for the size of the blocks held at once.
        n_resamples: Bootstrap resamples.
        seed: Same seed, same resamples.
    """
    value = _score(scorers, kind, [np.ones((1, n_groups))])
    drawn = _score(scorers, kind, resample_weights(n_groups, n_resamples, seed, width=n_scans))
    left_out = _score(scorers, kind, _leave_out_weights(n_groups, width=n_scans))

    def joined(name: str, level: int) -> dict[str, Resampled]:
        parts = (value[name][level], drawn[name][level], left_out[name][level])
        return {metric: Resampled(parts[0][metric][0], parts[1][metric], parts[2][metric]) for metric in parts[0]}

    return {name: ResampledFigures(joined(name, 0), joined(name, 1)) for name in scorers}


def _score(
    scorers: Mapping[str, LabelScorer], kind: str, blocks: Iterator[Array] | list[Array]
) -> dict[str, tuple[dict[str, Array], dict[str, Array]]]:
    pieces: dict[str, list[tuple[dict[str, Array], dict[str, Array]]]] = {name: [] for name in scorers}
    for weights in blocks:
        for name, scorer in scorers.items():
            figures = scorer.figures(weights)
            pieces[name].append((figures, overall(figures, kind)))

    def joined(name: str, level: int) -> dict[str, Array]:
        return {
            metric: np.concatenate([part[level][metric] for part in pieces[name]]) for metric in pieces[name][0][level]
        }

    return {name: (joined(name, 0), joined(name, 1)) for name in scorers}


def resample_weights(n_groups: int, n_resamples: int, seed: int, *, width: int) -> Iterator[Array]:
    """Yield how often each group was drawn, blocks of shape `(n_resamples_in_block, n_groups)`."""
    random = np.random.default_rng(seed)
    for size in block_sizes(n_resamples, max(width, n_groups)):
        drawn = random.integers(0, n_groups, (size, n_groups)) + n_groups * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * n_groups).reshape(size, n_groups).astype(np.float64)


def _leave_out_weights(n_groups: int, *, width: int) -> Iterator[Array]:
    parts = np.array_split(np.random.default_rng(0).permutation(n_groups), min(n_groups, N_LEFT_OUT))
    start = 0
    for size in block_sizes(len(parts), max(width, n_groups)):
        weights = np.ones((size, n_groups))
        for row, part in enumerate(parts[start : start + size]):
            weights[row, part] = 0.0
        start += size
        yield weights


def carriers(truth: Array, group: NDArray[np.intp]) -> dict[str, NDArray[np.intp]]:
    """Count, per metric and label, the groups that carry it: those with a positive, with a negative, or the rarer.

    Args:
        truth: 1, 0 or NaN, shape `(n_scans, n_labels)`.
        group: Index of each scan's group, shape `(n_scans,)`.

    Returns:
        Metric to counts, shape `(n_labels,)`.
    """

    def groups_with(chosen: NDArray[np.bool_]) -> NDArray[np.intp]:
        return np.array([len(np.unique(group[chosen[:, at]])) for at in range(truth.shape[1])], dtype=np.intp)

    yes, no, known = groups_with(truth == 1), groups_with(truth == 0), groups_with(~np.isnan(truth))
    rarer = np.minimum(yes, no)
    return {
        "auroc": rarer,
        "auprc": rarer,
        "f1": yes,
        "sensitivity": yes,
        "specificity": no,
        "accuracy": known,
        "brier": known,
        "balanced_accuracy": rarer,
    }


def bound(metric: str, figure: Resampled, n_carriers: int, *, level: float = LEVEL) -> Interval:
    """Bound one figure by the bias-corrected and accelerated bootstrap over groups.

    Args:
        metric: Name of the metric; only "auroc", "sensitivity", "specificity" and "accuracy" have an exact bound.
        figure: Its value (a number), resamples and leave-one-out values.
        n_carriers: Groups that carry it; with fewer than 5 nothing is said.
        level: The share of such intervals that cover the true figure, 0 to 1.

    Returns:
        The figure and its bounds. A counted figure of exactly 1 (or 0) has the same value in every resample; its
        inner bound is then the exact one, ((1 − level) / 2) to the power 1 / n_carriers (or 1 minus that): for an area
        under the curve, from as many separate pairs of a positive and a negative that were all ranked right.

    Source: see `bca_bounds`; exact bound, Clopper & Pearson 1934, doi:10.1093/biomet/26.4.404.
    """
    value = float(figure.value)
    nothing = Interval(value, float("nan"), float("nan"))
    if not np.isfinite(value) or n_carriers < MINIMUM_SUBJECTS:
        return nothing
    told = figure.drawn[np.isfinite(figure.drawn)]
    if told.size and np.ptp(told) < 1e-12:  # every resample gives the same
        if 1e-12 < value < 1 - 1e-12:
            return Interval(value, value, value)
        reach = ((1 - level) / 2) ** (1 / n_carriers)
        low, high = (reach, 1.0) if value > 0.5 else (0.0, 1 - reach)
        return Interval(value, low, high) if metric in _COUNTED else nothing
    low, high = bca_bounds(value, figure.drawn, figure.left_out, n_subjects=n_carriers, level=level)
    return Interval(value, low, high)


def bound_mean(figure: Resampled, n_carriers: int, *, level: float = LEVEL) -> Interval:
    """Bound a mean over labels, or a difference of two such means, by the bootstrap over groups.

    A label that few groups carry goes missing from many resamples, so resampled means are off centre and too close
    together: BCa bounds of a macro F1 cover 80 to 90% with 2 to 8 groups per class (simulated). The resamples are
    therefore centred on the figure, and spread to the standard error that leaving out groups gives; that covers 93 to
    97%.

    Args:
        figure: Its value (a number), resamples and leave-one-out values.
        n_carriers: Groups behind it; with fewer than 5 nothing is said.
        level: The share of such intervals that cover the true figure, 0 to 1.

    Source: standard error, Efron & Stein 1981, doi:10.1214/aos/1176345462: on average it is not too small.
    """
    from scipy.special import ndtri, stdtrit

    value = float(figure.value)
    drawn, left_out = (values[np.isfinite(values)] for values in (figure.drawn, figure.left_out))
    if not np.isfinite(value) or n_carriers < MINIMUM_SUBJECTS or not drawn.size or np.ptp(drawn) < 1e-12:
        return Interval(value, float("nan"), float("nan"))
    spread = np.sqrt((len(left_out) - 1) / len(left_out) * np.square(left_out - left_out.mean()).sum())
    tail = (1 + level) / 2
    few = stdtrit(n_carriers - 1, tail) / ndtri(tail)
    ends = np.quantile(drawn - drawn.mean(), [1 - tail, tail]) * max(spread / drawn.std(ddof=1), 1.0) * few
    return Interval(value, value + float(ends[0]), value + float(ends[1]))


def bound_difference(figure: Resampled, n_carriers: int, *, level: float = LEVEL) -> Interval:
    """Bound a paired difference between two models' figures as `bound` does; nothing is said where it never varies."""
    found = bound("difference", figure, n_carriers, level=level)
    return found if found.low < found.high else Interval(found.value, float("nan"), float("nan"))
