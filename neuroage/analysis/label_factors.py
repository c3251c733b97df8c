"""Classes that combine two factors, such as tumour and sequence: how much of the score is telling one of them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neuroage.analysis.bootstrap import N_METRIC_RESAMPLES, Interval
from neuroage.analysis.label_factor_report import CLASS, CONSTANT, MODEL, factor_verdict
from neuroage.analysis.label_intervals import (
    Resampled,
    ResampledFigures,
    bound,
    bound_difference,
    bound_mean,
    resample_figures,
)
from neuroage.analysis.label_metrics import LabelScorer, group_sums
from neuroage.analysis.label_table import MULTICLASS, Array, LabelScans, align_labels, read_target
from neuroage.errors import DataError, UsageError, did_you_mean

Codes = NDArray[np.intp]

N_RESAMPLES = N_METRIC_RESAMPLES
METRICS = ("accuracy", "balanced_accuracy", "f1")


@dataclass(frozen=True)
class FactorView:
    """What a score of classes is made of, where a class is a combination of two factors; made by `factor_view`.

    Attributes:
        factors: The two factors' names.
        figures: One entry per question and answer, `{"question", "answer", "n_values", "accuracy", "accuracy_low",
            "accuracy_high", "balanced_accuracy", …, "f1", …}`. Questions: "class" and each factor. Answers: "model";
            "model, told <factor>"; "knows only <factor>"; "most frequent".
        pairs: The model's class minus what knowing one factor gives: `{"a", "b", "metric", "difference",
            "difference_low", "difference_high"}`.
        outcomes: Right and wrong answers to the class, `{"outcome", "n", "share", "share_low", "share_high",
            "share_of_errors"}`.
        n_scans: Scans scored.
        n_subjects: Subjects behind them.
        n_groups: Groups behind them, which are resampled.
        sets: Sets that were scored.
        seed: Seed of every resample.
        frequencies: Whose frequencies the guesses follow: "training scans" or "scored scans".
        verdict: What the figures say, in words.
    """

    factors: tuple[str, str]
    figures: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    outcomes: list[dict[str, Any]]
    n_scans: int
    n_subjects: int
    n_groups: int
    sets: tuple[str, ...]
    seed: int
    frequencies: str
    verdict: str

    @property
    def table(self) -> pd.DataFrame:
        """One row per question and answer, with the metrics and their bounds."""
        return pd.DataFrame(self.figures)

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain values."""
        return {**vars(self), "factors": list(self.factors), "sets": list(self.sets)}


def factors_of(table: pd.DataFrame, label_column: str = "label", columns: Sequence[str] = ()) -> pd.DataFrame:
    """Read from a cohort's table which value of each factor a class has.

    Args:
        table: One row per scan, such as `cohort.table`.
        label_column: Holds the class.
        columns: Hold the factors; each has one value within a class.

    Returns:
        One row per class, the index; one column per factor, text.

    Raises:
        DataError: A column is missing, or has two values or none within a class.

    Example:
        >>> scans = pd.DataFrame({"label": ["a1", "a2", "a2"], "letter": ["a", "a", "a"], "digit": [1, 2, 2]})
        >>> factors_of(scans, columns=["letter", "digit"]).loc["a2"].tolist()
        ['a', '2']
    """
    for column in (label_column, *columns):
        if column not in table.columns:
            raise DataError(
                f"a table without the column {column!r}",
                expected=did_you_mean(column, [str(name) for name in table.columns]),
            )
    known = table[table[label_column].notna() & (table[label_column].astype(str) != "")]
    text = known[list(columns)].astype(str).where(known[list(columns)].notna(), "")
    by_class = text.groupby(known[label_column].astype(str))
    for column in columns:
        values = by_class[column].unique()
        wrong = values[[len(found) > 1 or "" in found for found in values]]
        if len(wrong):
            raise DataError(
                f"class {wrong.index[0]!r} has the values {', '.join(map(repr, wrong.iloc[0][:3]))} of {column!r}",
                expected="one value of each factor within a class",
                fix="Name columns that the class decides.",
            )
    return by_class.first().rename_axis(label_column)


def factor_view(
    predictions: pd.DataFrame,
    target: Mapping[str, Any],
    factors: pd.DataFrame,
    *,
    sets: Sequence[str] = ("test",),
    seed: int = 0,
    shares: Mapping[str, float] | None = None,
) -> FactorView:
    """Say how much of a score of classes is telling one factor apart.

    Where "Meningioma T1" and "Meningioma T2" are two classes, a model that sees nothing but the sequence is already
    far above the most frequent class. So the class is scored beside each factor: probabilities are summed over the
    other factor; or the other is told, and only classes that have its true value are left. What somebody would reach
    who knows one factor perfectly, and guesses the other by its frequency, stands beside it.

    Args:
        predictions: As `evaluate_labels` takes them; members and folds are averaged per scan first.
        target: Of kind multiclass.
        factors: One row per class (the index), two columns; `factors_of` reads them from a cohort.
        sets: Sets to score. A table without a `set` column is scored whole.
        seed: Seed of the resamples over groups (subjects, where the table names no group).
        shares: Class to its share, or count, among the training scans, which guesses then follow. None: among the
            scored scans, the best that guessing can be.

    Returns:
        The view. Balanced accuracy and F1 are means over the values that occur among the scored scans.

    Raises:
        UsageError: The target has no classes, or there are not two factors.
        DataError: A class has no factors, two classes have the same, or the predictions are wrong.
        RefusedError: A scored group was also trained on.
    """
    kind, labels = read_target(target)
    if kind != MULTICLASS:
        raise UsageError(f"factors of a {kind} target", expected="a multiclass target")
    values, codes = _read_factors(factors, labels)
    scans = align_labels({MODEL: predictions}, target, sets)
    known = np.asarray(~np.isnan(scans.truth).any(axis=1))
    if not known.any():
        raise DataError("no scan has a class", expected="at least one")
    scans = scans.only(scans.scans["scan_id"][known].tolist())
    truth, chance = scans.truth.argmax(axis=1), scans.probabilities[MODEL]
    names = (str(factors.columns[0]), str(factors.columns[1]))
    if shares is None:
        frequency = scans.truth.mean(axis=0)
    else:
        frequency = np.array([float(shares.get(label, 0.0)) for label in labels])
    asked = _Asked(names, codes, truth, chance, frequency)
    n_values = {CLASS: len(labels), names[0]: len(values[0]), names[1]: len(values[1])}
    found = {question: _resample(scans, n_values[question], *asked.answers(question), seed) for question in n_values}
    figures = [
        {"question": question, "answer": answer, "n_values": n_values[question], **_bounded(one, scans.n_groups)}
        for question, answers in found.items()
        for answer, one in answers.items()
    ]
    pairs = [_pair(found[CLASS], f"knows only {name}", metric, scans.n_groups) for name in names for metric in METRICS]
    outcomes = _outcomes(asked, scans, n_values, found[CLASS][MODEL], seed)
    frequencies = "scored scans" if shares is None else "training scans"
    counts = (len(scans.scans), scans.n_subjects, scans.n_groups)
    verdict = factor_verdict(names, figures, pairs, outcomes, counts, frequencies)
    return FactorView(names, figures, pairs, outcomes, *counts, tuple(sets), seed, frequencies, verdict)


def _read_factors(factors: pd.DataFrame, labels: Sequence[str]) -> tuple[list[list[str]], tuple[Codes, Codes]]:
    """Give the values of each factor, and their index for each class."""
    if factors.shape[1] != 2:
        raise UsageError(f"a table of {factors.shape[1]} factors", expected="two columns, one row per class")
    by_class = factors.set_axis(factors.index.astype(str)).astype(str)
    missing = [label for label in labels if label not in by_class.index]
    if missing:
        raise DataError(f"class {missing[0]!r} has no factors", expected=did_you_mean(missing[0], list(by_class.index)))
    rows = by_class.loc[list(labels)]
    twice = rows.duplicated(keep=False) | rows.index.duplicated(keep=False)
    if twice.any():
        same = ", ".join(repr(label) for label in rows.index[twice][:2])
        raise DataError(f"the factors do not tell {same} apart", expected="one class for each combination")
    found = [pd.factorize(rows[column], sort=True) for column in rows.columns]
    return [[str(value) for value in values] for _, values in found], (found[0][0], found[1][0])


class _Asked(NamedTuple):
    """Scans, and what is asked about them; classes and values are indices."""

    names: tuple[str, str]
    codes: tuple[Codes, Codes]
    truth: Codes
    chance: Array
    frequency: Array

    def answers(self, question: str) -> tuple[Codes, dict[str, Codes]]:
        """Give the truth and every answer to "class" or to one factor."""
        if question == CLASS:
            known = {f"knows only {name}": self._told(at, self.frequency[None]) for at, name in enumerate(self.names)}
            constant = np.full_like(self.truth, self.frequency.argmax())
            return self.truth, {MODEL: self.chance.argmax(axis=1), **known, CONSTANT: constant}
        at = self.names.index(question)
        code, other = self.codes[at], self.names[1 - at]
        summing = np.eye(code.max() + 1)[code]
        return code[self.truth], {
            MODEL: (self.chance @ summing).argmax(axis=1),
            f"model, told {other}": code[self._told(1 - at, self.chance)],
            f"knows only {other}": code[self._told(1 - at, self.frequency[None])],
            CONSTANT: np.full_like(self.truth, (self.frequency @ summing).argmax()),
        }

    def _told(self, at: int, merit: Array) -> Codes:
        """Give the class of most merit among those that have the true value of a factor."""
        code = self.codes[at]
        allowed = code[self.truth][:, None] == code[None]
        return np.asarray(np.where(allowed, merit, -1.0).argmax(axis=1))


class _Decisions(LabelScorer):
    """Figures of decisions alone: without rankings, a resample costs a hundredth."""

    def __init__(self, truth: Codes, answer: Codes, n_values: int, group: NDArray[np.intp]) -> None:
        real, called = np.eye(n_values)[truth], np.eye(n_values)[answer]
        self._n_values = n_values
        self._sums = group_sums(np.concatenate([real, called, real * called], axis=1), group)

    def figures(self, weights: Array) -> dict[str, Array]:
        """Give F1, sensitivity and accuracy of each value against all others, for every resample."""
        totals = (weights @ self._sums).reshape(len(weights), 3, self._n_values)
        n_real, n_called, hit = np.moveaxis(totals, 1, 0)
        with np.errstate(invalid="ignore"):
            return {
                "f1": np.where(n_real > 0, 2 * hit / (n_real + n_called), np.nan),
                "sensitivity": hit / n_real,
                "accuracy": 1 - (n_real + n_called - 2 * hit) / n_real.sum(axis=1, keepdims=True),
            }


def _resample(
    scans: LabelScans, n_values: int, truth: Codes, answers: Mapping[str, Codes], seed: int
) -> dict[str, ResampledFigures]:
    scorers = {name: _Decisions(truth, answer, n_values, scans.group) for name, answer in answers.items()}
    return resample_figures(
        scorers, MULTICLASS, scans.n_groups, n_scans=3 * n_values, n_resamples=N_RESAMPLES, seed=seed
    )


def _bounded(figures: ResampledFigures, n_groups: int) -> dict[str, float]:
    entry: dict[str, float] = {}
    for metric in METRICS:
        figure = figures.overall[metric]
        found = bound(metric, figure, n_groups) if metric == "accuracy" else bound_mean(figure, n_groups)
        entry |= _named(metric, found)
    return entry


def _named(metric: str, found: Interval) -> dict[str, float]:
    low, high = (float(np.clip(end, 0.0, 1.0)) for end in (found.low, found.high))  # all are shares, or means of such
    return {metric: found.value, f"{metric}_low": low, f"{metric}_high": high}


def _pair(found: Mapping[str, ResampledFigures], other: str, metric: str, n_groups: int) -> dict[str, Any]:
    difference = found[MODEL].overall[metric].minus(found[other].overall[metric])
    bounds = (bound_difference if metric == "accuracy" else bound_mean)(difference, n_groups)
    ends = {"difference_low": bounds.low, "difference_high": bounds.high}
    return {"a": MODEL, "b": other, "metric": metric, "difference": bounds.value, **ends}


def _outcomes(
    asked: _Asked, scans: LabelScans, n_values: Mapping[str, int], joint: ResampledFigures, seed: int
) -> list[dict[str, Any]]:
    """Divide the answers to the class by which factor of the named class is right."""
    answer = asked.chance.argmax(axis=1)
    right = [code[answer] == code[asked.truth] for code in asked.codes]
    of_factors = [
        _resample(scans, n_values[name], code[asked.truth], {MODEL: code[answer]}, seed)[MODEL].overall["accuracy"]
        for name, code in zip(asked.names, asked.codes, strict=True)
    ]
    both = joint.overall["accuracy"]
    only = [figure.minus(both) for figure in of_factors]
    neither = Resampled(*(1 - one - two - three for one, two, three in zip(both, *only, strict=True)))
    first, second = asked.names
    divided = {
        "both right": (right[0] & right[1], both),
        f"{first} right, {second} wrong": (right[0] & ~right[1], only[0]),
        f"{second} right, {first} wrong": (~right[0] & right[1], only[1]),
        "both wrong": (~right[0] & ~right[1], neither),
    }
    n_wrong = int((~(right[0] & right[1])).sum())
    entries = []
    for outcome, (scan, figure) in divided.items():
        n = int(scan.sum())
        of_errors = None if outcome == "both right" else n / n_wrong if n_wrong else float("nan")
        bounds = _named("share", bound("accuracy", figure, scans.n_groups))
        entries.append({"outcome": outcome, "n": n, **bounds, "share_of_errors": of_errors})
    return entries
