"""The one training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ganprune.core.checks import check_integer
from ganprune.core.errors import GanpruneError
from ganprune.core.modes import frozen
from ganprune.core.progress import progress
from ganprune.core.random import keep_random_state, step_seed
from ganprune.losses import get_loss, gradient_penalty, r1_penalty
from ganprune.networks.fast_convolutions import fast_convolutions
from ganprune.networks.gan import GAN, built_here
from ganprune.networks.sampling import check_output, draw_inputs
from ganprune.training.callbacks import callbacks_of, in_order
from ganprune.training.config import TrainConfig
from ganprune.training.state import TrainState, wants_channels_last


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
    until: int | None = None,
    show_progress: bool = True,
) -> TrainState:
    """Trains the state's GAN in place until ``state.config.steps`` generator updates are done.

    The masks of ``state.gan.masks`` are kept from the first step to the last, and nothing of that stays behind. Each
    step draws its batches, its latents and the random numbers of its layers (dropout, noise) from (seed, step) alone,
    so a resumed run repeats an uninterrupted one bit for bit on the CPU; the global random state is as before
    afterwards.

    Args:
        state: where training starts; changed in place.
        split: the real samples, usually ``data.train``.
        callbacks: called with the state after each step, see :class:`~ganprune.training.callbacks.Callback`; plain
            functions of the state are callbacks too.
        until: stop after this many generator updates in all, if that is earlier; the learning rate still follows
            ``state.config.steps``.
        show_progress: a progress bar on standard error.

    Returns:
        The same state.

    Raises:
        DivergenceError: if a loss is NaN or infinite.
        MaskError: if a mask does not hold before the first step or after the last, see ``gan.masks.check``.
    """
    gan, config = state.gan, state.config
    last = config.steps if until is None else min(config.steps, check_integer("until", until, 0))
    ordered = in_order(callbacks)
    gan.generator.train()
    gan.discriminator.train()
    state.stop = False
    with (
        torch.inference_mode(
            False
        ),  # a caller without gradients, such as an evaluation, gets a trained network too
        torch.enable_grad(),
        gan.masks.held(state.optimizers),
        keep_random_state(gan.device),
        callbacks_of(ordered, state),
        progress(config.steps, "training", state.step, show_progress) as bar,
    ):
        while state.step < last and not state.stop:
            torch.manual_seed(step_seed(config.seed, state.step, "layers"))
            _step(state, split)
            if state.step % config.log_every == 0 or state.step == config.steps:
                row = _log(state)
                bar.set_postfix({k: f"{v:.3f}" for k, v in row.items() if k.endswith("loss")})
            for callback in ordered:
                callback(state)
            bar.update()
    return state


def _step(state: TrainState, split: BatchSource) -> None:
    """One generator update, after as many discriminator updates as the config says."""
    gan, config = state.gan, state.config
    loss = get_loss(config.loss)
    for optimizer in state.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * config.learning_rate_factor(state.step)
    for critic_step in range(config.critic_steps):
        draw = step_seed(config.seed, state.step, f"critic {critic_step}")
        real = _laid_out(split.batch(config.batch_size, draw, 0), gan.discriminator, config)
        inputs = draw_inputs(gan.generator, config.batch_size, draw)
        with _arithmetic(config, gan.generator, gan.discriminator):
            with torch.set_grad_enabled(
                critic_step == config.critic_steps - 1
            ):  # the last batch serves G as well
                fake = _laid_out(_images(gan.generator, inputs), gan.discriminator, config)
            on_real, on_fake = _logits(gan.discriminator, real, fake.detach())
        d_loss = loss.discriminator(on_real.float(), on_fake.float())
        update = state.step * config.critic_steps + critic_step  # of the discriminator
        penalty = (
            0.0 if update % config.penalty_every else _penalty(config, gan.discriminator, real, fake, draw)
        )
        _update(state.optimizers["discriminator"], d_loss + config.penalty_every * penalty)
        if config.clip is not None:
            _clip_weights(gan.discriminator, config.clip)
    with frozen(gan.discriminator), _arithmetic(config, gan.discriminator):
        logits = _judge(gan.discriminator, fake)
    g_loss = loss.generator(logits.float())
    _update(state.optimizers["generator"], g_loss)
    _move_average(gan, min(config.ema_decay, (1 + state.step) / (10 + state.step)))
    state.pending.append(torch.stack([d_loss.detach(), g_loss.detach()]))
    state.step += 1


def train_epoch(
    state: TrainState,
    split: Any,
    callbacks: Iterable[Callable[[TrainState], None]] = (),
    show_progress: bool = True,
) -> TrainState:
    """Trains for one more pass: as many steps as the split has batches. The next call goes on where this one ends.

    A thin wrapper over :func:`train`, for those who count in epochs. Each epoch draws batches of its own, because the
    state counts its steps.

    Args:
        state: changed in place; its ``config.steps`` is the length of the whole run, in generator updates.
        split: real samples, such as ``data.train``; its length is one epoch.
        callbacks: as for :func:`train`.
        show_progress: a progress bar on standard error.

    Returns:
        The same state, with the losses in ``history``.

    Raises:
        ValueError: if the run is complete already.
    """
    if state.step >= state.config.steps:
        raise ValueError(
            f"state has done all {state.config.steps} steps of its config: for n epochs make config.steps "
            "n * (len(split) // batch_size)"
        )
    epoch = max(1, len(split) // state.config.batch_size)
    return train(state, split, callbacks, state.step + epoch, show_progress)


def _arithmetic(config: TrainConfig, *networks: nn.Module) -> ExitStack:
    """How networks are computed: in bfloat16 if the config says so, and those built here with products on the CPU.

    One block per update: autocast's cache of cast weights must not outlive an optimiser step.
    """
    device, block = next(networks[0].parameters()).device.type, ExitStack()
    for network in networks:
        if device == "cpu" and built_here(network):
            block.enter_context(fast_convolutions(network))
    if config.precision == "bfloat16":
        block.enter_context(torch.autocast(device, torch.bfloat16))
    return block


def _laid_out(images: Tensor, discriminator: nn.Module, config: TrainConfig) -> Tensor:
    """Images in the memory layout that the discriminator works in."""
    if images.ndim != 4:
        return images
    channels_last = wants_channels_last(discriminator, config)
    return images.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _logits(discriminator: nn.Module, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of both, in one pass where samples are known not to see each other.

    Batch statistics of any kind want real and generated samples apart (Radford et al. 2016). Of the discriminators of
    this package we know whether they have any; others may say so by an attribute ``independent_samples = True``.
    """
    has_batch_norm = any(
        isinstance(part, nn.modules.batchnorm._BatchNorm) for part in discriminator.modules()
    )
    if getattr(discriminator, "independent_samples", built_here(discriminator) and not has_batch_norm):
        both = _judge(discriminator, torch.cat([real, fake.to(real.dtype)]))
        return both[: len(real)], both[len(real) :]
    return _judge(discriminator, real), _judge(discriminator, fake)


def _images(generator: nn.Module, inputs: tuple[Any, ...]) -> Tensor:
    return check_output(generator, generator(*inputs), "samples (N, ...)")


def _judge(discriminator: nn.Module, samples: Tensor) -> Tensor:
    return check_output(discriminator, discriminator(samples), "logits (N,)")


def _penalty(
    config: TrainConfig, discriminator: nn.Module, real: Tensor, fake: Tensor, seed: int
) -> Tensor | float:
    if config.penalty == "gradient":
        points = fake.detach().float()
        return config.penalty_weight * gradient_penalty(discriminator, real, points, seed)
    if config.penalty == "r1":
        return config.penalty_weight * r1_penalty(discriminator, real)
    return 0.0


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
    pairs = zip(gan.generator_ema.parameters(), gan.generator.parameters(), strict=True)
    moved = [pair for pair in pairs if pair[0].is_floating_point()]
    torch._foreach_lerp_([kept for kept, _ in moved], [current for _, current in moved], 1 - decay)
    for kept, current in zip(gan.generator_ema.buffers(), gan.generator.buffers(), strict=True):
        kept.copy_(current)


def _log(state: TrainState) -> dict[str, float]:
    """Moves pending losses into one history row; the only place where the loop waits for the device."""
    losses = torch.stack(state.pending).cpu().double()
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
    return state.history[-1]
