"""The command line, ``ganprune`` or ``python -m ganprune``: train, prune, evaluate, sample."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torchvision.utils import save_image

import ganprune as gp
from ganprune.cli_arguments import UsageError, build_parser, settle
from ganprune.cli_networks import load_data, load_gan, named_paths, new_gan
from ganprune.imported import trust
from ganprune.models import latent_dim_of

FAILURES = (gp.DataError, gp.CheckpointError, gp.DivergenceError, gp.MaskError, OSError)
"""What can go wrong with good arguments: exit code 1 and one sentence."""

NOT_IN_REQUEST = (
    "run",
    "json",
    "device",
    "data_root",
    "out",
    "resume",
    "checkpoint_every",
    "samples",
    "split",
)
"""Options that do not change the weights; a resumed run must agree with its beginning in all the others."""

TABLE = (
    *(
        "checkpoint",
        "generator",
        "network",
        "model",
        "data",
        "split",
        "samples",
        "extractor",
        "score",
        "allocation",
        "steps",
    ),
    *("fid_before", "fid_pruned", "fid", "fid_floor", "kid", "precision", "recall", "density", "coverage"),
    *("histogram_kl", "real_loss", "fake_loss", "real_accuracy", "fake_accuracy", "sparsity", "nonzero"),
    *("parameters", "macs", "effective_macs", "file_bytes", "compressed_bytes", "latency_seconds"),
    *("out", "seconds"),
)
"""What is shown without ``--json``, in this order."""


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
        return _fail(2, str(error))
    except FAILURES as error:
        return _fail(1, f"ganprune: error: {_sentence(error)}")
    except ValueError as error:
        return _fail(2, f"ganprune: error: {_sentence(error)}")
    except KeyboardInterrupt:
        return _fail(130, "ganprune: interrupted")
    row["seconds"] = round(time.perf_counter() - begin, 3)
    sys.stdout.write(_json(row) if options.json else _table(row))
    return 0


# --- The four commands ------------------------------------------------------------------------------------


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
        gan.metadata = {"data": data.name, "request": _request(options)}
        state = gp.TrainState(gan, _config(options, options.loss))
    return _finish(options, state, data, partial)


def _prune(options: argparse.Namespace) -> dict[str, Any]:
    partial = _prepare_out(options)
    if options.sparsity is None and options.threshold is None and ":" not in (options.allocation or ""):
        raise UsageError("ganprune prune: error: one of the arguments --sparsity --threshold is required")
    state = _unfinished(options, partial)
    if state is None:
        gan = load_gan(options)
        data = load_data(options, gan.metadata.get("data", "mnist"), gan)
        loss = _loss(options, gan)
        before = _quick_fid(options, gan, data)
        gan.masks["generator"] = gan.masks["generator_ema"] = _prune_ema(options, gan, loss)
        found = {"fid_before": before, "fid_pruned": _quick_fid(options, gan, data)}
        gan.metadata = {"data": data.name, "request": _request(options), "found": found}
        state = gp.TrainState(gan, _config(options, loss))
    else:
        data = load_data(options, state.gan.metadata["data"], state.gan)
    return _finish(options, state, data, partial)


def _prune_ema(options: argparse.Namespace, gan: gp.GAN, loss: str) -> gp.Mask:
    """Prunes the EMA weights, recalibrates batch norm, and gives the result to both generators."""
    gan.generator.load_state_dict(gan.generator_ema.state_dict())
    mask = gp.prune(
        gan.generator,
        options.sparsity,
        threshold=options.threshold,
        score=options.score,
        allocation=options.allocation,
        protect=tuple(options.protect),
        within=gan.masks.get("generator"),
        seed=options.seed,
        loss_fn=gp.generator_loss(gan, loss=loss, seed=options.seed),
        inputs=gp.sample_latents(256, latent_dim_of(gan.generator), options.seed, gan.device),
        ema=gan.generator_ema,
    )
    gp.recalibrate_batchnorm(gan.generator, seed=options.seed)
    gan.generator_ema.load_state_dict(gan.generator.state_dict())
    return mask


def _evaluate(options: argparse.Namespace) -> dict[str, Any]:
    gan = load_gan(options)
    data = load_data(options, gan.metadata.get("data", "mnist"), gan)
    row = {"command": "evaluate", "checkpoint": options.checkpoint, "generator": options.generator}
    row["network"] = options.network
    return row | _measure(options, gan, data, _loss(options, gan), options.network)


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
    _say(f"saved {options.out}")
    return row | {"out": str(options.out)}


# --- What the commands share ------------------------------------------------------------------------------


def _finish(
    options: argparse.Namespace, state: gp.TrainState, data: gp.ImageData, partial: Path | None
) -> dict[str, Any]:
    """Trains to the end, saves, evaluates, and saves again with what was found."""
    gan, config, begin = state.gan, state.config, time.perf_counter()
    callbacks: list[Callable[[gp.TrainState], Any]] = [] if sys.stderr.isatty() else [_losses(config.steps)]
    if partial is not None and options.checkpoint_every:
        callbacks.append(gp.every(options.checkpoint_every, gp.Checkpoint(partial)))
    if options.steps:
        _say(f"training steps {state.step + 1} to {config.steps} on {gan.device} in {config.precision}")
        gp.train(state, data.train, callbacks)
    row = {"command": options.command, **gan.metadata["request"], **gan.metadata.get("found", {})}
    row |= {"data": data.name, "training_seconds": round(time.perf_counter() - begin, 3)}
    if state.history:
        row |= {key: value for key, value in state.history[-1].items() if key != "step"}
    kept = {"data": data.name, "config": dataclasses.asdict(config), "request": gan.metadata["request"]}
    kept["provenance"] = gp.results.provenance()
    if options.out is not None:
        gp.save(options.out, gan, metadata=kept)
    report = _measure(options, gan, data, config.loss, "generator_ema")
    if options.out is not None:
        gp.save(options.out, gan, metadata=kept | {options.split: _plain(report)})
        _say(f"saved {options.out} ({options.out.stat().st_size:,} bytes)")
    if partial is not None:
        partial.unlink(missing_ok=True)
    return row | report | {"out": None if options.out is None else str(options.out)}


def _measure(
    options: argparse.Namespace, gan: gp.GAN, data: gp.ImageData, loss: str, network: str
) -> dict[str, Any]:
    """Quality, unless ``--samples 0`` leaves it out, and size of one of the generators."""
    generator, mask = gan.networks()[network], gan.masks.get("generator")
    row: dict[str, Any] = {"device": str(gan.device), "data": data.name, "split": options.split}
    row["samples"] = options.samples
    if options.samples:
        _say(f"evaluating {options.samples:,} samples against the {options.split} split of {data.name}")
        split = getattr(data, options.split)
        new = options.command == "evaluate" and not (options.checkpoint or options.discriminator_weights)
        judge = None if new else gan.discriminator  # one that was never trained has nothing to say
        report = gp.evaluate(generator, split, options.samples, options.seed, judge, loss, mask=mask)
        row |= report.as_dict()
    return row | gp.complexity(generator, mask).as_dict()


def _quick_fid(options: argparse.Namespace, gan: gp.GAN, data: gp.ImageData) -> float | None:
    if not options.samples:
        return None
    split = getattr(data, options.split)
    report = gp.evaluate(gan.generator_ema, split, options.samples, options.seed, metrics=("fid",))
    return report.fid


def _config(options: argparse.Namespace, loss: str) -> gp.TrainConfig:
    fields = (
        field.name for field in dataclasses.fields(gp.TrainConfig) if field.name not in ("steps", "loss")
    )
    given = {name: getattr(options, name) for name in fields if hasattr(options, name)}
    return gp.TrainConfig(steps=options.steps or 1, loss=loss, **given)


def _loss(options: argparse.Namespace, gan: gp.GAN) -> str:
    """The loss of ``--loss``, else that of the checkpoint."""
    return options.loss or gan.metadata.get("config", {}).get("loss", "hinge")


def _request(options: argparse.Namespace) -> dict[str, Any]:
    return {
        key: value for key, value in vars(options).items() if key not in NOT_IN_REQUEST and key != "command"
    }


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
            _say("there is no unfinished run to resume; starting from the beginning")
        return None
    if not options.resume:
        raise UsageError(
            f"{where} an unfinished run is in {partial}; add --resume to go on, or delete that file"
        )
    state = gp.TrainState.load(partial, options.device)
    begun = state.gan.metadata.get("request", {})
    wanted = json.loads(json.dumps(_request(options)))
    differing = [
        f"{key.replace('_', '-')} was {begun.get(key)!r}, is {wanted.get(key)!r}"
        for key in {**begun, **wanted}
        if begun.get(key) != wanted.get(key)
    ]
    if differing:
        raise UsageError(
            f"{where} the run in {partial} was begun with other options ({'; '.join(differing)})"
        )
    _say(f"resuming {partial} after step {state.step}")
    return state


# --- Output -----------------------------------------------------------------------------------------------


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _fail(code: int, text: str) -> int:
    _say(text)
    return code


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _losses(steps: int) -> gp.every:
    """Ten lines of progress for a log file, where no progress bar is drawn."""

    def report(state: gp.TrainState) -> None:
        losses = state.history[-1] if state.history else {}
        shown = ", ".join(
            f"{key.replace('_', ' ')} {value:.3f}" for key, value in losses.items() if key != "step"
        )
        _say(f"step {state.step} of {steps}" + (f": {shown}" if shown else ""))

    return gp.every(max(1, steps // 10), report)


def _plain(value: Any) -> Any:
    """The value with null for what JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _json(row: dict[str, Any]) -> str:
    return json.dumps(_plain(row), allow_nan=False, default=str) + "\n"


def _table(row: dict[str, Any]) -> str:
    """Two columns: what there is of :data:`TABLE`; FID in the features of the digit classifier is called digit-FID."""
    shown = {}
    for key in TABLE:
        value = row.get(key)
        if value is not None:
            digits = key.startswith("fid") and row["data"] == "mnist"
            label = ("digit-" if digits else "") + key.replace("_", " ")
            shown[label] = f"{value:,.4g}" if isinstance(value, float) else str(value)
            if type(value) is int:
                shown[label] = f"{value:,}"
    width = max(map(len, shown))
    return "".join(f"{label:<{width}}  {value}\n" for label, value in shown.items())


_RUN = {"train": _train, "prune": _prune, "evaluate": _evaluate, "sample": _sample}

if __name__ == "__main__":
    sys.exit(main())
