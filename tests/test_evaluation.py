"""Evaluation agrees with the metrics on features and changes nothing."""

from __future__ import annotations

import copy
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from small_data import small_mnist, thin
from torch import Tensor, nn

import ganprune as gp
from ganprune import metrics
from ganprune.data.splits import ImageData, Split


@pytest.fixture(scope="module")
def data() -> ImageData:
    """The first 1,500 images of each split of MNIST."""
    return small_mnist(1_500)


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


def fid_by_symmetric_eigenvalues(generated: Tensor, reference: Tensor) -> float:
    """The same distance where features are constant, so that the covariance is singular and has no such root."""
    x, y = generated.double().numpy(), reference.double().numpy()
    s, r = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    values, vectors = np.linalg.eigh(s)
    half = vectors * np.sqrt(values.clip(0)) @ vectors.T
    root = np.sqrt(np.linalg.eigvalsh(half @ r @ half).clip(0)).sum()
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s + r) - 2 * root)


def test_the_floor_separates_real_images_from_a_bad_generator(data: ImageData, gan: gp.GAN) -> None:
    floor = metrics.floor(data)
    extractor = metrics.load_extractor(data, "cpu")
    both = [
        metrics.extract_features(split.float_images(), extractor) for split in (data.validation, data.test)
    ]
    assert [len(features) for features in both] == [1_500, 1_500]
    assert floor == pytest.approx(fid_by_symmetric_eigenvalues(*both), rel=1e-5)
    report = metrics.evaluate(gan.generator, data.validation, samples=200, metrics=("fid", "histogram"))
    assert report.digit_fid == report.fid > 20 * floor
    assert report.digit_fid_floor == report.fid_floor == floor
    assert report.histogram_kl > 0.5
    assert report.extractor == extractor.label
    assert (report.samples, report.reference_samples, report.kid) == (200, 1_500, None)


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
    network = metrics.load_classifier(metrics.digit_classifier_path(), "cpu")[0]
    seen = []
    network.stages.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    extractor = metrics.Extractor(network, "counted", "0123456789ab", {})

    def images_read(split: Split) -> int:
        seen.clear()
        metrics.evaluate_images(data.test.float_images(0, 10), split, metrics="fid", extractor=extractor)
        return sum(seen) - 10

    assert images_read(part) == 60
    assert images_read(dataclasses.replace(part, images=part.images.clone())) == 0
    assert images_read(dataclasses.replace(part, images=part.images.flip(0))) == 60
    for start in range(12):  # old references make room for new ones
        images_read(thin(dataclasses.replace(part, images=part.images.roll(start + 1, 0)), 20))
    assert images_read(part) == 60


def test_padded_mnist_is_read_by_the_same_extractor(data: ImageData) -> None:
    extractor = metrics.load_extractor(data, "cpu")
    images = data.test.float_images(0, 10)
    padded = nn.functional.pad(images, (2, 2, 2, 2), value=-1.0)
    assert torch.allclose(extractor(images)[0], extractor(padded)[0], atol=1e-5)


def test_images_of_another_size_are_resized(data: ImageData) -> None:
    images = nn.functional.interpolate(data.validation.images[:300].float(), (64, 64), mode="bilinear")
    larger = Split("validation", images.to(torch.uint8), data.validation.labels[:300], "mnist")
    extractor = metrics.load_extractor(larger, "cpu")
    assert float((extractor(larger.float_images())[1] == larger.labels).float().mean()) > 0.97


def test_a_gan_is_measured_with_its_discriminator_and_the_generator_that_is_named(
    part: Split, gan: gp.GAN
) -> None:
    with torch.no_grad():
        next(gan.generator_ema.parameters()).mul_(0.5)
    whole = metrics.evaluate(gan, part, samples=20)
    alone = metrics.evaluate(gan.generator_ema, part, samples=20, discriminator=gan.discriminator)
    assert whole == alone
    assert metrics.evaluate(gan, part, samples=20, network="generator").fid != whole.fid


def test_the_floor_belongs_to_the_split_that_is_given(data: ImageData, part: Split) -> None:
    thinned = thin(data.validation, 200)
    images = data.test.float_images(0, 50)
    report = metrics.evaluate_images(images, thinned, metrics="fid")
    extractor = metrics.load_extractor(data, "cpu")
    features = [metrics.extract_features(s.float_images(), extractor) for s in (thinned, data.test)]
    assert report.fid_floor == pytest.approx(metrics.fid(*features), rel=1e-6)
    assert report.fid_floor == metrics.floor(thinned) > 2 * metrics.floor(data.validation)
    assert report.fid_floor_note is None
    by_hand = metrics.evaluate_images(images, part, metrics="fid")
    assert by_hand.fid_floor is None
    assert "made by hand" in by_hand.fid_floor_note
    with pytest.raises(ValueError, match="has no floor"):
        metrics.floor(part)


class MapGenerator(nn.Module):
    """Takes latents as maps of one pixel."""

    latent_dim = 8

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(8, 4, 7), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 1, 4, 4), nn.Tanh()
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


def test_generators_that_take_maps_are_measured(part: Split) -> None:
    generator = MapGenerator()
    assert math.isfinite(metrics.evaluate(generator, part, samples=10).fid)
    assert metrics.macs(generator) == 8 * 4 * 49 + 49 * 4 * 16
    assert metrics.latency(generator, batch_size=3, repeats=1).batch_size == 3
    gp.recalibrate_batchnorm(generator, batches=2, batch_size=4)
    assert int(generator.layers[1].num_batches_tracked) == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_networks_of_another_precision_are_measured_as_they_are(dtype: torch.dtype, part: Split) -> None:
    gan = gp.mlp_gan(hidden=(16,), latent_dim=4, device="cpu")
    plain = metrics.evaluate(gan, part, samples=30)
    for network in gan.networks().values():
        network.to(dtype)
    other = metrics.evaluate(gan, part, samples=30)
    assert other.fid == pytest.approx(plain.fid, rel=0.05)
    assert other.real_loss == pytest.approx(plain.real_loss, rel=0.05)
    assert {p.dtype for network in gan.networks().values() for p in network.parameters()} == {dtype}


def test_global_defaults_change_no_result(part: Split, gan: gp.GAN) -> None:
    plain = metrics.evaluate(gan, part, samples=30)
    work = metrics.complexity(gan.generator, batch_size=None)
    torch.set_default_dtype(torch.float64)
    try:
        assert metrics.evaluate(gan, part, samples=30) == plain
        assert metrics.complexity(gan.generator, batch_size=None) == work
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert metrics.evaluate(gan, part, samples=30) == plain
        assert metrics.complexity(gan.generator, batch_size=None) == work


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_the_callers_precision_of_products_changes_no_result(
    precision: str, part: Split, gan: gp.GAN
) -> None:
    plain = metrics.evaluate(gan, part, samples=30)
    inside = []
    gan.generator_ema.register_forward_hook(lambda *_: inside.append(torch.get_float32_matmul_precision()))
    torch.set_float32_matmul_precision(precision)
    try:
        assert metrics.evaluate(gan, part, samples=30) == plain
        assert torch.get_float32_matmul_precision() == precision
        assert set(inside) == {"highest"}
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_callers_precision_of_single_operations_is_no_obstacle(part: Split, gan: gp.GAN) -> None:
    convolution = torch.backends.cudnn.conv
    before = convolution.fp32_precision
    plain = metrics.evaluate(gan, part, samples=30)
    convolution.fp32_precision = "ieee"  # from now on PyTorch refuses to read the older switch
    try:
        assert metrics.evaluate(gan, part, samples=30) == plain
        assert metrics.macs(gan.generator) == metrics.complexity(gan.generator, batch_size=None).macs
        assert convolution.fp32_precision == "ieee"
    finally:
        convolution.fp32_precision = before


def test_a_discriminator_with_untrained_spectral_norms_gives_sensible_losses(part: Split) -> None:
    norm = nn.utils.spectral_norm  # the older one, whose vectors are random until it is trained
    torch.manual_seed(0)
    discriminator = nn.Sequential(
        nn.Flatten(), *(norm(nn.Linear(784, 784)) for _ in range(3)), norm(nn.Linear(784, 1))
    )
    before = copy.deepcopy(discriminator.state_dict())
    report = metrics.evaluate_images(part.float_images(), part, discriminator, metrics="discriminator")
    assert report.real_loss < 30  # each layer stretches images at most by one, so the logits are below 28
    assert all(torch.equal(before[key], value) for key, value in discriminator.state_dict().items())


class Shuffled(nn.Module):
    """A discriminator whose first parameter is a table of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.arange(784).flip(0), requires_grad=False)
        self.last = nn.Linear(784, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.flatten(1)[:, self.table])


def test_integer_parameters_say_nothing_about_the_images_of_a_discriminator(part: Split) -> None:
    report = metrics.evaluate_images(part.float_images(), part, Shuffled(), metrics="discriminator")
    assert math.isfinite(report.real_loss)
