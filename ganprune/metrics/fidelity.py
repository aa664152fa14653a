"""How close generated images are to real ones, from one pass through a feature extractor.

``evaluate`` measures a generator against all images of a split: FID and KID, precision and recall, density and
coverage, the class histogram, and, where there is a discriminator, its loss and accuracy on real and generated images.
Nothing it touches is changed. ``evaluate_images`` does the same for images that are already there, and ``fid``,
``kid``, ``precision_recall``, ``density_coverage`` and ``histogram_kl`` work on bare tensors.

For MNIST the extractor is the digit classifier that ships with the package, and FID in its features is called
digit-FID. It can only be compared with other figures of the same extractor, number of images and split; the *floor*
(the split against the test split) says how far apart two sets of real images are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ganprune.core.device import placement_of
from ganprune.core.modes import full_precision
from ganprune.core.random import keep_random_state, step_seed
from ganprune.data.splits import ImageData, Split
from ganprune.losses import DEFAULT_LOSS
from ganprune.masks.apply import check_mask
from ganprune.masks.mask import Mask
from ganprune.metrics.extractor import Extractor, load_extractor
from ganprune.metrics.fid_kid import feature_statistics, fid_of_statistics, kid_of_means
from ganprune.metrics.judge import judge
from ganprune.metrics.neighbours import DENSITY_NEIGHBOURS, PRECISION_NEIGHBOURS, count_neighbourhoods
from ganprune.metrics.reference import Reference, choose_batch, extract, floor, reference_of, why_no_floor
from ganprune.metrics.report import METRICS, FidelityReport, check_evaluation, check_images, check_split
from ganprune.networks.gan import GAN
from ganprune.networks.sampling import sample

__all__ = ["METRICS", "FidelityReport", "check_evaluation", "evaluate", "evaluate_images", "histogram_kl"]

SAMPLES = 10_000


@torch.no_grad()
def evaluate(
    gan: GAN | nn.Module,
    split: Split | ImageData,
    samples: int = SAMPLES,
    seed: int = 0,
    discriminator: nn.Module | None = None,
    loss: str = DEFAULT_LOSS,
    metrics: str | Iterable[str] = "all",
    mask: Mask | None = None,
    extractor: Extractor | None = None,
    batch_size: int | None = None,
    network: str = "generator_ema",
) -> FidelityReport:
    """Measures a generator against all images of a split, changing nothing.

    Networks run in evaluation mode, in full precision and without gradients; their modes, buffers and gradients and
    the global random state are afterwards what they were. Layers that draw random numbers draw them from ``seed``.
    Features of the split are kept for the rest of the process. For other data than MNIST the first evaluation trains
    a feature extractor, which :func:`ganprune.metrics.prepare_extractor` does ahead.

    Args:
        gan: a GAN, whose masks must hold and whose discriminator is measured as well; or a generator alone, which
            maps latents (N, latent_dim) to images (N, C, H, W) in [-1, 1].
        split: the reference; of a whole data set, its validation split.
        samples: number of images to generate. FID depends on it: compare figures of equal ``samples`` only. FID and
            KID need 2, precision and recall 4, density and coverage 6.
        seed: determines the latents.
        discriminator: maps images to logits (N,); default that of the GAN.
        loss: name of the discriminator's loss.
        metrics: ``"all"``, or some of "fid", "kid", "precision_recall", "density_coverage", "histogram" and
            "discriminator". ``("fid",)`` is by far the fastest.
        mask: if given, every weight of the generator that it prunes must be zero.
        extractor: feature extractor; default the data set's own.
        batch_size: images in one forward pass; default 100 per CPU thread (caches hold no more), else 1,000.
        network: of a GAN, "generator_ema" for the moving average of the generator's weights, or "generator".

    Raises:
        ValueError: if an argument is outside its range, a metric needs more images than there are, or the generator's
            images do not fit.
        TypeError: if ``split`` is no split, or the discriminator does not return a tensor.
        MaskError: if a weight that a mask prunes is not zero.
    """
    check_evaluation(split, samples, metrics, loss, network)
    generator: nn.Module = gan  # type: ignore[assignment]
    if isinstance(gan, GAN):
        gan.masks.check()
        generator = gan.networks()[network]
        discriminator = gan.discriminator if discriminator is None else discriminator
    if mask is not None:
        check_mask(generator, mask)
    device, _ = placement_of(generator)
    with _undisturbed(device, seed):
        images = sample(generator, samples, seed=seed, batch_size=choose_batch(batch_size, device))
        check_images(images, check_split(split), metrics, "images of the generator")
        return _measure(images, split, discriminator, loss, metrics, extractor, batch_size, seed)


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
    """Measures given images against all images of a split.

    Args:
        images: float images (N, C, H, W) in [-1, 1].
        split: the reference; of a whole data set, its validation split.
        discriminator: as for :func:`evaluate`.
        loss: as for :func:`evaluate`.
        metrics: as for :func:`evaluate`.
        extractor: as for :func:`evaluate`.
        batch_size: images in one forward pass; default 100 per CPU thread (caches hold no more), else 1,000.
        seed: only noted in the report.

    Raises:
        ValueError: if an argument is outside its range, a metric needs more images than there are, or the images are
            not finite, do not lie in [-1, 1] or do not fit.
        TypeError: if the images are no floats.
    """
    check_images(images, check_split(split), metrics)
    with _undisturbed(images.device, seed or 0):
        return _measure(images, split, discriminator, loss, metrics, extractor, batch_size, seed)


def _measure(
    images: Tensor,
    split: Split | ImageData,
    discriminator: nn.Module | None,
    loss: str,
    metrics: str | Iterable[str],
    extractor: Extractor | None,
    batch_size: int | None,
    seed: int | None,
) -> FidelityReport:
    """The part that both kinds of evaluation share: from images to a report."""
    split, wanted = check_evaluation(split, len(images), metrics, loss)
    extractor = extractor or load_extractor(split, images.device)
    extractor.network.check_shape("split", tuple(split.images.shape))
    values: dict[str, Any] = {}
    if wanted - {"discriminator"}:
        features, classes = extract(images, extractor, batch_size)
        reference = reference_of(split, extractor, batch_size)
        values |= _compare(features, classes, reference, wanted)
    if "fid" in wanted:
        values |= _floor(split, extractor, batch_size)
        if split.dataset == "mnist":
            values |= {"digit_fid": values["fid"], "digit_fid_floor": values["fid_floor"]}
    if "discriminator" in wanted and discriminator is not None:
        values |= judge(discriminator, images, split, loss, batch_size)
    return FidelityReport(
        dataset=split.dataset,
        split=split.name,
        samples=len(images),
        reference_samples=len(split),
        seed=seed,
        extractor=extractor.label,
        **values,
    )


def _compare(features: Tensor, classes: Tensor, reference: Reference, wanted: set[str]) -> dict[str, Any]:
    """What features (N, 128) and predicted classes (N,) of generated images say beside those of the real ones."""
    values: dict[str, Any] = {}
    if "fid" in wanted:
        values["fid"] = fid_of_statistics(feature_statistics(features), reference.statistics)
    if "kid" in wanted:
        values["kid"] = kid_of_means(features, reference.features, reference.kernel_mean)
    if {"precision_recall", "density_coverage"} & wanted:
        near = PRECISION_NEIGHBOURS if "precision_recall" in wanted else None
        wide = DENSITY_NEIGHBOURS if "density_coverage" in wanted else None
        values |= count_neighbourhoods(features, reference.features, near, wide, reference.radii)
    if "histogram" in wanted:
        counts = torch.bincount(classes, minlength=len(reference.histogram)).cpu()
        values["class_histogram"] = tuple((counts.double() / len(classes)).tolist())
        values["histogram_kl"] = histogram_kl(counts, reference.histogram)
    return values


def _floor(split: Split, extractor: Extractor, batch_size: int | None) -> dict[str, Any]:
    """The floor of the split, or the reason why it has none."""
    reason = why_no_floor(split)
    if reason is not None:
        return {"fid_floor": None, "fid_floor_note": reason}
    return {"fid_floor": floor(split, extractor, batch_size)}


def histogram_kl(counts: Tensor, reference: Tensor) -> float:
    """Kullback-Leibler divergence sum p log(p / q) in nats, with p from ``counts`` and q from ``reference``.

    Args:
        counts: non-negative counts or shares (classes,) of what is measured.
        reference: counts or shares (classes,) of the reference.

    Returns:
        The divergence: 0 for equal histograms, finite if classes are missing from ``counts`` (all images in one of
        ten equal classes: log 10), infinite if ``counts`` has a class that ``reference`` lacks.

    Raises:
        ValueError: if the shapes differ, an entry is negative or not finite, or a histogram is empty.
    """
    if counts.shape != reference.shape or counts.dim() != 1:
        raise ValueError(
            "counts and reference must be vectors of one length, "
            f"got {tuple(counts.shape)} and {tuple(reference.shape)}"
        )
    p, q = counts.cpu().double(), reference.cpu().double()
    fine = all(bool(h.isfinite().all()) and bool((h >= 0).all()) and bool(h.sum() > 0) for h in (p, q))
    if not fine:
        raise ValueError(
            f"counts and reference must be non-negative and not all zero, got {p.tolist()}, {q.tolist()}"
        )
    p, q = p / p.sum(), q / q.sum()
    held = p > 0
    return max(0.0, float((p[held] * (p[held] / q[held]).log()).sum()))


@contextmanager
def _undisturbed(device: torch.device, seed: int) -> Iterator[None]:
    """Full precision and random numbers that the seed determines; the global random states are restored at the end."""
    with keep_random_state(device), full_precision(device):
        torch.manual_seed(step_seed(seed, 0, "evaluation"))
        yield
