"""Evaluation refuses what it cannot measure, by name and before the work."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from small_data import small_mnist, thin
from torch import Tensor, nn

import ganprune as gp
from ganprune import metrics
from ganprune.data.splits import ImageData, Split

NEED = {
    "fid": 2,
    "kid": 2,
    "precision_recall": 4,
    "density_coverage": 6,
    "histogram": 1,
    "discriminator": 1,
}


@pytest.fixture(scope="module")
def data() -> ImageData:
    """The first 100 images of each split of MNIST."""
    return small_mnist(100)


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


def test_a_lost_mask_is_refused(part: Split, gan: gp.GAN) -> None:
    mask = gp.prune(copy.deepcopy(gan.generator), 0.5)
    with pytest.raises(gp.masks.MaskError, match="non-zero weights under its mask"):
        metrics.evaluate(gan.generator, part, samples=10, mask=mask)
    gp.prune(gan, 0.5)
    metrics.evaluate(gan, part, samples=10, metrics="fid")
    for network in (gan.generator, gan.generator_ema):
        before = copy.deepcopy(network.state_dict())
        with torch.no_grad():
            gp.prunable_weights(network)[next(iter(mask))].fill_(1.0)
        with pytest.raises(gp.masks.MaskError):
            metrics.evaluate(gan, part, samples=10, metrics="fid")
        network.load_state_dict(before)


class Painter(nn.Module):
    """A generator that paints what it is told to, whatever the latents."""

    latent_dim = 4

    def __init__(self, paint) -> None:
        super().__init__()
        self.paint, self.weight = paint, nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor) -> Tensor:
        return self.paint(torch.linspace(-1, 1, 784).view(1, 1, 28, 28).repeat(len(z), 1, 1, 1)) + self.weight


WRONG_IMAGES = [
    pytest.param(
        lambda x: ((x + 1) * 127.5).to(torch.uint8), TypeError, "floats in .* got torch.uint8", id="uint8"
    ),
    pytest.param(lambda x: (x + 1) * 127.5, ValueError, r"values from 0 to 255.*127\.5", id="0 to 255"),
    pytest.param(lambda x: (x + 1) / 2, ValueError, r"looks like \[0, 1\]", id="0 to 1"),
    pytest.param(lambda x: x * math.nan, ValueError, "must be finite, got", id="NaN"),
    pytest.param(lambda x: x / 0, ValueError, "must be finite, got", id="infinite"),
    pytest.param(lambda x: x * 3, ValueError, "values from -3 to 3", id="no tanh"),
    pytest.param(lambda x: x[:, :, :14], ValueError, r"must have shape \(N, 1, 28, 28\)", id="shape"),
    pytest.param(lambda x: x.numpy(), TypeError, "floats in .* got ndarray", id="array"),
]


@pytest.mark.parametrize(("paint", "error", "message"), WRONG_IMAGES)
def test_images_that_are_not_in_minus_one_to_one_are_refused_before_the_work(
    paint, error: type[Exception], message: str, part: Split
) -> None:
    right = torch.linspace(-1, 1, 784).view(1, 1, 28, 28).repeat(10, 1, 1, 1)
    unused = metrics.Extractor(nn.Identity(), "unused", "0" * 12, {})  # it would fail when it is called
    with pytest.raises(error, match=message):
        metrics.evaluate_images(paint(right), part, extractor=unused)
    painted = paint(right)
    if isinstance(painted, Tensor) and painted.is_floating_point():
        with pytest.raises(error, match=message):
            metrics.evaluate(Painter(paint), part, samples=10, extractor=unused)


def test_all_black_all_white_and_grey_images_are_images(part: Split) -> None:
    for level in (-1.0, 0.0, 1.0):
        metrics.evaluate_images(torch.full((6, 1, 28, 28), level), part)


@pytest.mark.parametrize(("metric", "least"), NEED.items())
def test_each_metric_says_how_many_images_it_needs(
    metric: str, least: int, part: Split, data: ImageData, gan: gp.GAN
) -> None:
    images = data.test.float_images(0, 8)
    options = {"metrics": metric, "discriminator": gan.discriminator}
    assert metrics.evaluate_images(images[:least], part, **options).samples == least
    assert metrics.evaluate(gan.generator, part, least, **options).samples == least
    with pytest.raises(ValueError, match=f"samples must be an integer of at least {least}"):
        metrics.evaluate(gan.generator, part, least - 1, **options)
    with pytest.raises(ValueError, match=f"images must have at least {least} images"):
        metrics.evaluate_images(images[: least - 1], part, **options)
    if least > 2:  # a split has two images at least
        with pytest.raises(ValueError, match=f"split must have at least {least} images for {metric}"):
            metrics.evaluate_images(images, thin(part, least - 1), **options)
    assert metrics.evaluate_images(images, thin(part, max(2, least)), **options).samples == 8


class Outputs(nn.Module):
    """A discriminator with a chosen last step."""

    def __init__(self, finish, *last: nn.Module) -> None:
        super().__init__()
        self.layers, self.finish = nn.Sequential(nn.Flatten(), nn.Linear(784, 1), *last), finish

    def forward(self, x: Tensor):
        return self.finish(self.layers(x))


def test_discriminators_that_give_no_logits_are_refused_with_the_remedy(part: Split, data: ImageData) -> None:
    images, options = data.test.float_images(0, 20), {"metrics": "discriminator"}
    with pytest.raises(
        TypeError, match=r"Outputs must give logits \(N,\) as one tensor, got tuple; gp.adapt"
    ):
        metrics.evaluate_images(images, part, Outputs(lambda x: (x, x)), **options)
    with pytest.raises(ValueError, match="last module is a Sigmoid.*leave the sigmoid out"):
        metrics.evaluate_images(images, part, Outputs(lambda x: x, nn.Sigmoid()), **options)
    with pytest.raises(ValueError, match=r"a logit for each of 60 images, got shape \(\)"):
        metrics.evaluate_images(images, part, Outputs(lambda x: x.mean()), **options)
    both = [
        metrics.evaluate_images(images, part, Outputs(f), **options) for f in (lambda x: x, torch.squeeze)
    ]
    assert all(report.real_loss is not None for report in both)


class TupleGenerator(Painter):
    """Gives its latents back beside its images."""

    def __init__(self) -> None:
        super().__init__(lambda x: x)

    def forward(self, z: Tensor):  # type: ignore[override]
        return super().forward(z), z


def test_a_generator_that_gives_a_tuple_is_refused(part: Split) -> None:
    with pytest.raises((TypeError, ValueError), match="got tuple"):
        metrics.evaluate(TupleGenerator(), part, samples=10)


def test_bad_arguments_are_named(part: Split, gan: gp.GAN) -> None:
    for samples in (1, 2.5, True):
        with pytest.raises(ValueError, match="samples must be an integer of at least"):
            metrics.evaluate(gan.generator, part, samples=samples)
    with pytest.raises(ValueError, match='metrics must be "all" or some of'):
        metrics.evaluate(gan.generator, part, metrics="inception")
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1, got 0"):
        metrics.evaluate(gan.generator, part, samples=20, batch_size=0)
    with pytest.raises(ValueError, match="loss must be one of"):
        metrics.evaluate(gan.generator, part, loss="square")
    with pytest.raises(ValueError, match="network must be one of"):
        metrics.evaluate(gan, part, network="student")
    with pytest.raises(TypeError, match="split must be a Split or an ImageData, got Tensor"):
        metrics.evaluate(gan, part.images)
