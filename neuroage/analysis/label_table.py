"""From rows of label predictions to one row per scan: truth and probabilities side by side, groups kept together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neuroage.errors import DataError, RefusedError, UsageError, did_you_mean

Array = NDArray[np.float64]

BINARY, MULTILABEL, MULTICLASS = "binary", "multilabel", "multiclass"
KINDS = (BINARY, MULTILABEL, MULTICLASS)
MOST_UNSUMMED = 1e-3  # how far probabilities of one scan may be from adding up to 1: float16 has three digits


@dataclass(frozen=True)
class LabelScans:
    """Several models' predictions of the same scans.

    Attributes:
        kind: "binary", "multilabel" or "multiclass".
        labels: Labels or classes, in the order of the columns below.
        scans: scan_id, subject_id and group, one row per scan.
        group: Index of each scan's group, shape `(n_scans,)`: what is never torn apart, in a split or a resample.
        truth: 1, 0 or NaN (unknown), shape `(n_scans, n_labels)`; for classes one 1 per row.
        probabilities: Name to probabilities, same shape.
        given: Name to the number of scans that each table had.
    """

    kind: str
    labels: tuple[str, ...]
    scans: pd.DataFrame
    group: NDArray[np.intp]
    truth: Array
    probabilities: dict[str, Array]
    given: dict[str, int]

    @property
    def n_groups(self) -> int:
        """Groups (patients, unless the table names larger ones) behind the scans."""
        return int(self.group.max()) + 1 if len(self.group) else 0

    @property
    def n_subjects(self) -> int:
        """Subjects behind the scans."""
        return int(self.scans["subject_id"].nunique())

    def only(self, scan_ids: Collection[str]) -> LabelScans:
        """Keep these scans, in the same order."""
        kept = self.scans["scan_id"].isin(list(scan_ids)).to_numpy()
        scans = self.scans[kept].reset_index(drop=True)
        chances = {name: chance[kept] for name, chance in self.probabilities.items()}
        return replace(self, scans=scans, group=_index(scans["group"]), truth=self.truth[kept], probabilities=chances)


def read_target(target: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Check a task's target and give its kind and its labels.

    Args:
        target: `{"kind": "binary" | "multilabel" | "multiclass", "labels": [...]}`.

    Raises:
        UsageError: Another kind, no labels, a label twice, or not one label in a binary target.
    """
    kind = str(target.get("kind"))
    if kind not in KINDS:
        raise UsageError(f"target of kind {kind!r}", expected=did_you_mean(kind, KINDS))
    labels = tuple(str(label) for label in target.get("labels") or ())
    if not labels or len(set(labels)) < len(labels):
        raise UsageError(f"target with labels {list(labels)}", expected="at least one label, each named once")
    if kind == BINARY and len(labels) > 1:
        raise UsageError(f"binary target with {len(labels)} labels", expected="one label", fix="Use kind multilabel.")
    if kind == MULTICLASS and len(labels) < 2:
        raise UsageError("multiclass target with one class", expected="two classes or more")
    return kind, labels


def align_labels(
    predictions: Mapping[str, pd.DataFrame],
    target: Mapping[str, Any],
    sets: Sequence[str] | None = None,
    *,
    other_classes: bool = False,
) -> LabelScans:
    """Put several models' label predictions side by side on the scans that all of them have.

    Members and folds are averaged per scan: the mean of their probabilities.

    Args:
        predictions: Name to table: scan_id, subject_id, `target_<label>` and `probability_<label>` per label, or
            `target_label` and `probability_<class>` per class; set, fold, member and group where there are any.
        target: Kind and labels.
        sets: Sets to keep; None keeps every row, as does a table without a `set` column.
        other_classes: Take a class that the target does not name as "none of them" instead of refusing it.

    Raises:
        UsageError: As `read_target` does.
        DataError: A column is missing, a value is no probability or no 0, 1 or blank, or no row is left.
        RefusedError: No scan is shared, targets differ between tables, or a scored group was also trained on.
    """
    kind, labels = read_target(target)
    tables = {
        name: _one_row_per_scan(table, kind, labels, sets, name, other_classes) for name, table in predictions.items()
    }
    shared = sorted(set.intersection(*(set(table.index) for table in tables.values())))
    if not shared:
        counts = ", ".join(f"{name!r} has {len(table)}" for name, table in tables.items())
        raise RefusedError(
            f"no scan was predicted by all of them ({counts})",
            expected="the same scans, under the same scan_id",
            fix="Predict one split with every model.",
        )
    first = next(iter(tables))
    about = tables[first].loc[shared]
    truth = _columns(about, "target", labels)
    for name, table in tables.items():
        if not np.array_equal(_columns(table.loc[shared], "target", labels), truth, equal_nan=True):
            raise RefusedError(
                f"{first!r} and {name!r} have different targets for the same scans",
                expected="one table of labels for all",
                fix="Predict one cohort with every model.",
            )
    scans = about[["subject_id", "group"]].reset_index()
    return LabelScans(
        kind=kind,
        labels=labels,
        scans=scans,
        group=_index(scans["group"]),
        truth=truth,
        probabilities={name: _columns(table.loc[shared], "probability", labels) for name, table in tables.items()},
        given={name: len(table) for name, table in tables.items()},
    )


def _index(group: pd.Series) -> NDArray[np.intp]:
    return pd.factorize(group)[0].astype(np.intp)


def _columns(table: pd.DataFrame, what: str, labels: Sequence[str]) -> Array:
    return table[[f"{what}_{label}" for label in labels]].to_numpy(dtype=np.float64)


def _one_row_per_scan(
    predictions: pd.DataFrame,
    kind: str,
    labels: Sequence[str],
    sets: Sequence[str] | None,
    name: str,
    other_classes: bool,
) -> pd.DataFrame:
    """Give subject_id, group, `target_*` and `probability_*` by scan_id."""
    targets = ["target_label"] if kind == MULTICLASS else [f"target_{label}" for label in labels]
    chances = [f"probability_{label}" for label in labels]
    for column in ("scan_id", "subject_id", *targets, *chances):
        if column not in predictions.columns:
            raise DataError(
                f"predictions of {name!r} lack the column {column!r}",
                expected=did_you_mean(column, [str(present) for present in predictions.columns]),
                fix="Predict with the task that the target names.",
            )
    unit = predictions["group"] if "group" in predictions.columns else predictions["subject_id"]
    unit = unit.where(unit.notna() & (unit.astype(str) != ""), predictions["subject_id"])
    table = predictions.assign(
        scan_id=predictions["scan_id"].astype(str),
        subject_id=predictions["subject_id"].astype(str),
        group=unit.astype(str),
        fold=predictions["fold"] if "fold" in predictions.columns else 0,
        member=predictions["member"] if "member" in predictions.columns else 0,
    )
    rows = _chosen_rows(table, sets, name)
    twice = rows.duplicated(["scan_id", "fold", "member"])
    if twice.any():
        raise DataError(
            f"predictions of {name!r}: scan {rows.loc[twice, 'scan_id'].iloc[0]!r} appears twice for one member",
            expected="one row per scan and member",
        )
    if kind == MULTICLASS:
        rows = _one_hot(rows, labels, name, other_classes)
    columns = [f"target_{label}" for label in labels]
    rows = rows.assign(**{column: _numbers(rows[column], column, name) for column in (*columns, *chances)})
    _check_values(rows, columns, chances, kind, name)
    by_scan = rows.groupby("scan_id", sort=True)
    if by_scan[[*columns, "group"]].nunique(dropna=False).to_numpy().max() > 1:
        raise DataError(f"predictions of {name!r}: one scan has two targets or two groups", expected="one per scan")
    return pd.concat([by_scan[["subject_id", "group", *columns]].first(), by_scan[chances].mean()], axis=1)


def _chosen_rows(table: pd.DataFrame, sets: Sequence[str] | None, name: str) -> pd.DataFrame:
    chosen = table
    if sets is not None and "set" in table.columns:
        chosen = table[table["set"].isin(list(sets))]
        if chosen.empty:
            present = sorted(table["set"].dropna().astype(str).unique())
            raise DataError(
                f"predictions of {name!r} have no row of set {', '.join(map(repr, sets))}",
                expected=did_you_mean(sets[0] if sets else "", present),
                fix="Name a set that was predicted, or predict that set first.",
            )
        _refuse_leaks(table, chosen, name)
    if chosen.empty:
        raise DataError(f"predictions of {name!r} have no rows", expected="at least one scan")
    return chosen


def _refuse_leaks(table: pd.DataFrame, chosen: pd.DataFrame, name: str) -> None:
    for unit in ("subject_id", "group"):
        trained = table.loc[table["set"] == "train", [unit, "fold"]].drop_duplicates()
        leaked = (
            chosen.loc[chosen["set"] != "train", [unit, "fold"]].drop_duplicates().merge(trained, on=[unit, "fold"])
        )
        if len(leaked):
            raise RefusedError(
                f"{name!r} trained on {len(leaked)} of the {'subjects' if unit == 'subject_id' else 'groups'} "
                f"it would be scored on, {leaked[unit].iloc[0]!r} first",
                expected="subjects that the model has never seen",
                fix="Split by subject (or group) and train again.",
            )


def _one_hot(rows: pd.DataFrame, classes: Sequence[str], name: str, other_classes: bool) -> pd.DataFrame:
    known = rows["target_label"].notna() & (rows["target_label"].astype(str) != "")
    text = rows["target_label"].astype(str)
    foreign = known & ~text.isin(list(classes))
    if foreign.any() and not other_classes:
        value = text[foreign].iloc[0]
        raise DataError(
            f"predictions of {name!r}: class {value!r} is none of the target's",
            expected=did_you_mean(value, classes),
        )
    one_hot = {f"target_{label}": (text == label).astype(float).where(known) for label in classes}
    return pd.concat([rows.drop(columns=list(one_hot), errors="ignore"), pd.DataFrame(one_hot)], axis=1)


def _numbers(column: pd.Series, called: str, name: str) -> pd.Series:
    blank = column.isna() | (column.astype(str).str.strip() == "")
    numbers = pd.to_numeric(column, errors="coerce").astype(np.float64)
    wrong = numbers.isna() & ~blank
    if wrong.any():
        raise DataError(
            f"predictions of {name!r}: {called} is {str(column[wrong].iloc[0])!r}", expected="a number, or a blank"
        )
    return numbers


def _check_values(rows: pd.DataFrame, targets: Sequence[str], chances: Sequence[str], kind: str, name: str) -> None:
    for column in targets:
        wrong = rows[column].notna() & ~rows[column].isin([0.0, 1.0])
        if wrong.any():
            value, scan = rows.loc[wrong, [column, "scan_id"]].iloc[0]
            raise DataError(
                f"predictions of {name!r}: {column} is {value} for scan {scan!r}", expected="1, 0, or a blank"
            )
    values = rows[list(chances)].to_numpy(dtype=np.float64)
    inside = (values >= 0) & (values <= 1)
    if not inside.all():
        row, column_index = np.argwhere(~inside)[0]
        raise DataError(
            f"predictions of {name!r}: {chances[column_index]} is {values[row, column_index]} for scan "
            f"{rows['scan_id'].iloc[row]!r} ({int((~inside).any(axis=1).sum())} such rows)",
            expected="a probability, 0 to 1",
        )
    off = np.abs(values.sum(axis=1) - 1)
    if kind == MULTICLASS and off.max() > MOST_UNSUMMED:
        raise DataError(
            f"predictions of {name!r}: the probabilities of scan {rows['scan_id'].iloc[int(off.argmax())]!r} add up to "
            f"{values[off.argmax()].sum():.3f}",
            expected="1",
        )
