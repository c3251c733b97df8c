"""Experiments: trainings that belong together: folds and repeats of a recipe, modalities against each other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from neuroage.analysis import Comparison, compare_models
from neuroage.cohort import Cohort, Split
from neuroage.cohort.parts import Part
from neuroage.errors import InfeasibleError, NeuroageError, RefusedError, UsageError
from neuroage.files import is_main_process
from neuroage.imaging.store import Store
from neuroage.runs.calibration import calibrate_again
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run, now
from neuroage.training.augmentation import Augmentation
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
    parts: Sequence[Part] = (),
    repeats: int = 1,
    resume: str = "auto",
    store: Store | None = None,
    augmentation: Augmentation | None = None,
    observer: Observer | None = None,
) -> Run:
    """Train a recipe on several folds or parts, each with several seeds; members that are complete already are kept.

    With one fold or part and one repeat this is a plain run. With several folds, or parts, every training subject is
    predicted by members that did not train on them; on these out-of-fold predictions the run is calibrated (from 20
    subjects on): age bias and intervals.

    Args:
        recipe: Repeat r uses its seed + r.
        cohort, split, out, store, augmentation, observer: As in `train`.
        folds: Folds of the split.
        parts: Of a single fold's training subjects (`all_parts`), each left out by one member. The validation and test
            subjects are predicted by all members.
        repeats: Seeds a fold or part.
        resume: As in `train`, for the run as a whole; members that are complete are kept, others continued or begun.

    Returns:
        The run; with several trainings its predictions are theirs together, with columns fold and member.

    Raises:
        UsageError: The split has no such folds.
    """
    left_out = held_out_by_members(folds, parts)
    n_parts = parts[0].n_parts if parts else 1
    if len(left_out) == 1 and repeats == 1:
        fold, part = left_out[0]
        name = member_name(fold, recipe.seed, part) if part else ""
        return train(
            recipe,
            cohort,
            split,
            out,
            fold=fold,
            part=part,
            member=name,
            resume=resume,
            store=store,
            augmentation=augmentation,
            observer=observer,
        )
    fabric, parent = make_fabric("fp32"), Run(out)
    is_new = not parent.exists
    if fabric.is_global_zero and (not parent.exists or resume == "never"):
        Run.create_parent(out, recipe, recipe.select(cohort), split, n_parts=n_parts)
    fabric.barrier()
    if parent.about["split_digest"] != split.digest or parent.about["recipe_digest"] != recipe.digest:
        raise RefusedError(f"{out} was started with another split or recipe", fix="Choose another folder.")
    if not parent.is_parent:
        raise RefusedError(
            f"{out} holds a single training, not {len(left_out) * repeats}", fix="Choose another folder."
        )
    if parent.about.get("n_parts", 1) != n_parts:
        raise RefusedError(
            f"{out} was started with its training subjects in {parent.about.get('n_parts', 1)} parts, not {n_parts}",
            fix="Continue with the same --folds, or choose another folder with --out.",
        )
    observer = observer if observer and fabric.is_global_zero else Observer()
    members: list[Run] = []
    try:
        for fold, part in left_out:
            for repeat in range(repeats):
                name = member_name(fold, recipe.seed + repeat, part)
                without = f"without part {part.index + 1} of {n_parts}" if part else f"fold {fold}"
                observer.stage(
                    f"Member {len(members) + 1} of {len(left_out) * repeats}: {recipe.modality}, "
                    f"{without}, seed {recipe.seed + repeat}"
                )
                seeded = recipe.updated(f"seed={recipe.seed + repeat}")
                members.append(
                    train(
                        seeded,
                        cohort,
                        split,
                        parent.member_folder(name),
                        fold=fold,
                        part=part,
                        member=name,
                        resume="auto",
                        store=store,
                        augmentation=augmentation,
                        observer=observer,
                    )
                )
    except NeuroageError:
        if is_new and fabric.is_global_zero:
            parent.discard()  # unless a member has learnt something
        raise
    if fabric.is_global_zero:
        _gather(parent, members, observer, has_out_of_fold=len(left_out) > 1)
    fabric.barrier()
    return parent


def held_out_by_members(folds: Sequence[int], parts: Sequence[Part]) -> list[tuple[int, Part | None]]:
    """Give what the members of a run leave out: a fold each, or one part each of a single fold's training subjects.

    Raises:
        UsageError: Several folds and parts at once.
    """
    if not parts:
        return [(fold, None) for fold in folds]
    if len(folds) > 1:
        raise UsageError(f"{len(folds)} folds and {len(parts)} parts", expected="several folds, or parts of one fold")
    return [(folds[0], part) for part in parts]


def member_name(fold: int, seed: int, part: Part | None = None) -> str:
    """Name the member that is trained on a fold, or without a part, with a seed."""
    return f"part{part.index}-seed{seed}" if part else f"fold{fold}-seed{seed}"


def _gather(parent: Run, members: Sequence[Run], observer: Observer, *, has_out_of_fold: bool) -> None:
    parent.save_predictions(pd.concat([member.predictions for member in members], ignore_index=True))
    tables = [member.baselines for member in members]
    joined = {name: pd.concat([table[name] for table in tables], ignore_index=True) for name in tables[0]}
    if "majority" in joined:  # of folds, constants that differ would rank the scans of one above those of another
        constant = [str(name) for name in joined["majority"] if str(name).startswith("probability_")]
        joined["majority"][constant] = joined["majority"][constant].mean().to_numpy()
    parent.save_baselines(joined)
    _tell_missing_labels(parent, members, observer)
    parent.update(selected_on=members[0].about["selected_on"], status="scored")
    if has_out_of_fold and parent.target["kind"] == "age":  # labels are calibrated on request, on the validation set
        _calibrate(parent, observer)
    write_run_pages(parent)
    parent.update(finished=now(), status="complete")  # last: a complete run has everything


def _tell_missing_labels(parent: Run, members: Sequence[Run], observer: Observer) -> None:
    learnt = {label for member in members for label in member.target.get("labels", ())}
    missing = sorted(learnt - set(parent.target.get("labels", ())))
    if missing:
        observer.note(f"Left out of the figures, since not every member had scans to learn it: {', '.join(missing)}.")


def _calibrate(parent: Run, observer: Observer) -> None:
    try:
        observer.note(f"Calibrated: {calibrate_again(parent).words}.")
    except NeuroageError as error:  # such as too few subjects: the run is good without
        parent.calibration_path.unlink(missing_ok=True)
        observer.note(f"Not calibrated. {error}")


def compare_modalities(
    recipes: dict[str, Recipe],
    cohort: Cohort,
    split: Split,
    runs_folder: str | os.PathLike[str],
    *,
    folds: Sequence[int] = (0,),
    parts: Sequence[Part] = (),
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
        folds, parts, repeats, store, observer: As in `train_members`.
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
        if same and _same_members(existing, held_out_by_members(folds, parts), repeats):
            _refuse_other_recipe(existing, recipe, chosen_recipes)
            observer.note(
                f"{folder} is trained already on this split, on {_n_training(existing)} scans: not trained again."
            )
            runs[modality] = existing
            continue
        runs[modality] = train_members(
            recipe, together, split, folder, folds=folds, parts=parts, repeats=repeats, store=store, observer=observer
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


def _same_members(run: Run, left_out: Sequence[tuple[int, Part | None]], repeats: int) -> bool:
    if len(left_out) == 1 and repeats == 1:
        return not run.is_parent and (run.about["fold"], run.part) == left_out[0]
    found = {(member.about["fold"], member.part, member.recipe.seed) for member in run.members if member.complete}
    return (
        run.is_parent
        and len(found) == len(left_out) * repeats
        and {(fold, part) for fold, part, _ in found} == set(left_out)
    )


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
