"""Plain TorchIO transforms as augmentation: scan by scan on the CPU, draws keyed as in the batched steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from neuroage.errors import UsageError, did_you_mean
from neuroage.runs.seeds import child_seed


def torchio_transform(name: str, options: dict[str, Any]) -> Any:
    """Make a TorchIO transform by name.

    Args:
        name: Such as RandomMotion; a class of `torchio` or of `neuroage.imaging.torchio_steps`.
        options: Its arguments.

    Raises:
        UsageError: No such transform, or arguments that it refuses.
    """
    import torchio as tio

    from neuroage.imaging import torchio_steps

    found = next(
        (kind for kind in (vars(torchio_steps).get(name), vars(tio).get(name)) if isinstance(kind, type)), None
    )
    if found is None or not issubclass(found, tio.Transform):
        names = sorted(
            key for key, kind in vars(tio).items() if isinstance(kind, type) and issubclass(kind, tio.Transform)
        )
        raise UsageError(f"TorchIO has no transform {name!r}", expected=did_you_mean(name, names))
    try:
        return found(**options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} refuses its arguments {options}: {error}") from None


class TorchIOPipeline:
    """Apply a TorchIO transform to every scan of a batch, each with its own draw keyed by (seed, epoch, scan).

    Slower than the batched steps by one to two orders of magnitude; it is here for transforms that have no batched
    counterpart and for pipelines that exist already.

    Args:
        transform: Any `torchio.Transform`, a `tio.Compose` for instance, that keeps the size of a scan.
        seed: Of the augmentation.
        spacing_mm: Of the prepared images; TorchIO's affine works in millimetres.

    TorchIO takes a picture as a volume of one slice, (C, W, H, 1): its axis 0 goes along the columns.
    """

    def __init__(self, transform: Any, seed: int, spacing_mm: Sequence[float] = (1.0, 1.0, 1.0)) -> None:
        self.transform, self.seed = transform, seed
        width_first = [*spacing_mm[::-1], 1.0] if len(spacing_mm) == 2 else [*spacing_mm]
        self.affine = torch.diag(torch.tensor([*width_first, 1.0])).numpy()

    def __call__(self, batch: Tensor, keys: Sequence[tuple[int, int]]) -> tuple[Tensor, list[Any]]:
        """Augment a batch (B, C, *spatial) for keys (epoch, scan); gives the batch and each scan's TorchIO history."""
        import torchio as tio

        if batch.ndim == 4:
            slices, history = self(batch.transpose(2, 3)[..., None], keys)
            return slices[..., 0].transpose(2, 3), history

        results, history = [], []
        for scan, (epoch, index) in zip(batch, keys, strict=True):
            subject = tio.Subject(image=tio.ScalarImage(tensor=scan.detach().cpu().clone(), affine=self.affine))
            with torch.random.fork_rng(devices=[]):  # TorchIO draws from torch's global generator
                torch.manual_seed(child_seed(self.seed, "torchio", epoch, index))
                subject = self.transform(subject)
            if subject.image.data.shape != scan.shape:
                raise UsageError(
                    f"{self.transform} changed a scan from {tuple(scan.shape)} to {tuple(subject.image.data.shape)}",
                    expected="augmentation that keeps the size",
                    fix="Crop and resample in `prepare`.",
                )
            results.append(subject.image.data.to(batch.dtype))
            history.append(subject.get_composed_history())
        return torch.stack(results).to(batch.device), history
