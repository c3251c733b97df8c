"""Trained here, tested there: how every model does on every data set, label by label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from neuroage.analysis.cross_domain_cells import (
    MACRO,
    Cell,
    Result,
    cell_figures,
    deficit_figures,
    drop_figures,
    score_cells,
)
from neuroage.analysis.formatting import NOTHING
from neuroage.analysis.label_table import read_target
from neuroage.analysis.label_verdict import format_label_figure
from neuroage.errors import UsageError


@dataclass(frozen=True)
class CrossDomain:
    """AUROC of every model on every data set, label by label; made by `cross_domain_table`.

    Attributes:
        table: One row per train × test × label, the label "macro" last: `auroc`, `auroc_low`, `auroc_high`, `n`,
            `n_positive`, `prevalence`, `n_subjects`; `drop` (`_low`, `_high`): AUROC of the same model at home − here;
            `deficit` (`_low`, `_high`): AUROC of the model trained on the test data − this one's, on the same scans;
            `absent`: why there is no figure; `shared_subjects`, `shared_images`: with the training data, as the caller
            counted them.
        trains: Training data sets, in order.
        tests: Test data sets, in order.
        labels: Labels that any model knows.
        common_labels: Those defined in every cell; "macro" is their mean, so that it compares between cells.
        sets: Sets that were scored.
        seed: Seed of every resample.
        verdict: What the figures say, in words.
        meta: Whatever the caller wants on the page.
    """

    table: pd.DataFrame
    trains: tuple[str, ...]
    tests: tuple[str, ...]
    labels: tuple[str, ...]
    common_labels: tuple[str, ...]
    sets: tuple[str, ...]
    seed: int
    verdict: str
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def n_subjects(self) -> int:
        """The largest number of subjects behind a figure."""
        return int(self.table["n_subjects"].max())

    def matrix(self, label: str = MACRO, figure: str = "auroc") -> pd.DataFrame:
        """Give one figure of one label: training data down, test data across, NaN where there is none."""
        rows = self.table[self.table["label"] == label]
        return rows.pivot(index="train", columns="test", values=figure).reindex(
            index=list(self.trains), columns=list(self.tests)
        )

    def to_dict(self) -> dict[str, Any]:
        """Give every figure under its key: `cells`, train to test to label to figures."""
        cells: dict[str, Any] = {}
        for row in self.table.to_dict("records"):
            figures = {key: value for key, value in row.items() if key not in ("train", "test", "label")}
            figures["n_positive"] = None if pd.isna(figures["n_positive"]) else int(figures["n_positive"])
            cells.setdefault(row["train"], {}).setdefault(row["test"], {})[row["label"]] = figures
        return {
            "trains": list(self.trains),
            "tests": list(self.tests),
            "labels": list(self.labels),
            "common_labels": list(self.common_labels),
            "n_subjects": self.n_subjects,
            "sets": list(self.sets),
            "seed": self.seed,
            "verdict": self.verdict,
            "cells": cells,
            "meta": self.meta,
        }


def cross_domain_table(
    results: Mapping[Cell, Result],
    *,
    sets: Sequence[str] = ("test",),
    seed: int = 0,
    shared: Mapping[Cell, Mapping[str, int]] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> CrossDomain:
    """Put models trained on several data sets beside one another, on each other's held-out scans.

    Labels are aligned by name. A cell stays blank for a label that the model does not know, that the test data do not
    have, or that has no positives or no negatives there.

    Args:
        results: `(train name, test name)` to a predictions table, as `evaluate_labels` takes it, and the target of the
            model. A label column may be missing from the table: the test data do not have it. A model's own domain is
            the test data of the same name.
        sets: Sets to score. A table without a `set` column is scored whole.
        seed: Seed of the resamples.
        shared: `(train name, test name)` to `{"subjects": n, "images": n}` that both data sets contain.
        meta: Kept with the figures.

    Returns:
        The table, with 95% intervals by bootstrap over groups. All models are scored on the same scans of a data set,
        those that every one of them predicted. `deficit` is therefore paired; `drop` compares different scans, and its
        interval takes them as independent.

    Raises:
        UsageError: No results, or a target that cannot be read.
        DataError, RefusedError: As `evaluate_labels` does.

    Source: the experiment of Cohen 2020, arXiv 2002.02497; interval of a difference of independent figures: Zou &
    Donner 2008, doi:10.1002/sim.3095.
    """
    if not results:
        raise UsageError("no results to put beside one another", expected="predictions by (train name, test name)")
    trains = tuple(dict.fromkeys(train for train, _ in results))
    tests = tuple(dict.fromkeys(test for _, test in results))
    labels = tuple(dict.fromkeys(label for _, target in results.values() for label in read_target(target)[1]))
    scored = score_cells(results, sets, seed)
    told = [
        {label for label, at in one.columns.items() if np.isfinite(one.figures.labels["auroc"].value[at])}
        for one in scored.values()
    ]
    common = tuple(label for label in labels if all(label in defined for defined in told))
    rows = []
    for (train, test), one in scored.items():
        home, local = scored.get((train, train)), scored.get((test, test))
        flags = (shared or {}).get((train, test), {})
        for label in (*labels, MACRO):
            row = {"train": train, "test": test, "label": label, **cell_figures(one, label, common)}
            row |= drop_figures(row, home, label, common, train == test) | deficit_figures(one, local, label, common)
            row |= {f"shared_{what}": int(flags.get(what, 0)) for what in ("subjects", "images")}
            rows.append(row)
    table = pd.DataFrame(rows).astype({"n_positive": "Int64"})  # the mean over labels has no such count
    verdict = _verdict(table, common, labels)
    return CrossDomain(table, trains, tests, labels, common, tuple(sets), seed, verdict, dict(meta or {}))


def _verdict(table: pd.DataFrame, common: Sequence[str], labels: Sequence[str]) -> str:
    macro = table[table["label"] == MACRO]
    away = macro[(macro["train"] != macro["test"]) & macro["auroc"].notna()]
    home = macro[(macro["train"] == macro["test"]) & macro["auroc"].notna()]
    if not common:
        return "No label is defined for every model on every data set: there is no mean to compare, only single labels."
    n = int(table["n_subjects"].max())
    over = f"over the {len(common)} of {len(labels)} labels defined everywhere"
    parts = []
    for rows, where in ((home, "on data like its own"), (away, "on data from elsewhere")):
        if len(rows):
            low, high = (
                format_label_figure("auroc", float(end), n) for end in (rows["auroc"].min(), rows["auroc"].max())
            )
            parts.append(f"{low} {where}" if low == high else f"{low} to {high} {where}")
    said = f"Mean AUROC {over}: {', '.join(parts)}."
    known = away[away["drop"].notna()]
    if len(known):
        worst = known.sort_values("drop").iloc[-1]
        drop, low, high = (format_label_figure(key, float(worst[key]), n) for key in ("drop", "drop_low", "drop_high"))
        bounds = f" (95% interval {low} to {high})" if low != NOTHING else " (too few groups for an interval)"
        said += f" The largest drop is {worst['train']} on {worst['test']}: {drop}{bounds}."
    flagged = away[(away["shared_subjects"] > 0) | (away["shared_images"] > 0)]
    if len(flagged):
        pairs = ", ".join(f"{row.train} and {row.test}" for row in flagged.itertuples())
        said += f" Data sets that share subjects or images flatter these figures: {pairs}."
    return said
