"""Accuracy on your cohort: a recipe on several uniform splits, against ridge on 4 mm voxels and the mean predictor.

    python benchmarks/accuracy.py COHORT --config t1_small --modality t1 --splits 3 --out accuracy
    python benchmarks/accuracy.py COHORT --split locked.csv --repeats 3 --only CDR=0
    python benchmarks/accuracy.py COHORT --split locked.csv --folds 5

COHORT is a table or a folder of a known layout. Each split holds out 50 subjects of uniform age. Complete runs in the
output folder are used again, so an interrupted benchmark goes on where it was. The paired difference is over all splits
together, one row a subject (the mean over the splits in which it was held out).

With --folds K the training subjects are left out in turn as well: the held-out ones are predicted by K networks, and
the out-of-fold predictions tell how much two scans of one person differ. --only scores the held-out subjects with that
value in a column of the cohort as well.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd

from neuroage.analysis import paired_difference
from neuroage.cohort import Cohort, Split, uniform_age_split
from neuroage.cohort.parts import all_parts
from neuroage.files import write_json
from neuroage.imaging.preparation import prepare_scans
from neuroage.imaging.store import Store
from neuroage.runs.recipe import Prepare, Recipe
from neuroage.runs.run import Run
from neuroage.runs.shipped import find_recipe
from neuroage.training.baselines.ridge import fit_ridge
from neuroage.training.experiment import train_members

# Ridge as it is usually run: 4 mm voxels of the whole head or brain, divided by their mean.
NAMES = ("network", "ridge_prepared", "ridge_4mm", "mean")
RIDGE_PREPARE = Prepare(spacing_mm=4.0, size=(40, 48, 40), intensity="mean")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--config", default="t1_small")
    parser.add_argument("--modality", default="t1")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--split", type=Path, help="one given split instead of new ones")
    parser.add_argument("--repeats", type=int, default=1, help="weight seeds a split, averaged")
    parser.add_argument("--folds", type=int, default=1, help="parts in which training subjects are left out in turn")
    parser.add_argument("--only", metavar="COLUMN=VALUE", help="score these held-out subjects by themselves, too")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("accuracy"))
    parser.add_argument("--store", type=Path)
    parser.add_argument("--labels", action="store_true", help="label maps: ridge on the share of labelled voxels")
    options = parser.parse_args()

    cohort = Cohort.read(options.cohort)
    recipe = Recipe.load(find_recipe(options.config), [f"modality={options.modality}", *options.set])
    store = Store(options.store)
    rows, pooled = [], []
    given = Split.load(options.split) if options.split else None
    for seed in range(1 if options.split else options.splits):
        split = given or uniform_age_split(cohort.select(modality=options.modality), seed=seed)
        started = time.monotonic()
        folder = options.out / f"split{seed}"
        run = train_members(
            recipe,
            cohort,
            split,
            folder,
            parts=all_parts(options.folds),
            repeats=options.repeats,
            resume="auto",
            store=store,
        )
        table = subjects_of(run, ridge_on_4mm(run, store, labels=options.labels))
        errors = {name: (table[name] - table["age"]).abs() for name in NAMES}
        report = split.meta["report"]["sets"][0]
        rows.append(
            {
                "split": seed,
                "n": len(table),
                "w1_years": round(report["w1_years"], 2),
                "minutes": round((time.monotonic() - started) / 60, 1),
                **{name: round(float(values.mean()), 2) for name, values in errors.items()},
                **members_apart(run),
                **rescans(run),
            }
        )
        pooled.append(table)
        print(json.dumps(rows[-1]), flush=True)
    summary = summarise(pd.DataFrame(rows), pd.concat(pooled))
    write_json(options.out / "accuracy.json", {"recipe": recipe.digest, "splits": rows, **summary})
    print(json.dumps(summary, indent=2))
    if options.only:
        column, value = options.only.split("=")
        kept = cohort.table.loc[cohort.table[column].astype(str).isin([value, f"{value}.0"]), "subject_id"]
        some = [table[table.index.isin(kept)] for table in pooled]
        errors = [{name: (table[name] - table["age"]).abs().mean() for name in NAMES} for table in some]
        summary = {"only": options.only, **summarise(pd.DataFrame(errors), pd.concat(some))}
        write_json(options.out / "accuracy_only.json", summary)
        print(json.dumps(summary, indent=2))


def members_apart(run: Run) -> dict[str, object]:
    """Score every member of an ensemble by itself on the held-out subjects."""
    rows = run.predictions.query("set == 'validation'")
    if rows["member"].nunique() < 2:
        return {}
    rows = rows.assign(error=(rows["predicted_age"] - rows["age"]).abs())
    each = rows.groupby(["member", "subject_id"])["error"].mean().groupby("member").mean()
    return {"members": [round(float(value), 2) for value in each]}


def rescans(run: Run) -> dict[str, object]:
    """Say how much the out-of-fold predictions of two scans of one person differ, on average."""
    rows = run.predictions.query("set == 'out_of_fold'")
    scans = rows.groupby(["subject_id", "scan_id"])["predicted_age"].mean()
    spread = scans.groupby("subject_id").agg(["min", "max", "size"]).query("size > 1")
    if spread.empty:
        return {}
    return {"rescanned": len(spread), "rescan_years": round(float((spread["max"] - spread["min"]).mean()), 2)}


def ridge_on_4mm(run: Run, store: Store, *, labels: bool) -> pd.Series:
    """Predict the run's held-out scans by ridge on 4 mm voxels, fitted on the run's training scans."""
    changes = {"labels": True, "intensity": "none", "clip_percentiles": None} if labels else {}
    cohort = run.leaves[0].cohort
    recipe = RIDGE_PREPARE.model_copy(update=changes)
    volumes = prepare_scans(cohort.scans(), recipe, store).volumes
    table = cohort.table.set_index("scan_id")
    table = table[table.index.isin(volumes) & table["age"].notna()]
    sets = table["subject_id"].map(run.split.sets(run.leaves[0].about["fold"]))
    train, held_out = table[sets == "train"], table[sets == "validation"]
    ridge = fit_ridge(
        [volumes[scan] for scan in train.index],
        train["age"].to_numpy(float),
        (4.0, 4.0, 4.0),
        subjects=train["subject_id"].tolist(),
        blurs_mm=(0.0,),
        mirrored=False,
    )
    return pd.Series(ridge.predict([volumes[scan] for scan in held_out.index]), index=held_out.index)


def subjects_of(run: Run, ridge_4mm: pd.Series) -> pd.DataFrame:
    """Lay the predictions of one run side by side, one row a subject."""
    scans = (
        run.predictions.query("set == 'validation'")
        .groupby("scan_id")
        .agg(subject_id=("subject_id", "first"), age=("age", "first"), network=("predicted_age", "mean"))
    )
    for name, table in run.baselines.items():
        scans["ridge_prepared" if name == "ridge" else name] = table.groupby("scan_id")["predicted_age"].mean()
    scans["ridge_4mm"] = ridge_4mm
    return scans.groupby("subject_id").mean()


def summarise(rows: pd.DataFrame, pooled: pd.DataFrame) -> dict[str, object]:
    """Average over the splits, and compare pairwise over all subjects that were held out at least once."""
    subjects = pooled.groupby(level=0).mean()
    age = subjects["age"].to_numpy()
    summary: dict[str, object] = {f"mae_{name}": round(float(rows[name].mean()), 2) for name in NAMES}
    gap = subjects["network"] - age
    summary["pearson_r"] = round(float(np.corrcoef(age, subjects["network"])[0, 1]), 3)
    summary["gap_slope"] = round(float(np.polyfit(age, gap, 1)[0]), 3)
    for name in ("ridge_4mm", "ridge_prepared"):
        pair = paired_difference(age, subjects["network"].to_numpy(), subjects[name].to_numpy())
        summary[f"network_minus_{name}"] = {
            "n_subjects": pair.n,
            "difference_years": round(pair.difference, 2),
            "interval_95": [round(pair.low, 2), round(pair.high, 2)],
            "p": round(pair.p, 4),
        }
    return summary


if __name__ == "__main__":
    main()
