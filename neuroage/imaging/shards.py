"""Shares of a cohort for the jobs of an array: each scan is in exactly one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from neuroage.errors import UsageError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Shard:
    """One of `n` shares, `index` from 1.

    Example:
        >>> Shard(2, 3).of("abcdefg")
        ['b', 'e']
    """

    index: int
    n: int

    def of(self, items: Sequence[Item]) -> list[Item]:
        """Give this share: every n-th item, so that neighbours, which are of one site or size, are dealt out evenly."""
        return list(items[self.index - 1 :: self.n])


def parse_shard(text: str, environment: Mapping[str, str] | None = None) -> Shard:
    """Read `i/n`, or `auto`: the place of this task in a SLURM array.

    Args:
        text: Such as `3/20`, or `auto`.
        environment: Where SLURM's variables are; those of this process when None.

    Raises:
        UsageError: Neither; no SLURM array; or an array with gaps, of which the share would not be known.
    """
    if text == "auto":
        return _of_slurm(os.environ if environment is None else environment)
    found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"--shard {text}", expected="i/n with i from 1 to n, such as 3/20, or auto in a SLURM array")
    return Shard(int(found[1]), int(found[2]))


def _of_slurm(environment: Mapping[str, str]) -> Shard:
    try:
        task, first, last, count = (
            int(environment[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "MIN", "MAX", "COUNT")
        )
    except (KeyError, ValueError):
        raise UsageError(
            "--shard auto, but this is no task of a SLURM array",
            fix="Start it with `sbatch --array=1-20`, or give i/n.",
        ) from None
    if last - first + 1 != count:
        raise UsageError(
            f"--shard auto in an array of {count} tasks from {first} to {last}",
            expected="an array without gaps",
            fix='Name the share: --shard "$SLURM_ARRAY_TASK_ID/20".',
        )
    return Shard(task - first + 1, count)
