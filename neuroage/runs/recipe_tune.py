"""What of a recipe is searched: dotted keys, each with a range or with choices, as plain data beside the recipe.

tune:
  optim.lr: {low: 1e-4, high: 1e-2, log: true}
  head.dropout: {low: 0.0, high: 0.6, step: 0.1}
  backbone.features: [8, 16, 32]
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from pydantic import ValidationError, model_validator

from neuroage.errors import UsageError
from neuroage.runs.recipe import Recipe
from neuroage.runs.recipe_sections import Section
from neuroage.runs.recipe_text import read_yaml

SECTION = "tune"
DIGITS = 4  # significant digits of a value: what a person can read, and far finer than any score tells apart
# Keys on which scores cannot be compared, or that the search sets itself, each with the reason.
FIXED = {
    "modality": "scores of other scans cannot be compared",
    "seed": "a search over seeds finds luck",
    "predict": "it acts after training, and no score of an epoch knows of it",
    "task.name": "scores of other tasks cannot be compared",
    "task.labels": "scores of other labels cannot be compared",
    "training.select": "it says which epoch's score counts",
    "training.inner_fraction": "it takes scans from training and gives them to choosing the epoch",
}
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER}):({_NUMBER})(?::(log|{_NUMBER}))?")


class Range(Section):
    """Numbers from `low` to `high`, both included.

    Attributes:
        low, high: Ends. Whole numbers give whole numbers, unless the recipe's own value has a decimal point.
        log: Every factor is as likely as any other: for rates and other scales.
        step: Distance of the values that are tried; null: any.
    """

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError("log needs a low end above 0")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other")
        if self.step is not None and not 0 < self.step <= self.high - self.low:
            raise ValueError(f"step {self.step:g} does not fit between {self.low:g} and {self.high:g}")
        return self

    @property
    def whole(self) -> bool:
        """Whether its values are whole numbers."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step or 1))

    def rounded(self, value: float) -> int | float:
        """Give a value as it is written into a recipe."""
        if self.whole:
            return int(value)
        return float(min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high))

    def ends(self) -> tuple[Any, ...]:
        """The values that a recipe is checked with."""
        return self.low, self.high


class Choices(Section):
    """A few values, in no order.

    Attributes:
        values: Each as it would stand in the recipe: numbers, words, lists, mappings.
    """

    values: tuple[Any, ...]

    @model_validator(mode="after")
    def _at_least_two(self) -> Choices:
        if len({repr(label_of(value)) for value in self.values}) < max(2, len(self.values)):
            raise ValueError("a choice needs two different values or more")
        return self

    def ends(self) -> tuple[Any, ...]:
        """The values that a recipe is checked with."""
        return self.values


Dimension: TypeAlias = Range | Choices
Space: TypeAlias = dict[str, Dimension]


def label_of(value: Any) -> Any:
    """Give a choice as a table shows it: lists and mappings as text."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else json.dumps(value)


def read_space(content: Mapping[str, Any], source: str, lines: Mapping[str, int] | None = None) -> Space:
    """Read a search space from plain data.

    Args:
        content: Dotted recipe key → a mapping with low, high, log, step, or a list of choices.
        source: Where it stands, for errors.
        lines: Key → line.

    Raises:
        UsageError: One report of everything that is neither.
    """
    if not isinstance(content, Mapping):
        raise UsageError(
            f"{source}: {SECTION} holds {content!r}", expected="recipe keys, such as optim.lr, with ranges"
        )
    space: Space = {}
    problems = []
    for key, given in content.items():
        line = (lines or {}).get(f"{SECTION}.{key}") or (lines or {}).get(str(key))
        where = f"{f'line {line}, ' if line else ''}{key}"
        try:
            if isinstance(given, (list, tuple)):
                space[str(key)] = Choices(values=tuple(given))
            elif isinstance(given, Mapping) and {"low", "high"} & set(given):
                space[str(key)] = Range.model_validate(dict(given))
            else:
                problems.append(f"{where}: {given!r} is neither {{low: …, high: …}} nor a list of choices")
        except ValidationError as error:
            told = [
                f"{'.'.join(map(str, found['loc'][:1]))} {found['msg'].removeprefix('Value error, ')}".strip()
                for found in error.errors()
            ]
            problems.append(f"{where}: {'; '.join(dict.fromkeys(told))}")
    _complain(problems, source)
    return space


def read_search(text: str) -> tuple[str, Dimension]:
    """Read one dimension as typed: `optim.lr=1e-4:1e-2:log`, `head.dropout=0:0.6:0.1` or `pool=average,max`.

    Raises:
        UsageError: It is none of these.
    """
    key, sign, value = text.partition("=")
    expected = "KEY=LOW:HIGH, KEY=LOW:HIGH:log, KEY=LOW:HIGH:STEP or KEY=A,B,C"
    if not sign or not key.strip():
        raise UsageError(f"--search {text!r}", expected=expected)
    given: Any
    if found := _RANGE.fullmatch(value.strip()):
        low, high, third = (yaml.safe_load(part) if part else None for part in found.groups())
        given = {"low": low, "high": high}
        given |= {"log": True} if third == "log" else {"step": third} if third is not None else {}
    else:
        try:
            given = yaml.safe_load(f"[{value}]")
        except yaml.YAMLError:
            raise UsageError(f"--search {text!r}", expected=expected) from None
    return key.strip(), read_space({key.strip(): given}, "--search")[key.strip()]


def load_space(path: str, searches: Iterable[str] = ()) -> Space:
    """Read the space of a YAML file, a recipe with a section `tune` or a space alone, with further dimensions typed.

    Args:
        path: The file.
        searches: As for `read_search`; they replace what the file says of the same key.

    Returns:
        The space; empty where a recipe has no such section and nothing was typed.
    """
    content, lines = read_yaml(Path(path))
    is_space_alone = SECTION not in content and content and all(_is_dimension(value) for value in content.values())
    space = read_space(content if is_space_alone else content.get(SECTION) or {}, path, lines)
    return {**space, **dict(map(read_search, searches))}


def _is_dimension(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, dict) and {"low", "high"} <= set(value))


def default_space(recipe: Recipe) -> Space:
    """Give what is worth searching first: rate, weight decay and dropout; where the network is fine-tuned, the depths.

    The rate is searched within a factor of ten around the recipe's own.
    """
    rate = recipe.optim.lr
    space: Space = {
        "optim.lr": Range(low=float(f"{rate / 10:.3g}"), high=float(f"{rate * 10:.3g}"), log=True),
        "optim.weight_decay": Range(low=1e-5, high=0.3, log=True),
        "head.dropout": Range(low=0.0, high=0.7),
    }
    tuned, options = recipe.finetune, recipe.backbone.options
    pretrained = tuned.init_from or options.get("pretrained") or options.get("weights")
    if pretrained or tuned.unfreeze or tuned.layer_decay != 1:
        space["finetune.layer_decay"] = Range(low=0.5, high=1.0)
        space["finetune.head_lr"] = Range(low=1.0, high=10.0, log=True)
    return space


def applied(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Give the recipe with the values of a trial; errors as in `Recipe.updated`."""
    # A new name drops the options beside it, so names go first.
    ordered = sorted(values.items(), key=lambda item: item[0].split(".")[-1] not in ("name", "preset", "kind"))
    return recipe.updated(*(f"{key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in ordered))


def checked_space(space: Space, recipe: Recipe, check: Callable[[Recipe], None]) -> Space:
    """Check, before anything runs, that the recipe takes the ends and choices of every dimension, one at a time.

    Args:
        space: What will be searched.
        recipe: What it is searched around.
        check: Raises UsageError for a recipe that cannot be trained.

    Returns:
        The space, with decimal numbers where the recipe's own value is one.

    Raises:
        UsageError: One report of everything that is wrong, with what could have been meant.
    """
    if not space:
        raise UsageError("There is nothing to search", fix="Give --search, or a section `tune` in the recipe.")
    problems = []
    for key, dimension in space.items():
        fixed = next((name for name in FIXED if key == name or key.startswith(f"{name}.")), None)
        if fixed:
            problems.append(f"{key} is not searched: {FIXED[fixed]}")
            continue
        for value in dimension.ends():
            try:
                check(applied(recipe, {key: value}))
            except UsageError as error:
                problems.append(str(error).removeprefix(f"{recipe._source}, "))
    _complain(list(dict.fromkeys(problems)), "The search space")  # both ends of a wrong key have the same problem
    return {key: _as_in(recipe, key, dimension) for key, dimension in space.items()}


def value_at(recipe: Recipe, key: str) -> Any:
    """Give the recipe's own value of a dotted key; None where it has none."""
    place: Any = recipe.model_dump(mode="json")
    for part in key.split("."):
        if isinstance(place, dict):
            place = place.get(part)
        elif isinstance(place, list) and part.isdigit() and int(part) < len(place):
            place = place[int(part)]
        else:
            return None
    return place


def _as_in(recipe: Recipe, key: str, dimension: Dimension) -> Dimension:
    if isinstance(dimension, Choices) or not isinstance(value_at(recipe, key), float):
        return dimension
    step = None if dimension.step is None else float(dimension.step)
    return Range(low=float(dimension.low), high=float(dimension.high), log=dimension.log, step=step)


def _complain(problems: list[str], source: str) -> None:
    if len(problems) == 1:
        raise UsageError(f"{source}: {problems[0]}")
    if problems:
        raise UsageError(f"{source} has {len(problems)} problems:\n" + "\n".join(f"  - {line}" for line in problems))
