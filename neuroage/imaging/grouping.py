"""The split of labelled images from their pixels on: like pictures are found, then kept on one side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from neuroage.cohort import grouped
from neuroage.cohort.cohort import Cohort
from neuroage.cohort.split import Split
from neuroage.errors import UsageError
from neuroage.imaging.duplicates import GROUP_COLUMN, Duplicates, find_duplicates

NAMED = 5  # conflicts named in the report; all are among the problems of `Duplicates`


def grouped_split(
    cohort: Cohort,
    source: str | None = None,
    *,
    duplicates: bool | Duplicates = True,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Split:
    """Look for duplicates among the pictures, then split by persons and groups of like pictures, evenly by label.

    Use it for classification of pictures. The test set holds nobody and nothing that was trained on, even where the
    data set says not who is in a picture.

    Args:
        cohort: Scans with labels (`label`, or `label_…`), or with ages.
        source: None deals the test set anew, "official" takes it from the column `official_set`.
        duplicates: Whether to look for duplicates where the cohort has files and no column `duplicate_group`; or what
            was found, to look once for several splits.
        progress: Called with (done, all) after each picture that was looked at.
        **options: `validation`, `test` (shares of the images), `folds`, `stratify`, `groups`, `seed`: see
            `neuroage.cohort.grouped.grouped_split`.

    Returns:
        The split with a column `group`. `meta["report"]["duplicates"]` says what was found.

    Raises:
        UsageError: When an option cannot be meant.
        RefusedError: When the official lists have a subject on both sides.
        InfeasibleError: When there are too few groups for the sets.
    """
    if not isinstance(cohort, Cohort):
        raise UsageError(f"cohort is a {type(cohort).__name__}", expected="a Cohort", fix="Cohort(table) makes one.")
    if duplicates and "groups" in options:  # naming a further column must not tear like pictures apart
        named = options["groups"]
        options["groups"] = [GROUP_COLUMN, *([named] if isinstance(named, str) else named)]
    found = duplicates if isinstance(duplicates, Duplicates) else None
    if duplicates is True and GROUP_COLUMN not in cohort.table.columns and (cohort.table["path"] != "").any():
        grouped.grouped_split(cohort, source, **options)  # a wrong option is refused before thousands are looked at
        found = find_duplicates(cohort, progress=progress)
    split = grouped.grouped_split(found.add_to(cohort) if found else cohort, source, **options)
    if found:
        report = split.meta["report"]
        report["duplicates"] = {
            **found.report,
            "contradicting": [str(problem) for problem in found.conflicts[:NAMED]],
            "notes": [str(note) for note in found.notes[:NAMED]],
        }
        report["advice"] += _advice(found)
        split.meta["cohort_digest"] = cohort.digest  # of the cohort that was given, to which the split belongs
    return split


def _advice(found: Duplicates) -> list[str]:
    report, advice = found.report, []
    if report["groups"]:
        advice.append(
            f"{report['scans_in_groups']} images are like others, in {report['groups']} groups "
            f"(the largest holds {report['largest_groups'][0]}); each group is on one side"
        )
    if found.conflicts:
        advice.append(f"{len(found.conflicts)} groups of equal images have different labels: {found.conflicts[0]}")
    if found.notes:
        advice.append(f"{len(found.notes)} notes on the search for like images, the first: {found.notes[0]}")
    return advice
