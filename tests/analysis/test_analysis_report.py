from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from neuroage.analysis import compare_models, evaluate, write_comparison, write_evaluation
from neuroage.analysis.formatting import format_figure
from neuroage.analysis.page import figure_name, join_key, look_up, split_key

PNG = b"\x89PNG\r\n\x1a\n"


class Page(HTMLParser):
    """Collects keyed numbers, digits outside of keys in tables, headings, links and images."""

    def __init__(self, text):
        super().__init__()
        self.keyed, self.loose, self.headings, self.addresses, self.tags = [], [], [], [], []
        self._key, self._open = None, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        attributes = dict(attributes)
        self.addresses += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag not in ("meta", "img", "br"):
            self._open.append(tag)
        if "data-key" in attributes:
            self._key = attributes["data-key"]

    def handle_endtag(self, tag):
        self._open.pop()
        self._key = None

    def handle_data(self, data):
        if self._key is not None:
            self.keyed.append((self._key, data))
        elif "td" in self._open and re.search(r"\d", data):
            self.loose.append(data)
        elif self._open and self._open[-1] in ("h1", "h2"):
            self.headings.append(data)


@pytest.fixture(scope="module")
def written(comparison, tmp_path_factory):
    return write_comparison(comparison, tmp_path_factory.mktemp("report") / "new" / "folder")


@pytest.fixture(scope="module")
def page(written):
    return Page(written["html"].read_text(encoding="utf-8"))


def as_number(text):
    return float(text.replace("−", "-").replace("+", "").replace(",", "").replace("< ", ""))


def assert_page_shows(page, figures):
    assert len(page.keyed) > 40
    for key, text in page.keyed:
        parts = split_key(key)
        value = look_up(figures, parts)
        assert text == format_figure(figure_name(parts), value, figures["n_subjects"]), key
        if text.startswith("< "):
            assert value < as_number(text), key
        elif isinstance(value, (int, float)):  # and not through the formatter alone
            decimals = len(text.partition(".")[2])
            assert as_number(text) == pytest.approx(value, abs=0.5001 * 10**-decimals), key


def test_the_numbers_on_the_page_are_those_of_the_json(written, page):
    figures = json.loads(written["json"].read_text(encoding="utf-8"))
    assert_page_shows(page, figures)
    shown = {key for key, _ in page.keyed}
    for name in figures["models"]:
        for metric in ("mae", "rmse", "pearson_r", "r2", "gap_slope"):
            assert f"models.{name}.{metric}" in shown
    for index in range(len(figures["pairs"])):
        for figure in ("difference", "difference_low", "difference_high", "p", "smallest_detectable"):
            assert f"pairs.{index}.{figure}" in shown
    assert {"verdict", "n_subjects", "spread.t1.member_sd", "given.tof.dropped", "decades.0.mae.t1"} <= shown


def test_no_number_in_a_table_comes_without_its_key(page):
    assert page.loose == []


def test_the_json_is_the_dictionary(written, comparison):
    figures = json.loads(written["json"].read_text(encoding="utf-8"))
    assert figures["models"]["t1"]["mae"] == comparison.models["t1"]["mae"]
    assert figures["pairs"][0]["p"] == comparison.pairs[0]["p"]
    assert figures["models"]["mean"]["pearson_r"] is None  # undefined, and no reader stumbles over NaN
    assert list(figures) == list(comparison.to_dict())


def test_the_page_needs_nothing_but_itself(written, page):
    text = written["html"].read_text(encoding="utf-8")
    assert "script" not in page.tags and "link" not in page.tags
    assert page.addresses and all(address.startswith("data:image/svg+xml;base64,") for address in page.addresses)
    assert not re.search(r"https?://", re.sub(r'src="[^"]*"', "", text))
    assert '<meta name="viewport"' in text and "@media print" in text


def test_the_headings_tell_the_story(page):
    assert page.headings == [
        "Which tells age better, T1 or TOF?",
        "The numbers",
        "The pictures",
        "By age",
        "Would it come out the same again?",
        "How it was measured",
        "What to keep in mind",
    ]


def test_the_caveats_name_the_age_range_and_the_mean_baseline(written, comparison):
    text = re.sub(r"<[^>]+>", "", written["html"].read_text(encoding="utf-8"))
    assert "MAE depends on the age range" in text
    assert f"a quarter of it, {comparison.ages['uniform_mean_mae']:.1f} years" in text


def test_tables_and_pictures_are_written(written, comparison):
    subjects = pd.read_csv(written["csv"])
    assert len(subjects) == comparison.n_subjects
    np.testing.assert_allclose(subjects["gap_t1"], subjects["predicted_age_t1"] - subjects["age"], atol=1e-9)
    metrics = pd.read_csv(written["metrics"])
    assert list(metrics["model"]) == ["t1", "tof", "fusion", "mean", "ridge"]
    assert metrics.set_index("model").loc["t1", "mae"] == pytest.approx(comparison.models["t1"]["mae"])
    for name in ("scatter", "bland_altman", "decades", "differences"):
        assert written[name].read_bytes().startswith(PNG)
    folder = written["html"].parent
    assert {path.name for path in folder.iterdir()} == {path.name for path in written.values()}  # nothing half-written


def test_hostile_names_are_escaped_and_dots_in_names_keep_their_keys(models, tmp_path):
    named = {'<b>"lr=1e-4.5"</b>': models["t1"], "runs/a&b_$x$": models["tof"]}
    written = write_comparison(compare_models(named), tmp_path)
    text = written["html"].read_text(encoding="utf-8")
    assert "<b>" not in text and "a&b" not in text
    assert_page_shows(Page(text), json.loads(written["json"].read_text(encoding="utf-8")))


def test_a_page_of_very_many_subjects_says_that_a_sample_is_drawn(evaluation, tmp_path, monkeypatch):
    assert "evenly chosen by age" not in write_evaluation(evaluation, tmp_path)["html"].read_text(encoding="utf-8")
    monkeypatch.setattr("neuroage.analysis.report.MOST_POINTS", 11)
    monkeypatch.setattr("neuroage.analysis.report.MANY_SUBJECTS", 11)
    text = write_evaluation(evaluation, tmp_path)["html"].read_text(encoding="utf-8")
    said = "11 of the subjects are drawn, evenly chosen by age."
    assert text.count(said) == 4  # caption and alternative text of two pictures
    assert "worked out rather than drawn" in text


def test_a_key_survives_joining_and_splitting():
    for parts in (["a", "b"], ["a.b", "c"], ["a\\", ".b", ""], ["models", "lr1e-4.5", "mae"]):
        assert split_key(join_key(parts)) == parts


def test_an_evaluation_page_shows_its_json_and_no_notice(evaluation, tmp_path):
    written = write_evaluation(evaluation, tmp_path)
    text = written["html"].read_text(encoding="utf-8")
    assert_page_shows(Page(text), json.loads(written["json"].read_text(encoding="utf-8")))
    assert "Read with care" not in text


def test_a_figure_selected_on_the_scored_set_gets_a_notice_on_the_page(models, tmp_path):
    selected = evaluate(models["t1"], name="t1", meta={"selected_on": "validation"})
    written = write_evaluation(selected, tmp_path)
    assert "chosen on the validation set" in written["html"].read_text(encoding="utf-8")
    assert "differences" not in written  # there is no baseline to differ from


@pytest.mark.parametrize(
    ("name", "value", "n_subjects", "text"),
    [
        ("mae", 4.149, 50, "4.1"),
        ("mae", 4.149, 5_000, "4.15"),
        ("pearson_r", -0.123, 50, "−0.12"),
        ("gap_mean", 1.26, 50, "+1.3"),
        ("gap_mean", -0.04, 50, "0.0"),
        ("difference", -3.84, 50, "−3.8"),
        ("p", 0.0123, 50, "0.012"),
        ("p", 0.0009, 50, "< 0.001"),
        ("n_subjects", 12_345, 50, "12,345"),
        ("mae", float("nan"), 50, "–"),
        ("mae", None, 50, "–"),
    ],
)
def test_figures_are_written_in_one_way(name, value, n_subjects, text):
    assert format_figure(name, value, n_subjects) == text
