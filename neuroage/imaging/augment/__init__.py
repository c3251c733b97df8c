"""Augmentation of training scans: sample → apply → record, whole batches at once, on the device that they are on.

A step is one file in this folder: its options (as written in a recipe), its sampler and its kernel. Steps are found by
themselves; listing their names imports nothing.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from neuroage.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from neuroage.imaging.augment.pipeline import Pipeline, Record
    from neuroage.imaging.augment.step import Step

_NOT_STEPS = {"cpu_kernels", "parts", "pipeline", "ranges", "resample", "step"}

__all__ = ["Pipeline", "Record", "Step", "augmentation_names", "augmentations", "parse_steps"]


def augmentation_names() -> list[str]:
    """List the names of all steps, in alphabetical order, without importing any of them."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _NOT_STEPS)


@functools.lru_cache(maxsize=1)
def augmentations() -> dict[str, type[Step]]:
    """Give every step's class by its name.

    Example:
        >>> sorted(augmentations())
        ['affine', 'bias_field', 'binning', 'flip', 'gamma', 'noise']
    """
    return {name: _step_class(name) for name in augmentation_names()}


def _step_class(name: str) -> type[Step]:
    from neuroage.imaging.augment.step import Step

    module = importlib.import_module(f"{__name__}.{name}")
    found = [
        thing
        for thing in vars(module).values()
        if isinstance(thing, type) and issubclass(thing, Step) and thing.__module__ == module.__name__
    ]
    if len(found) != 1 or found[0].model_fields["step"].default != name:
        raise TypeError(f"{module.__name__} must define one Step whose `step` is {name!r}; it defines {found}")
    return found[0]


def parse_steps(entries: Iterable[Mapping[str, Any] | Step]) -> list[Step]:
    """Read steps as a recipe writes them, and report everything that is wrong at once.

    Args:
        entries: One mapping for each step: `step` is its name, the rest are its options.

    Returns:
        The steps in their order.

    Raises:
        UsageError: An unknown step or option, or a value out of range; all of them in one message.

    Example:
        >>> parse_steps([{"step": "flip", "p": 0.5}])
        [Flip(step='flip', p=0.5, axes=None)]
    """
    steps, problems = [], []
    for number, entry in enumerate(entries):
        try:
            steps.append(parse_step(entry, where=f"augment[{number}]"))
        except UsageError as error:
            problems.append(str(error))
    if problems:
        raise UsageError("\n".join(problems))
    return steps


def parse_step(entry: Mapping[str, Any] | Step, where: str = "augment") -> Step:
    """Read one step; see `parse_steps`."""
    from pydantic import ValidationError

    from neuroage.imaging.augment.step import Step

    if isinstance(entry, Step):
        return entry
    if not isinstance(entry, Mapping) or "step" not in entry:
        raise UsageError(f"{where} is {entry!r}", expected="a mapping such as {step: flip, p: 0.5}")
    if entry["step"] not in augmentation_names():
        raise UsageError(
            f"{where}: no step is called {entry['step']!r}", expected=did_you_mean(entry["step"], augmentation_names())
        )
    step_class = augmentations()[entry["step"]]
    try:
        return step_class.model_validate(dict(entry))
    except ValidationError as error:
        # A value that fits no member of a union is reported once for each member; one report an option is enough.
        problems = {str(problem["loc"][:1]): problem for problem in reversed(error.errors())}
        said = [_said(where, problem, step_class) for problem in reversed(problems.values())]
        raise UsageError("\n".join(said)) from None


def _said(where: str, problem: Any, step_class: type[Step]) -> str:
    option = str(problem["loc"][0]) if problem["loc"] else ""
    place = f"{where} ({step_class.model_fields['step'].default})" + (f", {option}" if option else "")
    if problem["type"] == "extra_forbidden":
        allowed = did_you_mean(option, step_class.model_fields)
        return f"{place}: there is no such option; expected {allowed}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{place}: {message} (received {problem['input']!r})"


def __getattr__(name: str) -> Any:
    """Import the pipeline (and torch) when it is first asked for."""
    homes = {"Pipeline": "pipeline", "Record": "pipeline", "Step": "step"}
    if name not in homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{homes[name]}"), name)
