"""The one training loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ganprune.core.errors import GanpruneError
from ganprune.core.modes import frozen
from ganprune.core.progress import progress
from ganprune.core.random import step_seed
from ganprune.losses import get_loss, gradient_penalty, r1_penalty
from ganprune.masks.mask import Mask
from ganprune.networks.fast_convolutions import fast_convolutions
from ganprune.networks.gan import GAN
from ganprune.networks.sampling import latent_dim_of, sample_latents
from ganprune.training.config import TrainConfig
from ganprune.training.state import TrainState


class DivergenceError(GanpruneError, RuntimeError):
    """A loss became NaN or infinite; the message names the step and the loss."""


class BatchSource(Protocol):
    """What the loop draws real samples from; a ``Split`` is one."""

    def batch(self, batch_size: int, seed: int, step: int) -> Tensor:
        """Real samples as a pure function of (seed, step)."""
        ...


def train(
    state: TrainState,
    split: BatchSource,
    callbacks: Iterable[Callable[[TrainState], None]] = (),
    show_progress: bool = True,
) -> TrainState:
    """Trains the state's GAN in place until ``state.config.steps`` generator updates are done.

    Each step draws its batches and latents from (seed, step) alone, so a resumed run repeats an uninterrupted one bit
    for bit on the CPU.

    Args:
        state: where training starts; changed in place.
        split: the real samples, usually ``data.train``.
        callbacks: called with the state after each step, sorted by their attribute ``order`` where they have one; a
            method ``begin(state)``, where there is one, is called before the first step.
        show_progress: a progress bar on standard error.

    Returns:
        The same state.

    Raises:
        DivergenceError: if a loss is NaN or infinite.
    """
    gan, config = state.gan, state.config
    loss, latent_dim = get_loss(config.loss), latent_dim_of(gan.generator)
    ordered: Sequence[Callable] = sorted(callbacks, key=lambda callback: getattr(callback, "order", 0))
    separate = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in gan.discriminator.modules())
    for callback in ordered:
        if hasattr(callback, "begin"):
            callback.begin(state)
    gan.generator.train()
    gan.discriminator.train()
    with progress(config.steps, "training", state.step, show_progress) as bar:
        while state.step < config.steps:
            for optimizer in state.optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * config.learning_rate_factor(state.step)
            for critic_step in range(config.critic_steps):
                draw = step_seed(config.seed, state.step, f"critic {critic_step}")
                real = _layout(split.batch(config.batch_size, draw, 0), config)
                z = sample_latents(config.batch_size, latent_dim, draw, gan.device)
                last = critic_step == config.critic_steps - 1  # its fake batch serves the generator as well
                with _arithmetic(config, gan.generator, gan.discriminator):
                    with torch.set_grad_enabled(last):
                        fake = gan.generator(z)
                    real_logits, fake_logits = _logits(gan.discriminator, real, fake.detach(), separate)
                d_loss = loss.discriminator(real_logits.float(), fake_logits.float())
                total = d_loss
                if config.penalty == "gradient":
                    points = fake.detach().float()
                    total = total + config.penalty_weight * gradient_penalty(
                        gan.discriminator, real, points, draw
                    )
                elif config.penalty == "r1":
                    total = total + config.penalty_weight * r1_penalty(gan.discriminator, real)
                _update(state.optimizers["discriminator"], total)
                if config.clip is not None:
                    _clip_weights(gan.discriminator, config.clip)
            with frozen(gan.discriminator), _arithmetic(config, gan.discriminator):
                logits = gan.discriminator(fake)
            g_loss = loss.generator(logits.float())
            _update(state.optimizers["generator"], g_loss)
            _move_average(gan, min(config.ema_decay, (1 + state.step) / (10 + state.step)))
            state.pending.append(torch.stack([d_loss.detach(), g_loss.detach()]))
            state.step += 1
            if state.step % config.log_every == 0 or state.step == config.steps:
                _log(state)
                bar.set_postfix({k: f"{v:.3f}" for k, v in state.history[-1].items() if k.endswith("loss")})
            for callback in ordered:
                callback(state)
            bar.update()
    return state


def train_epoch(
    gan: GAN, split: Any, config: TrainConfig | None = None, masks: Mapping[str, Mask] | None = None
) -> TrainState:
    """Trains a GAN for as many steps as one pass over the split has batches; masks are kept.

    A thin wrapper over :func:`train`, for those who count in epochs.

    Args:
        gan: trained in place.
        split: real images, such as ``data.train``.
        config: its ``steps`` is replaced; None for the defaults.
        masks: kept throughout; None for ``gan.masks``.

    Returns:
        The state, with the losses in ``history``.
    """
    config = config or TrainConfig(steps=1)
    steps = max(1, len(split) // config.batch_size)
    return train(TrainState(gan, dataclasses.replace(config, steps=steps), masks), split)


def _arithmetic(config: TrainConfig, *networks: nn.Module) -> ExitStack:
    """How networks are computed: in bfloat16 if the config says so, and on the CPU with products where they do.

    One block per update: autocast's cache of cast weights must not outlive an optimiser step.
    """
    device, block = next(networks[0].parameters()).device.type, ExitStack()
    if device == "cpu":
        for network in networks:
            block.enter_context(fast_convolutions(network))
    if config.precision == "bfloat16":
        block.enter_context(torch.autocast(device, torch.bfloat16))
    return block


def _layout(images: Tensor, config: TrainConfig) -> Tensor:
    return (
        images.contiguous(memory_format=torch.channels_last)
        if config.channels_last and images.ndim == 4
        else images
    )


def _logits(discriminator: nn.Module, real: Tensor, fake: Tensor, separate: bool) -> tuple[Tensor, Tensor]:
    """Both in one pass where samples do not see each other; batch norm wants them apart (Radford et al. 2016)."""
    if separate:
        return discriminator(real), discriminator(fake)
    both = discriminator(torch.cat([real, fake.to(real.dtype)]))
    return both[: len(real)], both[len(real) :]


def _update(optimizer: Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


@torch.no_grad()
def _clip_weights(network: nn.Module, bound: float) -> None:
    for parameter in network.parameters():
        parameter.clamp_(-bound, bound)


@torch.no_grad()
def _move_average(gan: GAN, decay: float) -> None:
    """EMA of the parameters; buffers (batch-norm statistics) are copied."""
    torch._foreach_lerp_(list(gan.generator_ema.parameters()), list(gan.generator.parameters()), 1 - decay)
    for kept, current in zip(gan.generator_ema.buffers(), gan.generator.buffers(), strict=True):
        kept.copy_(current)


def _log(state: TrainState) -> None:
    """Moves pending losses into one history row; the only place where the loop waits for the device."""
    losses = torch.stack(state.pending).double().cpu()
    first_step = state.step - len(state.pending)
    state.pending = []
    for column, name in enumerate(("discriminator loss", "generator loss")):
        bad = (~losses[:, column].isfinite()).nonzero()
        if len(bad):
            row = int(bad[0])
            raise DivergenceError(
                f"training diverged at step {first_step + row + 1}: the {name} is {losses[row, column].item()}; "
                "lower learning_rate, or use spectral norm or a penalty"
            )
    d_loss, g_loss = losses.mean(0).tolist()
    state.history.append({"step": state.step, "discriminator_loss": d_loss, "generator_loss": g_loss})
