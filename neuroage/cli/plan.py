"""The verb plan: what a training needs before it is started."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuroage.cli.options import AsJson, Config, Set, load_cohort, load_recipe, load_split, modality_of
from neuroage.errors import UsageError

if TYPE_CHECKING:
    import torch

    from neuroage.models.network import Network
    from neuroage.runs.recipe import Recipe
    from neuroage.training.plan import Plan

UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}  # powers of two; of ten where only a B follows
N_SCANS = 240  # as many as the shipped recipes were tried on
PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimiser": "optimiser",
    "moving_average": "moving average",
    "batch": "batch, augmented",
    "activations": "kept for the backward pass",
    "volumes": "volumes kept on the device",
    "buckets": "exchange between processes",
    "allowance": "CUDA context and workspaces",
}


def plan(
    modality: Annotated[
        str | None, typer.Option(help="Which scans: t1, tof, … (default: the recipe's, else t1)")
    ] = None,
    config: Config = None,
    set_: Set = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Cohort, to count its training scans; with --split.")
    ] = None,
    split: Annotated[Path | None, typer.Option("--split", help="Split, to count the training scans.")] = None,
    scans: Annotated[
        int | None,
        typer.Option("--scans", min=8, help="Number of training scans. (default: those of --data, else 240)"),
    ] = None,
    device_memory: Annotated[
        str | None,
        typer.Option("--device-memory", metavar="SIZE", help="Free memory of another GPU, such as 8GiB or 512MiB."),
    ] = None,
    no_probe: Annotated[bool, typer.Option("--no-probe", help="Leave out the timing of a few steps.")] = False,
    as_json: AsJson = False,
) -> None:
    """Foretell memory and time of a training, and propose what fits, without training."""
    size = None if device_memory is None else parse_size(device_memory)
    from neuroage.cli.screen import print_json

    recipe = load_recipe(config, modality or modality_of(config), set_)
    n_scans = scans or (_count(recipe, data, split) if data or split else N_SCANS)
    made, device = _plan(recipe, n_scans, size, probe=not no_probe)
    times = _time(recipe, made, n_scans) if made.fits and not no_probe else None
    if as_json:
        print_json(
            {
                "plan": made.to_dict(),
                "overrides": made.overrides,
                "device": device,
                "n_train_scans": n_scans,
                "time": times.to_dict() if times else None,
            }
        )
        return
    _show(recipe, made, device, n_scans, times, elsewhere=size is not None)


def parse_size(text: str) -> int:
    """Read a size of memory: 8GiB, 8G (both binary), 8GB (decimal), 512MiB.

    Raises:
        UsageError: It is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b)?\s*", text, re.IGNORECASE)
    n_bytes = 0
    if found:
        number, unit, ending = float(found[1]), found[2].lower(), (found[3] or "").lower()
        decimal = unit and ending == "b"
        n_bytes = int(number * (10 ** (UNITS[unit] * 3 // 10) if decimal else 2 ** UNITS[unit]))
    if n_bytes < 1 << 20:
        raise UsageError(f"--device-memory {text}", expected="a size of at least 1 MiB, such as 8GiB, 8GB or 512MiB")
    return n_bytes


def _count(recipe: Recipe, data: Path | None, split: Path | None) -> int:
    from neuroage.cli.options import COHORT, SPLIT

    cohort = load_cohort(data or COHORT)
    made = load_split(split or SPLIT, cohort)
    table = recipe.select(cohort).table
    return int((table["subject_id"].map(made.sets(0)) == "train").sum())


def _plan(recipe: Recipe, n_scans: int, size: int | None, *, probe: bool) -> tuple[Plan, str]:
    import torch

    from neuroage.models.freezing import freeze_for
    from neuroage.models.network import build_network
    from neuroage.models.tasks import foresee_task
    from neuroage.training.devices import make_fabric
    from neuroage.training.plan import plan_training
    from neuroage.training.train import check_recipe

    check_recipe(recipe)
    device = make_fabric("fp32").device if size is None else torch.device("cuda")
    network = build_network(
        recipe,
        spatial_dims=len(recipe.prepare.size),
        in_channels=recipe.prepare.n_channels,
        n_outputs=foresee_task(recipe).n_outputs,
        pretrained=False,
    )
    freeze_for(network, recipe)
    precision = _precision(recipe, network, device, probe=probe and size is None)
    made = plan_training(
        recipe,
        network.cpu(),
        precision=precision,
        device=device,
        n_train_scans=n_scans,
        device_memory=size,
        exact=True,
    )
    return made, "another GPU" if size is not None else device.type


def _precision(recipe: Recipe, network: Network, device: torch.device, *, probe: bool) -> str:
    """Give the recipe's number format; what `auto` becomes is probed here, and guessed for other machines."""
    if recipe.training.precision != "auto":
        return recipe.training.precision
    if not probe:
        return "bf16" if device.type == "cuda" else "fp32"
    from neuroage.training.precision import choose_precision

    shape = (2, recipe.prepare.n_channels, *recipe.prepare.size)
    return choose_precision(network.to(device), shape, device)


def _time(recipe: Recipe, made: Plan, n_scans: int) -> Any:
    from neuroage.training.epoch_time import epoch_seconds

    return epoch_seconds(recipe, made, n_scans)


def _show(recipe: Recipe, made: Plan, device: str, n_scans: int, times: Any, *, elsewhere: bool) -> None:
    from neuroage.cli.screen import make_table, out
    from neuroage.training.plan import in_gib

    out.print(f"[bold]{recipe.backbone.name}[/] on {n_scans} {recipe.modality} scans, {made.precision}, {device}")
    rows = [[words, in_gib(made.parts[name])] for name, words in PARTS.items() if made.parts.get(name)]
    rows.append(["[bold]peak[/]", f"[bold]{'unknown' if made.peak_bytes is None else in_gib(made.peak_bytes)}[/]"])
    rows.append(["to be used", f"{in_gib(made.budget_bytes)} of {in_gib(made.device_memory)}"])
    out.print(make_table("", ["memory", ""], rows))
    if made.peak_bytes is not None:
        out.print("[green]It fits.[/]" if made.fits else "[red]It does not fit.[/]")
    for reason in made.reasons:
        out.print(f"  • {reason}")
    out.print(f"  {made.words}")
    out.print("  " + " ".join(f"--set {override}" for override in made.overrides))
    if times is not None:
        where = " on this machine (not the other one)" if elsewhere else ""
        out.print(
            f"{in_time(times.epoch_seconds)} an epoch of {times.n_steps} steps, {in_time(times.training_seconds)} for "
            f"{recipe.training.epochs} epochs{where}; preparing the scans comes before."
        )
        if times.note:
            out.print(f"  • {times.note}")


def in_time(seconds: float) -> str:
    """Set a duration in the unit that fits it."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
