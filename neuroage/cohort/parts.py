"""Parts of the training subjects, each left out of training in its turn, so that everyone is predicted unseen once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from neuroage.cohort.cohort import Cohort
from neuroage.cohort.dealing import class_matrix, columns_to_stratify, deal_units
from neuroage.cohort.labels import has_labels
from neuroage.cohort.split import Split
from neuroage.cohort.subject_pool import gather_subjects
from neuroage.errors import InfeasibleError

_PARTS_STREAM = 0x9A27  # names this use of the seed, so that other uses of the same seed stay independent


@dataclass(frozen=True)
class Part:
    """One of the parts: `index` from 0, of `n_parts`."""

    index: int
    n_parts: int


def all_parts(n_parts: int) -> list[Part]:
    """Give every part of `n_parts`; none for 1, where nobody is left out."""
    return [Part(index, n_parts) for index in range(n_parts)] if n_parts > 1 else []


def deal_parts(split: Split, cohort: Cohort, n_parts: int) -> dict[str, int]:
    """Deal the training subjects of a split into parts with the same mix of ages, or of labels.

    Labels count where the split has a column `group` or nobody has an age; else neighbours in age go to different
    parts. Groups that the split kept together (families, like pictures) stay together.

    Invariants: every training subject with an age (or label) is in exactly one part; the same split gives the same
    parts, whatever the seed of the weights.

    Args:
        split: Whose training subjects are dealt; its own ages, digest and groups are used.
        cohort: Gives labels, ages that the split does not hold, and the group column.
        n_parts: 2 or more.

    Returns:
        Subject id to the number of its part, 0 to `n_parts` − 1.

    Raises:
        InfeasibleError: Fewer groups of subjects than parts.
    """
    if "group" in split.table.columns or _has_labels_alone(split, cohort):
        return _deal_labelled(split, cohort, n_parts)
    known = cohort.subjects().set_index("subject_id")
    table = split.table.loc[split.table["set"] == "train", ["subject_id", "age"]]
    table = table.assign(age=table["age"].fillna(table["subject_id"].map(known["age"])))
    group = (split.meta.get("parameters") or {}).get("group")
    if group and group in known.columns:
        table[group] = table["subject_id"].map(known[group])
    else:
        group = None
    pool = gather_subjects(table, group=group)
    units = pd.DataFrame({"unit": pool.groups, "age": pool.ages}).groupby("unit")["age"].agg(["mean", "size"])
    if len(units) < n_parts:
        raise InfeasibleError(
            f"{len(units)} training subjects (or groups of them) for {n_parts} parts", expected="at least one each"
        )
    units = units.sort_values("mean", kind="stable")
    random = np.random.default_rng([int(split.digest[:12], 16), _PARTS_STREAM])
    filled, part_of = np.zeros(n_parts), {}
    for start in range(0, len(units), n_parts):
        neighbours = units.iloc[start : start + n_parts].sort_values("size", ascending=False, kind="stable")
        emptiest = np.lexsort((random.random(n_parts), filled))  # the largest group to the emptiest part
        for part, (unit, size) in zip(emptiest, neighbours["size"].items(), strict=False):
            part_of[unit] = int(part)
            filled[part] += size
    return {str(subject): part_of[unit] for subject, unit in zip(pool.subjects["subject_id"], pool.groups, strict=True)}


def _has_labels_alone(split: Split, cohort: Cohort) -> bool:
    return not split.table["age"].notna().any() and not cohort.table["age"].notna().any() and has_labels(cohort.table)


def _deal_labelled(split: Split, cohort: Cohort, n_parts: int) -> dict[str, int]:
    trained = split.table.loc[split.table["set"] == "train", "subject_id"]
    table = cohort.select(subject_ids=trained).table.sort_values("scan_id", kind="stable")
    columns = (split.meta.get("parameters") or {}).get("stratify")
    if not columns or not set(columns) <= set(table.columns):
        columns = columns_to_stratify(table)
    unit, units = pd.factorize(table["subject_id"].map(split.groups()), sort=True)
    if len(units) < n_parts:
        raise InfeasibleError(
            f"{len(units)} groups of training subjects for {n_parts} parts", expected="at least one each"
        )
    classes, _ = class_matrix(table, columns)
    counts = np.zeros((len(units), classes.shape[1]), dtype=np.int64)
    np.add.at(counts, unit, classes)
    random = np.random.default_rng([int(split.digest[:12], 16), _PARTS_STREAM])
    owner = deal_units(counts, np.bincount(unit), np.full(n_parts, 1 / n_parts), random)
    part = owner[unit]
    return {str(subject): int(k) for subject, k in zip(table["subject_id"], part, strict=True)}
