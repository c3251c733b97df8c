"""Experiments: trainings that belong together: folds and repeats of a recipe, modalities against each other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from neuroage.analysis import Comparison, compare_models
from neuroage.cohort import Cohort, Split
from neuroage.errors import InfeasibleError, RefusedError, UsageError
from neuroage.files import is_main_process
from neuroage.imaging.store import Store
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run, now
from neuroage.training.devices import make_fabric
from neuroage.training.observer import Observer
from neuroage.training.scoring import write_run_pages
from neuroage.training.train import train


def train_members(
    recipe: Recipe,
    cohort: Cohort,
    split: Split,
    out: str | os.PathLike[str],
    *,
    folds: Sequence[int] = (0,),
    repeats: int = 1,
    resume: str = "auto",
    store: Store | None = None,
    observer: Observer | None = None,
) -> Run:
    """Train a recipe on several folds, each with several seeds; members that are complete already are kept.

    With one fold and one repeat this is a plain run.

    Args:
        recipe: Repeat r uses its seed + r.
        cohort, split, out, store, observer: As in `train`.
        folds: Folds of the split.
        repeats: Seeds a fold.
        resume: As in `train`, for the run as a whole; members that are complete are kept, others continued or begun.

    Returns:
        The run; with several trainings its predictions are theirs together, with columns fold and member.

    Raises:
        UsageError: The split has no such folds.
    """
    if len(folds) == 1 and repeats == 1:
        return train(recipe, cohort, split, out, fold=folds[0], resume=resume, store=store, observer=observer)
    fabric, parent = make_fabric("fp32"), Run(out)
    if fabric.is_global_zero and (not parent.exists or resume == "never"):
        Run.create_parent(out, recipe, cohort.select(modality=recipe.modality), split)
    fabric.barrier()
    if parent.about["split_digest"] != split.digest or parent.about["recipe_digest"] != recipe.digest:
        raise RefusedError(f"{out} was started with another split or recipe", fix="Choose another folder.")
    if not parent.is_parent:
        raise RefusedError(f"{out} holds a single training, not {len(folds) * repeats}", fix="Choose another folder.")
    observer = observer if observer and fabric.is_global_zero else Observer()
    members: list[Run] = []
    for fold in folds:
        for repeat in range(repeats):
            name = member_name(fold, recipe.seed + repeat)
            observer.stage(
                f"Member {len(members) + 1} of {len(folds) * repeats}: {recipe.modality}, "
                f"fold {fold}, seed {recipe.seed + repeat}"
            )
            seeded = recipe.updated(f"seed={recipe.seed + repeat}")
            members.append(
                train(
                    seeded,
                    cohort,
                    split,
                    parent.member_folder(name),
                    fold=fold,
                    member=name,
                    resume="auto",
                    store=store,
                    observer=observer,
                )
            )
    if fabric.is_global_zero:
        _gather(parent, members)
    fabric.barrier()
    return parent


def member_name(fold: int, seed: int) -> str:
    """Name the member that is trained on a fold with a seed."""
    return f"fold{fold}-seed{seed}"


def _gather(parent: Run, members: Sequence[Run]) -> None:
    parent.save_predictions(pd.concat([member.predictions for member in members], ignore_index=True))
    tables = [member.baselines for member in members]
    parent.save_baselines({name: pd.concat([table[name] for table in tables], ignore_index=True) for name in tables[0]})
    parent.update(selected_on=members[0].about["selected_on"], status="scored")
    write_run_pages(parent)
    parent.update(finished=now(), status="complete")  # last: a complete run has everything


def compare_modalities(
    recipes: dict[str, Recipe],
    cohort: Cohort,
    split: Split,
    runs_folder: str | os.PathLike[str],
    *,
    folds: Sequence[int] = (0,),
    repeats: int = 1,
    chosen_recipes: bool = False,
    store: Store | None = None,
    observer: Observer | None = None,
) -> tuple[Comparison, dict[str, Run]]:
    """Compare modalities on the subjects that have all of them; train what is not trained yet.

    Every modality is trained on the same subjects, those with all modalities, so that neither has seen more people.

    Args:
        recipes: Modality → its recipe.
        cohort: Scans of all modalities.
        split: One split for all; only subjects with every modality take part.
        runs_folder: Runs are kept there by modality; a complete one with the same split is not trained again.
        folds, repeats, store, observer: As in `train_members`.
        chosen_recipes: The recipes were asked for: a run that was trained with another one is refused, not used.

    Returns:
        The comparison and the runs behind it.

    Raises:
        InfeasibleError: Too few subjects have all modalities.
        RefusedError: A run stands where one would be trained, with another split or another recipe.
    """
    observer = observer if observer and is_main_process() else Observer()
    shared = subjects_with_all(cohort, list(recipes))
    held_out = [subject for fold in folds for subject in split.subjects("validation", fold) if subject in shared]
    if len(held_out) < 3:
        raise InfeasibleError(
            f"{len(shared)} subjects have {' and '.join(recipes)}, of whom {len(held_out)} are in the validation set",
            expected="at least 3",
            fix="Make the split from the subjects that have all modalities.",
        )
    observer.note(f"{len(shared)} subjects have {' and '.join(recipes)}; {len(held_out)} of them are held out.")
    together = cohort.select(subject_ids=sorted(shared))
    runs = {}
    for modality, recipe in recipes.items():
        folder = Path(runs_folder) / modality
        existing = Run(folder)
        same = existing.complete and existing.about["split_digest"] == split.digest
        if same and _same_members(existing, folds, repeats):
            _refuse_other_recipe(existing, recipe, chosen_recipes)
            observer.note(
                f"{folder} is trained already on this split, on {_n_training(existing)} scans: not trained again."
            )
            runs[modality] = existing
            continue
        runs[modality] = train_members(
            recipe, together, split, folder, folds=folds, repeats=repeats, store=store, observer=observer
        )
    return compare_runs(runs), runs


def _refuse_other_recipe(run: Run, recipe: Recipe, chosen: bool) -> None:
    trained = run.leaves[0].recipe.updated(f"seed={recipe.seed}")
    if chosen and trained.digest != recipe.digest:
        raise RefusedError(
            f"{run.folder} was trained with another recipe than the one given",
            fix="Choose another folder with --runs, or leave --config and --set out to compare what is trained.",
        )


def subjects_with_all(cohort: Cohort, modalities: Sequence[str]) -> set[str]:
    """Give the subjects that have a scan of every modality.

    Raises:
        UsageError: The cohort lacks a modality altogether.
    """
    for modality in modalities:
        if modality not in cohort.modalities:
            raise UsageError(f"The cohort has no {modality} scans", expected=f"one of {', '.join(cohort.modalities)}")
    groups = [set(cohort.select(modality=modality).table["subject_id"]) for modality in modalities]
    return set.intersection(*groups)


def _same_members(run: Run, folds: Sequence[int], repeats: int) -> bool:
    if len(folds) == 1 and repeats == 1:
        return not run.is_parent and run.about["fold"] == folds[0]
    found = {(member.about["fold"], member.recipe.seed) for member in run.members if member.complete}
    return run.is_parent and len(found) == len(folds) * repeats and {fold for fold, _ in found} == set(folds)


def compare_runs(runs: dict[str, Run]) -> Comparison:
    """Compare complete runs on the subjects that all of them held out.

    Args:
        runs: Name → run.

    Raises:
        UsageError: A run is not complete.
        RefusedError: The splits differ, or a run was trained on a subject that another is tested on.
    """
    for name, run in runs.items():
        if not run.complete:
            raise UsageError(f"{name}: {run.folder} is not complete", fix="Finish it with `neuroage train … --resume`.")
    _refuse_other_splits(runs)
    _refuse_training_on_test(runs)
    baselines: dict[str, Any] = {}
    for name, run in runs.items():
        for kind, table in run.baselines.items():
            baselines["mean" if kind == "mean" else f"{kind} ({name})"] = table
    selected = {run.about.get("selected_on") for run in runs.values()}
    meta = {
        "selected_on": "validation" if "validation" in selected else ", ".join(sorted(map(str, selected))),
        "runs": {
            name: {"recipe": run.about["recipe_digest"][:12], "n_training": _n_training(run)}
            for name, run in runs.items()
        },
        "split": next(iter(runs.values())).about["split_digest"][:12],
    }
    return compare_models(
        {name: run.predictions for name, run in runs.items()}, baselines, sets=("validation",), meta=meta
    )


def _n_training(run: Run) -> int:
    return int(run.leaves[0].about.get("counts", {}).get("train", 0))


def _refuse_other_splits(runs: dict[str, Run]) -> None:
    digests = {name: run.about["split_digest"] for name, run in runs.items()}
    if len(set(digests.values())) > 1:
        said = ", ".join(f"{name} {digest[:12]}" for name, digest in digests.items())
        raise RefusedError(
            f"The runs were trained on different splits ({said}), so their test subjects are not the same people",
            expected="one split for all",
            fix="Train both with the same --split, or let `neuroage compare t1 tof` train them.",
        )


def _refuse_training_on_test(runs: dict[str, Run]) -> None:
    for name, run in runs.items():
        tested_at = {
            leaf.about["fold"]: set(leaf.predictions.query("set == 'validation'")["subject_id"]) for leaf in run.leaves
        }
        for other_name, other in runs.items():
            for leaf in other.leaves:
                sets = leaf.split.sets(leaf.about["fold"])
                trained = set(sets[sets == "train"].index)
                leaked = trained & tested_at.get(leaf.about["fold"], set())
                if leaked:
                    raise RefusedError(
                        f"{other_name} was trained on {len(leaked)} of the subjects that {name} is tested on",
                        fix="Use one split for both.",
                    )
