from __future__ import annotations

import math

import pandas as pd
import pytest

from neuroage.cohort.ages import parse_age, parse_sex, read_ages, read_sexes
from neuroage.errors import DataError


@pytest.mark.parametrize(
    ("text", "years"),
    [
        ("42", 42.0), ("42.5", 42.5), ("42,5", 42.5), (" 7 ", 7.0), ("0", 0.0), ("120", 120.0), (63, 63.0), (18.25,
        18.25), ("058Y", 58.0), ("018M", 1.5), ("042 years", 42.0), ("31yrs", 31.0), ("30 y.o", None), ("5e1", 50.0),
        ("000365D", 365 / 365.25), ("052W", 52 * 7 / 365.25),
    ],
)  # fmt: skip
def test_ages_are_read_as_people_write_them(text: object, years: float | None) -> None:
    if years is None:
        with pytest.raises(DataError):
            parse_age(text)
    else:
        assert parse_age(text) == (pytest.approx(years), "")


@pytest.mark.parametrize("text", ["", "n/a", "NA", "NaN", "null", "unknown", None, float("nan")])
def test_a_missing_age_is_nan_and_no_mistake(text: object) -> None:
    years, note = parse_age(text)
    assert math.isnan(years) and note == ""


@pytest.mark.parametrize(("text", "years"), [("90+", 90.0), (">89", 89.0), ("≥ 85", 85.0), ("89+ y", 89.0)])
def test_an_open_ended_age_is_read_and_noted(text: str, years: float) -> None:
    read, note = parse_age(text)
    assert read == years and text in note


@pytest.mark.parametrize("text", ["-1", "411", "999", "120.5", "-0.5", "inf", "20-24", "forty", "411Y", "4 2"])
def test_a_wrong_age_is_refused_with_its_value(text: str) -> None:
    with pytest.raises(DataError, match=text.replace("+", r"\+")):
        parse_age(text)


def test_a_column_of_ages_reports_every_bad_row() -> None:
    column = pd.Series(["42", "-1", "90+", "n/a", "411", "42,5"])
    where = pd.Series([f"t.csv line {row}" for row in range(2, 8)])
    ages, refused, problems = read_ages(column, where)
    assert ages[[0, 2, 5]].tolist() == [42.0, 90.0, 42.5] and math.isnan(ages[3])
    assert refused.tolist() == [False, True, False, False, True, False]
    assert [problem.where for problem in problems] == ["t.csv line 3", "t.csv line 4", "t.csv line 6"]


@pytest.mark.parametrize(
    ("text", "sex"), [("F", "F"), ("female", "F"), ("m", "M"), ("Man", "M"), ("x", ""), (None, "")]
)
def test_sexes_have_one_spelling(text: object, sex: str) -> None:
    assert parse_sex(text) == sex


def test_a_column_of_ones_and_twos_means_male_and_female() -> None:
    sexes, problems = read_sexes(pd.Series(["1", "2", "2.0", ""]), "t.csv")
    assert sexes.tolist() == ["M", "F", "F", ""] and problems == []


def test_zero_and_one_are_not_guessed() -> None:
    sexes, problems = read_sexes(pd.Series(["0", "1", "1"]), "t.csv")
    assert sexes.tolist() == ["", "", ""]
    assert len(problems) == 1 and "'0', '1'" in problems[0].what


def test_a_code_for_unknown_does_not_hide_ones_and_twos() -> None:
    sexes, problems = read_sexes(pd.Series(["1", "2", "-9999"]), "t.csv")
    assert sexes.tolist() == ["M", "F", ""] and "-9999" in problems[0].what
