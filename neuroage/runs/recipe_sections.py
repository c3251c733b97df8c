"""The recipe's smaller sections: head, fine-tuning, optimiser, training, prediction."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Positive = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """A part of the recipe: unknown keys are refused, values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Named(BaseModel):
    """A choice by name with the options of whatever carries that name, such as `{name: cnn, n_blocks: 4}`, or `cnn`."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @model_validator(mode="before")
    @classmethod
    def _a_name_alone(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    @property
    def options(self) -> dict[str, Any]:
        """Every key but the name."""
        return dict(self.__pydantic_extra__ or {})


class Head(Section):
    """Layers between the pooled features and the outputs.

    Attributes:
        norm: Standardise the pooled features over the scans of a batch (batch norm) before the first layer: for
            features of a scale far from one, such as those of pretrained HighResNet, which reach several hundreds.
        hidden: Width of each hidden layer (linear, ReLU); empty for one linear layer.
        dropout: Share of features dropped before each linear layer while training.
    """

    norm: bool = False
    hidden: tuple[Annotated[int, Field(ge=1, le=65536)], ...] = ()
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Finetune(Section):
    """How a network that has learnt elsewhere goes on learning.

    Depth runs from 0 at the input to 1 at the head, on the backbone's stages (`neuroage describe` lists them).

    Attributes:
        init_from: Folder of a complete run whose backbone is taken over; the head is new.
        freeze: Never trained: this share of the backbone's stages, counted from the input (0: none, 1: all but the
            head), or stages by name; `layer1` means all of `layer1.0`, `layer1.1`, …
        unfreeze: Epoch → what trains from then on: `head` alone, a share of the stages counted from the head, or a
            stage from which on all train, such as {0: head, 5: 0.5, 10: 1.0}.
        layer_decay: Learning rate of each stage as a share of the next one's towards the head; 1: all alike.
        head_lr: Learning rate of the head as a multiple of `optim.lr`.
        reestimate_norms: Batch-norm statistics are measured anew on the training scans, in one pass, before training.
        cache_features: With `freeze: 1`: the features of every scan are computed once, and the head is trained on them.
            There can be no augmentation and no mixup then.
    """

    init_from: str | None = None
    freeze: Annotated[float, Field(ge=0, le=1)] | tuple[str, ...] = 0.0
    unfreeze: dict[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=0, le=1)] | str] | None = None
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    head_lr: Positive = 1.0
    reestimate_norms: bool = False
    cache_features: bool = False

    @field_validator("freeze", mode="before")
    @classmethod
    def _one_name_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _frozen_in_one_way(self) -> Finetune:
        if self.unfreeze is not None:
            if self.freeze:
                raise ValueError("`freeze` and `unfreeze` exclude each other")
            if 0 not in self.unfreeze:
                raise ValueError("`unfreeze` needs what trains from epoch 0 on, such as {0: head, 5: 0.5, 10: 1.0}")
        if self.cache_features and self.freeze != 1:
            raise ValueError("`cache_features` needs `freeze: 1`")
        return self


class Optim(Section):
    """How weights move.

    Attributes:
        name: adamw or sgd (Nesterov).
        lr: Highest learning rate.
        weight_decay: Decoupled weight decay; norms and biases are left out of it.
        momentum: First-moment coefficient: β1 of AdamW, momentum of SGD.
        schedule: constant, cosine (to `final_lr`), one_cycle (up to lr in the first 30 %, down to final_lr),
            exponential (to `final_lr`), or plateau (×0.3 when the metric of the inner part, or the training
            loss, has not improved for `plateau_epochs`).
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
        select: Which weights are kept: `last` (fixed length), `inner` (best on an inner part of the training
            subjects, stratified by age or label) or `validation` (best on the validation set; every figure then says
            so).
        inner_fraction: Share of the training subjects held out inside training; needed by `select: inner` and
            `patience`.
        patience: Stop when the metric of the inner part, or with `select: validation` of the validation set, has not
            improved for this many epochs; null: never.
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
        if self.inner_fraction == 0 and (self.select == "inner" or (self.patience and self.select != "validation")):
            raise ValueError(
                "`select: inner` and `patience` need an inner_fraction above 0, such as 0.15, or `select: validation`"
            )
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
