"""``ganprune export``: writes a generator for use elsewhere."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import ganprune as gp
from ganprune.cli import options as shared
from ganprune.cli.evaluate import add_network
from ganprune.cli.networks import load_gan
from ganprune.cli.output import say
from ganprune.cli.runs import check_writable
from ganprune.core.files import owned
from ganprune.inference.onnx_file import known_zeros
from ganprune.networks.checkpoints import PRETRAINED

EXAMPLES = """examples:
  ganprune export small.safetensors --onnx small.onnx
  ganprune export small.safetensors --sparse small.gps"""
ENDINGS = {"onnx": ".onnx", "sparse": ".gps"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "checkpoint",
        nargs="?",
        metavar="CHECKPOINT",
        help=f"a file, or {' or '.join(PRETRAINED)}, which ship with the package (default: {PRETRAINED[0]})",
    )
    formats = parser.add_mutually_exclusive_group(required=True)
    formats.add_argument(
        "--onnx",
        type=Path,
        metavar="FILE",
        help="write an ONNX file, for any number of images; other runtimes read it, and multiply by zeros",
    )
    formats.add_argument(
        "--sparse",
        type=Path,
        metavar="FILE",
        help="write a sparse file: the non-zero weights, and where they are (gp.inference.load_sparse reads it)",
    )
    add_network(parser)
    shared.add_own_networks(parser)
    shared.add_common(parser, "what the checkpoint was trained on; it changes nothing here")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Writes the generator."""
    kind = "onnx" if options.onnx else "sparse"
    out: Path = getattr(options, kind)
    if out.suffix.lower() != ENDINGS[kind]:
        raise shared.wrong("export", f"--{kind}", f"must end in {ENDINGS[kind]}, got '{out}'")
    check_writable("export", out, f"--{kind}")
    with owned(out):
        gan = load_gan(options)
        generator, mask = gan.networks()[options.network], gan.masks.get("generator")
        names = ("checkpoint", "generator", "network")
        row: dict[str, Any] = {"command": "export", **{name: getattr(options, name) for name in names}}
        remarks = {"command": "ganprune export", "network": options.network, "checkpoint": _name(options)}
        if options.onnx:
            written = gp.export_onnx(out, generator, mask, remarks)
            row |= {"inputs": list(written.inputs), "opset": written.opset, "difference": written.difference}
            if written.sparsity is not None:
                row |= {"sparsity": written.sparsity, "nonzero": written.nonzeros}
            row["file_bytes"] = written.file_bytes
        else:
            if mask is not None:
                gp.check_mask(generator, mask)
            known = mask or known_zeros(generator)
            if known is not None:
                row |= {"sparsity": known.sparsity, "nonzero": known.kept}
                remarks["sparsity"] = known.sparsity
            row["file_bytes"] = gp.inference.save_sparse(out, generator, remarks)
    say(f"saved {out}, {row['file_bytes']:,} bytes")
    return row | {"out": str(out)}


def _name(options: argparse.Namespace) -> str:
    """What was exported, without the folders of this machine."""
    return options.generator if options.checkpoint is None else Path(options.checkpoint).name
