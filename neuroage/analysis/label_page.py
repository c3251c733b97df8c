"""The page about labels: every figure on it carries its key, as on all pages here."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from neuroage.analysis import page
from neuroage.analysis.label_evaluation import LabelEvaluation
from neuroage.analysis.label_table import BINARY, MULTICLASS, MULTILABEL
from neuroage.analysis.label_verdict import format_label_figure, metric_phrase

_OVERALL = {
    BINARY: ("auroc", "auprc", "balanced_accuracy", "accuracy", "brier"),
    MULTILABEL: ("auroc", "auprc", "f1", "accuracy", "brier"),
    MULTICLASS: ("f1", "balanced_accuracy", "accuracy", "auroc", "auprc"),
}
_HEADS = {
    "auroc": "AUROC",
    "auprc": "Av. precision",
    "f1": "F1",
    "brier": "Brier",
    "balanced_accuracy": "Bal. accuracy",
    "ece": "ECE",
    "ece_chance": "ECE by chance",
    "accuracy_constant": "One answer for all",
}


class LabelNumbers(page.Numbers):
    """Writes figures of labels onto a page by their keys.

    Args:
        figures: What `to_dict()` gives; its groups, where it names them, decide how many decimals are no noise.
    """

    def __init__(self, figures: Mapping[str, Any]) -> None:
        super().__init__(figures)
        self._n_groups = int(figures.get("n_groups", figures["n_subjects"]))

    def show(self, *key: str | int) -> str:
        """Give the figure under `key` as HTML that carries its key."""
        text = format_label_figure(str(key[-1]), page.look_up(self._figures, key), self._n_groups)
        return f'<span data-key="{escape(page.join_key(key))}">{escape(text)}</span>'

    def with_bounds(self, *key: str | int) -> str:
        """Give a figure, and its bounds on the line below."""
        bounds = self.bounded(*key, low=f"{key[-1]}_low", high=f"{key[-1]}_high")
        return self.show(*key) + (f"<br>{bounds}" if bounds else "")


def label_page(evaluation: LabelEvaluation, pictures: Mapping[str, tuple[str, str]]) -> str:
    """Write the page.

    Args:
        evaluation: What `evaluate_labels` gave.
        pictures: Name to the `data:` address and the caption of each picture.
    """
    numbers = LabelNumbers(evaluation.to_dict())
    shown_as = str(evaluation.models[evaluation.name]["label"])
    what = "classes" if evaluation.kind == MULTICLASS else "labels"
    of_what = evaluation.label_names[0] if evaluation.kind == BINARY else f"{len(evaluation.label_names)} {what}"
    title = str(evaluation.meta.get("title") or f"How well does {shown_as} tell {of_what}?")
    return page.whole_page(
        title,
        f"<h1>{escape(title)}</h1>\n",
        f'<p class="lead">{_who(numbers, evaluation)}</p>\n',
        _selection_notice(evaluation),
        f'<p class="answer">{numbers.show("verdict")}</p>\n',
        page.section("The numbers", _models(numbers, evaluation), _pairs(numbers, evaluation)),
        page.section("The pictures", *(page.picture(at, caption) for at, caption in pictures.values())),
        page.section("Label by label", _labels(numbers, evaluation), _undefined(numbers, evaluation)),
        page.section("Calibration and thresholds", _calibration(numbers, evaluation)),
        page.section("How it was measured", page.bullets(_method(numbers, evaluation))),
        page.section("What to keep in mind", page.bullets(_caveats(evaluation))),
        "<footer>Made by neuroage. The same figures, unrounded: evaluation.json; per label: metrics.csv; per scan: "
        "evaluation.csv.</footer>\n",
    )


def _who(numbers: LabelNumbers, evaluation: LabelEvaluation) -> str:
    sets = escape(" and ".join(evaluation.sets))
    grouped = evaluation.scans.n_groups != evaluation.n_subjects
    groups = f", in {numbers.show('n_groups')} groups" if grouped else ""
    return f"Measured on {numbers.show('n_scans')} {sets} scans of {numbers.show('n_subjects')} subjects{groups}."


def _selection_notice(evaluation: LabelEvaluation) -> str:
    if not evaluation.selected_on:
        return ""
    return (
        '<p class="notice"><strong>Read with care.</strong> Something about the model (its epoch, calibration or '
        f"thresholds) was chosen on the {escape(evaluation.selected_on)} set, which is also scored here. "
        "The figures are therefore better than new people would give.</p>\n"
    )


def _models(numbers: LabelNumbers, evaluation: LabelEvaluation) -> str:
    metrics = _OVERALL[evaluation.kind]

    def cells(name: str) -> list[str]:
        found = []
        for metric in metrics:
            found.append(numbers.with_bounds("models", name, metric))
            if metric == "accuracy":
                found.append(numbers.show("models", name, "accuracy_constant"))
        return found

    head: list[str] = []
    for metric in metrics:
        head += [_heading(metric)] + [_heading("accuracy_constant")] * (metric == "accuracy")
    rows = [
        (str(figures["kind"]), [escape(str(figures["label"])), *cells(name)])
        for name, figures in evaluation.models.items()
    ]
    over = "" if evaluation.kind == BINARY else "Means over labels, each counting alike. "
    caption = (
        f"{over}Each figure with its 95% interval below it. Beside accuracy: what the most frequent answer, given to "
        "every scan, would score."
    )
    return page.table(caption, ["", *head], rows)


def _pairs(numbers: LabelNumbers, evaluation: LabelEvaluation) -> str:
    def called(name: str) -> str:
        return escape(str(evaluation.models[name]["label"]))

    rows = [
        (
            "",
            [
                f"{called(pair['a'])} − {called(pair['b'])}",
                escape(metric_phrase(pair["metric"], evaluation.kind)),
                numbers.show("pairs", index, "difference"),
                numbers.bounded("pairs", index, "", low="difference_low", high="difference_high"),
            ],
        )
        for index, pair in enumerate(evaluation.pairs)
    ]
    caption = "Paired differences on the same scans: above 0 the first-named is better."
    head = ["", "In", "Difference", "95% interval"]
    return page.table(caption, head, rows, text_columns=2) if rows else ""


def _labels(numbers: LabelNumbers, evaluation: LabelEvaluation) -> str:
    classes = evaluation.kind == MULTICLASS
    against = "Each class against all others. " if classes else ""
    ranked = f"{against}Ranking and probabilities. By chance: the ECE of a perfectly calibrated model on as many scans."
    decided = f"{against}Decisions. A dash: undefined."
    if not classes:
        decided += " One answer for all: the accuracy of the more frequent answer, given to every scan."
    ends = [] if classes else ["accuracy", "accuracy_constant"]
    start = [] if classes else ["threshold"]
    return _label_table(
        numbers, evaluation, ranked, ["n_positive", "prevalence", "auroc", "auprc", "brier", "ece", "ece_chance"]
    ) + _label_table(numbers, evaluation, decided, [*start, "sensitivity", "specificity", "f1", *ends])


def _label_table(numbers: LabelNumbers, evaluation: LabelEvaluation, caption: str, metrics: list[str]) -> str:
    def cell(label: str, metric: str) -> str:
        key = ("labels", evaluation.name, label)
        if metric == "n_positive":
            return f"{numbers.show(*key, 'n_positive')} of {numbers.show(*key, 'n')}"
        has_bounds = metric != "brier" and f"{metric}_low" in evaluation.labels[evaluation.name][label]
        return numbers.with_bounds(*key, metric) if has_bounds else numbers.show(*key, metric)

    rows = [("", [escape(label), *(cell(label, metric) for metric in metrics)]) for label in evaluation.label_names]
    return page.table(caption, ["", *map(_heading, metrics)], rows)


def _heading(metric: str) -> str:
    return _HEADS.get(metric) or {"n_positive": "Positive"}.get(metric) or metric.capitalize()


def _undefined(numbers: LabelNumbers, evaluation: LabelEvaluation) -> str:
    if not evaluation.undefined:
        return ""
    items = [
        f"{numbers.show('undefined', index, 'label')}: {escape(', '.join(entry['metrics']))} "
        f"({numbers.show('undefined', index, 'why')})"
        for index, entry in enumerate(evaluation.undefined)
    ]
    return '<p class="caption">Undefined, and left out of the means over labels:</p>\n' + page.bullets(items)


def _calibration(numbers: LabelNumbers, evaluation: LabelEvaluation) -> str:
    applied = evaluation.calibration
    if not applied:
        return ""
    moved = ["temperatures", "offsets"] if applied["offsets"] else ["temperatures"]
    rows = []
    for index, entry in enumerate(applied["fitted"]):
        key = ("calibration", "fitted", index)
        pairs = [
            f"{numbers.show(*key, f'{m}_before')} → {numbers.show(*key, f'{m}_after')}" for m in ("nll", "brier", "ece")
        ]
        rows.append(
            (
                "",
                [
                    escape(str(entry["label"])),
                    *(numbers.show("calibration", name, index) for name in moved),
                    numbers.show(*key, "n"),
                    *pairs,
                ],
            )
        )
    offsets = "; an offset below 0 lowers all odds" * (len(moved) > 1)
    caption = (
        f"Fitted on {applied['fitted_on']} scans: a temperature above 1 softens{offsets}. "
        "Before → after, on those same scans."
    )
    rule = f"<p>Thresholds: {escape(applied['rule'])}, chosen on the same scans.</p>\n" if applied["rule"] else ""
    head = ["", *(name.capitalize()[:-1] for name in moved), "n", "Log loss", "Brier", "ECE"]
    notes = page.bullets(escape(note) for note in applied["notes"]) if applied["notes"] else ""
    brier = numbers.show("calibration", "raw_brier")
    raw = f"<p>On the scans scored here, the Brier score of the raw probabilities is {brier}.</p>\n"
    return page.table(caption, head, rows) + rule + raw + notes


def _method(numbers: LabelNumbers, evaluation: LabelEvaluation) -> list[str]:
    answer = (
        "The answer is the most probable class."
        if evaluation.kind == MULTICLASS
        else "The answer is yes from the threshold on; 0.5 where none was chosen, and for baselines."
    )
    return [
        "Members and folds are averaged per scan: the mean of their probabilities. Every scan counts once.",
        answer,
        "Unknown answers are left out, label by label. Undefined is not 0: it is left out of means, and listed.",
        "Intervals: 95%, bootstrap over groups (subjects, where the table names no group); none where fewer than five "
        "groups carry a figure. Of single figures BCa, widened for few; of means over labels spread to the standard "
        "error of leaving out groups. Models share the resamples, so differences are paired.",
        "Average precision: the step-wise area under the precision–recall curve. Its value for knowing nothing is the "
        "prevalence, so it does not compare between labels.",
        "ECE: at most 15 bins of equally many scans. It has no interval, for every resample adds error of its own.",
        f"Seed of every resample: {numbers.show('seed')}.",
    ]


def _caveats(evaluation: LabelEvaluation) -> list[str]:
    said = [
        "Accuracy rewards the most frequent answer: never read it without the column beside it.",
        "Average precision, F1 and accuracy depend on the prevalence; AUROC, sensitivity and specificity do so less. "
        "None of them carries over to a hospital with other patients.",
        "The intervals say how much the figures would move with other subjects of the same kind. They do not contain "
        "another hospital, another scanner, or another training.",
        "A network earns its keep by beating a linear model on coarse pixels, not by beating the most frequent answer.",
    ]
    if len(evaluation.label_names) > 1:
        said.append(
            "With many labels some look good or bad by chance; the intervals are not adjusted for their number."
        )
    return said
