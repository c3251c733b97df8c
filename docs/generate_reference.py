"""Write the reference pages that can be read off the code: commands, recipe, Python names.

`python docs/generate_reference.py` writes docs/reference/{cli,recipe,python}.md. With `--check` it changes nothing and
exits with 1 when a page is not current.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from read_code import (
    WORDS,
    attribute_notes,
    default_in_words,
    documented,
    first_line,
    said_by,
    signature,
    table,
    value_in_words,
    without_none,
)
from typer.models import ArgumentInfo, OptionInfo

PAGES = Path(__file__).resolve().parent / "reference"
MADE = "<!-- Written by docs/generate_reference.py from the code; edit the code, then run it again. -->\n"
NOT_LISTED = ("apply_transform", "model_post_init")  # called by TorchIO and pydantic, not by people

# What a reader of python.md meets, in the order of a scan's way: heading → module → names.
LISTED: dict[str, dict[str, tuple[str, ...]]] = {
    "Who": {"neuroage": ("Cohort", "Scan", "Split", "uniform_age_split", "stratified_age_split", "read_split"),
            "neuroage.cohort.parts": ("Part", "all_parts")},
    "Models": {"neuroage": ("AgeRegressor", "load")},
    "What it means": {
        "neuroage": ("evaluate", "compare_models"),
        "neuroage.analysis": ("Evaluation", "Comparison", "write_evaluation", "write_comparison", "age_metrics",
                              "paired_difference", "smallest_detectable_difference", "loss_curves"),
    },
    "What a training leaves": {
        "neuroage": ("Recipe", "Run"),
        "neuroage.runs.contract": ("InputContract",),
        "neuroage.runs.calibration": ("calibrate", "read_calibration", "read_population"),
        "neuroage.analysis": ("Calibration",),
    },
    "Pixels": {
        "neuroage.imaging.read": ("read", "Volume"),
        "neuroage.imaging.prepare": ("prepare", "prepare_file", "Prepared"),
        "neuroage.imaging.store": ("Store",),
        "neuroage.imaging.preparation": ("prepare_scans",),
        "neuroage.imaging.workers": ("Workers",),
        "neuroage.imaging.phantom": ("make_phantom", "phantom_subject", "noise_ceiling"),
    },
    "Raw scans": {
        "neuroage.imaging.registration.register": ("register_to_template",),
        "neuroage.imaging.registration.within": ("register_within",),
        "neuroage.imaging.registration.align": ("align",),
        "neuroage.imaging.registration.result": ("Registration",),
        "neuroage.imaging.registration.transform": ("place", "describe", "write_transform", "read_transform"),
        "neuroage.imaging.registration.mni152": ("load_mni152", "Template"),
        "neuroage.imaging.steps.bias": ("correct_bias",),
        "neuroage.imaging.steps.brain": ("brain_mask", "template_mask", "is_stripped", "BrainMask"),
        "neuroage.imaging.steps.vessels": ("enhance_vessels", "binarise_vessels"),
        "neuroage.imaging.histogram": ("learn_landmarks",),
        "neuroage.imaging.raw": ("make_ready", "Readied"),
        "neuroage.imaging.derivatives": ("write_derivatives",),
        "neuroage.imaging.qc": ("write_qc",),
    },
    "Augmentation": {
        "neuroage.imaging.augment": ("parse_steps", "Pipeline"),
        "neuroage.imaging.torchio_steps": ("Affine", "BiasField", "Binning", "Gamma", "Noise", "RandomAffine",
                                           "RandomBiasField", "RandomBinning", "RandomGamma", "RandomNoise"),
    },
    "Training": {
        "neuroage.training.train": ("train",),
        "neuroage.training.experiment": ("train_members", "compare_modalities", "compare_runs"),
        "neuroage.training.check": ("check",),
        "neuroage.training.predict": ("predict", "evaluate_on"),
        "neuroage.training.selftest": ("selftest",),
        "neuroage.training.observer": ("Observer",),
    },
    "Errors": {
        "neuroage.errors": ("NeuroageError", "UsageError", "SetupError", "DataError", "InfeasibleError",
                            "RefusedError"),
    },
}  # fmt: skip


INNER = ("registration", "bias_field", "brain", "vessels", "binning", "histogram")  # sections within `prepare`


def commands() -> dict[str, Callable[..., Any]]:
    """Give every command: name → the function behind it."""
    from neuroage.cli.main import app

    found = {}
    for command in app.registered_commands:
        assert command.callback is not None
        found[command.name or command.callback.__name__.replace("_", "-")] = command.callback
    return found


def parameters(function: Callable[..., Any]) -> Iterator[tuple[str, Any, Any, OptionInfo | ArgumentInfo]]:
    """Give (name as typed, type, default, typer's note) of every parameter of a command."""
    hints = typing.get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        kind, *notes = typing.get_args(hints[name])
        note = next(note for note in notes if isinstance(note, (OptionInfo, ArgumentInfo)))
        # Inside Annotated, typer keeps the first spelling of an option where a default would stand.
        spelt = [note.default] if isinstance(note.default, str) and note.default.startswith("-") else []
        typed = ", ".join([*spelt, *(note.param_decls or ())]) or "--" + name.replace("_", "-")
        if isinstance(note, ArgumentInfo):
            typed = str(note.metavar or name.upper())
        yield typed, kind, parameter.default, note


def cli_page() -> str:
    """Make the page of all commands and options."""
    from neuroage.cli import main

    parts = [MADE, "# Commands\n", "```text\nneuroage [--version] [--debug] COMMAND …\n```\n",
             "Results go to stdout, talk goes to stderr. `--json` prints the result for scripts. `--debug` shows the "
             "traceback of an error. `-h` or `--help` explains each command.\n", f"{main.EPILOG}\n"]  # fmt: skip
    for name, function in commands().items():
        parts += [f"## {name}\n", f"{first_line(function)}\n"]
        rows = [_cli_row(*parameter) for parameter in parameters(function)]
        parts += [table(["", "value", "default", "meaning"], rows)]
    return "\n".join(parts)


def _cli_row(typed: str, kind: Any, default: Any, note: OptionInfo | ArgumentInfo) -> list[str]:
    said = str(note.help or "")
    in_words = re.search(r"\s*(?:\\?\[|\()default: (.+?)[\])]", said)
    said = said.replace(in_words[0], "") if in_words else said
    kind = without_none(kind)
    value = note.metavar if isinstance(note, OptionInfo) and note.metavar else _cli_value(kind, note)
    if in_words:
        shown = in_words[1]
    elif default is inspect.Parameter.empty:
        shown = "required"
    else:
        shown = "" if default is None or default is False else f"`{default}`"
    spelt = typed.replace(", ", "`, `")
    return [f"`{spelt}`", "" if kind is bool else str(value), shown, said]


def _cli_value(kind: Any, note: OptionInfo | ArgumentInfo) -> str:
    if typing.get_origin(kind) is list:
        return f"{_cli_value(typing.get_args(kind)[0], note)}, may be repeated"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(f"`{member.value}`" for member in kind)
    limits = [
        sign.format(f"{bound:g}") for bound, sign in ((note.min, "≥ {}"), (note.max, "≤ {}")) if bound is not None
    ]
    return " ".join([WORDS.get(kind, str(kind)), " and ".join(limits)]).strip()


def recipe_page() -> str:
    """Make the page of every key of a recipe."""
    from neuroage.imaging.augment import augmentations
    from neuroage.models.backbones import GIVEN, backbone_builder, backbones
    from neuroage.models.tasks import tasks
    from neuroage.runs import recipe

    parts = [MADE, "# Recipe\n", said_by(recipe.Recipe) + "\n",
             "A recipe is one YAML file. Every key has a default, so a recipe names only what differs. Unknown keys, "
             "wrong types and bad ranges are reported together, each with its line. `--set optim.lr=1e-4` changes one "
             "value; numbers in a key count list entries from 0, as in `--set augment.0.p=0.2`.\n"]  # fmt: skip
    parts += ["## Top level\n", table(["key", "value", "default", "meaning"], _model_rows(recipe.Recipe, ""))]
    hints = typing.get_type_hints(recipe.Recipe)
    sections = [("prepare", recipe.Prepare), ("prepare", recipe.PreparePicture)]
    sections += [(name, hints[name]) for name in ("head", "finetune", "optim", "training", "predict")]
    for section, model in sections:
        title = f"{section}, for pictures" if model is recipe.PreparePicture else section
        parts += [f"## {title}\n", said_by(model) + "\n"]
        parts += [table(["key", "value", "default", "meaning"], _model_rows(model, f"{section}."))]
        if model is recipe.Prepare:
            inside = typing.get_type_hints(recipe.Prepare)
            for name in INNER:
                inner = without_none(inside[name])
                parts += [f"### prepare.{name}\n", said_by(inner) + "\n"]
                parts += [table(["key", "value", "default", "meaning"], _model_rows(inner, f"prepare.{name}."))]
    parts += ["## Backbones\n", "`backbone: {name: cnn, n_blocks: 4}` takes the options of that backbone.\n"]
    for name in backbones():
        build = backbone_builder(name)
        module = sys.modules[build.__module__]
        without = GIVEN if hasattr(module, "check_weights") else (*GIVEN, "weights")
        parts += [f"### backbone: {name}\n", f"{first_line(module)}\n", _options(build, without)]
    parts += ["## Tasks\n", "`task: {name: soft_label_age, sigma_years: 2}` takes the options of that task.\n"]
    for name in tasks():
        kind = importlib.import_module(f"neuroage.models.tasks.{name}").TASK
        parts += [f"### task: {name}\n", f"{first_line(kind)}\n", _options(kind, ())]
    parts += ["## Augmentation steps\n",
              "`augment` lists steps in order. Each is `{step: NAME, …}` with the options below, or "
              "`{torchio: CLASS, …}` with the arguments of that TorchIO transform.\n"]  # fmt: skip
    for name, step in augmentations().items():
        rows = _model_rows(step, "", skip=("step",), meanings=attribute_notes(step))
        parts += [f"### step: {name}\n", said_by(step) + "\n", table(["option", "value", "default", "meaning"], rows)]
    return "\n".join(parts)


def recipe_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Give every dotted key of a recipe section, its own sections included."""
    for name, hint in typing.get_type_hints(model).items():
        if name in model.model_fields:
            kind = without_none(hint)
            yield f"{prefix}{name}"
            for inner in typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,):
                if isinstance(inner, type) and issubclass(inner, BaseModel) and inner.__name__ != "Named":
                    yield from recipe_keys(inner, f"{prefix}{name}.")


def _model_rows(
    model: type[BaseModel], prefix: str, *, skip: tuple[str, ...] = (), meanings: dict[str, str] | None = None
) -> list[list[str]]:
    meanings = meanings if meanings is not None else documented(model, "Attributes")
    hints = typing.get_type_hints(model, include_extras=True)
    rows = []
    for name, field in model.model_fields.items():
        if name in skip:
            continue
        value = value_in_words(hints[name], field.metadata)
        rows.append(
            [f"`{prefix}{name}`", value, default_in_words(field.get_default(call_default_factory=True)), meanings[name]]
        )
    return rows


def _options(build: Callable[..., Any], skip: tuple[str, ...]) -> str:
    hints = typing.get_type_hints(build.__init__ if inspect.isclass(build) else build, include_extras=True)
    meanings, rows = documented(build, "Args"), []
    for name, parameter in inspect.signature(build).parameters.items():
        if name not in skip:
            rows.append([f"`{name}`", value_in_words(hints[name]), default_in_words(parameter.default), meanings[name]])
    return table(["option", "value", "default", "meaning"], rows)


def python_page() -> str:
    """Make the list of public names with their signatures and first lines."""
    parts = [MADE, "# Python\n",
             "`import neuroage as na` gives the names under `neuroage`. `help(na.Cohort)` shows more. "
             "Ages are in years, `gap = predicted_age − age`, volumes are `(1, I, J, K)` in RAS+.\n"]  # fmt: skip
    for heading, modules in LISTED.items():
        parts.append(f"## {heading}\n")
        for module_name, names in modules.items():
            module = importlib.import_module(module_name)
            for name in names:
                parts += _python_entry(getattr(module, name), f"{module_name}.{name}")
    return "\n".join(parts)


def _python_entry(thing: Any, name: str) -> list[str]:
    parts = [f"### {name}\n", f"```python\n{name.rsplit('.', 1)[1]}{signature(thing)}\n```\n", f"{first_line(thing)}\n"]
    if not inspect.isclass(thing):
        return parts
    rows = []
    for member, found in vars(thing).items():
        if member.startswith("_") or member in NOT_LISTED or not (getattr(found, "__doc__", "") or "").strip():
            continue
        if isinstance(found, property):
            rows.append([f"`.{member}`", first_line(found)])
        elif inspect.isfunction(found) or isinstance(found, classmethod):
            function = found.__func__ if isinstance(found, classmethod) else found
            rows.append([f"`.{member}{signature(function)}`", first_line(function)])
    return [*parts, table(["", ""], rows)] if rows and not issubclass(thing, Exception) else parts


def pages() -> dict[Path, str]:
    """Make every page: file → text."""
    return {PAGES / "cli.md": cli_page(), PAGES / "recipe.md": recipe_page(), PAGES / "python.md": python_page()}


def main(arguments: list[str]) -> int:
    """Write the pages, or with --check say which are not current."""
    stale = 0
    for path, text in pages().items():
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        if before == text:
            continue
        stale += 1
        if "--check" in arguments:
            print(
                "\n".join(
                    difflib.unified_diff(before.splitlines(), text.splitlines(), str(path), "now", lineterm="", n=0)
                )
            )
        else:
            path.write_text(text, encoding="utf-8")
            print(f"Wrote {path}")
    if stale and "--check" in arguments:
        print(f"{stale} pages are not current: run `python docs/generate_reference.py`.")
    return int(bool(stale) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
