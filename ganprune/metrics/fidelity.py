"""How close generated images are to real ones, from one pass through a feature extractor.

``evaluate`` measures a generator against all images of a split: FID and KID, precision and recall, density
and coverage, the class histogram, and, when a discriminator is given, its loss and accuracy on real and
generated images. Nothing it touches is changed. ``evaluate_images`` does the same for images that are already
there, and ``fid``, ``kid``, ``precision_recall``, ``density_coverage`` and ``histogram_kl`` work on bare
tensors.

For MNIST the extractor is the digit classifier that ships with the package, and FID in its features is called
digit-FID. It can only be compared with other figures of the same extractor, number of images and split; the
*floor* (validation against test) says how far apart two sets of real images are.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ganprune.core.checks import check_integer
from ganprune.core.modes import eval_mode, full_precision
from ganprune.core.random import keep_random_state
from ganprune.data.splits import ImageData, Split
from ganprune.losses import DEFAULT_LOSS, get_loss
from ganprune.masks.apply import check_mask
from ganprune.masks.mask import Mask
from ganprune.metrics.extractor import Extractor, load_extractor
from ganprune.metrics.fid_kid import (
    check_features,
    feature_statistics,
    fid_of_statistics,
    kernel_mean,
    kid_of_means,
)
from ganprune.metrics.neighbours import (
    DENSITY_NEIGHBOURS,
    PRECISION_NEIGHBOURS,
    count_neighbourhoods,
    squared_radii,
)
from ganprune.networks.sampling import sample

METRICS = ("fid", "kid", "precision_recall", "density_coverage", "histogram", "discriminator")


SAMPLES = 10_000


_CPU_BATCH, _ACCELERATOR_BATCH = 100, 1_000


_CACHED_REFERENCES = 8


@dataclass(frozen=True)
class FidelityReport:
    """What ``evaluate`` found; a metric that was not asked for, or does not apply, is None.

    Args:
        dataset: Name of the data set.
        split: Name of the split that was the reference.
        samples: Number of generated images.
        reference_samples: Number of real images.
        seed: Seed of the latents (None if the images were given).
        extractor: Name and hash of the feature extractor.
        fid: Fréchet distance between Gaussians fitted to the features (lower is better).
        fid_floor: The same distance between the validation and the test split.
        digit_fid: ``fid``, if the data set is MNIST.
        digit_fid_floor: ``fid_floor``, if the data set is MNIST.
        kid: Unbiased squared maximum mean discrepancy with a cubic kernel; it may be slightly negative.
        precision: Share of generated images that lie among the real ones.
        recall: Share of real images that lie among the generated ones.
        density: Mean number of real neighbourhoods around a generated image, over what is expected; may
            exceed 1.
        coverage: Share of real images with a generated image in their neighbourhood.
        class_histogram: Share of each class among the generated images, as the classifier names them.
        histogram_kl: Kullback-Leibler divergence, in nats, from the split's label histogram to
            ``class_histogram``.
        loss: Name of the loss behind the next two.
        real_loss: The discriminator's loss on the split's images.
        fake_loss: The discriminator's loss on the generated images.
        real_accuracy: Share of real images with a positive logit (None for the Wasserstein loss, where the
            sign of the output means nothing).
        fake_accuracy: Share of generated images with a negative logit (None likewise).
    """

    dataset: str
    split: str
    samples: int
    reference_samples: int
    seed: int | None
    extractor: str
    fid: float | None = None
    fid_floor: float | None = None
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


@dataclass
class _Reference:
    """Features of a set of real images, with what can be computed from them alone."""

    features: Tensor
    histogram: Tensor
    _statistics: dict[str, Any] | None = None
    _radii: Tensor | None = None
    _kernel_mean: float | None = None

    @property
    def statistics(self) -> dict[str, Any]:
        if self._statistics is None:
            self._statistics = feature_statistics(self.features)
        return self._statistics

    @property
    def radii(self) -> Tensor:
        if self._radii is None:
            self._radii = squared_radii(self.features, max(PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS))
        return self._radii

    @property
    def kernel_mean(self) -> float:
        if self._kernel_mean is None:
            self._kernel_mean = kernel_mean(self.features)
        return self._kernel_mean


_references: OrderedDict[tuple[str, ...], _Reference] = OrderedDict()


@torch.no_grad()
def evaluate(
    generator: nn.Module,
    split: Split | ImageData,
    samples: int = SAMPLES,
    seed: int = 0,
    discriminator: nn.Module | None = None,
    loss: str = DEFAULT_LOSS,
    metrics: str | Iterable[str] = "all",
    mask: Mask | None = None,
    extractor: Extractor | None = None,
    batch_size: int | None = None,
) -> FidelityReport:
    """Measure a generator against all images of a split, changing nothing.

    Networks run in eval mode, in float32 and without gradients; their modes, buffers and gradients and the
    global random state are afterwards what they were. Features of the split are kept for the rest of the
    process.

    Args:
        generator: Maps latents (N, latent_dim) to images (N, C, H, W) in [-1, 1].
        split: The reference; of a whole data set, its validation split.
        samples: Number of images to generate. FID depends on it: compare figures of equal ``samples`` only.
        seed: Seed of the latents.
        discriminator: Maps images to logits (N,); if given, its losses and accuracies are measured as well.
        loss: Name of the discriminator's loss.
        metrics: ``"all"``, or some of "fid", "kid", "precision_recall", "density_coverage", "histogram" and
            "discriminator". ``("fid",)`` is by far the fastest.
        mask: If given, every weight that it prunes must be zero. An attribute ``mask`` of the generator is
            checked in the same way.
        extractor: Feature extractor; default the data set's own.
        batch_size: Images in one forward pass; default 100 per CPU thread (caches hold no more), else 1,000.

    Returns:
        The report.

    Raises:
        ValueError: If an argument is outside its range, or the generator's images are not finite or do not
            fit.
        MaskError: If a weight that the mask prunes is not zero.
    """
    samples = check_integer("samples", samples, 2)
    for checked in (mask, getattr(generator, "mask", None)):
        if isinstance(checked, Mask):
            check_mask(generator, checked)
    _chosen(metrics)
    get_loss(loss)
    device = next(generator.parameters()).device
    with _undisturbed(device):
        images = sample(generator, samples, seed=seed, batch_size=_batch(batch_size, device))
        return evaluate_images(images, split, discriminator, loss, metrics, extractor, batch_size, seed)


@torch.no_grad()
def evaluate_images(
    images: Tensor,
    split: Split | ImageData,
    discriminator: nn.Module | None = None,
    loss: str = DEFAULT_LOSS,
    metrics: str | Iterable[str] = "all",
    extractor: Extractor | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
) -> FidelityReport:
    """Measure given images against all images of a split.

    Args:
        images: Float images (N, C, H, W) in [-1, 1], at least 2.
        split: The reference; of a whole data set, its validation split.
        discriminator: As for ``evaluate``.
        loss: As for ``evaluate``.
        metrics: As for ``evaluate``.
        extractor: As for ``evaluate``.
        batch_size: Images in one forward pass; default 100 per CPU thread (caches hold no more), else 1,000.
        seed: Only noted in the report.

    Returns:
        The report.

    Raises:
        ValueError: If an argument is outside its range, or the images are not finite or do not fit.
    """
    if isinstance(split, ImageData):
        split = split.validation
    wanted = _chosen(metrics)
    if images.dim() != 4 or images.shape[0] < 2 or images.shape[1:] != split.images.shape[1:]:
        raise ValueError(
            f"images must have shape (N >= 2, {', '.join(map(str, split.images.shape[1:]))}), "
            f"got {tuple(images.shape)}"
        )
    broken = int((~torch.isfinite(images)).flatten(1).any(dim=1).sum())
    if broken:
        raise ValueError(f"images must be finite, got {broken} of {len(images)} with NaN or infinity")
    with _undisturbed(images.device):
        extractor = extractor or load_extractor(split, images.device)
        features, predictions = _extract(images, extractor, batch_size)
        values: dict[str, Any] = {}
        reference = _reference(split, extractor, batch_size)
        if "fid" in wanted:
            values["fid"] = fid_of_statistics(feature_statistics(features), reference.statistics)
            values["fid_floor"] = (
                None if split.parent is None else floor(split.siblings(), extractor, batch_size)
            )
            if split.dataset == "mnist":
                values["digit_fid"], values["digit_fid_floor"] = values["fid"], values["fid_floor"]
        if "kid" in wanted:
            values["kid"] = kid_of_means(features, reference.features, reference.kernel_mean)
        if {"precision_recall", "density_coverage"} & wanted:
            check_features(features, reference.features, max(PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS))
            found = count_neighbourhoods(
                features,
                reference.features,
                PRECISION_NEIGHBOURS,
                DENSITY_NEIGHBOURS,
                reference.radii,
                wanted,
            )
            values.update(found)
        if "histogram" in wanted:
            counts = torch.bincount(predictions, minlength=len(reference.histogram)).cpu()
            values["class_histogram"] = tuple((counts.double() / len(predictions)).tolist())
            values["histogram_kl"] = histogram_kl(counts, reference.histogram)
        if "discriminator" in wanted and discriminator is not None:
            values.update(_judge(discriminator, images, split, loss, batch_size))
    return FidelityReport(
        dataset=split.dataset,
        split=split.name,
        samples=len(images),
        reference_samples=len(split),
        seed=seed,
        extractor=extractor.label,
        **values,
    )


@torch.no_grad()
def floor(data: ImageData, extractor: Extractor | None = None, batch_size: int | None = None) -> float:
    """FID between a data set's validation and test splits, all images of both: what two real sets differ by.

    Args:
        data: The data set.
        extractor: Feature extractor; default the data set's own.
        batch_size: Images in one forward pass; default 100 per CPU thread (caches hold no more), else 1,000.

    Returns:
        The distance; features and statistics of both splits are kept for the rest of the process.
    """
    extractor = extractor or load_extractor(data, data.validation.device)
    first = _reference(data.validation, extractor, batch_size)
    second = _reference(data.test, extractor, batch_size)
    return fid_of_statistics(first.statistics, second.statistics)


def extract_features(images: Tensor, extractor: Extractor, batch_size: int | None = None) -> Tensor:
    """Features (N, 128) in float32 of float images (N, C, H, W) in [-1, 1], computed in batches."""
    return _extract(images, extractor, batch_size)[0]


def histogram_kl(counts: Tensor, reference: Tensor) -> float:
    """Kullback-Leibler divergence sum p log(p / q) in nats, with p from ``counts`` and q from ``reference``.

    Args:
        counts: Non-negative counts or shares (classes,) of what is measured.
        reference: Counts or shares (classes,) of the reference.

    Returns:
        The divergence: 0 for equal histograms, finite if classes are missing from ``counts`` (all images in
        one of ten equal classes: log 10), infinite if ``counts`` has a class that ``reference`` lacks.

    Raises:
        ValueError: If the shapes differ, an entry is negative, or a histogram is empty.
    """
    if counts.shape != reference.shape or counts.dim() != 1:
        raise ValueError(
            "counts and reference must be vectors of one length, "
            f"got {tuple(counts.shape)} and {tuple(reference.shape)}"
        )
    p, q = counts.double().cpu(), reference.double().cpu()
    if min(p.min(), q.min()) < 0 or p.sum() <= 0 or q.sum() <= 0:
        raise ValueError(
            f"counts and reference must be non-negative and not all zero, got {p.tolist()}, {q.tolist()}"
        )
    p, q = p / p.sum(), q / q.sum()
    held = p > 0
    return max(0.0, float((p[held] * (p[held] / q[held]).log()).sum()))


def _batch(batch_size: int | None, device: torch.device) -> int:
    if batch_size is None:
        on_cpu = min(_CPU_BATCH * torch.get_num_threads(), _ACCELERATOR_BATCH)
        return on_cpu if device.type == "cpu" else _ACCELERATOR_BATCH
    return check_integer("batch_size", batch_size, 1)


def _chosen(metrics: str | Iterable[str]) -> set[str]:
    wanted = set(METRICS) if metrics == "all" else {metrics} if isinstance(metrics, str) else set(metrics)
    if not wanted or not wanted <= set(METRICS):
        raise ValueError(f'metrics must be "all" or some of {METRICS}, got {metrics!r}')
    return wanted


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Full float32, and the global random states restored at the end."""
    with keep_random_state(device), full_precision(device):
        yield


def _extract(images: Tensor, extractor: Extractor, batch_size: int | None) -> tuple[Tensor, Tensor]:
    device = next(extractor.network.parameters()).device
    pairs = [extractor(batch) for batch in images.split(_batch(batch_size, device))]
    return torch.cat([features for features, _ in pairs]), torch.cat(
        [predictions for _, predictions in pairs]
    )


def _reference(split: Split, extractor: Extractor, batch_size: int | None = None) -> _Reference:
    """Features of a split, cached by content: a split made by hand never meets another's features."""
    device = next(extractor.network.parameters()).device
    content = hashlib.blake2b(split.images.cpu().contiguous().numpy().tobytes(), digest_size=16)
    content.update(split.labels.cpu().contiguous().numpy().tobytes())
    key = (content.hexdigest(), extractor.hash, str(device))
    known = _references.pop(key, None)
    if known is None:
        size = _batch(batch_size, device)
        starts = range(0, len(split), size)
        parts = [extractor(split.float_images(start, start + size))[0] for start in starts]
        classes = max(extractor.network.num_classes, int(split.labels.max()) + 1)
        known = _Reference(torch.cat(parts), torch.bincount(split.labels.cpu(), minlength=classes))
    _references[key] = known
    while len(_references) > _CACHED_REFERENCES:
        _references.popitem(last=False)
    return known


def _judge(
    discriminator: nn.Module, images: Tensor, split: Split, loss: str, batch_size: int | None
) -> dict[str, Any]:
    """Loss and accuracy of a discriminator, in eval mode, on all real and all generated images."""
    chosen = get_loss(loss)
    parameter = next(discriminator.parameters())
    size = _batch(batch_size, parameter.device)
    with eval_mode(discriminator):
        starts = range(0, len(split), size)
        real = torch.cat([discriminator(split.float_images(at, at + size).to(parameter)) for at in starts])
        fake = torch.cat([discriminator(batch.to(parameter)) for batch in images.split(size)])
    signed = chosen.name != "wasserstein"
    return {
        "loss": chosen.name,
        "real_loss": float(chosen.real(real.float())),
        "fake_loss": float(chosen.fake(fake.float())),
        "real_accuracy": float((real > 0).double().mean()) if signed else None,
        "fake_accuracy": float((fake < 0).double().mean()) if signed else None,
    }
