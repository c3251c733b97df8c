"""What a run found, on the terminal: figures of ages or labels with their baselines, and predictions."""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from neuroage.cli.screen import make_table, metric_row, out, shown, talk

if TYPE_CHECKING:
    import pandas as pd

    from neuroage.runs.run import Run

MOST_ROWS = 20  # scans shown; the table has all
MOST_LABELS = 16  # labels shown; of more, the best and the worst
ENDS = 4  # how many of these
NAMED = 3  # classes, or predicted labels, named of a scan
LABEL_COLUMNS = ("AUROC", "AUPRC", "F1", "sensitivity", "specificity")
AGE_COLUMNS = ["", "MAE", "95 % interval", "RMSE", "r", "R²", "gap slope"]


def tell_evaluation(evaluation: dict[str, Any]) -> None:
    """Print an evaluation: verdict, what to beware of, figures beside the baselines'."""
    out.print(f"[bold]{escape(evaluation['verdict'])}[/]")
    of_labels = "label_names" in evaluation
    chosen = evaluation.get("meta", {}).get("selected_on") == "validation"
    if chosen and (not of_labels or "validation" in evaluation["sets"]):
        out.print(
            "[yellow]The weights were selected on the validation set: "
            "this figure is better than new subjects will show.[/]"
        )
    if of_labels:
        _tell_labels(evaluation)
    else:
        out.print(make_table("", AGE_COLUMNS, [metric_row(figures) for figures in evaluation["models"].values()]))
        tell_intervals(evaluation)


def tell_intervals(evaluation: dict[str, Any]) -> None:
    """Print how intervals and correction of ages did on the scored subjects; nothing without a calibration."""
    found = evaluation.get("calibration")
    if not found:
        return
    inside, raw, corrected = found["intervals"], evaluation["models"][evaluation["name"]], found["corrected"]
    out.print(
        f"{inside['n_inside']} of {inside['n']} real ages lie inside the {found['level']:.0%} intervals "
        f"(95 % bounds {shown(inside['coverage_low'])} – {shown(inside['coverage_high'])}, mean width "
        f"{shown(inside['mean_width'], 1)} years), which are for {found['population']}. {found['checked']}"
    )
    out.print(
        f"Gap slope raw {shown(raw['gap_slope'])}, corrected for age {shown(corrected['gap_slope'])} years per year. "
        "Report the raw MAE: the correction uses the real age."
    )


def _tell_labels(evaluation: dict[str, Any]) -> None:
    """Print the figures over all labels of every model, then those of each label."""
    rows = [[str(figures["label"]), *_over_labels(figures)] for figures in evaluation["models"].values()]
    labels = evaluation["labels"][evaluation["name"]]
    if evaluation["kind"] == "binary":
        [(name, figures)] = labels.items()
        title = f"{name}: {figures['n_positive']:,} of {figures['n']:,} scans have it ({_percent(figures)})"
    else:
        what = "classes" if evaluation["kind"] == "multiclass" else "labels"
        title = f"Mean over {len(labels)} {what}, each {_percent(evaluation['models'][evaluation['name']])} on average"
    columns = ["", "AUROC", "95 % interval", *LABEL_COLUMNS[1:], "accuracy", "one answer for all"]
    out.print(make_table(escape(title), columns, rows))
    if len(labels) > 1:
        some = _best_and_worst(labels, "f1" if evaluation["kind"] == "multiclass" else "auroc")
        cells = [["…"] + [""] * 8 if figures is None else [escape(name), *_of_label(figures)] for name, figures in some]
        out.print(make_table("", ["", *LABEL_COLUMNS, "positive", "n", "prevalence"], cells))
        if len(labels) > MOST_LABELS:
            out.print(f"The {ENDS} best and {ENDS} worst of {len(labels)}; all are in metrics.csv.")
    for entry in evaluation["undefined"][:NAMED]:
        talk.print(f"• {entry['label']}: no {', '.join(entry['metrics'])} ({entry['why']})", markup=False)
    if len(evaluation["undefined"]) > NAMED:
        talk.print(f"  … and {len(evaluation['undefined']) - NAMED} more labels with figures that are not defined")


def _over_labels(figures: dict[str, Any]) -> list[str]:
    low, high = shown(figures["auroc_low"]), shown(figures["auroc_high"])
    cells = [shown(figures["auroc"]), "–" if low == "–" else f"{low} – {high}"]
    cells += [shown(figures[name.lower()]) for name in LABEL_COLUMNS[1:]]
    return [*cells, shown(figures["accuracy"]), shown(figures["accuracy_constant"])]


def _of_label(figures: dict[str, Any]) -> list[str]:
    cells = [shown(figures[name.lower()]) for name in LABEL_COLUMNS]
    return [*cells, f"{figures['n_positive']:,}", f"{figures['n']:,}", _percent(figures)]


def _percent(figures: dict[str, Any]) -> str:
    share = figures["prevalence"]
    return "–" if share is None or isnan(share) else f"{100 * share:.1f}%"


def _best_and_worst(labels: dict[str, Any], metric: str) -> list[tuple[str, dict[str, Any] | None]]:
    """Give all labels where they are few; else the best and the worst, with a gap (None) between them."""
    if len(labels) <= MOST_LABELS:
        return list(labels.items())
    told = [name for name, figures in labels.items() if figures[metric] is not None and not isnan(figures[metric])]
    order = sorted(told, key=lambda name: -float(labels[name][metric]))
    ends = [(name, labels[name]) for name in order]
    return [*ends[:ENDS], ("…", None), *ends[-ENDS:]]


def tell_predictions(table: pd.DataFrame, run: Run) -> None:
    """Print predictions: one row a scan, with its verdict."""
    from neuroage.runs.calibration import intervals_in_words

    target = run.target
    of_ages = target["kind"] == "age"
    known = "age" if of_ages else "truth"
    rows = [
        [
            escape(str(row["scan_id"])),
            shown(row["age"], 1) if of_ages else _truth(row, target),
            shown(row["predicted_age"], 1) + _interval(row) if of_ages else label_answer(row, target),
            str(row["verdict"]),
            escape(_first_concerns(str(row["concerns"]))),
        ]
        for row in table.head(MOST_ROWS).to_dict("records")
    ]
    answer = "predicted age" if of_ages else "predicted"
    out.print(make_table("", ["scan", known, answer, "verdict", "concerns"], rows, numbers_from=9))
    if len(table) > MOST_ROWS:
        out.print(f"… and {len(table) - MOST_ROWS} more")
    if "interval_low" in table.columns:
        talk.print(f"In brackets: {intervals_in_words(run)}.")


def label_answer(row: dict[Any, Any], target: dict[str, Any]) -> str:
    """Give the answer for one scan in words.

    Example:
        >>> row = {"predicted_edema": 1.0, "probability_edema": 0.81}
        >>> label_answer(row, {"kind": "binary", "labels": ["edema"]})
        'edema 0.81'
    """
    chances = {label: row[f"probability_{label}"] for label in target["labels"]}
    if any(chance is None or isnan(chance) for chance in chances.values()):
        return "–"
    order = sorted(chances, key=lambda label: -float(chances[label]))
    if target["kind"] == "multiclass":
        named, start = order[:NAMED], ""
    else:
        named = [label for label in order if row.get(f"predicted_{label}") == 1]
        start = "" if named else f"no {order[0]}: " if len(order) == 1 else "none; highest "
        if start:
            return f"{start}{shown(chances[order[0]])}" if len(order) == 1 else _with_chance(order[0], chances, start)
    said = ", ".join(_with_chance(label, chances) for label in named[:NAMED])
    return said + (f" and {len(named) - NAMED} more" if target["kind"] != "multiclass" and len(named) > NAMED else "")


def _with_chance(label: str, chances: dict[str, float], start: str = "") -> str:
    return f"{start}{escape(label)} {shown(chances[label])}"


def _truth(row: dict[Any, Any], target: dict[str, Any]) -> str:
    """Give what is known of a scan, in words."""
    if target["kind"] == "multiclass":
        known = row.get("target_label")
        return escape(known) if isinstance(known, str) and known else "–"
    answers = {label: row.get(f"target_{label}") for label in target["labels"]}
    there = {label: value for label, value in answers.items() if value is not None and not isnan(value)}
    if not there:
        return "–"
    having = [label for label, value in there.items() if value == 1]
    return escape(", ".join(having)) if having else f"no {escape(next(iter(there)))}" if len(answers) == 1 else "none"


def _first_concerns(words: str) -> str:
    first, rest = words.split("; ")[:3], words.split("; ")[3:]
    return "; ".join([*first, *([f"and {len(rest)} more, in the table"] if rest else [])])


def _interval(row: dict[Any, Any]) -> str:
    low, high = row.get("interval_low"), row.get("interval_high")
    return "" if low is None or low != low else f" ({low:.0f}–{high:.0f})"
