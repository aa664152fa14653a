"""Curves and pictures of a training in TensorBoard or Weights & Biases; neither is imported unless it is asked for."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ganprune.core.checks import check_choice, check_integer
from ganprune.core.errors import GanpruneError
from ganprune.core.files import make_folder
from ganprune.networks.checking import NotFiniteError
from ganprune.networks.sampling import sample
from ganprune.training.callbacks import LOG, Callback
from ganprune.training.loop import DivergenceError
from ganprune.training.state import TrainState

TRACKERS = ("tensorboard", "wandb")


class TrackerError(GanpruneError, RuntimeError):
    """The library of a tracker is missing, or it cannot begin; the message says what to do."""


class Track(Callback):
    """Logs a training: losses, what other callbacks such as ``Evaluate`` found, and a grid of samples now and then.

    Every training gets a run of its own. A training that is resumed logs what is new since then. The training itself
    stays what it is without a tracker.

    Args:
        tracker: "tensorboard" or "wandb"; both need ``pip install 'ganprune[trackers]'``. Weights & Biases follows its
            own settings: with the environment variable ``WANDB_MODE=offline`` it needs neither account nor network.
        folder: where runs are kept, in a folder for each; made if it is not there.
        name: of the run, or a function that finds it from the state in which a training begins.
        images_every: steps between two grids; there is one after the last step too.
        samples: images in a grid, of the EMA generator, with the same latents each time.
        config: plain values to be shown with the run, besides the configuration of the training.

    Raises:
        TrackerError: if the library is missing.
        ValueError: if an argument is out of range.
    """

    name = "track"
    order = LOG

    def __init__(
        self,
        tracker: str,
        folder: str | Path = "runs",
        name: str | Callable[[TrainState], str] = "training",
        images_every: int = 1_000,
        samples: int = 64,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.tracker = check_choice("tracker", tracker, TRACKERS)
        self.folder, self.run_name = Path(folder), name
        self.images_every = check_integer("images_every", images_every, 1)
        self.samples = check_integer("samples", samples, 1)
        self.config = dict(config or {})
        self._library = library_of(self.tracker)
        self._log: _Log | None = None

    def begin(self, state: TrainState) -> None:
        """Opens the run; rows that are there already were logged before the training was stopped.

        Raises:
            TrackerError: if the tracker cannot begin.
        """
        name = self.run_name if isinstance(self.run_name, str) else self.run_name(state)
        config = {**self.config, **dataclasses.asdict(state.config)}
        self._seen = {source: len(rows) for source, rows in self._sources(state).items()}
        kind = _TensorBoard if self.tracker == "tensorboard" else _WandB
        try:
            self._log = kind(self._library, self.folder, name, config)
        except Exception as error:
            raise TrackerError(f"the tracker {self.tracker} could not begin: {error}") from error

    def __call__(self, state: TrainState) -> None:
        """Logs what is new."""
        if self._log is None:
            return
        for source, rows in self._sources(state).items():
            for row in rows[self._seen.get(source, 0) :]:
                self._log.scalars(int(row.get("step", state.step)), _numbers(source, row))
            self._seen[source] = len(rows)
        if state.step % self.images_every == 0 or state.step == state.config.steps:
            images = _sample(state, self.samples)
            if images.ndim == 4 and images.shape[1] in (1, 3):
                self._log.picture(state.step, grid(images))

    def end(self, state: TrainState) -> None:
        """Closes the run."""
        if self._log is not None:
            self._log.close()
            self._log = None

    @staticmethod
    def _sources(state: TrainState) -> dict[str, list[dict[str, Any]]]:
        return {"losses": list(state.history), **state.rows}


def _sample(state: TrainState, n: int) -> Tensor:
    """Samples of the EMA generator; DivergenceError if they are not finite, which the losses may not say yet."""
    try:
        with torch.no_grad():
            return sample(state.gan.generator_ema, n)
    except NotFiniteError as error:
        raise DivergenceError(
            f"training diverged by step {state.step}: {error}; lower learning_rate, or use spectral norm or a penalty"
        ) from error


def grid(images: Tensor, gap: int = 1) -> Tensor:
    """Images side by side, in rows as near to a square as they fill: for loggers, which take whole numbers.

    Args:
        images: (N, C, H, W) in [-1, 1].
        gap: black pixels between two.

    Returns:
        uint8 (height, width, C), on the CPU.
    """
    count, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    pixels = ((images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    canvas = torch.zeros(rows, height + gap, columns, width + gap, channels, dtype=torch.uint8)
    for number, image in enumerate(pixels):
        canvas[number // columns, :height, number % columns, :width] = image.permute(1, 2, 0)
    return canvas.flatten(2, 3).flatten(0, 1)[: rows * (height + gap) - gap, : columns * (width + gap) - gap]


class _Log(Protocol):
    """What both libraries are used for."""

    def scalars(self, step: int, values: dict[str, float]) -> None: ...

    def picture(self, step: int, pixels: Tensor) -> None: ...

    def close(self) -> None: ...


class _TensorBoard:
    def __init__(self, library: Any, folder: Path, name: str, config: dict[str, Any]) -> None:
        self._writer = library.SummaryWriter(str(folder / name))
        self._writer.add_text("config", "\n".join(f"    {key}: {value}" for key, value in config.items()))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def picture(self, step: int, pixels: Tensor) -> None:
        self._writer.add_image("samples", pixels, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, library: Any, folder: Path, name: str, config: dict[str, Any]) -> None:
        make_folder(folder)
        self._library = library
        self._run = library.init(project="ganprune", name=name, dir=str(folder), config=config)
        self._run.define_metric("*", step_metric="step")  # rows of one step may come one after the other

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._run.log({**values, "step": step})

    def picture(self, step: int, pixels: Tensor) -> None:
        self._run.log({"samples": self._library.Image(pixels.squeeze(-1).numpy()), "step": step})

    def close(self) -> None:
        self._run.finish()


def _numbers(source: str, row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row, named after where it comes from."""
    kinds = (int, float)
    return {
        f"{source}/{key}": value
        for key, value in row.items()
        if isinstance(value, kinds) and not isinstance(value, bool) and key not in ("step", "seed")
    }


def library_of(tracker: str) -> Any:
    """The module behind a tracker.

    Raises:
        TrackerError: if it is missing; the message says what to install.
    """
    try:
        return importlib.import_module("wandb" if tracker == "wandb" else "torch.utils.tensorboard")
    except ImportError as error:
        raise TrackerError(
            f"the tracker {tracker} needs a library that is not here ({error}): pip install 'ganprune[trackers]'"
        ) from error
