"""Peak memory of a training step, foretold without running one.

The step is traced on fake tensors, which have shapes and lifetimes but no values: whatever is allocated adds its bytes,
whatever dies takes them back, forward and backward, so transients are seen as well as what is kept.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from neuroage.imaging.batches import RESIDENT_CPU_BYTES, RESIDENT_SHARE
from neuroage.models.recompute import set_recompute
from neuroage.runs.recipe import Optim, Preparation, Recipe
from neuroage.training.inference import MEMORY_FORMAT
from neuroage.training.optim import make_optimiser

FLOAT_BYTES = 4
STORED_BYTES = {"uint8": 1, "float16": 2, "float32": 4}
REDUCED = {"bf16": torch.bfloat16, "fp16": torch.float16}
BATCH_COPIES = {"cpu": 4, "cuda": 6}
"""Batches alive at most while one is read and augmented, outside the network: last step's two, the new one, and what
steps that move voxels write (scan by scan on a CPU, the whole batch on a GPU)."""
CUDA_ALLOWANCE = 1 << 30
"""CUDA context (about 0.5 GiB on cards of 2017 to 2024), cuDNN workspaces and what the allocator cannot use."""
BOUND_COPIES = 4  # of every layer's output: kept, normalised, activated, and its gradient


@dataclass(frozen=True)
class MemoryEstimate:
    """What a training step takes, in bytes; each part at its largest, which is not at the same moment.

    Attributes:
        weights: Parameters, norm statistics and other buffers.
        gradients: One for every weight that learns.
        optimiser: Its moments.
        moving_average: The averaged network.
        best: The best weights so far, where the recipe selects.
        batch: The batch as read, augmented and mixed.
        activations: What the forward pass keeps for the backward pass.
        peak: Largest sum at one moment of a step.
        allowance: Context and workspaces of a GPU.
        traced: False when `peak` is only an upper bound, which costs no trace.
    """

    weights: int
    gradients: int
    optimiser: int
    moving_average: int
    best: int
    batch: int
    activations: int
    peak: int
    allowance: int = 0
    traced: bool = True

    @property
    def total(self) -> int:
        """Bytes that must be free, volumes kept on the device aside."""
        return self.peak + self.allowance

    def to_dict(self) -> dict[str, Any]:
        """Give all parts, and their `total`, JSON-ready."""
        return {**asdict(self), "total": self.total}


def peak_memory(
    network: nn.Module,
    images_shape: Sequence[int],
    recipe: Recipe,
    *,
    precision: str = "fp32",
    accumulate: int = 1,
    recompute: str = "none",
    device_type: str = "cpu",
) -> MemoryEstimate:
    """Foretell the peak memory of training steps by tracing one on fake tensors.

    Args:
        network: As built; left as it is.
        images_shape: Of the whole batch, (B, C, *spatial).
        recipe: Its optimiser, moving average, augmentation and mixup.
        precision: fp32, bf16 or fp16.
        accumulate: Parts in which the batch goes through the network.
        recompute: none, activations or blocks, as the network offers.
        device_type: cpu or cuda.

    Returns:
        The parts in bytes.

    Raises:
        ValueError: The network cannot learn from parts of this size (batch norm on a single value).

    Example:
        >>> network = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(1), nn.Linear(8 * 512, 1))
        >>> peak_memory(network, (2, 1, 8, 8, 8), Recipe()).gradients
        17284
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # late: brings in much of the compiler

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        fake = copy_on_cpu(network)
    set_recompute(fake, recompute)
    fake.train()
    known = fixed_parts(fake, recipe)
    n_alive = 1 + bool(recipe.augment) + bool(recipe.training.mixup)
    batch = _bytes(images_shape) * n_alive
    with mode, LiveBytes(device_type) as live:
        held = [*fake.parameters(), *fake.buffers(), *(torch.empty(tuple(images_shape)) for _ in range(n_alive))]
        for tensor in held:
            live.add(tensor)
        live.now += known["optimiser"] + known["moving_average"] + known["best"]
        live.peak = live.now
        activations = _trace_step(fake, held[-1], live, REDUCED.get(precision), accumulate)
    resting = sum(known.values())
    peak = max(
        live.peak,
        resting + _bytes(images_shape) * BATCH_COPIES[device_type],
        resting + batch + _optimiser_transient(fake, recipe.optim, device_type),
        resting + (_saved_copies(fake, known) if device_type == "cpu" else 0),
    )
    return MemoryEstimate(
        **known, batch=batch, activations=activations, peak=peak, allowance=_allowance(device_type), traced=True
    )


def memory_bound(
    network: nn.Module, images_shape: Sequence[int], recipe: Recipe, *, accumulate: int = 1, device_type: str = "cpu"
) -> MemoryEstimate:
    """Bound the peak memory of a step from above, at once: as if every layer worked at full resolution.

    Enough to see that a small training fits; several times too much for networks that halve their resolution.
    """
    known = fixed_parts(network, recipe)
    image = _bytes((-(-images_shape[0] // accumulate), 1, *images_shape[2:]))
    channels = sum(parameter.shape[0] for parameter in network.parameters() if parameter.ndim)
    batch = _bytes(images_shape) * BATCH_COPIES[device_type]
    activations = image * channels * BOUND_COPIES
    peak = 2 * sum(known.values()) + batch + activations + 4 * known["weights"]
    return MemoryEstimate(
        **known, batch=batch, activations=activations, peak=peak, allowance=_allowance(device_type), traced=False
    )


def fixed_parts(network: nn.Module, recipe: Recipe) -> dict[str, int]:
    """Give bytes of weights, their gradients, moments, average and best ones: what does not depend on the batch."""
    optim = recipe.optim
    weights = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    gradients = sum(parameter.nbytes for parameter in network.parameters() if parameter.requires_grad)
    moments = 2 if optim.name == "adamw" else int(optim.momentum > 0)
    return {
        "weights": weights,
        "gradients": gradients,
        "optimiser": moments * gradients,
        "moving_average": weights if optim.ema else 0,
        "best": weights if recipe.training.select != "last" else 0,
    }


def resident_bytes(prepare: Preparation, n_scans: int, free_bytes: int, device_type: str) -> int:
    """Give the bytes of prepared volumes that are kept on a device with `free_bytes`; 0 when they are streamed."""
    n_bytes = n_scans * prepare.n_channels * math.prod(prepare.size) * STORED_BYTES[prepare.store_as]
    limit = RESIDENT_SHARE * free_bytes
    return n_bytes if n_bytes < (min(limit, RESIDENT_CPU_BYTES) if device_type == "cpu" else limit) else 0


def _convolution_backward(args: Any) -> int:
    """Weights and their gradient in oneDNN's order, and what its dilated and reduced kernels copy of an image.

    For images narrower than the kernel each thread has four copies of the weights of its own.
    """
    gradient, images, weights, dilation = args[0], args[1], args[2], args[6]
    narrow = any(size < kernel for size, kernel in zip(images.shape[2:], weights.shape[2:], strict=True))
    n_copies = 3 if images.dtype != torch.float32 else 2 * (max(dilation) > 1)
    # Attention pools convolve positions in one dimension, for which there is no channels-last order.
    memory_format = MEMORY_FORMAT.get(images.ndim, torch.contiguous_format)
    in_order = gradient.is_contiguous(memory_format=memory_format)
    n_weights = 4 * min(torch.get_num_threads(), len(images)) if narrow else 2
    kernel = max(weights.nbytes * n_weights, weights.nbytes + n_copies * images.nbytes // len(images))
    return int(kernel + (0 if in_order else gradient.nbytes))


def _norm_backward(args: Any) -> int:
    images, weights = args[1], args[2]
    return int(images.nbytes) if weights is None or weights.dtype == images.dtype else 0


PASSING: dict[str, dict[Any, Callable[[Any], int]]] = {
    "cpu": {
        torch.ops.aten.convolution.default: lambda args: args[1].nbytes,  # oneDNN orders the weights anew
        torch.ops.aten.convolution_backward.default: _convolution_backward,
        # The CPU kernel makes room for the gradient twice (batch_norm_backward_cpu_template), unless types differ.
        torch.ops.aten.native_batch_norm_backward.default: _norm_backward,
    }
}
"""Bytes that an operation takes in passing beyond its results, by device and operation; measured with torch's profiler.
On GPUs workspaces are part of the allowance."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are alive: each storage from the operation that made it to its death.

    Attributes:
        now: Bytes alive.
        peak: Most bytes alive so far, with the passing needs of convolutions.
    """

    def __init__(self, device_type: str = "cpu") -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._passing = PASSING.get(device_type, {})
        self._alive: dict[int, weakref.ref[Any]] = {}

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage, once."""
        storage = tensor.untyped_storage()
        key, n_bytes = id(storage), storage.nbytes()
        if key in self._alive:
            return

        def forget(_: Any) -> None:
            del self._alive[key]
            self.now -= n_bytes

        self._alive[key] = weakref.ref(storage, forget)
        self.now += n_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it gives."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        passing = self._passing.get(func)
        self.peak = max(self.peak, self.now + (passing(args) if passing else 0))
        return result


def copy_on_cpu(network: nn.Module) -> nn.Module:
    """Copy a network from any device, with new tensors of the same shapes instead of its own."""
    new: dict[int, Any] = {}
    for tensor in (*network.parameters(), *network.buffers()):
        empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
        new[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(network, new)


def _trace_step(network: nn.Module, images: Tensor, live: LiveBytes, dtype: torch.dtype | None, accumulate: int) -> int:
    """Trace what the loop does with a batch, and give the bytes that the first part's forward pass keeps."""
    images = images.contiguous(memory_format=MEMORY_FORMAT[images.ndim])
    before, kept = live.now, 0
    parts = [part for part in images.tensor_split(accumulate) if len(part)]
    for part in parts[:2]:  # later parts are as the second: gradients are there already
        # A CPU's autocast stands for a GPU's: both compute convolutions and products in the reduced format.
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            outputs = network(part)
        loss = outputs.float().abs().mean()
        kept = kept or live.now - before
        loss.backward()
        del outputs, loss
    return kept


def _saved_copies(network: nn.Module, known: dict[str, int]) -> int:
    """Give the bytes of the copies that a checkpoint is written from; one tensor at a time is there twice."""
    return sum(known.values()) - known["gradients"] + max(parameter.nbytes for parameter in network.parameters())


def _optimiser_transient(network: nn.Module, optim: Optim, device_type: str) -> int:
    """Give the bytes that the optimiser's step takes in passing; nothing where one kernel does all of it."""
    sizes = [parameter.nbytes for parameter in network.parameters() if parameter.requires_grad]
    if not sizes or any(group.get("fused") for group in make_optimiser(network, optim).param_groups):
        return 0
    return (
        sum(sizes) if device_type == "cuda" else 2 * max(sizes)
    )  # all weights at once there, one after the other here


def _allowance(device_type: str) -> int:
    return CUDA_ALLOWANCE if device_type == "cuda" else 0


def _bytes(shape: Sequence[int]) -> int:
    return math.prod(shape) * FLOAT_BYTES
