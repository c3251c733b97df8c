"""What the figures say, in plain words; every sentence is built from the figures and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan
from typing import Any

from neuroage.analysis.formatting import format_figure, p_phrase

ALPHA = 0.05  # the field's custom


def is_shown(pair: Mapping[str, Any]) -> bool:
    """Say whether a difference is shown: p below 5% and an interval that leaves out 0."""
    return bool(pair["p"] < ALPHA and (pair["difference_low"] > 0 or pair["difference_high"] < 0))


def pair_sentence(pair: Mapping[str, Any], models: Mapping[str, Mapping[str, Any]]) -> str:
    """Put a paired difference into one sentence.

    Args:
        pair: An entry of `Comparison.pairs`.
        models: `Comparison.models`.

    Returns:
        Which tells age better and by how much, or that these subjects cannot tell and what they could have shown.
    """
    n = int(pair["n_subjects"])
    a, b = (pair["a"], pair["b"]) if pair["difference"] <= 0 else (pair["b"], pair["a"])
    better, worse = models[a]["label"], models[b]["label"]
    if pair["sd"] == 0 and pair["difference"] == 0:
        return (
            f"{_at_start(models[a])} and {worse} are equally far from the real age on every one of these {n} subjects."
        )
    if isnan(pair["difference_low"]):
        return f"{_subjects(n)} are too few to compare {better} with {worse}."
    numbers = _numbers(pair, models, a, b)
    if is_shown(pair):
        return f"{_at_start(models[a])} tells age better than {worse} on these {n} subjects: {numbers}."
    could = format_figure("smallest_detectable", pair["smallest_detectable"], n)
    if pair["p"] < ALPHA or pair["difference_low"] > 0 or pair["difference_high"] < 0:
        return (
            f"A borderline case on these {n} subjects, {better} perhaps better than {worse}: {numbers}. "
            "More subjects would tell."
        )
    return (
        f"These {n} subjects cannot tell which is better, {better} or {worse}: {numbers}. "
        f"The smallest difference that {n} subjects could have shown is {could} years."
    )


def baseline_sentence(name: str, pairs: list[dict[str, Any]], models: Mapping[str, Mapping[str, Any]]) -> str:
    """Say which baselines a model beats, and which it does not; empty when there is no baseline.

    Args:
        name: The model.
        pairs: Paired differences; those of this model against baselines are read.
        models: Figures per model.
    """
    against = [pair for pair in pairs if pair["a"] == name and models[pair["b"]]["kind"] == "baseline"]
    if not against:
        return ""

    def named(pair: Mapping[str, Any]) -> str:
        baseline = models[pair["b"]]
        return (
            f"{baseline_phrase(baseline['label'])} ({format_figure('mae', baseline['mae'], pair['n_subjects'])} years)"
        )

    beaten = [named(pair) for pair in against if is_shown(pair) and pair["difference"] < 0]
    others = [named(pair) for pair in against if not (is_shown(pair) and pair["difference"] < 0)]
    said = f"beats {' and '.join(beaten)}" if beaten else ""
    if others:
        said += (", but " if said else "") + f"is not shown to beat {' or '.join(others)}"
    return f"{_at_start(models[name])} {said}."


def baseline_phrase(label: str) -> str:
    """Name a baseline inside a sentence."""
    return {"mean": "predicting the mean age", "ridge": "ridge regression on coarse voxels"}.get(label, label)


def _numbers(pair: Mapping[str, Any], models: Mapping[str, Mapping[str, Any]], a: str, b: str) -> str:
    n = int(pair["n_subjects"])
    sign = 1.0 if a == pair["a"] else -1.0
    bounds = sorted(sign * pair[f"difference_{end}"] for end in ("low", "high"))
    low, high = (format_figure("difference", bound, n) for bound in bounds)
    return (
        f"MAE {format_figure('mae', models[a]['mae'], n)} vs {format_figure('mae', models[b]['mae'], n)} years, "
        f"difference {format_figure('difference', sign * pair['difference'], n)} years "
        f"(95% interval {low} to {high}, {p_phrase(pair['p'])})"
    )


def _at_start(model: Mapping[str, Any]) -> str:
    label = str(model["label"])
    return label[0].upper() + label[1:] if model["kind"] == "fusion" else label


def _subjects(n: int) -> str:
    return f"{n} subject" + "s" * (n != 1)
