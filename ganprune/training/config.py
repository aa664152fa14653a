"""Everything that determines a training run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ganprune.core.checks import check_choice, check_integer, check_number
from ganprune.core.device import PRECISIONS
from ganprune.losses import DEFAULT_LOSS, LOSSES

OPTIMIZERS = ("adam", "rmsprop", "sgd")


PENALTIES = (None, "gradient", "r1")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that determines a training run, the starting weights and the data apart.

    The defaults are the course's recipe: the non-saturating loss with a lazy R1 penalty, for a discriminator without
    norm. How it was found stands on the page "How we train".

    Attributes:
        steps: generator updates in all; at least 1.
        batch_size: samples per update.
        loss: a name in ``gp.losses.LOSSES``.
        learning_rate: of the generator, and of the discriminator unless the next field is given.
        discriminator_learning_rate: None for the same; 0 leaves the discriminator as it is.
        betas: of Adam, both in [0, 1).
        weight_decay: L2 penalty of the optimiser.
        optimizer: "adam", "rmsprop" or "sgd".
        decay_from: the learning rate is held for this fraction of the steps, then falls linearly to zero; 1.0 never.
        critic_steps: discriminator updates per generator update.
        penalty: None, "gradient" (WGAN-GP, weight λ) or "r1" (weight γ / 2).
        penalty_weight: λ or γ / 2.
        penalty_every: the penalty is taken at every so-many-th update of the discriminator, with so many times the
            weight ("lazy regularisation", Karras et al. 2020, section 3.1): its mean is the same, at less cost.
        clip: discriminator weights are clipped to [-clip, clip] after each update (WGAN); None never.
        ema_decay: of the generator's moving average, in [0, 1); early on it is min(ema_decay, (1 + t) / (10 + t)).
        precision: "float32", "bfloat16" or "auto": what the processor supports, see
            :func:`ganprune.core.device.best_precision`.
        channels_last: whether the networks and their images get this memory layout; None does it for the networks of
            this package alone, because the code of other networks may depend on the layout that they have.
        log_every: the history gets one row (mean losses) per so many steps.
        seed: determines batches and latents.
    """

    steps: int
    batch_size: int = 64
    loss: str = DEFAULT_LOSS
    learning_rate: float = 1e-3
    discriminator_learning_rate: float | None = None
    betas: tuple[float, float] = (0.0, 0.99)
    weight_decay: float = 0.0
    optimizer: str = "adam"
    decay_from: float = 0.25
    critic_steps: int = 1
    penalty: str | None = "r1"
    penalty_weight: float = 1.0
    penalty_every: int = 8
    clip: float | None = None
    ema_decay: float = 0.999
    precision: str = "auto"
    channels_last: bool | None = None
    log_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        """Every field becomes a plain Python value, which can be saved, or is refused here, before any work."""
        checked: dict[str, Any] = {
            name: check_integer(name, getattr(self, name), 1)
            for name in ("steps", "batch_size", "critic_steps", "penalty_every", "log_every")
        }
        checked["seed"] = check_integer("seed", self.seed, 0)
        intervals = {
            "learning_rate": "(0, inf)",
            "weight_decay": "[0, inf)",
            "penalty_weight": "[0, inf)",
            "decay_from": "[0, 1]",
            "ema_decay": "[0, 1)",
        }
        checked |= {name: check_number(name, getattr(self, name), where) for name, where in intervals.items()}
        for name, where in (("discriminator_learning_rate", "[0, inf)"), ("clip", "(0, inf)")):
            if getattr(self, name) is not None:
                checked[name] = check_number(name, getattr(self, name), where, " or None")
        for name, allowed in (("optimizer", OPTIMIZERS), ("penalty", PENALTIES), ("precision", PRECISIONS)):
            checked[name] = check_choice(name, getattr(self, name), allowed)
        check_choice("channels_last", self.channels_last, (None, True, False))
        checked["channels_last"] = None if self.channels_last is None else bool(self.channels_last)
        checked["loss"] = self.loss if isinstance(self.loss, str) else getattr(self.loss, "name", self.loss)
        check_choice("loss", checked["loss"], LOSSES)
        if isinstance(self.betas, str) or not hasattr(self.betas, "__len__") or len(self.betas) != 2:
            raise ValueError(f"betas must be two numbers in [0, 1), got {self.betas!r}")
        checked["betas"] = tuple(check_number("betas", beta, "[0, 1)") for beta in self.betas)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def learning_rate_factor(self, step: int) -> float:
        """The factor of the learning rate at a step, in (0, 1]: held, then linear to zero."""
        hold = self.decay_from * self.steps
        return 1.0 if step < hold else (self.steps - step) / (self.steps - hold)
