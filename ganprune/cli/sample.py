"""``ganprune sample``: writes a picture of samples."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from torchvision.utils import save_image

import ganprune as gp
from ganprune.cli import options as shared
from ganprune.cli.evaluate import add_network
from ganprune.cli.networks import load_data, load_gan
from ganprune.cli.output import say
from ganprune.cli.runs import check_writable
from ganprune.core.files import replacing

EXAMPLES = """examples:
  ganprune sample --out samples.png
  ganprune sample --checkpoint small.safetensors --n 100 --seed 7 --out samples.png
  ganprune sample --real --data fashion-mnist --out real.png"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    shared.add_checkpoint(parser)
    add_network(parser)
    add = parser.add_argument
    add(
        "--out",
        type=Path,
        default=Path("samples.png"),
        metavar="FILE",
        help="the picture to write, a PNG file (default: samples.png)",
    )
    add("--n", type=shared.COUNT, default=64, help="the number of images (default: 64)")
    add("--real", action="store_true", help="show images of the data set instead, for comparison")
    shared.add_own_networks(parser)
    shared.add_common(parser, "what the checkpoint was trained on, else mnist")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Writes the picture."""
    if options.out.suffix.lower() != ".png":
        raise shared.wrong("sample", "--out", f"must end in .png, got '{options.out}'")
    check_writable("sample", options.out)
    row: dict[str, Any] = {"command": "sample", "n": options.n, "seed": options.seed}
    if options.real:
        data = load_data(options, "mnist")
        images, row["data"] = data.train.batch(options.n, options.seed, 0), data.name
    else:
        gan = load_gan(options)
        images = gp.sample(gan.networks()[options.network], options.n, options.seed)
        row |= {name: getattr(options, name) for name in ("checkpoint", "generator", "network")}
    columns = math.ceil(math.sqrt(options.n))
    with replacing(options.out) as temporary:
        save_image(
            images, temporary, format="png", nrow=columns, padding=1, normalize=True, value_range=(-1, 1)
        )
    say(f"saved {options.out}")
    return row | {"out": str(options.out)}
