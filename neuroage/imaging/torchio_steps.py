"""The augmentation steps as TorchIO transforms: drop them into any `tio.Compose` in the place of TorchIO's own.

Constructors, distributions, random draws (the same torch seed draws the same parameters), history, inverses, and the
handling of label maps are TorchIO's: each class inherits TorchIO's class and replaces the arithmetic.
`RandomBiasField` for `tio.RandomBiasField` is the replacement that changes how long an epoch takes.

    import torchio as tio
    from neuroage.imaging import torchio_steps as fast

    augment = tio.Compose([fast.RandomAffine(degrees=10), tio.RandomFlip(), fast.RandomBiasField(p=0.5)])

A subject's history finds a transform by the bare name of its class. The recorded classes are therefore called
`NeuroageBiasField` and so on (and also stand here as `BiasField`): history made by TorchIO's own transforms stays
TorchIO's.

This is the only module that needs TorchIO; training on prepared volumes imports neither it nor SimpleITK.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torchio as tio
from torchio.transforms.augmentation import RandomTransform
from torchio.transforms.intensity_transform import IntensityTransform

from neuroage.imaging.augment import binning as _binning
from neuroage.imaging.augment.affine import rotation
from neuroage.imaging.augment.bias_field import multiply_by_field
from neuroage.imaging.augment.gamma import raise_to_power
from neuroage.imaging.augment.resample import resample_affine

__all__ = [
    "Affine",
    "BiasField",
    "Binning",
    "Flip",
    "Gamma",
    "Noise",
    "RandomAffine",
    "RandomBiasField",
    "RandomBinning",
    "RandomFlip",
    "RandomGamma",
    "RandomNoise",
]

Flip = tio.Flip
"""TorchIO's own: exact, and one copy of the volume."""
RandomFlip = tio.RandomFlip
"""TorchIO's own: exact, and one copy of the volume."""


class NeuroageBiasField(tio.BiasField):
    """Multiply by a bias field: TorchIO's `BiasField`, equal to 1e-5 for the same coefficients, evaluated axis by axis.

    Args:
        coefficients: One number for each term of the polynomial in TorchIO's order, or a dict of such lists by image
        name.
        order: Highest total order, or a dict by image name.
        **kwargs: TorchIO's: p, copy, include, exclude, keep, …

    Example:
        >>> BiasField(coefficients=[0.0] * 20, order=3)(torch.ones(1, 4, 5, 6)).unique()
        tensor([1.])
    """

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Multiply every intensity image by its field; label maps stay."""
        sign = -1.0 if self.invert_transform else 1.0
        for name, image in self.get_images_dict(subject).items():
            coefficients = [sign * number for number in self.get_parameter(self.coefficients, name)]
            data, out = _float_data(self, image)
            multiply_by_field(data[None], [coefficients], self.get_parameter(self.order, name), out[None])
            image.set_data(out)
        return subject


class RandomBiasField(tio.RandomBiasField):
    """TorchIO's `RandomBiasField`: same options, same draws; see `BiasField`."""

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Draw coefficients for each intensity image and apply them."""
        names = self.get_images_dict(subject)
        if not names:
            return subject
        drawn = {name: self.get_params(self.order, self.coefficients_range) for name in names}
        orders = dict.fromkeys(names, self.order)
        return _apply_recorded(BiasField(coefficients=drawn, order=orders, **self._get_base_args()), subject)


class NeuroageAffine(tio.Affine):
    """Rotate, scale and shift by one interpolation: TorchIO's `Affine`, equal to 1e-3 of the range in every voxel.

    Any orientation and spacing, label maps by the nearest voxel. Interpolations other than `linear` for images and
    `nearest` for labels are handed to TorchIO.

    Args:
        scales: One for each axis of the world; 2 makes things look twice as large.
        degrees: Angles about the axes of the world.
        translation: Shift in mm along the axes of the world.
        **kwargs: TorchIO's: center, default_pad_value, default_pad_label, image_interpolation, p, …
    """

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Resample every image of the subject by the same movement of the world."""
        if (self.image_interpolation, self.label_interpolation) != ("linear", "nearest"):
            return super().apply_transform(subject)
        if self.check_shape:
            subject.check_consistent_spatial_shape()
        for image in self.get_images(subject):
            matrix, is_label = self._voxel_matrix(image), isinstance(image, tio.LabelMap)
            moved = torch.empty(image.shape)
            for channel, target in zip(image.data, moved, strict=True):
                resample_affine(
                    channel[None, None].float(),
                    [matrix],
                    pad=self._outside(channel, image),
                    interpolation="nearest" if is_label else "linear",
                    out=target[None, None],
                )
            image.set_data(moved)
        return subject

    def _voxel_matrix(self, image: tio.Image) -> np.ndarray:
        """Give the matrix from output to input voxel indices: w_in = c + Rᵀ((w_out − c) / scales − translation)."""
        scales, degrees = np.array(self.scales, dtype=float), np.array(self.degrees, dtype=float)
        if image.is_2d():
            scales[2], degrees[:2] = 1, 0
        centre = np.asarray(image.get_center()) if self.use_image_center else np.zeros(3)
        inverse = rotation(degrees.tolist()).T
        world: Any = np.eye(4)
        world[:3, :3] = inverse / scales
        world[:3, 3] = centre - world[:3, :3] @ centre - inverse @ np.asarray(self.translation, dtype=float)
        if self.invert_transform:
            world = np.linalg.inv(world)
        matrix: np.ndarray = np.linalg.inv(image.affine) @ world @ image.affine
        return matrix

    def _outside(self, channel: torch.Tensor, image: tio.Image) -> float:
        if isinstance(image, tio.LabelMap):
            return self.default_pad_label
        if self.default_pad_value in ("mean", "otsu"):
            return float(self.get_default_pad_value(channel, self.nib_to_sitk(channel[None], image.affine)))
        return float(channel.min()) if self.default_pad_value == "minimum" else float(self.default_pad_value)


class RandomAffine(tio.RandomAffine):
    """TorchIO's `RandomAffine`: same options, same draws; see `Affine`."""

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Draw one movement for the subject and apply it to every image."""
        drawn = self.get_params(self.scales, self.degrees, self.translation, self.isotropic)
        options: dict[str, Any] = {
            name: tuple(float(number) for number in numbers)
            for name, numbers in zip(("scales", "degrees", "translation"), drawn, strict=True)
        }
        shared = ("center", "default_pad_value", "default_pad_label", "check_shape")
        for name in (*shared, "image_interpolation", "label_interpolation"):
            options[name] = getattr(self, name)
        return _apply_recorded(Affine(**_with_base(self, options)), subject)


class NeuroageNoise(tio.Noise):
    """Add Gaussian noise: TorchIO's `Noise`, the same noise for the same seed; torch's global state is left alone."""

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Add noise to every intensity image; label maps stay."""
        for name, image in self.get_images_dict(subject).items():
            mean, std = (self.get_parameter(value, name) for value in (self.noise_mean, self.noise_std))
            generator = torch.Generator().manual_seed(self.get_parameter(self.seed, name))
            noise = torch.randn(image.shape, generator=generator).mul_(std).add_(mean)
            image.set_data(image.data - noise if self.invert_transform else image.data + noise)
        return subject


class RandomNoise(tio.RandomNoise):
    """TorchIO's `RandomNoise`: same options, same draws; see `Noise`."""

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Draw mean, standard deviation and seed for each intensity image and apply them."""
        names = self.get_images_dict(subject)
        if not names:
            return subject
        drawn = {name: self.get_params(self.mean_range, self.std_range) for name in names}
        options: dict[str, Any] = {
            option: {name: values[place] for name, values in drawn.items()}
            for place, option in enumerate(("mean", "std", "seed"))
        }
        return _apply_recorded(Noise(**_with_base(self, options)), subject)


class NeuroageGamma(tio.Gamma):
    """Raise intensities to a power: TorchIO's `Gamma`, keeping signs as it does; one exponent for each channel."""

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Raise every intensity image to its power; label maps stay."""
        if self.invert_transform:
            return super().apply_transform(subject)
        for name, image in self.get_images_dict(subject).items():
            gamma: Any = self.get_parameter(self.gamma, name)
            gammas = list(gamma) if isinstance(gamma, Sequence) else [gamma] * len(image.data)
            data, out = _float_data(self, image)
            raise_to_power(data[:, None], gammas, out=out[:, None])
            image.set_data(out)
        return subject


class RandomGamma(tio.RandomGamma):
    """TorchIO's `RandomGamma`: same options, same draws; see `Gamma`."""

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Draw an exponent for each channel of each intensity image and apply them."""
        images = self.get_images_dict(subject)
        if not images:
            return subject
        drawn: dict[str, Any] = {
            name: [float(self.get_params(self.log_gamma_range)) for _ in image.data] for name, image in images.items()
        }
        return _apply_recorded(Gamma(gamma=drawn, **self._get_base_args()), subject)


class Binning(IntensityTransform):
    """Reduce intensities to a few levels; TorchIO has no such transform.

    Args:
        method: `equal_width`, `quantile` or `threshold`, or a dict by image name.
        levels: Number of levels, or a dict by image name; not used by `threshold`.
        threshold: Fraction of voxels below the threshold, or a dict by image name; used by `threshold` only.
        **kwargs: TorchIO's: p, copy, include, exclude, keep, …

    Example:
        >>> Binning(levels=2)(torch.tensor([0.0, 1.0, 7.0, 8.0]).reshape(1, 1, 1, 4)).flatten()
        tensor([2., 2., 6., 6.])
    """

    def __init__(
        self,
        method: str | Mapping[str, str] = "equal_width",
        levels: int | Mapping[str, int] = 16,
        threshold: float | Mapping[str, float] = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.method, self.levels, self.threshold = method, levels, threshold
        self.args_names = ["method", "levels", "threshold"]

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Bin every intensity image, each channel on its own; label maps stay."""
        for name, image in self.get_images_dict(subject).items():
            options: dict[str, Any] = {
                option: self.get_parameter(getattr(self, option), name) for option in self.args_names
            }
            data, out = _float_data(self, image)
            for channel, binned in zip(data, out, strict=True):
                _binning.bin_intensities(channel, **options, out=binned)
            image.set_data(out)
        return subject


class RandomBinning(RandomTransform, IntensityTransform):
    """Reduce each image to a random number of levels, or to two at a random threshold.

    Args:
        methods: One of these is drawn, each as likely: `equal_width`, `quantile`, `threshold`.
        levels: [fewest, most] levels.
        threshold: [low, high] fraction of voxels below the threshold.
        **kwargs: TorchIO's: p, copy, include, exclude, keep, …
    """

    def __init__(
        self,
        methods: Sequence[str] = ("equal_width", "quantile"),
        levels: tuple[int, int] = (4, 32),
        threshold: tuple[float, float] = (0.5, 0.95),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]
        self.ranges = _binning.Binning.model_validate(
            {"p": 1, "methods": list(methods), "levels": tuple(levels), "threshold": tuple(threshold)}
        )

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Draw for each intensity image and apply."""
        names = self.get_images_dict(subject)
        if not names:
            return subject
        unused: dict[str, Any] = {"levels": self.ranges.levels[0], "threshold": self.ranges.threshold[0]}
        drawn = {name: unused | self.ranges.draw(self._generator(), (1, 1, 1)) for name in names}
        options: dict[str, Any] = {
            option: {name: values[option] for name, values in drawn.items()} for option in ("method", *unused)
        }
        return _apply_recorded(Binning(**_with_base(self, options)), subject)

    def _generator(self) -> np.random.Generator:
        return np.random.default_rng(self._get_random_seed())


BiasField, Affine, Noise, Gamma = NeuroageBiasField, NeuroageAffine, NeuroageNoise, NeuroageGamma


def _float_data(transform: tio.Transform, image: tio.Image) -> tuple[torch.Tensor, torch.Tensor]:
    """Give an image's data as floating point, and where to write: into the data itself when it is a copy already."""
    data = image.data if image.data.dtype in (torch.float32, torch.float64) else image.data.float()
    in_place = (transform.copy or data is not image.data) and data.is_contiguous()
    return data, data if in_place else torch.empty_like(data, memory_format=torch.contiguous_format)


def _with_base(transform: tio.Transform, options: dict[str, Any]) -> dict[str, Any]:
    """Add what every TorchIO transform takes (include, exclude, copy, …), as set on the random transform."""
    return options | transform._get_base_args()


def _apply_recorded(transform: tio.Transform, subject: tio.Subject) -> tio.Subject:
    """Apply what a random transform drew and enter it in the subject's history; the subject is not copied again."""
    transformed = transform.apply_transform(subject)
    if transform.parse_input:
        transformed.add_transform(transform, transform._get_reproducing_arguments())  # type: ignore[no-untyped-call]
    return transformed
