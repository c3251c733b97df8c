"""Options of backbones and tasks: read from a signature, checked like the rest of the recipe."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Collection
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from neuroage.runs.recipe_text import Problem, problems_of


def options_of(build: Callable[..., Any], *, without: Collection[str] = ()) -> type[BaseModel]:
    """Make a pydantic model of a callable's keyword arguments.

    Args:
        build: A function or class; annotations (with pydantic `Field` limits) and defaults are taken from its
            signature.
        without: Arguments that the caller fills in, which are no options.
    """
    hints = typing.get_type_hints(build.__init__ if inspect.isclass(build) else build, include_extras=True)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(build).parameters.items():
        if name not in without:
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            fields[name] = (hints.get(name, Any), default)
    return create_model(f"{build.__name__}_options", __config__=ConfigDict(extra="forbid"), **fields)


def check_options(
    build: Callable[..., Any], options: dict[str, Any], key: str, *, without: Collection[str] = ()
) -> tuple[dict[str, Any], list[Problem]]:
    """Check options against a signature.

    Args:
        build: What will be called with the options.
        options: As they stand in the recipe.
        key: Where they stand, such as "backbone".
        without: Arguments that are no options.

    Returns:
        The options with defaults filled in and types converted, and the problems found (one of the two is empty).
    """
    model = options_of(build, without=without)
    try:
        checked = model.model_validate(options)
    except ValidationError as error:
        return {}, problems_of(error, model, prefix=f"{key}.")
    return {name: getattr(checked, name) for name in model.model_fields}, []
