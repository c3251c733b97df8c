"""What was odd in a data set, where, and what was done about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from neuroage.errors import DataError

# A report longer than this is not read by anyone; the count of the rest is given instead.
MAX_LISTED = 1000


@dataclass(frozen=True)
class Problem:
    """One finding of a reader, with the rule that resolved it.

    Args:
        where: File and line, or the scan concerned.
        what: What is wrong, with the value found.
        action: What was done: "row left out", "read as 90", …

    Example:
        >>> print(Problem("ages.csv line 3", "age 411 is outside 0 to 120 years", "row left out"))
        ages.csv line 3: age 411 is outside 0 to 120 years (row left out)
    """

    where: str
    what: str
    action: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" ({self.action})" if self.action else "")


def list_problems(problems: Sequence[Problem]) -> str:
    """Give one indented line per problem, at most 1000 of them and then the number of the rest."""
    lines = [f"  {problem}" for problem in problems[:MAX_LISTED]]
    if len(problems) > MAX_LISTED:
        lines.append(f"  … and {len(problems) - MAX_LISTED} more")
    return "\n".join(lines)


def refuse_all(problems: Sequence[Problem], summary: str, *, expected: str = "", fix: str = "") -> None:
    """Raise one error that lists every problem; do nothing when there is none.

    Raises:
        DataError: When `problems` is not empty.
    """
    if problems:
        wanted = f" (expected {expected})" if expected else ""  # ahead of the list, which may be long
        raise DataError(f"{summary}{wanted}:\n{list_problems(problems)}", fix=fix)
