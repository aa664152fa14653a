"""What the command line measures and shows: quality and size as one row, as a table or as JSON; progress for a log."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import ganprune as gp

TABLE = (
    *(
        "checkpoint",
        "generator",
        "network",
        "inputs",
        "model",
        "data",
        "split",
        "samples",
        "extractor",
        "score",
        "allocation",
        "steps",
        "training_precision",
    ),
    *("fid_before", "fid_pruned", "fid", "fid_floor", "kid", "precision", "recall", "density", "coverage"),
    *("histogram_kl", "real_loss", "fake_loss", "real_accuracy", "fake_accuracy", "sparsity", "nonzero"),
    *("parameters", "macs", "effective_macs", "file_bytes", "compressed_bytes", "latency_seconds"),
    *("out", "seconds"),
)
"""What is shown without ``--json``, in this order."""
COLUMNS = ("round", "arm", "ticket_sparsity", "fid", "kid", "recall", "generator_loss", "discriminator_loss")
"""What is shown of each row of a command that gives several."""


class Shown(NamedTuple):
    """What a command found that is no row of a training, and how it reads."""

    value: Any
    text: str


def prepare_extractor(options: argparse.Namespace, data: gp.data.ImageData) -> None:
    """Trains the feature extractor of a data set before the work begins, if quality is to be measured and it lacks.

    MNIST's ships with the package. The length of the training is said after its first steps.
    """
    if options.samples:
        load_extractor(options) or gp.metrics.prepare_extractor(data, options.device, announce=say)


def load_extractor(options: argparse.Namespace) -> Any:
    """The feature extractor of ``--extractor``; None for the data set's own."""
    path = getattr(options, "extractor", None)
    return None if path is None else gp.metrics.read_extractor(path, options.device)


def measure(
    options: argparse.Namespace, gan: gp.GAN, data: gp.data.ImageData, loss: str, network: str
) -> dict[str, Any]:
    """Quality, unless ``--samples 0`` leaves it out, and size of one of the generators."""
    generator, mask = gan.networks()[network], gan.masks.get("generator")
    row: dict[str, Any] = {"device": str(gan.device), "data": data.name, "split": options.split}
    row["samples"] = options.samples
    if options.samples:
        say(f"evaluating {options.samples:,} samples against the {options.split} split of {data.name}")
        split = getattr(data, options.split)
        new = options.command == "evaluate" and not (options.checkpoint or options.discriminator_weights)
        judge = None if new else gan.discriminator  # one that was never trained has nothing to say
        report = gp.evaluate(
            generator,
            split,
            options.samples,
            options.seed,
            judge,
            loss,
            mask=mask,
            extractor=load_extractor(options),
        )
        row |= report.as_dict()
    return row | gp.complexity(generator, mask).as_dict()


def quick_fid(options: argparse.Namespace, gan: gp.GAN, data: gp.data.ImageData) -> float | None:
    """The distance alone, of the EMA generator as it is now; None for ``--samples 0``."""
    if not options.samples:
        return None
    split = getattr(data, options.split)
    report = gp.evaluate(
        gan.generator_ema,
        split,
        options.samples,
        options.seed,
        metrics=("fid",),
        extractor=load_extractor(options),
    )
    return report.fid


def say(text: str) -> None:
    """Writes a line to standard error; standard output is for results."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def fail(code: int, text: str) -> int:
    """Says why a command ends, and gives its exit code."""
    say(text)
    return code


def sentence(error: BaseException) -> str:
    """The message of an error on one line, or its name if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def plain(value: Any) -> Any:
    """The value with null for what JSON cannot hold."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_json(row: Any) -> str:
    """The row with ``--json``: one object, or a list of them, on one line."""
    return json.dumps(plain(row), allow_nan=False, default=str) + "\n"


def as_table(row: dict[str, Any]) -> str:
    """The row without ``--json``: in two columns, or with a line for each of its ``rows``."""
    return _lines(row) if "rows" in row else _pairs(row)


def _label(key: str, data: str | None) -> str:
    """FID in the features of the digit classifier is called digit-FID."""
    return ("digit-" if key.startswith("fid") and data == "mnist" else "") + key.replace("_", " ")


def _shown(value: Any) -> str:
    if type(value) is int:
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _pairs(row: dict[str, Any]) -> str:
    found = {key: row[key] for key in TABLE if row.get(key) is not None}
    shown = {_label(key, row.get("data")): _shown(value) for key, value in found.items()}
    width = max(map(len, shown))
    return "".join(f"{label:<{width}}  {value}\n" for label, value in shown.items())


def _lines(row: dict[str, Any]) -> str:
    columns = [key for key in COLUMNS if any(one.get(key) is not None for one in row["rows"])]
    cells = [[_label(key, row["data"]) for key in columns]]
    for one in row["rows"]:
        cells.append(["" if one.get(key) is None else _shown(one[key]) for key in columns])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)) for line in cells]
    return "".join(f"{line.rstrip()}\n" for line in lines) + f"\nkept in {row['out']}\n"


def columns(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """The rows as lines under the names of their columns; numbers with three digits, "–" for None."""

    def cell(value: Any) -> str:
        if value is None:
            return "–"
        return (
            f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)
        )

    cells = [list(names), *([cell(row[name]) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(f"{text:<{width}}" for text, width in zip(line, widths, strict=True)) for line in cells
    ]
    return "".join(f"{line.rstrip()}\n" for line in lines)
