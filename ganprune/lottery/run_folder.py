"""The folder of a run that can be killed at any moment, and what callbacks measured in it before and after."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from ganprune.core.files import replacing
from ganprune.core.tensors import CheckpointError, write_safetensors
from ganprune.lottery.tickets import Ticket
from ganprune.networks.checkpoints import gan_metadata, network_tensors
from ganprune.networks.gan import GAN
from ganprune.training.state import TrainState

Callback = Callable[[TrainState], Any]


class RunFolder:
    """Each file is replaced as a whole and says by itself what it holds, so no order of writes can be broken.

    Args:
        path: None keeps nothing.
        plan: what determines the run; a folder that holds another one is refused.
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
        plan = json.loads(json.dumps({**plan, "weights": _fingerprint(gan)}))
        record = self.path / "run.json"
        found = _read(record) if record.is_file() else plan
        differs = sorted(key for key in plan.keys() | found.keys() if plan.get(key) != found.get(key))
        if differs:
            raise ValueError(
                f"folder {self.path} holds a run with another {', '.join(differs)}; use another folder"
            )
        for name in ("run.json", "ticket*", "trained*", "state*", "early-bird*"):
            for cut in self.path.glob(f".{name}.*"):  # what a kill left half written
                shutil.rmtree(cut) if cut.is_dir() else cut.unlink(missing_ok=True)
        if not record.is_file():
            with replacing(record) as temporary:
                temporary.write_text(json.dumps(plan, indent=1), encoding="utf-8")

    def file(self, name: str) -> Path | None:
        return None if self.path is None else self.path / f"{name}.safetensors"

    def keep_ticket(self, name: str, ticket: Ticket) -> None:
        if (path := self.file(name)) is not None:
            ticket.save(path)

    def ticket(self, name: str) -> Ticket | None:
        path = self.file(name)
        return Ticket.load(path, self.device) if path is not None and path.is_file() else None

    def keep_state(self, name: str, state: TrainState, note: dict[str, Any]) -> None:
        """Saves a state with a note in the same file."""
        if (path := self.file(name)) is not None:
            tensors, metadata = state.packed()
            metadata["metadata"] = {**metadata["metadata"], "note": note}
            write_safetensors(path, tensors, metadata)

    def state(self, name: str) -> tuple[TrainState, dict[str, Any]] | None:
        path = self.file(name)
        if path is None or not path.is_file():
            return None
        state = TrainState.load(path, self.device)
        if "note" not in state.gan.metadata:
            raise CheckpointError(f"{path} is a training state, but of no run in a folder; start anew")
        return state, state.gan.metadata.pop("note")


def _read(record: Path) -> dict[str, Any]:
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{record} is damaged: {error}; start anew in another folder") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{record} is no record of a run; use another folder")
    return found


def _fingerprint(gan: GAN) -> str:
    """A hash of all weights and buffers."""
    digest = hashlib.sha256()
    for key, value in sorted(network_tensors(gan.networks(), {}).items()):
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


class Measured:
    """The rows that callbacks add during one training, those of before a kill included."""

    def __init__(self, callbacks: Sequence[Callback], before: list[list[dict[str, Any]]]) -> None:
        self.before = before
        owners = [
            callback if hasattr(callback, "rows") else getattr(callback, "function", None)
            for callback in callbacks
        ]
        self.sources = [getattr(owner, "rows", None) for owner in owners]
        self.starts = [len(rows) if isinstance(rows, list) else 0 for rows in self.sources]

    def rows(self) -> list[list[dict[str, Any]]]:
        """Per callback."""
        new: list[list[dict[str, Any]]] = [
            [dict(row) for row in rows[start:]] if isinstance(rows, list) else []
            for rows, start in zip(self.sources, self.starts, strict=True)
        ]
        return [[*old, *added] for old, added in zip_longest(self.before, new, fillvalue=())]


class Then:
    """A callback that runs after all those of the user, so that a checkpoint has what they measured at its step."""

    order = math.inf

    def __init__(self, function: Callback) -> None:
        self.function = function

    def __call__(self, state: TrainState) -> None:
        self.function(state)


def saving(folder: RunFolder, interval: int, measured: Measured, note: dict[str, Any]) -> Then:
    def save(state: TrainState) -> None:
        if state.step % interval == 0 and state.step < state.config.steps:
            folder.keep_state("state", state, {**note, "measured": measured.rows()})

    return Then(save)
