"""The Python face: thin classes over runs; all the work is done by `neuroage.training`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from neuroage.cohort import Cohort, Split
from neuroage.errors import UsageError
from neuroage.runs.evaluation import evaluate_held_out
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run
from neuroage.runs.shipped import find_recipe

if TYPE_CHECKING:
    import pandas as pd

    from neuroage.analysis import Evaluation
    from neuroage.imaging.store import Store
    from neuroage.training.observer import Observer

Inputs: TypeAlias = "str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Cohort"

# Keyword arguments that are short for a key of the recipe.
SHORT = {
    "epochs": "training.epochs",
    "batch_size": "training.batch_size",
    "lr": "optim.lr",
    "seed": "seed",
    "modality": "modality",
    "precision": "training.precision",
}  # fmt: skip


class TorchIOTransform(Protocol):
    """Any `torchio.Transform`, such as a `tio.Compose`."""

    def __call__(self, data: Any) -> Any:
        """Transform a TorchIO subject."""


class AgeRegressor:
    """A brain-age model: fit on a cohort and a split, predict scans, evaluate.

    Args:
        recipe: A shipped name ("t1_small"), a YAML file, or a `Recipe`.
        augmentation: A TorchIO transform used instead of the recipe's augmentation; None keeps the recipe's.
        store: Folder of prepared volumes; the user's cache folder when None.
        overrides: Short for recipe keys: `epochs`, `batch_size`, `lr`, `seed`, `modality`, `precision`.

    Raises:
        UsageError: No such recipe, a wrong value, or an override that does not exist.

    Example:
        >>> model = AgeRegressor("t1_small", epochs=30)
        >>> model.recipe.training.epochs
        30
        >>> model.fit(cohort, split, out="runs/t1").evaluate().table  # doctest: +SKIP
    """

    def __init__(
        self,
        recipe: str | os.PathLike[str] | Recipe = "t1_small",
        *,
        augmentation: TorchIOTransform | None = None,
        store: str | os.PathLike[str] | None = None,
        **overrides: Any,
    ) -> None:
        unknown = sorted(set(overrides) - set(SHORT))
        if unknown:
            raise UsageError(
                f"AgeRegressor has no argument {unknown[0]!r}",
                expected=f"one of {', '.join(SHORT)}",
                fix="Other keys: Recipe.load(…).updated('key=value').",
            )
        changes = [f"{SHORT[name]}={value}" for name, value in overrides.items()]
        self.recipe = (
            recipe.updated(*changes)
            if isinstance(recipe, Recipe)
            else Recipe.load(find_recipe(os.fspath(recipe)), changes)
        )
        self._augmentation = augmentation
        self._store = store
        self._run: Run | None = None

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> AgeRegressor:
        """Open the model of a run folder.

        Raises:
            UsageError: No run is there.
        """
        run = Run.open(folder)
        model = cls(run.recipe)
        model._run = run
        return model

    @property
    def run(self) -> Run:
        """The run that `fit` left, or that was loaded.

        Raises:
            UsageError: The model was not fitted yet.
        """
        if self._run is None:
            raise UsageError(
                "This model is not fitted yet",
                fix="Call fit(cohort, split, out=…), or load a run with neuroage.load(folder).",
            )
        return self._run

    def fit(
        self,
        cohort: Cohort,
        split: Split,
        *,
        out: str | os.PathLike[str],
        fold: int = 0,
        folds: int = 1,
        repeats: int = 1,
        resume: str = "never",
        observer: Observer | None = None,
    ) -> AgeRegressor:
        """Train, score on the held-out subjects, and leave a run in `out`.

        Args:
            cohort: Scans; those of the recipe's modality are used.
            split: Who is held out.
            out: Folder of the run.
            fold: Which fold of the split is held out, where one is trained.
            folds: Above 1: each fold of the split is held out in turn; of a split with one, each of so many parts of
                its training subjects, which gives intervals and the correction of age bias.
            repeats: Trainings with other seeds, averaged.
            resume: "never", "required" or "auto" (continue an interrupted training).
            observer: Receives news while it runs.

        Raises:
            UsageError: `cohort` or `split` is a path.
            NeuroageError: As `neuroage.training.experiment.train_members`.
        """
        from neuroage.cohort.parts import all_parts
        from neuroage.training.experiment import train_members

        if not isinstance(cohort, Cohort) or not isinstance(split, Split):
            raise UsageError(
                f"fit takes a Cohort and a Split, not {type(cohort).__name__} and {type(split).__name__}",
                fix="Read them with Cohort.read(path) and Split.load(path).",
            )
        several = folds > 1 and split.n_folds > 1

        augmentation = None
        if self._augmentation is not None:
            from neuroage.imaging.torchio_pipeline import TorchIOPipeline
            from neuroage.runs.seeds import child_seed

            augmentation = TorchIOPipeline(
                self._augmentation, child_seed(self.recipe.seed, "augment"), self.recipe.prepare.spacing
            )
        self._run = train_members(
            self.recipe,
            cohort,
            split,
            out,
            folds=range(folds) if several else (fold,),
            parts=() if several else all_parts(folds),
            repeats=repeats,
            resume=resume,
            store=self._open_store(),
            augmentation=augmentation,
            observer=observer,
        )
        return self

    def predict(self, inputs: Inputs, *, force: bool = False) -> pd.DataFrame:
        """Predict the age of scans; each is checked first.

        Args:
            inputs: Image files, DICOM folders, folders of a known layout, tables, or a cohort.
            force: Predict refused scans too.

        Returns:
            One row a scan: scan_id, subject_id, age (where known), predicted_age (years; NaN where refused), gap,
            verdict (ok, warn, refuse), concerns in words, and how near training scans are.

        Raises:
            RefusedError: The prediction of every scan would be meaningless.
        """
        from neuroage.training.predict import predict

        return predict(self.run, self._gather(inputs), store=self._open_store(), force=force).table

    def check(self, inputs: Inputs) -> pd.DataFrame:
        """Compare scans with those that the model was trained on, without predicting them.

        Args:
            inputs: As in `predict`.

        Returns:
            One row a scan: scan_id, path, verdict (ok, warn, refuse), concerns in words with what to do.
        """
        from neuroage.training.check import check

        return check(self.run, self._gather(inputs), store=self._open_store())[0]

    def _gather(self, inputs: Inputs) -> Cohort:
        from neuroage.training.inputs import gather_scans

        if isinstance(inputs, (str, os.PathLike)):
            inputs = [inputs]
        cohort = inputs if isinstance(inputs, Cohort) else gather_scans(inputs, self.recipe.modality)
        return cohort.select(modality=self.recipe.modality)

    def evaluate(self, cohort: Cohort | None = None, *, subjects: str = "validation") -> Evaluation:
        """Score the model, with the mean predictor and ridge beside it.

        Args:
            cohort: Subjects with ages that it was not trained on; None: the held-out subjects of its split.
            subjects: Which of these: validation, test or out_of_fold.

        Returns:
            The evaluation: `table`, `verdict`, `to_dict()`.
        """
        if cohort is None:
            return evaluate_held_out(self.run, subjects)
        from neuroage.training.predict import evaluate_on

        return evaluate_on(self.run, cohort.select(modality=self.recipe.modality), store=self._open_store())[0]

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Copy the run to another folder, whole or not at all.

        Raises:
            UsageError: The folder exists.
        """
        return self.run.copy_to(folder)

    def _open_store(self) -> Store:
        from neuroage.imaging.store import Store

        return Store(self._store)


def load(folder: str | os.PathLike[str]) -> AgeRegressor:
    """Open the model of a run folder; errors as in `AgeRegressor.load`."""
    return AgeRegressor.load(folder)
