"""Early-bird tickets: training stops being dense as soon as the mask that pruning would draw has settled."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ganprune.allocation.choose import allocate
from ganprune.core.checks import check_integer, check_number
from ganprune.core.tensors import read_safetensors, write_safetensors
from ganprune.lottery.run_folder import Callback, Measured, RunFolder, saving
from ganprune.lottery.tickets import Snapshot, Ticket, check_networks, copy_gan
from ganprune.masks.mask import Mask, check_sparsity
from ganprune.masks.weights import prunable_weights
from ganprune.networks.checkpoints import masks_from
from ganprune.networks.gan import GAN
from ganprune.scores.registry import score
from ganprune.training.callbacks import LOG
from ganprune.training.config import TrainConfig
from ganprune.training.loop import BatchSource, train
from ganprune.training.state import TrainState


class StopTraining(Exception):
    """Raised by a callback to end a training; the state is valid, and its step is done. ``train`` passes it on."""


class EarlyBird:
    """A callback that notices when the mask has settled, after You et al. 2020, "Drawing early-bird tickets".

    Every so many steps it draws the mask that global magnitude pruning would give now, and changes nothing. The
    early bird is found at the first draw whose distance (share of weights that differ) to each of the
    ``window`` draws before it is below ``threshold``. The defaults of both are the paper's, which draws masks of
    channels once per epoch and asks that the last five distances, each between a draw and the one before it, be
    below 0.1. Comparing the newest draw with all of the window, as the paper's code does with four draws, also
    sees a mask that drifts slowly.

    It watches one training. Draws at steps that it has seen are passed over: they are repeats of a run that was
    resumed from an earlier step. With ``path`` it keeps what it has seen in a file, which a new process takes up;
    it runs before checkpoints, so it never knows less than the state that is resumed.

    Args:
        network: "generator" or "discriminator".
        sparsity: of the masks drawn, in [0, 1).
        window: number of earlier draws to compare with, at least 1.
        threshold: in (0, 1].
        every: steps between draws, at least 1.
        protect: layers to leave alone.
        stop: raise :class:`StopTraining` once it is found.
        path: a file to keep what was seen, or None.

    Attributes:
        rows: one per draw: step, distances to the draws before it, earliest first, and max_distance (None for
            the first draw).
        found_step: None until it is found.
        mask: the mask found, or None.

    Raises:
        TypeError: if a number is expected and something else is given.
        ValueError: if an argument is out of range, or the file belongs to another watcher.
        CheckpointError: if the file is damaged.
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
        path: str | Path | None = None,
    ) -> None:
        check_networks([network])
        self.network, self.sparsity = network, check_sparsity(sparsity)
        self.window, self.every = check_integer("window", window, 1), check_integer("every", every, 1)
        self.threshold = check_number("threshold", threshold, "(0, 1]")
        self.protect = [protect] if isinstance(protect, str) else list(protect)
        self.stop, self.path = stop, None if path is None else Path(path)
        self.rows: list[dict[str, Any]] = []
        self.found_step: int | None = None
        self.mask: Mask | None = None
        self._draws: deque[Mask] = deque(maxlen=window)
        if self.path is not None and self.path.is_file():
            self._take_up(self.path)

    def __call__(self, state: TrainState) -> None:
        if state.step % self.every == 0 and (not self.rows or state.step > self.rows[-1]["step"]):
            self._draw(state)
        if self.stop and self.found_step is not None and state.step >= self.found_step:
            raise StopTraining(f"the early bird was found at step {self.found_step}")

    def _draw(self, state: TrainState) -> None:
        scores = score(state.gan.networks()[self.network], "magnitude", protect=self.protect)
        mask = allocate(scores, self.sparsity).to("cpu")
        distances = [mask.distance(earlier) for earlier in self._draws]
        self.rows.append(
            {"step": state.step, "distances": distances, "max_distance": max(distances, default=None)}
        )
        if self.found_step is None and len(distances) == self.window and max(distances) < self.threshold:
            self.found_step, self.mask = state.step, mask
        self._draws.append(mask)
        if self.path is not None:
            self._keep(self.path)

    def _settings(self) -> dict[str, Any]:
        names = ("network", "sparsity", "window", "threshold", "every", "protect")
        return {name: getattr(self, name) for name in names}

    def _keep(self, path: Path) -> None:
        masks = {str(number): mask for number, mask in enumerate(self._draws)}
        if self.mask is not None:
            masks["found"] = self.mask
        tensors = {f"mask/{name}/{key}": kept for name, mask in masks.items() for key, kept in mask.items()}
        seen = {"rows": self.rows, "found_step": self.found_step, "layers": list(self._draws[-1])}
        write_safetensors(path, tensors, {"early_bird": self._settings(), **seen})

    def _take_up(self, path: Path) -> None:
        tensors, metadata = read_safetensors(path)
        if metadata.get("early_bird") != self._settings():
            raise ValueError(
                f"path {path} must be a file of a watcher with the same settings, {self._settings()}; "
                f"got {metadata.get('early_bird')}"
            )
        masks = masks_from(tensors)  # in the order of the file, which is not that of the layers
        ordered = {n: Mask({key: mask[key] for key in metadata["layers"]}) for n, mask in masks.items()}
        self.rows, self.found_step = metadata["rows"], metadata["found_step"]
        self.mask = ordered.pop("found", None)
        self._draws.extend(ordered[name] for name in sorted(ordered, key=int))

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
    callbacks: Iterable[Callback] = (),
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
        callbacks: as for ``train``; those after the watcher miss the last step.
        folder: where the run is kept; None for nowhere. The networks then need a registered spec.
        checkpoint_every: steps between two checkpoints.
        show_progress: a progress bar on standard error.

    Returns:
        The ticket, of the arm "early-bird", or None if the mask never settled; and the watcher, whose ``rows``
        are the distances seen.

    Raises:
        TypeError: if a number is expected and something else is given.
        ValueError: if an argument is out of range, the GAN has masks already, or the folder holds another run.
        CheckpointError: if there is a folder, and a network has no spec or a file in it is damaged.
    """
    checkpoint_every = check_integer("checkpoint_every", checkpoint_every, 1)
    if gan.masks:
        raise ValueError(f"gan must be dense, got one with masks of {', '.join(gan.masks)}")
    settings: dict[str, Any] = {"window": window, "threshold": threshold, "every": every}
    settings["protect"] = [protect] if isinstance(protect, str) else list(protect)
    watcher = EarlyBird(network, sparsity, stop=True, **settings)
    prunable_weights(gan.networks()[network], watcher.protect)
    plan = {"config": dataclasses.asdict(config), **watcher._settings()}
    kept = RunFolder(folder, plan, gan)
    watcher = EarlyBird(network, sparsity, stop=True, path=kept.file("early-bird"), **settings)
    stored = kept.ticket("ticket")
    if stored is not None:
        return stored, watcher
    running, nothing = kept.state("state"), Measured([], [])
    if running is None:  # kept before the first draw: a precision that was measured holds after a kill too
        state = Snapshot(copy_gan(gan), config).state()
        kept.keep_state("state", state, {"round": 0, "measured": nothing.rows()})
    else:
        state = running[0]
    checkpoint = saving(kept, checkpoint_every, nothing, {"round": 0})
    with suppress(StopTraining):
        train(state, split, [*callbacks, watcher, checkpoint], show_progress)
    if watcher.mask is None:
        return None, watcher
    metadata = {"found_step": state.step, "allocation": "global", "score": "magnitude"}
    ticket = Ticket({network: watcher.mask}, Snapshot.of(state), "early-bird", metadata)
    kept.keep_ticket("ticket", ticket)
    return ticket, watcher
