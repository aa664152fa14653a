"""Everything that determines a training run."""

from __future__ import annotations

from dataclasses import dataclass

from ganprune.core.checks import check_choice, check_integer, check_number
from ganprune.core.device import PRECISIONS
from ganprune.losses import DEFAULT_LOSS, get_loss

OPTIMIZERS = ("adam", "rmsprop", "sgd")


PENALTIES = (None, "gradient", "r1")


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
        precision: "float32", "bfloat16" or "auto" (measured, see :func:`ganprune.core.device.best_precision`).
        channels_last: memory layout of the convolutions.
        log_every: the history gets one row (mean losses) per so many steps.
        seed: determines batches and latents.
    """

    steps: int
    batch_size: int = 64
    loss: str = DEFAULT_LOSS
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
