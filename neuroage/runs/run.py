"""A run: the folder that a training leaves, and the only place that knows its file names."""

from __future__ import annotations

import json
import os
import platform
import shutil
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from neuroage.cohort import Cohort, Split
from neuroage.cohort.parts import Part
from neuroage.errors import DataError, UsageError
from neuroage.files import atomic_path, write_json
from neuroage.runs.contract import InputContract
from neuroage.runs.predictions import read_predictions, save_predictions
from neuroage.runs.recipe import Recipe

PACKAGES = ("torch", "lightning-fabric", "monai", "torchio", "SimpleITK", "nibabel", "numpy", "pandas", "scikit-learn")


class Run:
    """A training on disk.

    A run may have `members` (folds, seeds), which are runs themselves; then its own predictions are theirs together.

    Args:
        folder: The run folder. `Run.open` checks that it is one.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Run:
        """Open a run.

        Raises:
            UsageError: The folder is not there or holds no run.
        """
        run = cls(folder)
        if not run.exists:
            there = "is no run folder (it has no run.json)" if run.folder.exists() else "does not exist"
            raise UsageError(
                f"{run.folder} {there}", fix="List runs with `neuroage runs DIR`, or train one with `neuroage train`."
            )
        return run

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        recipe: Recipe,
        cohort: Cohort,
        split: Split,
        *,
        fold: int,
        member: str = "",
        part: Part | None = None,
    ) -> Run:
        """Begin a run: write recipe, cohort, split and environment, each with its digest.

        Args:
            folder: A new or empty folder.
            recipe, cohort, split: What is trained, on whom; the cohort holds the scans of the recipe's modality.
            fold: Which fold's subjects are the validation set.
            member: Name among the members of an ensemble; empty for a run of its own.
            part: Which part of the training subjects is left out, to be predicted as set `out_of_fold`.

        Raises:
            UsageError: The folder holds a run already, or other files.
        """
        run = cls(folder)
        if run.exists:
            raise UsageError(
                f"{run.folder} holds a {'finished' if run.complete else 'started'} training",
                fix="Continue it with --resume, or choose another folder with --out.",
            )
        if run.folder.is_dir() and any(path.name != "members" for path in run.folder.iterdir()):
            raise UsageError(f"{run.folder} is not empty and holds no run", fix="Choose another folder with --out.")
        recipe.save(run._path("recipe.yaml"))
        cohort.to_csv(run._path("cohort.csv"))
        split.save(run._path("split.csv"))
        write_json(run._path("environment.json"), environment())
        # Written last: a folder with run.json has everything that resuming needs.
        run.update(
            status="training",
            fold=fold,
            member=member,
            **({"part": part.index, "n_parts": part.n_parts} if part else {}),
            neuroage=metadata.version("neuroage"),
            started=now(),
            recipe_digest=recipe.digest,
            cohort_digest=cohort.digest,
            split_digest=split.digest,
        )
        return run

    @classmethod
    def create_parent(
        cls, folder: str | os.PathLike[str], recipe: Recipe, cohort: Cohort, split: Split, *, n_parts: int = 1
    ) -> Run:
        """Begin a run whose members (folds, parts, seeds) will be trained; errors as in `create`."""
        run = cls.create(folder, recipe, cohort, split, fold=-1)
        run.update(parent=True, **({"n_parts": n_parts} if n_parts > 1 else {}))
        return run

    def _path(self, name: str) -> Path:
        return self.folder / name

    def _content(self, name: str) -> dict[str, Any]:
        path, again = self._path(name), "Copy the whole run folder again, or train it again."
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise UsageError(f"{self.folder} has no {name}", fix=again) from error
        except (ValueError, TypeError) as error:
            raise DataError(f"{path} is damaged", expected="JSON as its training wrote it", fix=again) from error

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return self._path("run.json").is_file()

    @property
    def has_learnt(self) -> bool:
        """Whether it, or a member, holds a state of a training, or its result."""
        saved = self.checkpoint_path.exists() or self.weights_path.exists()
        return saved or any(member.has_learnt for member in self.members)

    def discard(self) -> None:
        """Remove a run that could not start, so that its folder does not stand in the way of the next attempt.

        Nothing is done where something was learnt.
        """
        if not self.has_learnt:
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def about(self) -> dict[str, Any]:
        """What run.json says: status, fold, digests, precision, what was selected on."""
        return self._content("run.json")

    def update(self, **values: Any) -> None:
        """Set values in run.json."""
        before = self.about if self.exists else {}
        write_json(self._path("run.json"), {**before, **values})

    @property
    def target(self) -> dict[str, Any]:
        """What is predicted: `{"kind": "age"}`, or kind and names of the labels that all members learnt."""
        found = [leaf.about["target"] for leaf in self.leaves or [self] if "target" in leaf.about]
        if len(found) < 2 or found[0]["kind"] != "multilabel":
            return dict(found[0]) if found else {"kind": "age"}
        return {**found[0], "labels": [name for name in found[0]["labels"] if all(name in t["labels"] for t in found)]}

    @property
    def scored(self) -> bool:
        """Whether its predictions are written; pages may be missing."""
        return self.exists and self.about.get("status") in ("scored", "complete")

    @property
    def complete(self) -> bool:
        """Whether the training went to its end, and predictions and pages are written."""
        return self.exists and self.about.get("status") == "complete"

    @property
    def recipe(self) -> Recipe:
        """The recipe as resolved."""
        return Recipe.load(self._path("recipe.yaml"))

    @property
    def cohort(self) -> Cohort:
        """The scans it was trained and scored on."""
        return Cohort.from_csv(self._path("cohort.csv"))

    @property
    def split(self) -> Split:
        """Who was in which set."""
        return Split.load(self._path("split.csv"))

    @property
    def is_parent(self) -> bool:
        """Whether this run is made of members."""
        return bool(self.about.get("parent"))

    @property
    def members(self) -> list[Run]:
        """Member runs, by name; empty for a single training."""
        return [Run(path.parent) for path in sorted(self._path("members").glob("*/run.json"))]

    def member_folder(self, name: str) -> Path:
        """Where the member of that name is kept."""
        return self._path("members") / name

    @property
    def leaves(self) -> list[Run]:
        """The trainings in it: its members, or the run itself."""
        return self.members if self.is_parent else [self]

    @property
    def checkpoint_path(self) -> Path:
        """Everything needed to continue the training (safetensors)."""
        return self._path("checkpoint.safetensors")

    @property
    def weights_path(self) -> Path:
        """The weights that were kept (safetensors)."""
        return self._path("model.safetensors")

    @property
    def linear_path(self) -> Path:
        """The linear baseline fitted on the same training scans (safetensors)."""
        return self._path("linear.safetensors")

    @property
    def history(self) -> pd.DataFrame:
        """One row an epoch; empty before the first."""
        path = self._path("history.csv")
        return pd.read_csv(path) if path.is_file() else pd.DataFrame()

    def save_history(self, rows: list[dict[str, Any]]) -> None:
        """Write the history, atomically."""
        with atomic_path(self._path("history.csv")) as temporary:
            pd.DataFrame(rows).to_csv(temporary, index=False)

    @property
    def curve_path(self) -> Path:
        """The loss-curve figure."""
        return self._path("loss_curve.png")

    @property
    def predictions(self) -> pd.DataFrame:
        """Predictions of out-of-fold, validation and test scans; errors as in `read_predictions`."""
        return read_predictions(self._path("predictions.csv"))

    def save_predictions(self, table: pd.DataFrame) -> None:
        """Write the predictions."""
        save_predictions(table, self._path("predictions.csv"))

    @property
    def baselines(self) -> dict[str, pd.DataFrame]:
        """Predictions of the baselines on the same scans: name → table."""
        table = read_predictions(self._path("baselines.csv"))
        return {str(name): part.drop(columns="model") for name, part in table.groupby("model", sort=False)}

    def save_baselines(self, tables: dict[str, pd.DataFrame]) -> None:
        """Write the baselines' predictions, one table with a column `model`."""
        save_predictions(
            pd.concat([table.assign(model=name) for name, table in tables.items()]), self._path("baselines.csv")
        )

    @property
    def contract(self) -> InputContract:
        """What the training scans were like."""
        return InputContract.from_dict(self._content("contract.json"))

    def save_contract(self, contract: InputContract) -> None:
        """Write the input contract."""
        write_json(self._path("contract.json"), contract.to_dict())

    @property
    def reference_path(self) -> Path:
        """The training scans' responses, to which the contract compares (safetensors)."""
        return self._path("contract.safetensors")

    @property
    def template_path(self) -> Path:
        """The mean of the training scans, which raw scans are registered to."""
        return self._path("template.safetensors")

    @property
    def selftest(self) -> dict[str, Any]:
        """What a golden phantom gave at the end of training; empty in runs of before."""
        return self._content("selftest.json") if self._path("selftest.json").is_file() else {}

    def save_selftest(self, content: dict[str, Any]) -> None:
        """Write what the golden phantom gave."""
        write_json(self._path("selftest.json"), content)

    @property
    def environment(self) -> dict[str, Any]:
        """Versions and machine of the training."""
        return self._content("environment.json")

    def copy_to(self, folder: str | os.PathLike[str]) -> Path:
        """Copy the whole run; the new folder appears when everything is in it.

        Raises:
            UsageError: The folder exists.
        """
        target = Path(folder)
        if target.exists():
            raise UsageError(f"{target} exists", fix="Choose a new folder.")
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.parent / f".{target.name}.{os.getpid()}.tmp"
        try:
            shutil.copytree(self.folder, partial)
            os.replace(partial, target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return target

    @property
    def calibration_path(self) -> Path:
        """Age bias and intervals, fitted on out-of-fold predictions."""
        return self._path("calibration.json")

    @property
    def part(self) -> Part | None:
        """The part of the training subjects that it left out; None where it left out none."""
        about = self.about
        return Part(about["part"], about["n_parts"]) if "part" in about else None

    @property
    def evaluation(self) -> dict[str, Any]:
        """What evaluation.json says; empty before the evaluation."""
        return self._content("evaluation.json") if self._path("evaluation.json").is_file() else {}


def find_runs(folder: str | os.PathLike[str]) -> list[Run]:
    """Find every run below a folder (members stay inside their parent), by path.

    Raises:
        UsageError: The folder does not exist.
    """
    top = Path(folder)
    if not top.is_dir():
        raise UsageError(f"No folder {top}", fix="Give the folder that holds your runs, such as `runs`.")
    return [Run(path.parent) for path in sorted(top.rglob("run.json")) if path.parent.parent.name != "members"]


def environment() -> dict[str, Any]:
    """Say on what a training runs: versions and machine, no names of people or hosts."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    machine = {
        "python": platform.python_version(),
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
    }
    return {**machine, "packages": versions}


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
