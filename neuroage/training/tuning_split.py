"""Whom tuning may look at: the training subjects of a split, divided again."""

from __future__ import annotations

import pandas as pd

from neuroage.cohort import Cohort, Split
from neuroage.errors import InfeasibleError
from neuroage.models.tasks import build_task
from neuroage.runs.recipe import Recipe
from neuroage.runs.seeds import child_seed
from neuroage.training.train import hold_out

SHARE = 0.2  # of the training subjects are held back for the score


def tuning_split(
    split: Split, cohort: Cohort, recipe: Recipe, *, fold: int | None = None, share: float = SHARE
) -> Split:
    """Divide the training subjects of a split again; everybody else is left out.

    Invariants: validation and test subjects of the split (of all its folds, or of `fold`) are left out; groups that the
    split kept together stay together; the recipe's seed alone decides who is held back.

    Args:
        split: Whose training subjects are divided.
        cohort: Gives ages or labels.
        recipe: Its scans, task and seed.
        fold: Take the training subjects of this fold; None: those who are in no validation set.
        share: Of the training subjects (or groups of them) that become validation, stratified by age or label.

    Raises:
        InfeasibleError: Nobody is in no validation set.
    """
    sets = split.table.set_index("subject_id")["set"] if fold is None else split.sets(fold)
    chosen = recipe.select(cohort).table
    table = chosen[chosen["subject_id"].map(sets) == "train"].reset_index(drop=True)
    task = build_task(recipe)
    table = table[task.known(table)].reset_index(drop=True)
    if table.empty:
        raise InfeasibleError(
            "No subject of the split is only trained on",
            fix="Where everyone is validated in some fold, tune on the training subjects of one, with --fold.",
        )
    task.fit(table)
    table["_unit"] = _units(table, split)
    units = table.drop(columns="group", errors="ignore").assign(subject_id=table["_unit"])
    held_back = hold_out(units, share, task, child_seed(recipe.seed, "tuning split") % 2**31)
    validation = set(table.loc[table["_unit"].isin(held_back), "subject_id"])
    new = split.table["subject_id"].map(
        {subject: "validation" if subject in validation else "train" for subject in table["subject_id"]}
    )
    others = "in the split: " + split.table["subject_id"].map(sets).astype(str)
    made = split.table.assign(
        set=new.fillna("left_out"),
        fold=new.eq("validation").astype(int) - 1,
        reason=others.where(new.isna(), ""),
    )
    parameters = {**(split.meta.get("parameters") or {}), "share": share, "fold": fold}
    return Split(made, {"method": "tuning", "parameters": parameters, "seed": recipe.seed, "of": split.digest})


def _units(table: pd.DataFrame, split: Split) -> pd.Series:
    """Name what must not be torn apart, for each scan: the split's group, else its subject."""
    group = (split.meta.get("parameters") or {}).get("group")
    if "group" in split.table.columns:
        named = table["subject_id"].map(split.table.set_index("subject_id")["group"])
    elif group in table.columns:
        named = table[group]
    else:
        return table["subject_id"]
    named = named.astype(object).where(named.notna(), "").astype(str)
    return named.where(named != "", table["subject_id"])
