"""What to try next: a model of all scores so far, told of pruned and failed trials too."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from neuroage.runs.recipe_tune import Choices, Dimension, Space, label_of
from neuroage.runs.seeds import child_seed

N_RANDOM = 10  # trials before the model of the scores is asked (the default of Optuna's samplers)
N_DRAWS = 20  # attempts to find values that were not tried yet, where there are only choices


class Sampler(optuna.samplers.BaseSampler):
    """Asks a model of all scores so far, seeded by the trial's own number: no process repeats another's draws.

    The model is given what pruned and failed trials tell, too: it would else go back to where they were.
    """

    def __init__(self, space: Space, start: dict[str, Any], seed: int, kind: str) -> None:
        self.space = {key: distribution_of(dimension) for key, dimension in space.items()}
        self.start = {key: label_of(value) for key, value in start.items() if key in space}
        self.seed, self.kind = seed, kind

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        """Give the whole space: all keys are drawn together."""
        return self.space

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:
        """Draw the values of a trial."""
        if trial.number == 0:
            return self.start  # of these, Optuna takes what lies in the space
        others = [one for one in study.get_trials(deepcopy=False) if one.number != trial.number and counts(one)]
        worse = -1.0 if study.direction.name == "MAXIMIZE" else 1.0
        told = _told(others, self.space, worse)
        for again in range(N_DRAWS):
            kind = "random" if again else self.kind
            seed = child_seed(self.seed, "tune", trial.number, again) % 2**32
            model = optuna.create_study(direction=study.direction, sampler=_make_sampler(kind, seed))
            model.add_trials(told)
            drawn = dict(model.ask(self.space).params)
            if all(one.params != drawn for one in others):
                break
        return drawn

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        """Draw one value by chance: of the first trial, what the start does not give."""
        seed = child_seed(self.seed, "tune", trial.number, param_name) % 2**32
        return optuna.samplers.RandomSampler(seed).sample_independent(study, trial, param_name, param_distribution)


def _told(trials: list[FrozenTrial], space: dict[str, Any], worse: float) -> list[FrozenTrial]:
    """Give the trials as complete ones: a pruned one as bad as it was beside others, a failed one as the worst.

    Args:
        trials: That count.
        space: Distributions.
        worse: 1 where a larger score is worse, else −1.
    """
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    if not complete:
        return []
    scores = np.array([worse * float(trial.value or 0.0) for trial in complete])
    middle, worst = float(np.median(scores)), float(scores.max())
    told = []
    for trial in trials:
        if set(trial.params) != set(space):  # just begun elsewhere, or failed before it drew
            continue
        if trial.state.name == "RUNNING":
            told.append(_as_trial(trial, space, state=TrialState.RUNNING))
            continue
        score = worst
        if trial.state.name == "COMPLETE":
            score = worse * float(trial.value or 0.0)
        elif trial.intermediate_values and trial.state.name == "PRUNED":
            step = max(trial.intermediate_values)
            others = [worse * one.intermediate_values[step] for one in complete if step in one.intermediate_values]
            behind = worse * trial.intermediate_values[step] - float(np.median(others)) if others else 0.0
            score = min(middle + max(behind, 0.0), worst)
        told.append(_as_trial(trial, space, state=TrialState.COMPLETE, value=worse * score))
    return told


def _as_trial(trial: FrozenTrial, space: dict[str, Any], **what: Any) -> FrozenTrial:
    return optuna.trial.create_trial(params=trial.params, distributions=space, **what)


def _make_sampler(kind: str, seed: int) -> optuna.samplers.BaseSampler:
    if kind == "gp":
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=N_RANDOM)
    if kind == "tpe":
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=N_RANDOM)
    return optuna.samplers.RandomSampler(seed=seed)


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial is one of those asked for: not lost, not waiting to be run again, not one too many."""
    return trial.state.name in ("COMPLETE", "PRUNED", "RUNNING") or "reason" in trial.user_attrs


def distribution_of(dimension: Dimension) -> optuna.distributions.BaseDistribution:
    """Say a dimension in Optuna's terms."""
    if isinstance(dimension, Choices):
        return optuna.distributions.CategoricalDistribution([label_of(value) for value in dimension.values])
    low, high, step = dimension.low, dimension.high, dimension.step
    if dimension.whole:
        return optuna.distributions.IntDistribution(int(low), int(high), log=dimension.log, step=int(step or 1))
    return optuna.distributions.FloatDistribution(low, high, log=dimension.log, step=step)
