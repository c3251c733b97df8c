"""The plan of a training: how a batch is split, and what is computed again, so that it fits into memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn

from neuroage.imaging.batches import free_memory
from neuroage.models.recompute import LEVELS, recompute_levels
from neuroage.runs.recipe import Recipe
from neuroage.training.memory import MemoryEstimate, memory_bound, peak_memory, resident_bytes

AUTO_BATCH = 8  # scans a step and device for `batch_size: auto`, as Peng 2021 (doi:10.1016/j.media.2020.101871)
BUDGET_SHARE = 0.9  # of the free memory; the estimate may be 10 % low, and allocators leave gaps
UNTRACEABLE = (RuntimeError, AssertionError, NotImplementedError)  # what fake tensors raise
FEWEST_STEPS = 4  # an epoch of a small cohort has at least this many, as far as two scans a step allow


@dataclass(frozen=True)
class Plan:
    """How a training uses memory. JSON-able.

    Attributes:
        batch_size: Scans a step, over all processes.
        accumulate: Parts in which each process's share of a batch goes through the network.
        precision: fp32, bf16 or fp16.
        recompute: none, activations or blocks.
        fits: Whether it fits into the budget.
        peak_bytes: What a device is foretold to need, volumes kept on it included; an upper bound when not `exact`;
            None when nobody knows.
        budget_bytes: What may be used: 0.9 of the free memory.
        device_memory: Free memory of the device in bytes.
        n_processes: Processes of the training, one device each.
        exact: Whether the step was traced; False when a bound showed that there is plenty.
        parts: What the memory is for, in bytes.
        reasons: Short sentences: what was decided instead of the recipe, and why.
    """

    batch_size: int
    accumulate: int
    precision: str
    recompute: str
    fits: bool
    peak_bytes: int | None
    budget_bytes: int
    device_memory: int
    n_processes: int = 1
    exact: bool = True
    parts: dict[str, int] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    @property
    def share(self) -> int:
        """Scans a step and process, at most."""
        return -(-self.batch_size // self.n_processes)

    @property
    def scans_at_once(self) -> int:
        """Scans that go through the network together."""
        return -(-self.share // self.accumulate)

    @property
    def has_room(self) -> bool:
        """Whether twice the peak fits: enough for freed memory to be kept, gaps and all."""
        return self.peak_bytes is not None and 2 * self.peak_bytes <= self.budget_bytes

    @property
    def words(self) -> str:
        """The plan in a few words."""
        parts = f" in {self.accumulate} parts" if self.accumulate > 1 else ""
        return f"{self.batch_size} scans a step{parts}, recompute: {self.recompute}"

    @property
    def overrides(self) -> list[str]:
        """The plan as `key=value` overrides of a recipe."""
        return [
            f"training.batch_size={self.batch_size}",
            f"optim.accumulate={self.accumulate}",
            f"training.recompute={self.recompute}",
            f"training.precision={self.precision}",
        ]

    def to_dict(self) -> dict[str, Any]:
        """Give all fields, JSON-ready; `Plan(**…)` takes them back."""
        return asdict(self)


def automatic_batch_size(n_train_scans: int, n_processes: int = 1) -> int:
    """Give what `batch_size: auto` means: 8 scans for each device, fewer where an epoch would have fewer than 4 steps.

    Two scans for each device are the least: batch norm needs company. Memory has no say: it decides how a batch is
    split, not what is learnt.
    """
    return max(min(AUTO_BATCH * n_processes, n_train_scans // FEWEST_STEPS), 2 * n_processes)


def plan_training(
    recipe: Recipe,
    network: nn.Module,
    *,
    precision: str,
    device: torch.device,
    n_train_scans: int,
    n_processes: int = 1,
    device_memory: int | None = None,
    exact: bool = False,
) -> Plan:
    """Choose the batch size, its parts and the recomputation that fit into memory.

    Numbers that the recipe states are kept; `auto` leaves them to the plan. What is tried, in this order: as little
    recomputation as fits; then smaller parts, which come last because batch norm sees smaller parts.

    Args:
        recipe: The whole configuration.
        network: As built; left as it is.
        precision: fp32, bf16 or fp16.
        device: Where it will be trained.
        n_train_scans: Training scans.
        n_processes: Processes that share a batch, one device each.
        device_memory: Free bytes of each device; asked of the device when None.
        exact: Trace a step even where a bound shows that there is plenty of memory.

    Returns:
        The plan; `fits` says whether it does, and `reasons` what would.

    Raises:
        UsageError: The recipe asks for a recomputation that the network does not offer.
    """
    if device_memory is None:
        device_memory = free_memory(device) // (n_processes if device.type == "cpu" else 1)
    fitting = _Fitting(recipe, network, precision, device.type, n_train_scans, n_processes, device_memory)
    first = fitting.plan(fitting.accumulate, fitting.levels[0])
    if not exact:
        bounded = fitting.with_estimate(
            first, memory_bound(network, fitting.shape, recipe, device_type=device.type, accumulate=first.accumulate)
        )
        if bounded.fits:
            return replace(bounded, reasons=fitting.reasons())
    try:
        return _first_that_fits(fitting, first)
    except UNTRACEABLE as error:  # an operation that fake tensors do not know; the training steps down by itself
        unknown = f"Memory cannot be foretold for this network ({type(error).__name__})."
        return replace(first, fits=True, reasons=[*fitting.reasons(), unknown])


def _first_that_fits(fitting: _Fitting, first: Plan) -> Plan:
    tightest = None
    for accumulate, level in fitting.candidates():
        plan = fitting.traced(fitting.plan(accumulate, level))
        if plan is not None and plan.fits:
            return replace(plan, reasons=[*fitting.reasons(), *_why(first, plan)])
        tightest = plan or tightest
    if tightest is None:  # the network cannot learn from parts of this size: the training itself will say so
        return replace(first, reasons=fitting.reasons())
    return replace(tightest, reasons=[*fitting.reasons(), fitting.what_would_fit(tightest)])


def next_step_down(plan: Plan, network: nn.Module) -> Plan | None:
    """Give the next cheaper plan, for when memory ran out although the plan fits; None when there is none.

    First more recomputation, as far as the network offers it, then twice as many parts, down to single scans.
    """
    offered = recompute_levels(network)
    further = [level for level in offered if LEVELS.index(level) > LEVELS.index(plan.recompute)]
    if further:
        return replace(plan, recompute=further[0], peak_bytes=None, exact=False, parts={})
    if plan.accumulate < plan.share:
        accumulate = min(2 * plan.accumulate, plan.share)
        return replace(plan, accumulate=accumulate, peak_bytes=None, exact=False, parts={})
    return None


@dataclass(frozen=True)
class _Fitting:
    """What a plan is sought for."""

    recipe: Recipe
    network: nn.Module
    precision: str
    device_type: str
    n_train_scans: int
    n_processes: int
    device_memory: int

    @property
    def batch_size(self) -> int:
        given = self.recipe.training.batch_size
        return automatic_batch_size(self.n_train_scans, self.n_processes) if given == "auto" else given

    @property
    def share(self) -> int:
        return -(-self.batch_size // self.n_processes)

    @property
    def accumulate(self) -> int:
        return min(self.recipe.optim.accumulate, self.share)

    @property
    def levels(self) -> tuple[str, ...]:
        level = self.recipe.training.recompute
        return recompute_levels(self.network) if level == "auto" else (level,)

    @property
    def shape(self) -> tuple[int, ...]:
        prepare = self.recipe.prepare
        return (self.share, prepare.n_channels, *prepare.size)

    def candidates(self) -> Iterator[tuple[int, str]]:
        """Parts and recomputation, in the order in which they are tried."""
        for level in self.levels:
            yield self.accumulate, level
        if self.recipe.training.batch_size == "auto":
            for accumulate in _doubled(self.accumulate, self.share):
                yield accumulate, self.levels[-1]

    def plan(self, accumulate: int, level: str) -> Plan:
        """Give a plan without an estimate."""
        return Plan(
            batch_size=self.batch_size,
            accumulate=accumulate,
            precision=self.precision,
            recompute=level,
            fits=False,
            peak_bytes=None,
            budget_bytes=int(BUDGET_SHARE * self.device_memory),
            device_memory=self.device_memory,
            n_processes=self.n_processes,
            exact=False,
        )

    def traced(self, plan: Plan) -> Plan | None:
        """Estimate a plan exactly; None when the network cannot learn from parts of this size."""
        try:
            estimate = peak_memory(
                self.network,
                self.shape,
                self.recipe,
                precision=plan.precision,
                accumulate=plan.accumulate,
                recompute=plan.recompute,
                device_type=self.device_type,
            )
        except ValueError:
            return None
        return self.with_estimate(plan, estimate)

    def with_estimate(self, plan: Plan, estimate: MemoryEstimate) -> Plan:
        """Add volumes kept on the device, and the buckets in which several processes average gradients."""
        volumes = resident_bytes(self.recipe.prepare, self.n_train_scans, self.device_memory, self.device_type)
        buckets = estimate.gradients if self.n_processes > 1 else 0
        total = estimate.total + volumes + buckets
        parts = {name: value for name, value in estimate.to_dict().items() if name != "traced"}
        return replace(
            plan,
            fits=total <= plan.budget_bytes,
            peak_bytes=total,
            exact=estimate.traced,
            parts={**parts, "volumes": volumes, "buckets": buckets, "total": total},
        )

    def reasons(self) -> list[str]:
        """Say what `auto` became."""
        if self.recipe.training.batch_size != "auto":
            return []
        few = self.batch_size < AUTO_BATCH * self.n_processes
        why = f", a quarter of the {self.n_train_scans} training scans" if few else ""
        return [f"batch_size: auto is {self.batch_size} scans a step{why}."]

    def what_would_fit(self, plan: Plan) -> str:
        """Say what would fit where the recipe's own numbers do not."""
        said = f"A step needs {in_gib(plan.peak_bytes or 0)} and {in_gib(plan.budget_bytes)} may be used"
        levels = recompute_levels(self.network)
        for precision in dict.fromkeys((plan.precision, "bf16")):
            for accumulate in (plan.accumulate, *_doubled(plan.accumulate, self.share)):
                other = replace(plan, precision=precision, accumulate=accumulate, recompute=levels[-1])
                found = self.traced(other)
                if found is not None and found.fits:
                    return f"{said}; it would fit with {', '.join(_differences(plan, found))}."
        return (
            f"{said}; nothing fits: raise prepare.spacing_mm (twice the spacing needs an eighth), give the backbone a "
            "stem that halves its resolution, or choose a smaller backbone."
        )


def _doubled(accumulate: int, most: int) -> Iterator[int]:
    while accumulate < most:
        accumulate = min(2 * accumulate, most)
        yield accumulate


def _differences(before: Plan, after: Plan) -> list[str]:
    return [new for old, new in zip(before.overrides, after.overrides, strict=True) if old != new]


def _why(first: Plan, plan: Plan) -> list[str]:
    changes = _differences(first, plan)
    if not changes:
        return []
    budget = in_gib(plan.budget_bytes)
    reasons = [f"{', '.join(changes)}: a step then needs {in_gib(plan.peak_bytes or 0)} of the {budget} to be used."]
    if plan.accumulate != first.accumulate:
        reasons.append(f"Batch norm sees {plan.scans_at_once} scans at a time.")
    return reasons


def in_gib(n_bytes: int) -> str:
    """Set a number of bytes in GiB, or in MiB below 1 GiB."""
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"
