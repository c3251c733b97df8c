"""Train one recipe on one split: prepare → learn → predict → score. What it leaves is a run."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
from lightning_fabric import Fabric

from neuroage.cohort import Cohort, Scan, Split, stratified_age_split
from neuroage.cohort.grouped import grouped_split
from neuroage.cohort.parts import Part, deal_parts
from neuroage.errors import InfeasibleError, NeuroageError, RefusedError, UsageError
from neuroage.files import is_main_process
from neuroage.imaging.preparation import PreparedCohort, listed, prepare_scans
from neuroage.imaging.store import Store
from neuroage.models.backbones import ready_weights
from neuroage.models.freezing import check_finetune
from neuroage.models.network import check_backbone
from neuroage.models.tasks import Task, build_task, check_task
from neuroage.runs.recipe import Preparation, Recipe, recipe_differences
from neuroage.runs.run import Run
from neuroage.runs.seeds import child_seed
from neuroage.training.augmentation import Augmentation, build_augmentation, check_augment
from neuroage.training.devices import make_fabric
from neuroage.training.features import check_features
from neuroage.training.initial import check_parent
from neuroage.training.job import SCORED, Job
from neuroage.training.learn import learn
from neuroage.training.observer import Observer
from neuroage.training.scoring import score

MIN_TRAINING_SCANS = 8


def check_recipe(recipe: Recipe) -> None:
    """Check everything that a recipe names, before anything is computed.

    Raises:
        UsageError: One report of all problems with backbone, task and augmentation, with lines.
    """
    recipe.complain([*check_backbone(recipe), *check_task(recipe), *check_augment(recipe), *check_features(recipe)])
    recipe.complain(check_finetune(recipe))


def train(
    recipe: Recipe,
    cohort: Cohort,
    split: Split,
    out: str | os.PathLike[str],
    *,
    fold: int = 0,
    part: Part | None = None,
    member: str = "",
    resume: str = "never",
    store: Store | None = None,
    augmentation: Augmentation | None = None,
    max_failed_share: float = 0.1,
    observer: Observer | None = None,
) -> Run:
    """Train a recipe on a split and score it on the held-out subjects.

    The validation set is scored once, at the end, and never used to choose, unless the recipe says `select:
        validation`.

    Args:
        recipe: The whole configuration.
        cohort: Scans; those of the recipe's modality, with a target and in the split, are used.
        split: Who is in which set.
        out: Folder of the run.
        fold: Which fold of the split is the validation set.
        part: Leaves out one of K parts of the training subjects, and predicts it as set `out_of_fold`.
        member: Name among the members of an ensemble.
        resume: "never" starts anew and refuses a used folder; "required" continues what is there; "auto" continues or
            starts.
        store: Prepared volumes; the user's cache folder when None.
        augmentation: Used instead of the recipe's, such as a `TorchIOPipeline` around anyone's `tio.Compose`.
        max_failed_share: Share of scans that may fail to be prepared.
        observer: Receives news while it runs.

    Returns:
        The complete run.

    Raises:
        UsageError: Recipe, fold or folder are wrong.
        InfeasibleError: Too few scans to train or to score.
        DataError: Scans cannot be prepared, or the training diverged.
        Interrupted: A signal asked to stop; the state is saved.
    """
    check_recipe(recipe)
    observer = observer if observer and is_main_process() else Observer()
    if not 0 <= fold < max(split.n_folds, 1):
        raise UsageError(f"fold {fold}", expected=f"0 to {max(split.n_folds, 1) - 1}, the folds of this split")
    chosen = recipe.select(cohort)
    task = build_task(recipe)
    table = without_part(scans_in_sets(chosen, split, fold, task), cohort, split, part)
    _refuse_too_few(table, recipe)  # before anything is written
    if not Run(out).exists:  # what is continued has taken over what it needed
        check_parent(recipe, table.loc[table["set"] != "train", "subject_id"].tolist(), fold, part)
        if recipe.finetune.init_from is None:
            ready_weights(recipe.backbone.name, recipe.backbone.options, observer.note)
    fabric, is_new = make_fabric("fp32"), not Run(out).exists
    if fabric.is_global_zero:
        _open_or_create(recipe, chosen, split, Path(out), fold, part, member, resume)
    fabric.barrier()
    run = Run.open(out)
    if run.complete:
        return run
    try:
        observer.stage(f"Preparing {len(table)} scans")
        scans = chosen.select(scan_ids=list(table.index)).scans()
        prepared = _prepare(fabric, scans, recipe.prepare, store or Store(), max_failed_share, observer)
        table = with_inner_set(table[table.index.isin(prepared.volumes)], recipe, task)
        _refuse_too_few(table, recipe)
        job = Job(recipe, task, table, prepared, run, augmentation or build_augmentation(recipe), observer)
        fabric, kept = learn(job)
    except NeuroageError:
        if is_new and fabric.is_global_zero:
            run.discard()  # unless it has learnt something
        raise
    score(job, fabric, kept)
    fabric.barrier()
    return run


def _prepare(
    fabric: Fabric, scans: list[Scan], recipe: Preparation, store: Store, max_failed_share: float, observer: Observer
) -> PreparedCohort:
    """Prepare the scans, each process its share of them."""
    if fabric.world_size > 1:
        mine = scans[fabric.global_rank :: fabric.world_size]
        prepare_scans(mine, recipe, store, max_failed_share=1.0, progress=observer.preparing)
        fabric.barrier()
    prepared = prepare_scans(scans, recipe, store, max_failed_share=max_failed_share, progress=observer.preparing)
    if prepared.failures:
        observer.note(f"{len(prepared.failures)} scans were left out:\n" + listed(prepared.failures.values()))
    return prepared


def _open_or_create(
    recipe: Recipe, cohort: Cohort, split: Split, out: Path, fold: int, part: Part | None, member: str, resume: str
) -> None:
    run = Run(out)
    if resume == "never" or (resume == "auto" and not run.exists):
        Run.create(out, recipe, cohort, split, fold=fold, member=member, part=part)
        return
    run = Run.open(out)
    about = run.about
    for name, known, value in (
        ("recipe", about.get("recipe_digest"), recipe.digest),
        ("split", about.get("split_digest"), split.digest),
        ("fold", about.get("fold"), fold),
        ("part of the training subjects left out", run.part, part),
    ):
        if known != value:
            changed = recipe_differences({"then": run.recipe, "now": recipe})["now"] if name == "recipe" else {}
            raise RefusedError(
                f"{out} was started with another {name}" + (f" (other: {', '.join(changed)})" if changed else ""),
                fix=f"Resume with the same {name}, or train anew with another --out.",
            )


def scans_in_sets(cohort: Cohort, split: Split, fold: int, task: Task) -> pd.DataFrame:
    """Give the cohort's table, indexed by scan_id, with the set of each scan that has one and a target.

    Raises:
        InfeasibleError: No scan of the cohort is in the split.
    """
    table = cohort.table.set_index("scan_id", drop=False)
    sets = split.sets(fold)
    table = table.drop(columns="group", errors="ignore").assign(set=table["subject_id"].map(sets))
    if "group" in split.table.columns:  # what must not be torn apart is one observation in every interval, too
        table["group"] = table["subject_id"].map(split.table.set_index("subject_id")["group"])
    table = table[table["set"].isin(["train", *SCORED])]
    table = table[task.known(table)]
    if table.empty:
        raise InfeasibleError(
            "No subject of the split has a scan of this modality with a known target"
            + (f" ({', '.join(task.target['labels'])})" if task.target.get("labels") else ""),
            fix="Make the split from the same cohort, and look whether the cohort holds that target at all.",
        )
    return table


def without_part(table: pd.DataFrame, cohort: Cohort, split: Split, part: Part | None) -> pd.DataFrame:
    """Give the training scans of one part the set `out_of_fold`, which is predicted and never trained on."""
    if part is None:
        return table
    part_of = deal_parts(split, cohort, part.n_parts)
    left_out = (table["set"] == "train") & (table["subject_id"].map(part_of) == part.index)
    if not left_out.any():
        raise InfeasibleError(
            f"No scan of this modality is in part {part.index + 1} of {part.n_parts} of the training subjects",
            fix="Ask for fewer parts with --folds.",
        )
    return table.assign(set=table["set"].mask(left_out, "out_of_fold"))


def with_inner_set(table: pd.DataFrame, recipe: Recipe, task: Task) -> pd.DataFrame:
    """Hold out the recipe's `inner_fraction` of the training subjects, stratified by age or label, as set `inner`."""
    fraction = recipe.training.inner_fraction
    if not fraction:
        return table
    train = table[table["set"] == "train"].reset_index(drop=True)
    held_out = hold_out(train, fraction, task, child_seed(recipe.seed, "inner") % 2**31)
    return table.assign(set=table["set"].mask((table["set"] == "train") & table["subject_id"].isin(held_out), "inner"))


def hold_out(table: pd.DataFrame, share: float, task: Task, seed: int) -> set[str]:
    """Choose a share of the subjects of a table, with the same mix of ages or labels as the others.

    Args:
        table: One row a scan.
        share: Of the subjects, above 0 and below 1.
        task: Says along what is stratified.
        seed: Same seed, same subjects.
    """
    strata = task.strata(table)
    if "age" in strata.columns:
        group = "group" if "group" in table.columns else None
        return set(stratified_age_split(table, n_validation=share, group=group, seed=seed).subjects("validation"))
    others = [name for name in table.columns if name != "label" and not str(name).startswith("label_")]
    whole = [name for name in ("subject_id", "duplicate_group", "group") if name in table.columns]
    cohort = Cohort(pd.concat([table[others], strata], axis=1))
    made = grouped_split(cohort, validation=share, test=0, groups=whole, seed=seed)
    return set(made.subjects("validation"))


def _refuse_too_few(table: pd.DataFrame, recipe: Recipe) -> None:
    counts = table["set"].value_counts()
    if counts.get("train", 0) < MIN_TRAINING_SCANS:
        raise InfeasibleError(
            f"Only {counts.get('train', 0)} {recipe.modality} scans to train on",
            expected=f"at least {MIN_TRAINING_SCANS}",
            fix="Make a split that holds out fewer subjects, or index more scans.",
        )
    if counts.get("validation", 0) == 0:
        raise InfeasibleError(
            f"No {recipe.modality} scan in the validation set", fix="Make the split from a cohort with this modality."
        )
