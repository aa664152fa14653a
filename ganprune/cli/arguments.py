"""What the command line takes: commands, options, ranges, help texts. No command runs here."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import ganprune as gp
from ganprune.allocation.shares import ALLOCATION_NAMES
from ganprune.data.sources import DATASETS
from ganprune.dynamic.regrowth import METHODS
from ganprune.dynamic.schedules import SCHEDULES
from ganprune.losses import LOSSES
from ganprune.lottery.iterative import REWINDINGS
from ganprune.networks.checkpoints import PRETRAINED
from ganprune.networks.custom import check_import_path
from ganprune.networks.parts import NORMS
from ganprune.scores.registry import SCORES

NETWORKS = ("generator_ema", "generator")
SPLITS = ("validation", "test")
MOVEMENT = "movement"
"""The score that is gathered while the network trains, so it is none of ``SCORES``."""
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
  ganprune prune --sparsity 0.9 --schedule cubic --prune-start 200 --prune-end 800 --out small.safetensors
  ganprune prune --sparsity 0.9 --score movement --schedule cubic --prune-end 800 --out small.safetensors
  ganprune prune --sparsity 0.9 --score random --allocation erk --dynamic rigl --out small.safetensors
  ganprune prune --generator my_networks:Net --generator-args '{"latent_dim": 8}' \\
      --generator-weights net.safetensors --sparsity 0.8 --out small.safetensors
  ganprune prune --threshold 0.02 --steps 0 --json""",
    "lottery": """examples:
  ganprune lottery --rounds 5 --steps 12000 --out tickets
  ganprune lottery --rounds 5 --steps 12000 --out tickets --resume     after a stop: goes on where it was
  ganprune lottery --rewind late --rewind-step 500 --arm reinitialised --arm shuffled --out late --json
  ganprune evaluate --checkpoint tickets/trained-05.safetensors""",
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


def _ticket_score(text: str) -> str:
    if text == MOVEMENT:
        raise argparse.ArgumentTypeError(
            f"must be a score of the trained network, which a ticket needs; {MOVEMENT} is gathered while training"
        )
    return text


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


def _points(text: str) -> dict[int, float]:
    try:
        pairs = [part.split(":") for part in text.split(",")]
        points = {int(step): float(sparsity) for step, sparsity in pairs}
    except ValueError:
        points = {}
    if not points or any(step < 0 or not 0 <= value < 1 for step, value in points.items()):
        raise argparse.ArgumentTypeError(
            f"must be steps and sparsities in [0, 1) such as 0:0.5,500:0.8, got {text!r}"
        )
    return points


COUNT = _number(int, "an integer of at least 1", lambda value: value >= 1)
COUNT_OR_NONE = _number(int, "an integer of at least 0", lambda value: value >= 0)
SAMPLES = _number(
    int, "an integer of at least 2, or 0 for no evaluation", lambda value: value >= 2 or value == 0
)
SEED = _number(int, "an integer", lambda value: True)
POSITIVE = _number(float, "a positive number", lambda value: 0 < value < math.inf)
SPARSITY = _number(float, "a number in [0, 1)", lambda value: 0 <= value < 1)
DECAY = SPARSITY
BETWEEN = _number(float, "a number in (0, 1)", lambda value: 0 < value < 1)
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
        description="Train, prune, evaluate and sample generative adversarial networks; find lottery tickets.",
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
        _common_arguments(
            command, "mnist" if name == "train" else "what the checkpoint was trained on, else mnist"
        )
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
    fresh = options.command == "train" or (options.command == "lottery" and options.checkpoint is None)
    if fresh and options.generator is None:
        options.latent_dim = options.latent_dim or 64
    elif getattr(options, "latent_dim", None) is not None:
        given = "--generator" if options.checkpoint is None else "--checkpoint"
        raise UsageError(f"{where} --latent-dim: not allowed with {given}, which has its own")
    elif options.checkpoint is None and options.generator is None:
        if options.discriminator is not None:
            raise UsageError(f"{where} --discriminator: needs --generator, or the --checkpoint that holds it")
        options.checkpoint = PRETRAINED[0]
    if options.command == "prune":
        _settle_schedule(options, where)
    if options.command == "lottery":
        _settle_lottery(options, where)


def prunes_at_once(options: argparse.Namespace) -> bool:
    """Whether the mask is chosen before fine-tuning begins."""
    return options.schedule == "one-shot" and not options.prune_start and options.score != MOVEMENT


def _settle_schedule(options: argparse.Namespace, where: str) -> None:
    pattern, at_once = ":" in (options.allocation or ""), prunes_at_once(options)
    if options.sparsity is None and options.threshold is None and not pattern and not options.prune_points:
        raise UsageError(
            "ganprune prune: error: one of the arguments --sparsity --threshold --prune-points is required"
        )
    moving = options.score == MOVEMENT
    if moving:
        _check_movement(options, where)
    if not at_once and options.threshold is not None:
        raise UsageError(f"{where} --threshold: prunes at once, so it goes with no schedule")
    if not at_once and pattern:
        raise UsageError(
            f"{where} --allocation: {options.allocation} has one sparsity, so it goes with no schedule"
        )
    if options.dynamic is not None and not at_once:
        raise UsageError(f"{where} --dynamic: needs a mask from the start, so it goes with no schedule")
    rounds = options.schedule == "geometric"
    piecewise = options.schedule == "piecewise"
    repeats = moving or rounds or options.schedule == "cubic" or options.dynamic is not None
    takers = {
        "prune_keep": rounds,
        "prune_points": piecewise,
        "prune_every": repeats and not piecewise,
        "prune_end": repeats,
        "prune_start": moving or (not piecewise and options.dynamic is None),
    }
    for name, taken in takers.items():
        if getattr(options, name) is not None and not taken:
            flag = name.replace("_", "-")
            raise UsageError(f"{where} --{flag}: is not used by --schedule {options.schedule}")
    if piecewise and options.prune_points is None:
        raise UsageError(f"{where} --prune-points: is required by --schedule piecewise")
    options.prune_start = options.prune_start or 0
    options.prune_every = options.prune_every or (1 if moving and not rounds else 100)
    options.prune_keep = options.prune_keep or 0.8
    if options.prune_end is None and (options.schedule == "cubic" or (moving and not rounds)):
        options.prune_end = options.prune_start + max(1, round(0.75 * (options.steps - options.prune_start)))
        if options.prune_points:
            options.prune_end = max(options.prune_end, *options.prune_points)


def _check_movement(options: argparse.Namespace, where: str) -> None:
    """Movement needs weights that are all there and that train, until its mask is final."""
    given = {
        "threshold": options.threshold,
        "allocation": options.allocation if ":" in (options.allocation or "") else None,
        "dynamic": options.dynamic,
    }
    for name, value in given.items():
        if value is not None:
            raise UsageError(
                f"{where} --{name}: {value} sets the mask at once, so it does not go with --score {MOVEMENT}"
            )
    if not options.steps:
        raise UsageError(
            f"{where} --steps: must be at least 1 with --score {MOVEMENT}, which is gathered while training, got 0"
        )


def _settle_lottery(options: argparse.Namespace, where: str) -> None:
    options.arm = [arm for arm in ("reinitialised", "shuffled", "random") if arm in options.arm]
    lost = [arm for arm in options.arm if arm in ("shuffled", "random")]
    if lost and options.rewind == "learning-rate":
        raise UsageError(
            f"{where} --arm: {lost[0]} not with --rewind learning-rate, which has lost the pruned weights"
        )


def request_of(options: argparse.Namespace) -> dict[str, Any]:
    """The options that determine the weights."""
    return {
        key: value for key, value in vars(options).items() if key not in NOT_IN_REQUEST and key != "command"
    }


def train_config(options: argparse.Namespace, loss: str) -> gp.TrainConfig:
    """The training run that the options ask for."""
    fields = (
        field.name for field in dataclasses.fields(gp.TrainConfig) if field.name not in ("steps", "loss")
    )
    given = {name: getattr(options, name) for name in fields if hasattr(options, name)}
    return gp.TrainConfig(steps=options.steps or 1, loss=loss, **given)


def check_request(
    options: argparse.Namespace, begun: Mapping[str, Any], run: str, leave_out: Sequence[str] = ()
) -> None:
    """Does nothing if a run that is resumed was begun with the same options.

    Raises:
        UsageError: if it was not; every option that differs is listed.
    """
    wanted = json.loads(json.dumps(request_of(options)))
    differing = [
        f"{key.replace('_', '-')} was {begun.get(key)!r}, is {wanted.get(key)!r}"
        for key in {**begun, **wanted}
        if begun.get(key) != wanted.get(key) and key not in leave_out
    ]
    if differing:
        raise UsageError(
            f"ganprune {options.command}: error: argument --resume: {run} was begun with other options "
            f"({'; '.join(differing)})"
        )


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
    _new_network_arguments(parser)
    add(
        "--steps",
        type=COUNT_OR_NONE,
        default=12_000,
        help="generator updates; 0 saves the GAN as it is initialised, to prune it then (default: 12000)",
    )
    add("--loss", choices=tuple(LOSSES), default=DEFAULT.loss, help=f"(default: {DEFAULT.loss})")
    _loop_arguments(parser)
    _run_arguments(parser)
    _evaluation_arguments(parser)


def _new_network_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", choices=("dcgan", "mlp"), default="dcgan", help="(default: dcgan)")
    add(
        "--width",
        type=COUNT,
        default=32,
        help="channels next to the image, or an eighth of the first hidden layer (default: 32)",
    )
    add("--latent-dim", type=COUNT, help="length of the latent vector (default: 64)")
    add("--norm", choices=NORMS, default="spectral", help="of the discriminator (default: spectral)")


def _loop_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
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


def _prune_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _checkpoint_argument(parser)
    add("--out", type=Path, metavar="FILE", help="checkpoint to write, masks included (default: only report)")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument(
        "--sparsity", type=SPARSITY, help="share of zeros among the prunable weights, in [0, 1)"
    )
    amount.add_argument("--threshold", type=POSITIVE, help="prune every weight whose score is below")
    parser.add_argument(
        "--score",
        choices=sorted([*SCORES, MOVEMENT]),
        default="magnitude",
        help=f"{MOVEMENT} is gathered while the generator is fine-tuned (default: magnitude)",
    )
    _method_arguments(parser)
    _schedule_arguments(parser)
    add(
        "--steps", type=COUNT_OR_NONE, default=1_000, help="of fine-tuning with the mask kept (default: 1000)"
    )
    add("--loss", choices=tuple(LOSSES), help="of fine-tuning (default: that of the checkpoint)")
    _update_arguments(parser)
    _run_arguments(parser)
    _evaluation_arguments(parser)


def _method_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
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


def _schedule_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("while it is fine-tuned").add_argument
    add(
        "--schedule",
        choices=tuple(SCHEDULES),
        default="one-shot",
        help="sparsity against the step of fine-tuning; each pruning scores the weights anew (default: one-shot)",
    )
    add(
        "--prune-start",
        type=COUNT_OR_NONE,
        metavar="STEP",
        help=f"first step at which it is pruned, or after which {MOVEMENT} is gathered (default: 0)",
    )
    add(
        "--prune-end",
        type=COUNT,
        metavar="STEP",
        help="last one, when the mask is final (default: of cubic, and of all with --score movement, after three "
        "quarters; of geometric, when --sparsity is reached)",
    )
    add(
        "--prune-every",
        type=COUNT,
        metavar="N",
        help="steps between prunings, or between changes of a dynamic mask (default: 100; with --score movement 1, "
        "unless geometric)",
    )
    add(
        "--prune-keep",
        type=BETWEEN,
        metavar="SHARE",
        help="of geometric: share of the weights kept per round (default: 0.8)",
    )
    add(
        "--prune-points",
        type=_points,
        metavar="STEP:SPARSITY,...",
        help="of piecewise: the sparsity from each step on, such as 0:0.5,500:0.8",
    )
    add(
        "--dynamic",
        choices=METHODS,
        help="move the mask while training, its density kept: drop small weights, grow others at random (set) or by "
        "gradient (rigl); until --prune-end (default: three quarters of the steps)",
    )


def _lottery_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FOLDER", help="where tickets, states and rows are kept")
    add("--resume", action="store_true", help="go on with the run in --out; --rounds and --arm may be more")
    add(
        "--checkpoint",
        metavar="FILE|NAME",
        help="dense GAN to start from (default: a freshly initialised one)",
    )
    _new_network_arguments(parser)
    add("--rounds", type=COUNT, default=5, help="of pruning, after the dense training (default: 5)")
    add("--keep", type=BETWEEN, default=0.8, help="share of the weights that a round keeps (default: 0.8)")
    add(
        "--rewind",
        choices=REWINDINGS,
        default="init",
        help="to the initialisation, to an early step (late), or of the learning rate alone (default: init)",
    )
    add("--rewind-step", type=COUNT_OR_NONE, metavar="STEP", help="where late rewinding goes back to")
    add(
        "--networks",
        choices=("generator", "discriminator", "both"),
        default="generator",
        help="to prune (default: generator)",
    )
    add(
        "--score",
        type=_ticket_score,
        choices=sorted(SCORES),
        default="magnitude",
        help="(default: magnitude)",
    )
    _method_arguments(parser)
    add(
        "--arm",
        action="append",
        default=[],
        choices=("ticket", "reinitialised", "shuffled", "random"),
        help="a control to train beside the ticket: its mask on fresh weights, its mask shuffled within layers, or a "
        "random mask of its sparsity; may be repeated",
    )
    add("--steps", type=COUNT, default=12_000, help="of each training (default: 12000)")
    add("--loss", choices=tuple(LOSSES), help=f"(default: the checkpoint's, else {DEFAULT.loss})")
    _loop_arguments(parser)
    add(
        "--checkpoint-every",
        type=COUNT,
        default=500,
        metavar="N",
        help="steps between saves of a training that may be cut short (default: 500)",
    )
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
    "lottery": (
        "find lottery tickets by iterative pruning with rewinding, with controls",
        _lottery_arguments,
    ),
    "evaluate": ("measure a generator's quality and size", _evaluate_arguments),
    "sample": ("write a picture of samples", _sample_arguments),
}
