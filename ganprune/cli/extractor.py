"""``ganprune extractor``: trains the feature extractor of a data set ahead of the first evaluation."""

from __future__ import annotations

import argparse
from typing import Any

import ganprune as gp
from ganprune.cli import options as shared
from ganprune.cli.networks import load_data
from ganprune.cli.output import say

EXAMPLES = """examples:
  ganprune extractor --data fashion-mnist
  ganprune extractor --data cifar10 --data-root downloads"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    shared.add_common(parser, "mnist, whose extractor ships with the package")
    parser.set_defaults(generator=None, discriminator=None, checkpoint=None)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Trains the extractor, unless it is there already."""
    data = load_data(options, "mnist")
    path = gp.metrics.prepare_extractor(data, options.device, announce=say)
    extractor = gp.metrics.load_extractor(data, options.device)
    accuracy = extractor.metadata.get("validation_accuracy")
    return {
        "command": "extractor",
        "data": data.name,
        "extractor": extractor.label,
        "validation_accuracy": None if accuracy is None else float(accuracy),
        "out": str(path),
    }
