"""The verb that makes a synthetic cohort: phantom."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuroage.cli.options import AsJson


def phantom(
    out_folder: Annotated[Path, typer.Option("--out", help="Folder of the BIDS data set.")] = Path("phantom"),
    n_subjects: Annotated[int, typer.Option("--n", min=1, help="Number of subjects.")] = 160,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same files.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Make a synthetic cohort: heads with T1 and angiography that age in documented ways."""
    import os

    from neuroage.cli.screen import Story, print_json, talk
    from neuroage.imaging.phantom import make_phantom

    story = Story(quiet=as_json)
    story.stage(f"Making {n_subjects} synthetic subjects in {out_folder}")
    facts = make_phantom(
        out_folder, n_subjects=n_subjects, seed=seed, processes=os.cpu_count(), progress=story.preparing
    )
    if as_json:
        print_json({"folder": out_folder, "noise_ceiling_years": facts["noise_ceiling_years"]})
        return
    ceilings = ", ".join(f"{modality} {years:.1f}" for modality, years in facts["noise_ceiling_years"].items())
    talk.print(f"No model can have a smaller mean absolute error than (years): {ceilings}.")
    talk.print(f"Next: `neuroage index {out_folder}`.")
