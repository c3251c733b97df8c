"""Splits of labelled images: persons and groups of like pictures stay whole, every class has its share of every set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from neuroage.cohort.assignment import Ints
from neuroage.cohort.cohort import Cohort
from neuroage.cohort.dealing import UNLABELLED, class_matrix, columns_to_stratify, deal_units
from neuroage.cohort.grouped_report import report_grouped
from neuroage.cohort.set_spellings import read_set_word
from neuroage.cohort.split import Split
from neuroage.errors import InfeasibleError, RefusedError, UsageError, did_you_mean

OFFICIAL_COLUMN = "official_set"
DUPLICATE_COLUMN = "duplicate_group"
_GROUPED_STREAM = 0x6209  # names this use of the seed, so that other uses of the same seed stay independent
_NAMED = 5  # subjects named in an error; the others are counted


def grouped_split(
    cohort: Cohort | pd.DataFrame,
    source: str | None = None,
    *,
    validation: float = 0.15,
    test: float = 0.25,
    folds: int = 1,
    stratify: str | Sequence[str] | None = None,
    groups: Sequence[str] = ("subject_id", DUPLICATE_COLUMN),
    seed: int = 0,
) -> Split:
    """Split labelled images by persons and groups of like pictures, with the same mix of labels on every side.

    Use it for classification. Pictures that show the same person or nearly the same scene are one unit, and units are
    never torn apart: this is what keeps a test score honest.

    Invariants: no subject and no group is on two sides; every class is in training, then in the test set, then in
    validation, as far as its units allow; the order of the rows does not matter; the same seed gives the same split.

    Args:
        cohort: A cohort or a table of one.
        source: None deals the test set anew; "official" takes it from the column `official_set`. Subjects whose
            pictures are like those of the test set are then left out, and validation is dealt from the rest.
        validation: Share of the images in each validation fold; with an official test set, of those outside it.
        test: Share of the images in the test set.
        folds: Number of disjoint validation folds. Where they and the test set take everything, this is
            cross-validation: training is then always the other folds.
        stratify: Columns whose values are dealt evenly. None takes `label`, or all `label_…`, or `age`.
        groups: Columns whose equal values are never torn apart; "" and missing values bind nothing. Subjects never are.
        seed: Different seeds give different sets.

    Returns:
        The split with a column `group`; `meta["report"]` holds counts, the labels in each set, what is uneven and
        `advice`.

    Raises:
        UsageError: When a share or a column cannot be meant.
        RefusedError: When the official lists have a subject on both sides.
        InfeasibleError: When there are too few units for the sets.

    Example:
        >>> table = pd.DataFrame({"subject_id": [f"s{k}" for k in range(40)], "label": ["a", "b"] * 20})
        >>> grouped_split(table).table["set"].value_counts().to_dict()
        {'train': 24, 'test': 10, 'validation': 6}

    Source: iterative stratification: Sechidis 2011, doi:10.1007/978-3-642-23808-6_10.
    """
    cohort = cohort if isinstance(cohort, Cohort) else Cohort(cohort)
    _refuse_impossible(source, validation, 0.0 if source else test, folds)
    groups = [groups] if isinstance(groups, str) else groups
    table = cohort.table.sort_values("scan_id", kind="stable").reset_index(drop=True)
    columns = columns_to_stratify(table, stratify)
    classes, names = class_matrix(table, columns)
    subjects, of_row = np.unique(table["subject_id"].to_numpy(dtype=str), return_inverse=True)
    unit = _units(table, of_row, len(subjects), groups)
    reason = _unlabelled(classes, names, of_row, len(subjects), columns)
    official = _official_sets(table, subjects, of_row, reason) if source else None
    sets = np.where(reason == "", "train", "left_out").astype(object)
    fold = np.full(len(sets), -1, dtype=np.int64)
    if official is not None:
        _place_official(official, unit, sets, fold, reason)
        if folds > 1 and (fold == 0).any():
            raise UsageError(f"folds is {folds}, but the official lists name one validation set", expected="folds=1")
    if not (fold == 0).any():  # the official lists seldom name validation images
        shares = dict.fromkeys(range(folds), validation) | ({} if source else {-1: test})
        _deal(classes, of_row, unit, sets, fold, shares, seed)
    # Without an own name a unit is called by its first subject.
    first = pd.Series(subjects).groupby(unit).transform("first")
    placed = pd.DataFrame({"subject_id": subjects, "set": sets, "fold": fold, "reason": reason})
    placed = placed.assign(age=_ages(cohort, subjects), group=first.to_numpy())
    parameters = {
        "source": source,
        "validation": validation,
        "test": None if source else test,
        "folds": folds,
        "stratify": columns,
        "groups": list(groups),
    }
    report = report_grouped(placed, of_row, classes, names, folds, official=source is not None)
    meta: dict[str, Any] = {"method": "grouped", "parameters": parameters, "seed": seed, "report": report}
    return Split(placed, {**meta, "cohort_digest": cohort.digest})


def _refuse_impossible(source: str | None, validation: float, test: float, folds: int) -> None:
    if source not in (None, "official"):
        raise UsageError(f"source {source!r} is unknown", expected=did_you_mean(source, ["official"]) + ", or None")
    if folds < 1:
        raise UsageError(f"folds is {folds}", expected="1 or more")
    for name, share in (("validation", validation), ("test", test)):
        if not 0 <= share < 1:
            raise UsageError(f"{name} is {share:g}", expected="a share of the images, 0 or more and below 1")
    total = folds * validation + test
    if total > 1 + 1e-9 or (total > 1 - 1e-9 and folds == 1):
        raise UsageError(
            f"{folds} × {validation:g} for validation and {test:g} for the test leave nothing to train on",
            fix="Choose smaller shares or fewer folds.",
        )


def _units(table: pd.DataFrame, of_row: Ints, n_subjects: int, groups: Sequence[str]) -> Ints:
    """Number the sets of subjects that hang together by a shared value in any of the columns."""
    left, right, n_nodes = [], [], n_subjects
    for name in groups:
        if name == "subject_id" or (name == DUPLICATE_COLUMN and name not in table.columns):
            continue
        if name not in table.columns:
            raise UsageError(f"no column {name!r} to group by", expected=did_you_mean(name, table.columns))
        column = table[name]
        bound = (column.notna() & ~column.astype(object).isin(["", "n/a"])).to_numpy()
        value, levels = pd.factorize(column[bound].astype(str), sort=True)
        left.append(of_row[bound])
        right.append(value + n_nodes)
        n_nodes += len(levels)
    rows, others = (np.concatenate([*part, np.empty(0, np.int64)]).astype(np.int64) for part in (left, right))
    graph = coo_matrix((np.ones(len(rows), np.int8), (rows, others)), shape=(n_nodes, n_nodes))
    _, component = connected_components(graph, directed=False)
    return np.asarray(np.unique(component[:n_subjects], return_inverse=True)[1].ravel(), dtype=np.int64)


def _unlabelled(
    classes: np.ndarray, names: list[str], of_row: Ints, n_subjects: int, columns: Sequence[str]
) -> np.ndarray:
    """Give the reason to leave out each subject of whom no image has a label; "" for the others."""
    known = classes[:, [name != UNLABELLED for name in names]].any(axis=1)
    has = np.bincount(of_row[known], minlength=n_subjects) > 0
    word = "age" if list(columns) == ["age"] else "label"
    return np.where(has, "", f"no {word}").astype(object)


def _official_sets(table: pd.DataFrame, subjects: np.ndarray, of_row: Ints, reason: np.ndarray) -> np.ndarray:
    """Give the official set of every subject, and note in `reason` who is in none."""
    if OFFICIAL_COLUMN not in table.columns:
        raise UsageError(
            f"the cohort has no column {OFFICIAL_COLUMN!r}", fix="Read the official lists with it, or leave source out."
        )
    words = table[OFFICIAL_COLUMN].astype(object).where(table[OFFICIAL_COLUMN].notna(), "").astype(str)
    spelt = {word: read_set_word(word, f"column {OFFICIAL_COLUMN}") for word in words.unique()}
    found = pd.DataFrame({"subject": of_row, "set": words.map(spelt)})
    found = found[found["set"] != "left_out"].drop_duplicates()
    twice = sorted(found.loc[found["subject"].duplicated(), "subject"].unique())
    if twice:
        named = ", ".join(str(subjects[subject]) for subject in twice[:_NAMED])
        raise RefusedError(
            f"{len(twice)} subjects are on two sides of the official lists: {named}"
            + (" and others" if len(twice) > _NAMED else ""),
            expected="every subject on one side",
            fix="Use grouped_split without a source.",
        )
    official = np.full(len(subjects), "left_out", dtype=object)
    official[found["subject"].to_numpy()] = found["set"].to_numpy()
    reason[(official == "left_out") & (reason == "")] = "not in the official lists"
    if not (official == "test").any():
        raise InfeasibleError("the official lists have no test image in this cohort", fix="Leave source out.")
    return official


def _place_official(official: np.ndarray, unit: Ints, sets: np.ndarray, fold: Ints, reason: np.ndarray) -> None:
    """Place the official test set, and the official validation set where there is one, and leave out what is like it.

    Changes `sets`, `fold` and `reason`; who stays in `train` is dealt later, or trained on.
    """
    sets[(official == "test") & (sets == "train")] = "test"
    like_test = np.isin(unit, unit[sets == "test"]) & (sets == "train")
    sets[like_test], reason[like_test] = "left_out", "like a picture of the official test set"
    listed = np.isin(unit, unit[(official == "validation") & (sets == "train")]) & (sets == "train")
    sets[listed], fold[listed] = "validation", 0


def _deal(
    classes: np.ndarray, of_row: Ints, unit: Ints, sets: np.ndarray, fold: Ints, shares: dict[int, float], seed: int
) -> None:
    """Deal the subjects that are in `train` among training, test (key -1 of `shares`) and the folds.

    Changes `sets` and `fold`.
    """
    dealt = np.flatnonzero(sets == "train")
    units, of_dealt = np.unique(unit[dealt], return_inverse=True)
    place = np.full(len(sets), -1, dtype=np.int64)
    place[dealt] = of_dealt.ravel()
    of_image = place[of_row]
    counts = np.zeros((len(units), classes.shape[1]), dtype=np.int64)
    np.add.at(counts, of_image[of_image >= 0], classes[of_image >= 0])
    sizes = np.bincount(of_image[of_image >= 0], minlength=len(units))
    # In the order in which they shall have every class: training, test, then the folds.
    named = [("train", -1, 1 - sum(shares.values()))]
    named += [("test" if k < 0 else "validation", k, share) for k, share in sorted(shares.items())]
    wanted = [entry for entry in named if entry[2] > 1e-9]
    if len(units) < len(wanted):
        raise InfeasibleError(
            f"{len(units)} groups of images for {len(wanted)} sets",
            expected="at least one each",
            fix="Look at the largest groups, or choose fewer folds.",
        )
    rng = np.random.default_rng([seed, _GROUPED_STREAM])
    owner = deal_units(counts, sizes, np.array([share for _, _, share in wanted]), rng)
    for k, (name, number, _) in enumerate(wanted):
        mine = dealt[owner[place[dealt]] == k]
        if not len(mine):
            raise InfeasibleError(f"the groups are too large to fill the {name} set", expected="larger shares")
        sets[mine], fold[mine] = name, number


def _ages(cohort: Cohort, subjects: np.ndarray) -> np.ndarray:
    known = cohort.table.drop_duplicates("subject_id") if cohort.table["age"].isna().all() else cohort.subjects()
    return known.set_index("subject_id")["age"].loc[list(subjects)].to_numpy(dtype=float)
