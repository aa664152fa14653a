"""Networks: frozen specs that say what a network is, the modules they build, and the GAN that holds a pair."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ganprune.checks import check_choice, check_integer, check_number
from ganprune.convolutions import fast_convolutions
from ganprune.runtime import as_device, eval_mode, seeded, step_seed

NORMS = ("spectral", "batch", "none")
LATENT_STREAM = "latent"
SPECTRAL_GAIN = 20.0
"""Gain on the logits of :func:`dcgan` under spectral norm; see :class:`DCGANDiscriminatorSpec`."""


class Spec(Protocol):
    """What describes a network completely, weights apart: a frozen dataclass of plain values with ``build()``."""

    def build(self) -> nn.Module:
        """A freshly initialised network with this spec as its attribute ``spec``."""
        ...


MODEL_SPECS: dict[str, type] = {}


def register_model_spec(spec_class: type) -> type:
    """Class decorator: makes a spec known to checkpoints under its class name."""
    MODEL_SPECS[spec_class.__name__] = spec_class
    return spec_class


def spec_to_dict(spec: Any) -> dict[str, Any]:
    """A spec as plain values, with its class name under "model"."""
    return {"model": type(spec).__name__, **dataclasses.asdict(spec)}


def spec_from_dict(values: dict[str, Any]) -> Any:
    """The inverse of :func:`spec_to_dict`.

    Raises:
        ValueError: if the model is not registered or the values do not fit it.
    """
    fields = dict(values)
    name = fields.pop("model", None)
    check_choice("model", name, sorted(MODEL_SPECS))
    try:
        return MODEL_SPECS[name](**{key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()})
    except TypeError as error:
        raise ValueError(f"the spec {values!r} does not fit {name}: {error}") from error


def _strides(image_shape: tuple[int, int, int], argument: str) -> list[tuple[int, int, int]]:
    """(kernel, stride, padding) from 4 × 4 maps up to the image, three doublings."""
    side = image_shape[-1]
    if len(image_shape) != 3 or image_shape[1] != side or side not in (28, 32):
        raise ValueError(f"{argument} must be (channels, 28, 28) or (channels, 32, 32), got {image_shape!r}")
    first = (3, 2, 1) if side == 28 else (4, 2, 1)  # 4 → 7 or 4 → 8
    return [first, (4, 2, 1), (4, 2, 1)]


def _check_positive(name: str, values: tuple[int, ...], length: int | None = None) -> None:
    if (length is not None and len(values) != length) or any(int(v) != v or v < 1 for v in values):
        wanted = f"{length} positive integers" if length else "positive integers"
        raise ValueError(f"{name} must hold {wanted}, got {values!r}")


def _check_norm(norm: str) -> None:
    check_choice("norm", norm, NORMS)


@register_model_spec
@dataclass(frozen=True)
class DCGANGeneratorSpec:
    """DCGAN generator (Radford et al. 2016): latent → 4 × 4 maps → three doublings → image.

    Attributes:
        latent_dim: length of the latent vector.
        channels: channels of the 4 × 4 maps and after the first and second doubling.
        image_shape: (C, 28, 28) or (C, 32, 32).
    """

    latent_dim: int = 64
    channels: tuple[int, ...] = (128, 64, 32)
    image_shape: tuple[int, int, int] = (1, 28, 28)

    def __post_init__(self) -> None:
        _check_positive("latent_dim", (self.latent_dim,))
        _check_positive("channels", self.channels, 3)
        _strides(self.image_shape, "image_shape")

    def build(self) -> DCGANGenerator:
        """The freshly initialised network."""
        return DCGANGenerator(self)


@register_model_spec
@dataclass(frozen=True)
class DCGANDiscriminatorSpec:
    """DCGAN discriminator: image → three halvings → 4 × 4 maps → one logit.

    Attributes:
        channels: channels after each halving.
        image_shape: (C, 28, 28) or (C, 32, 32).
        norm: "spectral" (Miyato et al. 2018), "batch" (not after the first layer) or "none".
        logit_gain: factor on the logits; the bound that spectral norm puts on the slope grows by it. The course's
            value was chosen by short pilot runs of one seed each, which is no evidence beyond them.
    """

    channels: tuple[int, ...] = (32, 64, 128)
    image_shape: tuple[int, int, int] = (1, 28, 28)
    norm: str = "spectral"
    logit_gain: float = 1.0

    def __post_init__(self) -> None:
        check_number("logit_gain", self.logit_gain, "(0, inf)")
        _check_positive("channels", self.channels, 3)
        _strides(self.image_shape, "image_shape")
        _check_norm(self.norm)

    def build(self) -> DCGANDiscriminator:
        """The freshly initialised network."""
        return DCGANDiscriminator(self)


@register_model_spec
@dataclass(frozen=True)
class MLPGeneratorSpec:
    """Fully connected generator.

    Attributes:
        latent_dim: length of the latent vector.
        hidden: widths of the hidden layers.
        output_shape: (C, H, W) for images in [-1, 1] (Tanh), or (d,) for points in the plane (no Tanh).
    """

    latent_dim: int = 64
    hidden: tuple[int, ...] = (256, 512)
    output_shape: tuple[int, ...] = (1, 28, 28)

    def __post_init__(self) -> None:
        _check_positive("latent_dim", (self.latent_dim,))
        _check_positive("hidden", self.hidden)
        _check_positive("output_shape", self.output_shape)

    def build(self) -> MLPGenerator:
        """The freshly initialised network."""
        return MLPGenerator(self)


@register_model_spec
@dataclass(frozen=True)
class MLPDiscriminatorSpec:
    """Fully connected discriminator.

    Attributes:
        hidden: widths of the hidden layers.
        input_shape: shape of one sample.
        norm: "spectral" or "none" (batch statistics leak between real and fake in so small a network).
    """

    hidden: tuple[int, ...] = (512, 256)
    input_shape: tuple[int, ...] = (1, 28, 28)
    norm: str = "none"

    def __post_init__(self) -> None:
        _check_positive("hidden", self.hidden)
        _check_positive("input_shape", self.input_shape)
        if self.norm not in ("spectral", "none"):
            raise ValueError(f"norm of an MLP discriminator must be spectral or none, got {self.norm!r}")

    def build(self) -> MLPDiscriminator:
        """The freshly initialised network."""
        return MLPDiscriminator(self)


def _check_latent(z: Tensor, latent_dim: int) -> None:
    if z.ndim != 2 or z.shape[1] != latent_dim:
        raise ValueError(f"z must have shape (N, {latent_dim}), got {tuple(z.shape)}")


class DCGANGenerator(nn.Module):
    """See :class:`DCGANGeneratorSpec`. Maps z (N, latent_dim) to images (N, C, H, W) in [-1, 1]."""

    def __init__(self, spec: DCGANGeneratorSpec) -> None:
        super().__init__()
        self.spec = spec
        first, second, third = spec.channels
        up = _strides(spec.image_shape, "image_shape")
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        pairs = [(spec.latent_dim, first, (4, 1, 0)), (first, second, up[0]), (second, third, up[1])]
        for number, (inputs, outputs, (kernel, stride, padding)) in enumerate(pairs, 1):
            layers[f"deconv{number}"] = nn.ConvTranspose2d(
                inputs, outputs, kernel, stride, padding, bias=False
            )
            layers[f"norm{number}"] = nn.BatchNorm2d(outputs)
            layers[f"relu{number}"] = nn.ReLU(inplace=True)
        layers["deconv4"] = nn.ConvTranspose2d(third, spec.image_shape[0], *up[2])
        layers["tanh"] = nn.Tanh()
        self.layers = nn.Sequential(layers)
        _initialise_dcgan(self)

    def forward(self, z: Tensor) -> Tensor:
        """Images (N, C, H, W) in [-1, 1] for latents z (N, latent_dim)."""
        _check_latent(z, self.spec.latent_dim)
        return self.layers(z[:, :, None, None])


class DCGANDiscriminator(nn.Module):
    """See :class:`DCGANDiscriminatorSpec`. Maps images (N, C, H, W) to logits (N,)."""

    def __init__(self, spec: DCGANDiscriminatorSpec) -> None:
        super().__init__()
        self.spec = spec
        down = list(reversed(_strides(spec.image_shape, "image_shape")))
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        inputs = spec.image_shape[0]
        for number, (outputs, (kernel, stride, padding)) in enumerate(
            zip(spec.channels, down, strict=True), 1
        ):
            normalised = spec.norm == "batch" and number > 1
            layers[f"conv{number}"] = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=not normalised)
            if normalised:
                layers[f"norm{number}"] = nn.BatchNorm2d(outputs)
            layers[f"lrelu{number}"] = nn.LeakyReLU(0.2, inplace=True)
            inputs = outputs
        layers["conv4"] = nn.Conv2d(inputs, 1, 4)
        self.layers = nn.Sequential(layers)
        _initialise_dcgan(self)
        if spec.norm == "spectral":
            _spectral_norm_all(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N,): large for real, small for fake."""
        return self.spec.logit_gain * self.layers(images).flatten()


class MLPGenerator(nn.Module):
    """See :class:`MLPGeneratorSpec`. Maps z (N, latent_dim) to ``(N, *output_shape)``."""

    def __init__(self, spec: MLPGeneratorSpec) -> None:
        super().__init__()
        self.spec = spec
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        inputs = spec.latent_dim
        for number, outputs in enumerate(spec.hidden, 1):
            layers[f"linear{number}"] = nn.Linear(inputs, outputs)
            layers[f"lrelu{number}"] = nn.LeakyReLU(0.2, inplace=True)
            inputs = outputs
        layers["output"] = nn.Linear(inputs, math.prod(spec.output_shape))
        if len(spec.output_shape) == 3:
            layers["tanh"] = nn.Tanh()
        self.layers = nn.Sequential(layers)

    def forward(self, z: Tensor) -> Tensor:
        """Samples ``(N, *output_shape)`` for latents z (N, latent_dim)."""
        _check_latent(z, self.spec.latent_dim)
        return self.layers(z).unflatten(1, self.spec.output_shape)


class MLPDiscriminator(nn.Module):
    """See :class:`MLPDiscriminatorSpec`. Maps samples ``(N, *input_shape)`` to logits (N,)."""

    def __init__(self, spec: MLPDiscriminatorSpec) -> None:
        super().__init__()
        self.spec = spec
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        inputs = math.prod(spec.input_shape)
        for number, outputs in enumerate(spec.hidden, 1):
            layers[f"linear{number}"] = nn.Linear(inputs, outputs)
            layers[f"lrelu{number}"] = nn.LeakyReLU(0.2, inplace=True)
            inputs = outputs
        layers["output"] = nn.Linear(inputs, 1)
        self.layers = nn.Sequential(layers)
        if spec.norm == "spectral":
            _spectral_norm_all(self)

    def forward(self, samples: Tensor) -> Tensor:
        """Logits (N,): large for real, small for fake."""
        return self.layers(samples.flatten(1)).flatten()


def _initialise_dcgan(network: nn.Module) -> None:
    """Convolutions N(0, 0.02), batch-norm scales N(1, 0.02), all biases 0 (Radford et al. 2016)."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)


def _spectral_norm_all(network: nn.Module) -> None:
    for module in list(network.modules()):
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            spectral_norm(module)


@dataclass(frozen=True)
class GANSpec:
    """The specs of both networks of a GAN."""

    generator: Any
    discriminator: Any


class GAN:
    """A generator, a discriminator, and the exponential moving average (EMA) of the generator.

    Attributes:
        generator: maps latents (N, latent_dim) to samples.
        discriminator: maps samples to logits (N,).
        generator_ema: a frozen copy of the generator in evaluation mode; training moves it slowly after the generator.
        masks: the masks that came with a checkpoint, by network name; empty for a dense GAN.
        metadata: what a checkpoint says of its making.
    """

    def __init__(
        self, generator: nn.Module, discriminator: nn.Module, generator_ema: nn.Module | None = None
    ) -> None:
        self.generator = generator
        self.discriminator = discriminator
        self.generator_ema = generator_ema if generator_ema is not None else copy.deepcopy(generator)
        self.generator_ema.requires_grad_(False).eval()
        self.masks: dict[str, Any] = {}
        self.metadata: dict[str, Any] = {}

    @classmethod
    def from_spec(cls, spec: GANSpec, seed: int = 0, device: str | torch.device | None = None) -> GAN:
        """A freshly initialised GAN; the seed determines the weights, on every device alike."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(step_seed(seed, 0, "init"))
            generator, discriminator = spec.generator.build(), spec.discriminator.build()
        return cls(generator, discriminator).to(as_device(device))

    @property
    def spec(self) -> GANSpec:
        """The specs of the two networks."""
        return GANSpec(self.generator.spec, self.discriminator.spec)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.generator.parameters()).device

    def networks(self) -> dict[str, nn.Module]:
        """The three networks by name."""
        return {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "generator_ema": self.generator_ema,
        }

    def to(self, device: str | torch.device) -> GAN:
        """Moves all three networks in place; returns self."""
        for network in self.networks().values():
            network.to(device)
        return self

    def __repr__(self) -> str:
        counts = {
            name: sum(p.numel() for p in network.parameters()) for name, network in self.networks().items()
        }
        return (
            f"GAN(generator={type(self.generator).__name__} {counts['generator']:,} parameters, "
            f"discriminator={type(self.discriminator).__name__} {counts['discriminator']:,} parameters)"
        )


def dcgan(
    image_shape: tuple[int, int, int] = (1, 28, 28),
    width: int = 32,
    latent_dim: int = 64,
    norm: str = "spectral",
    seed: int = 0,
    device: str | torch.device | None = None,
) -> GAN:
    """A DCGAN whose channel counts are multiples of ``width``; under spectral norm the logits have a gain of 20.

    Args:
        image_shape: (C, 28, 28) or (C, 32, 32).
        width: channels nearest to the image, at least 1; doubled at each halving of the resolution.
        latent_dim: length of the latent vector.
        norm: of the discriminator: "spectral", "batch" or "none". The generator always uses batch norm.
        seed: determines the initial weights.
        device: None for the best device.
    """
    channels, height, side = image_shape
    gain = SPECTRAL_GAIN if norm == "spectral" else 1.0
    spec = GANSpec(
        DCGANGeneratorSpec(latent_dim, (4 * width, 2 * width, width), (channels, height, side)),
        DCGANDiscriminatorSpec((width, 2 * width, 4 * width), (channels, height, side), norm, gain),
    )
    return GAN.from_spec(spec, seed, device)


def mlp_gan(
    output_shape: tuple[int, ...] = (1, 28, 28),
    latent_dim: int = 64,
    hidden: tuple[int, ...] = (256, 512),
    norm: str = "none",
    seed: int = 0,
    device: str | torch.device | None = None,
) -> GAN:
    """A fully connected GAN for images, or for points of the plane with ``output_shape=(2,)``.

    Args:
        output_shape: shape of one sample.
        latent_dim: length of the latent vector.
        hidden: hidden widths of the generator; the discriminator uses them in reverse.
        norm: of the discriminator: "spectral" or "none".
        seed: determines the initial weights.
        device: None for the best device.
    """
    spec = GANSpec(
        MLPGeneratorSpec(latent_dim, tuple(hidden), tuple(output_shape)),
        MLPDiscriminatorSpec(tuple(reversed(hidden)), tuple(output_shape), norm),
    )
    return GAN.from_spec(spec, seed, device)


def latent_dim_of(generator: nn.Module) -> int:
    """Length of the latent vector of a generator: its spec's, or its own attribute ``latent_dim``.

    Raises:
        ValueError: if it has neither.
    """
    found = getattr(getattr(generator, "spec", None), "latent_dim", None) or getattr(
        generator, "latent_dim", None
    )
    if found is None:
        raise ValueError(
            f"generator {type(generator).__name__} must have an attribute latent_dim (or a spec that has one)"
        )
    return int(found)


def sample_latents(n: int, latent_dim: int, seed: int = 0, device: str | torch.device = "cpu") -> Tensor:
    """Standard normal latents, float32, shape (n, latent_dim); drawn on the CPU so that all devices agree."""
    check_integer("n", n, 1)
    return torch.randn(n, latent_dim, generator=seeded(step_seed(seed, 0, LATENT_STREAM))).to(device)


@torch.no_grad()
def sample(
    generator: nn.Module, n: int = 64, seed: int = 0, batch_size: int = 1_000, latents: Tensor | None = None
) -> Tensor:
    """Samples of a generator in evaluation mode; the generator is left as it was.

    Args:
        generator: any module that maps (N, latent_dim) to samples.
        n: number of samples (ignored when latents are given).
        seed: determines the latents.
        batch_size: samples made at a time.
        latents: use these instead, shape (n, latent_dim).

    Returns:
        float32, shape (n, C, H, W), on the generator's device.
    """
    device = next(generator.parameters()).device
    if latents is None:
        latents = sample_latents(n, latent_dim_of(generator), seed)
    with eval_mode(generator), fast_convolutions(generator):
        return torch.cat([generator(z.to(device)).float() for z in latents.split(batch_size)])
