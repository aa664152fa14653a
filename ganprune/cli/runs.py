"""Runs that write one file: who owns it, how they go on after a stop, and how long they will take."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ganprune as gp
from ganprune.cli.options import train_config, wrong
from ganprune.cli.output import measure, plain, prepare_extractor, say
from ganprune.cli.tracking import tracking
from ganprune.core.files import make_folder, owned, unfinished
from ganprune.core.tensors import CheckpointError, hash_weights, read_safetensors

NOT_IN_REQUEST = (
    "command",
    "json",
    "device",
    "data_root",
    "out",
    "resume",
    "checkpoint_every",
    "samples",
    "split",
    "extractor",
    "tracker",
    "track_to",
)
"""Options that do not change the weights; a run that goes on must agree with its beginning in all the others."""
OTHER_FORMATS = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin", ".onnx", ".h5", ".npz", ".json", ".png")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with a sentence that says what was kept and how to go on."""


class Estimate:
    """A callback that says after two seconds of training how long all of it will take, and then nothing more.

    Args:
        steps: of each training.
        trainings: how many trainings there may be.
    """

    def __init__(self, steps: int, trainings: int = 1) -> None:
        self.steps, self.trainings = steps, trainings
        self._begun: tuple[int, float] | None = None
        self._seen, self._said = 0, False

    def __call__(self, state: gp.TrainState) -> None:
        """Measures from the fifth step on, because the first ones warm up."""
        self._seen += 1
        if self._said or self._seen < 5:
            return
        if self._begun is None or state.step <= self._begun[0]:  # the first, or another training's
            self._begun = state.step, time.perf_counter()
            return
        seconds = time.perf_counter() - self._begun[1]
        if seconds < 2:
            return
        pace, self._said = seconds / (state.step - self._begun[0]), True
        left = self.steps - state.step
        if self.trainings == 1:
            say(f"the remaining {left:,} steps take about {duration(pace * left)}")
        else:
            one = pace * self.steps
            say(
                f"a training takes about {duration(one)}, all {self.trainings} about {duration(self.trainings * one)}"
            )


def duration(seconds: float) -> str:
    """A length of time in words: "40 seconds", "12 minutes", "3.5 hours"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def progress_callbacks(steps: int, trainings: int = 1) -> list[Callable[[gp.TrainState], Any]]:
    """How long it takes and, where no progress bar is drawn, ten lines of losses for a log file."""
    estimate = Estimate(steps, trainings)

    def report(state: gp.TrainState) -> None:
        last = state.history[-1] if state.history else {}
        shown = ", ".join(
            f"{key.replace('_', ' ')} {value:.3f}" for key, value in last.items() if key != "step"
        )
        say(f"step {state.step} of {steps}" + (f": {shown}" if shown else ""))

    return [estimate] if sys.stderr.isatty() else [estimate, gp.every(max(1, steps // 10), report)]


def request_of(options: argparse.Namespace) -> dict[str, Any]:
    """The options that determine the weights, as they come back from a file."""
    return json.loads(json.dumps({k: v for k, v in vars(options).items() if k not in NOT_IN_REQUEST}))


def shown_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run as its row shows them.

    Left out are the hashes of weights, the precision, whose name is that of a metric, and the course's model where the
    generator is the user's own.
    """
    hidden = {"weights", "precision"} | ({"model"} if request.get("generator") else set())
    return {key: value for key, value in request.items() if key not in hidden}


def check_same_request(command: str, begun: Mapping[str, Any], wanted: Mapping[str, Any], run: str) -> None:
    """Does nothing if a run that is to go on was begun with the same options.

    Raises:
        UsageError: if it was not; every option that differs is listed.
    """
    keys = [key for key in {**begun, **wanted} if begun.get(key) != wanted.get(key)]
    shown = [f"{key.replace('_', '-')} was {begun.get(key)!r}, is {wanted.get(key)!r}" for key in keys]
    if shown:
        raise wrong(command, "--resume", f"{run} was begun with other options ({'; '.join(shown)})")


@contextmanager
def own_output(options: argparse.Namespace) -> Iterator[Path | None]:
    """The file of ``--out`` belongs to this run alone inside the block; all that could keep it from being written
    is found out at the beginning.

    Yields:
        Where the run keeps its state until it is done; None without ``--out``.

    Raises:
        UsageError: if the file cannot be written, or holds something else than a checkpoint.
        OutputInUseError: if another run is writing to it.
        Interrupted: at Ctrl-C inside the block.
    """
    out: Path | None = options.out
    if out is None:
        if options.resume:
            raise wrong(options.command, "--resume", "needs --out, which names the run")
        yield None
        return
    if out.suffix.lower() in OTHER_FORMATS:
        better = out.with_suffix(".safetensors")
        raise wrong(
            options.command, "--out", f"checkpoints are safetensors files, not {out.suffix}: name it {better}"
        )
    check_writable(options.command, out)
    try:
        partial = unfinished(out)
    except ValueError as error:
        raise wrong(options.command, "--out", str(error)) from error
    with owned(out):
        try:
            yield partial
        except KeyboardInterrupt as stop:
            if partial.is_file():
                kept = f"{partial} holds the run so far; the same command with --resume goes on from there"
            else:
                kept = "nothing is kept, because the run was not saved yet (see --checkpoint-every)"
            raise Interrupted(kept) from stop


def check_writable(command: str, out: Path, option: str = "--out") -> None:
    """Does nothing if a file can be written there; its folder is made.

    Raises:
        UsageError: if it is a folder, a device or a pipe, or the folder cannot be written to.
    """
    if out.is_dir():
        raise wrong(command, option, f"must be a file, got the folder '{out}'")
    if out.exists() and not out.is_file():
        raise wrong(command, option, f"must be a file, got the device or pipe '{out}'")
    try:
        folder = out.resolve().parent
        make_folder(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise wrong(command, option, f"cannot write '{out}': {error.strerror or error}") from error


def complete(
    options: argparse.Namespace,
    partial: Path | None,
    gan: gp.GAN,
    data: gp.data.ImageData,
    loss: str,
    prepare: Callable[[], dict[str, Any]] | None = None,
    pruning: Callable[[gp.GAN], Any] | None = None,
) -> dict[str, Any]:
    """Trains a GAN to the end, or goes on where a stopped run was; saves and measures it.

    Args:
        options: of the command.
        partial: where the state of the unfinished run lies, see :func:`own_output`.
        gan: where the run begins.
        data: what it is trained on.
        loss: the name of the loss.
        prepare: called before a new run, which it changes; returns what it measured.
        pruning: gives the callback that prunes the GAN while it trains, or None.

    Returns:
        The command's row.
    """
    name = options.command if options.out is None else f"{options.command} {options.out.stem}"
    tracked = tracking(options, options.steps or 1, name)
    request = request_of(options) | {"weights": {n: hash_weights(net) for n, net in gan.networks().items()}}
    done = _finished(options, request)
    if done is not None:
        say(f"{options.out} holds this very run, finished; delete the file to train it anew")
        return _row(options, done, data, loss)
    state = _stopped(options, partial, request)
    prepare_extractor(options, data)
    if state is None:
        gan.metadata = {"data": data.name, "request": request}
        gan.metadata["found"] = prepare() if prepare else {}
        state = gp.TrainState(gan, train_config(options, loss))
    _train(options, state, data, partial, pruning(state.gan) if pruning else None, tracked)
    return _save(options, state, data, partial)


def _train(
    options: argparse.Namespace,
    state: gp.TrainState,
    data: gp.data.ImageData,
    partial: Path | None,
    pruning: Any,
    tracked: list[gp.training.Callback],
) -> None:
    callbacks, begin = progress_callbacks(state.config.steps), time.perf_counter()
    callbacks += tracked
    if partial is not None and options.checkpoint_every:
        callbacks.append(gp.every(options.checkpoint_every, gp.training.Checkpoint(partial)))
    if pruning is not None:
        callbacks.append(pruning)
    if not options.steps:
        return
    config, gan = state.config, state.gan
    say(f"training steps {state.step + 1:,} to {config.steps:,} on {gan.device} in {config.precision}")
    gp.train(state, data.train, callbacks)
    if pruning is not None and getattr(getattr(pruning, "schedule", None), "end", None) == state.step:
        for network in (gan.generator, gan.generator_ema):  # nothing was trained after the last pruning
            gp.recalibrate_batchnorm(network, seed=options.seed)
    gan.metadata["found"] |= {"training_seconds": round(time.perf_counter() - begin, 3)}
    gan.metadata["found"] |= (
        {k: v for k, v in state.history[-1].items() if k != "step"} if state.history else {}
    )


def _save(
    options: argparse.Namespace, state: gp.TrainState, data: gp.data.ImageData, partial: Path | None
) -> dict[str, Any]:
    """Saves the GAN before it is measured, and again with what was measured."""
    gan = state.gan
    gan.metadata |= {"config": dataclasses.asdict(state.config), "provenance": gp.records.provenance()}
    if options.out is not None:
        gp.save(options.out, gan)
    row = _row(options, gan, data, state.config.loss)
    if options.out is not None:
        measured = {key: row[key] for key in row.keys() - shown_request(gan.metadata["request"]).keys()}
        gp.save(options.out, gan, metadata=gan.metadata | {options.split: plain(measured)})
        say(f"saved {options.out} ({options.out.stat().st_size:,} bytes)")
    if partial is not None:
        partial.unlink(missing_ok=True)
    return row


def _row(options: argparse.Namespace, gan: gp.GAN, data: gp.data.ImageData, loss: str) -> dict[str, Any]:
    request = shown_request(gan.metadata["request"])
    row = {"command": options.command, **request, **gan.metadata.get("found", {}), "data": data.name}
    row["training_precision"] = gan.metadata["config"]["precision"]
    row |= measure(options, gan, data, loss, "generator_ema")
    return row | {"out": None if options.out is None else str(options.out)}


def _given(request: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are not left out; a file of before lacks those that are new."""
    return {key: value for key, value in request.items() if value is not None}


def _finished(options: argparse.Namespace, request: Mapping[str, Any]) -> gp.GAN | None:
    """The GAN in ``--out`` if it is the result of this very run.

    Raises:
        UsageError: if the file holds something else than a checkpoint, or another run that ``--resume`` is to go on.
    """
    out: Path | None = options.out
    if out is None or not out.is_file() or not out.stat().st_size:
        return None
    try:
        found = read_safetensors(out)[1].get("metadata", {}).get("request")
    except CheckpointError as error:
        problem = f"'{out}' is no checkpoint and would be replaced; delete it or name another file"
        raise wrong(options.command, "--out", problem) from error
    if found is not None and _given(found) == _given(request):
        return gp.load(out, options.device)
    if options.resume and found is not None and not unfinished(out).is_file():
        check_same_request(options.command, found, request, f"the finished run in {out}")
    say(f"{out} will be replaced when the run is done")
    return None


def _stopped(
    options: argparse.Namespace, partial: Path | None, request: Mapping[str, Any]
) -> gp.TrainState | None:
    """The state of the unfinished run that ``--resume`` continues, if there is one."""
    if partial is None or not partial.is_file():
        if options.resume:
            say("there is no unfinished run to resume; starting from the beginning")
        return None
    if not options.resume:
        raise wrong(
            options.command,
            "--resume",
            f"an unfinished run is in {partial}; add --resume to go on, or delete that file",
        )
    state = gp.TrainState.load(partial, options.device)
    check_same_request(
        options.command, state.gan.metadata.get("request", {}), request, f"the run in {partial}"
    )
    say(f"resuming {partial} after step {state.step:,}")
    return state
