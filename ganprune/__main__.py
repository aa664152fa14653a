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
from typing import Any, NoReturn

from torchvision.utils import save_image

import ganprune as gp
from ganprune.checkpoints import PRETRAINED
from ganprune.data import DATASETS
from ganprune.losses import LOSSES
from ganprune.models import NORMS, latent_dim_of
from ganprune.pruning import ALLOCATION_NAMES, SCORES

FAILURES = (gp.DataError, gp.CheckpointError, gp.DivergenceError, gp.MaskError, OSError)
"""What can go wrong with good arguments: exit code 1 and one sentence."""

NETWORKS = ("generator_ema", "generator")
SPLITS = ("validation", "test")
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

EXAMPLES = {
    "train": """examples:
  ganprune train --steps 12000 --out gan.safetensors
  ganprune train --steps 12000 --out gan.safetensors --resume     after a stop: goes on, to the same weights
  ganprune train --model mlp --steps 20000 --out mlp.safetensors
  ganprune train --data fashion-mnist --loss wasserstein --penalty gradient --critic-steps 5 --norm none \\
      --learning-rate 1e-4 --out fashion.safetensors""",
    "prune": """examples:
  ganprune prune --sparsity 0.8 --steps 1000 --out small.safetensors
  ganprune prune --checkpoint gan.safetensors --sparsity 0.9 --allocation erk --out small.safetensors
  ganprune prune --threshold 0.02 --steps 0 --json""",
    "evaluate": """examples:
  ganprune evaluate
  ganprune evaluate --checkpoint small.safetensors --split test --json > report.json""",
    "sample": """examples:
  ganprune sample --out samples.png
  ganprune sample --checkpoint small.safetensors --n 100 --seed 7 --out samples.png
  ganprune sample --real --data fashion-mnist --out real.png""",
}
EXIT_CODES = "exit codes: 0 done, 1 it could not be done, 2 an argument is wrong, 130 interrupted"


class UsageError(Exception):
    """An argument is wrong; the message is one sentence that names it, what it got and what it allows."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: the arguments; None for those of the process.

    Returns:
        The exit code: 0 done, 1 it could not be done, 2 an argument is wrong, 130 interrupted.
    """
    begin = time.perf_counter()
    try:
        options = _parser().parse_args(argv)
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
    data = _load_data(options, "mnist")
    state = _unfinished(options, partial)
    if state is None:
        shared = {"latent_dim": options.latent_dim, "norm": options.norm, "seed": options.seed}
        if options.model == "dcgan":
            gan = gp.dcgan(data.image_shape, options.width, device=options.device, **shared)
        else:
            hidden = (8 * options.width, 16 * options.width)
            gan = gp.mlp_gan(data.image_shape, hidden=hidden, device=options.device, **shared)
        gan.metadata = {"data": data.name, "request": _request(options)}
        state = gp.TrainState(gan, _config(options, options.loss))
    return _finish(options, state, data, partial)


def _prune(options: argparse.Namespace) -> dict[str, Any]:
    partial = _prepare_out(options)
    if options.sparsity is None and options.threshold is None and ":" not in (options.allocation or ""):
        raise UsageError("ganprune prune: error: one of the arguments --sparsity --threshold is required")
    state = _unfinished(options, partial)
    if state is None:
        gan = _load_gan(options)
        data = _load_data(options, gan.metadata.get("data", "mnist"), gan)
        loss = _loss(options, gan)
        before = _quick_fid(options, gan, data)
        gan.masks["generator"] = gan.masks["generator_ema"] = _prune_ema(options, gan, loss)
        found = {"fid_before": before, "fid_pruned": _quick_fid(options, gan, data)}
        gan.metadata = {"data": data.name, "request": _request(options), "found": found}
        state = gp.TrainState(gan, _config(options, loss))
    else:
        data = _load_data(options, state.gan.metadata["data"], state.gan)
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
    gan = _load_gan(options)
    data = _load_data(options, gan.metadata.get("data", "mnist"), gan)
    row = {"command": "evaluate", "checkpoint": options.checkpoint, "network": options.network}
    return row | _measure(options, gan, data, _loss(options, gan), options.network)


def _sample(options: argparse.Namespace) -> dict[str, Any]:
    if options.out.suffix.lower() != ".png":
        raise UsageError(f"ganprune sample: error: argument --out: must end in .png, got '{options.out}'")
    _prepare_out(options)
    row: dict[str, Any] = {"command": "sample", "n": options.n, "seed": options.seed}
    if options.real:
        data = _load_data(options, "mnist")
        images, row["data"] = data.train.batch(options.n, options.seed, 0), data.name
    else:
        gan = _load_gan(options)
        images = gp.sample(gan.networks()[options.network], options.n, options.seed)
        row |= {"checkpoint": options.checkpoint, "network": options.network}
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
        report = gp.evaluate(
            generator, split, options.samples, options.seed, gan.discriminator, loss, mask=mask
        )
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


def _load_gan(options: argparse.Namespace) -> gp.GAN:
    load = gp.load_pretrained if options.checkpoint in PRETRAINED else gp.load
    return load(options.checkpoint, options.device)


def _load_data(options: argparse.Namespace, default: str, gan: gp.GAN | None = None) -> gp.ImageData:
    """The data of ``--data``, else those that the checkpoint was trained on; they must fit its generator."""
    data = gp.load_data(options.data or default, options.data_root, options.device)
    spec = gan.spec.generator if gan is not None else None
    shape = getattr(spec, "image_shape", None) or getattr(spec, "output_shape", None) or data.image_shape
    if tuple(shape) == (1, 32, 32) and data.name == "mnist":
        data = gp.mnist(options.device, image_size=32)
    if tuple(shape) != data.image_shape:
        raise UsageError(
            f"ganprune {options.command}: error: argument --data: {data.name} has images of shape "
            f"{data.image_shape}, but the generator of {options.checkpoint} makes {tuple(shape)}"
        )
    return data


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


# --- Arguments --------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: error: {message}")


def _number(kind: Callable[[str], Any], allowed: str, fits: Callable[[Any], bool]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not fits(value):
            raise argparse.ArgumentTypeError(f"must be {allowed}, got {text!r}")
        return value

    return parse


COUNT = _number(int, "an integer of at least 1", lambda value: value >= 1)
COUNT_OR_NONE = _number(int, "an integer of at least 0", lambda value: value >= 0)
SAMPLES = _number(
    int, "an integer of at least 2, or 0 for no evaluation", lambda value: value >= 2 or value == 0
)
SEED = _number(int, "an integer", lambda value: True)
POSITIVE = _number(float, "a positive number", lambda value: 0 < value < math.inf)
SPARSITY = _number(float, "a number in [0, 1)", lambda value: 0 <= value < 1)
DECAY = SPARSITY
SHARE = _number(float, "a number in [0, 1]", lambda value: 0 <= value <= 1)
DEFAULT = gp.TrainConfig(steps=1)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ganprune",
        description="Train, prune, evaluate and sample generative adversarial networks.",
        epilog=f"'ganprune COMMAND --help' has examples.\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ganprune {gp.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, run, summary in (
        ("train", _train, "train a GAN and save it"),
        ("prune", _prune, "prune a generator, fine-tune it against its discriminator, and save it"),
        ("evaluate", _evaluate, "measure a generator's quality and size"),
        ("sample", _sample, "write a picture of samples"),
    ):
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"{EXAMPLES[name]}\n\n{EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=run)
        _ARGUMENTS[name](command)
        _common_arguments(command, "mnist" if name == "train" else "what the checkpoint was trained on")
    return parser


def _common_arguments(parser: argparse.ArgumentParser, default_data: str) -> None:
    group = parser.add_argument_group("for every command")
    group.add_argument("--data", choices=DATASETS, help=f"data set (default: {default_data})")
    group.add_argument(
        "--data-root", metavar="DIR", help="folder of a downloaded data set; MNIST ships with the package"
    )
    group.add_argument(
        "--seed", type=SEED, default=0, help="of weights, batches, latents and scores (default: 0)"
    )
    group.add_argument("--device", help="cpu, cuda, cuda:N or mps (default: the best one present)")
    group.add_argument(
        "--json", action="store_true", help="one JSON object on standard output instead of a table"
    )


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FILE", help="checkpoint to write")
    add("--model", choices=("dcgan", "mlp"), default="dcgan", help="(default: dcgan)")
    add(
        "--width",
        type=COUNT,
        default=32,
        help="channels next to the image, or an eighth of the first hidden layer (default: 32)",
    )
    add("--latent-dim", type=COUNT, default=64, help="length of the latent vector (default: 64)")
    add("--norm", choices=NORMS, default="spectral", help="of the discriminator (default: spectral)")
    add("--steps", type=COUNT, default=12_000, help="generator updates (default: 12000)")
    add("--loss", choices=tuple(LOSSES), default=DEFAULT.loss, help=f"(default: {DEFAULT.loss})")
    _update_arguments(parser)
    add("--penalty", choices=("gradient", "r1"), help="on the discriminator (default: none)")
    add("--penalty-weight", type=POSITIVE, default=DEFAULT.penalty_weight, help="(default: 10)")
    add(
        "--critic-steps",
        type=COUNT,
        default=1,
        help="discriminator updates per generator update (default: 1)",
    )
    add("--clip", type=POSITIVE, help="clip the discriminator's weights to ±CLIP (default: never)")
    _run_arguments(parser)
    _evaluation_arguments(parser)


def _prune_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _checkpoint_argument(parser)
    add("--out", type=Path, metavar="FILE", help="checkpoint to write, masks included (default: only report)")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument(
        "--sparsity", type=SPARSITY, help="share of zeros among the prunable weights, in [0, 1)"
    )
    amount.add_argument("--threshold", type=POSITIVE, help="prune every weight whose score is below")
    add("--score", choices=sorted(SCORES), default="magnitude", help="(default: magnitude)")
    add(
        "--allocation",
        choices=ALLOCATION_NAMES,
        help="of the zeros to layers (default: global, or the score's own)",
    )
    add(
        "--protect",
        action="append",
        default=[],
        metavar="LAYER",
        help="a layer to leave dense; may be repeated",
    )
    add(
        "--steps", type=COUNT_OR_NONE, default=1_000, help="of fine-tuning with the mask kept (default: 1000)"
    )
    add("--loss", choices=tuple(LOSSES), help="of fine-tuning (default: that of the checkpoint)")
    _update_arguments(parser)
    _run_arguments(parser)
    _evaluation_arguments(parser)


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    _checkpoint_argument(parser)
    _network_argument(parser)
    parser.add_argument(
        "--loss", choices=tuple(LOSSES), help="behind real_loss and fake_loss (default: the checkpoint's)"
    )
    _evaluation_arguments(parser)


def _sample_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _checkpoint_argument(parser)
    _network_argument(parser)
    add(
        "--out",
        type=Path,
        default=Path("samples.png"),
        metavar="FILE",
        help="picture to write (default: samples.png)",
    )
    add("--n", type=COUNT, default=64, help="number of images (default: 64)")
    add("--real", action="store_true", help="show images of the data set instead, for comparison")
    parser.set_defaults(resume=False)


def _checkpoint_argument(parser: argparse.ArgumentParser) -> None:
    names = " or ".join(PRETRAINED)
    help_text = f"a file, or {names}, which ship with the package (default: {PRETRAINED[0]})"
    parser.add_argument("--checkpoint", default=PRETRAINED[0], metavar="FILE|NAME", help=help_text)


def _network_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--network", choices=NETWORKS, default=NETWORKS[0], help=f"(default: {NETWORKS[0]})")


def _update_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--batch-size", type=COUNT, default=DEFAULT.batch_size, help=f"(default: {DEFAULT.batch_size})")
    add(
        "--learning-rate",
        type=POSITIVE,
        default=DEFAULT.learning_rate,
        help=f"held, then decayed to zero (default: {DEFAULT.learning_rate:g})",
    )
    add(
        "--decay-from",
        type=SHARE,
        default=DEFAULT.decay_from,
        help=f"share of the steps for which it is held (default: {DEFAULT.decay_from:g})",
    )
    add(
        "--ema-decay",
        type=DECAY,
        default=DEFAULT.ema_decay,
        help=f"of the generator's moving average (default: {DEFAULT.ema_decay:g})",
    )


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--checkpoint-every",
        type=COUNT_OR_NONE,
        default=500,
        metavar="N",
        help="steps between saves of an unfinished run beside --out; 0 never (default: 500)",
    )
    add("--resume", action="store_true", help="go on with the unfinished run of this --out, if there is one")


def _evaluation_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--samples",
        type=SAMPLES,
        default=10_000,
        help="generated to evaluate; 0 for no evaluation (default: 10000)",
    )
    parser.add_argument(
        "--split", choices=SPLITS, default="validation", help="the reference (default: validation)"
    )


_ARGUMENTS = {
    "train": _train_arguments,
    "prune": _prune_arguments,
    "evaluate": _evaluate_arguments,
    "sample": _sample_arguments,
}

if __name__ == "__main__":
    sys.exit(main())
