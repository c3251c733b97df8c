"""The verb list: what there is to choose from, found where it is implemented."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from neuroage.cli.options import AsJson


class Kind(str, Enum):
    """What can be listed."""

    backbones = "backbones"
    augmentations = "augmentations"
    layouts = "layouts"
    metrics = "metrics"
    configs = "configs"
    tasks = "tasks"


def list_things(what: Annotated[Kind, typer.Argument(help="What to list.")], as_json: AsJson = False) -> None:
    """List backbones, augmentations, layouts, metrics, configs or tasks, each with one line."""
    from neuroage.cli.screen import make_table, out, print_json

    rows = things(what)
    if as_json:
        print_json(rows)
    else:
        out.print(make_table("", ["name", ""], [[name, said] for name, said in rows.items()], numbers_from=9))


def things(what: Kind) -> dict[str, str]:
    """Give name → one line for everything of a kind."""
    if what is Kind.backbones:
        from neuroage.models.backbones import backbone_summary, backbones

        return {name: backbone_summary(name) for name in backbones()}
    if what is Kind.tasks:
        from importlib import import_module

        from neuroage.models.tasks import tasks

        return {name: _first_line(import_module(f"neuroage.models.tasks.{name}").__doc__) for name in tasks()}
    if what is Kind.augmentations:
        from neuroage.imaging.augment import augmentations

        return {name: _first_line(step.__doc__) for name, step in augmentations().items()}
    if what is Kind.layouts:
        from neuroage.cohort import layouts

        return {name: layout.summary for name, layout in layouts().items()}
    if what is Kind.metrics:
        from neuroage.analysis import age_metrics

        return {name: _first_line(metric.__doc__) for name, metric in age_metrics().items()}
    from neuroage.runs.shipped import shipped_recipes

    return {
        name: path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for name, path in shipped_recipes().items()
    }


def _first_line(text: str | None) -> str:
    return (text or "").strip().splitlines()[0] if text else ""
