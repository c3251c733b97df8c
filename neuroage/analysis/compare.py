"""Which of two models tells age better, on the very same subjects, and could these subjects have told?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from neuroage.analysis.formatting import format_figure, label_of
from neuroage.analysis.scores import Scores, add_gaps, describe_ages, score_decades, score_model, score_pair
from neuroage.analysis.subjects import BASELINE, FUSION, MODEL, align, average_per_subject
from neuroage.analysis.verdict import baseline_sentence, is_shown, pair_sentence
from neuroage.errors import UsageError

FUSED = "fusion"


@dataclass(frozen=True)
class Comparison(Scores):
    """The figures of several models on the subjects they share; made by `compare_models`.

    Attributes:
        spread: Model name to how its MAE varies over members (seeds) and over folds, years.
        given: Name to `{"given", "compared", "dropped"}` subjects.
        findings: Further sentences: fusion, and each model against the baselines.
    """

    spread: dict[str, dict[str, Any]] = field(default_factory=dict)
    given: dict[str, dict[str, int]] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The figures as tables: `metrics`, `pairs`, `decades`, `spread`, `subjects` (one row per subject, paired)."""
        return {
            "metrics": self.metrics_table(),
            "pairs": self.pairs_table(),
            "decades": self.decades_table(),
            "spread": pd.DataFrame([{"model": name, **figures} for name, figures in self.spread.items()]),
            "subjects": self.subjects,
        }

    def to_dict(self) -> dict[str, Any]:
        """Give every figure under its key; what comparison.json holds and the page shows."""
        return {**super().to_dict(), "findings": self.findings, "given": self.given, "spread": self.spread}


def compare_models(
    models: Mapping[str, pd.DataFrame],
    baselines: Mapping[str, pd.DataFrame] | None = None,
    seed: int = 0,
    *,
    sets: Sequence[str] = ("validation",),
    meta: Mapping[str, Any] | None = None,
) -> Comparison:
    """Compare models pairwise on the subjects that all of them predicted.

    Adds late fusion (the mean of the models' predictions) as a further row. Differences in MAE are paired by subject,
    with a bootstrap interval, a permutation p and the smallest difference that this many subjects could have shown.
    Swapping two models flips the sign of their difference and nothing else.

    Args:
        models: Name to predictions, two or more: columns scan_id, subject_id, age, predicted_age (years); set, fold and
            member where there are any.
        baselines: Name to predictions of the same kind, such as `{"mean": …, "ridge": …}`.
        seed: Seed of the resamples; the same tables and seed give the same figures.
        sets: Sets to score. A table without a `set` column is scored whole.
        meta: Kept with the figures. `selected_on` names a set on which a figure was chosen, and puts a notice on the
            page.

    Returns:
        The comparison; `to_dict()` and `tables` hold the figures, `verdict` says them in words.

    Raises:
        UsageError: When there are fewer than two models, or names collide.
        DataError: When a table lacks a column, a value is not finite, or no row belongs to `sets`.
        RefusedError: When no subject is shared, ages differ between tables by more than 0.01 years, or a scored subject
            was also trained on.
    """
    _check_names(models, baselines or {})
    aligned = align({**models, **(baselines or {})}, sets)
    table = aligned.table
    age = table["age"].to_numpy()
    table.insert(
        3 + len(models),
        f"predicted_age_{FUSED}",
        table[[f"predicted_age_{name}" for name in models]].mean(axis=1).to_numpy(),
    )
    kinds = {**dict.fromkeys(models, MODEL), FUSED: FUSION, **dict.fromkeys(baselines or {}, BASELINE)}
    labels = {name: label_of(name) for name in kinds} | {FUSED: _fusion_label(models)}
    predicted = {name: table[f"predicted_age_{name}"].to_numpy() for name in kinds}
    figures = {
        name: score_model(age, predicted[name], kind=kinds[name], label=labels[name], seed=seed) for name in kinds
    }
    pairs = [score_pair(age, predicted, a, b, seed) for a, b in _pairs(kinds)]
    verdict = _verdict(list(models), figures, pairs)
    return Comparison(
        models=figures,
        pairs=pairs,
        decades=score_decades(table, list(kinds)),
        ages=describe_ages(age),
        subjects=_paired_subjects(table, kinds),
        sets=tuple(sets),
        seed=seed,
        verdict=verdict,
        meta=dict(meta or {}),
        spread={name: _spread(aligned.rows[name]) for name in models},
        given={
            name: {"given": given, "compared": len(table), "dropped": given - len(table)}
            for name, given in aligned.given.items()
        },
        findings=_findings(kinds, figures, pairs),
    )


def _check_names(models: Mapping[str, pd.DataFrame], baselines: Mapping[str, pd.DataFrame]) -> None:
    if len(models) < 2:
        raise UsageError(f"{len(models)} model to compare", expected="two or more", fix="Name another model or run.")
    clash = set(models) & set(baselines) or {FUSED} & (set(models) | set(baselines))
    if clash:
        raise UsageError(
            f"the name {sorted(clash)[0]!r} is taken twice", expected=f"different names, none of them {FUSED!r}"
        )


def _fusion_label(models: Mapping[str, pd.DataFrame]) -> str:
    parts = " + ".join(label_of(name) for name in models)
    return f"fusion ({parts})" if len(parts) <= 16 else "fusion"  # a longer one breaks tables and figures


def _pairs(kinds: Mapping[str, str]) -> list[tuple[str, str]]:
    """Models with each other, fusion with each model, then models and fusion with each baseline."""
    models = [name for name, kind in kinds.items() if kind == MODEL]
    baselines = [name for name, kind in kinds.items() if kind == BASELINE]
    pairs = [*combinations(models, 2), *((FUSED, name) for name in models)]
    return pairs + [(name, baseline) for name in [*models, FUSED] for baseline in baselines]


def _paired_subjects(table: pd.DataFrame, kinds: Mapping[str, str]) -> pd.DataFrame:
    """Add gaps, and per pair of models the difference of absolute errors that the paired statistics rest on."""
    subjects = add_gaps(table, list(kinds))
    for a, b in combinations([name for name, kind in kinds.items() if kind == MODEL], 2):
        subjects[f"error_difference_{a}_{b}"] = subjects[f"gap_{a}"].abs() - subjects[f"gap_{b}"].abs()
    return subjects


def _spread(rows: pd.DataFrame) -> dict[str, Any]:
    """Say how the MAE varies over members of a fold (same subjects, other seeds) and over folds (other subjects)."""
    by_fold = {fold: _mae(part) for fold, part in rows.groupby("fold", sort=True)}
    by_member = [
        [_mae(part) for _, part in fold.groupby("member", sort=True)] for _, fold in rows.groupby("fold", sort=True)
    ]
    within = [np.var(maes, ddof=1) for maes in by_member if len(maes) > 1]
    return {
        "n_members": max(map(len, by_member)),
        "member_sd": float(np.sqrt(np.mean(within))) if within else float("nan"),
        "member_mae": [value for maes in by_member for value in maes],
        "n_folds": len(by_fold),
        "fold_sd": float(np.std(list(by_fold.values()), ddof=1)) if len(by_fold) > 1 else float("nan"),
        "fold_mae": list(by_fold.values()),
    }


def _mae(rows: pd.DataFrame) -> float:
    subjects = average_per_subject(rows)
    return float((subjects["predicted_age"] - subjects["age"]).abs().mean())


def _verdict(names: list[str], figures: Mapping[str, Mapping[str, Any]], pairs: list[dict[str, Any]]) -> str:
    best, second = sorted(names, key=lambda name: figures[name]["mae"])[:2]
    pair = next(pair for pair in pairs if {pair["a"], pair["b"]} == {best, second})
    said = pair_sentence(pair, figures)
    if len(names) > 2:
        said = f"Of {len(names)} models {figures[best]['label']} has the lowest MAE. {said}"
    useless = [name for name in names if _no_better_than_mean(name, figures, pairs)]
    if useless:
        mean = format_figure("mae", figures["mean"]["mae"], int(pair["n_subjects"]))
        who = " nor ".join(str(figures[name]["label"]) for name in useless)
        said += (
            f" But {'neither ' if len(useless) > 1 else ''}{who} is {'' if len(useless) > 1 else 'not '}shown to beat"
        )
        said += f" predicting the mean age ({mean} years)."
    return said


def _no_better_than_mean(name: str, figures: Mapping[str, Any], pairs: list[dict[str, Any]]) -> bool:
    against = [
        pair for pair in pairs if pair["a"] == name and pair["b"] == "mean" and figures["mean"]["kind"] == BASELINE
    ]
    return any(not is_shown(pair) or pair["difference"] >= 0 for pair in against)


def _findings(
    kinds: Mapping[str, str], figures: Mapping[str, Mapping[str, Any]], pairs: list[dict[str, Any]]
) -> list[str]:
    models = [name for name, kind in kinds.items() if kind == MODEL]
    best = min(models, key=lambda name: figures[name]["mae"])
    fused = next(pair for pair in pairs if (pair["a"], pair["b"]) == (FUSED, best))
    sentences = [f"Late fusion is the mean of the models' predictions. {pair_sentence(fused, figures)}"]
    sentences += [baseline_sentence(name, pairs, figures) for name in [*models, FUSED]]
    return [sentence for sentence in sentences if sentence]
