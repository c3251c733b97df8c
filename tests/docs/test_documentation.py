"""The documentation is true: commands parse, recipes are valid, references are current, links lead somewhere."""

from __future__ import annotations

import ast
import importlib
import itertools
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from neuroage.cli import main as command_line
from neuroage.cli.listing import Kind, things
from neuroage.runs.recipe import Recipe
from neuroage.runs.shipped import find_recipe
from neuroage.training.train import check_recipe

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "README.md"])
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def reference() -> Any:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        yield importlib.import_module("generate_reference")
    finally:
        sys.path.remove(str(ROOT / "docs"))


def blocks(language: str) -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for found, text in FENCE.findall(page.read_text(encoding="utf-8")):
            if found == language:
                yield page, text


def command_lines() -> list[tuple[str, list[str]]]:
    """Every `neuroage …` line of the pages and of the recipes' header comments: where it stands, and its words."""
    lines = [(page.name, line) for page, text in blocks("bash") for line in text.splitlines()]
    for name in things(Kind.configs):
        header = find_recipe(name).read_text(encoding="utf-8").splitlines()
        lines += [(f"{name}.yaml", line.lstrip("# ")) for line in header if line.startswith("#")]
    found = []
    for where, line in lines:
        if match := re.search(r"(?:^|srun |=\d |-m )(neuroage [a-z].*?)(?: &)?$", line.strip()):
            words = shlex.split(re.sub(r"\$\w+", "1", match[1]), comments=True)
            found.append((where, words[1:]))
    return found


def test_every_command_in_the_documentation_parses() -> None:
    group: Any = typer.main.get_command(command_line.app)
    lines = command_lines()
    for where, words in lines:
        name, *arguments = command_line._with_resume_value(words)
        assert name in group.commands, f"{where}: neuroage {name}"
        try:
            group.commands[name].make_context(name, list(arguments))
        except Exception as error:
            pytest.fail(f"{where}: neuroage {' '.join(words)}: {getattr(error, 'message', '') or error}")
    assert len(lines) >= 40
    used = {words[0] for _, words in lines}
    assert used >= set(group.commands) - {"demo"}, "every command is shown somewhere"


def test_recipes_and_overrides_in_commands_exist() -> None:
    n_configs = n_overrides = 0
    for where, words in command_lines():
        pairs = list(itertools.pairwise(words))
        for option, value in pairs:
            if option == "--config" and not value.endswith(".yaml"):
                n_configs += 1
                assert value in things(Kind.configs), f"{where}: --config {value}"
        overrides = [value for option, value in pairs if option == "--set"]
        n_overrides += len(overrides)
        check_recipe(Recipe().updated(*overrides))
    assert n_configs >= 10 and n_overrides >= 3


def test_every_recipe_in_the_documentation_is_valid() -> None:
    found = [(page, text) for page, text in blocks("yaml") if "modality:" in text]
    for page, text in found:
        check_recipe(Recipe.from_dict(yaml.safe_load(text), source=page.name))
    assert len(found) >= 5


def test_python_in_the_documentation_uses_names_that_exist() -> None:
    import neuroage

    found = list(blocks("python"))
    n_names = 0
    for page, text in found:
        if page.parent.name == "reference":  # signatures, not programs
            continue
        for node in ast.walk(ast.parse(text, filename=str(page))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "na":
                assert getattr(neuroage, node.attr) is not None, f"{page.name}: na.{node.attr}"
                n_names += 1
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("neuroage"):
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")
    assert len(found) >= 8 and n_names >= 12


def test_self_contained_python_in_the_explanations_runs() -> None:
    found = [text for page, text in blocks("python") if page.parent.name == "explanation" and "cohort.csv" not in text]
    for text in found:
        exec(compile(text, "documentation", "exec"), {})
    assert len(found) == 1


def test_the_reference_pages_are_current(reference: Any) -> None:
    pages = reference.pages()
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run python docs/generate_reference.py"
    assert sorted(path.name for path in pages) == ["cli.md", "python.md", "recipe.md"]


def test_every_command_and_option_is_in_the_reference(reference: Any) -> None:
    page = reference.cli_page()
    group: Any = typer.main.get_command(command_line.app)
    n_options = 0
    for name, command in group.commands.items():
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        options = [spelt for parameter in command.params for spelt in parameter.opts if spelt.startswith("--")]
        for spelt in options:
            if spelt != "--help":
                assert f"`{spelt}`" in section, f"neuroage {name} {spelt}"
                n_options += 1
    assert len(group.commands) >= 12 and n_options >= 70


def test_every_recipe_key_is_in_the_reference_with_a_meaning(reference: Any) -> None:
    page = reference.recipe_page()
    keys = list(reference.recipe_keys(Recipe))
    for key in keys:
        row = next((line for line in page.splitlines() if line.startswith(f"| `{key}` |")), "")
        assert row, f"{key} is not on the page"
        assert len(row.split(" | ")[-1].strip(" |")) > 5, f"{key} has no meaning"
    assert len(keys) >= 50


@pytest.mark.parametrize(
    ("kind", "at_least"),
    [("backbones", 5), ("augmentations", 6), ("layouts", 5), ("metrics", 8), ("configs", 8), ("tasks", 2)],
)
def test_everything_that_can_be_chosen_is_named_in_the_documentation(kind: str, at_least: int) -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES if page.parent.name != "reference")
    names = list(things(Kind(kind)))
    missing = [name for name in names if f"`{name}`" not in text]
    assert not missing, f"name them outside the reference too: {missing}"
    assert len(names) >= at_least


def test_every_file_of_a_run_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "reference" / "files.md").read_text(encoding="utf-8")
    source = (ROOT / "neuroage" / "runs" / "run.py").read_text(encoding="utf-8")
    names = set(re.findall(r'_path\("([\w.]+\.\w+)"\)', source))
    assert not {name for name in names if f"`{name}`" not in page}
    assert len(names) >= 12


def test_links_and_pictures_lead_somewhere() -> None:
    n_links = 0
    for page in PAGES:
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" in target:
                continue
            n_links += 1
            name, _, anchor = target.partition("#")
            place = page.parent / name if name else page
            assert place.exists(), f"{page.relative_to(ROOT)} → {target}"
            if anchor:
                headings = re.findall(r"^#+ (.+)$", place.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}, (
                    target
                )
    assert n_links >= 40


def test_pages_that_recipes_point_to_exist() -> None:
    pointed = [
        (name, target)
        for name in things(Kind.configs)
        for target in re.findall(r"docs/[\w/-]+\.md", find_recipe(name).read_text(encoding="utf-8"))
    ]
    for name, target in pointed:
        assert (ROOT / target).exists(), f"{name}.yaml → {target}"
    assert len(things(Kind.configs)) >= 8


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    there = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted(there)
    assert len(there) >= 23
