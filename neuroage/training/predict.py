"""Ask a run: check and predict scans that it has not seen, with the baselines beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
from lightning_fabric import Fabric

from neuroage.cohort import Cohort
from neuroage.errors import InfeasibleError, RefusedError
from neuroage.imaging.batches import VolumeSet
from neuroage.imaging.duplicates import count_shared_images
from neuroage.imaging.preparation import listed, prepare_scans
from neuroage.imaging.store import Store, StoredVolume, steps_version
from neuroage.models.network import Network
from neuroage.models.tasks import Task, build_task
from neuroage.runs.calibration import apply_calibration
from neuroage.runs.evaluation import AnyEvaluation, evaluate_predictions
from neuroage.runs.label_calibration import apply_label_calibration
from neuroage.runs.predictions import average_members
from neuroage.runs.run import Run
from neuroage.training.baselines import baselines_for, blend
from neuroage.training.check import Finding, find_concerns
from neuroage.training.inference import complete_leaves, load_network, run_network
from neuroage.training.observer import Observer
from neuroage.training.plan import Plan
from neuroage.training.scoring import predictions_table
from neuroage.training.template import preparation_for_raw

MOST_COMPARED = 5000  # pictures whose contents are compared before an evaluation: some 20 seconds
NEAR_YEARS = 5.0  # to each side: how far the nearest training subjects of a prediction may be and still say much


@dataclass
class Answer:
    """Predictions of a run.

    Attributes:
        table: One row a scan: scan_id, subject_id; of ages: age (NaN where unknown), predicted_age (NaN where refused)
            and gap; of labels: `target_…` where known and `probability_…`; and what `add_findings` adds.
        raw: The table before the run's calibration, which evaluations apply themselves.
        baselines: The same scans predicted by the baselines: name → table.
        failures: scan_id → why it could not be read.
    """

    table: pd.DataFrame
    raw: pd.DataFrame
    baselines: dict[str, pd.DataFrame] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def predict(
    run: Run,
    cohort: Cohort,
    *,
    store: Store | None = None,
    prepare: Literal["recipe", "auto"] = "recipe",
    max_failed_share: float = 0.1,
    force: bool = False,
    observer: Observer | None = None,
) -> Answer:
    """Check every scan of a cohort against the run's input contract and predict it; members are averaged.

    A scan whose prediction would be meaningless (verdict `refuse`) stays in the table without a prediction.

    Args:
        run: A complete run.
        cohort: Scans of the run's modality; ages and labels may be missing.
        store: Prepared volumes; the user's cache folder when None.
        prepare: `recipe` prepares scans as the training scans were; `auto` takes raw scans, in any pose and with their
            skulls, and first brings them to lie and look like the training scans, see `preparation_for_raw`.
        max_failed_share: Share of scans that may fail to be read.
        force: Predict refused scans too; their verdict and concerns stay.
        observer: Receives news.

    Raises:
        UsageError: The run is not complete.
        DataError: Too many scans cannot be read.
        RefusedError: Every scan is refused.
    """
    observer = observer or Observer()
    leaves = complete_leaves(run)
    if run.is_parent and not run.complete:
        observer.note(f"{run.folder} is not finished: {len(leaves)} of its members predict, the others are left out.")
    recipe = leaves[0].recipe
    trained, now = leaves[0].about.get("steps_version", "an older one"), steps_version(recipe.prepare)
    if trained != now:
        observer.note(
            f"The steps that prepare scans have changed since {run.folder} was trained (version {trained}, now {now}): "
            "predictions may be off. Train it again."
        )
    store = store or Store()
    steps = preparation_for_raw(leaves[0], store) if prepare == "auto" else recipe.prepare
    observer.stage(f"Preparing {len(cohort)} scans")
    prepared = prepare_scans(
        cohort.scans(), steps, store, max_failed_share=max_failed_share, progress=observer.preparing
    )
    everyone = cohort.table.set_index("scan_id", drop=False).loc[list(prepared.volumes)].assign(set="new")
    everyone = everyone.drop(columns="group", errors="ignore")  # the split's groups alone are meant by that name
    if groups := groups_of(run):
        everyone["group"] = [groups.get(subject, subject) for subject in everyone["subject_id"]]
    observer.stage("Checking the scans against those that the run was trained on")
    first = load_network(leaves[0])
    found = find_concerns(leaves[0], *first[:2], list(prepared.volumes.values()), raw=steps != recipe.prepare)
    findings = dict(zip(prepared.volumes, found, strict=True))
    rows = everyone if force else _refuse(everyone, findings, observer)
    trained_on = subjects_trained_on(run)
    known = everyone["subject_id"].isin(trained_on)
    if known.any():
        observer.note(
            f"The run was trained on {everyone.loc[known, 'subject_id'].nunique()} of these "
            f"{everyone['subject_id'].nunique()} subjects: their errors and intervals say nothing about new people."
        )
    observer.stage(f"Predicting with {len(leaves)} network{'s' * (len(leaves) > 1)}")
    volumes = [prepared.volumes[scan_id] for scan_id in rows.index]
    tables = []
    baselines: dict[str, list[pd.DataFrame]] = {}
    for number, leaf in enumerate(leaves):
        table = predict_volumes(leaf, rows, volumes, first if number == 0 else None)
        beside = baselines_for(leaf.target).load(leaf).tables(table, volumes)
        for name, baseline in beside.items():
            baselines.setdefault(name, []).append(baseline)
        tables.append(blend(table, [*beside.values()][-1], leaf.recipe.predict.ridge_share))
    table = average_members(tables)
    raw = add_findings(table, everyone, findings, run, trained_on)
    apply = apply_calibration if run.target["kind"] == "age" else apply_label_calibration
    table = apply(raw, run)
    return Answer(table, raw, {name: average_members(parts) for name, parts in baselines.items()}, prepared.failures)


def _refuse(rows: pd.DataFrame, findings: dict[str, Finding], observer: Observer) -> pd.DataFrame:
    """Give the scans whose prediction means something; say which are refused."""
    refused = [scan_id for scan_id in rows.index if findings[scan_id].verdict == "refuse"]
    reasons = [f"{scan_id}: {next(c for c in findings[scan_id].concerns if c.refuse)}" for scan_id in refused]
    if len(refused) == len(rows):
        raise RefusedError(
            f"Refused: {'the scan' if len(rows) == 1 else f'all {len(rows)} scans'}\n" + listed(reasons),
            expected="scans like those that the run was trained on",
            fix="Mend the scans; --force (force=True) predicts them all the same.",
        )
    if refused:
        observer.note(f"{len(refused)} of {len(rows)} scans are refused, and not predicted:\n" + listed(reasons))
    return rows.drop(index=refused)


def predict_volumes(
    run: Run,
    rows: pd.DataFrame,
    volumes: Sequence[StoredVolume],
    loaded: tuple[Fabric, Network, Task] | None = None,
) -> pd.DataFrame:
    """Predict prepared scans with the network of one training, without ridge.

    Args:
        run: A single training.
        rows: One row a scan: scan_id, subject_id, set, and targets where they are known.
        volumes: Prepared with the run's recipe, in the order of the rows.
        loaded: What `load_network` gave, where it is at hand.
    """
    recipe, about = run.recipe, run.about
    fabric, network, task = loaded or load_network(run)
    outputs = run_network(
        fabric,
        network,
        VolumeSet(list(volumes), fabric.device),
        np.arange(len(rows)),
        Plan(**about["plan"]).scans_at_once,
        flips=recipe.predict.flips,
    )
    return predictions_table(rows, task, outputs, fold=about["fold"], member=about["member"])


def add_findings(
    table: pd.DataFrame, everyone: pd.DataFrame, findings: dict[str, Finding], run: Run, trained_on: set[str]
) -> pd.DataFrame:
    """Add what the check found, with the refused scans in their places.

    Args:
        table: Predictions of the scans that were not refused.
        everyone: All scans that could be read, indexed by scan_id.
        findings: scan_id → what was found.
        run: Whose training ages are meant.
        trained_on: Subjects that it has learnt from.

    Returns:
        One row for each of `everyone`, with `verdict`, `concerns` (words), `far_from_training` (distance to the nearest
        training scans in the network's features, 1 is usual), `trained_on` (the run has learnt from this subject) and,
        for ages, what `place_among_ages` adds.
    """
    missing = everyone.loc[~everyone.index.isin(table["scan_id"])].reset_index(drop=True)
    kept = [column for column in table.columns if column in missing.columns]
    table = pd.concat([table, missing[kept]], ignore_index=True) if len(missing) else table
    table = table.set_index("scan_id", drop=False).loc[list(everyone.index)].reset_index(drop=True)
    found = [findings[scan_id] for scan_id in table["scan_id"]]
    table = table.assign(
        verdict=[finding.verdict for finding in found],
        concerns=["; ".join(map(str, finding.concerns)) for finding in found],
        far_from_training=[finding.measures.get("features", np.nan) for finding in found],
        trained_on=table["subject_id"].isin(trained_on),
    )
    return place_among_ages(table, run, trained_on) if run.target["kind"] == "age" else table


def place_among_ages(table: pd.DataFrame, run: Run, trained_on: set[str]) -> pd.DataFrame:
    """Say where predicted ages lie among the training ages, and warn of those outside of them.

    Args:
        table: Predictions with `predicted_age`, `verdict` and `concerns`.
        run, trained_on: As in `add_findings`.

    Returns:
        The table with `gap`, `outside_ages` (the prediction lies outside of the training ages) and `n_training_near`
        (training subjects within 5 years of it).
    """
    youngest, _, oldest = complete_leaves(run)[0].contract.age_years
    predicted, ages = table["predicted_age"], training_ages(run, trained_on)
    outside = predicted.notna() & ~predicted.between(youngest, oldest)
    said = f"predicted age outside the training ages ({youngest:.0f} to {oldest:.0f} years)"
    words = ["; ".join(filter(None, [c, said * bool(o)])) for c, o in zip(table["concerns"], outside, strict=True)]
    return table.assign(
        gap=predicted - table["age"],
        verdict=table["verdict"].mask((table["verdict"] == "ok") & outside, "warn"),
        concerns=words,
        outside_ages=outside,
        n_training_near=[int((np.abs(ages - age) <= NEAR_YEARS).sum()) if age == age else 0 for age in predicted],
    )


def evaluate_on(
    run: Run, cohort: Cohort, *, store: Store | None = None, observer: Observer | None = None
) -> tuple[AnyEvaluation, Answer]:
    """Score a run on a cohort with ages or labels, leaving out every subject that it was trained on.

    Args:
        run: A complete run.
        cohort: Scans of the run's modality; those without age or label are left out.
        store, observer: As in `predict`.

    Returns:
        The evaluation, with the baselines beside the network, and the predictions behind it.

    Raises:
        RefusedError: The run was trained on every subject of the cohort.
        InfeasibleError: No scan has an age, or a label.
    """
    observer = observer or Observer()
    learnt_from = subjects_trained_on(run) | subjects_chosen_by(run)
    table = cohort.table[task_of(run).known(cohort.table)]
    if table.empty:
        raise InfeasibleError(
            "No scan of this cohort has an age"
            if run.target["kind"] == "age"
            else "No scan of this cohort has a label",
            fix="`neuroage predict` needs none.",
        )
    seen = table["subject_id"].isin(learnt_from)
    if seen.all():
        raise RefusedError(
            f"{run.folder} was trained on, or chosen by, all {table['subject_id'].nunique()} subjects of this cohort",
            fix="Evaluate on subjects that it has not seen; people of different studies need different subject ids.",
        )
    if seen.any():
        n_seen = table.loc[seen, "subject_id"].nunique()
        observer.note(
            f"{n_seen} subjects were left out: the run was trained on them, or chosen by them. (They are told by "
            "subject_id: people of different studies need different ones.)"
        )
    chosen = cohort.select(scan_ids=table.loc[~seen, "scan_id"].tolist())
    _tell_copies(run, learnt_from, chosen, observer)
    answer = predict(run, chosen, store=store, observer=observer)
    answered = [name for name in answer.raw.columns if str(name).startswith(("predicted_age", "probability_"))]
    scored = answer.raw[answer.raw[answered[0]].notna()]  # refused scans have no answer
    return evaluate_predictions(run, scored, answer.baselines, ("new",)), answer


def _tell_copies(run: Run, learnt_from: set[str], chosen: Cohort, observer: Observer) -> None:
    """Warn of pictures that the run was trained on and that come again under other ids."""
    training = run.leaves[0].cohort.select(subject_ids=sorted(learnt_from))
    if run.recipe.prepare.kind != "picture" or max(len(training), len(chosen)) > MOST_COMPARED:
        return
    n_copies = count_shared_images(training, chosen)
    if n_copies:
        observer.note(
            f"{n_copies} of these {len(chosen)} images are among those that the run was trained on, or chosen by, "
            "under other ids: its figures here are too good. Leave them out."
        )


def task_of(run: Run) -> Task:
    """Give the task of a run, with what it learnt from the training scans."""
    leaf = complete_leaves(run)[0]
    task = build_task(leaf.recipe)
    task.restore(leaf.about["task"])
    return task


def subjects_trained_on(run: Run) -> set[str]:
    """Give every subject on whom any member of the run was trained, or what its backbone was taken from."""
    subjects: set[str] = set()
    for leaf in run.leaves:
        about = leaf.about
        sets = leaf.split.sets(about["fold"])
        subjects |= set(sets[sets == "train"].index) & set(leaf.cohort.table["subject_id"])
        subjects |= set(about.get("init_from", {}).get("trained_on", ()))
    return subjects


def subjects_chosen_by(run: Run) -> set[str]:
    """Give every subject on whom weights were selected, or probabilities calibrated; none where neither was done."""
    about = run.about
    if "validation" not in (about.get("selected_on"), about.get("calibrated_on")):
        return set()
    predictions = run.predictions
    return set(predictions.loc[predictions["set"] == "validation", "subject_id"])


def groups_of(run: Run) -> dict[str, str]:
    """Give the group of every subject of the run's splits that have any: what is one observation in every interval."""
    tables = [leaf.split.table for leaf in run.leaves]
    return {s: g for t in tables if "group" in t for s, g in zip(t["subject_id"], t["group"], strict=True)}


def training_ages(run: Run, trained_on: set[str]) -> np.ndarray:
    """Give the age of every subject on whom any member was trained, at the first scan, in years."""
    table = run.leaves[0].cohort.table
    chosen = table[table["subject_id"].isin(trained_on)]
    return chosen.groupby("subject_id")["age"].min().dropna().to_numpy(dtype=float)
