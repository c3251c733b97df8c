"""Labels of your images: a recipe on a leak-free split, beside a linear model and the commonest answer.

    python benchmarks/labels.py FOLDER --config brain_tumor --pattern '(?P<tumour>.+) (?P<sequence>T1C\\+|T1|T2)/' \\
        --factors tumour,sequence
    python benchmarks/labels.py XRAYS --config chest_xray_small --folds 5
    python benchmarks/labels.py XRAYS --config chest_xray_small --official --set 'task={name: multilabel}'

The data are class folders, a table, or another layout that `neuroage index` reads. Without --split, subjects and alike
pictures are kept together and 15 % and 25 % of the images held out for validation and test, or each part in turn with
--folds. Figures are for the test set, or for the held-out parts of all folds; intervals draw whole groups. With
--factors the classes are combinations of these columns: how much of the score is telling one of them?
A complete run in the output folder is used again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from neuroage.analysis import factor_view, factors_of
from neuroage.cohort import Cohort, Split
from neuroage.files import write_json
from neuroage.imaging.grouping import grouped_split
from neuroage.imaging.store import Store
from neuroage.runs.evaluation import evaluate_held_out, write_pages
from neuroage.runs.recipe import Recipe
from neuroage.runs.shipped import find_recipe
from neuroage.training.experiment import train_members


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--config", default="picture")
    parser.add_argument("--pattern", help="of class folders: a regular expression with named groups")
    parser.add_argument("--split", type=Path, help="a given split instead of a new one")
    parser.add_argument("--official", action="store_true", help="the lists that come with the data")
    parser.add_argument("--folds", type=int, default=1, help="every part is held out in turn")
    parser.add_argument("--repeats", type=int, default=1, help="weight seeds, averaged")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    parser.add_argument("--factors", help="two columns, with a comma between")
    parser.add_argument("--subjects", help="score this set: validation or test")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("labels"))
    parser.add_argument("--store", type=Path)
    options = parser.parse_args()

    started = time.monotonic()
    cohort = Cohort.from_folders(options.data, options.pattern) if options.pattern else Cohort.read(options.data)
    recipe = Recipe.load(find_recipe(options.config), options.set)
    made = Split.load(options.split) if options.split else new_split(cohort, options)
    print(f"{cohort}\n{made}")
    run = train_members(
        recipe,
        cohort,
        made,
        options.out / "run",
        folds=range(options.folds),
        repeats=options.repeats,
        store=Store(options.store),
    )
    scored = options.subjects or ("validation" if options.folds > 1 or not made.subjects("test") else "test")
    evaluation = evaluate_held_out(run, scored)
    write_pages(evaluation, options.out)
    print(f"\n{evaluation.verdict}\n\n{evaluation.table.round(3).to_string(index=False)}")
    results = {"evaluation": evaluation.to_dict(), "minutes": (time.monotonic() - started) / 60}
    if options.factors:
        factors = factors_of(cohort.table, "label", options.factors.split(","))
        view = factor_view(run.predictions, run.target, factors, sets=(scored,))
        print(f"\n{view.verdict}\n\n{view.table.round(3).to_string(index=False)}")
        results["factors"] = view.to_dict()
    write_json(options.out / "labels.json", results)
    print(f"\n{results['minutes']:.0f} minutes; page: {options.out / 'evaluation.html'}")


def new_split(cohort: Cohort, options: argparse.Namespace) -> Split:
    if options.folds > 1:
        return grouped_split(cohort, folds=options.folds, validation=1 / options.folds, test=0, seed=options.seed)
    return grouped_split(cohort, "official" if options.official else None, seed=options.seed)


if __name__ == "__main__":
    main()
