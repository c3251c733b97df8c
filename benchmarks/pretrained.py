"""Does HighResNet, pretrained on brain parcellation, tell age? Frozen features against networks trained from scratch.

    python benchmarks/pretrained.py COHORT --weights highres3dnet_li_parameters-7d297872.pth --out pretrained

On one split with 50 held-out subjects of uniform age, and on 50, 100 and all training subjects (each set holds the
smaller ones): ridge regression on the frozen features of the pretrained network and of the same network with random
weights, ridge on voxels, and networks that learn everything. Features are computed once and kept in the output folder,
as runs are, so an interrupted benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from neuroage.analysis import paired_difference
from neuroage.analysis.bootstrap import mean_interval
from neuroage.analysis.metrics import mae
from neuroage.cohort import Cohort, Split, stratified_age_split, uniform_age_split
from neuroage.files import atomic_path, write_json
from neuroage.imaging.batches import VolumeSet
from neuroage.imaging.preparation import prepare_scans
from neuroage.imaging.store import Store
from neuroage.models.network import build_network
from neuroage.models.norms import reestimate_norms
from neuroage.runs.recipe import Recipe
from neuroage.runs.shipped import find_recipe
from neuroage.training.baselines.ridge import fit_ridge
from neuroage.training.devices import make_fabric
from neuroage.training.inference import MEMORY_FORMAT
from neuroage.training.train import train

GRID = (3, 4, 3)  # cells in which features are averaged: coarse position, as the small networks have it
N_FOR_NORMS = 24  # scans on which batch-norm statistics are measured anew
SMALL_SFCN = "t1 prepare.spacing_mm=4 prepare.size=[40,48,40] training.epochs=50"  # minutes on two cores
PENALTIES = np.logspace(-3, 3, 25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--weights", default="li2017", help="a published name, or a file")
    parser.add_argument("--split", type=Path, help="a split; else a new one with 50 held-out subjects of uniform age")
    parser.add_argument("--sizes", type=int, nargs="+", default=[50, 100, 0], help="training subjects; 0: all")
    parser.add_argument(
        "--networks",
        nargs="*",
        default=["t1_small", SMALL_SFCN],
        help="trained from scratch: a recipe, and key=value after spaces",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of t1_highresnet")
    parser.add_argument("--out", type=Path, default=Path("pretrained"))
    parser.add_argument("--store", type=Path)
    parser.add_argument("--features-only", action="store_true")
    options = parser.parse_args()

    cohort = Cohort.read(options.cohort).select(modality="t1")
    split = Split.load(options.split) if options.split else uniform_age_split(cohort, seed=0)
    store = Store(options.store)
    held_out = split.subjects("validation", 0)
    everyone = cohort.select(subject_ids=[*split.subjects("train", 0), *held_out])
    table = everyone.table.dropna(subset=["age"]).set_index("scan_id", drop=False)
    features = {}
    for kind in ("pretrained", "random"):
        recipe = Recipe.load(find_recipe("t1_highresnet"), options.set)
        backbone = {"weights": options.weights} if kind == "pretrained" else {"weights": "null"}
        recipe = recipe.updated(f"backbone.weights={backbone['weights']}")
        features[kind] = cached_features(recipe, everyone, table, held_out, store, options.out / f"{kind}.npz")
    if options.features_only:
        return
    rows = []
    order = nested_order(table, held_out)
    for size in options.sizes:
        chosen = order[: size or len(order)]
        rows += at_size(options, store, split, everyone, table, features, chosen, held_out)
        print(pd.DataFrame(rows).to_string(index=False), flush=True)
    write_json(options.out / "pretrained.json", {"rows": rows, "sizes": options.sizes})


def cached_features(
    recipe: Recipe, cohort: Cohort, table: pd.DataFrame, held_out: list[str], store: Store, path: Path
) -> pd.DataFrame:
    """Give the features of every scan, (n_scans, n_features), computed once."""
    if path.is_file():
        with np.load(path) as kept:
            return pd.DataFrame(kept["features"], index=kept["scans"])
    prepared = prepare_scans(cohort.scans(), recipe.prepare, store).volumes
    scans = [scan for scan in table.index if scan in prepared]
    network = build_network(
        recipe, spatial_dims=3, in_channels=recipe.prepare.n_channels, n_outputs=1, say=lambda text: print(text)
    )
    fabric = make_fabric("bf16")
    backbone = network.backbone.to(fabric.device).to(memory_format=MEMORY_FORMAT[5]).eval()
    volumes = VolumeSet([prepared[scan] for scan in scans], fabric.device)
    train_places = np.flatnonzero(~table.loc[scans, "subject_id"].isin(held_out).to_numpy())
    some = np.random.default_rng(0).permutation(train_places)[:N_FOR_NORMS]
    pool = torch.nn.AdaptiveAvgPool3d(GRID)
    started, parts = time.monotonic(), []
    with torch.no_grad(), fabric.autocast():
        plan = [some[start : start + 2] for start in range(0, len(some), 2)]
        reestimate_norms(
            backbone, (image.contiguous(memory_format=MEMORY_FORMAT[5]) for image in volumes.batches(plan))
        )
        for number, image in enumerate(volumes.batches([[index] for index in range(len(scans))])):
            maps = backbone(image.contiguous(memory_format=MEMORY_FORMAT[5])).float()
            parts.append(torch.cat([pool(maps).flatten(1), maps.flatten(2).mean(2)], dim=1).cpu().numpy())
            if number % 20 == 19:
                print(f"{number + 1} of {len(scans)} scans, {(time.monotonic() - started) / (number + 1):.1f} s each")
    features = np.concatenate(parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.savez(handle, features=features, scans=np.array(scans, dtype=str))
    return pd.DataFrame(features, index=scans)


def nested_order(table: pd.DataFrame, held_out: list[str]) -> list[str]:
    """Order the training subjects so that every beginning of the list has the ages of the whole."""
    subjects = table[~table["subject_id"].isin(held_out)].drop_duplicates("subject_id")[["subject_id", "age"]]
    order: list[str] = []
    rest = subjects
    for n in (50, 50):
        if len(rest) <= n + 1:
            break
        part = stratified_age_split(rest, n_validation=n, seed=len(order)).subjects("validation", 0)
        order += part
        rest = rest[~rest["subject_id"].isin(part)]
    return [*order, *rest["subject_id"]]


def at_size(
    options: argparse.Namespace,
    store: Store,
    split: Split,
    cohort: Cohort,
    table: pd.DataFrame,
    features: dict[str, pd.DataFrame],
    chosen: list[str],
    held_out: list[str],
) -> list[dict[str, object]]:
    """Fit and score every model with the chosen training subjects."""
    small = Recipe.load(find_recipe("t1_small"), [])
    volumes = prepare_scans(cohort.scans(), small.prepare, store).volumes
    fit = table[table["subject_id"].isin(chosen) & table.index.isin(volumes)]
    new = table[table["subject_id"].isin(held_out) & table.index.isin(volumes)]
    ages = fit["age"].to_numpy(float)
    predicted: dict[str, np.ndarray] = {"mean": np.full(len(new), ages.mean())}
    own = [volumes[scan] for scan in fit.index]
    ridge = fit_ridge(own, ages, small.prepare.spacing, subjects=fit["subject_id"].tolist())
    predicted["ridge on voxels"] = ridge.predict([volumes[scan] for scan in new.index])
    for kind, rows in features.items():
        predicted[f"HighResNet, {kind}, frozen"] = linear_probe(rows.loc[fit.index], ages, rows.loc[new.index])
    subset = cohort.select(subject_ids=[*chosen, *held_out])
    for words in options.networks:
        config, *changes = words.split()
        recipe = Recipe.load(find_recipe(config), changes)
        folder = options.out / f"{Path(config).stem}-{len(chosen)}"
        run = train(recipe, subset, split, folder, resume="auto", store=store)
        name = f"{Path(config).stem} ({recipe.backbone.name}, {recipe.prepare.spacing[0]:g} mm)"
        column = run.predictions.query("set == 'validation'").set_index("scan_id")
        for label, key in ((name, "predicted_age"), (f"{name}, network alone", "predicted_age_network")):
            if key in column:
                predicted[label] = column.loc[new.index, key].to_numpy(float)
    subjects = pd.DataFrame({"subject": new["subject_id"], "age": new["age"], **predicted}).groupby("subject").mean()
    age, against = subjects["age"].to_numpy(), subjects["ridge on voxels"].to_numpy()
    rows_out: list[dict[str, object]] = []
    for name in predicted:
        own = subjects[name].to_numpy()
        interval = mean_interval(np.abs(own - age), seed=0)
        row: dict[str, object] = {"subjects": len(chosen), "model": name, "MAE": round(float(mae(age, own)), 2)}
        row["interval"] = f"{interval.low:.2f} to {interval.high:.2f}"
        if name not in ("mean", "ridge on voxels"):
            pair = paired_difference(age, own, against)
            row["minus ridge"] = f"{pair.difference:+.2f} ({pair.low:+.2f} to {pair.high:+.2f})"
        rows_out.append(row)
    return rows_out


def linear_probe(rows: pd.DataFrame, ages: np.ndarray, new: pd.DataFrame) -> np.ndarray:
    """Predict ages by ridge regression on standardised features; the penalty by leave-one-out error."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    alphas = PENALTIES * rows.shape[1]
    model = make_pipeline(StandardScaler(), RidgeCV(alphas=alphas, scoring="neg_mean_absolute_error"))
    return np.asarray(model.fit(rows.to_numpy(np.float64), ages).predict(new.to_numpy(np.float64)), dtype=float)


if __name__ == "__main__":
    main()
