"""The Python face: thin classes over runs; all the work is done by `neuroage.training`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import yaml

from neuroage.cohort import Cohort, Split
from neuroage.errors import UsageError, did_you_mean
from neuroage.runs.evaluation import AnyEvaluation, evaluate_held_out
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run
from neuroage.runs.shipped import find_recipe, shipped_recipes

if TYPE_CHECKING:
    import pandas as pd

    from neuroage.imaging.store import Store
    from neuroage.training.explain import Maps
    from neuroage.training.observer import Observer

Inputs: TypeAlias = "str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Cohort"
M = TypeVar("M", bound="Model")

ANY_PICTURE = "picture"  # modality of the recipe for pictures of any kind: a cohort's only one takes its place

# Keyword arguments that are short for a key of the recipe.
SHORT = {
    "epochs": "training.epochs",
    "batch_size": "training.batch_size",
    "patience": "training.patience",
    "select": "training.select",
    "precision": "training.precision",
    "mixup": "training.mixup",
    "lr": "optim.lr",
    "weight_decay": "optim.weight_decay",
    "layer_decay": "finetune.layer_decay",
    "freeze": "finetune.freeze",
    "unfreeze": "finetune.unfreeze",
    "imbalance": "task.imbalance",
    "seed": "seed",
    "modality": "modality",
}  # fmt: skip


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
        if (run.target["kind"] == "age") != (cls is AgeRegressor):
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
        self.recipe = _updated(self.recipe, overrides)
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
            out if out is not None else _free_folder(self.recipe.modality),
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
        other = ImageClassifier if self._about_age else AgeRegressor
        if (kind == "age") != self._about_age:
            raise UsageError(
                f"{type(self).__name__} and task {self.recipe.task.name}", fix=f"Use {other.__name__} with this task."
            )

    def predict(self, inputs: Inputs, *, force: bool = False) -> pd.DataFrame:
        """Predict scans; each is checked first.

        Args:
            inputs: Image files, DICOM files or folders, folders of a known layout, tables, or a cohort.
            force: Predict refused scans too.

        Returns:
            One row a scan: scan_id, subject_id; of ages: age (where known), predicted_age (years; NaN where refused)
            and gap; of labels: `probability_<label>`, and `predicted_<label>` at the thresholds; verdict (ok, warn,
            refuse), concerns in words, and how near training scans are.

        Raises:
            RefusedError: The prediction of every scan would be meaningless.
        """
        from neuroage.training.predict import predict

        return predict(self.run, self._gather(inputs), store=self._open_store(), force=force).table

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
            inputs = gather_scans(inputs, self.recipe.modality, kind=self.recipe.prepare.kind)
        return inputs.select(modality=self.recipe.modality)

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

        return evaluate_on(self.run, cohort.select(modality=self.recipe.modality), store=self._open_store())[0]

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


class AgeRegressor(Model):
    """A brain-age model: fit on a cohort and a split, predict scans, evaluate. Volumes and pictures alike.

    Args:
        recipe: A shipped name ("t1_small"), a YAML file, or a `Recipe`.
        augmentation: A TorchIO transform used instead of the recipe's augmentation; None keeps the recipe's.
        store: Folder of prepared images; the user's cache folder when None.
        overrides: Short for recipe keys: `epochs`, `batch_size`, `lr`, `seed`, `modality`, `precision`, …

    Raises:
        UsageError: No such recipe, a wrong value, or an override that does not exist.

    Example:
        >>> model = AgeRegressor("t1_small", epochs=30)
        >>> model.recipe.training.epochs
        30
        >>> model.fit(cohort, split, out="runs/t1").evaluate().table  # doctest: +SKIP
    """

    _about_age = True

    def __init__(
        self,
        recipe: str | os.PathLike[str] | Recipe = "t1_small",
        *,
        augmentation: TorchIOTransform | None = None,
        store: str | os.PathLike[str] | None = None,
        **overrides: Any,
    ) -> None:
        super().__init__(_updated(_recipe(recipe), overrides), augmentation, store)


class ImageClassifier(Model):
    """A classifier of images: pictures and volumes alike, by the engine that learns ages.

    Args:
        model: A recipe (a shipped name such as "chest_xray", a YAML file, or a `Recipe`), a backbone of ours ("cnn",
            "resnet"), or any model of timm ("convnext_small"). For a backbone, the rest comes from the recipe
            "picture".
        task: binary, multiclass or multilabel; None: the recipe's. Options of the task may stand beside it as a
            dictionary: `{"name": "binary", "label": "tumour"}`.
        size: Voxels along each axis of the prepared image, or one number for a square; None: the recipe's.
        head: Widths of hidden layers of the head; None: the recipe's.
        pretrained: Begin with timm's own weights, which are downloaded once; a path of a file with weights; False:
            random weights. None: as the recipe says.
        augmentation, store: As in `AgeRegressor`.
        overrides: Short for recipe keys: `epochs`, `lr`, `imbalance`, …

    Raises:
        UsageError: No such recipe or model, a wrong value, or an override that does not exist.

    Example:
        >>> model = ImageClassifier("cnn", task="multiclass", size=64, epochs=5)
        >>> model.recipe.prepare.size
        (64, 64)
        >>> model.fit(cohort, split).calibrate().choose_thresholds("sensitivity>=0.9")  # doctest: +SKIP
    """

    _about_age = False

    def __init__(
        self,
        model: str | os.PathLike[str] | Recipe = "picture",
        *,
        task: str | dict[str, Any] | None = None,
        size: int | Sequence[int] | None = None,
        head: Sequence[int] | None = None,
        pretrained: bool | str | os.PathLike[str] | None = None,
        augmentation: TorchIOTransform | None = None,
        store: str | os.PathLike[str] | None = None,
        **overrides: Any,
    ) -> None:
        recipe = _recipe_for(model)
        changes: list[str] = []
        if task is not None:
            changes.append(f"task={json.dumps({'name': task} if isinstance(task, str) else task)}")
        if size is not None:
            changes.append(f"prepare.size={json.dumps(_plain(size))}")
        if head is not None:
            changes.append(f"head.hidden={json.dumps(_plain(head))}")
        if pretrained is not None:
            named = ("timm" if pretrained else None) if isinstance(pretrained, bool) else os.fspath(pretrained)
            changes.append(f"backbone.weights={json.dumps(named)}")
        super().__init__(_updated(recipe.updated(*changes), overrides), augmentation, store)

    def choose_thresholds(self, rule: str) -> ImageClassifier:
        """Choose from which probability on a label is predicted, on the validation set, and keep it in the run.

        Args:
            rule: "sensitivity>=0.9" (the highest specificity with it), "specificity>=0.95", "f1" or "youden".
        """
        from neuroage.runs.label_calibration import choose_run_thresholds

        choose_run_thresholds(self.run, rule)
        return self


def load(folder: str | os.PathLike[str]) -> AgeRegressor | ImageClassifier:
    """Open the model of a run folder, of whichever kind; errors as in `Model.load`."""
    kind = AgeRegressor if Run.open(folder).target["kind"] == "age" else ImageClassifier
    return kind.load(folder)


def _recipe(given: str | os.PathLike[str] | Recipe) -> Recipe:
    return given if isinstance(given, Recipe) else Recipe.load(find_recipe(os.fspath(given)))


def _recipe_for(model: str | os.PathLike[str] | Recipe) -> Recipe:
    """Give the recipe of that name, or the one for pictures with the backbone of that name."""
    if isinstance(model, Recipe):
        return model
    name = os.fspath(model)
    if Path(name).suffix in (".yaml", ".yml") or name in shipped_recipes():
        return _recipe(name)
    from neuroage.models.backbones import backbones

    backbone = {"name": name} if name in backbones() else {"name": "timm", "model": name}
    return _recipe("picture").updated(f"backbone={json.dumps(backbone)}")


def _updated(recipe: Recipe, overrides: dict[str, Any]) -> Recipe:
    unknown = sorted(set(overrides) - set(SHORT))
    if unknown:
        raise UsageError(
            f"There is no argument {unknown[0]!r}",
            expected=did_you_mean(unknown[0], SHORT),
            fix="Other keys: Recipe.load(…).updated('key=value').",
        )
    changes = [
        f"{SHORT[name]}={yaml.safe_dump(_plain(value), default_flow_style=True)}" for name, value in overrides.items()
    ]
    return recipe.updated(*changes)


def _plain(value: Any) -> Any:
    """Give NumPy's numbers and arrays, and tuples, as YAML and JSON know them."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def _free_folder(name: str) -> Path:
    places = [Path("runs") / name, *(Path("runs") / f"{name}-{number}" for number in range(2, 1000))]
    return next(place for place in places if not place.exists())
