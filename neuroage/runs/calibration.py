"""The calibration of a run: fitted on its out-of-fold predictions and on nothing else, kept in calibration.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroage.analysis.calibration import FEWEST_SUBJECTS, LEVEL, Calibration, fit_calibration
from neuroage.analysis.conformal import N_BINS, Population
from neuroage.analysis.subjects import average_per_subject, scored_rows
from neuroage.errors import InfeasibleError, RefusedError, UsageError
from neuroage.files import write_json
from neuroage.runs.run import Run

OUT_OF_FOLD = "out_of_fold"


def read_content(run: Run) -> dict[str, Any]:
    """Give what the run's calibration.json holds; empty where there is none."""
    path = run.calibration_path
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def read_calibration(run: Run) -> Calibration | None:
    """Give the calibration of a run about ages; None where it has none."""
    content = read_content(run)
    return Calibration.from_dict(content) if content else None


def calibrate(
    run: Run, *, level: float = LEVEL, population: Population | None = None, n_bins: int = N_BINS
) -> Calibration:
    """Fit age bias and intervals on a run's out-of-fold predictions, and keep them in the run.

    Args:
        run: A run whose members left out a part, or a fold, of the subjects each.
        level: The promised share of real ages inside the intervals, above 0 and below 1.
        population: Whose ages the intervals are for. None: every age of the out-of-fold subjects equally often.
        n_bins: Slices of age, each with its own width.

    Raises:
        UsageError: The run has no predictions, or none that are out of fold.
        RefusedError: The out-of-fold subjects had a say in the weights.
        InfeasibleError: Fewer than 20 subjects are of these ages, or many of these ages are nobody's.
    """
    subjects = out_of_fold_subjects(run)
    if len(subjects) < FEWEST_SUBJECTS:
        raise InfeasibleError(
            f"{run.folder} has {len(subjects)} out-of-fold subjects", expected=f"at least {FEWEST_SUBJECTS}"
        )
    population = population or read_population("uniform", subjects["age"])
    found = fit_calibration(subjects, population=population, level=level, n_bins=n_bins)
    write_json(run.calibration_path, found.to_dict())
    return found


def calibrate_again(run: Run) -> Calibration:
    """Fit a run's calibration anew, to the level, population and bins that were asked for before; else to the default.

    Raises:
        NeuroageError: As `calibrate`.
    """
    before = read_calibration(run)
    if before is None:
        return calibrate(run)
    intervals = before.intervals
    population = intervals.population
    if population.kind == "training":  # the ages may have changed; a range or a list was stated
        population = read_population("training", out_of_fold_subjects(run)["age"])
    return calibrate(run, level=intervals.level, population=population, n_bins=before.n_bins)


def out_of_fold_set(run: Run) -> str:
    """Name the set of a run's predictions in which every subject was predicted by members that did not train on them.

    Returns:
        "out_of_fold", or "validation" for a run over several folds of its split.

    Raises:
        UsageError: The run has no such predictions.
        RefusedError: Weights were selected on them.
    """
    if not run.scored:
        raise UsageError(f"{run.folder} is not complete", fix="Finish it with `neuroage train … --resume`.")
    if (run.predictions["set"] == OUT_OF_FOLD).any():
        return OUT_OF_FOLD
    if not run.is_parent or len({leaf.about["fold"] for leaf in run.leaves}) < 2:
        raise UsageError(
            f"{run.folder} has no out-of-fold predictions",
            expected="a run in which every training subject was left out once",
            fix="Train with `neuroage train … --folds 5`. Its validation and test subjects are there to be scored, "
            "and nothing is fitted on them.",
        )
    if run.about.get("selected_on") == "validation":
        raise RefusedError(
            f"The weights of {run.folder} were selected on the subjects of its folds: its errors on them are too small",
            fix="Train with training.select: last or inner.",
        )
    return "validation"


def out_of_fold_subjects(run: Run) -> pd.DataFrame:
    """Give one row per out-of-fold subject: subject_id, age, predicted_age (years), seeds and scans averaged."""
    return average_per_subject(scored_rows(run.predictions, (out_of_fold_set(run),), run.name))


def read_population(text: str, training_ages: pd.Series) -> Population:
    """Read whose ages intervals are for.

    Args:
        text: "uniform" (every age of the training subjects equally often), "training" (ages as in training),
            "LOW-HIGH" in years (uniform), or a table with a column `age`.
        training_ages: Of the out-of-fold subjects, years.

    Raises:
        UsageError: It is none of these.
    """
    low, high = float(training_ages.min()), float(training_ages.max())
    if text in ("uniform", "training"):
        return Population(text, low, high)
    path = Path(text)
    if path.suffix.lower() in (".csv", ".tsv") or path.is_file():
        return _population_of_table(path)
    try:
        low, high = (float(part) for part in text.replace(":", "-").split("-"))
    except ValueError:
        low, high = np.nan, np.nan
    if not 0 <= low < high:
        raise UsageError(
            f"ages {text!r}", expected="uniform, training, LOW-HIGH in years such as 18-90, or a table with ages"
        )
    return Population("uniform", low, high)


def _population_of_table(path: Path) -> Population:
    if not path.is_file():
        raise UsageError(f"No table of ages at {path}", expected="a CSV or TSV file with a column `age`")
    table = pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",")
    if "subject_id" in table:
        table = table.drop_duplicates("subject_id")  # people, not scans
    column = next((name for name in table.columns if str(name).strip().lower() == "age"), None)
    ages = pd.to_numeric(table[column], errors="coerce").dropna().round(1) if column else pd.Series(dtype=float)
    if ages.nunique() < 2:
        raise UsageError(f"{path} has {ages.nunique()} different ages", expected="a column `age` with ages in years")
    return Population("table", float(ages.min()), float(ages.max()), tuple(ages.tolist()))


def intervals_in_words(run: Run) -> str:
    """Say for whom a run's intervals are; empty where it has none."""
    calibration = read_calibration(run)
    return calibration.words if calibration else ""


def apply_calibration(table: pd.DataFrame, run: Run) -> pd.DataFrame:
    """Put a run's intervals and corrected figures beside averaged predictions; none where it is not calibrated."""
    calibration = read_calibration(run)
    return calibration.apply(table) if calibration else table
