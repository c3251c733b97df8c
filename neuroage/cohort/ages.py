"""Ages and sexes as people write them, read or refused with the reason."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neuroage.cohort.problem import Problem
from neuroage.errors import DataError

# The longest documented human life is 122 years; nobody of that age was scanned.
MAX_AGE_YEARS = 120.0
MISSING_WORDS = frozenset({"", "n/a", "na", "nan", "none", "null", "unknown", "missing", ".", "-", "?", "<na>"})
# DICOM age strings (PS3.5, value representation AS) count days, weeks, months or years.
UNITS_PER_YEAR = {"y": 1.0, "m": 12.0, "w": 365.25 / 7, "d": 365.25}
_NUMBER = r"(\d+(?:[.,]\d+)?|[.,]\d+)"
_WITH_UNIT = re.compile(_NUMBER + r"\s*([ymwd])(?:ears?|rs?|o|onths?|eeks?|ays?)?\.?$")
_OPEN_ENDED = re.compile(rf"(?:{_NUMBER}\s*\+|[>≥]=?\s*{_NUMBER})\s*(?:y(?:ears?|rs?|o)?)?$")
_PLAIN = re.compile(r"[+-]?" + _NUMBER + r"(?:e[+-]?\d+)?$")


def parse_age(text: object) -> tuple[float, str]:
    """Read one age.

    Args:
        text: A number, or text such as "42.5", "42,5", "058Y", "018M", "90+", "n/a".

    Returns:
        Age in years (NaN when the text says that it is missing) and a note, "" unless the reading lost something
        ("90+" is read as 90).

    Raises:
        DataError: When the text is no age, or outside 0 to 120 years.

    Example:
        >>> parse_age("058Y"), parse_age("42,5"), parse_age("90+")
        ((58.0, ''), (42.5, ''), (90.0, "age '90+' is open-ended"))
    """
    word = "" if text is None else str(text).strip().lower()
    if word in MISSING_WORDS:
        return float("nan"), ""
    note = ""
    if _PLAIN.match(word):
        years = float(word.replace(",", "."))
    elif match := _WITH_UNIT.match(word):
        years = float(match[1].replace(",", ".")) / UNITS_PER_YEAR[match[2]]
    elif match := _OPEN_ENDED.match(word):
        years = float((match[1] or match[2]).replace(",", "."))
        note = f"age {str(text).strip()!r} is open-ended"
    else:
        raise DataError(f"age {str(text)!r} cannot be read", expected="years such as 42, 42.5, 042Y or n/a")
    if not 0 <= years <= MAX_AGE_YEARS:
        raise DataError(f"age {str(text).strip()!r} is outside 0 to {MAX_AGE_YEARS:.0f} years")
    return years, note


def read_ages(column: pd.Series, where: pd.Series) -> tuple[NDArray[np.float64], NDArray[np.bool_], list[Problem]]:
    """Read a whole column of ages; each distinct odd spelling is parsed once.

    Args:
        column: Ages as text or numbers, n rows.
        where: For every row, what to call it in a report.

    Returns:
        Ages in years (n,), a mask (n,) of the rows that are refused, and a problem for every refused or noted row.
    """
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan).copy()
    refused = np.zeros(len(column), dtype=bool)
    problems: list[Problem] = []
    with np.errstate(invalid="ignore"):
        odd = np.flatnonzero(~((numbers >= 0) & (numbers <= MAX_AGE_YEARS)))
    read: dict[str, tuple[float, str, str]] = {}
    for row in odd:
        text = str(column.iloc[row])
        if text not in read:
            try:
                read[text] = (*parse_age(text), "")
            except DataError as error:
                read[text] = (float("nan"), "", error.what)
        numbers[row], note, wrong = read[text]
        if wrong:
            refused[row] = True
            problems.append(Problem(str(where.iloc[row]), wrong, "row left out"))
        elif note:
            problems.append(Problem(str(where.iloc[row]), note, f"read as {numbers[row]:g}"))
    return numbers, refused, problems


_FEMALE = frozenset({"f", "female", "w", "woman", "women", "girl"})
_MALE = frozenset({"m", "male", "man", "men", "boy"})


def parse_sex(text: object) -> str:
    """Give "F", "M", or "" when the text names neither; letters and words in any case."""
    word = "" if text is None else str(text).strip().lower()
    return "F" if word in _FEMALE else "M" if word in _MALE else ""


def read_sexes(column: pd.Series, where: str) -> tuple[pd.Series, list[Problem]]:
    """Read a whole column of sexes.

    A column coded 1 and 2 means 1 = male, 2 = female, as in IXI and ABIDE. Any other numeric code (0/1 is used both
    ways round) is not guessed: those rows get "".

    Args:
        column: Sexes as text or numbers.
        where: The file and column, for the report.

    Returns:
        "F", "M" or "" for every row, and at most one problem that names the spellings that were not understood.
    """
    text = column.fillna("").astype(str).str.strip().str.lower()
    spellings = [word for word in text.unique() if word not in MISSING_WORDS]
    codes = {word: word.removesuffix(".0") for word in spellings}
    coded = {word for word in spellings if codes[word].lstrip("-").isdigit()}
    one_two = {codes[word] for word in coded if not codes[word].startswith("-")} <= {"1", "2"}
    meaning = {word: parse_sex(word) for word in spellings}
    if one_two:
        meaning.update({word: {"1": "M", "2": "F"}.get(codes[word], "") for word in coded})
    unread = sorted(word for word in spellings if not meaning[word])
    problems = []
    if unread:
        n_rows = int(text.isin(unread).sum())
        listed = ", ".join(repr(word) for word in unread[:5])
        problems.append(Problem(where, f"sex spelt {listed} in {n_rows} rows is not understood", "sex left empty"))
    return text.map(lambda word: meaning.get(word, "")).astype(str), problems
