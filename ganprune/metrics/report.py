"""What an evaluation reports, and what it asks of its arguments before any work is done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ganprune.core.checks import ArgumentTypeError, check_choice, check_integer
from ganprune.data.splits import ImageData, Split
from ganprune.losses import DEFAULT_LOSS, get_loss
from ganprune.metrics.neighbours import DENSITY_NEIGHBOURS, PRECISION_NEIGHBOURS

LEAST = {
    "fid": 2,
    "kid": 2,
    "precision_recall": PRECISION_NEIGHBOURS + 1,
    "density_coverage": DENSITY_NEIGHBOURS + 1,
    "histogram": 1,
    "discriminator": 1,
}
"""The metrics, and how many generated and how many real images each needs at least."""
METRICS = tuple(LEAST)
NETWORKS = ("generator_ema", "generator")
"""Which generator of a GAN is measured: the moving average of its weights, or the one that is being trained."""
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class FidelityReport:
    """What :func:`ganprune.evaluate` found; a metric that was not asked for, or does not apply, is None.

    Attributes:
        dataset: name of the data set.
        split: name of the split that was the reference.
        samples: number of generated images.
        reference_samples: number of real images.
        seed: seed of the latents (None if the images were given).
        extractor: name and hash of the feature extractor.
        fid: Fréchet distance between Gaussians fitted to the features (lower is better).
        fid_floor: the same distance between the split and the data set's test split, two sets of real images.
        fid_floor_note: why there is no floor, where ``fid`` was asked for and has none.
        digit_fid: ``fid``, if the data set is MNIST.
        digit_fid_floor: ``fid_floor``, if the data set is MNIST.
        kid: unbiased squared maximum mean discrepancy with a cubic kernel; it may be slightly negative.
        precision: share of generated images that lie among the real ones.
        recall: share of real images that lie among the generated ones.
        density: mean number of real neighbourhoods around a generated image, over what is expected; may exceed 1.
        coverage: share of real images with a generated image in their neighbourhood.
        class_histogram: share of each class among the generated images, as the classifier names them.
        histogram_kl: Kullback-Leibler divergence, in nats, from the split's label histogram to ``class_histogram``.
        loss: name of the loss behind the next two.
        real_loss: the discriminator's loss on the split's images.
        fake_loss: the discriminator's loss on the generated images.
        real_accuracy: share of real images with a positive logit (None for the Wasserstein loss, where the sign of
            the output means nothing).
        fake_accuracy: share of generated images with a negative logit (None likewise).
    """

    dataset: str
    split: str
    samples: int
    reference_samples: int
    seed: int | None
    extractor: str
    fid: float | None = None
    fid_floor: float | None = None
    fid_floor_note: str | None = None
    digit_fid: float | None = None
    digit_fid_floor: float | None = None
    kid: float | None = None
    precision: float | None = None
    recall: float | None = None
    density: float | None = None
    coverage: float | None = None
    class_histogram: tuple[float, ...] | None = None
    histogram_kl: float | None = None
    loss: str | None = None
    real_loss: float | None = None
    fake_loss: float | None = None
    real_accuracy: float | None = None
    fake_accuracy: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        row = asdict(self)
        if row["class_histogram"] is not None:
            row["class_histogram"] = list(row["class_histogram"])
        return row


def check_evaluation(
    split: Split | ImageData,
    samples: int,
    metrics: str | Iterable[str] = "all",
    loss: str = DEFAULT_LOSS,
    network: str = "generator_ema",
) -> tuple[Split, set[str]]:
    """Refuses what :func:`ganprune.evaluate` cannot measure, before any work is done.

    Args:
        split: as for :func:`ganprune.evaluate`.
        samples: likewise.
        metrics: likewise.
        loss: likewise.
        network: likewise.

    Returns:
        The split and the names of the metrics.

    Raises:
        ValueError: if there are too few samples or real images for a metric, the split has a label below 0, or a name
            is unknown.
        TypeError: if ``split`` is neither a split nor a data set.
    """
    check_choice("network", network, NETWORKS)
    get_loss(loss)
    wanted = _check_metrics(metrics)
    _check_count("samples", check_integer("samples", samples, 1), wanted)
    split = check_split(split)
    _check_count("split", len(split), wanted)
    return split, wanted


def check_split(split: Split | ImageData) -> Split:
    """The split, or the validation split of a data set; its labels must be numbers of classes."""
    split = split.validation if isinstance(split, ImageData) else split
    if not isinstance(split, Split):
        raise ArgumentTypeError(f"split must be a Split or an ImageData, got {type(split).__name__}")
    if int(split.labels.min()) < 0:
        raise ValueError(f"split must have labels of at least 0, got {int(split.labels.min())}")
    return split


def check_images(images: Tensor, split: Split, metrics: str | Iterable[str], name: str = "images") -> None:
    """Does nothing if images can be measured against a split.

    Raises:
        TypeError: if they are not a tensor of floats.
        ValueError: if their shape or number does not fit, they are not finite, or do not lie in [-1, 1]. Images in
            [0, 1] are recognised by their range: nothing below 0, and more than half of it used.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise ArgumentTypeError(
            f"{name} must be floats in [-1, 1], got {kind}; of uint8 images take images / 127.5 - 1"
        )
    shape = tuple(split.images.shape[1:])
    if images.dim() != 4 or images.shape[1:] != shape:
        raise ValueError(
            f"{name} must have shape (N, {', '.join(map(str, shape))}), got {tuple(images.shape)}"
        )
    _check_count(name, len(images), _check_metrics(metrics))
    broken = int((~torch.isfinite(images)).flatten(1).any(dim=1).sum())
    if broken:
        raise ValueError(f"{name} must be finite, got {broken} of {len(images)} with NaN or infinity")
    low, high = float(images.min()), float(images.max())
    if low < -1 - _TOLERANCE or high > 1 + _TOLERANCE:
        raise ValueError(
            f"{name} must lie in [-1, 1], got values from {low:.4g} to {high:.4g}; pixels from 0 to 255 become "
            "images / 127.5 - 1, and a generator without tanh needs a clamp(-1, 1)"
        )
    if low >= 0 and high - low > 0.5:
        raise ValueError(
            f"{name} must lie in [-1, 1], got values from {low:.4g} to {high:.4g}, which looks like [0, 1]; "
            "take 2 * images - 1"
        )


def _check_metrics(metrics: str | Iterable[str]) -> set[str]:
    wanted = set(METRICS) if metrics == "all" else {metrics} if isinstance(metrics, str) else set(metrics)
    if not wanted or not wanted <= set(METRICS):
        raise ValueError(f'metrics must be "all" or some of {METRICS}, got {metrics!r}')
    return wanted


def _check_count(name: str, count: int, wanted: set[str]) -> None:
    """Compares a number of images with the largest that one of the metrics needs."""
    metric = max(sorted(wanted), key=LEAST.__getitem__)
    if count >= LEAST[metric]:
        return
    if name == "samples":
        raise ValueError(f"samples must be an integer of at least {LEAST[metric]} for {metric}, got {count}")
    raise ValueError(f"{name} must have at least {LEAST[metric]} images for {metric}, got {count}")
