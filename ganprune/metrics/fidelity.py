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
import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ganprune import losses, masks, models, runtime
from ganprune.checks import check_integer
from ganprune.data import ImageData, Split
from ganprune.metrics.classifier import Extractor, full_precision, load_extractor

METRICS = ("fid", "kid", "precision_recall", "density_coverage", "histogram", "discriminator")
PRECISION_NEIGHBOURS = 3
DENSITY_NEIGHBOURS = 5
SAMPLES = 10_000

_BLOCK = 100
_CPU_BATCH, _ACCELERATOR_BATCH = 100, 1_000
_CACHED_REFERENCES = 8

__all__ = [
    "DENSITY_NEIGHBOURS",
    "METRICS",
    "PRECISION_NEIGHBOURS",
    "FidelityReport",
    "density_coverage",
    "evaluate",
    "evaluate_images",
    "extract_features",
    "fid",
    "floor",
    "histogram_kl",
    "kid",
    "precision_recall",
]


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
            self._statistics = _statistics(self.features)
        return self._statistics

    @property
    def radii(self) -> Tensor:
        if self._radii is None:
            self._radii = _squared_radii(self.features, max(PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS))
        return self._radii

    @property
    def kernel_mean(self) -> float:
        if self._kernel_mean is None:
            self._kernel_mean = _kernel_mean(self.features)
        return self._kernel_mean


_references: OrderedDict[tuple[str, ...], _Reference] = OrderedDict()


@torch.no_grad()
def evaluate(
    generator: nn.Module,
    split: Split | ImageData,
    samples: int = SAMPLES,
    seed: int = 0,
    discriminator: nn.Module | None = None,
    loss: str = "non-saturating",
    metrics: str | Iterable[str] = "all",
    mask: masks.Mask | None = None,
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
        if isinstance(checked, masks.Mask):
            masks.check_mask(generator, checked)
    _chosen(metrics)
    losses.get_loss(loss)
    device = next(generator.parameters()).device
    with _undisturbed(device):
        images = models.sample(generator, samples, seed=seed, batch_size=_batch(batch_size, device))
        return evaluate_images(images, split, discriminator, loss, metrics, extractor, batch_size, seed)


@torch.no_grad()
def evaluate_images(
    images: Tensor,
    split: Split | ImageData,
    discriminator: nn.Module | None = None,
    loss: str = "non-saturating",
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
            values["fid"] = _fid(_statistics(features), reference.statistics)
            values["fid_floor"] = (
                None if split.parent is None else floor(split.siblings(), extractor, batch_size)
            )
            if split.dataset == "mnist":
                values["digit_fid"], values["digit_fid_floor"] = values["fid"], values["fid_floor"]
        if "kid" in wanted:
            values["kid"] = _kid(features, reference.features, reference.kernel_mean)
        if {"precision_recall", "density_coverage"} & wanted:
            _check_features(features, reference.features, max(PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS))
            found = _neighbourhoods(
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
    return _fid(first.statistics, second.statistics)


def extract_features(images: Tensor, extractor: Extractor, batch_size: int | None = None) -> Tensor:
    """Features (N, 128) in float32 of float images (N, C, H, W) in [-1, 1], computed in batches."""
    return _extract(images, extractor, batch_size)[0]


def fid(generated: Tensor, reference: Tensor) -> float:
    """Fréchet distance between two sets of features (Heusel et al. 2017, arXiv:1706.08500, equation 6).

    The squared distance of the means plus tr(S + R - 2 (S R)^(1/2)) for the two covariances S and R, computed
    in float64 by torch-fidelity.

    Args:
        generated: Features (N, d), N of at least 2.
        reference: Features (M, d), M of at least 2.

    Returns:
        The distance, at least 0.

    Raises:
        ValueError: If the features are not two matrices of equal width with finite entries.
    """
    _check_features(generated, reference)
    return _fid(_statistics(generated), _statistics(reference))


def kid(generated: Tensor, reference: Tensor) -> float:
    """Kernel inception distance (Bińkowski et al. 2018, arXiv:1801.01401): MMD² with kernel (x·y/d + 1)³.

    The unbiased estimate from all pairs of different points. The usual mean over random subsets
    (torch-fidelity's) estimates the same quantity with more noise, and equals this one if the single subset
    is the whole set.

    Args:
        generated: Features (N, d), N of at least 2.
        reference: Features (M, d), M of at least 2.

    Returns:
        The estimate; slightly negative values occur when the distributions are alike.

    Raises:
        ValueError: If the features are not two matrices of equal width with finite entries.
    """
    _check_features(generated, reference)
    generated, reference = generated.detach().float(), reference.detach().float()
    return _kid(generated, reference, _kernel_mean(reference))


def precision_recall(
    generated: Tensor, reference: Tensor, neighbours: int = PRECISION_NEIGHBOURS
) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991).

    Each set spans the union of balls around its points that reach to the k-th nearest other point of the set.
    Precision is the share of generated points in the reference's union, recall the share of reference points
    in the union of the generated ones. Balls are closed.

    Args:
        generated: Features (N, d).
        reference: Features (M, d).
        neighbours: k.

    Returns:
        (precision, recall).

    Raises:
        ValueError: If the features are not two matrices of equal width with finite entries and more than k
            rows.
    """
    _check_features(generated, reference, neighbours)
    found = _neighbourhoods(generated.float(), reference.float(), neighbours, 0, None, {"precision_recall"})
    return found["precision"], found["recall"]


def density_coverage(
    generated: Tensor, reference: Tensor, neighbours: int = DENSITY_NEIGHBOURS
) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020, arXiv:2002.09797, equations 4 and 5).

    Around each reference point lies a closed ball that reaches to its k-th nearest other reference point.
    Density is the number of pairs (ball, generated point in it) over k times the number of generated points;
    coverage the share of balls that hold a generated point.

    Args:
        generated: Features (N, d).
        reference: Features (M, d).
        neighbours: k.

    Returns:
        (density, coverage).

    Raises:
        ValueError: If the features are not two matrices of equal width with finite entries and more than k
            rows.
    """
    _check_features(generated, reference, neighbours)
    found = _neighbourhoods(generated.float(), reference.float(), 0, neighbours, None, {"density_coverage"})
    return found["density"], found["coverage"]


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
    with runtime.keep_random_state(device), full_precision(device):
        yield


def _check_features(generated: Tensor, reference: Tensor, neighbours: int = 1) -> None:
    if generated.dim() != 2 or reference.dim() != 2 or generated.shape[1] != reference.shape[1]:
        raise ValueError(
            "generated and reference must be matrices (rows, features) of equal width, "
            f"got {tuple(generated.shape)} and {tuple(reference.shape)}"
        )
    if neighbours < 1 or min(len(generated), len(reference)) <= neighbours:
        raise ValueError(
            f"neighbours must be at least 1 and less than the number of rows, got {neighbours!r} "
            f"with {len(generated)} and {len(reference)} rows"
        )
    for name, features in (("generated", generated), ("reference", reference)):
        if not torch.isfinite(features).all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")


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


def _statistics(features: Tensor) -> dict[str, Any]:
    from torch_fidelity.metric_fid import fid_features_to_statistics

    return fid_features_to_statistics(features.detach().cpu().double())


def _fid(first: dict[str, Any], second: dict[str, Any]) -> float:
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    return max(0.0, float(np.real(fid_statistics_to_metric(first, second, verbose=False)[KEY_METRIC_FID])))


def _kernel_sum(points: Tensor, others: Tensor) -> float:
    """Sum of the cubic kernel (x·y/d + 1)³ over all pairs: rows in float32, their sums in float64.

    KID is a small difference of large means, so the order of summation matters more than the products' precision.
    """
    total, one = 0.0, torch.ones(1, dtype=points.dtype, device=points.device)
    for block in points.split(_BLOCK):
        kernel = torch.addmm(one, block, others.T, alpha=1 / points.shape[1])
        total += sum(kernel.square().mul_(kernel).sum(dim=1).tolist())
    return total


def _kernel_mean(points: Tensor) -> float:
    """Mean of the kernel over all ordered pairs of two different points of one set."""
    own = (points.double().square().sum(dim=1) / points.shape[1] + 1).pow(3).sum()
    return (_kernel_sum(points, points) - float(own)) / (len(points) * (len(points) - 1))


def _kid(generated: Tensor, reference: Tensor, reference_mean: float) -> float:
    crossed = _kernel_sum(generated, reference) / (len(generated) * len(reference))
    return _kernel_mean(generated) + reference_mean - 2 * crossed


def _squared_distances(points: Tensor, others: Tensor, other_norms: Tensor) -> Tensor:
    norms = points.square().sum(dim=1, keepdim=True)
    return torch.addmm(other_norms, points, others.T, alpha=-2).add_(norms)


def _smallest(rows: Tensor, count: int) -> Tensor:
    """The ``count`` smallest values of each row, ascending.

    They lie in the ``count`` groups with the smallest minima, so only those groups are sorted.
    """
    width, groups = rows.shape[1], 128
    if width > 8 * groups and count < groups // 4:
        depth = width // groups
        grouped = rows[:, : depth * groups].unflatten(1, (depth, groups))
        chosen = grouped.amin(dim=1).topk(count, largest=False).indices
        held = grouped.gather(2, chosen.unsqueeze(1).expand(-1, depth, -1)).flatten(1)
        rows = torch.cat([held, rows[:, depth * groups :]], dim=1)
    return rows.topk(count, largest=False, sorted=True).values


def _squared_radii(features: Tensor, neighbours: int) -> Tensor:
    """Squared distances (N, neighbours) from each point to its nearest other points, ascending."""
    features = features - features.mean(dim=0)
    norms = features.square().sum(dim=1)
    parts = []
    for start in range(0, len(features), _BLOCK):
        distances = _squared_distances(features[start : start + _BLOCK], features, norms)
        distances.diagonal(offset=start).fill_(math.inf)
        parts.append(_smallest(distances, neighbours))
    return torch.cat(parts)


def _neighbourhoods(
    generated: Tensor, reference: Tensor, near: int, wide: int, radii: Tensor | None, wanted: set[str]
) -> dict[str, float]:
    """Precision, recall (``near`` neighbours), density, coverage (``wide``), in one pass over blocks."""
    radii = _squared_radii(reference, max(near, wide)) if radii is None else radii
    centre = reference.mean(dim=0)
    generated, reference = generated - centre, reference - centre
    norms = reference.square().sum(dim=1)
    inside, inside_count = 0, 0
    nearest = torch.full_like(norms, math.inf)
    reached = torch.full_like(norms, math.inf)
    own = _squared_radii(generated, near)[:, near - 1] if "precision_recall" in wanted else None
    for start in range(0, len(generated), _BLOCK):
        distances = _squared_distances(generated[start : start + _BLOCK], reference, norms)
        if "density_coverage" in wanted:
            inside_count += int((distances <= radii[:, wide - 1]).sum())
            nearest = torch.minimum(nearest, distances.amin(dim=0))
        if own is not None:
            inside += int(((distances - radii[:, near - 1]).amin(dim=1) <= 0).sum())
            reached = torch.minimum(reached, distances.sub_(own[start : start + _BLOCK, None]).amin(dim=0))
    found: dict[str, float] = {}
    if own is not None:
        found["precision"] = inside / len(generated)
        found["recall"] = int((reached <= 0).sum()) / len(reference)
    if "density_coverage" in wanted:
        found["density"] = inside_count / (wide * len(generated))
        found["coverage"] = int((nearest <= radii[:, wide - 1]).sum()) / len(reference)
    return found


def _judge(
    discriminator: nn.Module, images: Tensor, split: Split, loss: str, batch_size: int | None
) -> dict[str, Any]:
    """Loss and accuracy of a discriminator, in eval mode, on all real and all generated images."""
    chosen = losses.get_loss(loss)
    parameter = next(discriminator.parameters())
    size = _batch(batch_size, parameter.device)
    with runtime.eval_mode(discriminator):
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
