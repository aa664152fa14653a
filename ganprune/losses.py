"""Adversarial losses as pairs of functions of logits, penalties on the discriminator, and loss closures for scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, softplus

from ganprune.core.checks import check_choice, check_integer
from ganprune.core.modes import eval_mode, frozen
from ganprune.core.random import seeded, step_seed
from ganprune.data.splits import Split
from ganprune.networks.gan import GAN
from ganprune.networks.sampling import latent_dim_of, sample_latents

DEFAULT_LOSS = "hinge"
"""The loss that training, evaluation and loss closures take when none is named."""

LossFn = Callable[[nn.Module], Iterator[Tensor]]
"""A loss closure: called with the scored network, it yields one scalar loss per batch."""


@dataclass(frozen=True)
class Loss:
    """Both sides of an adversarial game, each a scalar to be minimised.

    Attributes:
        name: as in :data:`LOSSES`.
        discriminator: (real logits (N,), fake logits (M,)) → scalar.
        generator: fake logits (M,) → scalar.
        real: the part of the discriminator's loss on real logits, fake: the part on fake logits; they add up to it.
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
    """
    if real.shape != fake.shape:
        raise ValueError(
            f"real and fake must have one shape, got {tuple(real.shape)} and {tuple(fake.shape)}"
        )
    mix = torch.rand(len(real), generator=seeded(step_seed(seed, 0, "mix"))).to(real.device)
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
    frozen and in evaluation mode while the closure runs. The network passed to the closure is the one that is scored;
    it may be a copy of the GAN's generator.

    Args:
        gan: supplies the discriminator.
        batches: number of batches, at least 1.
        batch_size: latents per batch.
        loss: a name for :func:`get_loss`.
        seed: determines the latents.
    """
    chosen = get_loss(loss)
    check_integer("batches", batches, 1)

    def loss_fn(generator: nn.Module) -> Iterator[Tensor]:
        device = next(generator.parameters()).device
        with frozen(gan.discriminator), eval_mode(gan.discriminator):
            for number in range(batches):
                z = sample_latents(
                    batch_size, latent_dim_of(generator), step_seed(seed, number, "score"), device
                )
                yield chosen.generator(gan.discriminator(generator(z)))

    return loss_fn


def discriminator_loss(
    gan: GAN,
    split: Split,
    batches: int = 8,
    batch_size: int = 64,
    loss: str | Loss = DEFAULT_LOSS,
    seed: int = 0,
) -> LossFn:
    """A closure that yields the discriminator's loss, batch by batch; the counterpart of :func:`generator_loss`."""
    chosen = get_loss(loss)
    check_integer("batches", batches, 1)

    def loss_fn(discriminator: nn.Module) -> Iterator[Tensor]:
        device = next(discriminator.parameters()).device
        with eval_mode(gan.generator):
            for number in range(batches):
                z = sample_latents(
                    batch_size, latent_dim_of(gan.generator), step_seed(seed, number, "score"), device
                )
                with torch.no_grad():
                    fake = gan.generator(z)
                real = split.batch(batch_size, seed, number).to(device)
                yield chosen.discriminator(discriminator(real), discriminator(fake))

    return loss_fn
