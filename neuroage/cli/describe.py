"""The verbs describe and lr-range: what will be trained, and how fast it may learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuroage.cli.options import (
    COHORT,
    SPLIT,
    AsJson,
    Config,
    Data,
    Exclude,
    Set,
    SplitFile,
    StoreFolder,
    load_cohort,
    load_recipe,
    load_split,
    modality_of,
    open_store,
)

if TYPE_CHECKING:
    from neuroage.runs.recipe import Recipe
    from neuroage.training.plan import Plan


def describe(
    what: Annotated[str, typer.Argument(metavar="RUN|CONFIG", help="A run folder, a YAML file or a shipped recipe.")],
    set_: Set = None,
    epoch: Annotated[int, typer.Option("--epoch", min=0, help="After how many epochs: what is frozen then.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Show a network's stages, what of it trains when and how fast, its size, operations and memory."""
    from neuroage.cli.screen import print_json
    from neuroage.training.description import describe_network
    from neuroage.training.train import check_recipe

    recipe, run = _recipe_of(what, set_)
    check_recipe(recipe)
    described = describe_network(recipe, epoch)
    plan, n_scans = _plan(recipe, run)
    if as_json:
        name = {"backbone": recipe.backbone.name, "run": run}
        print_json({**name, **described.to_dict(), "plan": plan.to_dict(), "n_train_scans": n_scans})
        return
    _show(recipe, described, run)
    _show_plan(plan, n_scans)


def lr_range(
    modality: Annotated[
        str | None, typer.Option(help="Which scans: t1, tof, … (default: the recipe's, else t1)")
    ] = None,
    data: Data = COHORT,
    split: SplitFile = SPLIT,
    config: Config = None,
    set_: Set = None,
    exclude: Exclude = None,
    fold: Annotated[int, typer.Option(min=0, help="Fold of the split whose training scans are used.")] = 0,
    lowest: Annotated[float, typer.Option("--from", help="Lowest learning rate.")] = 1e-6,
    highest: Annotated[float, typer.Option("--to", help="Highest learning rate.")] = 1.0,
    steps: Annotated[int, typer.Option("--steps", help="Steps; the rate grows by the same factor in each.")] = 100,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder of the picture and the table.")] = Path("lr-range"),
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> None:
    """Find a learning rate: let it grow step by step on the training scans and watch the loss (Smith 2017)."""
    from neuroage.cli.screen import Story, out, print_json
    from neuroage.files import atomic_path
    from neuroage.training.rate_range import draw_range, find_rate

    recipe = load_recipe(config, modality or modality_of(config), set_)
    cohort = load_cohort(data, exclude)
    found = find_rate(
        recipe,
        cohort,
        load_split(split, cohort),
        fold=fold,
        lowest=lowest,
        highest=highest,
        n_steps=steps,
        store=open_store(store),
        observer=Story(quiet=as_json),
    )
    out_folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(out_folder / "lr_range.csv") as temporary:
        found.table.to_csv(temporary, index=False)
    draw_range(found, out_folder / "lr_range.png", title=f"Learning-rate range test: {recipe.backbone.name}")
    if as_json:
        print_json(
            {
                "suggested": found.suggested,
                "lowest_loss_at": found.lowest,
                "diverged": found.diverged,
                "steps": len(found.table),
                "folder": str(out_folder),
            }
        )
        return
    out.print(f"[bold]{found.words}[/]")
    if found.diverged:
        out.print(f"The loss exploded at {found.table['learning_rate'].iloc[-1]:.2g}.")
    out.print(f"Picture: {out_folder / 'lr_range.png'}")


def _recipe_of(what: str, overrides: list[str] | None) -> tuple[Recipe, dict[str, Any] | None]:
    """Give the recipe of a run or of a configuration, and what is known of the run."""
    from neuroage.runs.run import Run

    if not Path(what).is_dir():
        return load_recipe(what, modality_of(what), overrides), None
    run = Run.open(what)
    leaf = next(iter(run.leaves), run)
    about = {**run.about, **leaf.about}
    known = {
        "folder": str(run.folder),
        "status": run.about["status"],
        "members": len(run.members),
        "epochs_done": len(leaf.history),
        "counts": about.get("counts", {}),
        "precision": about.get("precision"),
        "init_from": about.get("init_from", {}).get("run"),
    }
    learnt = {"multiclass": "classes", "multilabel": "labels"}.get(
        run.target["kind"]
    )  # which the recipe may leave open
    names = [f"task.{learnt}={json.dumps(run.target['labels'])}"] if learnt else []
    return leaf.recipe.updated(*names, *(overrides or [])), known


def _plan(recipe: Recipe, run: dict[str, Any] | None) -> tuple[Plan, int]:
    """Plan the memory on this machine for the most that will ever train."""
    from neuroage.cli.plan import N_SCANS
    from neuroage.models.freezing import freeze_for
    from neuroage.training.description import empty_network
    from neuroage.training.devices import make_fabric
    from neuroage.training.plan import plan_training

    device = make_fabric("fp32").device
    network = empty_network(recipe)
    freeze_for(network, recipe)
    precision = (run or {}).get("precision") or recipe.training.precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    n_scans = int((run or {}).get("counts", {}).get("train", 0)) or N_SCANS
    return plan_training(
        recipe, network, precision=precision, device=device, n_train_scans=n_scans, exact=True
    ), n_scans


def _show(recipe: Recipe, described: Any, run: dict[str, Any] | None) -> None:
    from neuroage.cli.screen import make_table, out

    if run:
        counts = ", ".join(f"{n} {name}" for name, n in run["counts"].items())
        said = [run["status"], f"{run['epochs_done']} epochs done", f"{counts} scans" if counts else ""]
        said += [run["precision"] or "", f"{run['members']} members" if run["members"] else ""]
        said += [f"backbone of {run['init_from']}" if run["init_from"] else ""]
        out.print(f"[bold]{run['folder']}[/]: {', '.join(filter(None, said))}")
    out.print(f"[bold]{recipe.backbone.name}[/] for {recipe.modality}, after {described.epoch} epochs")
    rows = [
        [
            stage.name,
            f"{stage.depth:.2f}",
            f"{stage.parameters:,}",
            "never" if stage.trains_after is None else f"{stage.trains_after} epochs",
            "–" if stage.trains_after is None else f"{stage.learning_rate:.2g}",
            "frozen" if stage.frozen else "trains",
        ]
        for stage in described.stages
    ]
    out.print(make_table("", ["stage", "depth", "parameters", "trains after", "highest rate", "now"], rows))
    shape = "×".join(map(str, described.input_shape))
    out.print(
        f"{described.parameters:,} parameters, of which {described.trained:,} train now and "
        f"{described.ever_trained:,} in any epoch"
    )
    out.print(f"{described.forward_flops / 1e9:,.2f} GFLOP forward for one scan of {shape} (channels × voxels)")


def _show_plan(plan: Plan, n_scans: int) -> None:
    from neuroage.cli.screen import out
    from neuroage.training.plan import in_gib

    needed = "unknown" if plan.peak_bytes is None else in_gib(plan.peak_bytes)
    fits = "" if plan.fits else " [red]It does not fit.[/]"
    out.print(
        f"Memory of a training step on {n_scans} scans, {plan.precision}: {needed} of the {in_gib(plan.budget_bytes)} "
        f"to be used here; {plan.words}.{fits}"
    )
