"""The recipe: everything that decides a training, in one YAML.

Sections mirror the road of a scan: `prepare` → `augment` → `backbone`, `pool`, `head` → `task` → `optim`, `training`
→ `predict`. Options of a backbone, a task or an augmentation step belong to the place that implements it and are
checked there, with the same report; see `Recipe.complain`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from neuroage.files import digest_text, write_text
from neuroage.runs.recipe_text import Problem, apply_overrides, problems_of, read_yaml, report

Positive = Annotated[float, Field(gt=0)]
Size = Annotated[int, Field(ge=4, le=1024)]


class Section(BaseModel):
    """A part of the recipe: unknown keys are refused, values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Named(BaseModel):
    """A choice by name with the options of whatever carries that name, such as `{name: cnn, n_blocks: 4}`."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        """Every key but the name."""
        return dict(self.__pydantic_extra__ or {})


class Binning(Section):
    """Reduce intensities to a few levels; two levels make a binary volume.

    Attributes:
        method: equal_width or quantile (`levels` of them), or two levels split at a threshold, a percentile or Otsu's
            threshold.
        levels: Number of levels for equal_width and quantile.
        at: The threshold (in scaled intensities, or file units when native) or the percentile (0–100).
        native: Bin on the scan's own grid before resampling, so that thin vessels survive as fractions of coarse
            voxels.
    """

    method: Literal["equal_width", "quantile", "threshold", "percentile", "otsu"] = "equal_width"
    levels: Annotated[int, Field(ge=2, le=256)] = 32
    at: float | None = None
    native: bool = False

    @model_validator(mode="after")
    def _at_belongs_to_a_method(self) -> Binning:
        needs = self.method in ("threshold", "percentile")
        if needs and self.at is None:
            raise ValueError(f"method {self.method} needs `at`, the {self.method}")
        if not needs and self.at is not None:
            raise ValueError(f"`at` has no meaning for method {self.method}; it belongs to threshold and percentile")
        if self.method == "percentile" and not 0 < float(self.at or 0) < 100:
            raise ValueError("a percentile lies between 0 and 100")
        return self


class Prepare(Section):
    """What is done to every scan once, before any training.

    Attributes:
        spacing_mm: Voxel size of the prepared volume in millimetres, one number or one per axis (R, A, S).
        size: Voxels of the prepared volume along R, A and S.
        centre: What the field of view is centred on: the middle of the `head`, of the `image` grid, or `auto`: of the
            MNI152 template where the scan lies on a grid of that template, else of the head.
        labels: The scan is a label map or mask: every voxel above 0 becomes 1, the rest 0, before resampling.
        nonfinite: `refuse` scans with NaN, or read NaN as `zero`.
        intensity: zscore, percentile (0–1 between the clip percentiles), mean (divide by it) or none.
        foreground: The voxels that give the intensity statistics: above the mean of the volume, nonzero, or all.
        clip_percentiles: Intensities beyond these percentiles of the foreground are clipped first; null clips nothing.
        binning: Reduce to a few levels afterwards; null keeps the full range.
        fractions: Edges in scaled intensities, such as [-1.6, -0.7, 0.1, 0.8]: the volume then has one channel for each
            interval, the share of every prepared voxel whose intensity lies in it on the scan's own, finer grid. Coarse
            voxels so keep what thin cortex and narrow sulci say. Background is in no interval. null: one channel.
        store_as: uint8 (256 levels over each scan's range), float16 (relative step 0.0005) or float32 (exact).
    """

    spacing_mm: Positive | tuple[Positive, Positive, Positive] = 2.0
    size: tuple[Size, Size, Size] = (80, 96, 80)
    centre: Literal["auto", "head", "image"] = "auto"
    labels: bool = False
    nonfinite: Literal["refuse", "zero"] = "refuse"
    intensity: Literal["zscore", "percentile", "mean", "none"] = "zscore"
    foreground: Literal["above_mean", "nonzero", "all"] = "above_mean"
    clip_percentiles: tuple[Annotated[float, Field(ge=0, le=100)], Annotated[float, Field(ge=0, le=100)]] | None = (
        0.5,
        99.5,
    )
    binning: Binning | None = None
    fractions: tuple[float, ...] | None = None
    store_as: Literal["uint8", "float16", "float32"] = "uint8"

    @model_validator(mode="after")
    def _percentiles_in_order(self) -> Prepare:
        if self.clip_percentiles is not None and not self.clip_percentiles[0] < self.clip_percentiles[1]:
            raise ValueError("clip_percentiles needs the lower percentile first")
        if self.intensity == "percentile" and self.clip_percentiles is None:
            raise ValueError("intensity: percentile needs clip_percentiles")
        if self.fractions is not None:
            if not self.fractions or list(self.fractions) != sorted(set(self.fractions)):
                raise ValueError("fractions needs rising edges, such as [-1.6, -0.7, 0.1, 0.8]")
            if self.binning or self.labels:
                raise ValueError("fractions, binning and labels exclude each other")
        return self

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along R, A, S in millimetres."""
        given = self.spacing_mm
        return given if isinstance(given, tuple) else (given, given, given)

    @property
    def n_channels(self) -> int:
        """Channels of the prepared volume."""
        return 1 if self.fractions is None else len(self.fractions) + 1

    @property
    def digest(self) -> str:
        """Sha256 of the section; equal preparations share stored volumes."""
        return digest_text(json.dumps(self.model_dump(mode="json"), sort_keys=True))


class Head(Section):
    """Layers between the pooled features and the outputs.

    Attributes:
        hidden: Width of each hidden layer (linear, ReLU); empty for one linear layer.
        dropout: Share of features dropped before each linear layer while training.
    """

    hidden: tuple[Annotated[int, Field(ge=1, le=65536)], ...] = ()
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Optim(Section):
    """How weights move.

    Attributes:
        name: adamw or sgd (Nesterov).
        lr: Highest learning rate.
        weight_decay: Decoupled weight decay; norms and biases are left out of it.
        momentum: First-moment coefficient: β1 of AdamW, momentum of SGD.
        schedule: constant, cosine (to `final_lr`), one_cycle (up to lr in the first 30 %, down to final_lr),
            exponential (to `final_lr`), or plateau (×0.3 when the inner MAE, or the training loss, has not improved for
            `plateau_epochs`).
        warmup_epochs: Linear rise from 0 to `lr`; one_cycle has its own.
        final_lr: Where the schedule ends, as a share of `lr`.
        plateau_epochs: Patience of the plateau schedule, in epochs.
        ema: Decay a step of the exponential moving average of the weights (and norm statistics) that is scored and
            saved; null: off.
        clip_norm: Gradients are scaled down to this norm; null: off.
        accumulate: A batch goes through the network in this many parts, which needs that much less memory.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: Positive = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    schedule: Literal["constant", "cosine", "one_cycle", "exponential", "plateau"] = "cosine"
    warmup_epochs: Annotated[float, Field(ge=0)] = 2.0
    final_lr: Annotated[float, Field(gt=0, le=1)] = 0.01
    plateau_epochs: Annotated[int, Field(ge=1)] = 5
    ema: Annotated[float, Field(gt=0, lt=1)] | None = 0.99
    clip_norm: Positive | None = 1.0
    accumulate: Annotated[int, Field(ge=1)] = 1


class Training(Section):
    """How long and on what.

    Attributes:
        epochs: Passes over the training scans.
        batch_size: Scans a step, over all devices together; the last steps of an epoch share the rest evenly. `auto`: 8
            for each device, which go through the network in as many parts as its memory asks for.
        recompute: What the backward pass computes again instead of keeping it in memory: none, activations (norms and
            activation functions: cheap), blocks (whole blocks: about a third more time). `auto`: as little as fits. The
            network learns the same.
        precision: auto (a short probe on this machine decides between fp32 and bf16/fp16), fp32, bf16 or fp16.
        compile: Let torch.compile make faster kernels of the network, where it can; the start takes minutes longer.
        select: Which weights are kept: `last` (fixed length), `inner` (best MAE on an inner, age-stratified part of the
            training subjects) or `validation` (best on the validation set; every figure then says so).
        inner_fraction: Share of the training subjects held out inside training; needed by `select: inner` and
            `patience`.
        patience: Stop when the inner MAE has not improved for this many epochs; null: never.
        age_balance: 0 shows every scan once an epoch; above 0, scans are drawn in proportion to the density of their
            age to the power −age_balance, so that 1 makes every age equally frequent. Rare ages then weigh more.
        mixup: α of mixup (Zhang 2018, arXiv 1710.09412): in half of the steps, scans and their targets are mixed with
            those of another scan of the batch, in a proportion drawn from Beta(α, α); 0: never.
        train_eval_scans: Training scans, at most, on which MAE without augmentation is logged every epoch; 0: none.
    """

    epochs: Annotated[int, Field(ge=1)] = 60
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = 8
    recompute: Literal["auto", "none", "activations", "blocks"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False
    select: Literal["last", "inner", "validation"] = "last"
    inner_fraction: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    patience: Annotated[int, Field(ge=1)] | None = None
    age_balance: Annotated[float, Field(ge=0, le=1)] = 0.0
    mixup: Annotated[float, Field(ge=0, le=10)] = 0.0
    train_eval_scans: Annotated[int, Field(ge=0)] = 128

    @model_validator(mode="after")
    def _inner_part_where_needed(self) -> Training:
        if self.inner_fraction == 0 and (self.select == "inner" or self.patience):
            raise ValueError("`select: inner` and `patience` need an inner_fraction above 0, such as 0.15")
        return self


class Predict(Section):
    """How a trained network is asked.

    Attributes:
        flips: Average over the scan and its left–right mirror.
        ridge_share: Weight of ridge regression on the same prepared voxels in the predicted age, 0 to 1; the network
            has the rest. On some hundred scans the two err on different people, and the average is nearer than either.
    """

    flips: bool = False
    ridge_share: Annotated[float, Field(ge=0, le=1)] = 0.0


class Recipe(Section):
    """The whole configuration of a training.

    Attributes:
        modality: Which scans of the cohort are used: t1, tof, …
        seed: One seed; split, weights, augmentation and loading have child seeds of it.
        task: What is predicted, with its options: `age_regression` or `soft_label_age`.
        prepare: What is done to every scan once.
        augment: Steps applied to training batches, in order: `{step: flip, p: 0.5}`, or `{torchio: RandomMotion, …}`.
        backbone: The feature extractor and its options.
        standardise: `voxelwise` subtracts, voxel by voxel, the mean of the training scans and divides by their
            standard deviation (for scans on one common grid; the input size is then fixed); `none` takes intensities
            as prepared.
        pool: How the features of all positions become one vector: average, max, average_max (both, concatenated), or
            grid, which
            keeps coarse position: averages over the cells of `pool_grid`, concatenated.
        pool_grid: Cells along each axis for `pool: grid`.
        head: Layers after pooling.
        init: Initial weights of convolutions and linear layers: the framework's default, xavier or he.
        optim: How weights move.
        training: How long and on what.
        predict: How the trained network is asked.

    Example:
        >>> Recipe(modality="t1").optim.lr
        0.001
    """

    modality: str = "t1"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    task: Named = Named(name="age_regression")
    prepare: Prepare = Prepare()
    augment: tuple[dict[str, Any], ...] = ()
    backbone: Named = Named(name="cnn")
    standardise: Literal["none", "voxelwise"] = "none"
    pool: Literal["average", "max", "average_max", "grid"] = "average"
    pool_grid: tuple[Annotated[int, Field(ge=1, le=16)], ...] = (2, 2, 2)
    head: Head = Head()
    init: Literal["default", "xavier", "he"] = "default"
    optim: Optim = Optim()
    training: Training = Training()
    predict: Predict = Predict()

    _source: str = PrivateAttr(default="recipe")
    _lines: dict[str, int] = PrivateAttr(default_factory=dict)

    @classmethod
    def load(cls, path: str | os.PathLike[str], overrides: tuple[str, ...] | list[str] = ()) -> Recipe:
        """Read a recipe from YAML and apply `key=value` overrides.

        Args:
            path: The YAML file. Keys that it leaves out have their defaults.
            overrides: Such as "optim.lr=1e-4" or "augment=[]"; later ones win.

        Raises:
            UsageError: One report of every unknown key, wrong type and bad range, with line numbers and suggestions.
        """
        content, lines = read_yaml(Path(path))
        return cls.from_dict(apply_overrides(content, overrides, lines), source=str(path), lines=lines)

    @classmethod
    def from_dict(
        cls, content: dict[str, Any], *, source: str = "recipe", lines: dict[str, int] | None = None
    ) -> Recipe:
        """Check a nested dictionary and make a recipe of it; errors as in `load`."""
        try:
            recipe = cls.model_validate(content)
        except ValidationError as error:
            raise report(problems_of(error, cls), source, lines or {}) from None
        recipe._source, recipe._lines = source, dict(lines or {})
        return recipe

    def updated(self, *overrides: str) -> Recipe:
        """Give a copy with `key=value` overrides applied; errors as in `load`."""
        lines = dict(self._lines)
        content = apply_overrides(self.model_dump(mode="json"), overrides, lines)
        return type(self).from_dict(content, source=self._source, lines=lines)

    def complain(self, problems: list[Problem]) -> None:
        """Raise one UsageError for problems that others found in this recipe, with its lines; nothing when empty."""
        if problems:
            raise report(problems, self._source, self._lines)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the recipe as resolved, every default spelt out, as YAML."""
        write_text(path, yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120))

    @property
    def digest(self) -> str:
        """Sha256 of the whole recipe as resolved."""
        return digest_text(json.dumps(self.model_dump(mode="json"), sort_keys=True))


def recipe_differences(recipes: dict[str, Recipe]) -> dict[str, dict[str, Any]]:
    """Give, for each named recipe, the dotted keys in which the recipes are not all equal.

    Args:
        recipes: Recipes by name.

    Returns:
        Name → {dotted key → value}, only for keys with at least two different values.
    """
    flat = {name: _flatten(recipe.model_dump(mode="json")) for name, recipe in recipes.items()}
    keys = sorted({key for values in flat.values() for key in values})
    missing = object()
    differing = [key for key in keys if len({repr(values.get(key, missing)) for values in flat.values()}) > 1]
    return {name: {key: values.get(key) for key in differing} for name, values in flat.items()}


def _flatten(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
