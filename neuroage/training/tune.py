"""Tune a recipe: many trainings on the training subjects of a split, and nobody whose figures will be published."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from neuroage.analysis.tuning import Tuning, shown, write_tuning
from neuroage.cohort import Cohort, Split
from neuroage.errors import RefusedError, UsageError
from neuroage.files import write_text
from neuroage.imaging.store import Store
from neuroage.models.tasks import build_task
from neuroage.runs.recipe import Recipe
from neuroage.runs.recipe_tune import Space, applied, checked_space, default_space, value_at
from neuroage.runs.run import Run
from neuroage.training.loop import Interrupted
from neuroage.training.observer import Observer
from neuroage.training.train import check_recipe, train
from neuroage.training.tuning_split import SHARE, tuning_split

PRUNE_FROM = 1 / 3  # of the epochs: before, high rates still look worse than they end


@dataclass(frozen=True)
class Tuned:
    """What tuning found.

    Attributes:
        folder: Where everything was written.
        tuning: Table of trials, metric, importances.
        recipe: The best recipe.
        best_trial: Its number.
        best_score: On the part of the training subjects that was held back; the best of many, so no test score.
        start_score: Of the recipe as it was given; NaN where it lies outside of the space or was ended early.
    """

    folder: Path
    tuning: Tuning
    recipe: Recipe
    best_trial: int
    best_score: float
    start_score: float


def tune(
    recipe: Recipe,
    cohort: Cohort,
    split: Split,
    out: str | os.PathLike[str],
    *,
    space: Space | None = None,
    n_trials: int = 30,
    storage: str | None = None,
    name: str | None = None,
    fold: int | None = None,
    share: float = SHARE,
    pruning: bool = True,
    timeout_s: float | None = None,
    store: Store | None = None,
    observer: Observer | None = None,
) -> Tuned:
    """Search for the values of a recipe with the best headline metric.

    Only the training subjects of the split take part: a share of them is held back, and the score is theirs. Validation
    and test subjects of the split are not even read, so figures on them stay honest whatever was tried.

    The same call goes on where an earlier one stopped, until there are `n_trials` in all; several processes that make
    the same call share the trials. The first trial is the recipe as it is.

    Args:
        recipe: What is searched around.
        cohort, split, store: As in `train`.
        out: Folder of the results; each trial is a run in `trials/`, without its weights but for the best.
        space: Key → range or choices; `default_space(recipe)` when None.
        n_trials: Over all calls and processes.
        storage: A database, such as sqlite:///tune.db; `tune.db` in `out` when None.
        name: Of the study in the storage; the name of `out` when None.
        fold: Tune on the training subjects of this fold alone, for a split in which everyone is validated once.
        share: Of the training subjects that are held back.
        pruning: Whether trials that do worse than the median of others are ended early.
        timeout_s: No trial is begun after so many seconds.
        observer: Receives news while it runs.

    Returns:
        The best recipe and all trials.

    Raises:
        UsageError: Recipe, space or storage are wrong.
        InfeasibleError: Too few training subjects, or all trials failed.
        RefusedError: The study was begun with another recipe, split or space.
        Interrupted: A signal asked to stop; the same call goes on.
    """
    from neuroage.training.search import search  # needs Optuna

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "Tuning was started as several processes of one training",
            fix="Start `neuroage tune` once for each GPU, without torchrun: they share the trials.",
        )
    check_recipe(recipe)
    if n_trials < 1:
        raise UsageError(f"{n_trials} trials", expected="1 or more")
    space, folder, task = (
        checked_space(space or default_space(recipe), recipe, check_recipe),
        Path(out),
        build_task(recipe),
    )
    inner = tuning_split(split, cohort, recipe, fold=fold, share=share)
    used = cohort.select(subject_ids=[*inner.subjects("train"), *inner.subjects("validation")])
    _keep_split(inner, folder / "split.csv")
    trials = _Trials(
        recipe,
        task.headline,
        task.higher_is_better,
        used,
        inner,
        folder / "trials",
        n_trials,
        store,
        observer or Observer(),
    )
    found = search(
        trials.run,
        space,
        n_trials,
        seed=recipe.seed,
        storage=storage or f"sqlite:///{folder / 'tune.db'}",
        name=name or folder.resolve().name,
        higher_is_better=task.higher_is_better,
        start={key: value_at(recipe, key) for key in space},
        about={"recipe": recipe.digest, "split": inner.digest},
        prune_from=max(1, math.ceil(recipe.training.epochs * PRUNE_FROM)) if pruning else None,
        timeout_s=timeout_s,
        stops=(Interrupted,),
        say=trials.observer.note,
    )
    trials.lighten(keep=found.best_place, places=found.table["place"].tolist())
    tuning = Tuning(
        table=found.table.assign(folder=[f"trials/{place:03d}" for place in found.table["place"]]).drop(
            columns="place"
        ),
        keys=list(space),
        metric=task.headline,
        higher_is_better=task.higher_is_better,
        importances=found.importances,
        n_train=len(inner.subjects("train")),
        n_held_back=len(inner.subjects("validation")),
    )
    best = applied(recipe, found.best)
    best_trial = int(found.table.loc[found.table["place"] == found.best_place, "trial"].iloc[-1])
    write_text(folder / "best.yaml", _header(tuning, best_trial, found.best_score, folder) + _as_yaml(best))
    write_tuning(tuning, folder)
    first = found.table[(found.table["place"] == 0) & (found.table["state"] == "complete")]
    is_start = len(first) and all(first.iloc[0][key] == value_at(recipe, key) for key in space)
    start_score = float(first.iloc[0]["score"]) if is_start else math.nan
    return Tuned(folder, tuning, best, best_trial, found.best_score, start_score)


def _keep_split(inner: Split, path: Path) -> None:
    if path.is_file() and Split.load(path).digest != inner.digest:
        raise RefusedError(
            f"{path.parent} holds a tuning on other subjects",
            expected="the same cohort, split and recipe in every call",
            fix="Choose another --out.",
        )
    if not path.is_file():
        inner.save(path)


class _Trials:
    """The trainings of a study."""

    def __init__(
        self,
        recipe: Recipe,
        metric: str,
        higher_is_better: bool,
        cohort: Cohort,
        split: Split,
        folder: Path,
        n_trials: int,
        store: Store | None,
        observer: Observer,
    ) -> None:
        self.recipe, self.metric, self.higher_is_better = recipe, metric, higher_is_better
        self.cohort, self.split = cohort, split
        self.folder, self.n_trials, self.store, self.observer = folder, n_trials, store, observer
        self.best: tuple[float, int] | None = None  # of this process: score to minimise, place

    def run(self, attempt: Any) -> float:
        """Train one trial and give its score."""
        from neuroage.training.search import TakenOver

        said = ", ".join(f"{key} {shown(value)}" for key, value in attempt.values.items())
        self.observer.stage(f"Trial {attempt.number} of {self.n_trials}: {said}")
        run = Run(self.folder / f"{attempt.place:03d}")
        if run.folder.is_dir() and not run.exists:  # its process was killed before it had begun
            shutil.rmtree(run.folder)
        recipe = applied(self.recipe, attempt.values).updated("training.select=validation")
        reporter = _Reporter(self, attempt)
        try:
            train(recipe, self.cohort, self.split, run.folder, resume="auto", store=self.store, observer=reporter)
        except (Interrupted, TakenOver):
            raise
        except Exception as error:
            self.observer.note(f"ended in epoch {len(reporter.rows)}: {str(error) or 'others were better there'}")
            _lighten(run)
            raise
        score = self.score_of(run.history.to_dict("records"))
        self.observer.note(f"{self.metric} {score:.4g}")
        self._keep_the_best(score, attempt.place)
        return score

    def score_of(self, rows: Sequence[dict[Any, Any]]) -> float:
        """Give the score of the epoch that the recipe would keep, were these all."""
        scores = [float(row[f"validation_{self.metric}"]) for row in rows]
        sign = -1.0 if self.higher_is_better else 1.0
        chosen_by = {"last": None, "inner": "inner", "validation": "validation"}[self.recipe.training.select]
        if chosen_by is None:
            return scores[-1]
        watched = [sign * float(row[f"{chosen_by}_{self.metric}"]) for row in rows]
        watched = [math.inf if value != value else value for value in watched]
        return scores[len(watched) - 1 - watched[::-1].index(min(watched))]  # of equal ones the last, as the loop keeps

    def _keep_the_best(self, score: float, place: int) -> None:
        mine = (-score if self.higher_is_better else score, place)
        if self.best is None or mine < self.best:
            self.best, mine = mine, self.best or mine
        if mine[1] != self.best[1]:
            self.lighten(keep=self.best[1], places=[mine[1]])

    def lighten(self, keep: int, places: Sequence[int]) -> None:
        """Remove the weights of all these trials but one."""
        for place in places:
            if place != keep:
                _lighten(Run(self.folder / f"{place:03d}"))


def _lighten(run: Run) -> None:
    for path in run.folder.glob("*.safetensors"):
        path.unlink(missing_ok=True)


class _Reporter(Observer):
    """Passes on what a person wants to see of a trial, and its scores to the study."""

    def __init__(self, trials: _Trials, attempt: Any) -> None:
        self.trials, self.attempt, self.outer = trials, attempt, trials.observer
        self.rows: list[dict[Any, Any]] = []

    def preparing(self, done: int, n_scans: int) -> None:
        self.outer.preparing(done, n_scans)

    def training(self, run: Run, first_epoch: int, n_epochs: int) -> None:
        self.outer.training(run, first_epoch, n_epochs)
        for row in run.history.to_dict("records"):  # of a trial that goes on
            self._report(row)

    def step(self, epoch: int, step: int, n_steps: int) -> None:
        self.outer.step(epoch, step, n_steps)

    def epoch(self, row: dict[str, Any]) -> None:
        self.outer.epoch(row)
        self._report(row)

    def _report(self, row: dict[Any, Any]) -> None:
        self.rows.append(row)
        self.attempt.report(int(row["epoch"]), self.trials.score_of(self.rows))


def _header(tuning: Tuning, best_trial: int, score: float, folder: Path) -> str:
    n_done = int((tuning.table["state"] != "running").sum())
    lines = [
        f"Found by `neuroage tune`: trial {best_trial}, the best of {n_done}.",
        "",
        f"  neuroage train --config {folder / 'best.yaml'} --out {folder / 'run'}",
        "",
        f"{tuning.metric} {score:.4g} on {tuning.n_held_back} subjects held back from the {tuning.n_all} training",
        "subjects of the split. It is the best of many, so no test score: the command above trains on all training",
        "subjects and gives a figure on those of whom tuning knew nothing.",
        "",
        "Searched: " + ", ".join(tuning.keys),
    ]
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)


def _as_yaml(recipe: Recipe) -> str:
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
