from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
from label_cases import NAMES, class_predictions, constant_predictions, multilabel_predictions, target_of
from test_analysis_report import PNG, Page, as_number

from neuroage.analysis import evaluate_labels, fit_label_calibration, write_label_evaluation
from neuroage.analysis.label_figures import confusion_map, label_forest, ranking_curves, reliability_diagrams
from neuroage.analysis.label_verdict import format_label_figure
from neuroage.analysis.page import look_up, split_key

SIX = ("Edema", "Mass", "Hernia", "No.dule", "<b>Fibrosis", "Cardiomegaly")


@pytest.fixture(autouse=True, scope="module")
def few_resamples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("neuroage.analysis.label_evaluation.N_RESAMPLES", 200)
        yield


def evaluation_of(kind):
    if kind == "multiclass":
        table, labels = class_predictions(), tuple("abcd")
        share = table["target_label"].value_counts(normalize=True)
        baseline = table.assign(**{f"probability_{name}": share[name] for name in labels})
        calibration = None
    else:
        labels = SIX if kind == "multilabel" else ("Mass",)
        table = multilabel_predictions(labels=labels, sharp=2)
        baseline = constant_predictions(table, labels)
        if kind == "multilabel":
            table["target_Hernia"] = baseline["target_Hernia"] = 0.0
        calibration = fit_label_calibration(table, target_of(*labels, kind=kind), set_name="test").with_thresholds(
            dict.fromkeys(labels, 0.3), "f1"
        )
    target = target_of(*labels, kind=kind)
    return evaluate_labels(table, target, {"majority": baseline}, ("test",), name="cnn", calibration=calibration)


@pytest.fixture(scope="module", params=["binary", "multilabel", "multiclass"])
def case(request, tmp_path_factory):
    evaluation = evaluation_of(request.param)
    written = write_label_evaluation(evaluation, tmp_path_factory.mktemp("labels") / "new")
    return evaluation, written, Page(written["html"].read_text(encoding="utf-8"))


def test_every_number_on_the_page_is_that_of_the_json(case):
    _, written, page = case
    figures = json.loads(written["json"].read_text(encoding="utf-8"))
    assert len(page.keyed) > 30 and set(page.loose) <= {"macro F1"}
    for key, text in page.keyed:
        parts = split_key(key)
        value = look_up(figures, parts)
        value = float("nan") if value is None else value
        assert text == format_label_figure(parts[-1], value, figures["n_groups"]), key
        if isinstance(value, float) and parts[-1] != "prevalence" and value == value:
            decimals = len(text.partition(".")[2])
            assert as_number(text) == pytest.approx(value, abs=0.5001 * 10**-decimals), key


def test_the_page_contains_every_figure(case):
    evaluation, _, page = case
    shown = {tuple(split_key(key)) for key, _ in page.keyed}
    assert {("verdict",), ("n_scans",), ("n_subjects",), ("seed",)} <= shown
    for name in evaluation.models:
        overall = {entry[2] for entry in shown if entry[:2] == ("models", name)}
        assert {"accuracy", "accuracy_constant", "auroc", evaluation.headline} <= overall
    for label in evaluation.label_names:
        one = {entry[3] for entry in shown if entry[:3] == ("labels", "cnn", label)}
        wanted = {"n", "n_positive", "prevalence", "auroc", "auprc", "f1", "sensitivity", "specificity", "brier", "ece"}
        assert wanted <= one, label
    for index in range(len(evaluation.pairs)):
        assert ("pairs", str(index), "difference") in shown
    for index in range(len(evaluation.undefined)):
        assert ("undefined", str(index), "why") in shown


def test_accuracy_never_stands_without_its_baseline(case):
    shown = {tuple(split_key(key)) for key, _ in case[2].keyed}
    accuracies = [parts for parts in shown if parts[-1] == "accuracy"]
    assert accuracies and all((*parts[:-1], "accuracy_constant") in shown for parts in accuracies)


def test_pictures_and_tables_are_whole(case):
    evaluation, written, page = case
    ranked = "labels" if len(evaluation.label_names) > 4 else "curves"
    pictures = {ranked, "reliability"} | ({"confusion"} if evaluation.kind == "multiclass" else set())
    assert pictures == {name for name, path in written.items() if path.suffix == ".png"}
    assert all(written[name].read_bytes().startswith(PNG) for name in pictures)
    assert page.tags.count("img") == len(pictures)
    assert all(address.startswith("data:") for address in page.addresses) and "script" not in page.tags
    scans = pd.read_csv(written["csv"])
    assert len(scans) == evaluation.n_scans
    assert {f"probability_{label}" for label in evaluation.label_names} <= set(scans.columns)
    metrics = pd.read_csv(written["metrics"])
    several = len(evaluation.label_names) > 1
    assert len(metrics) == len(evaluation.models) * (len(evaluation.label_names) + several)
    if evaluation.kind == "multiclass":
        counts = pd.read_csv(written["confusion_csv"], index_col="true")
        assert counts.to_numpy().tolist() == evaluation.confusion.to_numpy().tolist()


def test_names_of_labels_are_written_as_text(case):
    evaluation, written, _ = case
    text = written["html"].read_text(encoding="utf-8")
    assert "<b>" not in re.sub(r"&lt;b&gt;", "", text)
    if evaluation.kind == "multilabel":
        assert "&lt;b&gt;Fibrosis" in text


def test_figures_fitted_on_the_scored_scans_carry_a_notice(case):
    evaluation, written, _ = case
    assert ("Read with care" in written["html"].read_text(encoding="utf-8")) == bool(evaluation.calibration)


def test_what_was_fitted_stands_on_the_page_offsets_of_labels_too(case):
    evaluation, written, _ = case
    text = written["html"].read_text(encoding="utf-8")
    fitted = bool(evaluation.calibration)
    assert (">Temperature<" in text) == fitted
    assert (">Offset<" in text) == ("lowers all odds" in text) == (fitted and evaluation.kind != "multiclass")


def test_a_forest_has_a_line_per_label_the_best_on_top():
    evaluation = evaluation_of("multilabel")
    axes = label_forest(evaluation).axes[0]
    names = [text.get_text() for text in axes.get_yticklabels()]
    figures = evaluation.labels["cnn"]
    assert sorted(names) == sorted(SIX) and names[-1] == "Hernia"
    assert names[:-1] == sorted(names[:-1], key=lambda name: -figures[name]["auroc"])
    assert "undefined" in {text.get_text() for text in axes.texts}


def test_curves_reliability_and_confusion_draw_the_figures():
    evaluation = evaluation_of("binary")
    legend = ranking_curves(evaluation).legends[0]
    assert any(text.get_text().startswith("cnn: AUROC 0.") for text in legend.get_texts())
    panel = reliability_diagrams(evaluation).axes[0]
    drawn = panel.lines[-1].get_xydata()
    assert len(drawn) == 15 and np.all(np.diff(drawn[:, 0]) > 0)
    classes = evaluation_of("multiclass")
    written = [text.get_text() for text in confusion_map(classes).axes[0].texts]
    assert sorted(written) == sorted(str(count) for count in classes.confusion.to_numpy().ravel() if count)


def test_labels_nobody_has_still_make_a_page(tmp_path):
    table = multilabel_predictions(n_scans=6, n_subjects=6).assign(**{f"target_{name}": 0.0 for name in NAMES})
    evaluation = evaluate_labels(table, target_of(), sets=("test",))
    assert "cannot be judged" in evaluation.verdict
    assert write_label_evaluation(evaluation, tmp_path)["html"].stat().st_size > 1000
