from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from label_cases import target_of
from sklearn.metrics import balanced_accuracy_score, f1_score

from neuroage.analysis import factor_view, factors_of, write_factor_view
from neuroage.errors import DataError, RefusedError, UsageError

TUMOURS, SEQUENCES = ("glioma", "none", "schwannoma"), ("T1", "T2")
CLASSES = [
    f"{tumour} {sequence}" for tumour in TUMOURS for sequence in SEQUENCES if (tumour, sequence) != ("none", "T2")
]
TARGET = target_of(*CLASSES, kind="multiclass")
FACTORS = pd.DataFrame([name.split() for name in CLASSES], index=CLASSES, columns=["tumour", "sequence"])


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr("neuroage.analysis.label_factors.N_RESAMPLES", 300)


def predictions_of(tumour_sight, sequence_sight, *, n_groups=150, seed=0):
    """Scans, two a group, of a model whose evidence for each factor is as strong as asked; 0 is blind to it."""
    random = np.random.default_rng(seed)
    group = np.arange(2 * n_groups) // 2
    truth = random.choice(len(CLASSES), n_groups, p=[0.3, 0.2, 0.25, 0.15, 0.1])[group]
    logits = np.zeros((len(group), len(CLASSES)))
    for sight, column in ((tumour_sight, "tumour"), (sequence_sight, "sequence")):
        codes, values = pd.factorize(FACTORS[column])
        evidence = random.normal(size=(len(group), len(values))) * (sight > 0)
        evidence[np.arange(len(group)), codes[truth]] += sight
        logits += (evidence * min(sight, 30))[:, codes]
    chance = np.exp(logits - logits.max(axis=1, keepdims=True))
    chance /= chance.sum(axis=1, keepdims=True)
    table = pd.DataFrame(
        {
            "scan_id": [f"i{index:04d}" for index in range(len(group))],
            "subject_id": [f"p{index // 2:04d}" for index in range(len(group))],
            "group": [f"g{index:03d}" for index in group],
            "set": "test",
            "target_label": np.array(CLASSES)[truth],
        }
    )
    return table.assign(**{f"probability_{name}": chance[:, at] for at, name in enumerate(CLASSES)})


def entries(view):
    return view.table.set_index(["question", "answer"])


def test_a_model_that_sees_only_the_sequence_scores_as_one_that_knows_the_sequence():
    table = predictions_of(0.0, 40.0)
    view = factor_view(table, TARGET, FACTORS)
    found = entries(view)
    assert found.loc[("sequence", "model"), "accuracy"] == 1.0
    assert found.loc[("class", "model"), "accuracy"] < found.loc[("class", "knows only sequence"), "accuracy"] + 1e-9
    assert [entry["n"] for entry in view.outcomes[1:]] == [0, int((1 - view.outcomes[0]["share"]) * 300 + 0.5), 0]
    assert view.outcomes[2]["share_of_errors"] == 1.0
    assert "100% have the sequence right and the tumour wrong" in view.verdict
    assert "above in accuracy" not in view.verdict and "not shown to differ in accuracy" in view.verdict


def test_a_model_that_sees_only_the_tumour_is_found_out_too():
    view = factor_view(predictions_of(40.0, 0.0), TARGET, FACTORS)
    found = entries(view)
    assert found.loc[("tumour", "model"), "accuracy"] == 1.0
    assert found.loc[("sequence", "model"), "accuracy"] < 0.75
    assert view.outcomes[1]["share_of_errors"] == 1.0 and view.outcomes[3]["n"] == 0


def test_a_model_that_sees_both_is_above_both_who_know_one():
    view = factor_view(predictions_of(4.0, 4.0), TARGET, FACTORS)
    assert all(pair["difference_low"] > 0 for pair in view.pairs) and len(view.pairs) == 6
    assert view.verdict.count("above in accuracy, and above in macro F1") == 2


def test_every_figure_is_what_it_says_it_is():
    table = predictions_of(1.2, 1.5)
    view = factor_view(table, TARGET, FACTORS)
    chance = table.set_index("target_label")[[f"probability_{name}" for name in CLASSES]].set_axis(CLASSES, axis=1)
    truth = chance.index.to_series().reset_index(drop=True)
    chance = chance.reset_index(drop=True)
    tumour, sequence = (truth.map(FACTORS[column]) for column in FACTORS.columns)
    often = truth.value_counts()
    best_of = {
        column: often.groupby(often.index.map(FACTORS[column])).idxmax() for column in FACTORS.columns
    }  # of each value of a factor, its most frequent class
    summed = {column: chance.T.groupby(FACTORS[column]).sum().T.idxmax(axis=1) for column in FACTORS.columns}
    told = {
        column: pd.Series(
            [
                chance.loc[row, FACTORS.index[FACTORS[column] == value]].idxmax()
                for row, value in enumerate(truth.map(FACTORS[column]))
            ]
        )
        for column in FACTORS.columns
    }
    expected = {
        ("class", "model"): (truth, chance.idxmax(axis=1)),
        ("class", "knows only tumour"): (truth, tumour.map(best_of["tumour"])),
        ("class", "knows only sequence"): (truth, sequence.map(best_of["sequence"])),
        ("class", "most frequent"): (truth, truth.map(lambda _: often.index[0])),
        ("tumour", "model"): (tumour, summed["tumour"]),
        ("tumour", "model, told sequence"): (tumour, told["sequence"].map(FACTORS["tumour"])),
        ("tumour", "knows only sequence"): (tumour, sequence.map(best_of["sequence"]).map(FACTORS["tumour"])),
        ("tumour", "most frequent"): (tumour, tumour.map(lambda _: tumour.value_counts().index[0])),
        ("sequence", "model"): (sequence, summed["sequence"]),
        ("sequence", "model, told tumour"): (sequence, told["tumour"].map(FACTORS["sequence"])),
        ("sequence", "knows only tumour"): (sequence, tumour.map(best_of["tumour"]).map(FACTORS["sequence"])),
        ("sequence", "most frequent"): (sequence, sequence.map(lambda _: sequence.value_counts().index[0])),
    }
    found = entries(view)
    assert set(found.index) == set(expected)
    for key, (real, answer) in expected.items():
        row = found.loc[key]
        assert row["accuracy"] == pytest.approx((real == answer).mean()), key
        assert row["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(real, answer)), key
        assert row["f1"] == pytest.approx(f1_score(real, answer, average="macro", labels=sorted(set(real)))), key
        assert not row["accuracy_low"] > row["accuracy"] and not row["accuracy_high"] < row["accuracy"]
    answer = chance.idxmax(axis=1)
    right = [answer.map(FACTORS[column]) == truth.map(FACTORS[column]) for column in FACTORS.columns]
    counts = [(right[0] & right[1]).sum(), (right[0] & ~right[1]).sum(), (~right[0] & right[1]).sum()]
    assert [entry["n"] for entry in view.outcomes[:3]] == counts
    for entry in view.outcomes:
        assert entry["share"] == pytest.approx(entry["n"] / 300)
        assert entry["share_low"] < entry["share"] < entry["share_high"]
    assert sum(entry["share_of_errors"] for entry in view.outcomes[1:]) == pytest.approx(1)


def test_guesses_follow_the_training_frequencies_where_they_are_given():
    table = predictions_of(1.0, 1.0)
    shares = dict.fromkeys(CLASSES, 0.1) | {"schwannoma T2": 0.6}
    view = factor_view(table, TARGET, FACTORS, shares=shares)
    found = entries(view)
    assert view.frequencies == "training scans" and "among the training scans" in view.verdict
    rare = (table["target_label"] == "schwannoma T2").mean()
    assert found.loc[("class", "most frequent"), "accuracy"] == pytest.approx(rare)
    assert (
        found.loc[("class", "knows only sequence"), "accuracy"]
        < entries(factor_view(table, TARGET, FACTORS)).loc[("class", "knows only sequence"), "accuracy"]
    )


def test_resamples_draw_groups_and_not_scans():
    table = predictions_of(1.0, 1.0)
    copies = pd.concat([table, table.assign(scan_id=table["scan_id"] + "b", subject_id=table["subject_id"] + "b")])
    once, twice = (entries(factor_view(part, TARGET, FACTORS)).loc[("class", "model")] for part in (table, copies))
    assert twice["accuracy"] == pytest.approx(once["accuracy"])
    assert twice["accuracy_high"] - twice["accuracy_low"] == pytest.approx(once["accuracy_high"] - once["accuracy_low"])
    torn = entries(factor_view(copies.drop(columns="group"), TARGET, FACTORS)).loc[("class", "model")]
    assert torn["accuracy_high"] - torn["accuracy_low"] < 0.9 * (twice["accuracy_high"] - twice["accuracy_low"])


def test_the_order_of_factors_and_of_rows_changes_no_figure():
    table = predictions_of(1.0, 1.0)
    straight = factor_view(table, TARGET, FACTORS)
    turned = factor_view(table.sample(frac=1, random_state=0), TARGET, FACTORS[["sequence", "tumour"]].iloc[::-1])
    assert turned.factors == ("sequence", "tumour")
    for key, row in entries(straight).iterrows():
        assert entries(turned).loc[key].to_dict() == pytest.approx(row.to_dict(), nan_ok=True)


def test_scans_without_a_class_and_other_sets_are_left_out():
    table = predictions_of(1.0, 1.0)
    hidden = table.assign(target_label=table["target_label"].where(np.arange(len(table)) >= 20))
    elsewhere = table.assign(set="validation", scan_id="v" + table["scan_id"])
    both, known = (factor_view(part, TARGET, FACTORS) for part in (pd.concat([hidden, elsewhere]), table.iloc[20:]))
    assert both.n_scans == 280 and json.dumps(both.to_dict()) == json.dumps(known.to_dict())


def test_factors_are_read_from_a_cohort_where_the_class_decides_them():
    table = pd.DataFrame(
        {"label": ["a T1", "a T2", "a T2", None], "tumour": ["a", "a", "a", "b"], "field": [3, 1, 3, 1]}
    )
    found = factors_of(table.assign(sequence=["T1", "T2", "T2", "T9"]), columns=["tumour", "sequence"])
    assert found.to_dict("index") == {
        "a T1": {"tumour": "a", "sequence": "T1"},
        "a T2": {"tumour": "a", "sequence": "T2"},
    }
    with pytest.raises(DataError, match=r"'a T2' has the values '1', '3' of 'field'"):
        factors_of(table, columns=["tumour", "field"])
    with pytest.raises(DataError, match="of 'tumour'"):
        factors_of(table.assign(tumour=["a", "a", None, "a"]), columns=["tumour"])
    with pytest.raises(DataError, match="'sequenc'"):
        factors_of(table, columns=["sequenc"])


def test_factors_that_do_not_make_the_classes_are_refused():
    table = predictions_of(1.0, 1.0, n_groups=10)
    with pytest.raises(DataError, match="'none T1' has no factors"):
        factor_view(table, TARGET, FACTORS.drop(index="none T1"))
    with pytest.raises(DataError, match=r"'glioma T1', 'glioma T2' apart"):
        factor_view(table, TARGET, FACTORS.assign(sequence=["T1", "T1", "T1", "T1", "T2"]))
    with pytest.raises(UsageError, match="1 factors"):
        factor_view(table, TARGET, FACTORS[["tumour"]])
    with pytest.raises(UsageError, match="multilabel"):
        factor_view(table, target_of("a", "b"), FACTORS)
    with pytest.raises(RefusedError, match="trained on"):
        factor_view(pd.concat([table, table.assign(set="train", fold=0)]).fillna({"fold": 0}), TARGET, FACTORS)


def test_it_is_written_as_figures_table_and_picture(tmp_path):
    view = factor_view(predictions_of(1.0, 1.0, n_groups=30), TARGET, FACTORS)
    written = write_factor_view(view, tmp_path / "new")
    kept = json.loads(written["json"].read_text())
    assert kept["verdict"] == view.verdict and len(kept["figures"]) == 12 and kept["factors"] == ["tumour", "sequence"]
    assert len(pd.read_csv(written["csv"])) == 12
    assert written["png"].read_bytes()[:4] == b"\x89PNG" and written["png"].stat().st_size > 20_000


def test_few_groups_get_figures_without_intervals():
    view = factor_view(predictions_of(1.0, 1.0, n_groups=4), TARGET, FACTORS)
    assert view.table["accuracy_low"].isna().all() and view.table["accuracy"].notna().all()
    assert "nan" not in view.verdict
