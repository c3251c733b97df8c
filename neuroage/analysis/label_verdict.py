"""What the figures of labels say, in plain words; every sentence is built from the figures and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan
from typing import Any

from neuroage.analysis.formatting import NOTHING, format_figure, number
from neuroage.analysis.label_table import BINARY, MULTICLASS

_FEW = 500  # groups below which the standard error is a percent or more, and a third decimal is noise
_BASELINES = {"linear": "a linear model on coarse pixels", "majority": "always giving the most frequent answer"}
CHANCE_AUROC = 0.5  # of a ranking that knows nothing
_COUNTS = ("n", "n_positive", "seed")


def format_label_figure(name: str, value: Any, n_groups: int) -> str:
    """Write one figure of labels as people read it.

    Args:
        name: What it is: the last part of its key, such as "auroc", "prevalence" or "n".
        value: The figure; None and NaN are undefined.
        n_groups: Groups (subjects, where none are named) behind it; 500 or more earn a third decimal.

    Returns:
        Text with a true minus sign; "–" where undefined.

    Example:
        >>> format_label_figure("auroc", 0.8412, 100), format_label_figure("prevalence", 0.0525, 100)
        ('0.84', '5.2%')
    """
    if isinstance(value, (str, int)) or value is None:
        return format_figure(name, value, n_groups)
    if isnan(value):
        return NOTHING
    if name == "prevalence":
        return f"{number(100 * value, 1)}%"
    decimals = 3 if n_groups >= _FEW or "ece" in name or "brier" in name or name == "threshold" else 2
    return number(value, decimals, signed=name.startswith(("difference", "drop", "deficit")))


def metric_phrase(metric: str, kind: str) -> str:
    """Name a metric inside a sentence."""
    over = "" if kind == BINARY else "macro "
    return {"auroc": f"{over}AUROC", "f1": f"{over}F1", "balanced_accuracy": "balanced accuracy"}.get(metric, metric)


def is_shown(pair: Mapping[str, Any]) -> bool:
    """Say whether a difference is shown: an interval that leaves out 0."""
    return bool(pair["difference_low"] > 0 or pair["difference_high"] < 0)


def label_verdict(
    name: str,
    kind: str,
    models: Mapping[str, Mapping[str, Any]],
    labels: Mapping[str, Mapping[str, Any]],
    pairs: list[dict[str, Any]],
    n_scans: int,
) -> str:
    """Say how good a model is, what a baseline gives, and what accuracy hides.

    Args:
        name: The model.
        kind: "binary", "multilabel" or "multiclass".
        models: Figures over labels, by model.
        labels: Figures of the model, by label.
        pairs: Paired differences; the first metric of each pair is read.
        n_scans: Scans scored.
    """
    figures = models[name]
    metric = "f1" if kind == MULTICLASS else "auroc"
    n, n_subjects = int(figures["n_groups"]), int(figures["n_subjects"])
    groups = f" in {n:,} groups" * (n != n_subjects)
    who = f"On {n_scans:,} scans of {n_subjects:,} subject{'s' * (n_subjects != 1)}{groups}"
    if isnan(figures[metric]):
        return f"{who}, no label has both positives and negatives: {figures['label']} cannot be judged."
    said = f"{who}, {figures['label']} reaches {_bounded(figures, metric, kind, n)}{_over(figures, labels, kind)}"
    yardstick = f"; knowing nothing gives {CHANCE_AUROC:.2f}" if metric == "auroc" else ""
    return " ".join(filter(None, [said + yardstick + ".", _against(name, models, pairs), _accuracy(figures, kind, n)]))


def _bounded(figures: Mapping[str, Any], metric: str, kind: str, n: int) -> str:
    value, low, high = (format_label_figure(metric, figures[f"{metric}{end}"], n) for end in ("", "_low", "_high"))
    interval = "too few groups for an interval" if low == NOTHING else f"95% interval {low} to {high}"
    article = "an" if kind == BINARY and metric == "auroc" else "a"
    return f"{article} {metric_phrase(metric, kind)} of {value} ({interval})"


def _over(figures: Mapping[str, Any], labels: Mapping[str, Any], kind: str) -> str:
    if kind == BINARY:
        return f" for {next(iter(labels))}"
    what = "classes" if kind == MULTICLASS else "labels"
    told, given = figures["n_labels"], len(labels)
    return f" over {given} {what}" if told == given else f" over the {told} of {given} {what} where it is defined"


def _against(name: str, models: Mapping[str, Mapping[str, Any]], pairs: list[dict[str, Any]]) -> str:
    """Say which baselines the model beats in the headline metric, and which not."""
    firsts: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        firsts.setdefault(pair["b"], pair)
    if not firsts:
        return ""

    def named(pair: Mapping[str, Any]) -> str:
        n = int(models[pair["b"]]["n_groups"])
        value = format_label_figure(pair["metric"], models[pair["b"]][pair["metric"]], n)
        difference, low, high = (
            format_label_figure("difference", pair[key], n)
            for key in ("difference", "difference_low", "difference_high")
        )
        bounds = "" if low == NOTHING else f", {low} to {high}"
        called = _BASELINES.get(pair["b"], models[pair["b"]]["label"])
        return f"{called} ({value}; difference {difference}{bounds})"

    beaten = [named(pair) for pair in firsts.values() if is_shown(pair) and pair["difference"] > 0]
    worse = [named(pair) for pair in firsts.values() if is_shown(pair) and pair["difference"] < 0]
    others = [named(pair) for pair in firsts.values() if not is_shown(pair)]
    parts = [f"beats {' and '.join(beaten)}"] * bool(beaten)
    parts += [f"is not shown to beat {' or '.join(others)}"] * bool(others)
    parts += [f"is worse than {' and '.join(worse)}"] * bool(worse)
    return f"{models[name]['label']} {', but '.join(parts)}."


def _accuracy(figures: Mapping[str, Any], kind: str, n: int) -> str:
    """Say what accuracy is worth: never without what one answer for all gives."""
    constant = format_label_figure("accuracy", figures["accuracy_constant"], n)
    accuracy = format_label_figure("accuracy", figures["accuracy"], n)
    balanced = format_label_figure("balanced_accuracy", figures["balanced_accuracy"], n)
    if NOTHING in (constant, accuracy):
        return ""
    if kind == MULTICLASS:
        return (
            f"Balanced accuracy is {balanced}; accuracy {accuracy}, where always naming the most frequent class "
            f"gives {constant}."
        )
    if kind == BINARY:
        return (
            f"Balanced accuracy is {balanced}; accuracy {accuracy}, where one answer for every scan gives {constant}."
        )
    return f"One answer for every scan is right in {constant} of all cases, so accuracy ({accuracy}) says little here."
