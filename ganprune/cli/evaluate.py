"""``ganprune evaluate``: measures a generator's quality and size."""

from __future__ import annotations

import argparse
from typing import Any

from ganprune.cli import options as shared
from ganprune.cli.networks import load_data, load_gan, loss_of
from ganprune.cli.output import measure, prepare_extractor
from ganprune.metrics.report import NETWORKS

EXAMPLES = """examples:
  ganprune evaluate
  ganprune evaluate --checkpoint small.safetensors --split test --json > report.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    shared.add_checkpoint(parser)
    add_network(parser)
    shared.add_loss(parser, None, "the checkpoint's; it is behind real_loss and fake_loss")
    shared.add_evaluation(parser)
    shared.add_own_networks(parser)
    shared.add_common(parser, "what the checkpoint was trained on, else mnist")


def add_network(parser: argparse.ArgumentParser) -> None:
    """Which of the two generators of a GAN is looked at."""
    parser.add_argument(
        "--network",
        choices=NETWORKS,
        default=NETWORKS[0],
        help="the moving average of the generator's weights, or the generator itself (default: generator_ema)",
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measures a generator."""
    gan = load_gan(options)
    data = load_data(options, gan.metadata.get("data", "mnist"), gan)
    prepare_extractor(options, data)
    row = {"command": "evaluate", "checkpoint": options.checkpoint, "generator": options.generator}
    row["network"] = options.network
    return row | measure(options, gan, data, loss_of(options, gan), options.network)
