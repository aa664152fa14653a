"""Adversarial losses as pairs of functions of logits, penalties on the discriminator, and loss closures for scores."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, softplus
from torch.utils._pytree import tree_map

from ganprune.core.checks import check_choice, check_integer
from ganprune.core.device import placement_of
from ganprune.core.modes import eval_mode, frozen
from ganprune.core.random import seeded, step_seed
from ganprune.data.splits import Split
from ganprune.masks.names import find_adapter, rewrap
from ganprune.masks.spectral import settled_spectral_norms
from ganprune.networks.gan import GAN
from ganprune.networks.sampling import check_output, draw_inputs

__all__ = [
    "DEFAULT_LOSS",
    "LOSSES",
    "Loss",
    "discriminator_loss",
    "generator_loss",
    "get_loss",
    "gradient_penalty",
    "r1_penalty",
]

DEFAULT_LOSS = "non-saturating"
"""The loss that training, evaluation and loss closures take when none is named."""

LossFn = Callable[[nn.Module], Iterator[Tensor]]
"""A loss closure: called with the scored network, it yields one scalar loss per batch."""


@dataclass(frozen=True)
class Loss:
    """Both sides of an adversarial game, each a scalar to be minimised.

    Attributes:
        name: as in :data:`LOSSES`.
        generator: fake logits (M,) → scalar.
        real: real logits (N,) → scalar, the first part of the discriminator's loss.
        fake: fake logits (M,) → scalar, its second part.
    """

    name: str
    real: Callable[[Tensor], Tensor]
    fake: Callable[[Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Loss of the discriminator: its real part plus its fake part."""
        return self.real(real_logits) + self.fake(fake_logits)


def _real_cross_entropy(logits: Tensor) -> Tensor:
    return softplus(-logits).mean()


def _fake_cross_entropy(logits: Tensor) -> Tensor:
    return softplus(logits).mean()


LOSSES = {
    "non-saturating": Loss(
        "non-saturating", _real_cross_entropy, _fake_cross_entropy, lambda fake: softplus(-fake).mean()
    ),
    "minimax": Loss("minimax", _real_cross_entropy, _fake_cross_entropy, lambda fake: -softplus(fake).mean()),
    "hinge": Loss(
        "hinge",
        lambda real: relu(1 - real).mean(),
        lambda fake: relu(1 + fake).mean(),
        lambda fake: -fake.mean(),
    ),
    "wasserstein": Loss(
        "wasserstein", lambda real: -real.mean(), lambda fake: fake.mean(), lambda fake: -fake.mean()
    ),
}


def get_loss(name: str | Loss) -> Loss:
    """The loss of that name.

    "non-saturating" and "minimax" are from Goodfellow et al. (2014): the discriminator minimises
    −E log D(x) − E log(1 − D(G(z))) with D = sigmoid(logit); the generator minimises −E log D(G(z)) or
    E log(1 − D(G(z))). "hinge" is from Lim & Ye (2017) and Miyato et al. (2018), "wasserstein" from Arjovsky et al.
    (2017), which needs weight clipping or :func:`gradient_penalty`.

    Raises:
        ValueError: if there is no such loss.
    """
    if isinstance(name, Loss):
        return name
    check_choice("loss", name, LOSSES)
    return LOSSES[name]


def gradient_penalty(discriminator: nn.Module, real: Tensor, fake: Tensor, seed: int = 0) -> Tensor:
    """E (‖∇D(x̂)‖₂ − 1)² on random points x̂ between real and fake (Gulrajani et al. 2017, equation 3).

    The norm is over the whole flattened sample. Multiply by λ = 10 as in the paper. Run it in float32.

    Args:
        discriminator: without batch norm, which would mix the samples of a batch.
        real: (N, ...) samples.
        fake: (N, ...) samples; treated as constants.
        seed: of the interpolation points.

    Raises:
        ValueError: if the shapes differ.
    """
    if real.shape != fake.shape:
        raise ValueError(
            f"real and fake must have one shape, got {tuple(real.shape)} and {tuple(fake.shape)}"
        )
    random = seeded(step_seed(seed, 0, "mix"))
    mix = torch.rand(len(real), generator=random, dtype=torch.float32, device="cpu").to(real.device)
    mix = mix.view(-1, *[1] * (real.ndim - 1))
    points = (mix * real.detach() + (1 - mix) * fake.detach()).requires_grad_(True)
    return (_input_gradient(discriminator, points).norm(2, dim=1) - 1).square().mean()


def r1_penalty(discriminator: nn.Module, real: Tensor) -> Tensor:
    """E ‖∇D(x)‖² on real samples (Mescheder et al. 2018, equation 9); multiply by γ / 2."""
    points = real.detach().requires_grad_(True)
    return _input_gradient(discriminator, points).square().sum(1).mean()


def _input_gradient(discriminator: nn.Module, points: Tensor) -> Tensor:
    logits = discriminator(points)
    (gradient,) = torch.autograd.grad(logits.sum(), points, create_graph=True)
    return gradient.flatten(1)


def generator_loss(
    gan: GAN, batches: int = 8, batch_size: int = 64, loss: str | Loss = DEFAULT_LOSS, seed: int = 0
) -> LossFn:
    """A closure that yields the generator's loss, batch by batch, through the GAN's discriminator.

    Scores by gradients take it: ``score(gan.generator, "taylor", loss_fn=generator_loss(gan))``. The discriminator is
    frozen and in evaluation mode while the closure runs, and its older spectral norms have vectors that fit their
    weights. The network passed to the closure is the one that is scored; it may be a copy of the GAN's generator.

    Args:
        gan: supplies the discriminator, which must give logits: no sigmoid at its end.
        batches: number of batches, at least 1.
        batch_size: latents per batch, at least 1.
        loss: a name for :func:`get_loss`.
        seed: determines the latents.

    Raises:
        TypeError: by the closure, if one of the networks returns something else than a tensor.
    """
    chosen = get_loss(loss)
    batches, batch_size = check_integer("batches", batches, 1), check_integer("batch_size", batch_size, 1)

    def loss_fn(network: nn.Module) -> Iterator[Tensor]:
        judge = gan.discriminator
        if find_adapter(network) is None:  # the inside of an adapter, as a channel's importance has it
            network = rewrap(gan.generator, network)
        with frozen(judge), eval_mode(judge), settled_spectral_norms(judge):
            for number in range(batches):
                fake = _samples(network, _inputs(network, network, batch_size, seed, number))
                logits = _logits(judge, fake)
                if number == 0:
                    _warn_of_sigmoid(judge, logits, chosen)
                yield chosen.generator(logits)

    return loss_fn


def discriminator_loss(
    gan: GAN,
    split: Split,
    batches: int = 8,
    batch_size: int = 64,
    loss: str | Loss = DEFAULT_LOSS,
    seed: int = 0,
) -> LossFn:
    """A closure that yields the discriminator's loss, batch by batch; the counterpart of :func:`generator_loss`.

    Args:
        gan: supplies the generator, which is in evaluation mode and gets no gradient.
        split: supplies real samples.
        batches: number of batches, at least 1.
        batch_size: real samples per batch, and latents, at least 1.
        loss: a name for :func:`get_loss`.
        seed: determines the batches and the latents.

    Raises:
        TypeError: by the closure, if one of the networks returns something else than a tensor.
    """
    chosen = get_loss(loss)
    batches, batch_size = check_integer("batches", batches, 1), check_integer("batch_size", batch_size, 1)

    def loss_fn(network: nn.Module) -> Iterator[Tensor]:
        device, dtype = placement_of(network)
        with eval_mode(gan.generator):
            for number in range(batches):
                with torch.no_grad():
                    inputs = _inputs(gan.generator, network, batch_size, seed, number)
                    fake = _samples(gan.generator, inputs)
                real = split.batch(batch_size, seed, number).to(device, dtype)
                logits = _logits(network, real)
                if number == 0:
                    _warn_of_sigmoid(network, logits, chosen)
                yield chosen.discriminator(logits, _logits(network, fake))

    return loss_fn


def _inputs(
    generator: nn.Module, scored: nn.Module, batch_size: int, seed: int, number: int
) -> tuple[Any, ...]:
    """Inputs of one batch of a closure, on the scored network's device and in the generator's precision."""
    device = placement_of(scored)[0]
    drawn = draw_inputs(generator, batch_size, step_seed(seed, number, "score"))
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, drawn)


def _logits(discriminator: nn.Module, samples: Tensor) -> Tensor:
    """The discriminator's logits of samples, which need not come in the precision that it has."""
    logits = discriminator(samples.to(placement_of(discriminator)[1]))
    return check_output(discriminator, logits, "logits (N,)")


def _samples(generator: nn.Module, inputs: tuple[Any, ...]) -> Tensor:
    return check_output(generator, generator(*inputs), "samples (N, ...)")


def _warn_of_sigmoid(discriminator: nn.Module, logits: Tensor, loss: Loss) -> None:
    """Warns if a sigmoid made these numbers, perhaps before a change of shape or type."""
    node = logits.grad_fn
    while node is not None and node.name().startswith(_RESHAPING):
        node = node.next_functions[0][0]
    if node is not None and node.name().startswith("SigmoidBackward"):
        warnings.warn(
            f"discriminator {type(discriminator).__name__} ends in a sigmoid, but loss {loss.name!r} takes its "
            "output for logits; leave the sigmoid out of the discriminator",
            UserWarning,
            stacklevel=3,
        )


_RESHAPING = tuple(
    f"{name}Backward"
    for name in ("View", "UnsafeView", "Squeeze", "Unsqueeze", "Reshape", "ToCopy", "Select")
)
