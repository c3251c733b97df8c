"""Recipes as people write them: YAML with line numbers, `key=value` overrides, and one report of all mistakes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from neuroage.errors import UsageError, did_you_mean

UNION_TAGS = ("volume", "picture")  # of sections that exist in several kinds: pydantic puts them into its locations


@dataclass(frozen=True)
class Problem:
    """One mistake in a recipe: the dotted key, such as `optim.lr` or `augment.1.p`, and what is wrong with it."""

    key: str
    message: str


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Read a YAML mapping and the line of every key.

    Returns:
        The nested content, and dotted key → line number from 1.

    Raises:
        UsageError: No such file, not YAML, not a mapping, or a key given twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except OSError as error:
        raise UsageError(f"Cannot read the recipe {path}: {error.strerror or error}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}, {}
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds {type(content).__name__}", expected="a mapping of recipe keys")
    lines: dict[str, int] = {}
    _note_lines(node, "", lines, path)
    return content, lines


def _note_lines(node: Any, prefix: str, lines: dict[str, int], path: Path) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            if name in lines:
                raise UsageError(
                    f"{path}, line {key.start_mark.line + 1}: `{name}` stands here and in line {lines[name]}",
                    fix="Keep one.",
                )
            lines[name] = key.start_mark.line + 1
            _note_lines(value, f"{name}.", lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[f"{prefix}{index}"] = value.start_mark.line + 1
            _note_lines(value, f"{prefix}{index}.", lines, path)


def apply_overrides(content: dict[str, Any], overrides: Iterable[str], lines: dict[str, int]) -> dict[str, Any]:
    """Give a copy of `content` with each `a.b=value` set; the value is read as YAML, numbers index lists.

    A `.name`, `.preset` or `.kind` that changes drops what stands beside it, which belongs to the former choice.
    Overridden keys lose their line in `lines`.

    Raises:
        UsageError: An override without `=`, or a path through something that is no mapping or list.
    """
    result: dict[str, Any] = yaml.safe_load(yaml.safe_dump(content, sort_keys=False))
    for override in overrides:
        key, sign, text = override.partition("=")
        key = key.strip()
        if not sign or not key:
            raise UsageError(f"--set {override!r} has no value", expected="key=value, such as optim.lr=1e-4")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UsageError(f"--set {override!r}: the value is not valid YAML") from None
        _set(result, key.split("."), value, override)
        for name in [name for name in lines if name == key or name.startswith(f"{key}.")]:
            del lines[name]
    return result


def _set(content: dict[str, Any], parts: Sequence[str], value: Any, override: str) -> None:
    place: Any = content
    for part in parts[:-1]:
        if isinstance(place, list) and part.isdigit() and int(part) < len(place):
            place = place[int(part)]
        elif isinstance(place, dict):
            if place.get(part) is None:
                place[part] = {}
            place = place[part]
        else:
            raise UsageError(f"--set {override!r}: there is no {part!r} to go into")
    last = parts[-1]
    if isinstance(place, list) and last.isdigit() and int(last) < len(place):
        place[int(last)] = value
    elif isinstance(place, dict):
        if last in ("name", "preset", "kind") and value is not None and place.get(last) != value:
            place.clear()
        place[last] = value
    else:
        raise UsageError(f"--set {override!r}: {'.'.join(parts[:-1])} is not something that has a {last!r}")


def problems_of(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[Problem]:
    """Say each of pydantic's findings in a recipe's terms, with a suggestion for misspelt keys.

    Args:
        error: What validation raised.
        model: The model that was validated, to look up which keys exist where.
        prefix: Dotted place of the model in the recipe, ending in a dot.
    """
    problems = []
    for found in error.errors():
        location = [str(part) for part in found["loc"] if part not in UNION_TAGS]
        if found["type"] == "extra_forbidden":
            parent = _model_at(model, [str(part) for part in found["loc"][:-1]])
            keys = list(parent.model_fields) if parent else []
            problems.append(
                Problem(prefix + ".".join(location), f"no such key; expected {did_you_mean(location[-1], keys)}")
            )
            continue
        # Unions report one finding per alternative, under names that are no keys of the recipe.
        keys = [part for part in location if part.isdigit() or part.isidentifier()]
        keys = [part for part in keys if part not in ("float", "int", "str", "bool", "none")]
        if location[-1:] == ["kind"] and "volume" in found["loc"]:
            found["msg"] = "Input should be 'volume' or 'picture'"
        said = found["msg"].removeprefix("Value error, ").replace("Input should", "should")
        given = "" if isinstance(found.get("input"), (dict, BaseModel)) else f" (found {found.get('input')!r})"
        problems.append(Problem(prefix + ".".join(keys), said + given))
    unique = {(problem.key, problem.message): problem for problem in problems}
    return list(unique.values())


def _model_at(model: type[BaseModel], location: Sequence[str]) -> type[BaseModel] | None:
    models = [model]
    for part in location:
        if part in UNION_TAGS:
            models = [candidate for candidate in models if _tag(candidate) == part]
            continue
        field = models[0].model_fields.get(part)
        if field is None:
            continue
        candidates = [field.annotation, *get_args(field.annotation)]
        models = [inner for inner in map(_without_tag, candidates) if inner is not None]
        if not models:
            return None
    return models[0]


def _without_tag(annotation: Any) -> type[BaseModel] | None:
    """Give the model of an annotation, which in a tagged union is `Annotated[model, Tag(…)]`."""
    inner = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    return inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None


def _tag(model: type[BaseModel]) -> str:
    return str(model.model_fields["kind"].default) if "kind" in model.model_fields else ""


def report(problems: Sequence[Problem], source: str, lines: dict[str, int]) -> UsageError:
    """Make one error of all problems, each with the line where its key, or the nearest part of it, stands."""
    told = []
    for problem in sorted(problems, key=lambda p: _line(p.key, lines) or 0):
        line = _line(problem.key, lines)
        where = f"line {line}, " if line else ""
        told.append(f"{where}{problem.key or 'recipe'}: {problem.message}")
    if len(told) == 1:
        return UsageError(f"{source}, {told[0]}")
    return UsageError(f"{source} has {len(told)} problems:\n" + "\n".join(f"  - {line}" for line in told))


def _line(key: str, lines: dict[str, int]) -> int | None:
    parts = key.split(".")
    while parts:
        if ".".join(parts) in lines:
            return lines[".".join(parts)]
        parts.pop()
    return None
