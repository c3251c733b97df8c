"""What can go wrong for a user, and how it is said.

Every message has three parts: what is wrong (value, file, row), what was expected, what to do next.
The command line turns each class into its exit code; a traceback is for programming errors only.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NeuroageError(Exception):
    """A mistake that the user can mend; the parent of all errors this package raises on purpose.

    Args:
        what: What is wrong: the value, the file, the row.
        expected: What would have been right. Left out of the message when empty.
        fix: What to do next, as an instruction. Left out of the message when empty.

    Example:
        >>> print(NeuroageError("age -1 in row 3", expected="0 to 120 years", fix="Correct the row."))
        age -1 in row 3; expected 0 to 120 years. Correct the row.
    """

    exit_code = 1

    def __init__(self, what: str, *, expected: str = "", fix: str = "") -> None:
        self.what, self.expected, self.fix = what, expected, fix
        message = what.rstrip(".") + (f"; expected {expected}" if expected else "")
        super().__init__(message.rstrip(".") + "." * bool(fix) + (f" {fix}" if fix else ""))

    def __reduce__(self) -> tuple[object, ...]:
        """Keep all three parts when an error crosses a process boundary."""
        return (_rebuild, (type(self), self.what, self.expected, self.fix))


def _rebuild(kind: type[NeuroageError], what: str, expected: str, fix: str) -> NeuroageError:
    return kind(what, expected=expected, fix=fix)


class UsageError(NeuroageError):
    """Something was typed wrong or is missing: an option, a name, a file that should be there (exit code 2)."""

    exit_code = 2


class SetupError(UsageError):
    """A package, program or template is missing that every scan needs, so that no other scan need be tried."""


class DataError(NeuroageError):
    """A table or a scan was found, but its content is wrong (exit code 3)."""

    exit_code = 3


class InfeasibleError(NeuroageError):
    """The data cannot give what was asked for, whatever the seed (exit code 4)."""

    exit_code = 4


class RefusedError(NeuroageError):
    """The answer would mislead, so it is not given (exit code 5)."""

    exit_code = 5


def did_you_mean(word: object, allowed: Iterable[str]) -> str:
    """Name all allowed values and, when one is close to `word`, suggest it.

    Args:
        word: The value received.
        allowed: Every value that would have been accepted.

    Returns:
        Text for the `expected` part of an error.

    Example:
        >>> did_you_mean("zscor", ["zscore", "mean"])
        "one of 'zscore', 'mean' (did you mean 'zscore'?)"
    """
    values = [str(value) for value in allowed]
    listed = ", ".join(repr(value) for value in values)
    near = difflib.get_close_matches(str(word).lower(), values, n=1, cutoff=0.6)
    return f"one of {listed}" + (f" (did you mean {near[0]!r}?)" if near else "")
