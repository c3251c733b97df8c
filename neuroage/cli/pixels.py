"""Verbs about pixels: prepare, preview."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuroage.cli.bids_app import (
    BidsFolder,
    DerivativesFolder,
    LevelOfBids,
    OutDerivatives,
    ParticipantLabels,
    Request,
    SessionLabels,
    ShowVersion,
    SkipValidation,
    Work,
    WorkFolder,
    answer_bids_app,
    write_out,
)
from neuroage.cli.options import (
    COHORT,
    AsJson,
    Config,
    Data,
    Exclude,
    RegisterTo,
    Set,
    StoreFolder,
    load_cohort,
    load_recipe,
    open_store,
    registering,
)
from neuroage.cli.scale import (
    FailureTable,
    MemoryGb,
    Processes,
    Scheduler,
    ShardText,
    check_failures,
    choose_workers,
    take_shard,
    write_failures,
)
from neuroage.errors import UsageError

ALL_MAY_FAIL = 2.0  # more than any share: how many may fail is judged when they are listed


def prepare(
    bids: BidsFolder = None,
    derivatives: DerivativesFolder = None,
    level: LevelOfBids = None,
    data: Data = COHORT,
    modality: Annotated[str, typer.Option(help="Which scans.")] = "t1",
    config: Config = None,
    set_: Set = None,
    register_to: RegisterTo = None,
    exclude: Exclude = None,
    store: StoreFolder = None,
    max_failed_share: Annotated[
        float, typer.Option(min=0, max=1, help="Fail when more than this share of scans cannot be prepared.")
    ] = 0.1,
    workers: Processes = None,
    scheduler: Scheduler = "",
    shard: ShardText = "",
    memory_gb: MemoryGb = None,
    failures: FailureTable = None,
    out_folder: OutDerivatives = None,
    participant_label: ParticipantLabels = None,
    session_label: SessionLabels = None,
    work_dir: WorkFolder = None,
    skip_bids_validation: SkipValidation = False,
    version: ShowVersion = False,
    as_json: AsJson = False,
) -> None:
    """Prepare every scan once and keep it; training does this by itself where it is missing.

    With BIDS, OUT and a level it is a BIDS App: scans in, derivatives out.
    """
    from neuroage.cli.screen import Story, out, print_json, talk
    from neuroage.imaging.preparation import prepare_scans, refuse_too_many_failures

    set_ = registering(set_, register_to)
    check_failures(failures, data)
    kept = work_dir / "prepared" if store is None and work_dir is not None else store
    chosen = (tuple(participant_label or ()), tuple(session_label or ()), modality, config, set_)
    work = Work(workers, scheduler, memory_gb, shard, failures)
    if answer_bids_app(Request(bids, derivatives, level, *chosen, kept, max_failed_share, as_json, exclude, work)):
        return
    recipe = load_recipe(config, modality, set_)
    where, scans = open_store(kept), recipe.select(load_cohort(data, exclude)).scans()
    if out_folder is not None:
        write_out(scans, recipe, out_folder, where.folder, max_failed_share, work, as_json=as_json)
        return
    scans = take_shard(scans, shard)
    who = choose_workers(recipe.prepare, workers, scheduler, memory_gb)
    story = Story(quiet=as_json)
    story.stage(f"Preparing {len(scans)} {recipe.modality} scans" + f" (share {shard})" * bool(shard))
    prepared = prepare_scans(
        scans, recipe.prepare, where, max_failed_share=ALL_MAY_FAIL, workers=who, progress=story.preparing
    )
    write_failures(failures, scans, prepared.failures)
    refuse_too_many_failures(prepared.failures, len(scans), max_failed_share)
    n_bytes = sum(volume.path.stat().st_size for volume in prepared.volumes.values())
    loss = max((volume.record["precision_loss"] for volume in prepared.volumes.values()), default=0.0)
    if as_json:
        print_json(
            {
                "store": where.folder,
                "n_prepared": len(prepared.volumes),
                "n_made": prepared.n_made,
                "bytes": n_bytes,
                "precision_loss": loss,
                "failures": prepared.failures,
            }
        )
        return
    for reason in prepared.failures.values():
        talk.print(f"• left out: {reason}", markup=False)
    out.print(
        f"{len(prepared.volumes)} scans prepared ({prepared.n_made} now), {n_bytes / 1e6:.1f} MB "
        f"as {recipe.prepare.store_as} in {where.folder}; "
        f"rounding changes an intensity by at most {loss:.2g}."
    )


def preview(
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(help="Scans or pictures: image files or DICOM folders. Without any: some of the cohort."),
    ] = None,
    data: Data = COHORT,
    modality: Annotated[str, typer.Option(help="Which scans of the cohort.")] = "t1",
    config: Config = None,
    set_: Set = None,
    register_to: RegisterTo = None,
    exclude: Exclude = None,
    n_scans: Annotated[
        int, typer.Option("--n", min=1, max=20, help="Scans taken from the cohort, evenly over age.")
    ] = 3,
    n_augmented: Annotated[int, typer.Option(min=0, max=10, help="Augmentations of each scan.")] = 3,
    out_file: Annotated[Path, typer.Option("--out", help="Where the picture is written.")] = Path("preview.png"),
) -> None:
    """Draw scans or pictures as they are, prepared, and augmented: see what the network sees."""
    from neuroage.cli.screen import talk
    from neuroage.imaging.preview import preview as draw
    from neuroage.training.augmentation import build_augmentation
    from neuroage.training.train import check_recipe

    recipe = load_recipe(config, modality, registering(set_, register_to))
    check_recipe(recipe)
    scans = [(path.name, path) for path in inputs or []]
    if not scans:
        table = recipe.select(load_cohort(data, exclude)).table.sort_values("age")
        table = table[table["path"] != ""]
        if table.empty:
            raise UsageError(f"The cohort {data} has no {recipe.modality} scans with a file")
        chosen = table.iloc[
            [round(step * (len(table) - 1) / max(n_scans - 1, 1)) for step in range(min(n_scans, len(table)))]
        ]
        scans = [
            (
                f"{row['scan_id']}" + (f", {row['age']:.0f} y" if row["age"] == row["age"] else ""),
                Path(str(row["path"])),
            )
            for row in chosen.to_dict("records")
        ]
    draw(scans, recipe, build_augmentation(recipe), out_file, n_augmented=n_augmented)
    talk.print(f"Wrote {out_file}.")
