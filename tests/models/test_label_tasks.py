from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from neuroage.errors import DataError, InfeasibleError, UsageError
from neuroage.models.tasks import build_task, check_task
from neuroage.runs.recipe import Recipe

RNG = np.random.default_rng(0)
TABLE = pd.DataFrame(
    {
        "label": ["cat", "dog", "dog", "emu"] * 6,
        "label_Edema": [1, 0, 0, 0] * 6,
        "label_Hernia": [0.0, 1.0, np.nan, 0.0] * 6,
        "sex": ["F", "M", "M", ""] * 6,
        "cdr": [0.0, 0.5, 1.0, np.nan] * 6,
    }
)
OPTIONS = {
    "binary": {"label": "Edema"},
    "multilabel": {},
    "multiclass": {},
}


def task(name: str, table: pd.DataFrame = TABLE, **options: object):
    made = build_task(Recipe.from_dict({"task": {"name": name, **(options or OPTIONS[name])}}))
    made.fit(table[made.known(table)])
    return made


@pytest.mark.parametrize("name", OPTIONS)
def test_a_network_that_follows_the_loss_ends_at_the_true_labels(name: str) -> None:
    made = task(name)
    targets = made.encode(TABLE)
    outputs = torch.zeros(len(TABLE), made.n_outputs, requires_grad=True)
    optimiser = torch.optim.Adam([outputs], lr=0.2)
    for _ in range(100):
        optimiser.zero_grad()
        made.loss(outputs, targets).backward()
        optimiser.step()
    assert float(made.errors(outputs.detach(), targets).mean()) == 0
    assert made.score(outputs.detach(), targets) == 1.0


@pytest.mark.parametrize("name", OPTIONS)
def test_label_names_survive_saving_as_json(name: str) -> None:
    made = task(name)
    fresh = build_task(Recipe.from_dict({"task": {"name": name, **OPTIONS[name]}}))
    fresh.restore(json.loads(json.dumps(made.state())))
    outputs = torch.randn(5, made.n_outputs)
    assert fresh.target == made.target
    assert {key: value.tolist() for key, value in fresh.decode(outputs).items()} == {
        key: value.tolist() for key, value in made.decode(outputs).items()
    }


@pytest.mark.parametrize("name", OPTIONS)
def test_a_batch_in_parts_has_the_loss_of_the_whole(name: str) -> None:
    made = task(name)
    outputs, targets = torch.randn(len(TABLE), made.n_outputs), made.encode(TABLE)
    parts = zip(outputs.split([5, len(TABLE) - 5]), targets.split([5, len(TABLE) - 5]), strict=True)
    mean = sum(float(made.loss(*part)) * len(part[0]) for part in parts) / len(TABLE)
    assert mean == pytest.approx(float(made.loss(outputs, targets)), rel=1e-5)


@pytest.mark.parametrize("name", OPTIONS)
def test_an_example_can_be_fitted(name: str) -> None:
    made = build_task(Recipe.from_dict({"task": {"name": name, **OPTIONS[name]}}))
    table = made.example(6)
    made.fit(table)
    assert made.encode(table).shape == (6, made.n_outputs)


def test_unknown_labels_count_neither_in_loss_nor_in_errors_nor_in_auroc() -> None:
    made = task("multilabel")
    targets = made.encode(TABLE)
    outputs = torch.randn(len(TABLE), 2)
    unknown = targets.isnan()
    assert unknown.any()
    changed = torch.where(unknown, outputs + 100, outputs)
    for figure in (made.loss, made.score):
        assert float(figure(changed, targets)) == float(figure(outputs, targets))
    assert torch.equal(made.errors(changed, targets), made.errors(outputs, targets))
    outputs.requires_grad_(True)
    made.loss(outputs, targets).backward()
    assert not outputs.grad[unknown].any()


def test_auroc_is_scikit_learns_averaged_over_labels_that_have_both_answers() -> None:
    made = task("multilabel")
    outputs, targets = torch.randn(len(TABLE), 2), made.encode(TABLE)
    known = targets[:, 1].isfinite()
    each = [
        roc_auc_score(targets[:, 0], outputs[:, 0]),
        roc_auc_score(targets[known, 1], outputs[known, 1]),
    ]
    assert made.score(outputs, targets) == pytest.approx(np.mean(each))
    targets[:, 1] = 0
    assert made.score(outputs, targets) == pytest.approx(each[0])
    assert np.isnan(made.score(outputs, torch.zeros_like(targets)))


def test_the_weight_of_positives_is_negatives_over_positives() -> None:
    n_positive, n_negative = 11_213, 24_847
    table = pd.DataFrame({"label_Edema": [1] * n_positive + [0] * n_negative})
    made = task("binary", table, label="Edema", imbalance="pos_weight")
    plain = task("binary", table, label="Edema")
    outputs = torch.zeros(2, 1)
    weighted, even = (made.loss(outputs[:1], torch.tensor([[1.0]])), plain.loss(outputs[:1], torch.tensor([[1.0]])))
    assert float(weighted / even) == pytest.approx(2.216, abs=5e-4)
    assert float(made.loss(outputs, torch.zeros(2, 1))) == pytest.approx(float(plain.loss(outputs, torch.zeros(2, 1))))


@pytest.mark.parametrize("both", ["pos_weight+sampler", ["pos_weight", "sampler"], "focal, undersample"])
def test_two_ways_of_balancing_at_once_are_refused_with_the_reason(both: object) -> None:
    recipe = Recipe.from_dict({"task": {"name": "binary", "label": "Edema", "imbalance": both}})
    [problem] = check_task(recipe)
    assert "at once would count the rare class twice" in problem.message


def test_an_age_balance_beside_a_weighted_loss_is_refused() -> None:
    recipe = Recipe.from_dict(
        {"task": {"name": "binary", "label": "Edema", "imbalance": "focal"}, "training": {"age_balance": 0.5}}
    )
    assert "balanced twice" in check_task(recipe)[0].message


@pytest.mark.parametrize(("name", "wrong"), [("multilabel", "class_weights"), ("multiclass", "pos_weight")])
def test_a_way_of_balancing_that_means_nothing_for_the_task_is_refused(name: str, wrong: str) -> None:
    with pytest.raises(UsageError, match=f"has no {wrong}"):
        task(name, imbalance=wrong)


def test_a_sampler_shows_every_class_equally_often_and_undersampling_fewer_scans() -> None:
    table = pd.DataFrame({"label": ["a"] * 70 + ["b"] * 20 + ["c"] * 10})
    sampler = task("multiclass", table, imbalance="sampler").draw_weights(table, 0.0)
    assert sampler.sum() == pytest.approx(100)
    by_class = pd.Series(sampler).groupby(table["label"]).sum()
    np.testing.assert_allclose(by_class, 100 / 3)
    fewer = task("multiclass", table, imbalance="undersample").draw_weights(table, 0.0)
    np.testing.assert_allclose(pd.Series(fewer).groupby(table["label"]).sum(), 10)
    assert task("multiclass", table).draw_weights(table, 0.0) is None


def test_class_weights_make_every_class_weigh_the_same() -> None:
    table = pd.DataFrame({"label": ["a"] * 30 + ["b"] * 10})
    made = task("multiclass", table, imbalance="class_weights")
    targets, outputs = made.encode(table), torch.zeros(40, 2)
    each = [float(made.loss(outputs[i : i + 1], targets[i : i + 1])) for i in range(40)]
    assert sum(each[:30]) == pytest.approx(sum(each[30:]))
    assert sum(each) / 40 == pytest.approx(float(task("multiclass", table).loss(outputs, targets)), rel=1e-5)


def test_focal_loss_hardly_counts_what_is_right_already() -> None:
    focal, plain = task("binary", label="Edema", imbalance="focal"), task("binary", label="Edema")
    right, wrong = torch.tensor([[4.0]]), torch.tensor([[-4.0]])
    target = torch.ones(1, 1)
    assert float(focal.loss(right, target) / plain.loss(right, target)) < 1e-3
    assert float(focal.loss(wrong, target) / plain.loss(wrong, target)) > 0.9


def test_a_binary_task_reads_any_column() -> None:
    sex = task("binary", label="female", column="sex", positive=["F"])
    assert sex.encode(TABLE)[:4, 0].tolist()[:3] == [1, 0, 0]
    assert not sex.known(TABLE)[3]
    impaired = task("binary", label="impaired", column="cdr", negative=[0])
    assert impaired.encode(TABLE)[:3, 0].tolist() == [0, 1, 1]
    two = task("binary", label="cat", column="label", positive=["cat"], negative=["emu"])
    assert two.known(TABLE)[:4].tolist() == [True, False, False, True]
    named = task("binary", label="dog")
    assert named.encode(TABLE)[:4, 0].tolist() == [0, 1, 1, 0]
    assert named.target == {"kind": "binary", "labels": ["dog"]}


def test_a_finding_may_be_told_from_scans_without_any_finding() -> None:
    against_healthy = task("binary", label="Edema", against="no_label")
    numbers = TABLE.astype({"label_Edema": float})
    before = numbers.copy()
    assert against_healthy.known(numbers)[:4].tolist() == [True, False, True, True]
    pd.testing.assert_frame_equal(numbers, before)
    assert against_healthy.encode(TABLE)[[0, 2, 3], 0].tolist() == [1, 0, 0]


def test_labels_are_aligned_by_name_whatever_the_order_of_columns() -> None:
    made = task("multilabel")
    turned = TABLE[["label_Hernia", "label_Edema"]]
    torch.testing.assert_close(made.encode(turned), made.encode(TABLE), equal_nan=True)
    fewer = made.encode(TABLE[["label_Hernia"]])
    assert fewer[:, 0].isnan().all()


def test_what_cannot_be_learnt_is_said() -> None:
    with pytest.raises(InfeasibleError, match="All 3 training scans are alike in 'Edema'"):
        task("binary", pd.DataFrame({"label_Edema": [0, 0, 0]}), label="Edema")
    with pytest.raises(InfeasibleError, match="no column label_…"):
        task("multilabel", pd.DataFrame({"age": [1.0]}))
    with pytest.raises(InfeasibleError, match="no column 'label'"):
        task("multiclass", pd.DataFrame({"age": [1.0]}))
    with pytest.raises(DataError, match="holds 'maybe'"):
        task("multilabel", pd.DataFrame({"label_Edema": ["1", "maybe"]}))
    made = task("multiclass")
    with pytest.raises(InfeasibleError, match="No training scan has the class 'fox'"):
        made.encode(pd.DataFrame({"label": ["cat", "fox"]}))


def test_probabilities_of_classes_sum_to_one_and_of_labels_need_not() -> None:
    classes = task("multiclass").decode(torch.randn(4, 3))
    assert list(classes) == ["probability_cat", "probability_dog", "probability_emu"]
    torch.testing.assert_close(sum(classes.values()), torch.ones(4, dtype=torch.float64))
    labels = task("multilabel").decode(torch.full((2, 2), 3.0))
    assert all((values > 0.9).all() for values in labels.values())


def test_a_misspelt_label_is_answered_with_the_nearest_label() -> None:
    table = pd.DataFrame({"label_sick": [1, 0], "label_ok": [0, 1]})
    with pytest.raises(InfeasibleError, match=r"did you mean 'label_sick'.*task\.label"):
        task("binary", table, label="sik")
