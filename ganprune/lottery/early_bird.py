"""Early-bird tickets: training stops being dense as soon as the mask that pruning would draw has settled."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from ganprune.allocation.choose import allocate
from ganprune.core.checks import check_integer, check_number
from ganprune.lottery.run_folder import RunFolder, Trainer, TrainingCallback
from ganprune.lottery.tickets import Ticket, check_dense, check_networks, copy_gan, copy_state
from ganprune.masks.mask import Mask, check_sparsity
from ganprune.masks.weights import prunable_weights
from ganprune.networks.gan import GAN
from ganprune.scores.registry import score
from ganprune.training.callbacks import LOG, Callback
from ganprune.training.config import TrainConfig
from ganprune.training.loop import BatchSource
from ganprune.training.state import TrainState


class EarlyBird(Callback):
    """Notices when the mask has settled, after You et al. 2020, "Drawing early-bird tickets".

    Every so many steps it draws the mask that global magnitude pruning would give now, and changes nothing. The
    early bird is found at the first draw whose distance (share of weights that differ) to each of the
    ``window`` draws before it is below ``threshold``. The defaults of both are the paper's, which draws masks of
    channels once per epoch and asks that the last five distances, each between a draw and the one before it, be
    below 0.1. Comparing the newest draw with all of the window, as the paper's code does with four draws, also
    sees a mask that drifts slowly.

    What it has seen is in the training state, so it goes on with a run that is resumed.

    Args:
        network: "generator" or "discriminator".
        sparsity: of the masks drawn, in [0, 1).
        window: number of earlier draws to compare with, at least 1.
        threshold: in (0, 1].
        every: steps between draws, at least 1.
        protect: layers to leave alone.
        stop: end the training at the step where it is found.

    Attributes:
        rows: one per draw: step, distances to the draws before it, earliest first, max_distance (None for the first
            draw), and found: whether this draw is the early bird.

    Raises:
        TypeError: if a number is expected and something else is given.
        ValueError: if an argument is out of range.
    """

    order = LOG

    def __init__(
        self,
        network: str = "generator",
        sparsity: float = 0.8,
        *,
        window: int = 5,
        threshold: float = 0.1,
        every: int = 100,
        protect: Iterable[str] = (),
        stop: bool = False,
    ) -> None:
        super().__init__()
        check_networks([network])
        self.network, self.sparsity = network, check_sparsity(sparsity)
        self.window, self.every = check_integer("window", window, 1), check_integer("every", every, 1)
        self.threshold = check_number("threshold", threshold, "(0, 1]")
        self.protect = [protect] if isinstance(protect, str) else list(protect)
        self.stop, self.name = stop, f"EarlyBird {network}"
        self._layers: list[str] = []
        self._kept: dict[str, Tensor] = {}

    def begin(self, state: TrainState) -> None:
        """Takes up what it saw in the part of the run that is done."""
        self._layers = list(prunable_weights(state.gan.networks()[self.network], self.protect))
        self._kept = state.extras
        state.stop = state.stop or (self.stop and self.found_step is not None)

    def __call__(self, state: TrainState) -> None:
        """Draws a mask if it is time."""
        if state.step % self.every:
            return
        scores = score(state.gan.networks()[self.network], "magnitude", protect=self.protect)
        mask, number = allocate(scores, self.sparsity).to("cpu"), len(self.rows)
        earlier = range(max(0, number - self.window), number)
        distances = [mask.distance(self._load(str(draw))) for draw in earlier]
        settled = len(distances) == self.window and max(distances) < self.threshold
        found = settled and self.found_step is None
        row = {"step": state.step, "distances": distances, "max_distance": max(distances, default=None)}
        self.rows.append({**row, "found": found})
        self._save(str(number), mask)
        if len(distances) == self.window:
            self._forget(str(number - self.window))
        if found:
            self._save("found", mask)
            state.stop = state.stop or self.stop

    @property
    def found_step(self) -> int | None:
        """The step at which the early bird was found, or None."""
        return next((row["step"] for row in self.rows if row["found"]), None)

    @property
    def mask(self) -> Mask | None:
        """The early bird's mask, on the CPU, or None."""
        return None if self.found_step is None else self._load("found")

    def _save(self, draw: str, mask: Mask) -> None:
        self._kept |= {f"{self.name}/{draw}/{key}": kept for key, kept in mask.items()}

    def _load(self, draw: str) -> Mask:
        return Mask({key: self._kept[f"{self.name}/{draw}/{key}"].cpu() for key in self._layers})

    def _forget(self, draw: str) -> None:
        for key in self._layers:
            self._kept.pop(f"{self.name}/{draw}/{key}", None)

    def __repr__(self) -> str:
        found = "not found yet" if self.found_step is None else f"found at step {self.found_step}"
        return f"EarlyBird({self.network}, sparsity {self.sparsity}, {len(self.rows)} draws, {found})"


def find_early_bird(
    gan: GAN,
    split: BatchSource,
    config: TrainConfig,
    sparsity: float,
    *,
    network: str = "generator",
    window: int = 5,
    threshold: float = 0.1,
    every: int = 100,
    protect: Iterable[str] = (),
    callbacks: Iterable[TrainingCallback] = (),
    folder: str | Path | None = None,
    checkpoint_every: int = 500,
    show_progress: bool = True,
) -> tuple[Ticket | None, EarlyBird]:
    """Trains a dense GAN until its mask has settled, and gives that mask with the state reached as a ticket.

    ``ticket.start()`` goes on from there, at the step where it was found and with the weights reached (You et
    al. 2020; for GANs Kalibhat et al. 2021), so that only the first part of the run is dense. A killed run goes on
    when it is called again with the same arguments, if it has a folder.

    Args:
        gan: the dense GAN that training starts from; left as it is.
        split: the real samples.
        config: of the whole run, the part after the ticket included.
        sparsity: of the ticket, in [0, 1).
        network: as for :class:`EarlyBird`, like ``window``, ``threshold``, ``every`` and ``protect``.
        window: number of earlier draws to compare with.
        threshold: largest distance that is not small enough, in (0, 1].
        every: steps between draws.
        protect: layers to leave alone.
        callbacks: as for ``train``.
        folder: where the run is kept; None for nowhere. The networks then need a registered spec.
        checkpoint_every: steps between two checkpoints.
        show_progress: a progress bar on standard error.

    Returns:
        The ticket, of the arm "early-bird", or None if the mask never settled; and the watcher, whose ``rows``
        are the distances seen.

    Raises:
        TypeError: if a number is expected and something else is given.
        ValueError: if an argument is out of range, the GAN has masks already, or the folder holds another run.
        MaskError: if a network has been pruned, but the GAN has no mask for it.
        OutputInUseError: if another run uses the folder.
        CheckpointError: if there is a folder, and a network has no spec or a file in it is damaged.
    """
    checkpoint_every = check_integer("checkpoint_every", checkpoint_every, 1)
    check_dense(gan)
    layers = [protect] if isinstance(protect, str) else list(protect)
    settings: dict[str, Any] = {
        "sparsity": sparsity,
        "window": window,
        "threshold": threshold,
        "every": every,
    }
    watcher = EarlyBird(network, **settings, protect=layers, stop=True)
    prunable_weights(gan.networks()[network], layers)
    plan = {"config": dataclasses.asdict(config), "network": network, "protect": layers, **settings}
    run_folder = RunFolder(folder, plan, gan)
    trainer = Trainer(run_folder, split, [*callbacks, watcher], checkpoint_every, show_progress)
    with run_folder.opened():
        state = trainer.train("trained", lambda: TrainState(copy_gan(gan), config))
    if watcher.mask is None:
        return None, watcher
    rewound = copy_state(state)
    rewound.extras = {k: v for k, v in rewound.extras.items() if not k.startswith(f"{watcher.name}/")}
    rewound.rows.pop(watcher.name)
    metadata = {"found_step": state.step, "allocation": "global", "score": "magnitude"}
    return Ticket({network: watcher.mask}, rewound, "early-bird", metadata), watcher
