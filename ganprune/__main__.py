"""The command line, ``ganprune`` or ``python -m ganprune``: train, prune, find tickets, evaluate, sample."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torchvision.utils import save_image

import ganprune as gp
from ganprune.cli.arguments import (
    UsageError,
    build_parser,
    check_request,
    prunes_at_once,
    request_of,
    settle,
    train_config,
)
from ganprune.cli.lottery import run_lottery
from ganprune.cli.networks import load_data, load_gan, loss_of, named_paths, new_gan
from ganprune.cli.output import as_json, as_table, fail, losses, measure, plain, quick_fid, say, sentence
from ganprune.cli.pruning import Pruning, prune_at_once, settle_masks, while_training
from ganprune.networks.custom import trust

FAILURES = (gp.data.DataError, gp.core.CheckpointError, gp.training.DivergenceError, gp.MaskError, OSError)
"""What can go wrong with good arguments: exit code 1 and one sentence."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: the arguments; None for those of the process.

    Returns:
        The exit code: 0 done, 1 it could not be done, 2 an argument is wrong, 130 interrupted.
    """
    begin = time.perf_counter()
    try:
        options = build_parser(_RUN).parse_args(argv)
        settle(options)
        with trust(*named_paths(options)):
            row = options.run(options)
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)
    except UsageError as error:
        return fail(2, str(error))
    except FAILURES as error:
        return fail(1, f"ganprune: error: {sentence(error)}")
    except ValueError as error:
        return fail(2, f"ganprune: error: {sentence(error)}")
    except KeyboardInterrupt:
        return fail(130, "ganprune: interrupted")
    row["seconds"] = round(time.perf_counter() - begin, 3)
    sys.stdout.write(as_json(row) if options.json else as_table(row))
    return 0


# --- The commands -----------------------------------------------------------------------------------------


def _train(options: argparse.Namespace) -> dict[str, Any]:
    partial = _prepare_out(options)
    state = _unfinished(options, partial)
    if state is not None:
        data = load_data(options, state.gan.metadata["data"], state.gan)
    else:
        if options.generator is None:
            data = load_data(options, "mnist")
            gan = new_gan(options, data.image_shape)
        else:
            gan = new_gan(options)
            data = load_data(options, "mnist", gan)
        gan.metadata = {"data": data.name, "request": request_of(options)}
        state = gp.TrainState(gan, train_config(options, options.loss))
    return _finish(options, state, data, partial)


def _prune(options: argparse.Namespace) -> dict[str, Any]:
    partial = _prepare_out(options)
    state = _unfinished(options, partial)
    if state is not None:
        data = load_data(options, state.gan.metadata["data"], state.gan)
        callback = while_training(options, state.gan, state.config.loss)
        return _finish(options, state, data, partial, callback)
    gan = load_gan(options)
    data = load_data(options, gan.metadata.get("data", "mnist"), gan)
    loss = loss_of(options, gan)
    gan.metadata = {"data": data.name}
    callback = while_training(options, gan, loss)
    found = {"fid_before": quick_fid(options, gan, data)}
    if prunes_at_once(options):
        prune_at_once(options, gan, loss)
        found["fid_pruned"] = quick_fid(options, gan, data)
    else:
        gan.generator.load_state_dict(gan.generator_ema.state_dict())
    gan.metadata |= {"request": request_of(options), "found": found}
    return _finish(options, gp.TrainState(gan, train_config(options, loss)), data, partial, callback)


def _evaluate(options: argparse.Namespace) -> dict[str, Any]:
    gan = load_gan(options)
    data = load_data(options, gan.metadata.get("data", "mnist"), gan)
    row = {"command": "evaluate", "checkpoint": options.checkpoint, "generator": options.generator}
    row["network"] = options.network
    return row | measure(options, gan, data, loss_of(options, gan), options.network)


def _sample(options: argparse.Namespace) -> dict[str, Any]:
    if options.out.suffix.lower() != ".png":
        raise UsageError(f"ganprune sample: error: argument --out: must end in .png, got '{options.out}'")
    _prepare_out(options)
    row: dict[str, Any] = {"command": "sample", "n": options.n, "seed": options.seed}
    if options.real:
        data = load_data(options, "mnist")
        images, row["data"] = data.train.batch(options.n, options.seed, 0), data.name
    else:
        gan = load_gan(options)
        images = gp.sample(gan.networks()[options.network], options.n, options.seed)
        row |= {
            "checkpoint": options.checkpoint,
            "generator": options.generator,
            "network": options.network,
        }
    columns = math.ceil(math.sqrt(options.n))
    save_image(images, options.out, nrow=columns, padding=1, normalize=True, value_range=(-1, 1))
    say(f"saved {options.out}")
    return row | {"out": str(options.out)}


# --- What the commands share ------------------------------------------------------------------------------


def _finish(
    options: argparse.Namespace,
    state: gp.TrainState,
    data: gp.data.ImageData,
    partial: Path | None,
    pruning: Pruning | None = None,
) -> dict[str, Any]:
    """Trains to the end, saves, evaluates, and saves again with what was found."""
    gan, config, begin = state.gan, state.config, time.perf_counter()
    callbacks: list[Callable[[gp.TrainState], Any]] = [] if sys.stderr.isatty() else [losses(config.steps)]
    if partial is not None and options.checkpoint_every:
        callbacks.append(gp.every(options.checkpoint_every, gp.Checkpoint(partial)))
    if pruning is not None:
        pruning.begin(state)
        callbacks.append(pruning)
    if options.steps:
        say(f"training steps {state.step + 1} to {config.steps} on {gan.device} in {config.precision}")
        gp.train(state, data.train, callbacks)
    settle_masks(pruning, state, options.seed)
    row = {"command": options.command, **gan.metadata["request"], **gan.metadata.get("found", {})}
    row |= {"data": data.name, "training_seconds": round(time.perf_counter() - begin, 3)}
    if state.history:
        row |= {key: value for key, value in state.history[-1].items() if key != "step"}
    kept = {"data": data.name, "config": dataclasses.asdict(config), "request": gan.metadata["request"]}
    kept["provenance"] = gp.records.provenance()
    if options.out is not None:
        gp.save(options.out, gan, metadata=kept)
    report = measure(options, gan, data, config.loss, "generator_ema")
    if options.out is not None:
        gp.save(options.out, gan, metadata=kept | {options.split: plain(report)})
        say(f"saved {options.out} ({options.out.stat().st_size:,} bytes)")
    if partial is not None:
        partial.unlink(missing_ok=True)
    return row | report | {"out": None if options.out is None else str(options.out)}


def _prepare_out(options: argparse.Namespace) -> Path | None:
    """Finds out before any work whether the result can be written; returns where an unfinished run lies."""
    where = f"ganprune {options.command}: error: argument --out:"
    if options.out is None:
        if options.resume:
            raise UsageError(
                f"ganprune {options.command}: error: argument --resume: needs --out, which names the run"
            )
        return None
    if options.out.is_dir():
        raise UsageError(f"{where} must be a file, got the folder '{options.out}'")
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=options.out.parent):
            pass
    except OSError as error:
        raise UsageError(f"{where} cannot write '{options.out}': {error.strerror or error}") from error
    return options.out.with_name(f"{options.out.stem}.partial.safetensors")


def _unfinished(options: argparse.Namespace, partial: Path | None) -> gp.TrainState | None:
    """The state of the unfinished run that ``--resume`` continues, if there is one."""
    where = f"ganprune {options.command}: error: argument --resume:"
    if partial is None or not partial.is_file():
        if options.resume:
            say("there is no unfinished run to resume; starting from the beginning")
        return None
    if not options.resume:
        raise UsageError(
            f"{where} an unfinished run is in {partial}; add --resume to go on, or delete that file"
        )
    state = gp.TrainState.load(partial, options.device)
    check_request(options, state.gan.metadata.get("request", {}), f"the run in {partial}")
    say(f"resuming {partial} after step {state.step}")
    return state


_RUN = {
    "train": _train,
    "prune": _prune,
    "lottery": run_lottery,
    "evaluate": _evaluate,
    "sample": _sample,
}

if __name__ == "__main__":
    sys.exit(main())
