from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from label_cases import NAMES, class_predictions, multilabel_predictions, target_of
from sklearn.metrics import roc_auc_score
from test_analysis_report import PNG, Page, as_number

from neuroage.analysis import cross_domain_table, write_cross_domain
from neuroage.analysis.bootstrap import Interval
from neuroage.analysis.cross_domain_cells import difference_of_independent
from neuroage.analysis.page import look_up, split_key
from neuroage.errors import RefusedError, UsageError


@pytest.fixture(autouse=True, scope="module")
def few_resamples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("neuroage.analysis.cross_domain_cells.N_RESAMPLES", 300)
        yield


def site(name, shift, noise_seed=1, labels=NAMES):
    """Predictions on the scans of a site: the same scans and truths whatever the model."""
    table = multilabel_predictions(shift=shift, seed=len(name), noise_seed=noise_seed, labels=labels)
    return table.assign(scan_id=name + table["scan_id"], subject_id=name + table["subject_id"])


@pytest.fixture(scope="module")
def results():
    here, there = "north", "southern"
    return {
        (here, here): (site(here, 2.0), target_of()),
        (here, there): (site(there, 0.8, 2), target_of()),
        (there, here): (site(here, 0.9, 3), target_of("Edema", "Mass")),
        (there, there): (site(there, 1.8).drop(columns="target_Hernia"), target_of("Edema", "Mass")),
    }


@pytest.fixture(scope="module")
def result(results):
    return cross_domain_table(results, shared={("north", "southern"): {"subjects": 3, "images": 1}})


def test_every_cell_is_the_auroc_of_its_scans(result, results):
    for (train, test), (table, target) in results.items():
        for label in target["labels"]:
            expected = roc_auc_score(table[f"target_{label}"], table[f"probability_{label}"])
            assert result.matrix(label).loc[train, test] == pytest.approx(expected)
    assert len(result.table) == 4 * 4


def test_labels_missing_on_a_side_stay_blank_with_the_reason(results):
    blank = site("southern", 0.8, 2).drop(columns="target_Hernia")
    found = cross_domain_table({**results, ("north", "southern"): (blank, target_of())})
    rows = found.table.set_index(["train", "test", "label"])
    assert np.isnan(rows.loc[("southern", "north", "Hernia"), "auroc"])
    assert rows.loc[("southern", "north", "Hernia"), "absent"] == "the model does not know it"
    assert rows.loc[("north", "southern", "Hernia"), "absent"] == "the test data do not have it"
    assert rows.loc[("north", "north", "Hernia"), "absent"] == ""
    assert found.common_labels == ("Edema", "Mass")
    none = site("southern", 0.8, 2).assign(target_Hernia=0.0)
    rows = cross_domain_table({**results, ("north", "southern"): (none, target_of())}).table
    assert "no positive scan" in set(rows["absent"])


def test_the_mean_is_over_labels_that_are_defined_everywhere(result):
    mean = (result.matrix("Edema") + result.matrix("Mass")) / 2
    assert result.matrix().to_numpy() == pytest.approx(mean.to_numpy())


def test_a_drop_is_against_home_and_a_deficit_against_the_local_model(result):
    away = result.table.set_index(["train", "test", "label"]).loc[("north", "southern", "Mass")]
    matrix = result.matrix("Mass")
    assert away["drop"] == pytest.approx(matrix.loc["north", "north"] - matrix.loc["north", "southern"])
    assert away["deficit"] == pytest.approx(matrix.loc["southern", "southern"] - matrix.loc["north", "southern"])
    assert away["drop_low"] < away["drop"] < away["drop_high"]
    assert away["deficit_low"] < away["deficit"] < away["deficit_high"]
    home = result.table[result.table["train"] == result.table["test"]]
    assert home[["drop", "deficit"]].isna().all().all()
    means = result.table[result.table["label"] == "macro"].sort_values("drop")
    worst = means[means["drop"].notna()].iloc[-1]
    assert f"The largest drop is {worst['train']} on {worst['test']}: +{worst['drop']:.2f}" in result.verdict


def test_shared_patients_are_flagged(result):
    rows = result.table[(result.table["train"] == "north") & (result.table["test"] == "southern")]
    assert set(rows["shared_subjects"]) == {3} and set(rows["shared_images"]) == {1}
    assert result.table["shared_subjects"].sum() == 3 * len(rows)
    assert "flatter these figures: north and southern" in result.verdict


def test_all_models_are_scored_on_the_same_scans(results):
    more = {cell: (table, target) for cell, (table, target) in results.items()}
    more["southern", "north"] = (results["southern", "north"][0].head(150), target_of("Edema", "Mass"))
    found = cross_domain_table(more)
    on_north = found.table[(found.table["test"] == "north") & (found.table["absent"] == "")]
    assert set(on_north["n"]) == {150}
    more["southern", "north"] = (site("elsewhere", 1.0), target_of("Edema", "Mass"))
    with pytest.raises(RefusedError, match="no scan of 'north'"):
        cross_domain_table(more)


def test_independent_figures_differ_by_the_known_interval():
    found = difference_of_independent(Interval(0.9, 0.86, 0.94), Interval(0.7, 0.67, 0.73))
    assert found == pytest.approx((0.2, 0.15, 0.25))


def test_classes_are_scored_one_against_the_others():
    table = class_predictions()
    found = cross_domain_table({("x", "x"): (table, target_of(*"abcd", kind="multiclass"))})
    assert found.matrix("a").iloc[0, 0] == pytest.approx(
        roc_auc_score(table["target_label"] == "a", table["probability_a"])
    )
    renamed = table.assign(target_label=table["target_label"].replace("d", "e"))
    found = cross_domain_table({("x", "y"): (renamed, target_of(*"abcd", kind="multiclass"))})
    assert found.table.set_index("label").loc["d", "absent"] == "no positive scan"


def test_what_is_written_holds_the_same_figures(result, tmp_path):
    written = write_cross_domain(result, tmp_path / "new")
    assert written["heat_map"].read_bytes().startswith(PNG)
    assert len(pd.read_csv(written["csv"])) == len(result.table)
    figures = json.loads(written["json"].read_text(encoding="utf-8"))
    page = Page(written["html"].read_text(encoding="utf-8"))
    assert page.loose == [] and page.tags.count("img") == 1
    shown = {key for key, _ in page.keyed}
    for train in result.trains:
        for test in result.tests:
            assert {f"cells.{train}.{test}.{label}.auroc" for label in (*NAMES, "macro")} <= shown
    for key, text in page.keyed:
        value = look_up(figures, split_key(key))
        if isinstance(value, float) and not key.endswith("prevalence"):
            assert as_number(text) == pytest.approx(value, abs=0.5001 * 10 ** -len(text.partition(".")[2])), key


def test_no_results_are_refused():
    with pytest.raises(UsageError, match="no results"):
        cross_domain_table({})


def test_models_that_group_the_same_scans_differently_are_compared_on_the_same_groups(results):
    def pairs(table, name):
        return table.assign(group=[f"{name} {code // 2}" for code in pd.factorize(table["subject_id"])[0]])

    own = {cell: (pairs(table, cell[1]) if cell[0] == cell[1] else table, t) for cell, (table, t) in results.items()}
    every = {cell: (pairs(table, cell[1]), target) for cell, (table, target) in results.items()}
    found, wanted = cross_domain_table(own), cross_domain_table(every)
    pd.testing.assert_frame_equal(found.table, wanted.table)
    assert found.table["deficit_low"].notna().any()
