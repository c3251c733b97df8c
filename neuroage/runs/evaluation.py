"""Score a run on its own held-out subjects, from the tables that it left."""

from __future__ import annotations

from neuroage.analysis import Evaluation, evaluate
from neuroage.errors import UsageError
from neuroage.runs.calibration import out_of_fold_set, read_calibration
from neuroage.runs.run import Run


def evaluate_held_out(run: Run, set_name: str = "validation") -> Evaluation:
    """Score a run on held-out subjects of its split, with the mean predictor and ridge beside it.

    Args:
        run: A run with predictions.
        set_name: "validation"; "test" where its split has a test set; "out_of_fold" where its members left out parts
            of the training subjects. Where the run is calibrated, coverage and corrected figures come along; on the
            subjects on whom the calibration was fitted, by cross-validation.

    Raises:
        UsageError: The run has no predictions yet.
        DataError: Its split has no such set.
    """
    if not run.scored:
        raise UsageError(f"{run.folder} is not complete", fix="Finish it with `neuroage train … --resume`.")
    about, recipe = run.about, run.recipe
    meta = {
        "selected_on": about.get("selected_on"),
        "split": about["split_digest"][:12],
        "recipe": about["recipe_digest"][:12],
    }
    calibration = read_calibration(run)
    return evaluate(
        run.predictions,
        run.baselines,
        (set_name,),
        recipe.seed,
        name=recipe.modality,
        meta=meta,
        calibration=calibration,
        across=calibration is not None and out_of_fold_set(run) == set_name,
    )
