"""The folder of a run in stages: a stage whose result lies there is not done again, and a run has one owner."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ganprune.core.files import make_folder, owned, replacing
from ganprune.core.tensors import CheckpointError, hash_weights
from ganprune.lottery.tickets import Ticket
from ganprune.networks.checkpoints import gan_metadata
from ganprune.networks.gan import GAN
from ganprune.training.callbacks import Checkpoint, every
from ganprune.training.loop import BatchSource, train
from ganprune.training.state import TrainState

TrainingCallback = Callable[[TrainState], Any]


class RunFolder:
    """Where a run in stages keeps what they give; without a path it keeps nothing.

    Each file is replaced as a whole and says by itself what it holds, so a run may be killed at any moment.

    Args:
        path: a folder, made when the run begins; or None.
        plan: what determines the run, as plain values.
        gan: where the run starts; its weights belong to the plan, and states are loaded to its device.

    Raises:
        ValueError: if the path is a file, or the folder holds another run.
        CheckpointError: if a network has no spec, or the record of the run is damaged.
    """

    def __init__(self, path: str | Path | None, plan: dict[str, Any], gan: GAN) -> None:
        self.path, self.device = (None if path is None else Path(path)), gan.device
        if self.path is None:
            return
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"folder must be a folder, got the file {self.path}")
        gan_metadata(gan)
        weights = {name: hash_weights(network) for name, network in gan.networks().items()}
        self._plan = json.loads(json.dumps({**plan, "weights": weights}))
        self._check_plan(self.path / "run.json")

    def _check_plan(self, record: Path) -> None:
        if not record.is_file():
            return
        try:
            found = json.loads(record.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{record} is damaged: {error}; start anew in another folder") from error
        if not isinstance(found, dict):
            raise CheckpointError(f"{record} is no record of a run; use another folder")
        differs = sorted(
            key for key in self._plan.keys() | found.keys() if self._plan.get(key) != found.get(key)
        )
        if differs:
            raise ValueError(
                f"folder {self.path} holds a run with another {', '.join(differs)}; use another folder"
            )

    @contextmanager
    def opened(self) -> Iterator[None]:
        """The folder belongs to the run inside the block.

        Raises:
            OutputInUseError: if another run owns it.
            ValueError, CheckpointError: if another run was begun there in the meantime.
        """
        if self.path is None:
            yield
            return
        record = self.path / "run.json"
        with owned(self.path):
            self._check_plan(record)
            make_folder(self.path)
            for cut in self.path.glob(".*.safetensors.*"):  # what a kill left half written
                cut.unlink(missing_ok=True)
            if not record.is_file():
                with replacing(record) as temporary:
                    temporary.write_text(json.dumps(self._plan, indent=1), encoding="utf-8")
            yield

    def file(self, name: str) -> Path | None:
        """The file of a stage, or None without a folder."""
        return None if self.path is None else self.path / f"{name}.safetensors"

    def ticket(self, name: str, make: Callable[[], Ticket]) -> Ticket:
        """The ticket that is kept under a name; if there is none, the one that ``make()`` gives, kept from then on."""
        path = self.file(name)
        if path is not None and path.is_file():
            return Ticket.load(path, self.device)
        ticket = make()
        if path is not None:
            ticket.save(path)
        return ticket


@dataclass(frozen=True)
class Trainer:
    """Trains the stages of a run, each in a file of its folder.

    Attributes:
        folder: of the run.
        split: the real samples.
        callbacks: for each training.
        checkpoint_every: steps between two writes of the file.
        show_progress: a progress bar on standard error.
    """

    folder: RunFolder
    split: BatchSource
    callbacks: Iterable[TrainingCallback]
    checkpoint_every: int
    show_progress: bool

    def train(self, name: str, start: Callable[[], TrainState], until: int | None = None) -> TrainState:
        """The state after a training: as it is kept, or trained on from where it was, or from its start.

        Args:
            name: of its file.
            start: gives the state to begin with, if none is kept.
            until: the step to stop at; None for the end of the run.
        """
        path = self.folder.file(name)
        if path is None:
            return train(start(), self.split, self.callbacks, until, self.show_progress)
        state = TrainState.resume(path, start, self.folder.device)
        begun = state.step if path.is_file() else -1
        masks = dict(state.gan.masks)
        state.gan.masks.clear()  # what has no mask is dense on purpose, which a file does not say
        state.gan.masks.update(masks)
        checkpoint = every(self.checkpoint_every, Checkpoint(path), at_end=False)
        checkpoint.order = sys.maxsize  # after all callbacks of the user, to have what they found at its step
        train(state, self.split, [*self.callbacks, checkpoint], until, self.show_progress)
        if state.step > begun:
            state.save(path)
        return state
