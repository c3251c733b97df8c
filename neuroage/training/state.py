"""What a training is at any moment, and how it is saved and continued."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from neuroage.models.freezing import freeze_for
from neuroage.models.network import Network
from neuroage.models.recompute import set_recompute
from neuroage.runs.recipe import Recipe
from neuroage.runs.run import Run
from neuroage.training.checkpoint import load_checkpoint, optimiser_tensors, restore_optimiser, save_checkpoint
from neuroage.training.inference import MEMORY_FORMAT
from neuroage.training.optim import MovingAverage, make_optimiser, set_rate


def compile_network(network: nn.Module) -> None:
    """Let torch.compile make kernels for a network at its first step; where it cannot, the network runs as it is."""
    import torch._dynamo

    torch._dynamo.config.suppress_errors = True  # no compiler on this machine, an operation it does not know
    network.compile()


@dataclass
class State:
    """Where a training stands: between epochs, or after `step` steps of epoch `epoch` (both from 0)."""

    epoch: int = 0
    step: int = 0
    n_steps: int = 0
    loss_sum: float = 0.0
    error_sum: float = 0.0
    seconds: float = 0.0
    best_epoch: int = -1
    history: list[dict[str, Any]] = field(default_factory=list)


class Learner:
    """A network on its device, its optimiser, the moving average of its weights, and the best weights so far.

    Args:
        fabric: Places the network and knows the precision.
        network: With initial weights.
        recipe: Its optimiser, fine-tuning, moving average, recomputation and compilation.
        spatial_dims: 2 or 3, for the memory format.
    """

    def __init__(self, fabric: Fabric, network: Network, recipe: Recipe, spatial_dims: int) -> None:
        self.fabric = fabric
        network = network.to(fabric.device).to(memory_format=MEMORY_FORMAT[spatial_dims + 2])
        if fabric.world_size > 1 and fabric.device.type == "cuda":  # the only device that torch has it for
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        self.bare, self.recipe = network, recipe
        freeze_for(network, recipe)  # what never trains has no place in the optimiser, nor in what processes exchange
        self.average = MovingAverage(network, recipe.optim.ema) if recipe.optim.ema else None
        if recipe.training.recompute != "auto":
            set_recompute(network, recipe.training.recompute)
        if recipe.training.compile:
            compile_network(network)
        self.network, self.optimiser = fabric.setup(network, make_optimiser(network, recipe.optim, recipe.finetune))
        self.best: dict[str, Tensor] = {}

    @property
    def scored(self) -> Network:
        """The network that is scored and kept: the moving average where there is one."""
        return self.average.network if self.average else self.bare

    def set_rate(self, rate: float) -> None:
        """Set the learning rate; stages have their own multiples of it."""
        set_rate(self.optimiser, rate)

    def begin_epoch(self, epoch: int) -> None:
        """Let the stages train that this epoch (from 0) trains, and be ready for its steps."""
        freeze_for(self.bare, self.recipe, epoch)
        self.network.train()

    def follow(self, n_steps: int) -> None:
        """Let the moving average, where there is one, follow step number `n_steps` (from 1)."""
        if self.average:
            self.average.update(self.bare, n_steps)

    def keep_best(self) -> None:
        """Remember the scored weights as the best ones."""
        self.best = {name: value.detach().clone() for name, value in self.scored.state_dict().items()}

    def save(self, run: Run, state: State) -> None:
        """Write everything that continuing needs, and between epochs the history."""
        if self.fabric.global_rank != 0:
            return
        tensors = {"network": self.bare.state_dict(), "optimiser": optimiser_tensors(self.optimiser), "best": self.best}
        if self.average:
            tensors["average"] = self.average.network.state_dict()
        scaler = self._scaler
        save_checkpoint(run.checkpoint_path, tensors, {**vars(state), "scaler": scaler.state_dict() if scaler else {}})
        if state.step == 0 and state.history:
            run.save_history(state.history)

    def restore(self, run: Run) -> State:
        """Continue from a run's checkpoint; gives a fresh state when there is none."""
        if not run.checkpoint_path.exists():
            return State()
        tensors, about = load_checkpoint(run.checkpoint_path)
        self.bare.load_state_dict(tensors["network"])
        restore_optimiser(self.optimiser, tensors.get("optimiser", {}))
        if self.average:
            self.average.network.load_state_dict(tensors["average"])
        if self._scaler is not None and about["scaler"]:
            self._scaler.load_state_dict(about["scaler"])
        self.best = {name: value.to(self.fabric.device) for name, value in tensors.get("best", {}).items()}
        state = State(**{name: about[name] for name in vars(State())})
        if state.history:  # a kill between checkpoint and history leaves the table one epoch short
            run.save_history(state.history)
        return state

    @property
    def _scaler(self) -> torch.amp.GradScaler | None:
        return getattr(self.fabric._precision, "scaler", None)
