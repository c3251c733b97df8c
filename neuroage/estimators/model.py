"""What both estimators share: fit, predict, check, explain, evaluate, calibrate, save."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar

from neuroage.cohort import Cohort, Split
from neuroage.errors import UsageError
from neuroage.estimators.arguments import free_folder, updated
from neuroage.runs.evaluation import AnyEvaluation, evaluate_held_out
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run

if TYPE_CHECKING:
    import pandas as pd

    from neuroage.imaging.store import Store
    from neuroage.training.explain import Maps
    from neuroage.training.observer import Observer

Inputs: TypeAlias = "str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Cohort"
M = TypeVar("M", bound="Model")

ANY_PICTURE = "picture"  # modality of the recipe for pictures of any kind: a cohort's only one takes its place


class TorchIOTransform(Protocol):
    """Any `torchio.Transform`, such as a `tio.Compose`."""

    def __call__(self, data: Any) -> Any:
        """Transform a TorchIO subject."""


class Model:
    """What both estimators share: a recipe and, once fitted, a run. Neither fixes the number of dimensions.

    Args:
        recipe: The whole configuration.
        augmentation: A TorchIO transform used instead of the recipe's augmentation; None keeps the recipe's.
        store: Folder of prepared images; the user's cache folder when None.
    """

    _about_age: bool  # whether it predicts ages; else labels

    def __init__(
        self, recipe: Recipe, augmentation: TorchIOTransform | None = None, store: str | os.PathLike[str] | None = None
    ) -> None:
        self.recipe = recipe
        self._augmentation = augmentation
        self._store = store
        self._run: Run | None = None

    @classmethod
    def load(cls: type[M], folder: str | os.PathLike[str]) -> M:
        """Open the model of a run folder.

        Raises:
            UsageError: No run is there, or one of the other kind.
        """
        run = Run.open(folder)
        if (run.target["kind"] == "age") != cls._about_age:
            raise UsageError(
                f"{folder} predicts {'ages' if run.target['kind'] == 'age' else 'labels'}",
                fix="Open it with neuroage.load(folder), which gives the right kind.",
            )
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
        self: M,
        cohort: Cohort,
        split: Split,
        *,
        out: str | os.PathLike[str] | None = None,
        fold: int = 0,
        folds: int = 1,
        repeats: int = 1,
        resume: str = "never",
        observer: Observer | None = None,
        **overrides: Any,
    ) -> M:
        """Train, score on the held-out subjects, and leave a run in `out`.

        Args:
            cohort: Scans; those of the recipe's modality are used.
            split: Who is held out.
            out: Folder of the run; None: the first of runs/MODALITY, runs/MODALITY-2, … that is not there yet.
            fold: Which fold of the split is held out, where one is trained.
            folds: Above 1: each fold of the split is held out in turn; of a split with one, each of so many parts of
                its training subjects, which gives intervals and the correction of age bias.
            repeats: Trainings with other seeds, averaged.
            resume: "never", "required" or "auto" (continue an interrupted training).
            observer: Receives news while it runs.
            overrides: Short for recipe keys, such as `epochs`, `lr`, `layer_decay`, `unfreeze`, `imbalance`; all of
                them: `neuroage.estimators.SHORT`.

        Raises:
            UsageError: `cohort` or `split` is a path, or there is no such argument.
            NeuroageError: As `neuroage.training.experiment.train_members`.
        """
        from neuroage.cohort.parts import all_parts
        from neuroage.training.experiment import train_members

        if not isinstance(cohort, Cohort) or not isinstance(split, Split):
            raise UsageError(
                f"fit takes a Cohort and a Split, not {type(cohort).__name__} and {type(split).__name__}",
                fix="Read them with Cohort.read(path) and Split.load(path).",
            )
        self.recipe = updated(self.recipe, overrides)
        self._refuse_the_others_target()
        if self.recipe.modality == ANY_PICTURE and len(cohort.modalities) == 1:
            self.recipe = self.recipe.updated(f"modality={cohort.modalities[0]}")
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
            out if out is not None else free_folder(self.recipe.modality),
            folds=range(folds) if several else (fold,),
            parts=() if several else all_parts(folds),
            repeats=repeats,
            resume=resume,
            store=self._open_store(),
            augmentation=augmentation,
            observer=observer,
        )
        return self

    def _refuse_the_others_target(self) -> None:
        from neuroage.models.tasks import build_task

        kind = build_task(self.recipe).target["kind"]
        other = "ImageClassifier" if self._about_age else "AgeRegressor"
        if (kind == "age") != self._about_age:
            raise UsageError(
                f"{type(self).__name__} and task {self.recipe.task.name}",
                fix=f"Use {other} with this task, or another task.",
            )

    def predict(
        self, inputs: Inputs, *, force: bool = False, prepare: Literal["recipe", "auto"] = "recipe"
    ) -> pd.DataFrame:
        """Predict scans; each is checked first.

        Args:
            inputs: Image files, DICOM files or folders, folders of a known layout, tables, or a cohort.
            prepare: `recipe`: scans are as the training scans were. `auto`: raw scans, with skull and in any pose, are
                brought to lie and look like them first.
            force: Predict refused scans too.

        Returns:
            One row a scan: scan_id, subject_id; of ages: age (where known), predicted_age (years; NaN where refused)
            and gap; of labels: `probability_<label>`, and `predicted_<label>` at the thresholds; verdict (ok, warn,
            refuse), concerns in words, and how near training scans are.

        Raises:
            RefusedError: The prediction of every scan would be meaningless.
        """
        from neuroage.training.predict import predict

        gathered = self._gather(inputs)
        return predict(self.run, gathered, store=self._open_store(), prepare=prepare, force=force).table

    def explain(
        self, inputs: Inputs, *, method: str = "gradcam", target: str | None = None, layer: str | None = None
    ) -> Maps:
        """Show where the network looked.

        Args:
            inputs: As in `predict`.
            method: gradcam, gradcam++, integrated_gradients or occlusion.
            target: Which label or class; None: of each scan the predicted one.
            layer: Stage whose feature map Grad-CAM looks at; None: the backbone's output.

        Returns:
            One map a scan; `save(folder)` draws them, `score(boxes)` measures them.
        """
        from neuroage.training.explain import explain

        return explain(
            self.run, self._gather(inputs), method=method, target=target, layer=layer, store=self._open_store()
        )

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
        if not isinstance(inputs, Cohort):
            inputs = gather_scans(
                inputs, self.recipe.modality, kind=self.recipe.prepare.kind, reference=self.recipe.reference
            )
        return self.recipe.select(inputs)

    def evaluate(self, cohort: Cohort | None = None, *, subjects: str | None = None) -> AnyEvaluation:
        """Score the model, with the baselines beside it.

        Args:
            cohort: Subjects with ages or labels that it was not trained on; None: the held-out subjects of its split.
            subjects: Which of these: validation, test or out_of_fold. None: validation, or test where something was
                chosen on validation.

        Returns:
            The evaluation: `table`, `verdict`, `to_dict()`.
        """
        if cohort is None:
            return evaluate_held_out(self.run, subjects)
        if not isinstance(cohort, Cohort):
            raise UsageError(
                f"evaluate takes a Cohort, not {type(cohort).__name__}", fix="Read it with Cohort.read(path)."
            )
        from neuroage.training.predict import evaluate_on

        return evaluate_on(self.run, self.recipe.select(cohort), store=self._open_store())[0]

    def calibrate(self: M, **options: Any) -> M:
        """Fit what brings predictions to what they promise, on held-out predictions, and keep it in the run.

        Of ages: bias and intervals, on out-of-fold subjects. Of labels: temperatures and offsets, on validation.

        Args:
            options: Of `neuroage.runs.calibration.calibrate`, for ages: level, population, n_bins.
        """
        from neuroage.runs.calibration import calibrate
        from neuroage.runs.label_calibration import calibrate_labels

        if self.run.target["kind"] == "age":
            calibrate(self.run, **options)
        else:
            calibrate_labels(self.run, **options)
        return self

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Copy the run to another folder, whole or not at all.

        Raises:
            UsageError: The folder exists.
        """
        return self.run.copy_to(folder)

    def _open_store(self) -> Store:
        from neuroage.imaging.store import Store

        return Store(self._store)
