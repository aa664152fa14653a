"""``ganprune train``: trains a GAN and saves it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ganprune.cli import options as shared
from ganprune.cli.networks import load_data, new_gan
from ganprune.cli.runs import complete, own_output
from ganprune.cli.tracking import add_tracker

EXAMPLES = """examples:
  ganprune train --steps 12000 --out gan.safetensors
  ganprune train --steps 12000 --out gan.safetensors --resume     after a stop: goes on, to the same weights
  ganprune train --model mlp --steps 20000 --out mlp.safetensors
  ganprune train --data fashion-mnist --loss wasserstein --penalty gradient --critic-steps 5 --norm none \\
      --learning-rate 1e-4 --out fashion.safetensors"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FILE", help="the checkpoint to write, a safetensors file")
    shared.add_new_network(parser)
    add(
        "--steps",
        type=shared.COUNT_OR_NONE,
        default=12_000,
        help="generator updates; 0 saves the GAN as it is initialised, to prune it then (default: 12000)",
    )
    shared.add_loss(parser, shared.DEFAULT.loss, shared.DEFAULT.loss)
    shared.add_updates(parser)
    shared.add_critic(parser)
    shared.add_resuming(parser)
    shared.add_evaluation(parser)
    add_tracker(parser)
    shared.add_own_networks(parser)
    shared.add_common(parser, "mnist")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Trains, saves and measures a GAN."""
    with own_output(options) as partial:
        if options.generator is None:
            data = load_data(options, "mnist")
            gan = new_gan(options, data.image_shape)
        else:
            gan = new_gan(options)
            data = load_data(options, "mnist", gan)
        return complete(options, partial, gan, data, options.loss)
