"""Trained here, tested there: every model on the data of every hospital (the experiment of arXiv 2002.02497)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pandas as pd

from neuroage.analysis import CrossDomain, cross_domain_table, write_cross_domain
from neuroage.cohort import Cohort
from neuroage.errors import InfeasibleError, UsageError
from neuroage.imaging.duplicates import count_shared_images
from neuroage.runs.evaluation import headline_set
from neuroage.runs.run import Run
from neuroage.training.observer import Observer
from neuroage.training.predict import groups_of, predict, subjects_chosen_by, subjects_trained_on

if TYPE_CHECKING:
    from neuroage.imaging.store import Store


class HasRun(Protocol):
    """A fitted estimator."""

    @property
    def run(self) -> Run:
        """Its run."""


def cross_domain(
    models: Mapping[str, HasRun | Run | str | os.PathLike[str]],
    cohorts: Mapping[str, Cohort],
    *,
    out: str | os.PathLike[str] | None = None,
    store: Store | None = None,
    observer: Observer | None = None,
) -> CrossDomain:
    """Test every model on every cohort, label by label.

    A model's own domain is the cohort of the same name: there it is tested on the subjects that its split held out. On
    others it is tested on everyone it was not trained on. All models are scored on the same scans of a cohort. Scans
    that a model's input contract would refuse are predicted all the same, since what they cost is the question; their
    number is in the result's `meta`.

    Args:
        models: Name of the domain it was trained on → a fitted classifier, its run, or the folder of that.
        cohorts: Name of the domain → its scans, with labels under the same names. A label may be missing: its cells
            stay blank.
        out: Folder for the table as CSV, the heat map and the page; None: nothing is written.
        store: Prepared images; the user's cache folder when None.
        observer: Receives news.

    Returns:
        The train × test × label table with intervals, the drop against the own domain, prevalences, and how many
        subjects a model's training data share with another domain (they are left out of the test), and how many images
        with the scans that it is tested on, by content.

    Raises:
        UsageError: A model predicts ages, or no model or no cohort is given.
        InfeasibleError: No scan of a cohort may be tested.
    """
    observer = observer or Observer()
    if not models or not cohorts:
        raise UsageError("cross_domain needs models and cohorts", expected="a name and one of each, at least")
    runs = {name: _run_of(model) for name, model in models.items()}
    for name, run in runs.items():
        if run.target["kind"] == "age":
            raise UsageError(f"the model {name!r} predicts ages", expected="models that predict labels")
    tested = {name: _test_scans(name, cohort, runs, observer) for name, cohort in cohorts.items()}
    groups = {name: groups_of(runs[name]) if name in runs else {} for name in cohorts}
    results, shared, refused = {}, {}, {}
    for trained_on, run in runs.items():
        known = subjects_trained_on(run)
        training = run.leaves[0].cohort.select(subject_ids=sorted(known))
        for name, cohort in tested.items():
            observer.stage(f"Trained on {trained_on}, tested on {name}")
            chosen = run.recipe.select(cohort)
            answer = predict(run, chosen, store=store, force=True, observer=observer)
            # Alike for all models, whose resamples are paired.
            grouped = [groups[name].get(subject, subject) for subject in answer.raw["subject_id"]]
            results[trained_on, name] = (answer.raw.assign(set="test", group=grouped), run.target)
            shared[trained_on, name] = {
                "subjects": 0 if name == trained_on else len(known & set(cohorts[name].table["subject_id"])),
                "images": count_shared_images(training, chosen),
            }
            refused[f"{trained_on} → {name}"] = int((answer.table["verdict"] == "refuse").sum())
    chosen_at_home = [name for name in tested if name in runs and _chosen_at_home(runs[name])]
    meta = {"refused_by_contract": {pair: n for pair, n in refused.items() if n}, "chosen_at_home": chosen_at_home}
    if chosen_at_home:
        observer.note(
            f"{', '.join(chosen_at_home)}: at home the only held-out subjects are those that weights or probabilities "
            "were chosen by, so the figure there, and the drop from it, are too good."
        )
    found = cross_domain_table(results, sets=("test",), shared=shared, meta=meta)
    if out is not None:
        write_cross_domain(found, Path(out))
    return found


def _run_of(model: HasRun | Run | str | os.PathLike[str]) -> Run:
    if isinstance(model, (str, os.PathLike)):
        return Run.open(model)
    return model if isinstance(model, Run) else model.run


def _chosen_at_home(run: Run) -> bool:
    return headline_set(run) == "validation" and bool(subjects_chosen_by(run))


def _test_scans(name: str, cohort: Cohort, runs: Mapping[str, Run], observer: Observer) -> Cohort:
    """Give the scans of a domain on which every model may be tested: nobody that one was trained or selected on."""
    table = cohort.table
    forbidden: set[str] = set()
    own = runs.get(name)
    for run in runs.values():
        forbidden |= subjects_trained_on(run) | (set() if run is own else subjects_chosen_by(run))
    if own is not None:
        predictions: pd.DataFrame = own.predictions
        held_out = set(predictions.loc[predictions["set"] == headline_set(own), "subject_id"])
        table = table[table["subject_id"].isin(held_out)]
    seen = table["subject_id"].isin(forbidden)
    if seen.any():
        n_seen = table.loc[seen, "subject_id"].nunique()
        observer.note(f"{n_seen} subjects of {name} are left out: a model was trained on them.")
    table = table[~seen]
    if table.empty:
        raise InfeasibleError(
            f"No scan of {name} may be tested: every subject was trained on",
            expected="a cohort with the subjects that the model's split held out, or others",
        )
    return Cohort(table)
