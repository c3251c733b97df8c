"""One self-contained HTML page: no script, no link, no file beside it; it prints, and it reads on a phone.

A number gets onto a page only through `Numbers`, by its key in the figures' dictionary, and carries that key as
`data-key`; so what the page shows is what the JSON file holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from neuroage.analysis.formatting import format_figure

_STYLE = """
:root { --ink: #22262b; --soft: #5b626b; --line: #d9dce0; --wash: #f5f7f9; --accent: #0072b2; --warn: #d55e00; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.2rem 1.2rem 3rem; max-width: 58rem; background: #fff; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; padding-top: .9rem; border-top: 1px solid var(--line); }
p { margin: .5rem 0; max-width: 46rem; }
ul { padding-left: 1.2rem; max-width: 46rem; }
li { margin: .3rem 0; }
.lead { color: var(--soft); }
.answer { font-size: 1.15rem; line-height: 1.5; margin: 1.2rem 0; padding: .9rem 1.1rem; background: var(--wash);
  border-left: 4px solid var(--accent); max-width: none; }
.notice { margin: 1.2rem 0; padding: .8rem 1.1rem; border-left: 4px solid var(--warn); background: #fdf3ec;
  max-width: none; }
.scroll { overflow-x: auto; margin: .4rem 0 1rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .7rem; text-align: right; white-space: nowrap; vertical-align: baseline; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th.text, td.text { text-align: left; }
thead th { font-weight: 600; border-bottom: 1.5px solid var(--ink); }
tbody td, tbody th { border-bottom: 1px solid var(--line); font-weight: 400; }
tbody tr.model th { font-weight: 600; }
tbody tr.baseline { color: var(--soft); }
small, .bounds { color: var(--soft); font-size: .92em; }
figure { margin: 1.4rem 0; break-inside: avoid; }
figure img { display: block; max-width: 100%; height: auto; }
.caption { color: var(--soft); font-size: .9rem; margin: 1rem 0 .2rem; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .4rem; max-width: 46rem; }
footer { margin-top: 2.6rem; color: var(--soft); font-size: .85rem; }
@media (max-width: 34rem) { body { padding: 1.2rem .9rem 2rem; } h1 { font-size: 1.4rem; } .answer { font-size: 1.05rem;
}
  th:first-child { position: sticky; left: 0; background: #fff; white-space: normal; min-width: 6rem; }
  figure img { max-width: none; width: 40rem; } }
@media print { body { max-width: none; padding: 0; font-size: 10pt; } .scroll { overflow: visible; }
  h2, .caption { break-after: avoid; } table { break-inside: avoid; font-size: 8.5pt; }
  th, td { padding: .25rem .4rem; } }
"""


class Numbers:
    """Writes figures onto a page by their keys.

    Args:
        figures: What `to_dict()` gives; nested dictionaries and lists.
    """

    def __init__(self, figures: Mapping[str, Any]) -> None:
        self._figures = figures
        self._n_subjects = int(figures["n_subjects"])

    def show(self, *key: str | int) -> str:
        """Give the figure under `key` as HTML that carries its key."""
        value = look_up(self._figures, key)
        text = format_figure(figure_name(key), value, self._n_subjects)
        return f'<span data-key="{escape(join_key(key))}">{escape(text)}</span>'

    def bounded(self, *key: str | int, low: str, high: str) -> str:
        """Give the bounds of a figure, "low to high", both under the same parent."""
        parent = key[:-1]
        if look_up(self._figures, (*parent, low)) != look_up(self._figures, (*parent, low)):
            return ""
        return f'<span class="bounds">{self.show(*parent, low)} to {self.show(*parent, high)}</span>'


def look_up(figures: Any, key: Sequence[str | int]) -> Any:
    """Walk down nested dictionaries and lists."""
    for part in key:
        figures = figures[int(part)] if isinstance(figures, (list, tuple)) else figures[part]
    return figures


def join_key(key: Sequence[str | int]) -> str:
    """Join the parts of a key with dots; a dot inside a part is escaped with a backslash."""
    return ".".join(str(part).replace("\\", "\\\\").replace(".", "\\.") for part in key)


def split_key(text: str) -> list[str]:
    r"""Undo `join_key`.

    Example:
        >>> split_key(r"models.lr1e-4\.5.mae")
        ['models', 'lr1e-4.5', 'mae']
    """
    parts, escaped = [""], False
    for letter in text:
        if not escaped and letter in "\\.":
            escaped = letter == "\\"
            if letter == ".":
                parts.append("")
        else:
            parts[-1] += letter
            escaped = False
    return parts


def figure_name(key: Sequence[str | int]) -> str:
    """Say what a figure is: the last part of its key; in `decades.0.mae.t1`, where that names a model, "mae"."""
    return str(key[2]) if len(key) == 4 and key[0] == "decades" else str(key[-1])


def table(
    caption: str, head: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], *, text_columns: int = 1
) -> str:
    """Write a table.

    Args:
        caption: What it shows; plain text.
        head: Column headings; plain text.
        rows: `(class, cells)` per row, cells as HTML; the first cell heads the row.
        text_columns: So many columns from the left are words, and stand left.
    """

    def kind(column: int) -> str:
        return ' class="text"' if column < text_columns else ""

    headings = "".join(f'<th scope="col"{kind(i)}>{escape(word)}</th>' for i, word in enumerate(head))
    body = "".join(
        f'<tr class="{escape(style)}"><th scope="row"{kind(0)}>{cells[0]}</th>'
        + "".join(f"<td{kind(i)}>{cell}</td>" for i, cell in enumerate(cells[1:], start=1))
        + "</tr>\n"
        for style, cells in rows
    )
    return (
        f'<p class="caption">{escape(caption)}</p>\n<div class="scroll"><table aria-label="{escape(caption)}">'
        f"<thead><tr>{headings}</tr></thead>\n<tbody>{body}</tbody></table></div>\n"
    )


def picture(address: str, caption: str) -> str:
    """Embed a figure given as a `data:` address; the caption is its alternative text too."""
    return (
        f'<figure><div class="scroll"><img src="{address}" alt="{escape(caption)}"></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>\n"
    )


def section(heading: str, *content: str) -> str:
    """Write a heading and what stands under it; empty when nothing does."""
    inside = "".join(content)
    return f"<section>\n<h2>{escape(heading)}</h2>\n{inside}</section>\n" if inside else ""


def bullets(items: Iterable[str]) -> str:
    """Write a list of HTML items."""
    return "<ul>\n" + "".join(f"<li>{item}</li>\n" for item in items) + "</ul>\n"


def whole_page(title: str, *content: str) -> str:
    """Put content into a complete page that needs nothing else."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "".join(content)
        + "</main>\n</body>\n</html>\n"
    )
