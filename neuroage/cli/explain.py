"""The verb that shows where a run looked."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from neuroage.cli.learn import RunFolder
from neuroage.cli.options import AsJson, StoreFolder, open_store
from neuroage.errors import UsageError


class Method(str, Enum):
    """How a map is made."""

    gradcam = "gradcam"
    gradcam_plus_plus = "gradcam++"
    integrated_gradients = "integrated_gradients"
    occlusion = "occlusion"


def explain(
    run: RunFolder,
    inputs: Annotated[list[Path], typer.Argument(help="Scans, folders, or cohort tables.")],
    method: Annotated[Method, typer.Option(help="How a map is made.")] = Method.gradcam,
    target: Annotated[
        str | None, typer.Option(help="Which label is explained. (default: the most probable one of each scan)")
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(help="Grad-CAM's layer: a stage of the backbone. (default: the backbone's feature map)"),
    ] = None,
    boxes: Annotated[
        Path | None, typer.Option(help="Table of boxes that experts drew (CSV): the maps are scored against them.")
    ] = None,
    out_folder: Annotated[Path | None, typer.Option("--out", help="Folder of the maps. (default: maps-METHOD)")] = None,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> None:
    """Show where a run looked: a map over each scan, as a picture and as a file for viewers."""
    from neuroage.cli.screen import Story, make_table, out, print_json, talk
    from neuroage.runs.run import Run
    from neuroage.training.explain import explain as ask
    from neuroage.training.inputs import gather_scans

    regions = _read_boxes(boxes)
    opened = Run.open(run)
    where = out_folder or Path(f"maps-{method.value}")
    if where.is_file():
        raise UsageError(f"--out {where} is a file", expected="a folder")
    cohort = gather_scans(
        inputs, opened.recipe.modality, kind=opened.recipe.prepare.kind, reference=opened.recipe.reference
    )
    maps = ask(
        opened,
        cohort,
        method=method.value,
        target=target,
        layer=layer,
        store=open_store(store),
        observer=Story(quiet=as_json),
    )
    table = maps.save(where)
    scores = None if regions is None else maps.score(regions)
    if as_json:
        said = {"folder": where, **maps.how(), "scans": table.to_dict("records")}
        print_json({**said, **({} if scores is None else scores.to_dict())})
        return
    rows = [
        [str(row["scan_id"]), maps.in_words(scan), str(row["strongest"]), str(row["file"])]
        for row, scan in zip(table.head(20).to_dict("records"), maps.scans, strict=False)
    ]
    out.print(make_table("", ["scan", "answer", "strongest at", "map"], rows))
    if len(table) > 20:
        out.print(f"… and {len(table) - 20} more")
    if scores is not None:
        _tell_scores(scores)
    for reason in maps.failures.values():
        talk.print(f"• left out: {reason}", markup=False)
    talk.print(f"Look at {where / 'index.html'}.")


def _read_boxes(path: Path | None) -> Any:
    if path is None:
        return None
    import pandas as pd

    if not path.is_file():
        raise UsageError(f"No table of boxes at {path}")
    return pd.read_csv(path, dtype={"scan_id": str, "label": str})


def _tell_scores(scores: Any) -> None:
    from neuroage.cli.screen import make_table, out, shown

    rows = [
        [
            str(row["label"]),
            str(row["measure"]),
            shown(row["value"]),
            f"{shown(row['low'])} – {shown(row['high'])}",
            shown(row["centre"]),
            shown(row["random"]),
        ]
        for row in scores.table.to_dict("records")
    ]
    n_images = len(scores.images)
    title = f"{n_images} scans with boxes; within {scores.tolerance:.0%} of the longest side counts as a hit"
    out.print(make_table(title, ["label", "", "maps", "95 % interval", "centre", "random"], rows, numbers_from=2))
