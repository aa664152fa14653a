"""Fidelity metrics against independent implementations; evaluation changes nothing."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from ganprune import masks, metrics
from ganprune.data.sources import mnist
from ganprune.data.splits import ImageData, Split
from ganprune.metrics import fid_kid as fidelity
import ganprune as gp


def clouds(
    generated: int = 150, reference: int = 130, width: int = 8, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Two overlapping clouds of features."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(generated, width, generator=generator) @ torch.randn(
        width, width, generator=generator
    )
    second = torch.randn(reference, width, generator=generator) * 2 + 0.5
    return first, second


@pytest.fixture(scope="module")
def data() -> ImageData:
    """MNIST on the CPU."""
    return mnist(device="cpu")


@pytest.fixture(scope="module")
def part(data: ImageData) -> Split:
    """Sixty images as a split of their own, for quick evaluations."""
    return Split("validation", data.validation.images[:60], data.validation.labels[:60], "mnist")


@pytest.fixture
def gan() -> gp.GAN:
    """A small untrained DCGAN in training mode."""
    gan = gp.dcgan(width=4, latent_dim=8, device="cpu")
    gan.generator.train()
    gan.discriminator.train()
    return gan


# --- against independent implementations


def fid_by_matrix_root(generated: Tensor, reference: Tensor) -> float:
    x, y = generated.double().numpy(), reference.double().numpy()
    s, r = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(s @ r)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s + r - 2 * root.real))


def fid_by_symmetric_eigenvalues(generated: Tensor, reference: Tensor) -> float:
    """The same distance where features are constant, so that the covariance is singular and has no such root."""
    x, y = generated.double().numpy(), reference.double().numpy()
    s, r = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    values, vectors = np.linalg.eigh(s)
    half = vectors * np.sqrt(values.clip(0)) @ vectors.T
    root = np.sqrt(np.linalg.eigvalsh(half @ r @ half).clip(0)).sum()
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s + r) - 2 * root)


@pytest.mark.parametrize("seed", range(3))
def test_fid_equals_the_formula_with_a_matrix_root(seed: int) -> None:
    generated, reference = clouds(seed=seed)
    assert metrics.fid(generated, reference) == pytest.approx(
        fid_by_matrix_root(generated, reference), rel=1e-8
    )


def test_fid_of_shifted_points_is_the_squared_shift() -> None:
    points = torch.randn(500, 6, dtype=torch.float64)
    shift = torch.tensor([3.0, 0, 0, 4, 0, 0], dtype=torch.float64)
    assert metrics.fid(points + shift, points) == pytest.approx(25.0, rel=1e-6)


def test_fid_is_zero_on_equal_sets_and_symmetric() -> None:
    generated, reference = clouds()
    assert metrics.fid(generated, generated.flip(0)) == pytest.approx(0.0, abs=1e-6)
    assert metrics.fid(generated, reference) == pytest.approx(metrics.fid(reference, generated), rel=1e-9)
    assert metrics.fid(generated, reference) > 1


def test_fid_grows_with_noise() -> None:
    _, reference = clouds(reference=400)
    noise = torch.randn_like(reference)
    values = [metrics.fid(reference + scale * noise, reference) for scale in (0.0, 0.5, 1.0, 2.0)]
    assert values == sorted(values)


def kid_by_loops(generated: Tensor, reference: Tensor) -> float:
    x, y = generated.double().numpy(), reference.double().numpy()

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    n, m = len(x), len(y)
    own = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    real = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return own + real - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


def test_kid_equals_loops_over_all_pairs() -> None:
    generated, reference = clouds(40, 30)
    assert metrics.kid(generated, reference) == pytest.approx(kid_by_loops(generated, reference), rel=1e-4)


def test_kid_equals_torch_fidelity_on_one_subset_of_everything() -> None:
    generated, reference = clouds(200, 200)
    found = kid_features_to_metric(
        generated.double(), reference.double(), kid_subsets=1, kid_subset_size=200, verbose=False
    )
    assert metrics.kid(generated, reference) == pytest.approx(
        found["kernel_inception_distance_mean"], rel=1e-4
    )


def test_kid_keeps_its_precision_where_the_kernel_is_large() -> None:
    generated, reference = torch.rand(2, 3000, 32, generator=torch.Generator().manual_seed(0)) * 5
    found = kid_features_to_metric(
        generated.double(), reference.double(), kid_subsets=1, kid_subset_size=3000, verbose=False
    )
    exact = found["kernel_inception_distance_mean"]
    assert metrics.kid(generated, reference) == pytest.approx(exact, abs=2e-8 * (6.25 + 1) ** 3)


def test_kid_is_unbiased_on_equal_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    values = [metrics.kid(*torch.randn(2, 60, 4, generator=generator)) for _ in range(100)]
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 4 * np.std(values) / 10


def manifold_by_loops(generated: Tensor, reference: Tensor, near: int, wide: int) -> tuple[float, ...]:
    x, y = generated.double().numpy(), reference.double().numpy()

    def radius(points: np.ndarray, i: int, k: int) -> float:
        return sorted(np.linalg.norm(points[i] - points[j]) for j in range(len(points)) if j != i)[k - 1]

    def within(a: np.ndarray, b: np.ndarray, r: float) -> bool:
        return bool(np.linalg.norm(a - b) <= r)

    own = [radius(x, i, near) for i in range(len(x))]
    real = [radius(y, i, near) for i in range(len(y))]
    broad = [radius(y, i, wide) for i in range(len(y))]
    precision = np.mean([any(within(a, b, r) for b, r in zip(y, real, strict=True)) for a in x])
    recall = np.mean([any(within(b, a, r) for a, r in zip(x, own, strict=True)) for b in y])
    density = sum(within(a, b, r) for a in x for b, r in zip(y, broad, strict=True)) / (wide * len(x))
    coverage = np.mean([any(within(a, b, r) for a in x) for b, r in zip(y, broad, strict=True)])
    return float(precision), float(recall), float(density), float(coverage)


@pytest.mark.parametrize(("near", "wide", "sizes"), [(3, 5, (60, 50)), (1, 1, (30, 45)), (4, 2, (45, 45))])
def test_manifold_metrics_equal_loops(near: int, wide: int, sizes: tuple[int, int]) -> None:
    generated, reference = clouds(*sizes, width=3, seed=near)
    precision, recall, density, coverage = manifold_by_loops(generated, reference, near, wide)
    assert metrics.precision_recall(generated, reference, near) == pytest.approx((precision, recall))
    assert metrics.density_coverage(generated, reference, wide) == pytest.approx((density, coverage))
    assert precision > 0
    assert 0 < recall < 1


def test_precision_and_recall_equal_torch_fidelity() -> None:
    generated, reference = clouds(700, 650)
    found = prc_features_to_metric(generated, reference, save_cpu_ram=True, verbose=False)
    assert metrics.precision_recall(generated, reference) == pytest.approx(
        (found["precision"], found["recall"])
    )


def test_blocks_do_not_change_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    generated, reference = clouds(90, 70, width=4)
    whole = (metrics.precision_recall(generated, reference), metrics.density_coverage(generated, reference))
    kernel = metrics.kid(generated, reference)
    monkeypatch.setattr(fidelity, "_BLOCK", 17)
    assert (
        metrics.precision_recall(generated, reference),
        metrics.density_coverage(generated, reference),
    ) == whole
    assert metrics.kid(generated, reference) == pytest.approx(kernel, rel=1e-4)


def test_equal_sets_have_full_precision_recall_and_coverage() -> None:
    points, _ = clouds(200)
    assert metrics.precision_recall(points, points) == (1.0, 1.0)
    assert metrics.density_coverage(points, points)[1] == 1.0


def test_a_dropped_cluster_costs_recall_and_coverage_but_no_precision() -> None:
    points = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    points[200:] += 100
    assert metrics.precision_recall(points[:200], points) == (1.0, 0.5)
    assert metrics.density_coverage(points[:200], points)[1] == 0.5


@settings(max_examples=25)
@given(st.integers(1, 6), st.integers(1025, 3000), st.booleans())
def test_smallest_values_equal_sorting(count: int, width: int, ties: bool) -> None:
    rows = torch.rand(3, width, generator=torch.Generator().manual_seed(width))
    rows = (rows * 9).round() if ties else rows
    assert torch.equal(fidelity._smallest(rows, count), rows.sort(dim=1).values[:, :count])


def test_histogram_divergence_by_hand() -> None:
    counts, reference = torch.tensor([3.0, 1.0]), torch.tensor([10, 10])
    assert metrics.histogram_kl(counts, reference) == pytest.approx(
        0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    )
    assert metrics.histogram_kl(reference, reference) == 0
    collapsed = torch.tensor([0, 7, 0, 0, 0, 0, 0, 0, 0, 0])
    assert metrics.histogram_kl(collapsed, torch.ones(10)) == pytest.approx(math.log(10))
    assert metrics.histogram_kl(torch.ones(2), torch.tensor([1, 0])) == math.inf


# --- evaluate


def test_the_floor_separates_real_images_from_a_bad_generator(data: ImageData, gan: gp.GAN) -> None:
    floor = metrics.floor(data)
    extractor = metrics.load_extractor(data, "cpu")
    both = [fidelity._reference(split, extractor).features for split in (data.validation, data.test)]
    assert [len(features) for features in both] == [10_000, 10_000]
    assert floor == pytest.approx(fid_by_symmetric_eigenvalues(*both), rel=1e-5)
    report = metrics.evaluate(gan.generator, data.validation, samples=200, metrics=("fid", "histogram"))
    assert report.digit_fid == report.fid > 20 * floor
    assert report.digit_fid_floor == report.fid_floor == floor
    assert report.histogram_kl > 0.5
    assert report.extractor == extractor.label
    assert (report.samples, report.reference_samples, report.kid) == (200, 10_000, None)


def test_report_agrees_with_the_functions_on_features(data: ImageData, part: Split, gan: gp.GAN) -> None:
    images = data.test.float_images(0, 80)
    report = metrics.evaluate_images(images, part, gan.discriminator, loss="hinge")
    extractor = metrics.load_extractor(data, "cpu")
    generated = metrics.extract_features(images, extractor)
    reference = metrics.extract_features(part.float_images(), extractor)
    assert report.fid == pytest.approx(metrics.fid(generated, reference), rel=1e-6)
    assert report.kid == pytest.approx(metrics.kid(generated, reference), rel=1e-4)
    assert (report.precision, report.recall) == metrics.precision_recall(generated, reference)
    assert (report.density, report.coverage) == metrics.density_coverage(generated, reference)
    classes = torch.bincount(extractor(images)[1], minlength=10)
    assert report.class_histogram == tuple((classes.double() / 80).tolist())
    assert report.histogram_kl == metrics.histogram_kl(classes, torch.bincount(part.labels, minlength=10))
    discriminator = copy.deepcopy(gan.discriminator).eval()
    with torch.no_grad():
        real, fake = discriminator(part.float_images()), discriminator(images)
    assert report.real_loss == pytest.approx(torch.relu(1 - real).mean().item(), rel=1e-5)
    assert report.fake_loss == pytest.approx(torch.relu(1 + fake).mean().item(), rel=1e-5)
    assert report.real_accuracy == pytest.approx((real > 0).float().mean().item())
    assert report.fake_accuracy == pytest.approx((fake < 0).float().mean().item())
    assert report.loss == "hinge"
    assert report.fid_floor is None  # this split was made by hand and has no siblings
    row = json.loads(json.dumps(report.as_dict()))
    assert row["class_histogram"] == list(report.class_histogram)


def test_evaluate_is_evaluate_images_of_samples(part: Split, gan: gp.GAN) -> None:
    first = metrics.evaluate(gan.generator, part, samples=50, seed=3)
    again = metrics.evaluate(gan.generator, part, samples=50, seed=3)
    images = gp.sample(gan.generator, 50, seed=3)
    assert first == again == metrics.evaluate_images(images, part, seed=3)
    assert metrics.evaluate(gan.generator, part, samples=50, seed=4).fid != first.fid


def test_only_what_was_asked_for_is_computed(part: Split, gan: gp.GAN) -> None:
    report = metrics.evaluate(
        gan.generator, part, samples=20, discriminator=gan.discriminator, metrics=("fid",)
    )
    row = report.as_dict()
    assert row["fid"] is not None
    assert all(row[name] is None for name in ("kid", "precision", "density", "histogram_kl", "real_loss"))


def test_the_sign_of_a_wasserstein_critic_is_no_accuracy(part: Split, gan: gp.GAN) -> None:
    report = metrics.evaluate(
        gan.generator, part, 20, discriminator=gan.discriminator, loss="wasserstein", metrics="discriminator"
    )
    assert report.real_loss is not None
    assert report.real_accuracy is report.fake_accuracy is None


def test_a_callers_autocast_and_threads_of_randomness_do_not_matter(part: Split, gan: gp.GAN) -> None:
    plain = metrics.evaluate(gan.generator, part, samples=40)
    torch.manual_seed(99)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert metrics.evaluate(gan.generator, part, samples=40) == plain


class Restless(nn.Module):
    """A generator with everything that careless evaluation would disturb."""

    latent_dim = 5

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.drop = nn.Linear(5, 784), nn.BatchNorm1d(784), nn.Dropout(0.5)
        self.drop.eval()

    def forward(self, z: Tensor) -> Tensor:
        values = self.drop(self.norm(self.linear(z + torch.randn_like(z))))
        return values.tanh().view(-1, 1, 28, 28)


def test_evaluation_changes_no_state(part: Split) -> None:
    generator = Restless()
    discriminator = gp.dcgan(width=4, norm="spectral", device="cpu").discriminator.train()
    frozen = generator.linear.bias.requires_grad_(False)
    generator(torch.randn(8, 5)).sum().backward()
    networks = (generator, discriminator)
    before = [copy.deepcopy(network.state_dict()) for network in networks]
    modes = [[module.training for module in network.modules()] for network in networks]
    gradient = generator.linear.weight.grad.clone()
    random, numpy_random = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    images = part.images.clone()
    metrics.evaluate(generator, part, samples=30, discriminator=discriminator)
    for network, state, mode in zip(networks, before, modes, strict=True):
        assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())
        assert [module.training for module in network.modules()] == mode
    assert torch.equal(generator.linear.weight.grad, gradient)
    assert not frozen.requires_grad
    assert generator.linear.weight.requires_grad
    assert torch.equal(torch.get_rng_state(), random)
    assert np.array_equal(np.random.get_state()[1], numpy_random)  # noqa: NPY002
    assert torch.equal(part.images, images)
    assert torch.is_grad_enabled()


def test_references_are_kept_by_content(part: Split, data: ImageData) -> None:
    extractor = metrics.load_extractor(data, "cpu")
    first = fidelity._reference(part, extractor)
    assert fidelity._reference(part, extractor) is first
    other = Split("validation", part.images.flip(0)[:40], part.labels[:40], "mnist")
    assert fidelity._reference(other, extractor) is not first
    for start in range(1, 12):
        piece = Split(
            "test", data.test.images[start : start + 20], data.test.labels[start : start + 20], "mnist"
        )
        fidelity._reference(piece, extractor)
    assert len(fidelity._references) <= fidelity._CACHED_REFERENCES


def test_padded_mnist_is_read_by_the_same_extractor(data: ImageData) -> None:
    extractor = metrics.load_extractor(data, "cpu")
    images = data.test.float_images(0, 10)
    padded = nn.functional.pad(images, (2, 2, 2, 2), value=-1.0)
    assert torch.allclose(extractor(images)[0], extractor(padded)[0], atol=1e-5)


def test_a_lost_mask_is_refused(part: Split, gan: gp.GAN) -> None:
    weights = masks.prunable_weights(gan.generator)
    mask = masks.Mask({name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in weights.items()})
    with pytest.raises(masks.MaskError, match="non-zero weights under its mask"):
        metrics.evaluate(gan.generator, part, samples=10, mask=mask)
    gan.generator.mask = mask
    with pytest.raises(masks.MaskError, match="non-zero weights under its mask"):
        metrics.evaluate(gan.generator, part, samples=10)


def test_bad_arguments_are_named(part: Split, gan: gp.GAN) -> None:
    for samples in (1, 2.5, True):
        with pytest.raises(ValueError, match="samples must be an integer of at least 2"):
            metrics.evaluate(gan.generator, part, samples=samples)
    with pytest.raises(ValueError, match='metrics must be "all" or some of'):
        metrics.evaluate(gan.generator, part, metrics="inception")
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1, got 0"):
        metrics.evaluate(gan.generator, part, samples=20, batch_size=0)
    with pytest.raises(ValueError, match="loss must be one of"):
        metrics.evaluate(gan.generator, part, loss="square")
    with pytest.raises(ValueError, match=r"images must have shape \(N >= 2, 1, 28, 28\)"):
        metrics.evaluate_images(torch.zeros(5, 3, 28, 28), part)
    images = torch.zeros(5, 1, 28, 28)
    images[2, 0, 3, 3] = math.nan
    with pytest.raises(ValueError, match="got 1 of 5 with NaN or infinity"):
        metrics.evaluate_images(images, part)
    with pytest.raises(ValueError, match="neighbours must be at least 1 and less than the number of rows"):
        metrics.evaluate(gan.generator, part, samples=5)


def test_bad_features_are_named() -> None:
    generated, reference = clouds()
    with pytest.raises(ValueError, match="matrices"):
        metrics.fid(generated, reference[:, :3])
    with pytest.raises(ValueError, match="generated must be finite"):
        metrics.kid(generated * math.inf, reference)
    with pytest.raises(ValueError, match="got 0 with 150 and 130 rows"):
        metrics.precision_recall(generated, reference, 0)
    with pytest.raises(ValueError, match="got 130 with 150 and 130 rows"):
        metrics.density_coverage(generated, reference, 130)
    with pytest.raises(ValueError, match="vectors of one length"):
        metrics.histogram_kl(torch.ones(3), torch.ones(2))
    with pytest.raises(ValueError, match="non-negative and not all zero"):
        metrics.histogram_kl(torch.zeros(2), torch.ones(2))
