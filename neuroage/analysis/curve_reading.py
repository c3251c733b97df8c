"""What the curves of a training say: which metric they are of, the best epoch, over-fitting, and both in words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from neuroage.analysis.formatting import number

HELD_BACK = ("inner", "validation")  # sets that no step learns from; the first that a history has is read
_WHO = {"inner": "the scans held back from training", "validation": "the validation scans"}


@dataclass(frozen=True)
class CurveMetric:
    """A metric that a training reports every epoch.

    Attributes:
        name: As the columns of a history end: `inner_mae`, `train_mae_eval`.
        title: As a person writes it.
        unit: Of its values; empty where it has none.
        higher_is_better: Whether a larger value is a better one.
        running: What is logged while it trains: `train_<running>`.
    """

    name: str
    title: str
    unit: str
    higher_is_better: bool
    running: str

    def shown(self, value: float) -> str:
        """Write a value with its unit."""
        return f"{self.plain(value)} {self.unit}".strip()

    def plain(self, value: float) -> str:
        """Write a value without its unit."""
        return number(value, self.decimals)

    @property
    def decimals(self) -> int:
        """How many are shown."""
        return 1 if self.unit else 2

    def rounded(self, value: float) -> float:
        """Give a value as it is shown."""
        return round(value, self.decimals)

    def to_minimise(self, values: pd.Series) -> pd.Series:
        """Turn values so that smaller is better."""
        return -values if self.higher_is_better else values


MAE = CurveMetric("mae", "MAE", "years", False, "mae")
AUROC = CurveMetric("auroc", "AUROC", "", True, "error_rate")
METRICS = (MAE, AUROC)


def has_curve(history: pd.DataFrame, column: str) -> bool:
    """Say whether a history has any value in a column."""
    return column in history.columns and bool(history[column].notna().any())


def metric_of(history: pd.DataFrame) -> CurveMetric:
    """Give the metric that a history is about; the MAE where it names none."""
    for metric in METRICS:
        if any(str(name).endswith((f"_{metric.name}", f"_{metric.name}_eval")) for name in history.columns):
            return metric
    return AUROC if has_curve(history, f"train_{AUROC.running}") else MAE


def held_back_set(history: pd.DataFrame) -> str:
    """Name the set that tells how new scans would fare: inner, else validation."""
    metric = metric_of(history)
    return next((name for name in HELD_BACK if has_curve(history, f"{name}_{metric.name}")), HELD_BACK[0])


def best_row(values: pd.Series, column: str) -> int:
    """Give the position of the best value of a curve, the last of equals, as training keeps the last of equals."""
    turned = (
        -values
        if column.endswith(tuple(f"_{metric.name}" for metric in METRICS if metric.higher_is_better))
        else values
    )
    return len(turned) - 1 - int(np.nanargmin(turned.to_numpy(dtype=np.float64)[::-1]))


def best_epoch_of(history: pd.DataFrame) -> int | None:
    """Give the epoch with the best held-back metric; None where nothing was held back."""
    column = f"{held_back_set(history)}_{metric_of(history).name}"
    return int(history["epoch"].iloc[best_row(history[column], column)]) if has_curve(history, column) else None


def overfitting_onset(history: pd.DataFrame, patience: int = 10) -> int | None:
    """Find the epoch from which the held-back scans get worse, for `patience` epochs or more, while training improves.

    Both trends have to stand out of the epoch-to-epoch noise (|slope| above 2 standard errors), so that a flat, noisy
    curve gets no mark. Read is the metric on both sides or, of labels without an evaluated training part, the loss.

    Args:
        history: One row per epoch: epoch; inner (else validation) and train_…_eval of the metric, or both losses.
        patience: Epochs that the turn has to last, at least 3.

    Returns:
        The epoch of the best smoothed held-back value before the turn, or None.
    """
    pair = _compared(history)
    if pair is None:
        return None
    held, train, metric = pair
    table = history[["epoch", held, train]].dropna()
    patience = max(patience, 3)
    if len(table) <= patience:
        return None
    held_back, learnt = ((metric.to_minimise(table[name]) if metric else table[name]) for name in (held, train))
    smooth = held_back.rolling(3, center=True, min_periods=1).mean().to_numpy()
    lowest = int(np.argmin(smooth))
    if len(table) - lowest <= patience or _trend(held_back.iloc[lowest:]) <= 2 or _trend(learnt.iloc[lowest:]) >= -2:
        return None
    return int(table["epoch"].iloc[lowest])


def _compared(history: pd.DataFrame) -> tuple[str, str, CurveMetric | None] | None:
    """Give the two columns that tell over-fitting, held back and learnt from, and their metric (None: the loss)."""
    metric, held = metric_of(history), held_back_set(history)
    pair = f"{held}_{metric.name}", f"train_{metric.name}_eval"
    if all(has_curve(history, column) for column in pair):
        return *pair, metric
    losses = f"{held}_loss", "train_loss"
    if metric is AUROC and all(has_curve(history, column) for column in losses):
        return *losses, None
    return None


def explain_curves(history: pd.DataFrame, best_epoch: int | None, onset: int | None) -> str:
    """Say in words what a history shows: the gap between the curves, the best epoch, over-fitting.

    Args:
        history: As for `loss_curves`.
        best_epoch: The epoch that was kept, if any.
        onset: The epoch where over-fitting starts, if any.

    Returns:
        One paragraph; empty when there is nothing to say.
    """
    metric, held = metric_of(history), held_back_set(history)
    when = "At the end" if best_epoch is None else f"At the best epoch, {best_epoch},"
    own = value_at(history, f"{held}_{metric.name}", best_epoch)
    plain = value_at(history, f"train_{metric.name}_eval", best_epoch)
    said = _levels_of_ages(history, best_epoch, when) if metric is MAE else _levels(history, best_epoch, when)
    if plain is not None and own is not None:
        gap = metric.rounded(plain) - metric.rounded(own)  # as both are shown
        gap = gap if metric.higher_is_better else -gap
        new = "people" if metric is MAE else "scans"
        if gap >= 0:
            said.append(
                f"The fair comparison is training without augmentation ({metric.plain(plain)}) with {held}: "
                f"the {metric.shown(gap)} between them do not carry over to new {new}."
            )
        else:
            said.append(
                f"Training without augmentation ({metric.plain(plain)}) is no better than {held}: "
                "nothing learnt by heart yet."
            )
    compared = _compared(history)
    if onset is not None:
        said.append(f"It over-fits from epoch {onset} on: {_turn(compared, held)}.")
    elif compared is not None:
        said.append("No over-fitting to be seen.")
    return " ".join(said)


def _turn(compared: tuple[str, str, CurveMetric | None] | None, held: str) -> str:
    metric = compared[2] if compared else MAE
    if metric is None:
        return f"the {held} loss rises while the training loss still falls"
    if metric.higher_is_better:
        return f"the {held} {metric.title} falls while that of training still rises"
    return f"the {held} error rises while the training error still falls"


def _levels_of_ages(history: pd.DataFrame, best_epoch: int | None, when: str) -> list[str]:
    held = held_back_set(history)
    train, own = (value_at(history, column, best_epoch) for column in ("train_mae", f"{held}_mae"))
    if own is None:
        return []
    if train is not None and train > own:
        return [
            f"{when} training ({train:.1f} years) lies above the {held} curve ({own:.1f}). That is normal: "
            "only training scans are augmented, and dropout acts only in training; both make the task harder."
        ]
    others = "the scans held back from it" if held == "inner" else _WHO[held]
    if train is not None:
        return [f"{when} training is {train:.1f} years off, {others} {own:.1f}."]
    return [f"{when} {_WHO[held]} are {own:.1f} years off."]


def _levels(history: pd.DataFrame, best_epoch: int | None, when: str) -> list[str]:
    metric, held = metric_of(history), held_back_set(history)
    own = value_at(history, f"{held}_{metric.name}", best_epoch)
    if own is None:
        wrong = value_at(history, f"train_{metric.running}", None)
        if wrong is None:
            return []
        return [
            f"At the end {100 * wrong:.0f}% of the answers for training scans, as they were augmented, are wrong. "
            "Nothing was held back, so these curves say nothing about new scans."
        ]
    baseline = value_at(history, f"baseline_mean_{metric.name}", None)
    beside = "" if baseline is None else f"; knowing nothing gives {metric.plain(baseline)}"
    return [f"{when} {_WHO[held]} reach an {metric.title} of {metric.plain(own)}{beside}."]


def value_at(history: pd.DataFrame, column: str, epoch: int | None) -> float | None:
    """Give a curve's value at an epoch, or at the last one before it that has a value; the last of all for None."""
    if not has_curve(history, column):
        return None
    values = history[["epoch", column]].dropna()
    before = values if epoch is None else values[values["epoch"] <= epoch]
    return float((before if len(before) else values)[column].iloc[-1])


def _trend(values: pd.Series) -> float:
    """Slope over its standard error; infinite for a straight line without noise."""
    y = values.to_numpy(dtype=np.float64)
    x = np.arange(len(y)) - (len(y) - 1) / 2
    slope = float(x @ y / (x @ x))
    residual = y - y.mean() - slope * x
    error = float(np.sqrt(residual @ residual / max(len(y) - 2, 1) / (x @ x)))
    return slope / error if error > 1e-12 else float(np.sign(slope)) * float("inf") if slope else 0.0
