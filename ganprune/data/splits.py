"""Images in three splits: train, validation, test."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ganprune.core.checks import check_integer
from ganprune.core.errors import GanpruneError
from ganprune.core.random import seeded, step_seed

SPLIT_SEED = 20_260_101
"""The seed that draws validation from the official training set; a constant of the course, never changed."""
VALIDATION_SIZE = 10_000


class DataError(GanpruneError, RuntimeError):
    """A data set is missing or damaged; the message says which file, where, and what to do."""


@dataclass(frozen=True)
class Split:
    """One split of a data set, at least two images.

    Attributes:
        name: "train", "validation" or "test".
        images: uint8, shape (N, C, H, W), values 0 to 255.
        labels: integers, shape (N,); held as int64.
        dataset: name of the data set.
        parent: the data set that the split belongs to (for references that need another split).

    Raises:
        TypeError: if images or labels are no tensors, or of another kind of number.
        ValueError: if their shapes are others, or there are fewer than two images.
    """

    name: str
    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    dataset: str
    parent: ImageData | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if not isinstance(images, Tensor) or images.dtype != torch.uint8:
            raise TypeError(
                f"images must be a uint8 tensor with values 0 to 255, got {_kind(images)}; images in [-1, 1] become "
                "one by ((images + 1) * 127.5).round().to(torch.uint8)"
            )
        if images.ndim != 4:
            raise ValueError(f"images must have shape (N, C, H, W), got {tuple(images.shape)}")
        if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
            raise TypeError(f"labels must be a tensor of integers, got {_kind(labels)}")
        if tuple(labels.shape) != (len(images),):
            raise ValueError(
                f"labels must have shape (N,), one per image: {len(images)} images, labels {tuple(labels.shape)}"
            )
        if len(images) < 2:
            found = "is empty" if len(images) == 0 else "has one image"
            raise ValueError(f"the split {self.name!r} {found}, but needs at least two images")
        object.__setattr__(self, "labels", labels.long())

    def __len__(self) -> int:
        return len(self.images)

    @property
    def device(self) -> torch.device:
        """Where the images lie."""
        return self.images.device

    def siblings(self) -> ImageData:
        """The whole data set that this split belongs to."""
        if self.parent is None:
            raise ValueError(f"the split {self.name!r} was made by hand and belongs to no data set")
        return self.parent

    def batch(self, batch_size: int, seed: int, step: int) -> Tensor:
        """A random batch, a pure function of (seed, step): drawn uniformly with replacement.

        Args:
            batch_size: number of images, at least 1.
            seed: names the sequence of batches.
            step: position in the sequence.

        Returns:
            float32, shape (batch_size, C, H, W), values in [-1, 1], on the split's device.
        """
        check_integer("batch_size", batch_size, 1)
        generator = seeded(step_seed(seed, step, "batch"))
        rows = torch.randint(len(self), (batch_size,), generator=generator, device="cpu").to(self.device)
        return _to_float(self.images[rows])

    def float_images(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Images start..stop in stored order as float32 in [-1, 1], shape (stop - start, C, H, W)."""
        return _to_float(self.images[start:stop])


@dataclass(frozen=True)
class ImageData:
    """A data set with its three splits; see :func:`mnist`."""

    name: str
    train: Split
    validation: Split
    test: Split
    num_classes: int = 10

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


def _to_float(images: Tensor) -> Tensor:
    """uint8 images 0 to 255 as new float32 images in [-1, 1]."""
    return images.to(torch.float32, copy=True).div_(127.5).sub_(1.0)


def _kind(value: object) -> str:
    """What something is, in messages: the dtype of a tensor, the type of anything else."""
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def three_splits(
    name: str, training: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], device: torch.device
) -> ImageData:
    """A data set from its official training and test parts, each (images, labels) on the CPU.

    Validation is :data:`VALIDATION_SIZE` images drawn from the training part with :data:`SPLIT_SEED`.
    """
    order = torch.randperm(len(training[0]), generator=seeded(SPLIT_SEED), device="cpu")
    rows = {
        "validation": order[:VALIDATION_SIZE].sort().values,
        "train": order[VALIDATION_SIZE:].sort().values,
    }
    splits = {
        part: Split(part, training[0][at].to(device), training[1][at].to(device), name)
        for part, at in rows.items()
    }
    splits["test"] = Split("test", test[0].to(device), test[1].to(device), name)
    data = ImageData(name, splits["train"], splits["validation"], splits["test"])
    for split in splits.values():
        object.__setattr__(split, "parent", data)
    return data
