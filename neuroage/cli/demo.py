"""The verb demo: the whole road on a synthetic cohort, told as it goes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer


def demo(
    out_folder: Annotated[Path, typer.Option("--out", help="Folder of the demo.")] = Path("demo"),
    n_subjects: Annotated[int, typer.Option("--n", min=80, help="Synthetic subjects.")] = 160,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs a training; the recipe's own when left out.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything.")] = 0,
) -> None:
    """Make a phantom cohort, split it, train T1 and TOF, compare them: minutes on two cores."""
    from neuroage.analysis import write_comparison
    from neuroage.cli.contrast import tell_comparison
    from neuroage.cli.screen import Story, age_histogram, out, talk
    from neuroage.cohort import Cohort, uniform_age_split
    from neuroage.imaging.phantom import make_phantom
    from neuroage.imaging.store import Store
    from neuroage.runs.recipe import Recipe
    from neuroage.runs.shipped import find_recipe

    started = time.monotonic()
    story = Story()
    story.stage(f"neuroage phantom --n {n_subjects}   (heads whose vessels and ventricles age; no real person)")
    facts = make_phantom(
        out_folder / "phantom", n_subjects=n_subjects, seed=seed, processes=os.cpu_count(), progress=story.preparing
    )
    story.stage("neuroage index   (who is there, and how old)")
    cohort = Cohort.read(out_folder / "phantom")
    cohort.to_csv(out_folder / "cohort.csv")
    talk.print(age_histogram(cohort.subjects()["age"].dropna().tolist(), width=30))
    story.stage("neuroage split --uniform-age   (50 people held out, their ages as uniform as can be)")
    n_validation = min(50, n_subjects // 3)
    split = uniform_age_split(cohort, n_validation=n_validation, seed=seed)
    split.save(out_folder / "split.csv")
    row = split.meta["report"]["sets"][0]
    talk.print(
        f"  W1 {row['w1_years']:.2f} years from uniform; "
        f"the best of 10,000 random splits: {split.meta['report']['random_splits']['best_w1_years']:.2f}"
    )
    story.stage("neuroage compare t1 tof   (trains both on the same people, then compares them on the 50)")
    from neuroage.training.experiment import compare_modalities

    overrides = [f"seed={seed}", *([f"training.epochs={epochs}"] if epochs else [])]
    recipes = {modality: Recipe.load(find_recipe(f"demo_{modality}"), overrides) for modality in ("t1", "tof")}
    comparison, _ = compare_modalities(
        recipes, cohort, split, out_folder / "runs", store=Store(out_folder / "prepared"), observer=story
    )
    written = write_comparison(comparison, out_folder / "compare")
    out.print()
    tell_comparison(comparison.to_dict(), written["html"])
    ceilings = facts["noise_ceiling_years"]
    figures = comparison.to_dict()["models"]
    for modality in recipes:
        out.print(
            f"{modality}: {figures[modality]['mae']:.1f} years; "
            f"no model could be below {ceilings[modality]:.1f} on this cohort."
        )
    out.print(f"{(time.monotonic() - started) / 60:.1f} minutes. Open {written['html']} in a browser.")
