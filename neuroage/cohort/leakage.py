"""Leakage: what share of the images of one set shows people, or copies of images, that another set holds too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from neuroage.cohort.cohort import Cohort
from neuroage.cohort.columns import SPELLINGS, normal_header
from neuroage.cohort.set_spellings import SET_COLUMNS, read_set_word, spellings_of_name
from neuroage.errors import DataError

DUPLICATE_COLUMN = "duplicate_group"
_PAIRS = (("test", "train"), ("validation", "train"), ("test", "validation"))
_WORDS = {"train": "training", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class Overlap:
    """What two sets share, seen from the one that is tested.

    Args:
        tested: The set whose images are counted.
        known: The set that holds the same people or images too.
        n_images: Images in `tested`.
        n_images_by_subject: Those of them whose subject is in `known` too.
        n_images_by_duplicate: Those of them with a duplicate in `known`; None when nobody looked for duplicates.
        n_images_shared: Those of them with either.
        n_subjects: Subjects in both sets.
    """

    tested: str
    known: str
    n_images: int
    n_images_by_subject: int
    n_images_by_duplicate: int | None
    n_images_shared: int
    n_subjects: int

    @property
    def share_by_subject(self) -> float:
        """Share of the tested images whose subject is in the other set too, 0 to 1."""
        return self.n_images_by_subject / self.n_images

    @property
    def share(self) -> float:
        """Share of the tested images whose subject or duplicate is in the other set too, 0 to 1."""
        return self.n_images_shared / self.n_images

    @property
    def words(self) -> str:
        """One sentence for each kind of overlap; "" when there is none."""
        tested, known = _WORDS[self.tested], _WORDS[self.known]
        sentences = []
        if self.n_images_by_subject:
            share = _percent(self.share_by_subject)
            counts = f"{self.n_images_by_subject:,} of {self.n_images:,}, {self.n_subjects:,} subjects"
            sentences.append(f"{share} of {tested} images belong to subjects that are in {known} too ({counts}).")
        if self.n_images_by_duplicate:
            share = _percent(self.n_images_by_duplicate / self.n_images)
            counts = f"{self.n_images_by_duplicate:,} of {self.n_images:,}"
            sentences.append(f"{share} of {tested} images have a duplicate in {known} ({counts}).")
        return " ".join(sentences)


@dataclass(frozen=True)
class Leakage:
    """What the sets of an image-level split share.

    Args:
        overlaps: One for each pair of sets that both hold images: test or validation against training, test against
            validation.
        n_placed: Images of the cohort that have a set.
        n_strangers: Names in the split that no image of the cohort has.
    """

    overlaps: tuple[Overlap, ...]
    n_placed: int
    n_strangers: int

    @property
    def leaks(self) -> bool:
        """Whether any two sets share a subject or a duplicate."""
        return any(overlap.n_images_shared for overlap in self.overlaps)

    @property
    def words(self) -> str:
        """What is shared, in sentences; or that nothing is."""
        said = " ".join(overlap.words for overlap in self.overlaps if overlap.words)
        return said or f"No subject is in two sets ({self.n_placed:,} images)."


def measure_leakage(cohort: Cohort, sets: Mapping[str, str] | pd.DataFrame) -> Leakage:
    """Say what share of the images of each set belongs to subjects that another set holds too.

    Several images of one person look alike. A network that was trained on one of them recognises the person in the
    others, so its figures on them are too good.

    Args:
        cohort: Says whose each image is; its column `duplicate_group`, where there is one, says which images are
            copies of each other ("" for none).
        sets: Scan id or file name to set (train, validation, test or left_out, in usual spellings); or a table with a
            column of scan ids or file names and one of sets. Images it does not name are in no set.

    Raises:
        DataError: When the table lacks a column, a set is unknown, an image is in two sets, or none is of this cohort.

    Example:
        >>> table = pd.DataFrame({"scan_id": ["a1", "a2", "b1"], "subject_id": ["a", "a", "b"]})
        >>> measure_leakage(Cohort(table), {"a1": "train", "a2": "test", "b1": "test"}).words
        '50% of test images belong to subjects that are in training too (1 of 2, 1 subjects).'
    """
    names, words = _names_and_sets(sets)
    set_of_word = {word: read_set_word(word, f"set of {name}") for word, name in zip(words, names, strict=True)}
    row_of = _rows_by_name(cohort)
    placed: dict[int, str] = {}
    n_strangers = 0
    for name, word in zip(names, words, strict=True):
        row = next((row_of[key] for key in spellings_of_name(name, is_path=True) if key in row_of), None)
        if row is None:
            n_strangers += 1
        elif placed.setdefault(row, set_of_word[word]) != set_of_word[word]:
            raise DataError(f"image {name!r} is in the sets {placed[row]} and {set_of_word[word]}", expected="one set")
    if not placed:
        raise DataError(f"none of the {len(names)} names is an image of this cohort", expected="scan ids or file names")
    columns = ["subject_id", *([DUPLICATE_COLUMN] if DUPLICATE_COLUMN in cohort.table.columns else [])]
    images = cohort.table.iloc[list(placed)][columns]
    images = images.astype(object).where(images.notna(), "").astype(str).replace("n/a", "")  # a blank binds nothing
    images = images.assign(set=list(placed.values()))
    overlaps = [_overlap(images, tested, known) for tested, known in _PAIRS]
    return Leakage(tuple(overlap for overlap in overlaps if overlap), len(placed), n_strangers)


def _overlap(images: pd.DataFrame, tested: str, known: str) -> Overlap | None:
    ours, theirs = images[images["set"] == tested], images[images["set"] == known]
    if len(ours) == 0 or len(theirs) == 0:
        return None
    shared = same_subject = ours["subject_id"].isin(theirs["subject_id"])
    n_by_duplicate = None
    if DUPLICATE_COLUMN in images.columns:
        copies = (ours[DUPLICATE_COLUMN] != "") & ours[DUPLICATE_COLUMN].isin(theirs[DUPLICATE_COLUMN])
        n_by_duplicate, shared = int(copies.sum()), same_subject | copies
    n_subjects = int(ours.loc[same_subject, "subject_id"].nunique())
    return Overlap(tested, known, len(ours), int(same_subject.sum()), n_by_duplicate, int(shared.sum()), n_subjects)


def _names_and_sets(sets: Mapping[str, str] | pd.DataFrame) -> tuple[list[str], list[str]]:
    if not isinstance(sets, pd.DataFrame):
        return [str(name) for name in sets], [str(word) for word in sets.values()]
    headers = {normal_header(header): header for header in reversed(list(sets.columns))}
    image = next((headers[n] for field in ("scan_id", "path") for n in SPELLINGS[field] if n in headers), None)
    chosen = next((headers[n] for n in SET_COLUMNS if n in headers), None)
    if image is None or chosen is None:
        raise DataError(
            f"the table of sets has the columns {', '.join(map(str, sets.columns))}",
            expected="scan_id or a file name, and set",
        )
    return sets[image].astype(str).tolist(), sets[chosen].astype(str).tolist()


def _rows_by_name(cohort: Cohort) -> dict[str, int]:
    row_of: dict[str, int] = {}
    for column in ("path", "scan_id"):  # later names win: a scan id is the surer
        for row, name in enumerate(cohort.table[column]):
            for key in spellings_of_name(name, is_path=column == "path"):
                row_of[key] = row
    return row_of


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.01 else f"{100 * share:.2g}%"
