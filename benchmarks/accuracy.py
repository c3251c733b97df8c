"""Accuracy on your cohort: a recipe on several uniform splits, against ridge on 4 mm voxels and the mean predictor.

    python benchmarks/accuracy.py COHORT --config t1_small --modality t1 --splits 3 --out accuracy

COHORT is a table or a folder of a known layout. Each split holds out 50 subjects of uniform age. Complete runs in the
output folder are used again, so an interrupted benchmark goes on where it was. The paired difference is over all splits
together, one row a subject (the mean over the splits in which it was held out).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd

from neuroage.analysis import paired_difference
from neuroage.cohort import Cohort, uniform_age_split
from neuroage.files import write_json
from neuroage.imaging.store import Store, prepare_scans
from neuroage.runs.recipe import Prepare, Recipe
from neuroage.runs.run import Run
from neuroage.runs.shipped import find_recipe
from neuroage.training.baselines import fit_ridge
from neuroage.training.experiment import train_members

# Ridge as it is usually run: 4 mm voxels of the whole head or brain, divided by their mean.
RIDGE_PREPARE = Prepare(spacing_mm=4.0, size=(40, 48, 40), intensity="mean")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--config", default="t1_small")
    parser.add_argument("--modality", default="t1")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=1, help="weight seeds a split, averaged")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("accuracy"))
    parser.add_argument("--store", type=Path)
    parser.add_argument("--labels", action="store_true", help="label maps: ridge on the share of labelled voxels")
    options = parser.parse_args()

    cohort = Cohort.read(options.cohort)
    recipe = Recipe.load(find_recipe(options.config), [f"modality={options.modality}", *options.set])
    store = Store(options.store)
    rows, pooled = [], []
    for seed in range(options.splits):
        split = uniform_age_split(cohort.select(modality=options.modality), seed=seed)
        started = time.monotonic()
        folder = options.out / f"split{seed}"
        run = train_members(recipe, cohort, split, folder, repeats=options.repeats, resume="auto", store=store)
        table = subjects_of(run, ridge_on_4mm(run, store, labels=options.labels))
        errors = {
            name: (table[name] - table["age"]).abs() for name in ("network", "ridge_prepared", "ridge_4mm", "mean")
        }
        report = split.meta["report"]["sets"][0]
        rows.append(
            {
                "split": seed,
                "n": len(table),
                "w1_years": report["w1_years"],
                "minutes": round((time.monotonic() - started) / 60, 1),
                **{name: round(float(values.mean()), 2) for name, values in errors.items()},
            }
        )
        pooled.append(table)
        print(json.dumps(rows[-1]), flush=True)
    summary = summarise(pd.DataFrame(rows), pd.concat(pooled))
    write_json(options.out / "accuracy.json", {"recipe": recipe.digest, "splits": rows, **summary})
    print(json.dumps(summary, indent=2))


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
    summary: dict[str, object] = {
        f"mae_{name}": round(float(rows[name].mean()), 2) for name in ("network", "ridge_prepared", "ridge_4mm", "mean")
    }
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
