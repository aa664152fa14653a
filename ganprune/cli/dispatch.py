"""The command line behind its entrance: reads the arguments and calls the command."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Sequence

import torch

import ganprune as gp
from ganprune.cli.networks import named_paths, settle_networks
from ganprune.cli.options import EXIT_CODES, Parser, UsageError
from ganprune.cli.output import Shown, as_json, as_table, fail, sentence
from ganprune.networks.custom import trust
from ganprune.training.loop import DivergenceError

COMMANDS = {
    "train": "train a GAN and save it",
    "prune": "prune a generator, fine-tune it against its discriminator, and save it",
    "lottery": "find lottery tickets by iterative pruning with rewinding, with controls",
    "evaluate": "measure a generator's quality and size",
    "sample": "write a picture of samples",
    "export": "write a generator as an ONNX file or as a sparse file",
    "extractor": "train the feature extractor of a data set ahead of its first evaluation",
    "experiment": "list, plan and run the studies of the course; show what the records say about its claims",
}
"""What each command does. A command is a module of ``ganprune.cli``, imported when it is called."""
FAILURES = (gp.GanpruneError, OSError, MemoryError, torch.OutOfMemoryError)
"""What can go wrong with good arguments: exit code 1 and one sentence."""


def run_command(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the arguments name, and gives the exit code, as :func:`ganprune.__main__.main` does."""
    begin = time.perf_counter()
    try:
        words = sys.argv[1:] if argv is None else list(argv)
        options = build_parser(words).parse_args(words)
        command = importlib.import_module(f"ganprune.cli.{options.command}")
        if options.command not in ("extractor", "experiment"):
            settle_networks(options)
        with trust(*named_paths(options)):
            row = command.run(options)
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)
    except UsageError as error:
        return fail(2, str(error))
    except DivergenceError as error:
        return fail(3, f"ganprune: error: {sentence(error)}")
    except FAILURES as error:
        return fail(1, f"ganprune: error: {sentence(error)}")
    except ValueError as error:
        return fail(2, f"ganprune: error: {sentence(error)}")
    except KeyboardInterrupt as stop:
        return fail(130, f"ganprune: interrupted{f'; {stop}' if str(stop) else ''}")
    if isinstance(row, Shown):
        sys.stdout.write(as_json(row.value) if options.json else row.text)
        return 0
    row["seconds"] = round(time.perf_counter() - begin, 3)
    sys.stdout.write(as_json(row) if options.json else as_table(row))
    return 0


def build_parser(words: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """The parser of the command line.

    Args:
        words: the arguments that it will see: of the commands, only the one that they call gets its options; None for
            the options of all commands.
    """
    parser = Parser(
        prog="ganprune",
        description="Train, prune, evaluate and sample generative adversarial networks; find lottery tickets.",
        epilog=f"'ganprune COMMAND --help' explains every option and has examples.\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ganprune {gp.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    called = COMMANDS if words is None else [word for word in words if not word.startswith("-")][:1]
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(checkpoint=None)
        if name in called:
            module = importlib.import_module(f"ganprune.cli.{name}")
            command.epilog = f"{module.EXAMPLES}\n\n{EXIT_CODES}"
            module.add_arguments(command)
    return parser
