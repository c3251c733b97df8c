"""Read the code: first lines, documented arguments, types in words. The pages of the reference are made of these."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import textwrap
import types
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel

WORDS = {float: "number", int: "whole number", str: "text", bool: "true or false", Path: "path", type(None): "null"}
SIGNS = (("gt", "> {}"), ("ge", "≥ {}"), ("lt", "< {}"), ("le", "≤ {}"))


def first_line(thing: Any) -> str:
    """Give the first sentence of a docstring on one line."""
    text = inspect.getdoc(thing) or ""
    return " ".join(text.partition("\n\n")[0].split())


def said_by(thing: Any) -> str:
    """Give what a docstring says before its first section."""
    text = re.split(r"\n(?=(?:Args|Attributes|Returns|Raises|Example|Source)s?:)", inspect.getdoc(thing) or "")[0]
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n"))


def documented(thing: Any, section: str) -> dict[str, str]:
    """Read `name: meaning` of a docstring's section; `a, b: meaning` names two."""
    found = re.search(rf"^{section}:\n((?:[ ]+.*\n?|\n)+)", inspect.getdoc(thing) or "", re.MULTILINE)
    meanings: dict[str, str] = {}
    entries = re.split(r"\n(?=\w[\w, ]*: )", textwrap.dedent(found[1])) if found else []
    for entry in entries:
        names, _, meaning = entry.partition(": ")
        meanings |= dict.fromkeys((name.strip() for name in names.split(",")), " ".join(meaning.split()))
    return meanings


def attribute_notes(model: type[BaseModel]) -> dict[str, str]:
    """Read the texts that stand below the fields of a model and of its parents."""
    notes: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        if not (issubclass(kind, BaseModel) and kind.__module__.startswith("neuroage")):
            continue
        body = typing.cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]).body
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                notes[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return notes


def without_none(kind: Any) -> Any:
    """Give the type behind `type | None`."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return next(part for part in typing.get_args(kind) if part is not type(None))
    return kind


def table(head: list[str], rows: list[list[str]]) -> str:
    """Set a Markdown table."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines) + "\n"


def value_in_words(hint: Any, metadata: Any = ()) -> str:
    """Say in words what a type allows."""
    limits = [sign.format(getattr(note, key)) for note in metadata for key, sign in SIGNS if hasattr(note, key)]
    tail = f" {' and '.join(limits)}" if limits else ""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        notes = [note for extra in args[1:] for note in getattr(extra, "metadata", [extra])]
        return value_in_words(args[0], notes)  # a model repeats these limits in `metadata`
    if origin is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in args) + tail
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(value_in_words(part) for part in args)) + tail
    if origin is tuple:
        inner = [value_in_words(part) for part in args if part is not Ellipsis]
        same = f"[{inner[0]}] × {len(inner)}" if len(set(inner)) == 1 else f"[{', '.join(inner)}]"
        return (f"list of {inner[0]}" if Ellipsis in args else same) + tail
    if origin is list:
        return f"list of {value_in_words(args[0])}{tail}"
    if origin is dict or hint is dict:
        return "mapping"
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return "name with options" if hint.__name__ == "Named" else "section"
    return WORDS.get(hint, str(hint)) + tail


def default_in_words(value: Any) -> str:
    """Give a default as YAML would write it."""
    if isinstance(value, BaseModel):
        return (
            f"`{{name: {value.name}}}`" if hasattr(value, "name") and type(value).__name__ == "Named" else "see below"
        )
    if value is None or isinstance(value, bool):
        return {None: "`null`", True: "`true`", False: "`false`"}[value]
    return f"`{list(value)}`" if isinstance(value, tuple) else f"`{value}`"


def signature(thing: Any) -> str:
    """Give the arguments of a function or class with their plain defaults."""
    if inspect.isclass(thing) and (
        issubclass(thing, BaseModel) or getattr(thing.__init__, "__module__", "").startswith("torchio")
    ):
        return "(…)"
    try:
        found = inspect.signature(thing)
    except (TypeError, ValueError):
        return "(…)"
    shown, star = [], False
    for name, parameter in found.parameters.items():
        if name in ("self", "cls") or name.startswith("_"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            shown.append("*")
            star = True
        sign = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        star = star or sign == "*"
        plain = parameter.default is parameter.empty or isinstance(
            parameter.default, (int, float, str, bool, tuple, type(None))
        )
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}" if plain else "=…"
        shown.append(f"{sign}{name}{default}")
    return f"({', '.join(shown)})"
