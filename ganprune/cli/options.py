"""Options that several commands share: their kinds of values, their groups, and what they ask of each other."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any, NoReturn

import ganprune as gp
from ganprune.allocation.shares import ALLOCATION_NAMES
from ganprune.core.checks import check_choice
from ganprune.core.device import PRECISIONS
from ganprune.data.folders import folder_of
from ganprune.data.sources import DATASETS
from ganprune.losses import LOSSES
from ganprune.networks.checkpoints import PRETRAINED
from ganprune.networks.importing import check_import_path
from ganprune.networks.parts import NORMS

EXIT_CODES = """exit codes: 0 done, 1 it could not be done, 2 an argument is wrong, 3 the training diverged,
            130 interrupted"""
LEAST_SAMPLES = 6
"""Density and coverage look at five neighbours of each image, so that they need a sixth."""
DEFAULT = gp.TrainConfig(steps=1)
ROLES = ("generator", "discriminator")


class UsageError(Exception):
    """An argument is wrong; the message is one sentence that names it, what came and what is allowed."""


def wrong(command: str, option: str, problem: str) -> UsageError:
    """The error that says what is wrong with an option, in the words that argparse uses.

    Args:
        command: such as "prune".
        option: such as "--out".
        problem: the rest of the sentence, such as "must be a file, got the folder 'x'".
    """
    return UsageError(f"ganprune {command}: error: argument {option}: {problem}")


class Parser(argparse.ArgumentParser):
    """A parser that raises :class:`UsageError` instead of printing its usage and leaving."""

    def error(self, message: str) -> NoReturn:
        """Raises what went wrong as one sentence."""
        raise UsageError(f"{self.prog}: error: {message}")


# --- Kinds of values --------------------------------------------------------------------------------------


def number(kind: Callable[[str], Any], allowed: str, fits: Callable[[Any], bool]) -> Callable[[str], Any]:
    """A parser of numbers for argparse, whose message says what is allowed."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not fits(value):
            raise argparse.ArgumentTypeError(f"must be {allowed}, got {text!r}")
        return value

    return parse


COUNT = number(int, "an integer of at least 1", lambda value: value >= 1)
COUNT_OR_NONE = number(int, "an integer of at least 0", lambda value: value >= 0)
SAMPLES = number(
    int,
    f"an integer of at least {LEAST_SAMPLES}, or 0 for no evaluation",
    lambda value: value >= LEAST_SAMPLES or value == 0,
)
POSITIVE = number(float, "a positive number", lambda value: 0 < value < math.inf)
SPARSITY = number(float, "a number in [0, 1)", lambda value: 0 <= value < 1)
BETWEEN = number(float, "a number in (0, 1)", lambda value: 0 < value < 1)
SHARE = number(float, "a number in [0, 1]", lambda value: 0 <= value <= 1)


def _data_name(text: str) -> str:
    try:
        if folder_of(text) is None:
            check_choice("", text, DATASETS, ", or folder:DIR")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).strip().removeprefix("data ")) from error
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


# --- Groups of options ------------------------------------------------------------------------------------


def add_common(parser: argparse.ArgumentParser, default_data: str) -> None:
    """What every command takes."""
    add = parser.add_argument_group("for every command").add_argument
    add(
        "--data",
        type=_data_name,
        metavar="NAME",
        help=f"the data set: {', '.join(DATASETS)}, or folder:DIR for PNG and JPEG files, whose sub-folders are their "
        f"classes (default: {default_data})",
    )
    add(
        "--image-size",
        type=COUNT,
        metavar="PIXELS",
        help="the side of the images of a folder (default: what the generator makes, else 64)",
    )
    add(
        "--grey",
        action="store_const",
        const=True,
        help="read a folder without colours, where no generator says it",
    )
    add(
        "--data-root", metavar="DIR", help="the folder of a downloaded data set; MNIST ships with the package"
    )
    add("--seed", type=COUNT_OR_NONE, default=0, help="determines all random numbers of the run (default: 0)")
    add("--device", help="cpu, cuda, cuda:N or mps (default: the best one that is present)")
    add("--json", action="store_true", help="write one JSON object to standard output instead of a table")


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Which GAN a command works on."""
    names = " or ".join(PRETRAINED)
    parser.add_argument(
        "--checkpoint",
        metavar="FILE|NAME",
        help=f"a file, or {names}, which ship with the package (default: {PRETRAINED[0]})",
    )


def add_own_networks(parser: argparse.ArgumentParser) -> None:
    """Networks of the user's own, named by module and class."""
    group = parser.add_argument_group(
        "networks of your own",
        "A class, or a function that returns a network, perhaps inside of gp.adapt(...), in a module that Python finds "
        "from the current folder or in a file: module:Class or path/to/file.py:function. A checkpoint remembers "
        "its name and arguments, but no code: name it again to load that checkpoint.",
    )
    kinds = {
        "generator": "latents (N, latent_dim) to images (N, C, H, W) in [-1, 1] and has an attribute latent_dim; or "
        "any network in its adapter",
        "discriminator": "images to logits (N,) (default: the checkpoint's, else the course's)",
    }
    for role, kind in kinds.items():
        group.add_argument(
            f"--{role}", type=_import_path, metavar="MODULE:CLASS|FILE:CLASS", help=f"maps {kind}"
        )
        group.add_argument(
            f"--{role}-args",
            type=_json_object,
            metavar="JSON",
            help="its keyword arguments, as a JSON object",
        )
        group.add_argument(
            f"--{role}-weights",
            metavar="FILE",
            help="its state dict, a safetensors or .pt file, of which no code is run (default: fresh weights that "
            "--seed determines)",
        )
        group.add_argument(
            f"--{role}-weights-key",
            metavar="KEY",
            help="which state dict of that file, such as g_ema (default: the one that fits)",
        )


def add_new_network(parser: argparse.ArgumentParser) -> None:
    """What a freshly initialised GAN of the course looks like."""
    add = parser.add_argument
    add("--model", choices=("dcgan", "mlp"), default="dcgan", help="the course's networks (default: dcgan)")
    add(
        "--width",
        type=COUNT,
        default=32,
        help="channels next to the image, or an eighth of the first hidden layer of an MLP (default: 32)",
    )
    add("--latent-dim", type=COUNT, help="the length of the latent vector (default: 64)")
    add("--norm", choices=NORMS, default="none", help="the norm in the discriminator (default: none)")


def add_loss(parser: argparse.ArgumentParser, default: str | None, said: str) -> None:
    """The loss of training."""
    parser.add_argument(
        "--loss", choices=tuple(LOSSES), default=default, help=f"the GAN's loss (default: {said})"
    )


def add_updates(parser: argparse.ArgumentParser) -> None:
    """How weights are updated in any training."""
    add = parser.add_argument
    add(
        "--batch-size",
        type=COUNT,
        default=DEFAULT.batch_size,
        help=f"images per update (default: {DEFAULT.batch_size})",
    )
    add(
        "--learning-rate",
        type=POSITIVE,
        default=DEFAULT.learning_rate,
        help=f"the learning rate, which is held and then falls to zero (default: {DEFAULT.learning_rate:g})",
    )
    add(
        "--decay-from",
        type=SHARE,
        default=DEFAULT.decay_from,
        help=f"the share of the steps for which it is held (default: {DEFAULT.decay_from:g})",
    )
    add(
        "--ema-decay",
        type=SPARSITY,
        default=DEFAULT.ema_decay,
        help=f"the decay of the generator's moving average (default: {DEFAULT.ema_decay:g})",
    )
    add(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="the numbers that training computes in; auto takes bfloat16 where the processor has it (default: auto). "
        "Evaluation always uses float32",
    )


def add_critic(parser: argparse.ArgumentParser) -> None:
    """How the discriminator is trained from the start."""
    add = parser.add_argument
    add(
        "--penalty",
        choices=("gradient", "r1", "none"),
        default="r1",
        help="on the discriminator (default: r1)",
    )
    add("--penalty-weight", type=POSITIVE, help="its weight (default: 1 for r1, 10 for gradient)")
    add(
        "--penalty-every",
        type=COUNT,
        help="take it every so many updates, as much heavier (default: 8 for r1, 1 for gradient)",
    )
    add(
        "--critic-steps",
        type=COUNT,
        default=1,
        help="discriminator updates per generator update (default: 1)",
    )
    add("--clip", type=POSITIVE, help="clip the discriminator's weights to [-CLIP, CLIP] (default: never)")


def add_method(parser: argparse.ArgumentParser) -> None:
    """Where the zeros go."""
    parser.add_argument(
        "--allocation",
        choices=ALLOCATION_NAMES,
        help="how the zeros are shared out among the layers (default: global, or what the score asks for)",
    )
    parser.add_argument(
        "--protect",
        action="append",
        default=[],
        metavar="LAYER",
        help="a layer to leave dense; may be given several times",
    )


def add_evaluation(parser: argparse.ArgumentParser) -> None:
    """How quality is measured."""
    parser.add_argument(
        "--samples",
        type=SAMPLES,
        default=10_000,
        help="the number of images to evaluate, 0 for no evaluation; compare results of equal numbers only "
        "(default: 10000)",
    )
    parser.add_argument(
        "--extractor",
        metavar="FILE",
        help="the feature extractor that 'ganprune extractor' trained on other data of as many channels (default: the "
        "data set's own, which is trained at first use)",
    )
    parser.add_argument(
        "--split",
        choices=("validation", "test"),
        default="validation",
        help="the real images to compare with; use test once, at the end (default: validation)",
    )


def add_resuming(parser: argparse.ArgumentParser) -> None:
    """How a run that is stopped goes on."""
    parser.add_argument(
        "--checkpoint-every",
        type=COUNT_OR_NONE,
        default=500,
        metavar="N",
        help="steps between two saves of the unfinished run in OUT.unfinished; 0 never saves (default: 500)",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the unfinished run of this --out")


# --- What options ask of each other -----------------------------------------------------------------------


def train_config(options: argparse.Namespace, loss: str) -> gp.TrainConfig:
    """The training run that the options ask for; at least one step, also where ``--steps 0`` trains nothing."""
    names = {field.name for field in dataclasses.fields(gp.TrainConfig)} - {"steps", "loss"}
    given = {name: getattr(options, name) for name in names if hasattr(options, name)}
    if given.get("penalty") == "none":
        given["penalty"] = None
    weight, every = (10.0, 1) if given.get("penalty") == "gradient" else (1.0, 8)
    for name, value in (("penalty_weight", weight), ("penalty_every", every)):
        if name in given and given[name] is None:
            given[name] = value
    return gp.TrainConfig(steps=options.steps or 1, loss=loss, **given)
