"""What the command line takes: commands, options, ranges, help texts. No command runs here."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import ganprune as gp
from ganprune.checkpoints import PRETRAINED
from ganprune.data import DATASETS
from ganprune.imported import check_import_path
from ganprune.losses import LOSSES
from ganprune.models import NORMS
from ganprune.pruning import ALLOCATION_NAMES, SCORES

NETWORKS = ("generator_ema", "generator")
SPLITS = ("validation", "test")
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


def _import_path(text: str) -> str:
    try:
        return check_import_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _json_object(text: str) -> dict[str, Any]:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(constant)

    try:
        value = json.loads(text, parse_constant=refuse)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(
            f"must be a JSON object such as '{{\"latent_dim\": 8}}', got {text!r}"
        )
    return value


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


def build_parser(
    commands: Mapping[str, Callable[[argparse.Namespace], dict[str, Any]]],
) -> argparse.ArgumentParser:
    """The parser of the whole command line.

    Args:
        commands: what runs each command, by name; ``options.run`` afterwards.
    """
    parser = _Parser(
        prog="ganprune",
        description="Train, prune, evaluate and sample generative adversarial networks.",
        epilog=f"'ganprune COMMAND --help' has examples.\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ganprune {gp.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, run in commands.items():
        summary, add_arguments = _COMMANDS[name]
        command = subparsers.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"{EXAMPLES[name]}\n\n{EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=run, checkpoint=None)
        add_arguments(command)
        _own_arguments(command)
        _common_arguments(command, "mnist" if name == "train" else "what the checkpoint was trained on")
    return parser


def settle(options: argparse.Namespace) -> None:
    """Checks what options ask of each other, and fills in the defaults that depend on others.

    Raises:
        UsageError: if two options do not go together.
    """
    where = f"ganprune {options.command}: error: argument"
    for role in ("generator", "discriminator"):
        for name in ("args", "weights"):
            if getattr(options, f"{role}_{name}") is not None and getattr(options, role) is None:
                raise UsageError(f"{where} --{role}-{name}: needs --{role}, which names the class")
        if options.checkpoint is not None and getattr(options, f"{role}_weights") is not None:
            raise UsageError(f"{where} --{role}-weights: not allowed with --checkpoint, which has weights")
    if options.command == "train":
        if options.generator is None:
            options.latent_dim = options.latent_dim or 64
        elif options.latent_dim is not None:
            raise UsageError(f"{where} --latent-dim: not allowed with --generator, which has its own")
    elif options.checkpoint is None and options.generator is None:
        if options.discriminator is not None:
            raise UsageError(f"{where} --discriminator: needs --generator, or the --checkpoint that holds it")
        options.checkpoint = PRETRAINED[0]


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
    add("--latent-dim", type=COUNT, help="length of the latent vector (default: 64)")
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
    parser.add_argument("--checkpoint", metavar="FILE|NAME", help=help_text)


def _own_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "networks of your own",
        "A class (or a function) in a module that Python finds from the current directory. A checkpoint remembers "
        "its name and arguments, but no code: name it again to load that checkpoint.",
    )
    for role, kind in (
        (
            "generator",
            "latents (N, latent_dim) to images (N, C, H, W) in [-1, 1]; has an attribute latent_dim",
        ),
        ("discriminator", "images to logits (N,) (default: the checkpoint's, else the course's)"),
    ):
        group.add_argument(f"--{role}", type=_import_path, metavar="MODULE:CLASS", help=f"from {kind}")
        group.add_argument(
            f"--{role}-args", type=_json_object, metavar="JSON", help="its keyword arguments, a JSON object"
        )
        group.add_argument(
            f"--{role}-weights",
            metavar="FILE",
            help="its state dict in safetensors format (default: by --seed)",
        )


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


_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "train": ("train a GAN and save it", _train_arguments),
    "prune": (
        "prune a generator, fine-tune it against its discriminator, and save it",
        _prune_arguments,
    ),
    "evaluate": ("measure a generator's quality and size", _evaluate_arguments),
    "sample": ("write a picture of samples", _sample_arguments),
}
