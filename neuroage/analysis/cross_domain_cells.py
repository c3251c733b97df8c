"""One model on one data set: AUROC of every label with its interval, and how it differs from another cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from neuroage.analysis.bootstrap import N_METRIC_RESAMPLES, Interval
from neuroage.analysis.label_intervals import (
    Resampled,
    ResampledFigures,
    bound,
    bound_difference,
    bound_mean,
    carriers,
    resample_figures,
)
from neuroage.analysis.label_metrics import LabelScorer, mean_defined
from neuroage.analysis.label_table import MULTICLASS, LabelScans, align_labels, read_target
from neuroage.errors import RefusedError

N_RESAMPLES = N_METRIC_RESAMPLES
MACRO = "macro"  # the row of the means over the labels that are defined everywhere
Cell = tuple[str, str]  # train name, test name
Result = tuple[pd.DataFrame, Mapping[str, Any]]  # predictions and the target of the model


@dataclass(frozen=True)
class ScoredCell:
    """One model on one data set.

    Attributes:
        scans: Truth and probabilities.
        figures: Resampled figures.
        columns: The column of each label that the model knows.
        unknown: Labels that the test data do not have.
        carried: Groups that carry the AUROC of each label.
    """

    scans: LabelScans
    figures: ResampledFigures
    columns: dict[str, int]
    unknown: frozenset[str]
    carried: NDArray[np.intp]

    def figure(self, label: str, common: Sequence[str]) -> Resampled | None:
        """AUROC of a label, or the mean over the common ones; None where there is no such column."""
        areas = self.figures.labels["auroc"]
        names = common if label == MACRO else (label,)
        if not names or any(name not in self.columns for name in names):
            return None
        at = [self.columns[name] for name in names]
        return Resampled(
            mean_defined(areas.value[at]), mean_defined(areas.drawn[:, at]), mean_defined(areas.left_out[:, at])
        )

    def n_carriers(self, label: str) -> int:
        """Groups that carry the AUROC of a label; of the mean, all."""
        if label == MACRO:
            return self.scans.n_groups
        return int(self.carried[self.columns[label]])


def _with_missing_targets(table: pd.DataFrame, target: Mapping[str, Any]) -> pd.DataFrame:
    """Add the label columns that the test data do not have, as unknown."""
    kind, labels = read_target(target)
    columns = ["target_label"] if kind == MULTICLASS else [f"target_{label}" for label in labels]
    return table.assign(**{column: np.nan for column in columns if column not in table.columns})


def score_cells(results: Mapping[Cell, Result], sets: Sequence[str], seed: int) -> dict[Cell, ScoredCell]:
    """Score every model on every data set, on the scans of it that all models predicted.

    Raises:
        RefusedError: The models predicted no common scan of a data set.
    """
    cells = {cell: _align_cell(cell, *results[cell], sets) for cell in results}
    scored = {}
    for test in dict.fromkeys(test for _, test in results):
        here = {cell: scans for cell, scans in cells.items() if cell[1] == test}
        shared = set.intersection(*(set(scans.scans["scan_id"]) for scans in here.values()))
        if not shared:
            raise RefusedError(
                f"no scan of {test!r} was predicted by all models",
                expected="the same scans, under the same scan_id",
                fix="Predict one split of it with every model.",
            )
        # The same scans, groups and seed for every model: their resamples are the same, so differences are paired.
        kept = {cell: scans.only(shared) for cell, scans in here.items()}
        group = _joined([scans.group for scans in kept.values()])
        scored.update({cell: _score(replace(scans, group=group), seed) for cell, scans in kept.items()})
    return scored


def _joined(groups: Sequence[NDArray[np.intp]]) -> NDArray[np.intp]:
    """Give one index of groups, in which scans hang together that any of these holds together.

    A model names the groups of its own split alone; to another one the same scans are subjects.
    """
    scans = np.arange(len(groups[0]))
    nodes = [len(scans) * (1 + at) + group for at, group in enumerate(groups)]
    n_nodes = len(scans) * (1 + len(groups))
    links = (np.ones(len(scans) * len(groups), np.int8), (np.tile(scans, len(groups)), np.concatenate(nodes)))
    _, found = connected_components(coo_matrix(links, shape=(n_nodes, n_nodes)), directed=False)
    return np.asarray(pd.factorize(found[: len(scans)])[0], dtype=np.intp)


def _align_cell(cell: Cell, table: pd.DataFrame, target: Mapping[str, Any], sets: Sequence[str]) -> LabelScans:
    kind, labels = read_target(target)
    columns = ["target_label"] if kind == MULTICLASS else [f"target_{label}" for label in labels]
    absent = {column: np.nan for column in columns if column not in table.columns}
    return align_labels({f"{cell[0]} on {cell[1]}": table.assign(**absent)}, target, sets, other_classes=True)


def _score(scans: LabelScans, seed: int) -> ScoredCell:
    chance = next(iter(scans.probabilities.values()))
    scorer = LabelScorer(scans.truth, chance, np.full_like(chance, np.nan), scans.group)
    found = resample_figures(
        {"model": scorer}, scans.kind, scans.n_groups, n_scans=len(scans.scans), n_resamples=N_RESAMPLES, seed=seed
    )
    columns = {label: at for at, label in enumerate(scans.labels)}
    unknown = frozenset(label for label, at in columns.items() if np.isnan(scans.truth[:, at]).all())
    return ScoredCell(scans, found["model"], columns, unknown, carriers(scans.truth, scans.group)["auroc"])


def cell_figures(one: ScoredCell, label: str, common: Sequence[str]) -> dict[str, Any]:
    """Give the figures of one label in one cell, or why there are none."""
    figure = one.figure(label, common)
    n_subjects = one.scans.n_subjects
    nothing = float("nan")
    row: dict[str, Any] = {"n_subjects": n_subjects, "n": len(one.scans.scans), "n_positive": None}
    row |= {"prevalence": nothing, "auroc": nothing, "auroc_low": nothing, "auroc_high": nothing, "absent": ""}
    if figure is None:
        row["absent"] = "no label is defined everywhere" if label == MACRO else "the model does not know it"
        return row
    if label != MACRO:
        truth = one.scans.truth[:, one.columns[label]]
        row["n"], row["n_positive"] = int((~np.isnan(truth)).sum()), int((truth == 1).sum())
        row["prevalence"] = row["n_positive"] / row["n"] if row["n"] else nothing
        if np.isnan(figure.value):
            no_positive = "no positive scan" if not row["n_positive"] else "no negative scan"
            row["absent"] = "the test data do not have it" if label in one.unknown else no_positive
    found = _bounded(figure, label, one)
    return row | {"auroc": found.value, "auroc_low": found.low, "auroc_high": found.high}


def drop_figures(
    row: Mapping[str, Any], home: ScoredCell | None, label: str, common: Sequence[str], at_home: bool
) -> dict[str, float]:
    """Give how much lower the AUROC is here than at home; nothing at home itself."""
    here = Interval(row["auroc"], row["auroc_low"], row["auroc_high"])
    figure = home.figure(label, common) if home and not at_home else None
    if figure is None or home is None:
        return _named("drop", Interval(*[float("nan")] * 3))
    there = _bounded(figure, label, home)
    return _named("drop", difference_of_independent(there, here))


def difference_of_independent(a: Interval, b: Interval) -> Interval:
    """Bound a − b from the intervals of two independent figures.

    Args:
        a: First figure with its bounds.
        b: Second figure with its bounds, at the same level.

    Source: Zou & Donner 2008, doi:10.1002/sim.3095.
    """
    difference = a.value - b.value
    low = difference - np.hypot(a.value - a.low, b.high - b.value)
    high = difference + np.hypot(a.high - a.value, b.value - b.low)
    return Interval(difference, float(low), float(high))


def deficit_figures(here: ScoredCell, local: ScoredCell | None, label: str, common: Sequence[str]) -> dict[str, float]:
    """Give how much higher the AUROC of the model trained on the test data is, on the same scans."""
    figure, other = here.figure(label, common), local.figure(label, common) if local else None
    if local is None or local is here or figure is None or other is None:
        return _named("deficit", Interval(*[float("nan")] * 3))
    difference = other.minus(figure)
    return _named("deficit", (bound_mean if label == MACRO else bound_difference)(difference, here.n_carriers(label)))


def _bounded(figure: Resampled, label: str, one: ScoredCell) -> Interval:
    if label != MACRO:
        return bound("auroc", figure, one.n_carriers(label))
    found = bound_mean(figure, one.n_carriers(label))
    return Interval(found.value, max(found.low, 0.0), min(found.high, 1.0)) if found.low < found.high else found


def _named(what: str, found: Interval) -> dict[str, float]:
    return {what: found.value, f"{what}_low": found.low, f"{what}_high": found.high}
