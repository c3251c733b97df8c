"""The search beneath `neuroage tune`: what to try next, kept in a storage that several processes may share.

It knows nothing of trainings: an objective takes values and gives a score.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroage.errors import DataError, InfeasibleError, RefusedError, UsageError
from neuroage.runs.recipe_tune import Choices, Dimension, Space, label_of
from neuroage.runs.seeds import child_seed

try:
    import optuna
    import sqlalchemy.exc
    from optuna.trial import FrozenTrial

    from neuroage.training.search_sampler import Sampler, counts, distribution_of
except ImportError:
    raise UsageError("Tuning needs Optuna, which is not installed", fix='pip install "neuroage[tune]"') from None

Pruned = optuna.TrialPruned
N_BEFORE_PRUNING = 5  # whole trials that a pruned one was compared with, at least (Optuna's default)
N_FAILED = 5  # so many failures and nothing else: the study is wrong, not the trial
ALIVE_S = 60  # a trial that was not heard of for so long has lost its process
N_IMPORTANCE = 6  # complete trials; with fewer there is nothing to split
N_OPEN = 10  # attempts to open a new database, which processes that start together make at once
LOCK_S = 120.0  # how long a process waits while another one writes into the same file
WORDS = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}


class TakenOver(Exception):
    """Another process took this trial for lost and has it now."""


class _Surplus(Exception):
    """Other processes have begun enough trials."""


@dataclass(frozen=True)
class Attempt:
    """A trial that runs.

    Attributes:
        number: From 0, over all processes.
        place: The number under which it was begun first: another one where it goes on after an interruption.
        values: Key → what to try.
        report: Called with a step (from 1) and the score so far; raises `Pruned` where going on is not worth it.
    """

    number: int
    place: int
    values: dict[str, Any]
    report: Callable[[int, float], None]


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        table: One row a trial that counts: trial, place, state (complete, pruned, failed, running), score, steps,
            seconds, reason (of a failure), then a column for each key.
        best: Values of the best complete trial.
        best_score, best_place: Its score and place.
        importances: Key → share of the variance of the scores; empty where too few trials are complete.
    """

    table: pd.DataFrame
    best: dict[str, Any]
    best_score: float
    best_place: int
    importances: dict[str, float]


def search(
    objective: Callable[[Attempt], float],
    space: Space,
    n_trials: int,
    *,
    seed: int,
    storage: str | None = None,
    name: str = "tune",
    higher_is_better: bool = False,
    start: Mapping[str, Any] | None = None,
    about: Mapping[str, str] | None = None,
    prune_from: int | None = None,
    timeout_s: float | None = None,
    sampler: str = "gp",
    alive_s: int = ALIVE_S,
    stops: tuple[type[BaseException], ...] = (),
    say: Callable[[str], None] = lambda text: None,
) -> Found:
    """Search a space for the values with the best score.

    A Gaussian process models the scores, and the next trial is where the most improvement is expected. Processes that
    call this with the same storage and name share the trials; a later call goes on until there are `n_trials` in all.
    A trial whose process was killed or stopped does not count, and is run again.

    Args:
        objective: Gives the score of an attempt. What it raises makes the trial a failed one, which counts.
        space: Key → range or choices.
        n_trials: Over all processes and calls.
        seed: One process with the same seed tries the same values, even when it was stopped between two trials.
        storage: A database, such as sqlite:///tune.db; None keeps the trials in memory.
        name: Of the study within the storage.
        higher_is_better: Whether a larger score is better.
        start: Values of the first trial, as far as they lie in the space.
        about: What must be the same in every call, in words → its digest.
        prune_from: A trial whose score is worse than the median of others at the same step is ended early, from this
            step on; None: never.
        timeout_s: No trial is begun after so many seconds.
        sampler: gp, tpe or random.
        alive_s: As `ALIVE_S`, in whole seconds.
        stops: What the objective raises to stop the search, and run the trial again later; beside KeyboardInterrupt.
        say: Receives news.

    Returns:
        The trials and the best of them.

    Raises:
        UsageError: The storage cannot be opened.
        RefusedError: The study was begun with something else in `about`.
        InfeasibleError: All trials failed, or none could be finished.
    """
    with _hushed():
        study = _open(storage, name, higher_is_better, prune_from, alive_s)
        _refuse_another(study, {**(about or {}), "search space": _digest(space), "score": str(higher_is_better)})
        study.sampler = Sampler(space, dict(start or {}), seed, sampler)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        told = False
        while True:
            optuna.storages.fail_stale_trials(study)
            trials = study.get_trials(deepcopy=False)
            _refuse_failures([trial for trial in trials if counts(trial)])
            if deadline is not None and time.monotonic() >= deadline:
                break
            if sum(map(counts, trials)) < n_trials:
                _run_one(study, objective, space, n_trials, stops)
            elif any(trial.state.name == "RUNNING" for trial in trials):
                if not told:
                    say("The last trials run in other processes; waiting for them.")
                told = True
                time.sleep(min(1.0, alive_s / 10))
            else:
                break
        return _found(study, space, seed)


def trials_in(storage: str, name: str) -> int:
    """Count the trials of a study that are done; 0 where there is none yet.

    Raises:
        UsageError: The storage cannot be opened.
    """
    with _hushed():
        if name not in optuna.get_all_study_names(_storage(storage, ALIVE_S)):
            return 0
        trials = optuna.load_study(study_name=name, storage=_storage(storage, ALIVE_S)).get_trials(deepcopy=False)
        return sum(counts(trial) and trial.state.name != "RUNNING" for trial in trials)


def _run_one(
    study: optuna.Study,
    objective: Callable[[Attempt], float],
    space: Space,
    n_trials: int,
    stops: tuple[type[BaseException], ...],
) -> None:
    stopped: list[BaseException] = []
    stopping: tuple[type[BaseException], ...] = (KeyboardInterrupt, *stops)

    def run(trial: optuna.Trial) -> float:
        before = [one for one in study.get_trials(deepcopy=False) if one.number < trial.number and counts(one)]
        if len(before) >= n_trials:
            raise _Surplus
        place = int(trial.user_attrs.get("place", trial.number))
        values = {key: _value(dimension, trial, key) for key, dimension in space.items()}
        try:
            score = objective(Attempt(trial.number, place, values, lambda step, score: _report(trial, step, score)))
            if score != score:
                raise DataError("The score is not defined", expected="a number")
            return score
        except (Pruned, TakenOver):
            raise
        except stopping as error:
            stopped.append(error)
            _again(study, trial.params, place)
            raise
        except Exception as error:
            trial.set_user_attr("reason", str(error) or type(error).__name__)
            raise

    # Taken over while it ran: telling its end is refused. What the objective raises does not come through here.
    with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError, ValueError, RuntimeError):
        study.optimize(run, n_trials=1, catch=(Exception,))
    if stopped:
        raise stopped[0]


def _report(trial: optuna.Trial, step: int, score: float) -> None:
    if score != score:
        return
    try:
        trial.report(score, step)
    except optuna.exceptions.UpdateFinishedTrialError:
        raise TakenOver from None
    if trial.should_prune():
        raise Pruned


def _again(study: optuna.Study, params: dict[str, Any], place: int) -> None:
    """Let the next process that is free run these values again, in the same place."""
    study.enqueue_trial(params, user_attrs={"place": place})


def _value(dimension: Dimension, trial: optuna.Trial, key: str) -> Any:
    drawn = trial._suggest(key, distribution_of(dimension))
    if isinstance(dimension, Choices):
        return next(value for value in dimension.values if _same(label_of(value), drawn))
    return dimension.rounded(drawn)


def _same(label: Any, drawn: Any) -> bool:
    return type(label) is type(drawn) and label == drawn


def _open(storage: str | None, name: str, higher_is_better: bool, prune_from: int | None, alive_s: int) -> optuna.Study:
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if prune_from is not None:
        pruner = optuna.pruners.MedianPruner(N_BEFORE_PRUNING, n_warmup_steps=prune_from, n_min_trials=3)
    return optuna.create_study(
        storage=None if storage is None else _storage(storage, alive_s),
        pruner=pruner,
        study_name=name,
        direction="maximize" if higher_is_better else "minimize",
        load_if_exists=True,
    )


def _storage(url: str, alive_s: int) -> optuna.storages.RDBStorage:
    """Open a database; a plain path is one of SQLite."""
    url = url if "://" in url else f"sqlite:///{url}"
    is_file = url.startswith("sqlite:///")
    if is_file:
        Path(url.removeprefix("sqlite:///").split("?")[0]).absolute().parent.mkdir(parents=True, exist_ok=True)
    for left in range(N_OPEN)[::-1]:
        try:
            return optuna.storages.RDBStorage(
                url,
                engine_kwargs={"connect_args": {"timeout": LOCK_S}} if is_file else None,
                heartbeat_interval=max(1, alive_s // 6),
                grace_period=alive_s,
                heartbeat_stale_trial_callback=lambda study, lost: _again(
                    study, lost.params, int(lost.user_attrs.get("place", lost.number))
                ),
            )
        except Exception as error:  # of any database driver; what it says may hold a password
            if left and isinstance(error, sqlalchemy.exc.DBAPIError):
                time.sleep(0.2)  # another process was making the tables at the same moment
                continue
            raise UsageError(
                f"The storage cannot be opened ({type(error).__name__})",
                expected="a database such as sqlite:///tune.db",
            ) from error
    raise AssertionError


def _refuse_another(study: optuna.Study, about: Mapping[str, str]) -> None:
    known = study.user_attrs.get("about")
    if known is None:
        study.set_user_attr("about", dict(about))
        return
    other = [words for words, digest in about.items() if known.get(words) != digest]
    if other:
        raise RefusedError(
            f"The study {study.study_name!r} was begun with another {' and another '.join(other)}",
            expected="the same in every call",
            fix="Choose another --out.",
        )


def _refuse_failures(trials: list[FrozenTrial]) -> None:
    reasons = [str(trial.user_attrs["reason"]) for trial in trials if "reason" in trial.user_attrs]
    if len(reasons) >= N_FAILED and len(reasons) == len(trials):
        _all_failed(reasons)


def _all_failed(reasons: list[str]) -> None:
    told = "\n".join(f"  - {reason}" for reason in dict.fromkeys(reasons))
    raise InfeasibleError(f"All {len(reasons)} trials failed:\n{told}", fix="Does the recipe train by itself?")


def _found(study: optuna.Study, space: Space, seed: int) -> Found:
    trials = [trial for trial in study.get_trials(deepcopy=False) if counts(trial)]
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    if not complete:
        reasons = [str(trial.user_attrs["reason"]) for trial in trials if "reason" in trial.user_attrs]
        if reasons and len(reasons) == len(trials):
            _all_failed(reasons)
        raise InfeasibleError("No trial was finished", fix="Give more time or more trials.")
    table = pd.DataFrame([_row(trial, space) for trial in trials])
    best = table.loc[table["trial"] == study.best_trial.number].iloc[0]
    return Found(
        table=table,
        best=_values(study.best_trial, space),
        best_score=float(study.best_value),
        best_place=int(best["place"]),
        importances=_importances(study, len(complete), seed),
    )


def _row(trial: FrozenTrial, space: Space) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "place": int(trial.user_attrs.get("place", trial.number)),
        "state": WORDS[trial.state.name],
        "score": np.nan if trial.value is None else trial.value,
        "steps": max(trial.intermediate_values, default=0),
        "seconds": round(trial.duration.total_seconds(), 1) if trial.duration else np.nan,
        "reason": trial.user_attrs.get("reason", ""),
        **{key: label_of(value) for key, value in _values(trial, space).items()},
    }


def _values(trial: FrozenTrial, space: Space) -> dict[str, Any]:
    values = {}
    for key, dimension in space.items():
        drawn = trial.params.get(key)
        if isinstance(dimension, Choices):
            values[key] = next((value for value in dimension.values if _same(label_of(value), drawn)), None)
        else:
            values[key] = None if drawn is None else dimension.rounded(drawn)
    return values


def _importances(study: optuna.Study, n_complete: int, seed: int) -> dict[str, float]:
    """Split the variance of the scores over the keys by fANOVA (Hutter 2014, proceedings.mlr.press/v32/hutter14)."""
    if n_complete < N_IMPORTANCE:
        return {}
    try:
        forest = optuna.importance.FanovaImportanceEvaluator(seed=child_seed(seed, "importance") % 2**32)
        return dict(optuna.importance.get_param_importances(study, evaluator=forest))
    except (ValueError, RuntimeError):  # all scores equal
        return {}


def _digest(space: Space) -> str:
    return repr(sorted((key, repr(dimension)) for key, dimension in space.items()))


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keep Optuna from writing to the terminal, which is not the library's to write to."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
