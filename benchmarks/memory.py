"""Memory and time of a HighResNet step beside MONAI's: equal outputs and gradients first, then bytes and times.

    python benchmarks/memory.py [--quick | --shape 1 80 96 80] [--repeats 3] [--device cuda] [--json memory.json]

The plain network is monai.networks.nets.HighResNet as its documentation builds it, without its two last 1×1×1
convolutions: ours ends there. Both carry the same weights, and a step is forward, mean over voxels, backward; there is
no optimiser. Before anything is timed, features and gradients of every level are compared with the plain ones, in fp32,
on the very shape that is timed.

Peak memory is the largest sum of allocated bytes during one step, less what was allocated before it: on a CPU the
allocations and releases that torch's profiler records (profile_memory=True), which hold oneDNN's working memory too; on
a GPU torch.cuda.max_memory_allocated. It holds the gradients of the weights. Contestants take turns, so that whatever
else the machine does meets all of them. Needs monai.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import monai
import numpy as np
import torch
from monai.networks.nets import HighResNet
from torch import Tensor, nn

from neuroage.files import write_json
from neuroage.models.backbones.highresnet import build
from neuroage.models.recompute import LEVELS, set_recompute

SHAPES = [(2, 48, 56, 48), (1, 80, 96, 80)]  # scans and voxels along each axis
QUICK_SHAPES = [(2, 24, 28, 24)]
CUDA_SHAPES = [(1, 160, 192, 160)]
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE = 1e-4  # relative, of features and gradients in fp32


def plain_network() -> nn.Module:
    torch.manual_seed(0)
    network = HighResNet(spatial_dims=3, in_channels=1, out_channels=1)
    network.blocks = network.blocks[:-2]
    return network


def our_network(level: str, plain: nn.Module) -> nn.Module:
    network = build(spatial_dims=3, in_channels=1)
    weights = zip(network.state_dict(), plain.state_dict().values(), strict=True)  # the same weights in the same order
    network.load_state_dict(dict(weights))
    set_recompute(network, level)
    return network


def step(network: nn.Module, images: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """One step without an optimiser: features averaged over voxels, and all gradients in a row."""
    for parameter in network.parameters():
        parameter.grad = None
    with torch.autocast(images.device.type, PRECISIONS[precision], enabled=precision != "fp32"):
        pooled = network(images).flatten(2).float().mean(dim=2)
    pooled.square().sum().backward()
    gradients = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    if images.is_cuda:
        torch.cuda.synchronize()
    return pooled.detach(), gradients


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int:
    """Most bytes allocated at a time while something runs, beyond what was allocated before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return int(np.cumsum([event.nbytes() for event in events]).max())


def distance(values: Tensor, reference: Tensor) -> float:
    return float((values - reference).norm() / reference.norm())


def measure(shape: tuple[int, ...], device: torch.device, repeats: int, channels_last: bool) -> list[dict[str, Any]]:
    torch.manual_seed(1)
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    images = torch.randn(shape[0], 1, *shape[1:]).to(device, memory_format=layout)
    plain = plain_network()
    networks = {"monai": plain} | {level: our_network(level, plain) for level in LEVELS}
    networks = {who: network.to(device, memory_format=layout) for who, network in networks.items()}
    contestants = [(who, precision) for precision in PRECISIONS for who in networks]
    outputs: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}

    def keep(who: str, precision: str) -> None:
        outputs[who, precision] = step(networks[who], images, precision)

    step(networks["monai"], images, "fp32")  # what the first step of a process prepares is nobody's memory
    peaks = {contestant: peak_bytes(partial(keep, *contestant), device) for contestant in contestants}
    differences = {}
    for who, precision in contestants:
        pairs = zip(outputs[who, precision], outputs["monai", precision], strict=True)
        differences[who, precision] = max(distance(*pair) for pair in pairs)
        assert precision != "fp32" or differences[who, precision] < TOLERANCE, (who, differences)
    times: dict[tuple[str, str], list[float]] = {contestant: [] for contestant in contestants}
    for _ in range(repeats):
        for who, precision in contestants:
            start = time.perf_counter()
            step(networks[who], images, precision)
            times[who, precision].append(1e3 * (time.perf_counter() - start))
    rows = []
    for who, precision in contestants:
        low, median, high = np.quantile(times[who, precision], [0.25, 0.5, 0.75])
        best = min(times[who, precision])
        row: dict[str, Any] = {"shape": list(shape), "who": who, "precision": precision, "repeats": repeats}
        row |= {"peak_bytes": peaks[who, precision]}
        row |= {"peak_to_monai_fp32": peaks[who, precision] / peaks["monai", "fp32"]}
        row |= {"median_ms": float(median), "quartiles_ms": [float(low), float(high)], "best_ms": best}
        row |= {"time_to_plain": float(median / np.median(times["monai", precision]))}
        row |= {"best_time_to_plain": best / min(times["monai", precision])}
        rows.append(row | {"difference": differences[who, precision]})
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    print(
        f"{'scans × voxels':>16}  {'who':<12} {'':<5} {'peak MiB':>9} {'ratio':>6} {'step ms':>9} {'[quartiles]':>16}"
        f" {'ratio':>6} {'best ms':>9} {'ratio':>6}  difference"
    )
    for row in rows:
        low, high = row["quartiles_ms"]
        print(
            f"{'×'.join(map(str, row['shape'])):>16}  {row['who']:<12} {row['precision']:<5}"
            f" {row['peak_bytes'] / 2**20:9.0f} {row['peak_to_monai_fp32']:6.3f} {row['median_ms']:9.0f}"
            f" {f'[{low:.0f}, {high:.0f}]':>16} {row['time_to_plain']:6.2f} {row['best_ms']:9.0f}"
            f" {row['best_time_to_plain']:6.2f}  {row['difference']:.0e}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small shape; working memory weighs more there")
    parser.add_argument("--shape", type=int, nargs=4, metavar=("SCANS", "I", "J", "K"), help="this shape alone")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads")
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--channels-last", action="store_true", help="images and weights of everybody in this layout")
    parser.add_argument("--json", metavar="PATH", help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    versions = {"python": platform.python_version(), "torch": torch.__version__, "monai": monai.__version__}
    setting = {"threads": options.threads, "machine": machine, "channels_last": options.channels_last}
    setting |= {"versions": versions}
    print(json.dumps(setting), flush=True)
    shapes = QUICK_SHAPES if options.quick else CUDA_SHAPES if device.type == "cuda" else SHAPES
    rows = []
    for shape in [tuple(options.shape)] if options.shape else shapes:
        rows += measure(shape, device, options.repeats, options.channels_last)
        show(rows[-2 * (len(LEVELS) + 1) :])
    print(f"features and gradients in fp32 equal MONAI's to {TOLERANCE:g} (relative); shares are of MONAI in fp32")
    if options.json:
        write_json(options.json, {**setting, "results": rows})


if __name__ == "__main__":
    main()
