"""The real images that generated ones are compared with: their features, kept for later, and the floor."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ganprune.core.checks import check_integer
from ganprune.data.splits import ImageData, Split
from ganprune.metrics.extractor import Extractor, load_extractor
from ganprune.metrics.fid_kid import feature_statistics, fid_of_statistics, kernel_mean

_CPU_BATCH, _ACCELERATOR_BATCH = 100, 1_000
_KEPT_REFERENCES = 8


@dataclass
class Reference:
    """Features of a set of real images, with what can be computed from them alone.

    Attributes:
        features: (N, 128), float32.
        histogram: (classes,), how many images have each label.
        radii: squared radii of the neighbourhoods, by the step of the grid and the number of neighbours.
    """

    features: Tensor
    histogram: Tensor
    radii: dict[tuple[float, int], Tensor] = field(default_factory=dict)

    @cached_property
    def statistics(self) -> dict[str, Any]:
        """Mean and covariance."""
        return feature_statistics(self.features)

    @cached_property
    def kernel_mean(self) -> float:
        """Mean of KID's kernel over all pairs of different images."""
        return kernel_mean(self.features)


_references: OrderedDict[tuple[str, ...], Reference] = OrderedDict()


@torch.no_grad()
def reference_of(split: Split, extractor: Extractor, batch_size: int | None = None) -> Reference:
    """The features of a split, kept by content: a split made by hand never meets another's features."""
    content = hashlib.blake2b(split.images.cpu().contiguous().numpy().tobytes(), digest_size=16)
    content.update(f"{tuple(split.images.shape)}".encode())
    content.update(split.labels.cpu().contiguous().numpy().tobytes())
    key = (content.hexdigest(), extractor.hash, str(extractor.device))
    known = _references.pop(key, None)
    if known is None:
        size = choose_batch(batch_size, extractor.device)
        starts = range(0, len(split), size)
        pairs = [extractor(split.float_images(start, start + size)) for start in starts]
        labels, classes = split.labels.cpu(), extractor.network.num_classes
        if (
            split.parent is not None and split.parent.num_classes != classes
        ):  # trained on classes of other images
            labels = torch.cat([named for _, named in pairs]).cpu()
        known = Reference(
            torch.cat([features for features, _ in pairs]), torch.bincount(labels, minlength=classes)
        )
    _references[key] = known
    while len(_references) > _KEPT_REFERENCES:
        _references.popitem(last=False)
    return known


def extract_features(images: Tensor, extractor: Extractor, batch_size: int | None = None) -> Tensor:
    """Features (N, 128) in float32 of float images (N, C, H, W) in [-1, 1], computed in batches."""
    return extract(images, extractor, batch_size)[0]


def extract(images: Tensor, extractor: Extractor, batch_size: int | None) -> tuple[Tensor, Tensor]:
    """Features (N, 128) and predicted classes (N,) of images, computed in batches."""
    pairs = [extractor(batch) for batch in images.split(choose_batch(batch_size, extractor.device))]
    return torch.cat([features for features, _ in pairs]), torch.cat([classes for _, classes in pairs])


def floor(
    split: Split | ImageData, extractor: Extractor | None = None, batch_size: int | None = None
) -> float:
    """FID between the images of a split and those of the data set's test split: what two real sets differ by.

    The floor belongs to the very images that are given. A split thinned by ``dataclasses.replace`` has a higher
    floor than the whole one. For the test split, the other side is the validation split.

    Args:
        split: the reference; of a whole data set, its validation split.
        extractor: feature extractor; default the data set's own.
        batch_size: images in one forward pass; default 100 per CPU thread (caches hold no more), else 1,000.

    Returns:
        The distance; features and statistics of both splits are kept for the rest of the process.

    Raises:
        ValueError: if the split belongs to no data set, or the images of the two have different shapes.
    """
    split = split.validation if isinstance(split, ImageData) else split
    reason = why_no_floor(split)
    if reason is not None:
        raise ValueError(f"split has no floor: {reason}")
    extractor = extractor or load_extractor(split, split.device)
    pair = [reference_of(one, extractor, batch_size) for one in (split, _other(split))]
    return fid_of_statistics(pair[0].statistics, pair[1].statistics)


def why_no_floor(split: Split) -> str | None:
    """Why a split has no floor, in words; None if it has one."""
    if split.parent is None:
        return f"the split {split.name!r} was made by hand and belongs to no data set"
    other = _other(split)
    if split.images.shape[1:] != other.images.shape[1:]:
        shapes = [tuple(one.images.shape[1:]) for one in (split, other)]
        return f"the images of {split.name!r} have shape {shapes[0]}, those of {other.name!r} {shapes[1]}"
    return None


def _other(split: Split) -> Split:
    """The sibling that a split's floor is measured against."""
    data = split.siblings()
    return data.validation if split.name == data.test.name else data.test


def choose_batch(batch_size: int | None, device: torch.device) -> int:
    """The batch size that is given, else 100 per CPU thread (caches hold no more), else 1,000."""
    if batch_size is None:
        on_cpu = min(_CPU_BATCH * torch.get_num_threads(), _ACCELERATOR_BATCH)
        return on_cpu if device.type == "cpu" else _ACCELERATOR_BATCH
    return check_integer("batch_size", batch_size, 1)
