"""The one training loop: what to do (TrainConfig), where it stands (TrainState), and :func:`train`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ganprune import checkpoints
from ganprune.checks import check_choice, check_integer, check_number
from ganprune.convolutions import fast_convolutions
from ganprune.losses import frozen, get_loss, gradient_penalty, r1_penalty
from ganprune.masks import Mask, MaskKeeper, apply_mask, keep_mask
from ganprune.models import GAN, latent_dim_of, sample_latents
from ganprune.runtime import PRECISIONS, as_device, best_precision, progress, step_seed

OPTIMIZERS = ("adam", "rmsprop", "sgd")
PENALTIES = (None, "gradient", "r1")


class DivergenceError(RuntimeError):
    """A loss became NaN or infinite; the message names the step and the loss."""


class BatchSource(Protocol):
    """What the loop draws real samples from; a ``Split`` is one."""

    def batch(self, batch_size: int, seed: int, step: int) -> Tensor:
        """Real samples as a pure function of (seed, step)."""
        ...


@dataclass(frozen=True)
class TrainConfig:
    """Everything that determines a training run, the starting weights and the data apart.

    Attributes:
        steps: generator updates in all; at least 1.
        batch_size: samples per update.
        loss: a name for :func:`ganprune.losses.get_loss`.
        learning_rate: of the generator, and of the discriminator unless the next field is given.
        discriminator_learning_rate: None for the same.
        betas: of Adam.
        weight_decay: L2 penalty of the optimiser.
        optimizer: "adam", "rmsprop" or "sgd".
        decay_from: the learning rate is held for this fraction of the steps, then falls linearly to zero; 1.0 never.
        critic_steps: discriminator updates per generator update.
        penalty: None, "gradient" (WGAN-GP, weight λ) or "r1" (weight γ / 2).
        penalty_weight: λ or γ / 2.
        clip: discriminator weights are clipped to [-clip, clip] after each update (WGAN); None never.
        ema_decay: of the generator's moving average, in [0, 1); early on it is min(ema_decay, (1 + t) / (10 + t)).
        precision: "float32", "bfloat16" or "auto" (measured, see :func:`ganprune.runtime.best_precision`).
        channels_last: memory layout of the convolutions.
        log_every: the history gets one row (mean losses) per so many steps.
        seed: determines batches and latents.
    """

    steps: int
    batch_size: int = 64
    loss: str = "hinge"
    learning_rate: float = 1e-3
    discriminator_learning_rate: float | None = None
    betas: tuple[float, float] = (0.5, 0.999)
    weight_decay: float = 0.0
    optimizer: str = "adam"
    decay_from: float = 0.5
    critic_steps: int = 1
    penalty: str | None = None
    penalty_weight: float = 10.0
    clip: float | None = None
    ema_decay: float = 0.998
    precision: str = "auto"
    channels_last: bool = True
    log_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "critic_steps", "log_every"):
            object.__setattr__(self, name, check_integer(name, getattr(self, name), 1))
        check_number("learning_rate", self.learning_rate, "(0, inf)")
        check_number("ema_decay", self.ema_decay, "[0, 1)")
        check_number("decay_from", self.decay_from, "[0, 1]")
        for name, allowed in (("optimizer", OPTIMIZERS), ("penalty", PENALTIES), ("precision", PRECISIONS)):
            check_choice(name, getattr(self, name), allowed)
        if self.clip is not None:
            check_number("clip", self.clip, "(0, inf)", " or None")
        get_loss(self.loss)
        object.__setattr__(self, "betas", tuple(self.betas))

    def learning_rate_factor(self, step: int) -> float:
        """The factor of the learning rate at a step, in (0, 1]: held, then linear to zero."""
        hold = self.decay_from * self.steps
        return 1.0 if step < hold else (self.steps - step) / (self.steps - hold)


class TrainState:
    """A run at one step: networks, optimisers, masks, history. Save it, load it, and go on as if nothing happened.

    Attributes:
        gan: trained in place.
        config: with "auto" precision resolved.
        step: generator updates done.
        optimizers: "generator" and "discriminator".
        keepers: the mask keepers, by network.
        history: rows of mean losses, one per ``log_every`` steps.
        extras: tensors that callbacks keep from step to step, saved and loaded with the state; a callback's keys
            begin with its own name.
    """

    def __init__(self, gan: GAN, config: TrainConfig, masks: Mapping[str, Mask] | None = None) -> None:
        precision = best_precision(gan.device) if config.precision == "auto" else config.precision
        self.gan = gan
        self.config = dataclasses.replace(config, precision=precision)
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.pending: list[Tensor] = []
        self.extras: dict[str, Tensor] = {}
        if config.channels_last and gan.device.type != "mps":
            for network in gan.networks().values():
                if any(p.ndim == 4 for p in network.parameters()):
                    network.to(memory_format=torch.channels_last)
        self.optimizers = {
            "generator": _optimizer(gan.generator, config, config.learning_rate),
            "discriminator": _optimizer(
                gan.discriminator, config, config.discriminator_learning_rate or config.learning_rate
            ),
        }
        self.keepers: dict[str, MaskKeeper] = {}
        for name, mask in (gan.masks if masks is None else masks).items():
            if name != "generator_ema":  # the EMA generator carries the generator's mask
                self.set_mask(name, mask)

    @property
    def masks(self) -> dict[str, Mask]:
        """The masks in force, by network."""
        return {name: keeper.mask for name, keeper in self.keepers.items()}

    def set_mask(self, network: str, mask: Mask) -> None:
        """Applies a mask to the "generator" (and its EMA) or the "discriminator", and keeps it from now on."""
        if network not in self.optimizers:
            raise ValueError(f"network must be generator or discriminator, got {network!r}")
        model = self.gan.networks()[network]
        ema = self.gan.generator_ema if network == "generator" else None
        if network in self.keepers:
            self.keepers[network].update(mask)
        else:
            apply_mask(model, mask, ema=ema)
            self.keepers[network] = keep_mask(model, mask, self.optimizers[network], ema=ema)
        self.gan.masks[network] = mask

    def save(self, path: str | Path) -> None:
        """Writes the whole state to one safetensors file, atomically."""
        checkpoints.write_safetensors(path, *self.packed())

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors and the metadata of the file that :meth:`save` writes, for files that hold more than a state."""
        tensors = checkpoints.network_tensors(self.gan.networks(), self.masks)
        groups = {}
        for name, optimizer in self.optimizers.items():
            packed = optimizer.state_dict()
            groups[name] = packed["param_groups"]
            for index, entries in packed["state"].items():
                tensors |= {f"optimizer/{name}/{index}/{key}": value for key, value in entries.items()}
        tensors |= {f"extra/{key}": value for key, value in self.extras.items()}
        metadata = {
            **checkpoints.gan_metadata(self.gan),
            "config": dataclasses.asdict(self.config),
            "step": self.step,
            "history": self.history,
            "pending": [losses.tolist() for losses in self.pending],
            "metadata": self.gan.metadata,
            "param_groups": groups,
        }
        return tensors, metadata

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device | None = None) -> TrainState:
        """The state that :meth:`save` wrote; training it on gives the weights an uninterrupted run would have.

        Raises:
            CheckpointError: if the file is missing, damaged, or no training state.
        """
        tensors, metadata = checkpoints.read_safetensors(path)
        if "config" not in metadata:
            raise checkpoints.CheckpointError(f"{path} holds a GAN but no training state; use load()")
        gan = checkpoints.gan_from(tensors, metadata, path).to(as_device(device))
        gan.metadata = metadata.get("metadata", {})
        state = cls(gan, TrainConfig(**metadata["config"]))
        state.step, state.history = metadata["step"], metadata["history"]
        state.pending = [torch.tensor(losses, device=gan.device) for losses in metadata["pending"]]
        state.extras = {
            key.removeprefix("extra/"): value.to(gan.device)
            for key, value in tensors.items()
            if key.startswith("extra/")
        }
        for name, optimizer in state.optimizers.items():
            entries: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith(f"optimizer/{name}/"):
                    _, _, index, entry = key.split("/")
                    entries.setdefault(int(index), {})[entry] = value
            load_moments(optimizer, entries, metadata["param_groups"][name])
        return state

    def __repr__(self) -> str:
        return f"TrainState(step {self.step} of {self.config.steps}, {self.gan!r})"


def load_moments(
    optimizer: Optimizer, moments: Mapping[int, Mapping[str, Any]], param_groups: Sequence[Any] | None = None
) -> None:
    """Gives an optimiser moments, in the memory layout of their weights: fused kernels read both in one order.

    Args:
        optimizer: without moments, or with some that go.
        moments: number of the parameter → its part of the optimiser's state; single numbers may be shared.
        param_groups: as in the optimiser's ``state_dict``; None for those that it has.
    """
    groups = optimizer.state_dict()["param_groups"] if param_groups is None else param_groups
    optimizer.load_state_dict({"state": dict(moments), "param_groups": list(groups)})
    for weight, kept in optimizer.state.items():
        for entry, value in kept.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                kept[entry] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


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


def _optimizer(network: nn.Module, config: TrainConfig, learning_rate: float) -> Optimizer:
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer: Optimizer
    if config.optimizer == "adam":
        optimizer = torch.optim.Adam(
            parameters,
            learning_rate,
            config.betas,
            weight_decay=config.weight_decay,
            fused=_can_fuse(parameters),
        )
    elif config.optimizer == "rmsprop":
        optimizer = torch.optim.RMSprop(parameters, learning_rate, weight_decay=config.weight_decay)
    else:
        optimizer = torch.optim.SGD(parameters, learning_rate, weight_decay=config.weight_decay)
    for group in optimizer.param_groups:
        group["initial_lr"] = learning_rate
    return optimizer


def _can_fuse(parameters: Sequence[Tensor]) -> bool:
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)


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
