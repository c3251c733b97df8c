"""What a grouped split reached: images, persons and groups in each set, the labels there, and what stayed uneven."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from neuroage.cohort.assignment import Ints
from neuroage.cohort.dealing import UNLABELLED

LARGE_GROUP = 0.1  # share of the images; a set can then miss its size by as much
UNEVEN = 0.05  # of the images of a set have other labels than they would in a perfect split
NAMED = 6  # classes named in an advice; the others are counted


def report_grouped(
    placed: pd.DataFrame, of_row: Ints, classes: np.ndarray, names: list[str], folds: int, official: bool
) -> dict[str, Any]:
    """Collect what is said of a grouped split; every number is a plain Python number.

    Args:
        placed: One row per subject: `set`, `fold`, `reason`, `group`.
        of_row: Row of `placed` of every image, (N,).
        classes: Which classes each image belongs to, (N, C).
        names: Names of the classes.
        folds: Number of validation folds.
        official: Whether the test set was given; the labels of every set are then measured against those outside it.
    """
    side = placed["set"].where(placed["set"] != "validation", "fold " + placed["fold"].astype(str))
    side = side.replace({"fold 0": "validation"}) if folds == 1 else side
    order = ["train", *(["validation"] if folds == 1 else [f"fold {k}" for k in range(folds)]), "test"]
    order = [name for name in order if (side == name).any()]
    images = pd.DataFrame({"side": side.to_numpy()[of_row], "group": placed["group"].to_numpy()[of_row]})
    used = images["side"].isin(order).to_numpy()
    whole = _shares(classes[used & ~(official & (images["side"] == "test")).to_numpy()])
    sets = [
        {
            "set": name,
            "n": int((side == name).sum()),
            "images": int((images["side"] == name).sum()),
            "share": float((images["side"] == name).sum() / max(used.sum(), 1)),
            "groups": int(placed.loc[side == name, "group"].nunique()),
            "imbalance": float(np.abs(_shares(classes[(images["side"] == name).to_numpy()]) - whole).sum() / 2),
        }
        for name in order
    ]
    labels = []
    for c, name in enumerate(names):
        if name == UNLABELLED:
            continue
        mine = images[classes[:, c] & used]
        counts = mine["side"].value_counts()
        row: dict[str, Any] = {"label": name, "images": len(mine), "groups": int(mine["group"].nunique())}
        labels.append({**row, **{name: int(counts.get(name, 0)) for name in order}})
    sizes = images.loc[used, "group"].value_counts()
    kinds = placed["set"].value_counts()
    report: dict[str, Any] = {
        "counts": {
            "subjects": len(placed),
            **{name: int(kinds.get(name, 0)) for name in ("train", "validation", "test", "left_out")},
        },
        "images": len(of_row),
        "groups": int(placed["group"].nunique()),
        "sets": sets,
        "labels": labels,
        "imbalance_measure": "half the sum over classes of |share in the set - share in "
        + ("all but the official test set" if official else "all sets")
        + "|; 0 is perfect",
        "largest_group": {"group": str(sizes.index[0]), "images": int(sizes.iloc[0])} if len(sizes) else None,
        "absent": [{"label": row["label"], "set": name} for row in labels for name in order if row[name] == 0],
        "left_out": {str(why): int(n) for why, n in placed["reason"].replace("", np.nan).value_counts().items()},
    }
    report["advice"] = _advice(report, order, official)
    return report


def _shares(classes: np.ndarray) -> np.ndarray:
    counts = classes.sum(axis=0).astype(float)
    return np.asarray(counts / max(counts.sum(), 1.0))


def _advice(report: dict[str, Any], order: list[str], official: bool) -> list[str]:
    """Say in words what a reader should not overlook."""
    advice = []
    for name in order:
        absent = [entry["label"] for entry in report["absent"] if entry["set"] == name]
        if absent:
            more = f" and {len(absent) - NAMED} more" if len(absent) > NAMED else ""
            what = "it cannot be learnt" if name == "train" else "nothing can be said of it there"
            advice.append(f"{name} has no image of {', '.join(absent[:NAMED])}{more}: {what}")
    largest = report["largest_group"]
    n_used = sum(entry["images"] for entry in report["sets"])
    if largest and largest["images"] > LARGE_GROUP * n_used and report["groups"] > 1:
        advice.append(
            f"the largest group holds {largest['images']} of {n_used} images ({largest['group']} and others); "
            "check that they belong together"
        )
    uneven = [entry for entry in report["sets"] if entry["imbalance"] > UNEVEN]
    for entry in uneven:
        given = official and entry["set"] == "test"
        why = "so the official lists are" if given else "its groups are too large, or too few"
        advice.append(f"{entry['imbalance']:.0%} of the labels of {entry['set']} are other than elsewhere: {why}")
    advice += [f"{n} subjects left out: {why}" for why, n in report["left_out"].items()]
    return advice
